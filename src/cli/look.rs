//! Flags of the commands that look and make: `inspect`, `doctor` and `synth`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;

use super::edit::SavingsArgs;
use super::model::PartsArgs;
use super::place::RulesArgs;
use super::setup;
use super::values::{self, LayoutArg, PrecisionArg, PresetArg, VersionArg};
use crate::commands::doctor::DoctorJob;
use crate::commands::inspect::{InspectJob, Networks, PlanJob};
use crate::commands::synth::SynthJob;
use crate::error::usage;
use crate::pipeline::{LoraChoice, SIZE_LEVELS, STEPS};
use crate::plan::Precision;

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Model folder
    #[arg(short, long, alias = "model-path", value_name = "PATH", conflicts_with = "preset")]
    model: Option<PathBuf>,
    #[command(flatten)]
    parts: PartsArgs,
    /// LoRA file to look at, and whether it fits the model, or the released one if none is named; can be given several times
    #[arg(long, value_name = "FILE", value_parser = values::lora)]
    lora: Vec<LoraChoice>,
    /// Networks without weights
    #[arg(long, value_enum)]
    preset: Option<PresetArg>,
    /// Version of the preset
    #[arg(long, value_enum, default_value = "v1.1")]
    version: VersionArg,
    /// Size of the picture to plan for
    #[arg(long, default_value = "1024x1024", value_parser = values::size, value_name = "WxH")]
    size: (usize, usize),
    /// Side of the square whose area that picture is brought to
    #[arg(long, default_value_t = 1024, value_parser = values::within(&SIZE_LEVELS), allow_negative_numbers = true, value_name = "PIXELS")]
    size_level: usize,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = values::within(&STEPS), allow_negative_numbers = true)]
    steps: usize,
    /// Prompt to plan for
    #[arg(short, long, value_name = "TEXT", default_value = "Change the sofa to vintage leather.")]
    prompt: String,
    #[command(flatten)]
    rules: RulesArgs,
    /// Activations and products: bf16 plans for a GPU, all others for the CPU
    #[arg(long, value_enum, default_value = "bf16")]
    precision: PrecisionArg,
    /// Compare the files with their published digests: of a hub's cache, of the hub's client, or of a file SHA256SUMS
    #[arg(long, conflicts_with = "preset")]
    verify: bool,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print the recorded graph, equal blocks once
    #[arg(long)]
    graph: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Plan for this much GPU memory, such as 6GB or 20GiB
    ///
    /// The driver's share counts too. A number without a unit is bytes.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = values::bytes, help_heading = "Device")]
    max_vram: Option<usize>,
    #[command(flatten)]
    savings: SavingsArgs,
}

impl InspectArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error: neither model nor preset nor LoRA file, or a limit of a GPU's memory for the CPU.
    pub fn job(&self) -> Result<InspectJob> {
        let networks = match (&self.model, self.preset) {
            (Some(path), _) => Networks::Folder(self.parts.of(path)?),
            (None, Some(preset)) => Networks::Preset(preset.into(), self.version.into()),
            (None, None) if !self.lora.is_empty() => Networks::None,
            (None, None) => {
                return Err(usage(anyhow!("inspect needs a model; give --model or --preset, or a LoRA file with --lora")));
            }
        };
        let precision: Precision = self.precision.into();
        if self.max_vram.is_some() && !precision.runs_on_cuda() {
            let text = format!("--max-vram limits a GPU's memory, and --precision {precision} plans for the CPU; leave one out");
            return Err(usage(anyhow!(text)));
        }
        let plan = PlanJob {
            prompt: self.prompt.clone(),
            rules: self.rules.choice(),
            size: self.size,
            size_level: self.size_level,
            steps: self.steps,
            precision,
            savings: self.savings.into(),
        };
        let (verify, tensors, graph, json) = (self.verify, self.tensors, self.graph, self.json);
        Ok(InspectJob { networks, loras: self.lora.clone(), plan, max_vram: self.max_vram, verify, tensors, graph, json })
    }
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    /// The job, with what the environment says.
    pub fn job(&self) -> DoctorJob {
        DoctorJob { setup: setup(), json: self.json }
    }
}

/// Flags of `synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// Size of the networks
    #[arg(long, value_enum)]
    preset: PresetArg,
    /// Version of the transformer
    #[arg(long, value_enum, default_value = "v1.1")]
    version: VersionArg,
    /// Arrangement of the folder: that of the authors, or that of diffusers with the same numbers
    #[arg(long, value_enum, default_value = "official")]
    layout: LayoutArg,
    /// Seed of the weights
    #[arg(short, long, default_value_t = 0, value_parser = values::fixed_seed, allow_hyphen_values = true)]
    seed: u64,
    /// Folder to write; must be new or empty
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

impl SynthArgs {
    /// The job.
    pub fn job(&self) -> SynthJob {
        let (preset, version) = (self.preset.into(), self.version.into());
        SynthJob { output: self.output.clone(), preset, version, layout: self.layout.into(), seed: self.seed }
    }
}
