//! Weights on their way to the device: which pieces a run of stages needs, in which order, and what fills them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::cuda::{Device, Event, PIECE, Piece, Staging, Stream, Uploads};
use crate::graph::{Graph, Kind, StorageId};
use crate::plan::{Arrival, Plan};
use crate::weights::{WeightForm, WeightKey, WeightSource};

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
    key: WeightKey,
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
        let keys = weight_keys(graph)?;
        let (mut pieces, mut origins, mut of_storage) = (Vec::new(), Vec::new(), HashMap::new());
        for Arrival { storage, gate } in plan.weights.arrivals(graph, &stages, &mut resident.0) {
            let first = pieces.len();
            let start = region + plan.weights.offsets[storage.0].context("a weight without a place")? as u64;
            let key = keys[storage.0].as_ref().context("a weight that no node reads")?;
            for origin in origins_of(key, graph.storages[storage.0].spec.shape.elements()) {
                let size = key.form.dtype.bytes();
                let address = start + (origin.elements.start * size) as u64;
                pieces.push(Piece { address, bytes: origin.elements.len() * size, gate });
                origins.push(origin);
            }
            let known = of_storage.insert(storage, first..pieces.len());
            ensure!(known.is_none(), "{} would have to come twice", graph.storages[storage.0].name);
        }
        let weights = weights.clone();
        let fill =
            move |piece: usize, bytes: &mut [u8]| Ok(origins[piece].key.fill(&*weights, origins[piece].elements.start, bytes)?);
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

/// The form in which each weight's readers want it, by storage; none for what is no weight.
fn weight_keys(graph: &Graph) -> Result<Vec<Option<WeightKey>>> {
    let mut keys: Vec<Option<WeightKey>> = vec![None; graph.storages.len()];
    for node in &graph.nodes {
        for (input, &id) in node.inputs.iter().enumerate() {
            let number = graph.tensor(id).storage.0;
            let storage = &graph.storages[number];
            let Kind::Weight(component) = storage.kind else { continue };
            let form = WeightForm { dtype: storage.spec.dtype, order: node.op.weight_order(input) };
            let key = keys[number].get_or_insert_with(|| WeightKey { component, name: storage.name.as_str().into(), form });
            ensure!(key.form == form, "{} is used in two orders, at {}", storage.name, node.name);
        }
    }
    Ok(keys)
}

/// A weight of so many elements in pieces.
fn origins_of(key: &WeightKey, elements: usize) -> impl Iterator<Item = Origin> {
    let step = PIECE / key.form.dtype.bytes();
    (0..elements).step_by(step).map(move |start| Origin { key: key.clone(), elements: start..elements.min(start + step) })
}
