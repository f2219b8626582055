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
    let file = WeightFile::open(&model().join(file)).unwrap();
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
    let folder = dir.join(TEXT).parent().unwrap().to_path_buf();
    let mut map = Map::new();
    for (shard, tensors) in [("model-00001-of-00002.safetensors", &tensors), ("model-00002-of-00002.safetensors", &second)] {
        write(&folder.join(shard), tensors);
        map.extend(tensors.iter().map(|t| (t.name.clone(), shard.into())));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let [shared, own] = pictures(&place);
    assert_eq!(shared, own);
}
