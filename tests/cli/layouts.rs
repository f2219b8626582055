//! The same model stored otherwise: other element types, newer names, shards. What is the same gives the same picture.

use std::fs;
use std::path::Path;

use half::f16;
use serde_json::{Map, Value, json};
use step1x_edit::tensor::Shape;
use step1x_edit::weights::{WeightFile, decode_f32, f32_to_e4m3};

use super::support::*;

/// A tensor as it is stored.
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Shape,
    bytes: Vec<u8>,
}

/// The tensors of one of the model's files, each value through `store`.
fn stored(file: &str, dtype: &'static str, store: impl Fn(f32) -> Vec<u8>) -> Vec<Stored> {
    stored_at(&model().join(file), dtype, store)
}

fn stored_at(path: &Path, dtype: &'static str, store: impl Fn(f32) -> Vec<u8>) -> Vec<Stored> {
    let file = WeightFile::open(path).unwrap();
    let names: Vec<String> = file.tensors().map(|(name, _)| name.to_string()).collect();
    let convert = |name: String| {
        let spec = file.spec(&name).unwrap();
        let mut values = vec![0.0; spec.shape.elements()];
        decode_f32(spec.dtype, &file.read(&name).unwrap(), &mut values);
        Stored { name, dtype, shape: spec.shape.clone(), bytes: values.into_iter().flat_map(&store).collect() }
    };
    names.into_iter().map(convert).collect()
}

fn bf16(value: f32) -> Vec<u8> {
    half::bf16::from_f32(value).to_le_bytes().to_vec()
}

fn write(path: &Path, tensors: &[Stored]) {
    write_all(path, &tensors.iter().collect::<Vec<_>>());
}

fn write_all(path: &Path, tensors: &[&Stored]) {
    let mut header = Map::new();
    let mut data = Vec::new();
    for t in tensors {
        let range = [data.len(), data.len() + t.bytes.len()];
        header.insert(t.name.clone(), json!({"dtype": t.dtype, "shape": t.shape.0, "data_offsets": range}));
        data.extend_from_slice(&t.bytes);
    }
    let header = Value::Object(header).to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

/// Shards of these tensors and the index that lists them.
fn shards(folder: &Path, stem: &str, parts: &[Vec<Stored>]) {
    let mut map = Map::new();
    for (i, tensors) in parts.iter().enumerate() {
        let name = format!("{stem}-{:05}-of-{:05}.safetensors", i + 1, parts.len());
        write(&folder.join(&name), tensors);
        map.extend(tensors.iter().map(|t| (t.name.clone(), name.as_str().into())));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join(format!("{stem}.safetensors.index.json")), index.to_string()).unwrap();
}

/// The picture that the shared model makes of the fixture, and the one of the model in `model`.
fn pictures(place: &Place) -> [Vec<u8>; 2] {
    let picture = fixture("grey.png");
    place.edited(&["-i", &picture, "-o", "shared.png"]);
    place.edited(&["-m", "model", "-i", &picture, "-o", "own.png"]);
    [place.read("shared.png"), place.read("own.png")]
}

#[test]
fn a_transformer_in_f32_makes_the_same_picture() {
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    write(&dir.join(DIT), &stored(DIT, "F32", |v| v.to_le_bytes().to_vec()));
    let [shared, own] = pictures(&place);
    assert_eq!(shared, own);
}

#[test]
fn f16_and_fp8_transformers_run() {
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    // A community file: its name is its own, its weights are e4m3 without scales.
    let fp8 = dir.join("step1x-edit-v1p1-FP8.safetensors");
    write(&fp8, &stored(DIT, "F8_E4M3", |v| vec![f32_to_e4m3(v)]));
    let [shared, own] = pictures(&place);
    assert_ne!(shared, own, "three bits of mantissa change a picture");
    fs::remove_file(fp8).unwrap();
    write(&dir.join(DIT), &stored(DIT, "F16", |v| f16::from_f32(v).to_le_bytes().to_vec()));
    place.edited(&["-m", "model", "-i", &fixture("grey.png"), "-o", "f16.png"]);
    let worst = difference(&shared, &place.read("f16.png"));
    assert!(worst <= 2, "f16 holds all but the smallest bf16 values, the picture differs by {worst}");
}

#[test]
fn newer_names_and_shards_make_the_same_picture() {
    let place = Place::new();
    let dir = place.linked_model("model", &[TEXT]);
    let mut tensors = stored(TEXT, "BF16", bf16);
    for t in &mut tensors {
        t.name = match t.name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None if t.name.starts_with("visual.") => format!("model.{}", t.name),
            None => t.name.clone(),
        };
    }
    let second = tensors.split_off(tensors.len() / 2);
    shards(dir.join(TEXT).parent().unwrap(), "model", &[tensors, second]);
    let [shared, own] = pictures(&place);
    assert_eq!(shared, own);
}

/// A model in the layout of diffusers, with the numbers of the shared one.
fn diffusers(place: &Place) {
    let made = place.run(&["synth", "--preset", "tiny", "--layout", "diffusers", "-o", "model"]);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""));
}

const MOVED_DIT: &str = "model/transformer/diffusion_pytorch_model.safetensors";

#[test]
fn the_layout_of_diffusers_makes_the_same_picture() {
    let place = Place::new();
    diffusers(&place);
    let [shared, own] = pictures(&place);
    assert_eq!(shared, own);
    let inspected = place.run(&["inspect", "-m", "model"]);
    assert_eq!(inspected.code, Some(0), "{}", inspected.stderr);
    for words in ["Step1X-Edit v1.1", MOVED_DIT, "model/vae/diffusion_pytorch_model.safetensors", "model/text_encoder/model"] {
        assert!(inspected.stdout.contains(words), "{words}: {}", inspected.stdout);
    }

    // A tokenizer in its older place, and shards.
    fs::rename(place.path("model/processor"), place.path("model/tokenizer")).unwrap();
    let mut tensors = stored_at(&place.path(MOVED_DIT), "BF16", bf16);
    let second = tensors.split_off(tensors.len() / 2);
    fs::remove_file(place.path(MOVED_DIT)).unwrap();
    shards(&place.path("model/transformer"), "diffusion_pytorch_model", &[tensors, second]);
    place.edited(&["-m", "model", "-i", &fixture("grey.png"), "-o", "shards.png"]);
    assert_eq!(shared, place.read("shards.png"));
}

#[test]
fn configuration_files_that_contradict_the_tensors_are_refused() {
    let place = Place::new();
    diffusers(&place);
    let transformer = "model/transformer/config.json";
    for (path, key, wrong, words) in [
        (transformer, "num_layers", json!(3), "num_layers is 3, but the tensors have 2 (the last of transformer_blocks.*)"),
        (transformer, "attention_head_dim", json!(64), "but the tensors have 128 (transformer_blocks.0.attn.norm_q.weight)"),
        (transformer, "guidance_embeds", json!(true), "guidance_embeds is true, but Step1X-Edit has false"),
        (transformer, "axes_dims_rope", json!([1, 2, 3]), "the rotary axes are [1, 2, 3]"),
        ("model/vae/config.json", "latent_channels", json!(4), "but the tensors have 16 (decoder.conv_in.weight)"),
    ] {
        let whole = place.read(path);
        let mut config: Value = serde_json::from_slice(&whole).unwrap();
        config[key] = wrong;
        place.write(path, config.to_string());
        place.edit_refused(&["-m", "model"], 3, &[if key == "axes_dims_rope" { "model" } else { path }, words]);
        place.write(path, whole);
    }
    place.write("model/vae/config.json", "{");
    place.edit_refused(&["-m", "model"], 3, &["model/vae/config.json: this is not the JSON expected"]);
}

/// What is wrong with tensors is said in the names that their file has.
#[test]
fn faults_of_moved_tensors_have_the_names_of_their_file() {
    let place = Place::new();
    diffusers(&place);
    let (path, tensors) = (place.path(MOVED_DIT), || stored_at(&place.path(MOVED_DIT), "BF16", bf16));
    let all = tensors();
    let without = |name: &str| {
        let rest: Vec<&Stored> = all.iter().filter(|t| !t.name.starts_with(name)).collect();
        write_all(&path, &rest);
    };
    without("transformer_blocks.1.attn.to_v.weight");
    place.edit_refused(&["-m", "model"], 3, &[MOVED_DIT, "missing (1):\n  transformer_blocks.1.attn.to_v.weight"]);
    without("transformer_blocks.1.attn.norm_added_q");
    place.edit_refused(
        &["-m", "model"],
        3,
        &["missing (1):\n  transformer: transformer_blocks.1.attn.norm_added_q.weight [128]"],
    );
    without("x_embedder.weight");
    place.edit_refused(&["-m", "model"], 3, &["lacks the tensor x_embedder.weight"]);
    let more = Stored { name: "text_token_mapping.weight".into(), dtype: "BF16", shape: Shape::from([1]), bytes: vec![0; 2] };
    write_all(&path, &all.iter().chain([&more]).collect::<Vec<_>>());
    place.edit_refused(&["-m", "model"], 3, &[MOVED_DIT, "this is the transformer of Step1X-Edit 1.2, which is not read yet"]);
}
