//! What walks a plan. `reference` computes on the CPU and is the oracle of every kernel; `cuda` runs the planned kernels on
//! a `gpu`, which outlives programs; `compare` holds one against the other.

mod compare;
mod cuda;
mod fetch;
mod gpu;
mod merge;
mod one_node;
mod reference;
mod values;

use anyhow::{Result, bail};

use crate::graph::{BodyId, Node, TensorId};
use crate::ops::{HostValues, Values};
use crate::plan::{Itinerary, Plan};

pub use compare::{Compared, Difference, Report, compare};
pub use cuda::{Copied, Cuda, Lanes, Span, check_resident, products};
pub use gpu::{Gpu, Made};
pub use one_node::{Form, HostWeights, OneNode, aliases};
pub use reference::Reference;

/// Called after each node, or each replay of a captured body, is done or under way, with what runs it; and, without a node,
/// again and again while the executor waits for the device or for a file (it must not be asked for anything then). An error
/// stops the run.
pub type Watch<'w> = dyn FnMut(Option<&Node>, &dyn Executor) -> Result<()> + 'w;

/// A watch that looks at nothing.
pub fn unwatched(_: Option<&Node>, _: &dyn Executor) -> Result<()> {
    Ok(())
}

/// A program with its memory: what can run a plan.
pub trait Executor {
    /// The plan that it runs.
    fn plan(&self) -> &Plan;

    /// Writes a whole input or any other tensor without gaps; floats are rounded to its type.
    ///
    /// # Errors
    /// Values of another kind or number than the tensor's.
    fn write(&mut self, id: TensorId, values: Values) -> Result<()>;

    /// The values of a tensor, dense, floats widened; waits for what computes them.
    ///
    /// # Errors
    /// A fault of what ran before.
    fn read(&self, id: TensorId) -> Result<HostValues>;

    /// The values of a float tensor, dense, widened.
    ///
    /// # Errors
    /// A tensor of indices or pixels, or a fault of what ran before.
    fn read_f32(&self, id: TensorId) -> Result<Vec<f32>> {
        match self.read(id)? {
            HostValues::F32(values) => Ok(values),
            _ => bail!("{} does not hold floats", self.plan().graph.storage_of(id).name),
        }
    }

    /// Announces what will run, so that weights can be fetched ahead: the plan's itinerary, or a part of it.
    ///
    /// # Errors
    /// An itinerary that the plan cannot be run along ([`Itinerary::check_run`]).
    fn begin(&mut self, itinerary: &Itinerary) -> Result<()>;

    /// Runs a body once.
    ///
    /// # Errors
    /// A body that was not announced, a node that cannot run, by name, or what `watch` returns.
    fn run(&mut self, body: BodyId, watch: &mut Watch) -> Result<()>;

    /// Waits for all that was asked.
    ///
    /// # Errors
    /// A fault of what ran, or what `watch` returns.
    fn finish(&mut self, watch: &mut Watch) -> Result<()>;

    /// Whether a body is done when `run` returns, so that reading a tensor costs nothing.
    fn waits(&self) -> bool;

    /// The CUDA executor, for what only it can do; none if it is another.
    fn as_cuda(&mut self) -> Option<&mut Cuda> {
        None
    }
}
