//! What is asked of the model: one edit's parameters, and one edit from files to file.

use std::ops::RangeInclusive;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::{LoraChoice, Model, PlaceChoice, Rules};
use crate::image::{Filter, Format, Reading, Stream};
use crate::model::edit::{Conventions, Savings};
use crate::ops::H100_GRID_THREADS;
use crate::prompt::PromptSettings;
use crate::sampling::Clock;
use crate::weights::{ModelError, ModelPath};

/// Denoising steps that an edit may have.
pub const STEPS: RangeInclusive<usize> = 1..=1000;

/// Sides that a working picture may have, in pixels; they are multiples of 16.
pub const SIDES: RangeInclusive<usize> = 16..=4096;

/// Which generator draws the starting noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rng {
    /// As `torch.randn` on a CUDA device whose largest grid has so many threads.
    Cuda {
        /// Threads of the grid.
        grid_threads: usize,
    },
    /// As `torch.randn` on the CPU.
    Cpu,
}

/// What is asked of the model beside a picture.
#[derive(Clone, Debug)]
pub struct EditParameters {
    /// What to do.
    pub prompt: String,
    /// What guidance leads away from.
    pub negative_prompt: String,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale. At 1 the prompt's branch runs alone, with half the operations, and its velocity is used as it is at every
    /// step. (The official rule with two branches rounds u + 1·(c − u), and above `guidance_limit` divides c − u by a power of its
    /// norm.) With the rules of diffusers that holds of smaller scales too. None: the model's.
    pub cfg_scale: Option<f32>,
    /// The rules that the edit follows; none: the model's, which are those of its layout.
    pub rules: Option<Rules>,
    /// Times above it use the norm-limited rule; none: as the rules say.
    pub guidance_limit: Option<f64>,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of the square whose area the working size has, in pixels; none: the model's, or as the rules say.
    pub size_level: Option<usize>,
    /// Width and height of text-to-image.
    pub size: (usize, usize),
    /// Filter that brings the picture to the working size.
    pub filter: Filter,
    /// Generator of the noise.
    pub rng: Rng,
    /// Sample the reference's posterior instead of taking its mean; none: as the rules say.
    pub sample_posterior: Option<bool>,
    /// Savings in use.
    pub savings: Savings,
}

impl EditParameters {
    /// An edit of a picture as `edit` makes it when nothing but the prompt is given.
    pub fn new(prompt: &str) -> EditParameters {
        EditParameters {
            prompt: prompt.to_string(),
            negative_prompt: String::new(),
            steps: 28,
            cfg_scale: None,
            rules: None,
            guidance_limit: None,
            seed: 42,
            size_level: None,
            size: (1024, 1024),
            filter: Filter::Lanczos,
            rng: Rng::Cuda { grid_threads: H100_GRID_THREADS },
            sample_posterior: None,
            savings: Savings::ALL,
        }
    }

    /// What is chosen and what is left open, settled with a model.
    ///
    /// # Errors
    /// A usage error: rules that there are not for the model's version. A [`crate::weights::ModelError`]: settings of the model
    /// that do not hold with these rules.
    pub fn with(&self, model: &Model) -> Result<Chosen> {
        let rules = self.rules.unwrap_or(model.rules);
        rules.check(model.config.version)?;
        let (set, prompt) = (rules.set(), rules.prompt(&model.settings));
        prompt.check(&model.tokenizer).map_err(|e| ModelError::new(format!("{e:#}")))?;
        let cfg_scale = self.cfg_scale.unwrap_or(model.cfg_scale);
        Ok(Chosen {
            rules,
            cfg_scale,
            guided: rules.guided(cfg_scale),
            guidance_limit: self.guidance_limit.unwrap_or(set.guidance_limit),
            size_level: self.size_level.or(model.size_level).unwrap_or(set.size_level),
            sample_posterior: self.sample_posterior.unwrap_or(set.sample_posterior),
            prompt,
            clock: set.clock,
            conventions: set.conventions,
        })
    }
}

/// What an edit may leave open, settled.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The rules.
    pub rules: Rules,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Whether the negative prompt has a branch.
    pub guided: bool,
    /// Times above it use the norm-limited rule.
    pub guidance_limit: f64,
    /// Side of the square whose area the working size has, in pixels.
    pub size_level: usize,
    /// The reference's latent is a sample of its posterior.
    pub sample_posterior: bool,
    /// Of the encoder's input.
    pub prompt: PromptSettings,
    /// What makes the times.
    pub clock: Clock,
    /// What is recorded in the rules' own way.
    pub conventions: Conventions,
}

/// One edit from files to file, every choice made.
#[derive(Clone, Debug)]
pub struct EditJob {
    /// When the command line had been read; the report counts from here.
    pub started: Instant,
    /// The model; none: the demo model.
    pub model: Option<ModelPath>,
    /// LoRA files to merge into the model.
    pub loras: Vec<LoraChoice>,
    /// The picture to edit; none: text-to-image.
    pub image: Option<Stream>,
    /// How it is to be read.
    pub reading: Reading,
    /// What to make of it.
    pub edit: EditParameters,
    /// Where the result goes.
    pub output: Stream,
    /// In which format; none: the one that the output's name says, PNG on standard output.
    pub format: Option<Format>,
    /// Replace a file that is there.
    pub force: bool,
    /// Leave the result at the working size.
    pub keep_working_size: bool,
    /// Where to run.
    pub place: PlaceChoice,
}

impl EditJob {
    /// The format of the result.
    ///
    /// # Errors
    /// The name says none that can be written, or another than what is asked.
    pub(super) fn output_format(&self) -> Result<Format> {
        match (&self.output, self.format) {
            (Stream::Standard, format) => Ok(format.unwrap_or(Format::Png)),
            (Stream::File(path), Some(format)) if path.extension().is_none() => Ok(format),
            (Stream::File(path), format) => {
                let named = Format::of(path)?;
                let shown = path.display();
                ensure!(
                    format.is_none_or(|format| format == named),
                    "--format differs from what {shown} ends in; leave out --format"
                );
                Ok(named)
            }
        }
    }
}
