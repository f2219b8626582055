//! The `synth` command: a model folder of synthetic weights for tests and benchmarks.

use std::path::PathBuf;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde_json::json;

use crate::error::{Interrupted, usage};
use crate::model::{Config, Preset, Version};
use crate::pipeline::check_host_memory;
use crate::prompt::{PromptSettings, Tokenizer};
use crate::stop::Stop;
use crate::tensor::{Component, Spec};
use crate::weights::tokenizer::{TINY_ADDED, full_tokenizer_json, tiny_tokenizer_json};
use crate::weights::{ModelError, PlannedTensor, check_absent_or_empty, write_model};

/// Bytes of a shard of the full text encoder, about that of the released ones.
const SHARD_BYTES: u64 = 4_000_000_000;

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
/// A [`crate::error::UsageError`] if the folder is not empty or its parent missing, a [`crate::error::ResourceError`] if there is
/// too little memory; [`Interrupted`]; another if the disk is too full or the system refuses.
/// What was written is taken back.
pub fn run(job: &SynthJob, stop: &Stop, bar: &ProgressBar) -> Result<()> {
    let SynthJob { output: dir, preset, version, seed } = job;
    check_absent_or_empty(dir).map_err(|fault| usage(fault.into()))?;
    check_host_memory("writing a model", WRITING_BYTES)?;
    stop.begin();
    let model = PresetModel::new(*preset, *version)?;
    let checkpoint = model.config.checkpoint();
    let of = |wanted: Component| -> Vec<PlannedTensor> {
        let tensors = checkpoint.iter().filter(|(component, ..)| *component == wanted);
        tensors
            .map(|(_, name, dtype, shape)| PlannedTensor {
                name: name.clone(),
                spec: Spec { dtype: *dtype, shape: shape.clone() },
            })
            .collect()
    };
    let settings = (model.settings != PromptSettings::default()).then(|| {
        let s = &model.settings;
        json!({"cut": s.cut, "max_text": s.max_text, "min_pixels": s.min_pixels, "max_pixels": s.max_pixels}).to_string()
    });
    let config_json = format!("{:#}\n", model.config.qwen_json(|token| model.tokenizer.token_id(token)));
    let shards = (*preset == Preset::Full).then_some(SHARD_BYTES);
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        !stop.asked()
    };
    let (dit, vae, qwen) = (of(Component::Dit), of(Component::Vae), of(Component::Qwen));
    let written = write_model(
        dir,
        *version,
        &dit,
        &vae,
        &qwen,
        shards,
        &config_json,
        &model.tokenizer_json,
        settings.as_deref(),
        *seed,
        &progress,
    );
    bar.finish_and_clear();
    match written {
        Err(_) if stop.asked() => Err(Interrupted.into()),
        // What cannot be written is no fault of a model's file.
        Err(error) if error.is::<ModelError>() => Err(anyhow::Error::msg(error.to_string())),
        other => other,
    }
}
