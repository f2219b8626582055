//! The commands that measure an edit on a GPU: `bench`, `profile` and `compare`.

mod bench;
mod budgets;
mod compare;
mod lanes;
mod link;
mod meter;
pub(super) mod profile;
mod report;
pub(super) mod roofline;
mod streamed;
mod trace;

use std::sync::Arc;

use anyhow::{Context, Result};

pub use bench::BenchJob;
pub use compare::{CompareJob, run as compare};
pub use link::{LinkJob, run as link};
pub use profile::{ProfileJob, run as profile};

use crate::cuda::Device;
use crate::error::usage;
use crate::exec::Cuda;
use crate::graph::Graph;
use crate::image::Rgb;
use crate::pipeline::{
    DeviceChoice, EditParameters, Loaded, Material, Model, Place, PlaceChoice, Program, Progress, Rules, SIDES, Silent,
};

/// Times edits, at each size or with each budget, and hands a report of each size to `print`.
///
/// # Errors
/// No device, or whatever stops an edit.
pub fn bench(job: &BenchJob, progress: &mut dyn Progress, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    match job.budgets.is_empty() {
        true => bench::run(job, progress, print),
        false => budgets::run(job, progress, print),
    }
}

/// The GPU that was asked for; `who` needs it.
pub(super) fn gpu(who: &str, choice: &PlaceChoice) -> Result<(Place, Arc<Device>)> {
    if choice.device == DeviceChoice::Cpu {
        return Err(usage(anyhow::anyhow!("{who} needs a GPU; name one with --device cuda")));
    }
    let place = Place::open_gpu(choice)?;
    let device = place.device().cloned().context("a GPU's place has a device")?;
    Ok((place, device))
}

/// Refuses stages that there are not.
fn check_stages(wanted: &[String], graph: &Graph) -> Result<()> {
    let names: Vec<&str> = graph.bodies.iter().map(|body| body.name).collect();
    match wanted.iter().find(|stage| !names.contains(&stage.as_str())) {
        Some(unknown) => {
            Err(usage(anyhow::anyhow!("--stage {unknown} is not a stage of this edit; choose from {}", names.join(", "))))
        }
        None => Ok(()),
    }
}

/// The edit that is measured: a made-up picture of this working size, each number another, a real prompt, otherwise the defaults of
/// `edit`.
///
/// # Errors
/// A usage error for sides or a prompt that do not fit.
fn sample(
    model: &Model,
    (width, height): (usize, usize),
    prompt: &str,
    steps: usize,
    rules: Option<Rules>,
    number: usize,
) -> Result<Material> {
    let fits = |side: usize| side.is_multiple_of(16) && SIDES.contains(&side);
    if !(fits(width) && fits(height)) {
        return Err(usage(anyhow::anyhow!("--size {width}x{height}: sides are multiples of 16 up to {}", SIDES.end())));
    }
    let picture =
        Rgb { width, height, data: (0..width * height * 3).map(|i| (i / 3 * (7 + 2 * number) + i / width) as u8).collect() };
    let edit = EditParameters { steps, rules, ..EditParameters::new(prompt) };
    Material::of_working_size(&edit, model, picture, &mut Silent)
}

/// The CUDA executor of a program that a GPU's engine has loaded.
fn cuda(loaded: &mut Loaded) -> Result<(&Program, &mut Cuda)> {
    let Loaded { program, exec, .. } = loaded;
    Ok((program, exec.as_cuda().context("the program was loaded onto the CPU")?))
}
