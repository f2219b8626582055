//! The `profile` command: every node of an edit's stages against what the device could do.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;

use super::report::{Profile, Stage};
use super::roofline::{Rates, Timed};
use super::sample::Sample;
use super::trace::trace;
use super::{check_stages, gpu};
use crate::cli::{self, ProfileArgs};
use crate::cuda::{Ceilings, Device, Setup};
use crate::error::usage;
use crate::exec::{Cuda, Executor};
use crate::image::Output;
use crate::ops::Values;
use crate::pipeline::{Model, Program, Progress};
use crate::tensor::DType;

/// Times that each node and the uncaptured stage are run; medians count.
const PASSES: usize = 3;
/// Most replays of the captured stage.
const REPLAYS: usize = 10;

/// Profiles stages of an edit, hands the report to `print` and writes the trace if one is wanted.
///
/// # Errors
/// No device, an output that cannot be written, or whatever stops an edit.
pub fn run(args: &ProfileArgs, progress: &mut dyn Progress, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let output = args.trace.as_deref().map(|path| Output::reserve(path, args.force)).transpose().map_err(usage)?;
    let setup = cli::setup();
    let (engine, device, precision) = gpu("profile needs", args.device, &setup)?;
    let model = Model::open(&args.model)?;
    let edit = Sample::new(&model, &engine, precision, args.size, &args.prompt, args.steps as usize, None)?;
    let program = edit.repeatable()?;
    // The device is still at work's temperature and clocks when its ceilings are measured.
    let stages = time_stages(args, &edit, &program, &device, &setup, progress)?;
    let rates = measure_rates(&stages, &device, &setup)?;
    let profile = Profile { device: engine.name(), size: edit.size(), rows: program.spec.step_rows().total(), rates, stages };
    if let Some(output) = output {
        output.commit(trace(&profile).to_string().as_bytes())?;
    }
    print(&if args.json { format!("{}\n", profile.json()) } else { profile.text() })
}

fn time_stages(
    args: &ProfileArgs,
    edit: &Sample,
    program: &Program,
    device: &Arc<Device>,
    setup: &Setup,
    progress: &mut dyn Progress,
) -> Result<Vec<Stage>> {
    let mut names: Vec<&'static str> = program.plan.graph.stages.iter().map(|s| s.name).collect();
    check_stages(&args.stage, &names)?;
    let wanted = |name: &str| args.stage.iter().any(|stage| stage == name);
    while names.last().is_some_and(|name| !wanted(name)) {
        names.pop();
    }
    let mut exec = Cuda::new(&program.plan, edit.model.folder.clone(), device, setup)?;
    edit.write_inputs(&mut exec, program)?;
    exec.begin(&names)?;
    let mut stages = Vec::new();
    for name in names {
        exec.run(name, &mut |_| progress.node())?; // also loads what libraries load late
        if wanted(name) {
            stages.push(time_stage(&mut exec, program, name, args.steps as usize, progress)?);
        }
    }
    Ok(stages)
}

fn time_stage(
    exec: &mut Cuda,
    program: &Program,
    name: &'static str,
    steps: usize,
    progress: &mut dyn Progress,
) -> Result<Stage> {
    // The step's counter stays within its schedule.
    let rewind = |exec: &mut Cuda| exec.write(program.tensors.denoised.counter, Values::I32(&[0]));
    let (mut passes, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..PASSES {
        progress.node()?;
        rewind(exec)?;
        passes.push(exec.time_nodes(name)?);
        rewind(exec)?;
        whole.push(exec.time_uncaptured(name)?);
    }
    rewind(exec)?;
    let replays = if name == "step" { REPLAYS.min(steps.saturating_sub(2).max(1)) } else { REPLAYS };
    let captured = exec.time_runs(name, replays)?;
    let nodes = passes[0].len();
    let times: Vec<f64> = (0..nodes).map(|node| median(passes.iter().map(|pass| pass[node]).collect())).collect();
    Ok(Stage {
        name,
        nodes: Timed::of_stage(&program.plan, name, &times),
        uncaptured_ms: median(whole),
        captured_ms: median(captured),
    })
}

fn measure_rates(stages: &[Stage], device: &Arc<Device>, setup: &Setup) -> Result<Rates> {
    let mut ceilings = Ceilings::new(device, setup)?;
    let (bf16_tflops, tf32_tflops) = (ceilings.tflops(DType::BF16)?, ceilings.tflops(DType::F32)?);
    let mut copies: BTreeMap<u64, f64> =
        stages.iter().flat_map(|stage| &stage.nodes).map(|node| (node.cost.bytes, 0.0)).collect();
    for (&bytes, ms) in &mut copies {
        *ms = ceilings.copy_milliseconds(bytes)?;
    }
    Ok(Rates { copy_gb_per_s: ceilings.copy_gb_per_s()?, bf16_tflops, tf32_tflops, copies })
}

fn median(mut times: Vec<f32>) -> f64 {
    times.sort_by(f32::total_cmp);
    times[times.len() / 2] as f64
}
