//! The commands that measure an edit on a GPU: `bench`, `profile` and `compare`.

mod bench;
mod compare;
mod meter;
mod profile;
mod report;
mod roofline;
mod sample;
mod trace;

use std::sync::Arc;

use anyhow::Result;

pub use bench::{BenchJob, run as bench};
pub use compare::{CompareJob, run as compare};
pub use profile::{ProfileJob, run as profile};

use super::PlaceChoice;
use crate::cuda::Device;
use crate::error::usage;
use crate::pipeline::Engine;
use crate::plan::Precision;

/// The GPU that was asked for; `who` needs it.
fn gpu(who: &str, place: &PlaceChoice) -> Result<(Engine, Arc<Device>, Precision)> {
    let (engine, precision) = Engine::choose(place.device, Some(Precision::Bf16), &place.setup)?;
    match &engine {
        Engine::Cuda(device) => Ok((engine.clone(), device.clone(), precision)),
        Engine::Cpu(_) => Err(usage(anyhow::anyhow!("{who} needs a GPU; name one with --device cuda"))),
    }
}

/// Refuses stages that there are not.
fn check_stages(wanted: &[String], names: &[&str]) -> Result<()> {
    match wanted.iter().find(|stage| !names.contains(&stage.as_str())) {
        Some(unknown) => {
            Err(usage(anyhow::anyhow!("--stage {unknown} is not a stage of this edit; choose from {}", names.join(", "))))
        }
        None => Ok(()),
    }
}
