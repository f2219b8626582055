//! Flags of `demo`.

use std::path::PathBuf;

use clap::Args;

use super::PlaceArgs;

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Picture to write; .png, .jpg or .webp says the format
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Replace the output if it exists
    #[arg(short, long)]
    pub force: bool,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub steps: u32,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}
