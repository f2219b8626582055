//! The `profile` command: every node of an edit's stages against what the device could do; where weights stream, what is computed,
//! waited for and copied ([`super::streamed`]).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use super::report::{Profile, Stage};
use super::roofline::{Rates, Timed, median};
use super::trace::trace;
use super::{check_stages, cuda, gpu, sample, streamed};
use crate::cuda::{Ceilings, Device, Setup};
use crate::error::usage;
use crate::exec::{Cuda, Executor};
use crate::graph::BodyId;
use crate::image::Output;
use crate::ops::Values;
use crate::pipeline::{Engine, Loaded, LoraChoice, Model, ModelPath, PlaceChoice, Program, Progress, Purpose, Rules};
use crate::plan::Itinerary;
use crate::tensor::DType;

/// An edit to profile.
#[derive(Clone, Debug)]
pub struct ProfileJob {
    /// The model's folder or transformer file.
    pub model: ModelPath,
    /// LoRA files to merge into the model.
    pub loras: Vec<LoraChoice>,
    /// Working width and height.
    pub size: (usize, usize),
    /// What to do.
    pub prompt: String,
    /// The rules that the edit follows; none: the model's.
    pub rules: Option<Rules>,
    /// Stages to profile.
    pub stages: Vec<String>,
    /// Denoising steps of the edit.
    pub steps: usize,
    /// Where a trace goes; none: no trace.
    pub trace: Option<PathBuf>,
    /// Replace a trace that is there.
    pub force: bool,
    /// The GPU.
    pub place: PlaceChoice,
    /// Report as one JSON object instead of tables.
    pub json: bool,
}

/// Times that each node and the uncaptured stage are run; medians count.
const PASSES: usize = 3;
/// Most replays of the captured stage.
const REPLAYS: usize = 10;

/// Profiles stages of an edit, hands the report to `print` and writes the trace if one is wanted.
///
/// # Errors
/// No device, an output that cannot be written, or whatever stops an edit.
pub fn run(job: &ProfileJob, progress: &mut dyn Progress, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let output = job.trace.as_deref().map(|path| Output::reserve(path, job.force)).transpose().map_err(usage)?;
    let (place, device) = gpu("profile", &job.place)?;
    let model = Model::open_parts(&job.model)?;
    model.adapt(&job.loras, progress)?;
    let mut engine = Engine::open(model, place)?;
    let edit = sample(&engine.model, job.size, &job.prompt, job.steps, job.rules, 0)?;
    // With a budget, or where not all weights fit, they stream as in any edit, and every stage runs once.
    let purpose = if job.place.max_vram.is_some() { Purpose::Edit } else { Purpose::Measure };
    if !engine.ready(&edit, purpose)?.program.plan.weights.keeps_all() {
        let streamed = streamed::run((&job.stages, job.size, job.steps), &mut engine, &edit, progress)?;
        if let Some(output) = output {
            output.commit(streamed.trace().to_string().as_bytes())?;
        }
        return print(&if job.json { format!("{}\n", streamed.json()) } else { streamed.text() });
    }
    if purpose == Purpose::Edit {
        progress.notice("all weights fit into what --max-vram allows: none streams, and stages are timed with all of them there");
    }
    let loaded = engine.ready(&edit, Purpose::Measure)?;
    let rows = loaded.program.spec.step_rows().total();
    let stages = time_stages(job, loaded, progress)?;
    let name = engine.place.measured_name();
    drop(engine); // the ceilings need its memory
    // The device is still at work's temperature and clocks when its ceilings are measured.
    let rates = measure_rates(stages.iter().flat_map(|stage| &stage.nodes), &device, &job.place.setup)?;
    let profile = Profile { device: name, size: [job.size.0, job.size.1], rows, rates, stages };
    if let Some(output) = output {
        output.commit(trace(&profile).to_string().as_bytes())?;
    }
    print(&if job.json { format!("{}\n", profile.json()) } else { profile.text() })
}

fn time_stages(job: &ProfileJob, loaded: &mut Loaded, progress: &mut dyn Progress) -> Result<Vec<Stage>> {
    let (program, exec) = cuda(loaded)?;
    let graph = &program.plan.graph;
    check_stages(&job.stages, graph)?;
    let wanted = |body: &BodyId| job.stages.iter().any(|stage| stage == graph.bodies[body.0].name);
    let mut bodies: Vec<BodyId> = (0..graph.bodies.len()).map(BodyId).collect();
    while bodies.last().is_some_and(|body| !wanted(body)) {
        bodies.pop();
    }
    exec.begin(&Itinerary::once(bodies.iter().copied()))?;
    let mut stages = Vec::new();
    for body in bodies {
        exec.run(body, &mut |_, _| progress.node())?; // also loads what libraries load late
        if wanted(&body) {
            stages.push(time_stage(exec, program, body, job.steps, progress)?);
        }
    }
    Ok(stages)
}

fn time_stage(exec: &mut Cuda, program: &Program, body: BodyId, steps: usize, progress: &mut dyn Progress) -> Result<Stage> {
    // The step's counter stays within its schedule.
    let rewind = |exec: &mut Cuda| exec.write(program.tensors.denoised.counter, Values::I32(&[0]));
    let (mut passes, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..PASSES {
        progress.node()?;
        rewind(exec)?;
        passes.push(exec.time_nodes(body)?);
        rewind(exec)?;
        whole.push(exec.time_uncaptured(body)?);
    }
    rewind(exec)?;
    let replays = if body == program.tensors.bodies.step { REPLAYS.min(steps.saturating_sub(2).max(1)) } else { REPLAYS };
    let captured = exec.time_runs(body, replays)?;
    let nodes = passes[0].len();
    let times: Vec<f64> = (0..nodes).map(|node| median(passes.iter().map(|pass| pass[node]).collect())).collect();
    Ok(Stage {
        name: program.plan.graph.bodies[body.0].name,
        nodes: Timed::of_body(&program.plan, body, &times),
        uncaptured_ms: median(whole),
        captured_ms: median(captured),
    })
}

/// The device's rates, and times of copies of as many bytes as each node moves.
pub(in crate::commands) fn measure_rates<'n>(
    nodes: impl Iterator<Item = &'n Timed>,
    device: &Arc<Device>,
    setup: &Setup,
) -> Result<Rates> {
    let mut ceilings = Ceilings::new(device, setup)?;
    let (bf16_tflops, tf32_tflops) = (ceilings.tflops(DType::BF16)?, ceilings.tflops(DType::F32)?);
    let mut copies: BTreeMap<u64, f64> = nodes.map(|node| (node.cost.bytes, 0.0)).collect();
    for (&bytes, ms) in &mut copies {
        *ms = ceilings.copy_milliseconds(bytes)?;
    }
    Ok(Rates { copy_gb_per_s: ceilings.copy_gb_per_s()?, bf16_tflops, tf32_tflops, copies })
}
