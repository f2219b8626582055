//! What walks a plan. `reference` computes on the CPU and is the oracle of every kernel; `cuda` runs the planned kernels;
//! `compare` holds one against the other.

mod compare;
mod cuda;
mod fetch;
mod reference;
mod values;

use anyhow::{Result, bail};

use crate::graph::{Node, TensorId};
use crate::ops::{HostValues, Values};

pub use compare::{Compared, Difference, Report, compare};
pub use cuda::Cuda;
pub use reference::{Observer, Reference};

/// Called after each node, or each replay of a captured stage, is done or under way; an error stops the run.
pub type Watch<'w> = dyn FnMut(&Node) -> Result<()> + 'w;

/// The values of a float tensor, dense, widened.
///
/// # Errors
/// A tensor of indices or pixels, or a fault of what ran before.
pub fn read_f32(exec: &mut dyn Executor, id: TensorId) -> Result<Vec<f32>> {
    match exec.read(id)? {
        HostValues::F32(values) => Ok(values),
        _ => bail!("not a float tensor"),
    }
}

/// What can run a plan.
pub trait Executor {
    /// Writes a whole input or any other tensor without gaps; floats are rounded to its type.
    ///
    /// # Errors
    /// Values of another kind or number than the tensor's.
    fn write(&mut self, id: TensorId, values: Values) -> Result<()>;

    /// The values of a tensor, dense, floats widened; waits for what computes them.
    ///
    /// # Errors
    /// A fault of what ran before.
    fn read(&mut self, id: TensorId) -> Result<HostValues>;

    /// Announces which stages will run, in this order, so that their weights can be fetched ahead.
    ///
    /// # Errors
    /// An unknown stage.
    fn begin(&mut self, stages: &[&str]) -> Result<()>;

    /// Runs a stage once.
    ///
    /// # Errors
    /// A stage that was not announced, a node that cannot run, by name, or what `watch` returns.
    fn run(&mut self, stage: &str, watch: &mut Watch) -> Result<()>;

    /// Waits for all that was asked.
    ///
    /// # Errors
    /// A fault of what ran.
    fn finish(&mut self) -> Result<()>;

    /// Whether a stage is done when `run` returns, so that reading a tensor costs nothing.
    fn waits(&self) -> bool;
}
