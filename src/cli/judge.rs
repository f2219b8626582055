//! Flags of `judge`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::model::PartsArgs;
use super::place::{LoraArgs, RulesArgs};
use super::{PlaceArgs, values};
use crate::commands::judge::JudgeJob;
use crate::pipeline::{EditParameters, SIZE_LEVELS, STEPS};

/// Flags of `judge`.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// Model folder [default: the built-in demo model]
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    model: Option<PathBuf>,
    #[command(flatten)]
    parts: PartsArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// Folder of the cases: cases.json, and ID.source.png and ID.target.png of each
    #[arg(long, value_name = "DIR")]
    cases: PathBuf,
    /// Folder for the edited pictures; must be new or empty
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Most cases to edit, from the first on [default: all]
    #[arg(long, value_name = "CASES", value_parser = values::count, allow_negative_numbers = true)]
    limit: Option<usize>,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = values::within(&STEPS), allow_negative_numbers = true)]
    steps: usize,
    /// Guidance scale [default: the model's, usually 6]
    #[arg(long, alias = "cfg-guidance", allow_hyphen_values = true, value_parser = values::cfg_scale)]
    cfg_scale: Option<f32>,
    #[command(flatten)]
    rules: RulesArgs,
    /// Times above this use the norm-limited guidance rule [default: as the rules say, 0.93 of the official ones]
    #[arg(long, value_name = "T", allow_hyphen_values = true, value_parser = values::guidance_limit)]
    guidance_limit: Option<f64>,
    /// Seed of every case's noise
    #[arg(short, long, default_value_t = 42, value_parser = values::fixed_seed, allow_hyphen_values = true)]
    seed: u64,
    /// Side of the square whose area the pictures are brought to, to be edited and compared [default: the model's]
    #[arg(long, value_parser = values::within(&SIZE_LEVELS), allow_negative_numbers = true, value_name = "PIXELS")]
    size_level: Option<usize>,
    /// Print one JSON object, with every case's measures
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
}

impl JudgeArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error: flags that do not fit each other.
    pub fn job(&self) -> Result<JudgeJob> {
        let edit = EditParameters {
            steps: self.steps,
            cfg_scale: self.cfg_scale,
            rules: self.rules.choice(),
            guidance_limit: self.guidance_limit,
            seed: self.seed,
            size_level: self.size_level,
            ..EditParameters::new("")
        };
        Ok(JudgeJob {
            model: self.model.as_deref().map(|model| self.parts.of(model)).transpose()?,
            loras: self.lora.lora.clone(),
            cases: self.cases.clone(),
            output: self.output.clone(),
            limit: self.limit,
            edit,
            place: self.place.choice()?,
            json: self.json,
        })
    }
}
