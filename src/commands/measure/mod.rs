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

pub use bench::run as bench;
pub use compare::run as compare;
pub use profile::run as profile;

use crate::cuda::{Device, Setup};
use crate::error::usage;
use crate::pipeline::{DeviceChoice, Engine};
use crate::plan::Precision;

/// The GPU that was asked for; `who` says in a refusal what needs it.
fn gpu(who: &str, choice: DeviceChoice, setup: &Setup) -> Result<(Engine, Arc<Device>, Precision)> {
    let (engine, precision) = Engine::choose(choice, Some(Precision::Bf16), setup)?;
    match &engine {
        Engine::Cuda(device) => Ok((engine.clone(), device.clone(), precision)),
        Engine::Cpu(_) => Err(usage(anyhow::anyhow!("{who} a GPU: say --device cuda"))),
    }
}

/// Refuses stages that there are not.
fn check_stages(wanted: &[String], names: &[&str]) -> Result<()> {
    match wanted.iter().find(|stage| !names.contains(&stage.as_str())) {
        Some(unknown) => Err(usage(anyhow::anyhow!("--stage {unknown}: the stages are {}", names.join(", ")))),
        None => Ok(()),
    }
}
