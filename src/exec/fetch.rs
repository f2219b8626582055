//! Weights on their way to the device: which pieces a run needs, in which order, and what fills them.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use half::{bf16, f16};

use crate::cuda::{Device, Event, PIECE, Piece, Staging, Stream, Uploads};
use crate::graph::{BodyId, Graph, Kind, StorageId};
use crate::ops::WeightOrder;
use crate::plan::{Arrival, Plan};
use crate::tensor::{Component, DType, Spec};
use crate::weights::{WeightSource, decode_f32};

/// A weight in the form in which a device has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct WeightKey {
    component: Component,
    name: String,
    dtype: DType,
    order: WeightOrder,
}

/// Which weight, in which form, each storage of a graph is.
pub(super) fn keys(graph: &Graph) -> Result<Vec<Option<WeightKey>>> {
    let orders = orders(graph)?;
    let key = |(storage, order): (&crate::graph::Storage, &Option<WeightOrder>)| match storage.kind {
        Kind::Weight(component) => Some(WeightKey {
            component,
            name: storage.name.clone(),
            dtype: storage.spec.dtype,
            order: order.unwrap_or(WeightOrder::AsStored),
        }),
        _ => None,
    };
    Ok(graph.storages.iter().zip(&orders).map(key).collect())
}

/// A run with the upload that feeds it.
pub(super) struct Feed {
    plan: Arc<Plan>,
    /// The segments that the run visits, in order.
    visits: Vec<usize>,
    /// Which visit is under way; none before the first.
    at: Option<usize>,
    upload: Uploads,
    /// For each storage, the visits before which it comes, with its pieces, until somebody has waited for them. They arrive
    /// in any order.
    pieces: HashMap<StorageId, VecDeque<(usize, Range<usize>)>>,
    /// The weights that lie in the region after the run, and where.
    pub(super) leaves: Vec<(WeightKey, usize)>,
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

impl Feed {
    /// Starts to fetch what a run of bodies lacks. `region`: address of the weights' region. `resident`: for each storage,
    /// whether it is a weight that is there; then, whether it will be after the run.
    pub(super) fn start(
        plan: &Arc<Plan>,
        bodies: &[BodyId],
        resident: &mut [bool],
        staging: &Arc<Staging>,
        region: u64,
        weights: &Arc<dyn WeightSource + Send + Sync>,
    ) -> Result<Feed> {
        let graph = &plan.graph;
        let visits = plan.weights.visits(bodies);
        let orders = orders(graph)?;
        let (mut pieces, mut origins) = (Vec::new(), Vec::new());
        let mut of_storage: HashMap<StorageId, VecDeque<_>> = HashMap::new();
        for Arrival { storage, visit, gate } in plan.weights.arrivals(graph, &visits, resident) {
            let first = pieces.len();
            let start = region + plan.weights.offsets[storage.0].context("a weight without a place")? as u64;
            for origin in origins_of(graph, storage, orders[storage.0])? {
                let size = origin.spec.dtype.bytes();
                let address = start + (origin.elements.start * size) as u64;
                pieces.push(Piece { address, bytes: origin.elements.len() * size, gate });
                origins.push(origin);
            }
            of_storage.entry(storage).or_default().push_back((visit, first..pieces.len()));
        }
        let weights = weights.clone();
        let fill = move |piece: usize, bytes: &mut [u8]| origins[piece].fill(&*weights, bytes);
        let upload = Uploads::start(staging, pieces, visits.len().max(1), Arc::new(fill))?;
        Ok(Feed { plan: plan.clone(), visits, at: None, upload, pieces: of_storage, leaves: vec![] })
    }

    pub(super) fn is_of(&self, plan: &Arc<Plan>) -> bool {
        Arc::ptr_eq(&self.plan, plan)
    }

    /// Says that a body is about to run: what ran before it on `stream` is what gates wait for. A body whose last turns are
    /// left out is passed over.
    pub(super) fn enter(&mut self, body: BodyId, device: &Arc<Device>, stream: &Stream) -> Result<()> {
        let segments = &self.plan.weights.segments;
        let next = self.at.map_or(0, |at| at + 1);
        let found = (next..self.visits.len()).find(|&visit| segments[self.visits[visit]].body == body);
        let again = self.at.is_some_and(|at| segments[self.visits[at]].body == body);
        let visit = match found {
            Some(visit) => visit,
            None if again => return Ok(()), // more turns than were announced, with what is there
            None => anyhow::bail!("the body {} is not among those announced that are left", self.plan.graph.bodies[body.0].name),
        };
        let event = Event::new(device, false)?;
        event.record(stream)?;
        let event = Arc::new(event);
        (next..=visit).for_each(|gate| self.upload.open(gate, Some(event.clone())));
        self.at = Some(visit);
        Ok(())
    }

    /// Lets a stream wait for a weight that the visit under way reads.
    pub(super) fn wait_for(&mut self, storage: StorageId, stream: &Stream) -> Result<()> {
        let at = self.at.unwrap_or(0);
        let Some(coming) = self.pieces.get_mut(&storage) else { return Ok(()) };
        while let Some((_, pieces)) = coming.front().filter(|(visit, _)| *visit <= at) {
            pieces.clone().try_for_each(|piece| self.upload.wait_for(piece, stream))?;
            coming.pop_front(); // not before: a weight that failed to come must not count as there
        }
        if coming.is_empty() {
            self.pieces.remove(&storage);
        }
        Ok(())
    }

    /// Whether all that was announced has been waited for.
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
