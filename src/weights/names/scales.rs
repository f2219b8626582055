//! FP8 checkpoints with scales, as ComfyUI, DeepSeek, Qwen and others write them: a value is that of the byte times a scale.
//!
//! Beside `M.weight` stands `M.scale_weight`, `M.weight_scale` or `M.weight_scale_inv`, which is multiplied as well, whatever its
//! name says: one number, one for each row, or one for each block. What scales the inputs of a product on FP8 units and the mark
//! `scaled_fp8` change no weight and are passed over. `M.comfy_quant` holds JSON that names the format.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::file::WeightFile;
use super::super::recipe::{Scaled, Stored};
use super::super::words::{remark, shown};
use super::super::{ModelError, Result};

/// Most bytes of a note on a format; one has about 30.
const NOTE_BYTES: usize = 4096;

/// The formats of ComfyUI that are read.
const FORMATS: [&str; 2] = ["float8_e4m3fn", "float8_e5m2"];

/// What a tensor's name says that is about another tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aside<'n> {
    /// Its scale, of the module's weight.
    Scale(&'n str),
    /// How it is to be read.
    Note,
    /// Nothing that changes a weight.
    Idle,
}

fn aside(name: &str) -> Option<Aside<'_>> {
    let (module, last) = name.rsplit_once('.').unwrap_or(("", name));
    match last {
        "scale_weight" | "weight_scale" | "weight_scale_inv" => Some(Aside::Scale(module)),
        "comfy_quant" => Some(Aside::Note),
        "scale_input" | "input_scale" | "input_scale_ub" | "activation_scale" | "output_scale" | "scaled_fp8" => {
            Some(Aside::Idle)
        }
        _ => None,
    }
}

/// Whether a tensor is a weight by itself.
pub(super) fn is_weight(name: &str) -> bool {
    aside(name).is_none()
}

/// The scales of some files, by the name of the weight.
pub(super) struct Scales<'f>(BTreeMap<String, (&'f Arc<WeightFile>, &'f str)>);

impl<'f> Scales<'f> {
    /// Finds them, and looks at the notes.
    ///
    /// # Errors
    /// A scale without a weight, two of one, or a note of a format that is not read.
    pub fn new(files: &'f [Arc<WeightFile>]) -> Result<Scales<'f>> {
        let mut scales = BTreeMap::new();
        for file in files {
            for (name, _) in file.tensors() {
                match aside(name) {
                    Some(Aside::Scale(module)) => {
                        let weight = format!("{module}.weight");
                        let fault = |text: String| Err(ModelError::new(format!("{} {text}", shown(name))).at(file.path()));
                        if !files.iter().any(|file| file.spec(&weight).is_some()) {
                            return fault(format!("is the scale of {}, which is not there", shown(&weight)));
                        }
                        if let Some((_, other)) = scales.insert(weight, (file, name)) {
                            return fault(format!("and {} are two scales of one weight", shown(other)));
                        }
                    }
                    Some(Aside::Note) => check_note(file, name)?,
                    Some(Aside::Idle) | None => {}
                }
            }
        }
        Ok(Scales(scales))
    }

    /// The weight with its scale, if it has one. Where any weight has one, every matrix of bytes must: without it, the values
    /// would be wrong by a factor.
    ///
    /// # Errors
    /// A weight that is not of bytes, or a scale that does not fit it or is missing.
    pub fn of(&self, name: &str, weight: &Stored) -> Result<Option<Scaled>> {
        if let Some((file, scale)) = self.0.get(name) {
            return Scaled::new(weight.clone(), &Stored::new(file, scale)?).map(Some);
        }
        let spec = weight.spec();
        match self.0.values().next() {
            Some((_, other)) if spec.dtype.is_fp8() && spec.shape.0.len() > 1 => {
                let usual = format!("other weights here have one, such as {}", shown(other));
                Err(weight.named(&format!("its scale is missing: it is {spec}, and {usual}; fetch all files again")))
            }
            _ => Ok(None),
        }
    }
}

/// Refuses a format whose bytes mean something else than floats times a scale.
fn check_note(file: &WeightFile, name: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Note {
        format: String,
        #[serde(default)]
        convrot: bool,
    }
    let fault = |text: String| Err(ModelError::new(format!("{} {text}", shown(name))).at(file.path()));
    let bytes = file.spec(name).map_or(0, crate::tensor::Spec::bytes);
    if bytes > NOTE_BYTES {
        return fault(format!("has {bytes} bytes, where JSON of at most {NOTE_BYTES} is read"));
    }
    match serde_json::from_slice::<Note>(&file.read(name)?) {
        Ok(Note { format, convrot: false }) if FORMATS.contains(&format.as_str()) => Ok(()),
        Ok(Note { format, .. }) => {
            let read = FORMATS.join(" and ");
            fault(format!("says that the weight has the format {}; of ComfyUI's formats {read} are read", shown(&format)))
        }
        Err(e) => fault(format!("is not the JSON expected: {}", remark(e))),
    }
}
