//! The files of a recorded edit. They come from elsewhere: any bytes in them give an error, and none decides how long or how
//! much is computed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use half::bf16;
use safetensors::{Dtype, SafeTensors};

use crate::image::Rgb;
use crate::pipeline::{CFG_SCALES, EditParameters, Rng, Rules, SIDES, STEPS};
use crate::weights::{ModelError, shown};

/// Most bytes of a recorded file, which is read whole; those of an edit at 1024x1024 have 40 million.
const MOST_BYTES: u64 = 1 << 30;

/// The recorded files.
pub(super) struct Golden {
    pub inputs: Tensors,
    pub official: Tensors,
    pub truth: Tensors,
}

impl Golden {
    pub(super) fn open(folder: &Path, name: &str) -> Result<Golden> {
        let open = |suffix: &str| Tensors::open(folder.join(format!("{name}{suffix}.safetensors")));
        Ok(Golden { inputs: open("_inputs")?, official: open("")?, truth: open("_truth")? })
    }
}

/// A safetensors file, read whole.
pub(super) struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
    pub metadata: HashMap<String, String>,
}

impl Tensors {
    fn open(path: PathBuf) -> Result<Tensors> {
        let fault = |text: String| ModelError::new(format!("{}: {text}", path.display()));
        let unread = |e: std::io::Error| fault(format!("cannot read the recorded run: {e}"));
        let metadata = path.metadata().map_err(unread)?;
        if !metadata.is_file() || metadata.len() > MOST_BYTES {
            return Err(fault(format!("a recorded run is a file of at most {MOST_BYTES} bytes, which this is not")).into());
        }
        let bytes = std::fs::read(&path).map_err(unread)?;
        // Both, since tensors are looked up in what the second checks.
        let header = SafeTensors::read_metadata(&bytes).and_then(|header| SafeTensors::deserialize(&bytes).map(|_| header));
        let (_, header) = header.map_err(|e| fault(format!("this is not a safetensors file: {e}")))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Tensors { path, bytes, metadata })
    }

    /// A fault of this file.
    pub(super) fn fault(&self, text: &str) -> anyhow::Error {
        ModelError::new(format!("{}: {text}", self.path.display())).into()
    }

    fn raw(&self, name: &str) -> Result<(Dtype, Vec<usize>, &[u8])> {
        let all = SafeTensors::deserialize(&self.bytes).map_err(|e| self.fault(&e.to_string()))?;
        let view = all.tensor(name).map_err(|_| self.fault(&format!("there is no tensor {name}")))?;
        Ok((view.dtype(), view.shape().to_vec(), view.data()))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.raw(name).is_ok()
    }

    fn of_type(&self, name: &str, dtype: Dtype, wanted: &str) -> anyhow::Error {
        self.fault(&format!("{name} has type {dtype}; it must be {wanted}"))
    }

    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let (dtype, _, bytes) = self.raw(name)?;
        Ok(match dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            other => return Err(self.of_type(name, other, "F32, BF16 or F64")),
        })
    }

    /// Floats of which there must be so many.
    pub(super) fn so_many(&self, name: &str, count: usize) -> Result<Vec<f32>> {
        let values = self.floats(name)?;
        match values.len() == count {
            true => Ok(values),
            false => {
                let text =
                    format!("{name} has {} values, but the edit has {count}; give the model that was recorded", values.len());
                Err(self.fault(&text))
            }
        }
    }

    pub(super) fn integers(&self, name: &str) -> Result<Vec<i32>> {
        match self.raw(name)? {
            (Dtype::I32, _, bytes) => Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
            (other, ..) => Err(self.of_type(name, other, "I32")),
        }
    }

    /// A picture, [height, width, 3].
    pub(super) fn picture(&self, name: &str) -> Result<Rgb> {
        let (dtype, shape, bytes) = self.raw(name)?;
        if dtype != Dtype::U8 {
            return Err(self.of_type(name, dtype, "U8"));
        }
        let fits = |side: usize| SIDES.contains(&side) && side.is_multiple_of(16);
        match shape[..] {
            [height, width, 3] if fits(height) && fits(width) => Ok(Rgb { width, height, data: bytes.to_vec() }),
            _ => {
                let (least, most) = SIDES.into_inner();
                let text =
                    format!("{name} is no picture of [height, width, 3] with sides of {least} to {most} in multiples of 16");
                Err(self.fault(&text))
            }
        }
    }

    /// The edit that the header gives.
    pub(super) fn parameters(&self) -> Result<EditParameters> {
        parameters(&self.metadata).map_err(|e| self.fault(&format!("{e:#}")))
    }
}

/// The edit that the metadata of a recorded run gives.
///
/// # Errors
/// An entry that is missing, no number, or out of range.
pub fn parameters(metadata: &HashMap<String, String>) -> Result<EditParameters> {
    let text = |key: &str| metadata.get(key).ok_or_else(|| ModelError::new(format!("the header does not give {key}")));
    let wrong = |key: &str, text: &str, wanted: String| {
        ModelError::new(format!("the header gives {key} as \"{}\"; it must be {wanted}", shown(text)))
    };
    let (steps, scale, seed) = (text("steps")?, text("cfg")?, text("seed")?);
    let (least, most) = STEPS.into_inner();
    let number = steps.parse().ok().filter(|steps| STEPS.contains(steps));
    let steps = number.ok_or_else(|| wrong("steps", steps, format!("a number from {least} to {most}")))?;
    let (least, most) = CFG_SCALES.into_inner();
    let number = scale.parse().ok().filter(|scale| CFG_SCALES.contains(scale));
    let cfg_scale = number.ok_or_else(|| wrong("cfg", scale, format!("a number from {least} to {most}")))?;
    if cfg_scale == 1.0 {
        let text = "the run was recorded at a guidance scale of 1, where one branch runs; record it at another";
        return Err(ModelError::new(text).into());
    }
    let seed = seed.parse().map_err(|_| wrong("seed", seed, "a whole number that is not negative".into()))?;
    let named = |name: &String| Rules::ALL.into_iter().find(|rules| rules.to_string() == *name);
    let rules = match metadata.get("rules") {
        None => Rules::Official,
        Some(name) => named(name).ok_or_else(|| wrong("rules", name, "official or diffusers".into()))?,
    };
    // The host gives the noise, and the reference was the posterior's mean.
    Ok(EditParameters {
        steps,
        cfg_scale: Some(cfg_scale),
        rules: Some(rules),
        seed,
        rng: Rng::Cpu,
        sample_posterior: Some(false),
        ..EditParameters::new(text("prompt")?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_header_gives_has_its_ranges() {
        let with = |key: &str, value: Option<&str>| {
            let sound = [("steps", "28"), ("cfg", "6.0"), ("seed", "42"), ("prompt", "x")];
            let mut metadata: HashMap<String, String> = sound.map(|(key, value)| (key.into(), value.into())).into();
            match value {
                Some(value) => metadata.insert(key.into(), value.into()),
                None => metadata.remove(key),
            };
            parameters(&metadata)
        };
        let sound = with("seed", Some("18446744073709551615")).unwrap();
        assert_eq!((sound.steps, sound.cfg_scale, sound.seed, sound.prompt.as_str()), (28, Some(6.0), u64::MAX, "x"));
        assert_eq!((sound.rules, sound.sample_posterior), (Some(Rules::Official), Some(false)));
        assert_eq!(with("steps", Some("1000")).unwrap().steps, 1000);
        assert_eq!(with("rules", Some("diffusers")).unwrap().rules, Some(Rules::Diffusers));
        assert_eq!(with("cfg", Some("-100")).unwrap().cfg_scale, Some(-100.0));
        for (key, value, words) in [
            ("steps", Some("1001"), "from 1 to 1000"),
            ("cfg", Some("-100.1"), "from -100 to 100"),
            ("steps", Some("299999999999"), "from 1 to 1000"),
            ("steps", Some("18446744073709551615"), "from 1 to 1000"),
            ("steps", Some("0"), "from 1 to 1000"),
            ("steps", Some("\u{1b}"), r#"steps as "\u001b""#),
            ("cfg", Some("nan"), "from -100 to 100"),
            ("cfg", Some("1e9"), "from -100 to 100"),
            ("cfg", Some("1.0"), "guidance scale of 1"),
            ("seed", Some("-1"), "not negative"),
            ("rules", Some("comfy"), r#"rules as "comfy"; it must be official or diffusers"#),
            ("prompt", None, "does not give prompt"),
            ("steps", None, "does not give steps"),
        ] {
            let text = with(key, value).unwrap_err().to_string();
            assert!(text.contains(words), "{key}: {text}");
        }
    }

    #[test]
    fn recorded_files_and_pictures_have_their_sizes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let picture = |shape: [usize; 3]| {
            let data = vec![0; shape.iter().product()];
            let view = safetensors::tensor::TensorView::new(Dtype::U8, shape.to_vec(), &data).unwrap();
            std::fs::write(&path, safetensors::serialize([("rgb", view)], None).unwrap()).unwrap();
            Tensors::open(path.clone()).unwrap().picture("rgb").map_err(|error| error.to_string())
        };
        for (height, width) in [(16, 4096), (4096, 16)] {
            assert_eq!(picture([height, width, 3]).unwrap().width, width);
        }
        for (height, width) in [(16, 4112), (4112, 16), (0, 16), (16, 24)] {
            assert!(picture([height, width, 3]).unwrap_err().contains("sides of 16 to 4096 in multiples of 16"));
        }
        let with_length = |length: u64| {
            std::fs::File::create(&path).unwrap().set_len(length).unwrap();
            Tensors::open(path.clone()).err().unwrap().to_string()
        };
        assert!(with_length(1 << 30).contains("this is not a safetensors file"));
        assert!(with_length((1 << 30) + 1).contains("a file of at most 1073741824 bytes"));
    }
}
