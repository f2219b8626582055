//! Flags of `judge`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::PlaceArgs;
use crate::pipeline::EditParameters;

/// Flags of `judge`.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// Model folder [default: the built-in demo model]
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Folder of the cases: cases.json, and ID.source.png and ID.target.png of each
    #[arg(long, value_name = "DIR")]
    pub cases: PathBuf,
    /// Folder for the edited pictures; must be new or empty
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Only so many, from the first on
    #[arg(long, value_name = "CASES", value_parser = count)]
    pub limit: Option<usize>,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub steps: u32,
    /// Guidance scale
    #[arg(long, alias = "cfg-guidance", default_value = "6.0", allow_negative_numbers = true, value_parser = finite)]
    pub cfg_scale: f64,
    /// Times above this use the norm-limited guidance rule
    #[arg(long, default_value = "0.93", value_name = "T", allow_negative_numbers = true, value_parser = finite)]
    guidance_limit: f64,
    /// Seed of every case's noise
    #[arg(short, long, default_value_t = 42)]
    seed: u64,
    /// Side of the square whose area the pictures are brought to [default: their own area's]
    #[arg(long, value_parser = clap::value_parser!(u32).range(64..=4096), value_name = "PIXELS")]
    size_level: Option<u32>,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Print one JSON object, with every case's measures
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

impl JudgeArgs {
    /// The edit of a case whose picture has this width and height: with `edit`'s defaults.
    pub fn edit(&self, instruction: &str, (width, height): (usize, usize)) -> EditParameters {
        let own = ((width * height) as f64).sqrt().round() as usize;
        EditParameters {
            steps: self.steps as usize,
            cfg_scale: self.cfg_scale as f32,
            guidance_limit: self.guidance_limit,
            seed: self.seed,
            size_level: Some(self.size_level.map_or(own, |side| side as usize)),
            ..EditParameters::new(instruction)
        }
    }
}

fn count(text: &str) -> Result<usize> {
    text.parse().ok().filter(|&number: &usize| number > 0).context("a number from 1 on")
}

fn finite(text: &str) -> Result<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).context("a finite number")
}
