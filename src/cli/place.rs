//! Flags that say where edits run.

use anyhow::Result;
use clap::Args;

use super::{MemoryArgs, PrecisionArg};
use crate::pipeline::DeviceChoice;
use crate::plan::Precision;

/// Flags of `edit`, `judge` and `demo`.
#[derive(Clone, Copy, Debug, Args)]
pub struct PlaceArgs {
    /// Where to run: cuda[:N], cpu, or auto: on the first GPU if there is one
    #[arg(long, default_value = "auto", value_parser = super::parse_device)]
    pub device: DeviceChoice,
    /// Memory to take.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Element type of activations: bf16 is how the released model runs, f32 is the CPU's [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_enum)]
    precision: Option<PrecisionArg>,
    /// CPU threads [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
}

impl PlaceArgs {
    /// Element type of activations; none: what suits the device.
    pub fn precision(&self) -> Option<Precision> {
        self.precision.map(Precision::from)
    }

    /// Whether the flags fit each other.
    ///
    /// # Errors
    /// As for [`MemoryArgs::check`].
    pub fn check(&self) -> Result<()> {
        self.memory.check(self.device)
    }
}
