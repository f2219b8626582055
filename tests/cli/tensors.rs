//! Tensors of the shared model, to be written again in another form.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use step1x_edit::tensor::Shape;
use step1x_edit::weights::{WeightFile, decode_f32};

use super::support::*;

/// A tensor as it is stored.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Shape,
    pub bytes: Vec<u8>,
}

/// The tensors of one of the model's files, each value through `store`.
pub fn stored(file: &str, dtype: &'static str, store: impl Fn(f32) -> Vec<u8>) -> Vec<Stored> {
    stored_at(&model().join(file), dtype, store)
}

pub fn stored_at(path: &Path, dtype: &'static str, store: impl Fn(f32) -> Vec<u8>) -> Vec<Stored> {
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

pub fn bf16(value: f32) -> Vec<u8> {
    half::bf16::from_f32(value).to_le_bytes().to_vec()
}

pub fn write(path: &Path, tensors: &[Stored]) {
    write_all(path, &tensors.iter().collect::<Vec<_>>());
}

pub fn write_all(path: &Path, tensors: &[&Stored]) {
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

impl Stored {
    /// The values of a tensor that is stored in f32.
    pub fn values(&self) -> Vec<f32> {
        assert_eq!(self.dtype, "F32");
        self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

pub fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}
