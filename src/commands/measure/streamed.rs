//! `profile` where weights stream: an edit as it runs, with marks on the stream that computes and on those that copy.
//!
//! A stage that runs once cannot be repeated, since what it starts from is gone; so the whole edit runs again. Two runs warm up: in
//! the second one weights that stream get their places in the host's memory. Then one run tells how long turns take, and one what
//! happens in them.

use anyhow::Result;

use super::lanes::{Planned, Stage, Streamed};
use super::roofline::median;
use super::{check_stages, cuda};
use crate::cuda::Event;
use crate::exec::{Executor, Lanes, Span};
use crate::graph::BodyId;
use crate::ops::Values;
use crate::pipeline::{Engine, Loaded, Material, Progress, Purpose};
use crate::plan::Itinerary;

/// Runs before those that are timed.
const BEFORE: usize = 2;
/// Turns of the step after which its copies are as far ahead as they come.
const WARM: usize = 2;
/// Most turns of the step that are timed.
const TURNS: usize = 3;

/// Profiles stages of an edit whose weights stream, of this size and so many steps.
///
/// # Errors
/// A stage that there is not, or whatever stops an edit.
pub(super) fn run(
    (stages, size, steps): (&[String], (usize, usize), usize),
    engine: &mut Engine,
    edit: &Material,
    progress: &mut dyn Progress,
) -> Result<Streamed> {
    let plan = engine.ready(edit, Purpose::Edit)?.program.plan.clone();
    check_stages(stages, &plan.graph)?;
    let wanted = |body: BodyId| stages.iter().any(|stage| stage == plan.graph.bodies[body.0].name);
    let bodies: Vec<BodyId> = (0..plan.graph.bodies.len()).map(BodyId).collect();
    let last = bodies.iter().rposition(|&body| wanted(body)).map_or(0, |last| last + 1);
    let bodies = &bodies[..last];
    let turns = WARM + TURNS.min(steps.saturating_sub(WARM)).max(1);
    for _ in 0..BEFORE {
        travel(engine.ready(edit, Purpose::Edit)?, bodies, WARM, false, progress)?;
    }
    let (times, _) = travel(engine.ready(edit, Purpose::Edit)?, bodies, turns, false, progress)?;
    let (_, lanes) = travel(engine.ready(edit, Purpose::Edit)?, bodies, turns, true, progress)?;
    let link = engine.link_gb_per_s()?;
    let stage = |&body: &BodyId| {
        let run = median_run(steady(&lanes.runs_of(&plan.graph.nodes_of(body))));
        let turn_ms = median(steady(&times[body.0]).to_vec());
        Stage::of(&plan, body, run, &lanes.copies, turn_ms, Planned::of(&plan, body, link))
    };
    let rows = edit.spec().step_rows().total();
    Ok(Streamed {
        device: engine.place.measured_name(),
        size: [size.0, size.1],
        rows,
        region_bytes: plan.device_bytes(),
        kept_bytes: plan.memory().iter().map(|memory| memory.kept).sum(),
        stored_bytes: engine.stored_bytes(),
        link_gb_per_s: link,
        stages: bodies.iter().filter(|&&body| wanted(body)).map(stage).collect(),
    })
}

/// Runs bodies once, but the step in so many turns, and in one more: copies run ahead of those that are timed. Gives the milliseconds
/// of each body's turns, and what happened in them, if that is wanted.
fn travel(
    loaded: &mut Loaded,
    bodies: &[BodyId],
    turns: usize,
    timed: bool,
    progress: &mut dyn Progress,
) -> Result<(Vec<Vec<f32>>, Lanes)> {
    let (program, exec) = cuda(loaded)?;
    let step = program.tensors.bodies.step;
    let runs = |body: BodyId| if body == step { turns + 1 } else { 1 };
    let journey = bodies.iter().fold(Itinerary::default(), |journey, &body| journey.then_times(body, runs(body)));
    if timed { exec.begin_timed(&journey) } else { exec.begin(&journey) }?;
    let mut marks: Vec<Vec<[Event; 2]>> = Vec::new();
    for &body in bodies {
        let mut own = Vec::new();
        for turn in 0..runs(body) {
            if turn == turns {
                exec.write(program.tensors.denoised.counter, Values::I32(&[0]))?; // it stays within its schedule
            }
            let begins = exec.mark()?;
            exec.run(body, &mut |_, _| progress.node())?;
            own.push([begins, exec.mark()?]);
        }
        marks.push(own);
    }
    exec.finish(&mut |_, _| progress.node())?;
    let ms = |[begins, ends]: &[Event; 2]| ends.milliseconds_since(begins);
    let mut times: Vec<Vec<f32>> = marks.iter().map(|own| own.iter().map(ms).collect()).collect::<Result<_>>()?;
    times.iter_mut().filter(|own| own.len() > 1).for_each(|own| own.truncate(turns));
    Ok((times, if timed { exec.lanes()? } else { Lanes::default() }))
}

/// Of the turns of a stage those that are like all that follow; of a stage that runs once, the one.
fn steady<T>(turns: &[T]) -> &[T] {
    turns.get(WARM..).filter(|steady| !steady.is_empty()).unwrap_or(turns)
}

/// The run that takes longer than half of them.
fn median_run<'l>(runs: &[&'l [Span]]) -> &'l [Span] {
    let mut runs = runs.to_vec();
    let ms = |run: &[Span]| run.last().map_or(0.0, |last| last.ends) - run.first().map_or(0.0, |first| first.waits);
    runs.sort_by(|a, b| ms(a).total_cmp(&ms(b)));
    runs[runs.len() / 2]
}
