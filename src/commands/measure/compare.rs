//! The `compare` command: an edit on the device, node by node against the reference.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::sample::Sample;
use super::{check_stages, gpu};
use crate::commands::PlaceChoice;
use crate::exec::{self, Cuda, Executor};
use crate::pipeline::Model;

/// An edit whose nodes to compare.
#[derive(Clone, Debug)]
pub struct CompareJob {
    /// The model's folder or transformer file.
    pub model: PathBuf,
    /// Working width and height.
    pub size: (usize, usize),
    /// What to do.
    pub prompt: String,
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
    let (engine, device, precision) = gpu("compare", &job.place)?;
    let model = Model::open(&job.model)?;
    let edit = Sample::new(&model, &engine, precision, job.size, &job.prompt, 3, job.place.max_vram)?;
    let program = edit.program()?;
    let names: Vec<&str> = program.plan.graph.stages.iter().map(|s| s.name).collect();
    check_stages(&job.stages, &names)?;
    let mut exec = Cuda::new(&program.plan, model.folder.clone(), &device, &job.place.setup)?;
    edit.write_inputs(&mut exec, &program)?;
    exec.begin(&names)?;
    let mut differing = Vec::new();
    for name in names {
        if !(job.stages.is_empty() || job.stages.iter().any(|stage| stage == name)) {
            exec.run(name, &mut |_| Ok(()))?;
            continue;
        }
        let report = exec::compare(&mut exec, name, job.go_on)?;
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
