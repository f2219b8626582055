//! A body's milliseconds on the device: replayed, node by node, and with nothing between its nodes.
//!
//! What is timed node by node follows an untimed run of the body, which keeps the device busy while the host enqueues it:
//! small nodes take less time than their launches.

use anyhow::Result;

use super::Cuda;
use crate::cuda::Event;
use crate::error::ResourceError;
use crate::exec::{Executor, unwatched};
use crate::graph::BodyId;
use crate::plan::{Plan, format_bytes};

/// Refuses a plan whose weights stream: its stages cannot run again and again.
///
/// # Errors
/// A [`ResourceError`] with the memory that it would take.
pub fn check_resident(plan: &Plan) -> Result<()> {
    if plan.weights.keeps_all() {
        return Ok(());
    }
    let all = format_bytes(plan.clone().resident().peak_bytes());
    Err(ResourceError(format!(
        "to time a stage again and again, all weights must be on the GPU at once, which takes {all} of its memory, and that does not \
         fit; choose a smaller --size, or measure with weights that stream: profile, and bench with --max-vram"
    ))
    .into())
}

impl Cuda {
    /// Runs a body twice to warm up, then replays it `runs` times, and gives each run's milliseconds.
    ///
    /// # Errors
    /// As for [`check_resident`] and [`Executor::run`].
    pub fn time_runs(&mut self, body: BodyId, runs: usize) -> Result<Vec<f32>> {
        check_resident(&self.plan)?;
        self.run_nodes(body, &mut unwatched)?;
        self.replay(body, &mut unwatched)?;
        let mut marks = vec![self.mark()?];
        for _ in 0..runs {
            self.replay(body, &mut unwatched)?;
            let mark = self.mark()?;
            marks.push(mark);
        }
        self.finish(&mut unwatched)?;
        between(&marks)
    }

    /// Runs a body twice, the second time node by node with an event between each two, and gives each node's milliseconds. Each
    /// is a range of NVTX.
    ///
    /// # Errors
    /// As for [`check_resident`] and [`Executor::run`].
    pub fn time_nodes(&mut self, body: BodyId) -> Result<Vec<f32>> {
        check_resident(&self.plan)?;
        let (plan, gpu) = (self.shared_plan(), self.gpu.clone());
        let nodes = plan.graph.nodes_of(body);
        nodes.clone().try_for_each(|at| self.run_node(at))?;
        let marks: Vec<Event> = (0..=nodes.len()).map(|_| Event::new(&gpu.device, true)).collect::<Result<_>>()?;
        marks[0].record(&gpu.stream)?;
        let _body = gpu.nvtx.range(plan.graph.bodies[body.0].name);
        for (at, mark) in nodes.zip(&marks[1..]) {
            let _node = gpu.nvtx.range(&plan.graph.nodes[at].name);
            self.enqueue(at)?;
            mark.record(&gpu.stream)?;
        }
        self.finish(&mut unwatched)?;
        between(&marks)
    }

    /// Runs a body twice, the second time with an event before and after all of it, and gives that run's milliseconds.
    ///
    /// # Errors
    /// As for [`check_resident`] and [`Executor::run`].
    pub fn time_uncaptured(&mut self, body: BodyId) -> Result<f32> {
        check_resident(&self.plan)?;
        let mut nodes = self.plan.graph.nodes_of(body);
        nodes.clone().try_for_each(|at| self.run_node(at))?;
        let start = self.mark()?;
        nodes.try_for_each(|at| self.enqueue(at))?;
        let end = self.mark()?;
        self.finish(&mut unwatched)?;
        end.milliseconds_since(&start)
    }

    /// A timed event, recorded.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn mark(&self) -> Result<Event> {
        let mark = Event::new(&self.gpu.device, true)?;
        mark.record(&self.gpu.stream)?;
        Ok(mark)
    }
}

/// Milliseconds between each two marks that follow each other; all have come.
fn between(marks: &[Event]) -> Result<Vec<f32>> {
    marks.windows(2).map(|pair| pair[1].milliseconds_since(&pair[0])).collect()
}
