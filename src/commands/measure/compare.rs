//! The `compare` command: an edit on the device, node by node against the reference.

use anyhow::{Result, bail};

use super::{check_stages, cuda, gpu, sample};
use crate::exec::{self, Executor, unwatched};
use crate::graph::BodyId;
use crate::pipeline::{Engine, Model, ModelPath, PlaceChoice, Purpose, Rules};

/// An edit whose nodes to compare.
#[derive(Clone, Debug)]
pub struct CompareJob {
    /// The model's folder or transformer file.
    pub model: ModelPath,
    /// Working width and height.
    pub size: (usize, usize),
    /// What to do.
    pub prompt: String,
    /// The rules that the edit follows; none: the model's.
    pub rules: Option<Rules>,
    /// Stages to compare; empty: all.
    pub stages: Vec<String>,
    /// Go on after a node that differs.
    pub go_on: bool,
    /// The GPU.
    pub place: PlaceChoice,
}

/// Compares an edit's stages node by node and prints, for each, the farthest output of every kernel.
///
/// # Errors
/// No device, nodes that differ, or whatever stops an edit.
pub fn run(job: &CompareJob, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let (place, _) = gpu("compare", &job.place)?;
    let mut engine = Engine::open(Model::open_parts(&job.model)?, place)?;
    let edit = sample(&engine.model, job.size, &job.prompt, 3, job.rules, 0)?;
    let (program, exec) = cuda(engine.ready(&edit, Purpose::Edit)?)?;
    let graph = &program.plan.graph;
    check_stages(&job.stages, graph)?;
    exec.begin(&program.plan.itinerary)?;
    let mut differing = Vec::new();
    for (body, name) in graph.bodies.iter().enumerate().map(|(n, body)| (BodyId(n), body.name)) {
        if !(job.stages.is_empty() || job.stages.iter().any(|stage| stage == name)) {
            exec.run(body, &mut unwatched)?;
            continue;
        }
        let report = exec::compare(exec, body, job.go_on)?;
        print(&format!("{name}\n{report}"))?;
        differing.extend(report.differing);
        if !(job.go_on || differing.is_empty()) {
            break;
        }
    }
    match differing.first() {
        Some(first) => bail!("{} outputs differ between GPU and CPU; the first is {first}", differing.len()),
        None => Ok(()),
    }
}
