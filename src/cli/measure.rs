//! Flags of the commands that measure and look: `verify`, `compare`, `bench`, `profile` and `doctor`.

use std::path::PathBuf;

use clap::Args;

use super::MemoryArgs;
use crate::pipeline::DeviceChoice;

/// Flags of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    pub model: PathBuf,
    /// Folder of the recorded runs
    #[arg(long, value_name = "DIR")]
    pub golden: PathBuf,
    /// Recorded run: NAME.safetensors, NAME_inputs.safetensors and NAME_truth.safetensors of that folder
    #[arg(long, default_value = "full_512")]
    pub name: String,
    /// Where to run: cuda[:N], cpu, or auto
    #[arg(long, default_value = "auto", value_parser = super::parse_device)]
    pub device: DeviceChoice,
    /// Memory to take.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Flags of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    pub model: PathBuf,
    /// Working size, WIDTHxHEIGHT in multiples of 16
    #[arg(long, value_parser = super::parse_size, default_value = "256x256")]
    pub size: (usize, usize),
    /// What to do
    #[arg(short, long, default_value = "Add a red scarf to the woman and write 'NOVA' on it")]
    pub prompt: String,
    /// Stages to run [default: all]; those before them run on the device alone
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub stage: Vec<String>,
    /// Go on after a node that differs
    #[arg(long)]
    pub go_on: bool,
    /// CUDA device
    #[arg(long, default_value = "cuda", value_parser = super::parse_device)]
    pub device: DeviceChoice,
    /// Memory to take.
    #[command(flatten)]
    pub memory: MemoryArgs,
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    pub model: PathBuf,
    /// Working sizes, WIDTHxHEIGHT in multiples of 16
    #[arg(long, value_parser = super::parse_size, value_delimiter = ',', default_value = "1024x1024")]
    pub size: Vec<(usize, usize)>,
    /// What to do
    #[arg(short, long, default_value = "Add a red scarf to the woman and write 'NOVA' on it")]
    pub prompt: String,
    /// Denoising steps of the edit
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u32).range(3..=1000))]
    pub steps: u32,
    /// Timed runs of each stage while its weights are on the device
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub runs: u32,
    /// CUDA device
    #[arg(long, default_value = "cuda", value_parser = super::parse_device)]
    pub device: DeviceChoice,
    /// Memory to take.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Print one JSON object a size
    #[arg(long)]
    pub json: bool,
}

/// Flags of `profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    pub model: PathBuf,
    /// Working size, WIDTHxHEIGHT in multiples of 16
    #[arg(long, value_parser = super::parse_size, default_value = "1024x1024")]
    pub size: (usize, usize),
    /// What to do
    #[arg(short, long, default_value = "Add a red scarf to the woman and write 'NOVA' on it")]
    pub prompt: String,
    /// Stages to profile: vae_encode, vision, text, conditioning, step, vae_decode
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "step")]
    pub stage: Vec<String>,
    /// Denoising steps of the edit
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u32).range(3..=1000))]
    pub steps: u32,
    /// Write a trace of the nodes that Perfetto and chrome://tracing open
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Replace the trace if it exists
    #[arg(short, long)]
    pub force: bool,
    /// CUDA device
    #[arg(long, default_value = "cuda", value_parser = super::parse_device)]
    pub device: DeviceChoice,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
