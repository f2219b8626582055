//! What a result depends on, as a digest: as long as it is the same, a result that is there need not be made again.

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::image::{Alpha, Format, Reading};
use crate::model::edit::Savings;
use crate::pipeline::{EditParameters, Model, Rng};
use crate::plan::Precision;
use crate::tensor::Component;

/// Bytes of each tensor that a model's digest looks at: models that differ do so in most tensors.
const SAMPLE: usize = 4096;

/// Digest of bytes, as hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What all results of a batch depend on, but for picture and edit.
#[derive(Clone, Debug)]
pub struct Common(Value);

impl Common {
    /// The model (with a sample of its tensors), the LoRA files that are merged into it, and choices.
    ///
    /// # Errors
    /// A weight or a LoRA file that cannot be read.
    pub fn new(model: &Model, precision: Precision, reading: &Reading, keep_working_size: bool) -> Result<Common> {
        let merged = model.folder.loras();
        let loras: Vec<Value> = merged.iter().map(|lora| Ok(json!([lora.sha256()?, lora.scale]))).collect::<Result<_>>()?;
        let alpha = match reading.alpha {
            Alpha::Composite => "composite",
            Alpha::Keep => "keep",
            Alpha::Drop => "drop",
        };
        Ok(Common(json!({
            "model": model_digest(model)?,
            "loras": loras,
            "precision": precision.to_string(),
            "alpha": alpha,
            "background": reading.background,
            "ignore_profile": reading.ignore_profile,
            "keep_working_size": keep_working_size,
        })))
    }

    /// The key of one result.
    pub fn key(&self, picture: &str, edit: &EditParameters, seed: u64, format: Format) -> String {
        let rng = match edit.rng {
            Rng::Cpu => json!("cpu"),
            Rng::Cuda { grid_threads } => json!(grid_threads),
        };
        let Savings { collapse_padding, trim_last_block, share_prefix, condition_once } = edit.savings;
        let all = json!({
            "common": self.0,
            "picture": picture,
            "prompt": edit.prompt,
            "negative_prompt": edit.negative_prompt,
            "seed": seed,
            "steps": edit.steps,
            "cfg_scale": edit.cfg_scale,
            "rules": edit.rules,
            "guidance_limit": edit.guidance_limit,
            "size_level": edit.size_level,
            "filter": format!("{:?}", edit.filter),
            "rng": rng,
            "sample_posterior": edit.sample_posterior,
            "savings": [collapse_padding, trim_last_block, share_prefix, condition_once],
            "format": format!("{format:?}"),
        });
        // Members of a JSON object are sorted, so equal values give equal texts.
        hex(&Sha256::digest(all.to_string())[..16])
    }
}

/// Digest of the tokenizer, the settings, and every tensor's name, type, shape and first bytes.
fn model_digest(model: &Model) -> Result<String> {
    let folder = &model.folder;
    let mut digest = Sha256::new();
    digest.update(&folder.tokenizer);
    digest.update(json!([folder.settings, folder.qwen_config]).to_string());
    for component in [Component::Dit, Component::Vae, Component::Qwen] {
        for (name, spec) in folder.tensors(component) {
            digest.update(format!("{component} {name} {spec}\n"));
            let mut bytes = vec![0; spec.bytes().min(SAMPLE)];
            folder.recipe(component, name).map_or(Ok(()), |recipe| recipe.read_at(0, &mut bytes))?;
            digest.update(&bytes);
        }
    }
    Ok(hex(&digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_whatever_changes_the_result() {
        let model = Model::demo().unwrap();
        let reading = Reading::default();
        let common = |precision, reading: &Reading, keep| Common::new(&model, precision, reading, keep).unwrap();
        let (first, edit) = (common(Precision::F32, &reading, false), EditParameters::new("red"));
        let key = |common: &Common, edit: &EditParameters| common.key("00", edit, 1, Format::Png);
        let known = key(&first, &edit);
        assert_eq!((known.len(), &key(&first, &edit)), (32, &known));
        let mut keys = vec![known.clone()];
        keys.push(first.key("01", &edit, 1, Format::Png));
        keys.push(first.key("00", &edit, 2, Format::Png));
        keys.push(first.key("00", &edit, 1, Format::WebP));
        keys.push(key(&common(Precision::Bf16, &reading, false), &edit));
        keys.push(key(&common(Precision::F32, &reading, true), &edit));
        keys.push(key(&common(Precision::F32, &Reading { background: [0; 3], ..reading }, false), &edit));
        keys.push(key(&common(Precision::F32, &Reading { alpha: Alpha::Drop, ..reading }, false), &edit));
        keys.push(key(&common(Precision::F32, &Reading { ignore_profile: true, ..reading }, false), &edit));
        for other in [
            EditParameters { prompt: "blue".into(), ..edit.clone() },
            EditParameters { negative_prompt: "blue".into(), ..edit.clone() },
            EditParameters { steps: 27, ..edit.clone() },
            EditParameters { cfg_scale: Some(6.0), ..edit.clone() },
            EditParameters { guidance_limit: Some(1.0), ..edit.clone() },
            EditParameters { size_level: Some(512), ..edit.clone() },
            EditParameters { rng: Rng::Cpu, ..edit.clone() },
            EditParameters { sample_posterior: Some(true), ..edit.clone() },
            EditParameters { savings: Savings::NONE, ..edit.clone() },
            EditParameters { filter: crate::image::Filter::Bicubic, ..edit.clone() },
            EditParameters { rules: Some(crate::pipeline::Rules::Diffusers), ..edit.clone() },
        ] {
            keys.push(key(&first, &other));
        }
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count, "each is another");
    }
}
