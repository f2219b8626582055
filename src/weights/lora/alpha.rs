//! How strongly a change was trained: rank and alpha, from tensors or from the file's metadata.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Lora;
use super::keys::{Part, bare};
use crate::tensor::DType;
use crate::weights::words::shown;
use crate::weights::{ModelError, Result, decode_f32};

/// What PEFT says in a file's metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Peft {
    #[serde(alias = "transformer.lora_alpha")]
    lora_alpha: Option<f32>,
    /// By names of modules, or by their ends.
    #[serde(alias = "transformer.alpha_pattern")]
    alpha_pattern: BTreeMap<String, f32>,
    /// Divide alpha by the rank's root.
    #[serde(alias = "transformer.use_rslora")]
    use_rslora: bool,
}

impl Peft {
    /// What the metadata of a file says.
    pub fn of(metadata: &BTreeMap<String, String>) -> Result<Peft> {
        let Some(text) = metadata.get("lora_adapter_metadata") else { return Ok(Peft::default()) };
        let fault = |what: &str| {
            ModelError::new(format!("its metadata lora_adapter_metadata is not as PEFT writes it: {what}; fetch the file again"))
        };
        let peft: Peft = serde_json::from_str(text).map_err(|e| fault(&shown(&e.to_string())))?;
        // A number that float32 cannot have is read as an infinite one.
        match peft.lora_alpha.iter().chain(peft.alpha_pattern.values()).all(|alpha| alpha.is_finite()) {
            true => Ok(peft),
            false => Err(fault("an alpha is too large a number")),
        }
    }

    fn alpha(&self, module: &str) -> Option<f32> {
        let module = bare(module);
        let ends = |pattern: &str| module.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        self.alpha_pattern.iter().find(|(pattern, _)| ends(pattern)).map(|(_, alpha)| *alpha).or(self.lora_alpha)
    }
}

impl Lora {
    /// What the product of a module's factors is multiplied with.
    pub(super) fn scaling(&self, module: &str, parts: &BTreeMap<Part, String>) -> Result<f32> {
        let (Some(rank), Some(alpha)) = (self.rank(parts), self.alpha(module, parts)?) else { return Ok(1.0) };
        let is_peft = !parts.contains_key(&Part::Alpha);
        let by = if is_peft && self.peft.use_rslora { (rank as f32).sqrt() } else { rank as f32 };
        Ok(alpha / by)
    }

    /// The rank of a module's product; none for a LoKr of whole matrices.
    pub(super) fn rank(&self, parts: &BTreeMap<Part, String>) -> Option<usize> {
        let rows = |part: Part| self.file.spec(parts.get(&part)?)?.shape.0.first().copied();
        let lokr = |i: usize| if parts.contains_key(&Part::Lokr(i)) { None } else { rows(Part::LokrPair(i, 1)) };
        rows(Part::Down).or_else(|| rows(Part::Hada(0, 1))).or_else(|| lokr(1)).or_else(|| lokr(0)).filter(|&rank| rank > 0)
    }

    /// A module's alpha, where one is said; 0 means the rank, as in the official code.
    pub(super) fn alpha(&self, module: &str, parts: &BTreeMap<Part, String>) -> Result<Option<f32>> {
        let Some(rank) = self.rank(parts) else { return Ok(None) };
        let Some(key) = parts.get(&Part::Alpha) else { return Ok(self.peft.alpha(module)) };
        let fault = |text: String| ModelError::new(format!("{} {text}", shown(key))).at(self.path());
        let spec = self.file.spec(key).ok_or_else(|| fault("is missing".into()))?;
        if spec.shape.elements() != 1 {
            return Err(fault(format!("is {spec}, where one number is needed")));
        }
        let bytes = self.file.read(key)?;
        let mut value = [0.0];
        match (spec.dtype, bytes.first_chunk()) {
            (DType::I32, Some(bytes)) => value = [i32::from_le_bytes(*bytes) as f32],
            (dtype, _) if dtype.is_float() => decode_f32(dtype, &bytes, &mut value),
            _ => return Err(fault(format!("is {spec}, where one number is needed"))),
        }
        Ok(Some(if value[0] == 0.0 { rank as f32 } else { value[0] }))
    }
}
