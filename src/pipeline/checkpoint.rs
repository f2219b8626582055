//! A model's folder, opened and checked before anything is computed.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Progress, Rules};
use crate::model::{AXES, AbsentTensor, Config, LM_HEAD, contradiction};
use crate::prompt::{PromptSettings, Tokenizer};
use crate::tensor::Component;
use crate::weights::{Expected, Lora, LoraChoice, ModelError, ModelFolder, ModelPath, check, shown};

/// Sides that a working area's square may have, in pixels.
pub const SIZE_LEVELS: RangeInclusive<usize> = 64..=4096;

/// Guidance scales that an edit may have. Models are made for 1 to 10.
pub const CFG_SCALES: RangeInclusive<f32> = -100.0..=100.0;

/// Scales that a LoRA file may have.
pub const LORA_SCALES: RangeInclusive<f32> = -100.0..=100.0;

/// Of models whose `step1x.json` says nothing else.
const CFG_SCALE: f32 = 6.0;

/// What the user should know who has not named a model.
const DEMO_NOTICE: &str = "this is the built-in demo model, which knows pictures of simple shapes and edits them at about 128x128 \
                           pixels; for real pictures give the folder of the released model with -m (docs/models.md)";

/// A model folder, opened and checked.
pub struct Model {
    /// Open weight files.
    pub folder: Arc<ModelFolder>,
    /// Dimensions of the networks.
    pub config: Config,
    /// What no tensor tells.
    pub settings: PromptSettings,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// The rules that an edit follows, unless the user names others: those of the layout, or as `step1x.json` says.
    pub rules: Rules,
    /// Side of the square whose area a picture is brought to, unless the user names another; none: as the rules say.
    pub size_level: Option<usize>,
    /// Guidance scale of an edit, unless the user names another.
    pub cfg_scale: f32,
    /// The demo model that is part of the program.
    pub is_demo: bool,
}

impl Model {
    /// Opens a folder: files, dimensions, settings, tensors, tokenizer.
    ///
    /// # Errors
    /// A [`ModelError`] that lists what is missing or wrong.
    pub fn open(path: &Path) -> Result<Model> {
        Model::open_parts(&path.into())
    }

    /// The same of a model some of whose parts are elsewhere.
    ///
    /// # Errors
    /// As for [`Model::open`].
    pub fn open_parts(at: &ModelPath) -> Result<Model> {
        Model::of(ModelFolder::open_parts(at)?)
    }

    /// Opens the folder that the user has named, otherwise the demo model, and says so.
    ///
    /// # Errors
    /// As for [`Model::open`].
    pub fn open_or_demo(at: Option<&ModelPath>, progress: &mut dyn Progress) -> Result<Model> {
        if let Some(at) = at {
            return Model::open_parts(at);
        }
        progress.notice(DEMO_NOTICE);
        Model::demo()
    }

    /// The demo model that is part of the program.
    ///
    /// # Errors
    /// The build is damaged.
    pub fn demo() -> Result<Model> {
        Ok(Model { is_demo: true, ..Model::of(ModelFolder::demo()?)? })
    }

    /// Merges LoRA files into the transformer, in place of those that are merged now; says what of them is not used.
    ///
    /// # Errors
    /// A [`ModelError`]: a file that cannot be read, or is not for this model.
    pub fn adapt(&self, choices: &[LoraChoice], progress: &mut dyn Progress) -> Result<()> {
        let loras = open_loras(choices, progress)?;
        self.folder.adapt(loras, &mut |_| Ok(()))?;
        Ok(())
    }

    fn of(folder: ModelFolder) -> Result<Model> {
        let model_error = |e: anyhow::Error| ModelError::new(format!("{}: {e:#}", folder.dir.display()));
        let Settings { prompt: settings, axes, rules, size_level, cfg_scale } =
            parse_settings(with_axes(&folder)).map_err(model_error)?;
        let rules = rules.unwrap_or(Rules::of_layout(folder.layout));
        rules.check(folder.version).map_err(|e| model_error(e.context("step1x.json: rules")))?;
        let shape_of = |component, name: &str| folder.recipe(component, name).map(|recipe| recipe.spec().shape.clone());
        let by_own_name = |e: anyhow::Error| match e.downcast::<AbsentTensor>() {
            Ok(AbsentTensor(component, name)) => AbsentTensor(component, folder.shown(component, &name)).into(),
            Err(e) => e,
        };
        let config = Config::infer(&shape_of, &folder.qwen_config, axes).map_err(|e| model_error(by_own_name(e)))?;
        let manifest = config.manifest();
        let expected: Vec<_> =
            manifest.iter().map(|(component, name, shape)| Expected { component: *component, name, shape }).collect();
        check(&folder, &expected, &[(Component::Qwen, LM_HEAD)])?;
        check_declared(&folder, &config)?;
        let tokenizer = Tokenizer::from_bytes(&folder.tokenizer).context("tokenizer.json").map_err(model_error)?;
        let (ids, rows) = (tokenizer.vocabulary_size(), config.text.vocabulary);
        if ids > rows {
            let fault = format!("tokenizer.json gives ids up to {}, the text model has {rows} embeddings", ids - 1);
            return Err(ModelError::new(format!("{}: {fault}; take both from one release", folder.dir.display())).into());
        }
        rules.prompt(&settings).check(&tokenizer).map_err(model_error)?;
        let (declared, found) =
            (folder.qwen_config.get("image_token_id").and_then(Value::as_u64), tokenizer.token_id("<|image_pad|>"));
        if declared.is_some_and(|id| found.map(u64::from) != Some(id)) {
            let fault =
                format!("config.json says image_token_id {declared:?}, tokenizer.json has {found:?}; take both from one release");
            return Err(ModelError::new(fault).into());
        }
        Ok(Model { folder: Arc::new(folder), config, settings, tokenizer, rules, size_level, cfg_scale, is_demo: false })
    }
}

/// `step1x.json` with the rotary axes that the transformer's own configuration file names, unless it names them itself.
fn with_axes(folder: &ModelFolder) -> Option<Value> {
    let declared = folder.declared.iter().find(|(component, ..)| *component == Component::Dit);
    let axes = declared.and_then(|(_, _, json)| json.get("axes_dims_rope")).filter(|axes| !axes.is_null());
    let mut settings = folder.settings.clone();
    if let (Some(axes), Some(object)) = (axes, settings.get_or_insert_with(|| json!({})).as_object_mut()) {
        object.entry("axes").or_insert_with(|| axes.clone());
    }
    settings
}

/// Refuses configuration files that say something else than the tensors.
fn check_declared(folder: &ModelFolder, config: &Config) -> Result<(), ModelError> {
    for (component, path, declared) in &folder.declared {
        let found = match component {
            Component::Dit => config.transformer_json(),
            Component::Vae => config.vae_json(),
            Component::Qwen => continue,
        };
        if let Some(fault) = contradiction(declared, &found) {
            return Err(ModelError::new(format!("{}: {fault}", path.display())));
        }
    }
    Ok(())
}

/// Opens LoRA files, and says what of them is not used and whether they were made for another model.
///
/// # Errors
/// A [`ModelError`]: a file that cannot be read.
pub fn open_loras(choices: &[LoraChoice], progress: &mut dyn Progress) -> Result<Vec<Arc<Lora>>> {
    let mut loras = Vec::new();
    for choice in choices {
        let lora = Lora::open(choice)?;
        let path = lora.path().display();
        if let [first, ..] = lora.unused() {
            let n = lora.unused().len();
            progress.notice(&format!(
                "{path}: {n} tensors change a text encoder and are not used, since text encoders stay as they are; the first is {}",
                shown(first)
            ));
        }
        if let Some(other) = lora.made_for() {
            progress
                .notice(&format!("{path}: the file says that it was trained for {other}; its effect here may be weak or wrong"));
        }
        // The report names its digest; until then there is time to take it.
        let background = lora.clone();
        rayon::spawn(move || drop(background.sha256()));
        loras.push(lora);
    }
    Ok(loras)
}

/// What `step1x.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Of the encoder's input.
    pub prompt: PromptSettings,
    /// Widths of the rotary axes.
    pub axes: [usize; 3],
    /// The rules; none: those of the layout.
    pub rules: Option<Rules>,
    /// Default of the working area's side; none: as the rules say.
    pub size_level: Option<usize>,
    /// Default of the guidance scale.
    pub cfg_scale: f32,
}

/// `step1x.json`, with defaults for what it leaves out.
///
/// # Errors
/// A field that is unknown, of another kind, or out of range.
pub fn parse_settings(json: Option<Value>) -> Result<Settings> {
    let mut json = json.unwrap_or_else(|| json!({}));
    let object = json.as_object_mut().context("step1x.json is not a JSON object")?;
    let [axes, rules, size_level, cfg_scale] = ["axes", "rules", "size_level", "cfg_scale"].map(|name| object.remove(name));
    let rules =
        rules.map(serde_json::from_value).transpose().context("step1x.json: rules must be \"official\" or \"diffusers\"")?;
    let axes = axes.map_or(Ok(AXES), serde_json::from_value).context("step1x.json: axes must be three numbers")?;
    let size_level: Option<usize> =
        size_level.map(serde_json::from_value).transpose().context("step1x.json: size_level must be a number")?;
    let (least, most) = SIZE_LEVELS.into_inner();
    if let Some(side) = size_level {
        ensure!(SIZE_LEVELS.contains(&side), "step1x.json: size_level is {side}; it must lie between {least} and {most}");
    }
    let cfg_scale = cfg_scale.map_or(Ok(CFG_SCALE), serde_json::from_value).context("step1x.json: cfg_scale must be a number")?;
    let (least, most) = CFG_SCALES.into_inner();
    ensure!(CFG_SCALES.contains(&cfg_scale), "step1x.json: cfg_scale is {cfg_scale}; it must lie between {least} and {most}");
    Ok(Settings { prompt: serde_json::from_value(json).context("step1x.json")?, axes, rules, size_level, cfg_scale })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_defaults_and_take_what_is_given() {
        let json = json!({"cut": 100, "axes": [32, 48, 48], "rules": "diffusers", "size_level": 128, "cfg_scale": 3});
        let Settings { prompt, axes, rules, size_level, cfg_scale } = parse_settings(Some(json)).unwrap();
        assert_eq!((prompt.cut, prompt.max_text, axes, size_level, cfg_scale), (100, 640, [32, 48, 48], Some(128), 3.0));
        assert_eq!(rules, Some(Rules::Diffusers));
        let defaults = Settings { prompt: PromptSettings::default(), axes: AXES, rules: None, size_level: None, cfg_scale: 6.0 };
        assert_eq!(parse_settings(None).unwrap(), defaults);
    }

    #[test]
    fn ranges_end_where_they_say() {
        let is_right = |name: &str, value: Value| parse_settings(Some(json!({ name: value }))).is_ok();
        for (value, right) in [(64, true), (4096, true), (63, false), (4097, false)] {
            assert_eq!(is_right("size_level", json!(value)), right, "{value}");
        }
        for (value, right) in [(-100.0, true), (100.0, true), (-100.001, false), (100.001, false)] {
            assert_eq!(is_right("cfg_scale", json!(value)), right, "{value}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_with_the_range() {
        for (wrong, word) in [
            (json!([]), "object"),
            (json!({"axes": 3}), "axes"),
            (json!({"cuts": 1}), "cuts"),
            (json!({"labelled": true}), "labelled"),
            (json!({"rules": "comfy"}), "rules must be \"official\" or \"diffusers\""),
            (json!({"rules": null}), "rules must be"),
            (json!({"size_level": null}), "size_level must be a number"),
            (json!({"size_level": 63}), "between 64 and 4096"),
            (json!({"size_level": "a"}), "size_level must be a number"),
            (json!({"cfg_scale": 101}), "between -100 and 100"),
            (json!({"cfg_scale": -1e300}), "between -100 and 100"),
            (json!({"cfg_scale": "6"}), "cfg_scale must be a number"),
            (json!({"cfg_scale": null}), "cfg_scale must be a number"),
        ] {
            let text = format!("{:#}", parse_settings(Some(wrong)).unwrap_err());
            assert!(text.contains(word), "{word}: {text}");
        }
    }
}
