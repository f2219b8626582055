//! What is asked of the model: one edit's parameters, and one edit from files to file.

use std::ops::RangeInclusive;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::{LoraChoice, Model, PlaceChoice};
use crate::image::{Filter, Format, Reading, Stream};
use crate::model::edit::Savings;
use crate::ops::H100_GRID_THREADS;
use crate::weights::ModelPath;

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
    /// norm.) None: the model's.
    pub cfg_scale: Option<f32>,
    /// Times above it use the norm-limited rule.
    pub guidance_limit: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of the square whose area the working size has, in pixels; none: the model's.
    pub size_level: Option<usize>,
    /// Width and height of text-to-image.
    pub size: (usize, usize),
    /// Filter that brings the picture to the working size.
    pub filter: Filter,
    /// Generator of the noise.
    pub rng: Rng,
    /// Sample the reference's posterior instead of taking its mean.
    pub sample_posterior: bool,
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
            guidance_limit: 0.93,
            seed: 42,
            size_level: None,
            size: (1024, 1024),
            filter: Filter::Lanczos,
            rng: Rng::Cuda { grid_threads: H100_GRID_THREADS },
            sample_posterior: false,
            savings: Savings::ALL,
        }
    }

    /// The guidance scale of the edit with this model.
    pub fn cfg_scale_with(&self, model: &Model) -> f32 {
        self.cfg_scale.unwrap_or(model.cfg_scale)
    }
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
