//! The `synth` command: a model folder of synthetic weights for tests and benchmarks.

use std::path::PathBuf;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::error::{Interrupted, usage};
use crate::model::{Config, Preset, Version};
use crate::pipeline::check_host_memory;
use crate::prompt::{PromptSettings, Tokenizer};
use crate::stop::Stop;
use crate::tensor::{Component, Spec};
pub use crate::weights::LayoutKind;
use crate::weights::tokenizer::{TINY_ADDED, full_tokenizer_json, tiny_tokenizer_json};
use crate::weights::{ModelError, PlannedFile, PlannedTensor, SETTINGS, check_absent_or_empty, to_diffusers, write_model};

/// Bytes of a shard of the full text encoder, about that of the released ones.
const SHARD_BYTES: u64 = 4_000_000_000;

/// Bytes of a shard of the full transformer where it comes in shards.
const DIT_SHARD_BYTES: u64 = 10_000_000_000;

/// Memory that writing takes: two buffers and the tokenizer.
const WRITING_BYTES: usize = 160_000_000;

/// A folder of synthetic weights to write.
#[derive(Clone, Debug)]
pub struct SynthJob {
    /// The folder, new or empty.
    pub output: PathBuf,
    /// Size of the networks.
    pub preset: Preset,
    /// Version of the transformer.
    pub version: Version,
    /// Arrangement of the folder.
    pub layout: LayoutKind,
    /// Seed of the weights.
    pub seed: u64,
}

/// A preset's networks with the tokenizer and settings that go with them.
pub struct PresetModel {
    /// Dimensions.
    pub config: Config,
    /// `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// The same, read.
    pub tokenizer: Tokenizer,
    /// What `step1x.json` says.
    pub settings: PromptSettings,
}

impl PresetModel {
    /// The preset's parts. The tiny one cuts its own prefix length and shows the encoder 16 to 64 picture tokens.
    ///
    /// # Errors
    /// A damaged build.
    pub fn new(preset: Preset, version: Version) -> Result<PresetModel> {
        let (config, tokenizer_json) = match preset {
            Preset::Full => (Config::full(version), full_tokenizer_json()?),
            Preset::Tiny => (Config::tiny(version), tiny_tokenizer_json(&TINY_ADDED)?),
        };
        let tokenizer =
            Tokenizer::from_bytes(&tokenizer_json).context("the built-in tokenizer is damaged; build the program again")?;
        let settings = match preset {
            Preset::Full => PromptSettings::default(),
            Preset::Tiny => {
                let unit = 28 * 28;
                PromptSettings { cut: tokenizer.cut(), min_pixels: 16 * unit, max_pixels: 64 * unit, ..PromptSettings::default() }
            }
        };
        Ok(PresetModel { config, tokenizer_json, tokenizer, settings })
    }
}

/// Writes the folder.
///
/// # Errors
/// A [`crate::error::UsageError`] if the folder is not empty, its parent missing, or the version never came in the layout, a [`crate::error::ResourceError`] if there is
/// too little memory; [`Interrupted`]; another if the disk is too full or the system refuses.
/// What was written is taken back.
pub fn run(job: &SynthJob, stop: &Stop, bar: &ProgressBar) -> Result<()> {
    let SynthJob { output: dir, preset, version, layout, seed } = job;
    if (*layout, *version) == (LayoutKind::Diffusers, Version::V1_0) {
        let fault = "version 1.0 never came in the layout of diffusers; leave out --version or --layout";
        return Err(usage(anyhow::anyhow!(fault)));
    }
    check_absent_or_empty(dir).map_err(|fault| usage(fault.into()))?;
    check_host_memory("writing a model", WRITING_BYTES)?;
    stop.begin();
    let model = PresetModel::new(*preset, *version)?;
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        !stop.asked()
    };
    let written =
        write_model(dir, &planned_files(&model.config, *layout, *preset), &small_files(&model, *layout), *seed, &progress);
    bar.finish_and_clear();
    match written {
        Err(_) if stop.asked() => Err(Interrupted.into()),
        // What cannot be written is no fault of a model's file.
        Err(error) if error.is::<ModelError>() => Err(anyhow::Error::msg(error.to_string())),
        other => other,
    }
}

/// The files of weights. Those of diffusers hold the numbers of the official ones.
fn planned_files(config: &Config, layout: LayoutKind, preset: Preset) -> Vec<PlannedFile> {
    let checkpoint = config.checkpoint();
    let file = |component| {
        let own = checkpoint.iter().filter(|(of, ..)| *of == component);
        let tensors: Vec<PlannedTensor> = own
            .map(|(_, name, dtype, shape)| PlannedTensor::new(name.clone(), Spec { dtype: *dtype, shape: shape.clone() }))
            .collect();
        let shard_bytes = match (component, layout) {
            (Component::Qwen, _) => Some(SHARD_BYTES),
            (Component::Dit, LayoutKind::Diffusers) => Some(DIT_SHARD_BYTES),
            _ => None,
        };
        PlannedFile {
            stem: layout.stem(component, config.version),
            tensors: match layout {
                LayoutKind::Official => tensors,
                LayoutKind::Diffusers => to_diffusers(component, &tensors, config.dit.hidden),
            },
            shard_bytes: shard_bytes.filter(|_| preset == Preset::Full),
        }
    };
    [Component::Qwen, Component::Dit, Component::Vae].map(file).into()
}

/// Paths and bytes of the files that hold no weights.
fn small_files(model: &PresetModel, layout: LayoutKind) -> Vec<(&'static str, Vec<u8>)> {
    let text = |json: Value| format!("{json:#}\n").into_bytes();
    let [config, tokenizer] = layout.qwen_files();
    let mut files = vec![
        (config, text(model.config.qwen_json(|token| model.tokenizer.token_id(token)))),
        (tokenizer, model.tokenizer_json.clone()),
    ];
    if model.settings != PromptSettings::default() {
        let s = &model.settings;
        let json = json!({"cut": s.cut, "max_text": s.max_text, "min_pixels": s.min_pixels, "max_pixels": s.max_pixels});
        files.push((SETTINGS, json.to_string().into_bytes()));
    }
    if layout == LayoutKind::Diffusers {
        files.push(("model_index.json", text(pipeline_json())));
        files.push(("scheduler/scheduler_config.json", text(scheduler_json())));
        files.push(("transformer/config.json", text(model.config.transformer_json())));
        files.push(("vae/config.json", text(model.config.vae_json())));
    }
    files
}

/// What says that a folder is one of diffusers, and of which pipeline.
fn pipeline_json() -> Value {
    json!({
        "_class_name": "Step1XEditPipeline",
        "processor": ["transformers", "Qwen2_5_VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "transformer": ["diffusers", "Step1XEditTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    })
}

/// The schedule that diffusers makes of these numbers has the curve of the official one.
fn scheduler_json() -> Value {
    json!({
        "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
        "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": true,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Name, shape and type of each tensor.
    type Listed = BTreeMap<String, (Vec<usize>, String)>;

    fn manifest(text: &str) -> Listed {
        let entries: BTreeMap<String, Value> = serde_json::from_str(text).unwrap();
        let entry = |entry: &Value| {
            (serde_json::from_value(entry["shape"].clone()).unwrap(), entry["dtype"].as_str().unwrap().to_lowercase())
        };
        entries.iter().map(|(name, of)| (name.clone(), entry(of))).collect()
    }

    /// The released files of diffusers, to the tensor.
    #[test]
    fn the_full_preset_has_the_tensors_of_the_released_files() {
        let files = planned_files(&Config::full(Version::V1_1), LayoutKind::Diffusers, Preset::Full);
        for (stem, text) in [
            ("transformer/diffusion_pytorch_model", include_str!("../../tests/data/manifests/transformer-diffusers.json")),
            ("vae/diffusion_pytorch_model", include_str!("../../tests/data/manifests/vae-diffusers.json")),
            ("text_encoder/model", include_str!("../../tests/data/manifests/qwen2.5-vl-7b-instruct.json")),
        ] {
            let file = files.iter().find(|file| file.stem == stem).unwrap();
            let entry = |t: &PlannedTensor| (t.name.clone(), (t.spec.shape.0.clone(), t.spec.dtype.to_string()));
            let planned: Listed = file.tensors.iter().map(entry).collect();
            assert_eq!(planned.len(), file.tensors.len(), "{stem}: no name twice");
            let manifest = manifest(text);
            for (name, of) in &manifest {
                assert_eq!(planned.get(name), Some(of), "{stem}: {name}");
            }
            assert_eq!(planned.len(), manifest.len(), "{stem}");
        }
    }
}
