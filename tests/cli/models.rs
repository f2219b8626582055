//! Damaged, incomplete and strange model folders.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use step1x_edit::weights::tokenizer::full_tokenizer_json;

use super::support::*;

/// A safetensors file taken apart, to be put together wrongly.
struct Parts {
    header: Map<String, Value>,
    data: Vec<u8>,
}

impl Parts {
    fn of(file: &str) -> Parts {
        let bytes = fs::read(model().join(file)).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        Parts { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        with_header(&serde_json::to_vec(&self.header).unwrap(), &self.data)
    }

    fn range(&self, name: &str) -> [usize; 2] {
        serde_json::from_value(self.header[name]["data_offsets"].clone()).unwrap()
    }

    /// The tensor whose data end last.
    fn last(&self) -> String {
        let tensors = self.header.keys().filter(|name| *name != "__metadata__");
        tensors.max_by_key(|name| self.range(name)[1]).unwrap().clone()
    }

    /// Fills a tensor's data with this repeated.
    fn fill(&mut self, name: &str, element: &[u8]) {
        let [begin, end] = self.range(name);
        self.data[begin..end].chunks_exact_mut(element.len()).for_each(|to| to.copy_from_slice(element));
    }
}

fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A model in which `file` has these bytes, which must be refused with these words.
fn refused(file: &str, bytes: impl AsRef<[u8]>, code: i32, words: &[&str]) {
    let place = Place::new();
    let dir = place.linked_model("model", &[file]);
    fs::write(dir.join(file), bytes).unwrap();
    place.edit_refused(&["-m", "model", "-i", &fixture("grey.png")], code, words);
}

#[test]
fn folders_that_hold_no_model() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).unwrap();
    place.edit_refused(&["-m", "absent"], 3, &["absent", "no such folder"]);
    let all = ["missing (5)", DIT, VAE, CONFIG, TOKENIZER, "stepfun-ai/Step1X-Edit", "Qwen/Qwen2.5-VL-7B-Instruct"];
    place.edit_refused(&["-m", "empty"], 3, &all);
    for file in MODEL_FILES.into_iter().filter(|file| *file != SETTINGS) {
        let dir = place.linked_model(&file.replace('/', "-"), &[file]);
        place.edit_refused(
            &["-m", dir.to_str().unwrap()],
            3,
            &["missing (1)", Path::new(file).file_name().unwrap().to_str().unwrap()],
        );
    }
}

#[test]
fn two_transformers_make_the_model_unclear() {
    let place = Place::new();
    let dir = place.linked_model("model", &[]);
    fs::hard_link(dir.join(DIT), dir.join("step1x-edit-i1258.safetensors")).unwrap();
    place.edit_refused(&["-m", "model"], 3, &["the folder holds several models", "step1x-edit-i1258.safetensors", DIT]);
    let file = dir.join(DIT);
    place.edited(&["-m", file.to_str().unwrap(), "-i", &fixture("grey.png"), "--steps", "1"]);
}

#[test]
fn truncated_weights() {
    let whole = fs::read(model().join(DIT)).unwrap();
    refused(DIT, &whole[..whole.len() / 2], 3, &[DIT, "bytes are missing", "download is probably incomplete"]);
    refused(VAE, &whole[..100], 3, &[VAE, "header"]);
    refused(TEXT, b"", 3, &["model.safetensors", "too short"]);
    refused(DIT, [&whole[..], b"tail"].concat(), 3, &[DIT, "4 bytes follow the last tensor"]);
}

#[test]
fn missing_and_unexpected_tensors_are_listed() {
    let mut parts = Parts::of(VAE);
    let last = parts.last();
    parts.data.truncate(parts.range(&last)[0]);
    parts.header.remove(&last);
    refused(VAE, parts.bytes(), 3, &["missing (1)", &last, "official release"]);

    let mut parts = Parts::of(DIT);
    let end = parts.data.len();
    parts.data.extend([0; 4]);
    parts.header.insert("lora.up".into(), json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}));
    refused(DIT, parts.bytes(), 3, &["unexpected (1)", "lora.up f32[1]"]);

    // A tensor that dimensions are read from.
    let mut parts = Parts::of(DIT);
    let entry = parts.header.remove("img_in.weight").unwrap();
    parts.header.insert("img_out.weight".into(), entry);
    refused(DIT, parts.bytes(), 3, &["lacks the tensor img_in.weight"]);
}

#[test]
fn tensors_of_another_shape_or_type_are_listed() {
    let mut parts = Parts::of(DIT);
    parts.header["final_layer.linear.weight"]["shape"] = json!([256, 64]);
    refused(DIT, parts.bytes(), 3, &["of another shape (1)", "final_layer.linear.weight is [256, 64], not [64, 256]"]);
    let mut parts = Parts::of(VAE);
    parts.header["decoder.conv_out.bias"]["dtype"] = json!("I32");
    refused(VAE, parts.bytes(), 3, &["not of a float dtype (1)", "decoder.conv_out.bias is i32"]);
    parts.header["decoder.conv_out.bias"]["dtype"] = json!("C64");
    refused(VAE, parts.bytes(), 3, &["decoder.conv_out.bias", "\"C64\" is unknown", "BF16"]);
}

#[test]
fn headers_that_contradict_their_data() {
    let mut parts = Parts::of(DIT);
    let last = parts.last();
    let [begin, end] = parts.range(&last);
    parts.header[&last]["data_offsets"] = json!([begin - 2, end - 2]);
    refused(DIT, parts.bytes(), 3, &[&last, "overlaps the one before it by 2 bytes"]);
    parts.header[&last]["data_offsets"] = json!([begin, end - 2]);
    refused(DIT, parts.bytes(), 3, &[&last, "needs"]);
    parts.header[&last]["shape"] = json!([u64::MAX, 2]);
    refused(DIT, parts.bytes(), 3, &[&last, "more elements than can be addressed"]);
}

/// What a file holds may be long, and may be what a terminal obeys: a message is neither.
#[test]
fn what_files_hold_is_shown_briefly_and_plainly() {
    let place = Place::new();
    let dir = place.linked_model("model", &[VAE]);
    let message = |bytes: Vec<u8>, words: &[&str]| {
        fs::write(dir.join(VAE), bytes).unwrap();
        let answer = place.run(&["inspect", "-m", "model"]);
        answer.refused(3, words);
        assert!(answer.stderr.len() < 2000, "{} bytes", answer.stderr.len());
        assert!(!answer.stderr.contains(['\u{1b}', '\u{7}']), "{:?}", answer.stderr);
    };
    let extents = format!(r#"{{"a":{{"dtype":"F32","shape":[{}2],"data_offsets":[0,4]}}}}"#, "2,".repeat(10_000_000));
    message(with_header(extents.as_bytes(), &[0; 4]), &[VAE, "tensor", "at most 16 whole numbers"]);

    let mut parts = Parts::of(VAE);
    let end = parts.data.len();
    parts.data.extend([0; 4]);
    let entry = json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]});
    parts.header.insert("\u{1b}[2J\u{1b}]0;owned\u{7}x".into(), entry.clone());
    message(parts.bytes(), &["unexpected (1)", r"\u{1b}[2J\u{1b}]0;owned\u{7}x"]);
    parts.header.insert("x".repeat(10_000_000), entry);
    message(parts.bytes(), &["overlaps the one before it", "(10000000 bytes)"]);
}

/// A megabyte of JSON can become a hundred of values.
#[test]
fn json_files_have_their_limits() {
    let place = Place::new();
    let objects = |bytes: usize| format!("[{}0]", r#"{"":0},"#.repeat(bytes / 7));
    for (file, most) in [(CONFIG, 262_144), (SETTINGS, 262_144), (TOKENIZER, 16_777_216)] {
        let dir = place.linked_model(&file.replace('/', "-"), &[file]);
        fs::write(dir.join(file), objects(most + 7)).unwrap();
        let words = [file, &format!("more than {most} bytes")];
        place.run(&["inspect", "-m", dir.to_str().unwrap()]).refused(3, &words);
        fs::write(dir.join(file), objects(most - 7)).unwrap();
        place.run(&["inspect", "-m", dir.to_str().unwrap()]).refused(3, &[file.rsplit('/').next().unwrap()]);
    }
    let dir = place.linked_model("index", &[TEXT]);
    fs::write(dir.join(format!("{TEXT}.index.json")), objects(1 << 22)).unwrap();
    place.run(&["inspect", "-m", "index"]).refused(3, &["index.json", "more than 4194304 bytes"]);
}

#[test]
fn headers_that_are_none() {
    let whole = fs::read(model().join(VAE)).unwrap();
    let claim = [&(1u64 << 60).to_le_bytes(), &whole[8..]].concat();
    refused(VAE, claim, 3, &[VAE, "claims a header of 1152921504606846976 bytes"]);
    refused(VAE, with_header(b"{\"a\": nonsense", b""), 3, &[VAE, "header is not that of a safetensors file"]);
    refused(VAE, with_header(b"[1, 2]", b""), 3, &[VAE, "header is not that of a safetensors file"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 335304388\n";
    refused(VAE, pointer, 3, &[VAE, "git lfs pull"]);
}

#[test]
fn a_broken_tokenizer() {
    refused(TOKENIZER, b"{\"version\": ", 3, &["tokenizer.json", "Qwen2.5-VL"]);
    refused(TOKENIZER, b"", 3, &["tokenizer.json"]);
    let mut json: Value = serde_json::from_slice(&fs::read(model().join(TOKENIZER)).unwrap()).unwrap();
    json["added_tokens"].as_array_mut().unwrap().retain(|token| token["content"] != "<|im_end|>");
    refused(TOKENIZER, json.to_string(), 3, &["tokenizer.json", "<|im_end|>"]);
    let released = full_tokenizer_json().unwrap();
    refused(TOKENIZER, released, 3, &["ids up to 151664", "1024 embeddings", "one release"]);
}

#[test]
fn tokenizers_that_would_panic_or_hang_are_refused() {
    let place = Place::new();
    for name in ["tokenizer_fixed_length_0.json", "tokenizer_regex_retry_limit.json"] {
        let dir = place.linked_model(name, &[TOKENIZER]);
        fs::copy(report(name), dir.join(TOKENIZER)).unwrap();
        place.run(&["inspect", "-m", name]).refused(3, &["tokenizer.json", "pre_tokenizer is not that of Qwen2.5"]);
    }
}

/// The pattern of Qwen2.5 by itself makes a panic of more than ten million spaces.
#[test]
fn a_prompt_of_ten_million_spaces_is_cut() {
    let place = Place::new();
    fs::create_dir(place.path("cases")).unwrap();
    for (name, colour) in [("a.source.png", [200, 30, 30]), ("a.target.png", [30, 60, 200])] {
        image::RgbImage::from_pixel(64, 64, image::Rgb(colour)).save(place.path("cases").join(name)).unwrap();
    }
    let case = json!([{"id": "a", "kind": "x", "language": "en", "held_out": false, "instruction": " ".repeat(10_100_000)}]);
    place.write("cases/cases.json", case.to_string());
    let model = model().to_str().unwrap();
    let answer = place.run(&["judge", "-m", model, "--cases", "cases", "--steps", "1", "--device", "cpu"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    assert!(answer.stderr.contains("the prompt is too long") && answer.stderr.contains("bytes that follow them are cut"));
}

#[test]
fn a_broken_config() {
    refused(CONFIG, b"{", 3, &["config.json", "not the JSON expected"]);
    refused(CONFIG, b"{}", 3, &["config.json lacks vision_config", "Qwen2.5-VL"]);
    let config = || -> Value { serde_json::from_slice(&fs::read(model().join(CONFIG)).unwrap()).unwrap() };
    for field in ["hidden_size", "num_attention_heads", "rope_theta", "rope_scaling", "vocab_size"] {
        let mut json = config();
        json.as_object_mut().unwrap().remove(field);
        refused(CONFIG, json.to_string(), 3, &["config.json lacks", field]);
    }
    let mut json = config();
    json["image_token_id"] = json!(5);
    refused(CONFIG, json.to_string(), 3, &["image_token_id", "tokenizer.json", "one release"]);
    let mut json = config();
    json["num_hidden_layers"] = json!(4_000_000_000u64);
    refused(CONFIG, json.to_string(), 3, &["num_hidden_layers is 4000000000", "1048576"]);
    json["num_hidden_layers"] = json!(5);
    refused(CONFIG, json.to_string(), 3, &["missing", "model.layers.3."]);
}

#[test]
fn a_broken_settings_file() {
    refused(SETTINGS, b"{\"cutt\": 5}", 3, &["step1x.json", "cutt", "max_text"]);
    refused(SETTINGS, b"[]", 3, &["step1x.json", "not a JSON object"]);
    refused(SETTINGS, b"{\"axes\": [8, 56, 56]}", 3, &["axes", "128"]);
    // The sum of these is 128 modulo 2^64.
    refused(SETTINGS, b"{\"axes\": [18446744073709551614, 66, 64]}", 3, &["axes", "128"]);
    refused(SETTINGS, b"{\"cut\": 487, \"max_text\": 1}", 3, &["`max_text` is 1", "set 3"]);
    refused(SETTINGS, b"{\"cut\": 487, \"max_text\": 4000000000}", 3, &["`max_text` is 4000000000", "to 16384"]);
    refused(SETTINGS, b"{\"cut\": 100000}", 3, &["`cut` is 100000"]);
}

#[test]
fn weights_that_are_no_numbers_name_the_stage() {
    const NAN_BF16: [u8; 2] = [0xc0, 0x7f];
    const NAN_F32: [u8; 4] = [0, 0, 0xc0, 0x7f];
    for (file, tensor, nan, stage) in [
        (VAE, "encoder.conv_in.bias", &NAN_F32[..], "the stage vae_encode"),
        (TEXT, "model.embed_tokens.weight", &NAN_BF16, "the stage text"),
        (DIT, "final_layer.linear.bias", &NAN_BF16, "after step 1 of 2"),
        (VAE, "decoder.conv_out.bias", &NAN_F32, "the stage vae_decode"),
    ] {
        let mut parts = Parts::of(file);
        parts.fill(tensor, nan);
        refused(file, parts.bytes(), 1, &["not finite", stage, "othing was written"]);
    }
}
