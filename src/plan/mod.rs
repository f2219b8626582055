//! From a recorded graph to everything that is decided before it runs.
//!
//! [`Plan::new`] is a pure function: precision pass, verification, kernel choice, arena offsets from lifetimes, bytes by
//! body; so is [`Plan::fit`], which chooses the weights' residency. They touch no memory and no device; what cannot run is
//! refused here, with reasons.

mod integers;
mod itinerary;
mod lifetime;
mod memory;
mod pace;
mod precision;
mod print;
mod residency;
mod stream;

use anyhow::{Result, bail};

use crate::graph::{Body, BodyId, Graph, Kind, Node, Storage, StorageId};
use crate::ops::{Arch, Kernel, View};

pub use itinerary::{Itinerary, Leg, Turns};
pub use lifetime::{ALIGNMENT, Lifetime, assign, lifetimes};
pub use memory::{BodyMemory, Budget, CONTEXT_BYTES, KERNEL_BYTES, Passage};
pub use pace::{LINK_GB_PER_S, Pace};
pub use precision::Precision;
pub use print::bytes as format_bytes;
pub use residency::{Arrival, Policy, Residency, Segment};
pub use stream::Visit;

/// What will run the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The reference arithmetic.
    Cpu,
    /// CUDA kernels for this architecture.
    Cuda(Arch),
}

/// A body's demands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyPlan {
    /// Name of the body.
    pub name: &'static str,
    /// Number of nodes.
    pub nodes: usize,
    /// How often it runs, at most.
    pub runs: usize,
    /// Bytes of the weights that it reads.
    pub weight_bytes: usize,
    /// Most bytes of the arena that are live at one of its nodes.
    pub live_bytes: usize,
    /// Floating-point operations of all its runs.
    pub flops: u64,
}

/// A graph with all decisions made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The graph after the precision pass.
    pub graph: Graph,
    /// What runs, in which order, how often.
    pub itinerary: Itinerary,
    /// What will run it.
    pub target: Target,
    /// Element type of activations.
    pub precision: Precision,
    /// Byte offset in the arena of each storage; none for weights.
    pub offsets: Vec<Option<usize>>,
    /// When each storage is live, in node numbers; none for weights.
    pub lifetimes: Vec<Option<Lifetime>>,
    /// Size of the arena in bytes.
    pub arena_bytes: usize,
    /// Where in the arena the kernels of each body find working memory.
    pub scratch_offsets: Vec<usize>,
    /// Device memory of the process's context: an H100's, unless the place has measured its own.
    pub context_bytes: usize,
    /// Where weights lie on a device.
    pub weights: Residency,
    /// Demands by body.
    pub bodies: Vec<BodyPlan>,
    /// The kernel of each node; empty for the CPU.
    pub kernels: Vec<Kernel>,
}

impl Plan {
    /// Plans a graph for an itinerary, with every weight resident; [`Plan::fit`] may have some stream.
    ///
    /// # Errors
    /// A graph or an itinerary that breaks a rule, a precision that the target has not, or nodes that no kernel of it takes: the first ten
    /// with their reasons.
    pub fn new(mut graph: Graph, itinerary: Itinerary, precision: Precision, target: Target) -> Result<Plan> {
        precision.apply(&mut graph);
        if let Target::Cuda(arch) = target {
            precision.check(arch)?;
            integers::apply(&mut graph)?;
        }
        graph.verify()?;
        itinerary.check(&graph)?;
        let kernels = match target {
            Target::Cpu => vec![],
            Target::Cuda(arch) => select(&graph, arch)?,
        };
        let lifetimes = lifetimes(&graph, &itinerary);
        let mut blocks: Vec<_> =
            graph.storages.iter().zip(&lifetimes).map(|(s, l)| l.clone().map(|l| (s.spec.bytes(), l))).collect();
        // Nodes run one after another, so those of a body share one place for working memory.
        blocks.extend(graph.bodies.iter().map(|body| scratch(body, &kernels)));
        let bodies: Vec<_> = graph.bodies.iter().map(|body| body.nodes.clone()).collect();
        let (mut offsets, arena_bytes) = assign(&blocks, &bodies);
        let scratch_offsets = offsets.split_off(graph.storages.len()).into_iter().map(Option::unwrap_or_default).collect();
        let body = |(n, body)| body_plan(&graph, body, itinerary.runs_of(BodyId(n)), &lifetimes);
        let bodies = graph.bodies.iter().enumerate().map(body).collect();
        let weights = Residency::resident(&graph);
        Ok(Plan {
            graph,
            itinerary,
            target,
            precision,
            offsets,
            lifetimes,
            arena_bytes,
            scratch_offsets,
            context_bytes: CONTEXT_BYTES,
            weights,
            bodies,
            kernels,
        })
    }

    /// Bytes of all weights that nodes read, each counted once.
    pub fn weight_bytes(&self) -> usize {
        let placed = |s: &&Storage| matches!(s.kind, Kind::Weight(_));
        self.graph.storages.iter().filter(placed).map(|s| s.spec.bytes()).sum()
    }
}

/// The working memory of a body, and when it is in use.
fn scratch(body: &Body, kernels: &[Kernel]) -> Option<(usize, Lifetime)> {
    let bytes = kernels.get(body.nodes.clone())?.iter().map(|kernel| kernel.scratch).max()?;
    (bytes > 0).then(|| (bytes, body.nodes.start..=body.nodes.end - 1))
}

fn select(graph: &Graph, arch: Arch) -> Result<Vec<Kernel>> {
    let layout = |&id: &_| {
        let t = graph.tensor(id);
        View { spec: t.spec.clone(), row_stride: t.row_stride, offset: t.offset }
    };
    let choose = |node: &Node| {
        let (inputs, outputs): (Vec<_>, Vec<_>) =
            (node.inputs.iter().map(layout).collect(), node.outputs.iter().map(layout).collect());
        node.op.select(arch, &inputs, &outputs).map_err(|e| format!("{} ({}): {}", node.name, node.op.kind(), e.reason))
    };
    let (kernels, refused): (Vec<_>, Vec<_>) = graph.nodes.iter().map(choose).partition(|k| k.is_ok());
    if !refused.is_empty() {
        let shown: Vec<String> = refused.iter().take(10).filter_map(|r| r.clone().err()).collect();
        bail!("no sm_{} kernel takes {} of {} nodes:\n  {}", arch.0, refused.len(), graph.nodes.len(), shown.join("\n  "));
    }
    Ok(kernels.into_iter().flatten().collect())
}

fn body_plan(graph: &Graph, body: &Body, runs: usize, lifetimes: &[Option<Lifetime>]) -> BodyPlan {
    let nodes = &graph.nodes[body.nodes.clone()];
    let mut weights: Vec<StorageId> = nodes.iter().flat_map(|n| &n.inputs).map(|&t| graph.tensor(t).storage).collect();
    weights.retain(|&s| matches!(graph.storages[s.0].kind, Kind::Weight(_)));
    weights.sort_unstable();
    weights.dedup();
    let live_at = |at: usize| -> usize {
        let live = graph.storages.iter().zip(lifetimes).filter(|(_, l)| l.as_ref().is_some_and(|l| l.contains(&at)));
        live.map(|(s, _)| s.spec.bytes().next_multiple_of(ALIGNMENT)).sum()
    };
    let flops = |node: &Node| {
        let (inputs, outputs) = graph.specs(node);
        node.op.cost(&inputs, &outputs).flops
    };
    BodyPlan {
        name: body.name,
        nodes: nodes.len(),
        runs,
        weight_bytes: weights.iter().map(|s| graph.storages[s.0].spec.bytes()).sum(),
        live_bytes: body.nodes.clone().map(live_at).max().unwrap_or(0),
        flops: nodes.iter().map(flops).sum::<u64>() * runs as u64,
    }
}
