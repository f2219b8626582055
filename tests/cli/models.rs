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
    let looked = place.path("absent").display().to_string();
    place.edit_refused(&["-m", "absent"], 3, &["absent", "no such folder", &looked, "docs/models.md"]);
    let looked = place.path("stepfun-ai/Step1X-Edit").display().to_string();
    let words = ["stepfun-ai/Step1X-Edit: there is no such folder", &looked, "`step1x-edit pull v1.1` gets the newer one: 42 GB"];
    place.edit_refused(&["-m", "stepfun-ai/Step1X-Edit"], 3, &words);
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

/// Files of other kinds in the place of each of the model's files, and what is said of them.
#[test]
fn files_of_another_kind_are_named() {
    let gguf = fs::read(report("quantised.gguf")).unwrap();
    let kinds: [(&[u8], &str); 8] = [
        (&gguf, "this is a GGUF file"),
        (b"PK\x03\x04\0\0\x08\x08\0\0\0\0archive/data.pkl", "this is a zip archive, as PyTorch's"),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "this is a pickled PyTorch file"),
        (b"\x08\x07\x12\x07pytorch", "this is an ONNX model"),
        (b"<!doctype html><html><head><title>Just a moment...</title>", "this is a web page; the download went wrong"),
        (b"{\"error\":\"Invalid credentials\"}", "this is a text that begins with \"{\"error\":\"Invalid credentials\"}\""),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 335304388\n", "run `git lfs pull`"),
        (b"", "0 bytes are too short for a safetensors file"),
    ];
    for (bytes, words) in kinds {
        for file in [DIT, VAE, TEXT] {
            refused(file, bytes, 3, &[file, words]);
        }
    }
}

/// What is given instead of a model is named, also in a folder that has little or nothing of one.
/// A cache as the hub's client makes it, and one as ModelScope's does.
#[test]
#[cfg(unix)]
fn models_are_found_by_their_names() {
    use std::os::unix::fs::symlink;

    let place = Place::new();
    let linked = |file: &str, folder: &str| {
        let link = place.path(folder).join(Path::new(file).file_name().unwrap());
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(model().join(file), link).unwrap();
    };
    for file in MODEL_FILES {
        let of_qwen = file.contains('/');
        let hub = if of_qwen { "models--Qwen--Qwen2.5-VL-7B-Instruct" } else { "models--stepfun-ai--Step1X-Edit" };
        linked(file, &format!("hub/{hub}/snapshots/abc"));
        let scope = if of_qwen { "Qwen/Qwen2___5-VL-7B-Instruct" } else { "stepfun-ai/Step1X-Edit" };
        linked(file, &format!("scope/models/{scope}"));
    }
    for (variable, folder, name) in [
        ("HF_HUB_CACHE", "hub", "stepfun-ai/Step1X-Edit"),
        ("HF_HUB_CACHE", "hub", "stepfun-ai/Step1X-Edit@abc"),
        ("HF_HUB_CACHE", "hub", "v1.1"),
        ("MODELSCOPE_CACHE", "scope", "v1.1"),
    ] {
        let answer = Answer::from(
            place.command(&["inspect", "-m", name, "--precision", "f32"]).env(variable, place.path(folder)).output().unwrap(),
        );
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{name} in {folder}");
        assert!(answer.stdout.contains(place.path(folder).to_str().unwrap()), "{}", answer.stdout);
    }
    for (name, words) in [
        (
            "v1.0",
            [
                "snapshots/abc: it lacks step1x-edit-i1258.safetensors",
                "`step1x-edit pull v1.0` gets it: 42 GB, licence Apache-2.0",
            ],
        ),
        ("v1.1@def", ["which is stepfun-ai/Step1X-Edit at def", "it has abc"]),
        ("org/other", ["models--org--other", "if it is a model on Hugging Face"]),
    ] {
        let mut command = place.command(&["edit", "-m", name, "-i", &fixture("grey.png"), "-p", "x", "-o", "out.png"]);
        Answer::from(command.env("HF_HUB_CACHE", place.path("hub")).output().unwrap()).refused(3, &words);
    }
}

#[test]
fn another_file_is_named_also_where_files_are_missing() {
    let place = Place::new();
    place.linked_model("whole", &[]);
    fs::create_dir(place.path("bare")).unwrap();
    for (file, words) in [
        ("quantised.gguf", ["this is a GGUF file", "use the safetensors file of the official release"]),
        ("lora.safetensors", ["this is a LoRA", "not a model"]),
    ] {
        for folder in ["whole", "bare"] {
            fs::copy(report(file), place.path(&format!("{folder}/{file}"))).unwrap();
            let path = format!("{folder}/{file}");
            place.edit_refused(&["-m", &path], 3, &[&[path.as_str()][..], &words].concat());
        }
    }
    let args = ["-m", "whole", "-i", &fixture("grey.png"), "--steps", "1", "-o", "whole.png"];
    place.edited(&args);
    let all = ["there instead (2)", "lora.safetensors: this is a LoRA", "quantised.gguf: this is a GGUF file", "missing (5)"];
    place.edit_refused(&["-m", "bare"], 3, &all);

    let qwen = place.path("whole").join(TEXT).parent().unwrap().to_path_buf();
    let text = "Qwen2.5-VL, the text encoder";
    place.edit_refused(&["-m", qwen.to_str().unwrap()], 3, &["model.safetensors: this is", text, "missing (5)"]);
    let vae = place.path("whole").join(VAE);
    place.edit_refused(&["-m", vae.to_str().unwrap()], 3, &[VAE, "this is FLUX's autoencoder"]);

    place.write("bare/model_index.json", r#"{"_class_name": "FluxPipeline", "_diffusers_version": "0.30.0"}"#);
    let words = ["model_index.json: this is a model of FluxPipeline, not of Step1XEditPipeline"];
    place.edit_refused(&["-m", "bare"], 3, &words);
    place.write("bare/model_index.json", r#"{"_class_name": "Step1XEditPipelineV1P2"}"#);
    place.edit_refused(&["-m", "bare"], 3, &["this is Step1X-Edit 1.2, which is not read yet", "use version 1.1 or 1.0"]);
    place.write("bare/model_index.json", r#"{"_class_name": "Step1XEditPipeline"}"#);
    let instead = ["there instead (2)", "missing (7)", "transformer/config.json", "processor/tokenizer.json"];
    place.edit_refused(&["-m", "bare"], 3, &instead);
}

/// A model's own tensors under other names: those of FLUX, also with ComfyUI's prefix, and of blocks with scales.
#[test]
fn other_models_are_named_by_their_tensors() {
    let renamed = |rename: fn(&str) -> String| {
        let parts = Parts::of(DIT);
        let tensors = parts.header.into_iter().filter(|(name, _)| name != "__metadata__");
        let header = tensors.map(|(name, entry)| (rename(&name), entry));
        Parts { header: header.collect(), data: parts.data }.bytes()
    };
    let comfyui = renamed(|name| format!("model.diffusion_model.{}", name.replace("connector.", "other.")));
    refused(DIT, &comfyui, 3, &[DIT, "this is FLUX, not Step1X-Edit"]);
    let flux = renamed(|name| name.replace("connector.", "other."));
    refused(DIT, &flux, 3, &[DIT, "this is FLUX, not Step1X-Edit"]);
    let scaled = renamed(|name| name.replace("img_in.bias", "img_in.weight_scale_2"));
    refused(DIT, &scaled, 3, &[DIT, "this is a checkpoint with two scales a weight"]);
    let swapped = fs::read(model().join(VAE)).unwrap();
    refused(DIT, &swapped, 3, &[DIT, "this is FLUX's autoencoder"]);
    refused(TEXT, &swapped, 3, &["model.safetensors", "this is FLUX's autoencoder", "put Qwen2.5-VL-7B-Instruct in its place"]);
    // A type that Step1X-Edit has not comes after what the file is.
    let mut parts = Parts::of(TEXT);
    parts.header = parts.header.into_iter().map(|(name, entry)| (name.replace("gate_proj", "fc1"), entry)).collect();
    parts.header["lm_head.weight"]["dtype"] = json!("I64");
    refused(TEXT, parts.bytes(), 3, &["model.safetensors", "this is Qwen2-VL, not Qwen2.5-VL"]);
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
    let extents = format!(r#"{{"a":{{"dtype":"F32","shape":[{}2],"data_offsets":[0,4]}}}}"#, "2,".repeat(5_000_000));
    message(with_header(extents.as_bytes(), &[0; 4]), &[VAE, "tensor", "at most 16 whole numbers"]);

    let mut parts = Parts::of(VAE);
    let end = parts.data.len();
    parts.data.extend([0; 4]);
    let entry = json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]});
    parts.header.insert("\u{1b}[2J\u{1b}]0;owned\u{7}x".into(), entry.clone());
    message(parts.bytes(), &["unexpected (1)", r"\u001b[2J\u001b]0;owned\u0007x"]);
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
    let case = json!([{"id": "a", "kind": "x", "language": "en", "held_out": false, "instruction": format!("make{}it red", " ".repeat(10_100_000))}]);
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

/// A download that was given its size in advance, and ended half way.
#[test]
fn a_transformer_whose_second_half_is_zeros() {
    let mut parts = Parts::of(DIT);
    let half = parts.data.len() / 2;
    parts.data[half..].fill(0);
    refused(DIT, parts.bytes(), 3, &[DIT, "the tensor ", "has only zeros", "fetch the file again"]);
}

#[test]
fn weights_that_cannot_be_right_are_named() {
    const NAN_BF16: [u8; 2] = [0xc0, 0x7f];
    const NAN_F32: [u8; 4] = [0, 0, 0xc0, 0x7f];
    for (file, tensor, nan) in [
        (VAE, "encoder.conv_in.bias", &NAN_F32[..]),
        (TEXT, "model.embed_tokens.weight", &NAN_BF16),
        (DIT, "final_layer.linear.bias", &NAN_BF16),
        (VAE, "decoder.conv_out.bias", &NAN_F32),
    ] {
        let mut parts = Parts::of(file);
        parts.fill(tensor, nan);
        refused(file, parts.bytes(), 3, &[file, &format!("the tensor {tensor}, "), "not finite", "fetch the file again"]);
    }
    for (file, tensor) in [
        (VAE, "encoder.conv_in.weight"),
        (TEXT, "model.embed_tokens.weight"),
        (TEXT, "model.layers.0.mlp.up_proj.weight"),
        (DIT, "img_in.weight"),
    ] {
        let mut parts = Parts::of(file);
        parts.fill(tensor, &[0]);
        refused(file, parts.bytes(), 3, &[file, &format!("the tensor {tensor}, "), "has only zeros"]);
    }
    // A bias may be zero.
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    let mut parts = Parts::of(DIT);
    parts.fill("img_in.bias", &[0]);
    fs::write(dir.join(DIT), parts.bytes()).unwrap();
    place.edited(&["-m", "model", "-i", &fixture("grey.png"), "--steps", "1"]);
}

/// Of the table of embeddings an edit reads the rows of its tokens; a picture's tokens have none.
#[test]
fn of_the_embeddings_the_rows_that_a_prompt_needs_are_looked_at() {
    const TABLE: &str = "model.embed_tokens.weight";
    let config: Value = serde_json::from_slice(&fs::read(model().join(CONFIG)).unwrap()).unwrap();
    let number = |name: &str| config[name].as_u64().unwrap() as usize;
    let with_nan_in_row_of = |token: &str| {
        let mut parts = Parts::of(TEXT);
        let at = parts.range(TABLE)[0] + 2 * number("hidden_size") * number(token);
        parts.data[at..at + 2].copy_from_slice(&[0xc0, 0x7f]);
        parts.bytes()
    };
    let words = [TEXT, &format!("the tensor {TABLE}, bf16["), "not finite", "fetch the file again"];
    refused(TEXT, with_nan_in_row_of("vision_end_token_id"), 3, &words);

    let place = Place::new();
    let edited = |model: &str, output: &str| {
        place.edited(&["-m", model, "-i", &fixture("grey.png"), "--steps", "1", "-o", output]);
        place.read(output)
    };
    place.linked_model("whole", &[]);
    let dir = place.linked_model("model", &[TEXT]);
    fs::write(dir.join(TEXT), with_nan_in_row_of("image_token_id")).unwrap();
    assert_eq!(edited("model", "damaged.png"), edited("whole", "whole.png"));
}

/// Weights that are finite, but whose products are not.
#[test]
fn values_that_become_infinite_name_the_stage() {
    const MOST_BF16: [u8; 2] = [0x7f, 0x7f];
    const MOST_F32: [u8; 4] = [0xff, 0xff, 0x7f, 0x7f];
    for (file, tensor, most, stage) in [
        (VAE, "encoder.conv_in.bias", &MOST_F32[..], "the stage vae_encode"),
        (TEXT, "model.norm.weight", &MOST_BF16, "the stage text"),
        (DIT, "final_layer.linear.weight", &MOST_BF16, "after step 1 of 2"),
        (VAE, "decoder.norm_out.weight", &MOST_F32, "the stage vae_decode"),
    ] {
        let mut parts = Parts::of(file);
        parts.fill(tensor, most);
        refused(file, parts.bytes(), 1, &["not finite", stage, "othing was written"]);
    }
}
