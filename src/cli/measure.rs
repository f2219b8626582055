//! Flags of the commands that measure and check: `bench`, `profile`, `compare` and `verify`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::model::PartsArgs;
use super::place::{LoraArgs, MemoryArgs, PrecisionArgs, RulesArgs};
use super::{setup, values};
use crate::commands::measure::{BenchJob, CompareJob, LinkJob, ProfileJob};
use crate::commands::verify::VerifyJob;
use crate::pipeline::{DeviceChoice, PlaceChoice, STEPS};

/// What is measured unless the user says otherwise.
const PROMPT: &str = "Add a red scarf to the woman and write 'NOVA' on it";

/// Flags of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    model: PathBuf,
    #[command(flatten)]
    parts: PartsArgs,
    /// Folder of the recorded runs
    #[arg(long, value_name = "DIR")]
    golden: PathBuf,
    /// Recorded run: NAME.safetensors, NAME_inputs.safetensors and NAME_truth.safetensors of that folder
    #[arg(long, default_value = "full_512")]
    name: String,
    #[command(flatten)]
    rules: RulesArgs,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Where to run: cuda[:N], cpu, or auto: on the first GPU if there is one
    #[arg(long, default_value = "auto", value_parser = values::device, help_heading = "Device")]
    device: DeviceChoice,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
}

impl VerifyArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error: flags that do not fit each other.
    pub fn job(&self) -> Result<VerifyJob> {
        let place = self.precision.of(self.memory.choice(self.device)?);
        let (model, golden, name) = (self.parts.of(&self.model)?, self.golden.clone(), self.name.clone());
        Ok(VerifyJob { model, golden, name, rules: self.rules.choice(), place, json: self.json })
    }
}

/// Flags of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    model: PathBuf,
    #[command(flatten)]
    parts: PartsArgs,
    /// Working size, WIDTHxHEIGHT in multiples of 16
    #[arg(long, value_parser = values::size, default_value = "256x256", value_name = "WxH")]
    size: (usize, usize),
    /// What to change
    #[arg(short, long, value_name = "TEXT", default_value = PROMPT)]
    prompt: String,
    #[command(flatten)]
    rules: RulesArgs,
    /// Stages to compare [default: all]; those before them run on the GPU alone
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    stage: Vec<String>,
    /// Go on after a node that differs
    #[arg(long)]
    go_on: bool,
    /// GPU to run on: cuda[:N]
    #[arg(long, default_value = "cuda", value_parser = values::device, help_heading = "Device")]
    device: DeviceChoice,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
}

impl CompareArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error: flags that do not fit each other.
    pub fn job(&self) -> Result<CompareJob> {
        Ok(CompareJob {
            model: self.parts.of(&self.model)?,
            size: self.size,
            prompt: self.prompt.clone(),
            rules: self.rules.choice(),
            stages: self.stage.clone(),
            go_on: self.go_on,
            place: self.precision.of(self.memory.choice(self.device)?),
        })
    }
}

/// Flags of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH", required_unless_present = "link")]
    model: Option<PathBuf>,
    /// Measure copies to the GPU and the locking of memory instead; no model is needed
    #[arg(long, conflicts_with_all = ["model", "vae", "text_encoder", "mmproj", "lora", "size", "prompt", "rules", "steps", "runs", "max_vram", "max_ram", "precision"])]
    link: bool,
    #[command(flatten)]
    parts: PartsArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// Working sizes, WIDTHxHEIGHT in multiples of 16
    #[arg(long, value_parser = values::size, value_delimiter = ',', default_value = "1024x1024", value_name = "WxH")]
    size: Vec<(usize, usize)>,
    /// What to change
    #[arg(short, long, value_name = "TEXT", default_value = PROMPT)]
    prompt: String,
    #[command(flatten)]
    rules: RulesArgs,
    /// Denoising steps of the edit
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = values::whole(3, *STEPS.end()), allow_negative_numbers = true)]
    steps: usize,
    /// Timed runs of each stage while its weights are on the device
    #[arg(long, default_value_t = 10, value_parser = values::whole(2, 1000), allow_negative_numbers = true)]
    runs: usize,
    /// Print one JSON object for each size
    #[arg(long)]
    json: bool,
    /// GPU to run on: cuda[:N]
    #[arg(long, default_value = "cuda", value_parser = values::device, help_heading = "Device")]
    device: DeviceChoice,
    /// Amounts of GPU memory, such as 6GB,12GB: three edits with each, and what they cost beside all weights resident
    #[arg(long, value_name = "BYTES", value_delimiter = ',', allow_negative_numbers = true, value_parser = values::bytes, help_heading = "Device")]
    max_vram: Vec<usize>,
    /// Most memory of the host for weights that stream to the GPU [default: what is free, but for 4 GB]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = values::bytes, help_heading = "Device", hide_short_help = true)]
    max_ram: Option<usize>,
    #[command(flatten)]
    precision: PrecisionArgs,
}

/// What `bench` measures.
pub enum BenchChoice {
    /// Edits.
    Edits(Box<BenchJob>),
    /// The link between host and device.
    Link(LinkJob),
}

impl BenchArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error: flags that do not fit each other.
    pub fn job(&self) -> Result<BenchChoice> {
        let (device, max_ram) = (self.device, self.max_ram);
        let place = self.precision.of(PlaceChoice { device, precision: None, max_vram: None, max_ram, setup: setup() });
        let Some(model) = &self.model else { return Ok(BenchChoice::Link(LinkJob { place, json: self.json })) };
        Ok(BenchChoice::Edits(Box::new(BenchJob {
            model: self.parts.of(model)?,
            loras: self.lora.lora.clone(),
            sizes: self.size.clone(),
            prompt: self.prompt.clone(),
            rules: self.rules.choice(),
            steps: self.steps,
            runs: self.runs,
            budgets: self.max_vram.clone(),
            place,
            json: self.json,
        })))
    }
}

/// Flags of `profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    model: PathBuf,
    #[command(flatten)]
    parts: PartsArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// Working size, WIDTHxHEIGHT in multiples of 16
    #[arg(long, value_parser = values::size, default_value = "1024x1024", value_name = "WxH")]
    size: (usize, usize),
    /// What to change
    #[arg(short, long, value_name = "TEXT", default_value = PROMPT)]
    prompt: String,
    #[command(flatten)]
    rules: RulesArgs,
    /// Stages to profile: vae_encode, vision, text, conditioning, step, vae_decode
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "step")]
    stage: Vec<String>,
    /// Denoising steps of the edit
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = values::whole(3, *STEPS.end()), allow_negative_numbers = true)]
    steps: usize,
    /// Write a trace of the nodes that Perfetto and chrome://tracing open
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Replace the trace if it exists
    #[arg(short, long)]
    force: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// GPU to run on: cuda[:N]
    #[arg(long, default_value = "cuda", value_parser = values::device, help_heading = "Device")]
    device: DeviceChoice,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
}

impl ProfileArgs {
    /// The job, with what the environment says.
    ///
    /// # Errors
    /// A model error: no cache has the model of this name; a usage error: a limit for the CPU.
    pub fn job(&self) -> Result<ProfileJob> {
        Ok(ProfileJob {
            model: self.parts.of(&self.model)?,
            loras: self.lora.lora.clone(),
            size: self.size,
            prompt: self.prompt.clone(),
            rules: self.rules.choice(),
            stages: self.stage.clone(),
            steps: self.steps,
            trace: self.trace.clone(),
            force: self.force,
            place: self.precision.of(self.memory.choice(self.device)?),
            json: self.json,
        })
    }
}
