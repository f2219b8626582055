//! Flags that say where edits run.

use anyhow::Result;
use clap::Args;

use super::{setup, values};
use crate::error::usage;
use crate::pipeline::{DeviceChoice, LoraChoice, PlaceChoice, Rules};

/// Flags of `edit`, `judge` and `demo`.
#[derive(Clone, Copy, Debug, Args)]
pub struct PlaceArgs {
    /// Where to run: cuda[:N], cpu, or auto: on the first GPU if there is one
    #[arg(long, default_value = "auto", value_parser = values::device, help_heading = "Device", hide_short_help = true)]
    device: DeviceChoice,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// CPU threads, at most 64 or as many as there are cores [default: one for each core]
    #[arg(long, value_parser = values::threads, allow_hyphen_values = true, help_heading = "Device", hide_short_help = true)]
    pub threads: Option<usize>,
}

impl PlaceArgs {
    /// The place, with what the environment says of it.
    ///
    /// # Errors
    /// A usage error: a limit of a GPU's memory for the CPU.
    pub(super) fn choice(&self) -> Result<PlaceChoice> {
        Ok(self.precision.of(self.memory.choice(self.device)?))
    }
}

/// `--precision`.
#[derive(Clone, Copy, Debug, Args)]
pub struct PrecisionArgs {
    /// bf16 is how the released model runs; f32 and fp8 run on the CPU alone [default: bf16 on a GPU, f32 on the CPU]
    ///
    /// int8, fp8 and mixed are products of eight bits: other pictures. int8 and mixed run on an H100 or H200 too, and faster than bf16.
    #[arg(long, value_enum, help_heading = "Device", hide_short_help = true)]
    precision: Option<values::PrecisionArg>,
}

impl PrecisionArgs {
    /// The place in this precision.
    pub(super) fn of(self, place: PlaceChoice) -> PlaceChoice {
        PlaceChoice { precision: self.precision.map(Into::into), ..place }
    }
}

/// `--lora`.
#[derive(Clone, Debug, Args)]
pub struct LoraArgs {
    /// LoRA file to merge into the model, with its scale if not 1; can be given several times (docs/lora.md)
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = values::lora)]
    pub(super) lora: Vec<LoraChoice>,
}

/// `--rules`.
#[derive(Clone, Copy, Debug, Args)]
pub struct RulesArgs {
    /// Rules of prompt and sampling: the official script's, or those of the pipeline in diffusers (v1.1) [default: as the model's layout]
    #[arg(long, value_enum, help_heading = "Sampling", hide_short_help = true)]
    rules: Option<values::RulesArg>,
}

impl RulesArgs {
    /// The rules that are asked for.
    pub(super) fn choice(self) -> Option<Rules> {
        self.rules.map(Into::into)
    }
}

/// `--max-vram`, `--max-ram`.
#[derive(Clone, Copy, Debug, Args)]
pub struct MemoryArgs {
    /// Most GPU memory to take, such as 22GB or 20GiB [default: what is free]
    ///
    /// The driver's share counts too. A number without a unit is bytes.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = values::bytes, help_heading = "Device")]
    pub(super) max_vram: Option<usize>,
    /// Most memory of the host for weights that stream to the GPU [default: what is free, but for 4 GB]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = values::bytes, help_heading = "Device", hide_short_help = true)]
    pub(super) max_ram: Option<usize>,
}

impl MemoryArgs {
    /// A device with these limits, in the element type that suits it.
    ///
    /// # Errors
    /// A usage error: a limit for the CPU.
    pub(super) fn choice(self, device: DeviceChoice) -> Result<PlaceChoice> {
        if self.max_vram.is_some() && device == DeviceChoice::Cpu {
            return Err(usage(anyhow::anyhow!("--max-vram limits a GPU's memory, and --device cpu uses no GPU; leave one out")));
        }
        if self.max_ram.is_some() && device == DeviceChoice::Cpu {
            return Err(usage(anyhow::anyhow!(
                "--max-ram limits what streams to a GPU, and --device cpu uses no GPU; leave one out"
            )));
        }
        Ok(PlaceChoice { device, precision: None, max_vram: self.max_vram, max_ram: self.max_ram, setup: setup() })
    }
}
