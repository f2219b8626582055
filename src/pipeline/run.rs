//! One edit on a loaded program: its legs in order, with what the host checks in between.

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::preview::Preview;
use super::{Program, Progress};
use crate::exec::Executor;
use crate::graph::{BodyId, TensorId};
use crate::ops::HostValues;
use crate::plan::Itinerary;

/// What a run gives.
pub struct Ran {
    /// The picture at the working size, RGB by rows.
    pub pixels: Vec<u8>,
    /// Seconds of each stage, in order.
    pub seconds: Vec<(&'static str, f64)>,
    /// Seconds until the first step began.
    pub until_step: f64,
}

/// Called when a leg has ended, with its last body.
pub type Ended<'e> = dyn FnMut(BodyId, &dyn Executor) -> Result<()> + 'e;

/// Runs a program, whose inputs are there, along its itinerary.
///
/// # Errors
/// What `progress` or `ended` return, values that are not finite, or what the executor reports.
pub fn run_program(exec: &mut dyn Executor, program: &Program, progress: &mut dyn Progress, ended: &mut Ended) -> Result<Ran> {
    run_along(&program.plan.itinerary, exec, program, progress, ended)
}

/// Runs a part of a program, at whose end the picture is there; what the part starts from is there as well.
///
/// # Errors
/// As for [`run_program`].
pub(super) fn run_along(
    itinerary: &Itinerary,
    exec: &mut dyn Executor,
    program: &Program,
    progress: &mut dyn Progress,
    ended: &mut Ended,
) -> Result<Ran> {
    let (t, plan, begun) = (&program.tensors, &program.plan, Instant::now());
    let (mut seconds, mut until_step) = (Vec::new(), 0.0);
    exec.begin(itinerary)?;
    for leg in &itinerary.0 {
        // What is announced before the first stage counts as its own: all stages are all of the run.
        let (mut start, visits) = (if seconds.is_empty() { begun } else { Instant::now() }, leg.visits());
        for (turn, &body) in visits.iter().enumerate() {
            let run = visits[..turn].iter().filter(|&&visited| visited == body).count();
            if leg.bodies.len() > 1 && body == t.bodies.vae_decode {
                if turn + 1 < visits.len() {
                    continue; // the picture on the way has been shown
                }
                exec.finish(&mut |_, _| progress.node())?;
                seconds.push((plan.graph.bodies[t.bodies.step.0].name, start.elapsed().as_secs_f64()));
                start = Instant::now();
            }
            let preview = Preview::begin(exec, program, &visits, turn)?;
            progress.stage(plan.graph.bodies[body.0].name, run, leg.runs_of(body))?;
            if body == t.bodies.step && turn == 0 {
                until_step = begun.elapsed().as_secs_f64();
            }
            exec.run(body, &mut |_, _| progress.node())?;
            if body == t.bodies.step && exec.waits() {
                check_fault(exec, t.denoised.fault, leg.runs_of(body))?;
            }
            if let Some(preview) = preview {
                preview.show(exec, program, progress)?;
            }
        }
        exec.finish(&mut |_, _| progress.node())?;
        let Some(&last) = visits.last() else { continue };
        if visits.contains(&t.bodies.step) {
            check_fault(exec, t.denoised.fault, leg.runs_of(t.bodies.step))?;
        }
        check_finite(exec, program, last)?;
        seconds.push((plan.graph.bodies[last.0].name, start.elapsed().as_secs_f64()));
        ended(last, exec)?;
    }
    let faults = index(exec, t.pixel_faults)?;
    ensure!(faults == 0, "{faults} values of the picture are not finite after the stage vae_decode; nothing was written");
    match exec.read(t.pixels)? {
        HostValues::U8(pixels) => Ok(Ran { pixels, seconds, until_step }),
        _ => bail!("the pixels are not bytes"),
    }
}

/// Refuses what the encoders leave if a value is not finite: the steps would spread it over the whole picture.
fn check_finite(exec: &dyn Executor, program: &Program, body: BodyId) -> Result<()> {
    let t = &program.tensors;
    let faults = match body {
        _ if Some(body) == t.bodies.vae_encode => t.reference_faults,
        _ if body == t.bodies.text => Some(t.embedding_faults),
        _ => None,
    };
    let Some(faults) = faults else { return Ok(()) };
    let bad = index(exec, faults)?;
    let stage = program.plan.graph.bodies[body.0].name;
    ensure!(bad == 0, "{bad} values are not finite after the stage {stage}; are its weights damaged? Nothing was written");
    Ok(())
}

fn check_fault(exec: &dyn Executor, fault: TensorId, steps: usize) -> Result<()> {
    let step = index(exec, fault)?;
    ensure!(step == 0, "the latents are not finite after step {step} of {steps} (stage step); nothing was written");
    Ok(())
}

fn index(exec: &dyn Executor, id: TensorId) -> Result<i32> {
    match exec.read(id)? {
        HostValues::I32(v) => Ok(v[0]),
        _ => bail!("{} does not hold indices", exec.plan().graph.storage_of(id).name),
    }
}
