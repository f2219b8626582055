//! Weights on their way to the device: which pieces a run of stages needs, in which order, and what fills them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use half::{bf16, f16};

use crate::cuda::{Device, Event, PIECE, Piece, Staging, Stream, Uploads};
use crate::graph::{Graph, Kind, StorageId};
use crate::ops::WeightOrder;
use crate::plan::{Arrival, Plan};
use crate::tensor::{Component, DType, Spec};
use crate::weights::{WeightSource, decode_f32};

/// Which weights are whole in the device's region.
pub(super) struct Resident(Vec<bool>);

impl Resident {
    pub(super) fn none(plan: &Plan) -> Resident {
        Resident(vec![false; plan.graph.storages.len()])
    }
}

/// A run of stages with the upload that feeds it.
pub(super) struct Pass {
    /// The stages in order, as numbers in the graph.
    stages: Vec<usize>,
    /// Which of them is under way; none before the first.
    at: Option<usize>,
    uploads: Uploads,
    /// The pieces of each storage that is on its way, until somebody has waited for them. They arrive in any order.
    pieces: HashMap<StorageId, Range<usize>>,
}

/// Where a piece's bytes come from.
struct Origin {
    component: Component,
    name: String,
    /// As the graph uses it.
    spec: Spec,
    order: WeightOrder,
    /// Elements of the piece, in the order in which they lie on the device.
    elements: Range<usize>,
}

impl Pass {
    /// Starts to fetch what the stages lack. `region`: address of the weights' region.
    pub(super) fn start(
        plan: &Plan,
        stages: &[&str],
        resident: &mut Resident,
        staging: &Arc<Staging>,
        region: u64,
        weights: &Arc<dyn WeightSource + Send + Sync>,
    ) -> Result<Pass> {
        let graph = &plan.graph;
        let number = |name: &&str| graph.stages.iter().position(|s| s.name == *name).with_context(|| format!("no stage {name}"));
        let stages: Vec<usize> = stages.iter().map(number).collect::<Result<_>>()?;
        let orders = orders(graph)?;
        let (mut pieces, mut origins, mut of_storage) = (Vec::new(), Vec::new(), HashMap::new());
        for Arrival { storage, gate } in plan.weights.arrivals(graph, &stages, &mut resident.0) {
            let first = pieces.len();
            let start = region + plan.weights.offsets[storage.0].context("a weight without a place")? as u64;
            for origin in origins_of(graph, storage, orders[storage.0])? {
                let size = origin.spec.dtype.bytes();
                let address = start + (origin.elements.start * size) as u64;
                pieces.push(Piece { address, bytes: origin.elements.len() * size, gate });
                origins.push(origin);
            }
            let known = of_storage.insert(storage, first..pieces.len());
            ensure!(known.is_none(), "{} would have to come twice", graph.storages[storage.0].name);
        }
        let weights = weights.clone();
        let fill = move |piece: usize, bytes: &mut [u8]| origins[piece].fill(&*weights, bytes);
        let uploads = Uploads::start(staging, pieces, stages.len().max(1), Arc::new(fill))?;
        Ok(Pass { stages, at: None, uploads, pieces: of_storage })
    }

    /// Says that a stage is about to run: what ran before it on `stream` is what its gate waits for.
    pub(super) fn enter(&mut self, stage: usize, device: &Arc<Device>, stream: &Stream) -> Result<()> {
        if self.at.is_some_and(|at| self.stages[at] == stage) {
            return Ok(());
        }
        let next = self.at.map_or(0, |at| at + 1);
        ensure!(self.stages.get(next) == Some(&stage), "the stage is not the next of those announced");
        let event = Event::new(device, false)?;
        event.record(stream)?;
        self.uploads.open(next, Some(Arc::new(event)));
        self.at = Some(next);
        Ok(())
    }

    /// Lets a stream wait for a weight.
    pub(super) fn wait_for(&mut self, storage: StorageId, stream: &Stream) -> Result<()> {
        let mut pieces = self.pieces.get(&storage).cloned().unwrap_or(0..0);
        pieces.try_for_each(|piece| self.uploads.wait_for(piece, stream))?;
        self.pieces.remove(&storage); // not before: a weight that failed to come must not count as resident
        Ok(())
    }

    /// Whether all that was announced has been waited for, so that the weights marked as resident are.
    pub(super) fn is_complete(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// The order in which each weight's elements lie on the device; none for what no node reads.
fn orders(graph: &Graph) -> Result<Vec<Option<WeightOrder>>> {
    let mut orders = vec![None; graph.storages.len()];
    for node in &graph.nodes {
        for (input, &id) in node.inputs.iter().enumerate() {
            let storage = graph.tensor(id).storage;
            if matches!(graph.storages[storage.0].kind, Kind::Weight(_)) {
                let wanted = node.op.weight_order(input);
                let order = *orders[storage.0].get_or_insert(wanted);
                ensure!(order == wanted, "{} is used in two orders, at {}", graph.storages[storage.0].name, node.name);
            }
        }
    }
    Ok(orders)
}

fn origins_of(graph: &Graph, storage: StorageId, order: Option<WeightOrder>) -> Result<Vec<Origin>> {
    let found = &graph.storages[storage.0];
    let Kind::Weight(component) = found.kind else { anyhow::bail!("{} is no weight", found.name) };
    let (elements, step) = (found.spec.shape.elements(), PIECE / found.spec.dtype.bytes());
    let origin = |start: usize| Origin {
        component,
        name: found.name.clone(),
        spec: found.spec.clone(),
        order: order.unwrap_or(WeightOrder::AsStored),
        elements: start..elements.min(start + step),
    };
    Ok((0..elements).step_by(step).map(origin).collect())
}

impl Origin {
    fn fill(&self, weights: &dyn WeightSource, bytes: &mut [u8]) -> Result<()> {
        let (stored, _) = weights
            .weight(self.component, &self.name)
            .with_context(|| format!("the {} weights lack {}", self.component, self.name))?;
        let size = stored.dtype.bytes();
        let read = |elements: Range<usize>| {
            let mut raw = vec![0; elements.len() * size];
            weights.read_at(self.component, &self.name, elements.start * size, &mut raw)?;
            let mut values = vec![0.0; elements.len()];
            decode_f32(stored.dtype, &raw, &mut values);
            anyhow::Ok(values)
        };
        match self.order {
            WeightOrder::AsStored if stored.dtype == self.spec.dtype => {
                return Ok(weights.read_at(self.component, &self.name, self.elements.start * size, bytes)?);
            }
            WeightOrder::AsStored => encode(self.spec.dtype, &read(self.elements.clone())?, bytes),
            WeightOrder::ChannelsLast => {
                let values = read(0..self.spec.shape.elements())?;
                let [_, c, k, _] = self.spec.shape.0[..] else { anyhow::bail!("{} is no convolution", self.name) };
                let at = |i: usize| values[(i / (k * k * c) * c + i % c) * k * k + i / c % (k * k)];
                encode(self.spec.dtype, &self.elements.clone().map(at).collect::<Vec<_>>(), bytes);
            }
        }
        Ok(())
    }
}

/// Values as little-endian elements.
fn encode(dtype: DType, values: &[f32], bytes: &mut [u8]) {
    fn each<const N: usize>(values: &[f32], bytes: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
        bytes.chunks_exact_mut(N).zip(values).for_each(|(to, &from)| to.copy_from_slice(&convert(from)));
    }
    match dtype {
        DType::F32 => each(values, bytes, f32::to_le_bytes),
        DType::BF16 => each(values, bytes, |v| bf16::from_f32(v).to_le_bytes()),
        DType::F16 => each(values, bytes, |v| f16::from_f32(v).to_le_bytes()),
        other => unreachable!("no weight is used as {other}"),
    }
}
