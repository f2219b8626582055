//! The `compare` command: an edit on the device, node by node against the reference.

use anyhow::{Result, bail};

use super::sample::Sample;
use super::{check_stages, gpu};
use crate::cli::{self, CompareArgs};
use crate::exec::{self, Cuda, Executor};
use crate::pipeline::Model;

/// Compares an edit's stages node by node and prints, for each, the farthest output of every kernel.
///
/// # Errors
/// No device, nodes that differ, or whatever stops an edit.
pub fn run(args: &CompareArgs, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let setup = cli::setup();
    let (engine, device, precision) = gpu("compare needs", args.device, &setup)?;
    let model = Model::open(&args.model)?;
    let edit = Sample::new(&model, &engine, precision, args.size, &args.prompt, 3, args.memory.max_vram)?;
    let program = edit.program()?;
    let names: Vec<&str> = program.plan.graph.stages.iter().map(|s| s.name).collect();
    check_stages(&args.stage, &names)?;
    let mut exec = Cuda::new(&program.plan, model.folder.clone(), &device, &setup)?;
    edit.write_inputs(&mut exec, &program)?;
    exec.begin(&names)?;
    let mut differing = Vec::new();
    for name in names {
        if !(args.stage.is_empty() || args.stage.iter().any(|stage| stage == name)) {
            exec.run(name, &mut |_| Ok(()))?;
            continue;
        }
        let report = exec::compare(&mut exec, name, args.go_on)?;
        print(&format!("{name}\n{report}"))?;
        differing.extend(report.differing);
        if !(args.go_on || differing.is_empty()) {
            break;
        }
    }
    match differing.first() {
        Some(first) => bail!("{} outputs differ; the first: {first}", differing.len()),
        None => Ok(()),
    }
}
