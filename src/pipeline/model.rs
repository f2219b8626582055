//! A model's folder, opened and checked before anything is computed.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::model::{AXES, Config, LM_HEAD};
use crate::prompt::{PromptSettings, Tokenizer};
use crate::tensor::Component;
use crate::weights::{Expected, ModelError, ModelFolder, check};

/// A model folder, opened and checked.
pub struct Model {
    /// Mapped weights.
    pub folder: Arc<ModelFolder>,
    /// Dimensions of the networks.
    pub config: Config,
    /// What no tensor tells.
    pub settings: PromptSettings,
    /// Text to ids.
    pub tokenizer: Tokenizer,
}

impl Model {
    /// Opens a folder: files, dimensions, settings, tensors, tokenizer.
    ///
    /// # Errors
    /// A [`ModelError`] that lists what is missing or wrong.
    pub fn open(path: &Path) -> Result<Model> {
        let folder = ModelFolder::open(path)?;
        let model_error = |e: anyhow::Error| ModelError::new(format!("{}: {e:#}", folder.dir.display()));
        let (settings, axes) = parse_settings(folder.settings.as_ref()).map_err(model_error)?;
        let shape_of = |component, name: &str| folder.get(component, name).map(|(spec, _)| spec.shape.clone());
        let config = Config::infer(&shape_of, &folder.qwen_config, axes).map_err(model_error)?;
        let manifest = config.manifest();
        let expected: Vec<_> =
            manifest.iter().map(|(component, name, shape)| Expected { component: *component, name, shape }).collect();
        check(&folder, &expected, &[(Component::Qwen, LM_HEAD)])?;
        let tokenizer = Tokenizer::load(&folder.tokenizer_path).map_err(model_error)?;
        let (ids, rows) = (tokenizer.vocabulary_size(), config.text.vocabulary);
        if ids > rows {
            let fault = format!("tokenizer.json gives ids up to {}, the text model has {rows} embeddings", ids - 1);
            return Err(ModelError::new(format!("{}: {fault}; take both from one release", folder.dir.display())).into());
        }
        settings.check(&tokenizer).map_err(model_error)?;
        let (declared, found) =
            (folder.qwen_config.get("image_token_id").and_then(Value::as_u64), tokenizer.token_id("<|image_pad|>"));
        if declared.is_some_and(|id| found.map(u64::from) != Some(id)) {
            let fault =
                format!("config.json says image_token_id {declared:?}, tokenizer.json has {found:?}; take both from one release");
            return Err(ModelError::new(fault).into());
        }
        Ok(Model { folder: Arc::new(folder), config, settings, tokenizer })
    }
}

/// `step1x.json`: the prompt's settings and the rotary axes.
fn parse_settings(json: Option<&Value>) -> Result<(PromptSettings, [usize; 3])> {
    let mut json = json.cloned().unwrap_or_else(|| json!({}));
    let axes = json.as_object_mut().context("step1x.json is not a JSON object")?.remove("axes");
    let axes = axes.map_or(Ok(AXES), serde_json::from_value).context("step1x.json: axes are three numbers")?;
    Ok((serde_json::from_value(json).context("step1x.json")?, axes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_defaults_and_take_axes() {
        let json = json!({"cut": 100, "axes": [32, 48, 48]});
        let (settings, axes) = parse_settings(Some(&json)).unwrap();
        assert_eq!((settings.cut, settings.max_text, axes), (100, 640, [32, 48, 48]));
        assert_eq!(parse_settings(None).unwrap(), (PromptSettings::default(), AXES));
        for wrong in [json!([]), json!({"axes": 3}), json!({"cuts": 1})] {
            assert!(parse_settings(Some(&wrong)).is_err(), "{wrong}");
        }
    }
}
