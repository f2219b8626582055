//! Flags of `demo`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{PlaceArgs, values};
use crate::commands::demo::DemoJob;
use crate::pipeline::STEPS;

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Picture to write; .png, .jpg or .webp says the format
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(short, long)]
    force: bool,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = values::within(&STEPS), allow_negative_numbers = true)]
    steps: usize,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
}

impl DemoArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error: flags that do not fit each other.
    pub fn job(&self) -> Result<DemoJob> {
        let steps = self.steps;
        Ok(DemoJob { output: self.output.clone(), force: self.force, steps, place: self.place.choice()? })
    }
}
