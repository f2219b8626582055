//! A stage's milliseconds on the device: replayed, node by node, and with nothing between its nodes.
//!
//! What is timed node by node follows an untimed run of the stage, which keeps the device busy while the host enqueues it:
//! small nodes take less time than their launches.

use anyhow::Result;

use super::Cuda;
use crate::cuda::Event;
use crate::exec::Executor;

impl Cuda<'_> {
    /// Runs a stage twice to warm up, then replays it `runs` times, and gives each run's milliseconds.
    ///
    /// # Errors
    /// As for [`Executor::run`].
    pub fn time_runs(&mut self, stage: &str, runs: usize) -> Result<Vec<f32>> {
        let number = self.enter(stage)?;
        self.run_nodes(number, &mut |_| Ok(()))?;
        self.replay(number)?;
        let mut marks = vec![Event::new(&self.device, true)?];
        marks[0].record(&self.stream)?;
        for _ in 0..runs {
            self.replay(number)?;
            let mark = Event::new(&self.device, true)?;
            mark.record(&self.stream)?;
            marks.push(mark);
        }
        self.finish()?;
        between(&marks)
    }

    /// Runs a stage twice, the second time node by node with an event between each two, and gives each node's milliseconds. Each
    /// is a range of NVTX.
    ///
    /// # Errors
    /// As for [`Executor::run`].
    pub fn time_nodes(&mut self, stage: &str) -> Result<Vec<f32>> {
        let nodes = self.plan.graph.stages[self.enter(stage)?].nodes.clone();
        nodes.clone().try_for_each(|at| self.run_node(at))?;
        let marks: Vec<Event> = (0..=nodes.len()).map(|_| Event::new(&self.device, true)).collect::<Result<_>>()?;
        marks[0].record(&self.stream)?;
        let _stage = self.nvtx.range(stage);
        for (at, mark) in nodes.zip(&marks[1..]) {
            let _node = self.nvtx.range(&self.plan.graph.nodes[at].name);
            self.enqueue(at)?;
            mark.record(&self.stream)?;
        }
        self.finish()?;
        between(&marks)
    }

    /// Runs a stage twice, the second time with an event before and after all of it, and gives that run's milliseconds.
    ///
    /// # Errors
    /// As for [`Executor::run`].
    pub fn time_uncaptured(&mut self, stage: &str) -> Result<f32> {
        let mut nodes = self.plan.graph.stages[self.enter(stage)?].nodes.clone();
        nodes.clone().try_for_each(|at| self.run_node(at))?;
        let marks = [Event::new(&self.device, true)?, Event::new(&self.device, true)?];
        marks[0].record(&self.stream)?;
        nodes.try_for_each(|at| self.enqueue(at))?;
        marks[1].record(&self.stream)?;
        self.finish()?;
        marks[1].milliseconds_since(&marks[0])
    }
}

/// Milliseconds between each two marks that follow each other; all have come.
fn between(marks: &[Event]) -> Result<Vec<f32>> {
    marks.windows(2).map(|pair| pair[1].milliseconds_since(&pair[0])).collect()
}
