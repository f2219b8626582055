//! Where each weight lies on the device, and while which stages.
//!
//! Weights that come and leave together are one block. Blocks share a region as storages share the arena: the policy says
//! which of them are there together, so the less are, the smaller the region. A weight is written as soon as no stage that
//! still runs reads what lies in its place: [`Residency::arrivals`] is the only word on when that is.
//!
//! Below [`Policy::Phased`] a stage would have to run with a part of its weights: streaming, which is not there yet.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use super::lifetime::{ALIGNMENT, assign};
use crate::graph::{Graph, Kind, StorageId};

/// Which weights are on the device together; in order, the fastest and largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// All: nothing leaves, uploads wait for no stage, and a later run finds its weights there.
    Resident,
    /// A stage's and the next one's, which come while it runs.
    Overlapped,
    /// One stage's: the next one's come when it has ended.
    Phased,
}

impl Policy {
    /// Every policy, in order.
    pub const ALL: [Policy; 3] = [Policy::Resident, Policy::Overlapped, Policy::Phased];

    /// The stages during which a weight's place is its own. `readers`: first and last stage that reads it; `stages`: how
    /// many there are.
    fn held(self, readers: &RangeInclusive<usize>, stages: usize) -> RangeInclusive<usize> {
        match self {
            Policy::Resident => 0..=stages.saturating_sub(1),
            Policy::Overlapped => readers.start().saturating_sub(1)..=*readers.end(),
            Policy::Phased => readers.clone(),
        }
    }

    /// What it means, in a line.
    pub fn meaning(self) -> &'static str {
        match self {
            Policy::Resident => "every weight stays, uploads run ahead",
            Policy::Overlapped => "a stage's weights come while the one before runs",
            Policy::Phased => "a stage's weights come when the one before has ended",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Policy::Resident => "resident",
            Policy::Overlapped => "overlapped",
            Policy::Phased => "phased",
        })
    }
}

/// The places of all weights.
#[derive(Clone, Debug)]
pub struct Residency {
    /// Which are there together.
    pub policy: Policy,
    /// Byte offset in the region of each storage; none for what is no weight.
    pub offsets: Vec<Option<usize>>,
    /// First and last stage that reads each storage; none for what is no weight.
    pub readers: Vec<Option<RangeInclusive<usize>>>,
    /// Size of the region in bytes.
    pub bytes: usize,
}

/// A weight that a run of stages has to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The weight.
    pub storage: StorageId,
    /// How many of the run's stages must have ended before its place may be written to.
    pub gate: usize,
}

impl Residency {
    /// Places the weights of a graph.
    pub fn new(graph: &Graph, policy: Policy) -> Residency {
        let mut readers: Vec<Option<RangeInclusive<usize>>> = vec![None; graph.storages.len()];
        let mut order = Vec::new(); // storages by first use
        for stage in 0..graph.stages.len() {
            for StorageId(storage) in weights_of(graph, stage) {
                match &readers[storage] {
                    Some(known) => readers[storage] = Some(*known.start()..=stage),
                    None => {
                        readers[storage] = Some(stage..=stage);
                        order.push(storage);
                    }
                }
            }
        }
        // Offsets within each block, then the blocks' own.
        let mut sizes: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let mut within = vec![None; graph.storages.len()];
        for &storage in &order {
            let block = readers[storage].as_ref().map(|r| (*r.start(), *r.end())).expect("readers were just found");
            let size = sizes.entry(block).or_default();
            within[storage] = Some((block, *size));
            *size += graph.storages[storage].spec.bytes().next_multiple_of(ALIGNMENT);
        }
        let held =
            |(&(first, last), &size): (&(usize, usize), &usize)| Some((size, policy.held(&(first..=last), graph.stages.len())));
        let (starts, bytes) = assign(&sizes.iter().map(held).collect::<Vec<_>>());
        let starts: BTreeMap<_, _> = sizes.keys().zip(starts).collect();
        let place = |within: Option<((usize, usize), usize)>| {
            within.and_then(|(block, offset)| starts[&block].map(|start| start + offset))
        };
        Residency { policy, offsets: within.into_iter().map(place).collect(), readers, bytes }
    }

    /// Where a weight lies; none for what is no weight.
    pub fn place(&self, graph: &Graph, storage: StorageId) -> Option<Range<usize>> {
        let start = self.offsets[storage.0]?;
        Some(start..start + graph.storages[storage.0].spec.bytes())
    }

    /// What a run of `stages` (numbers in the graph) has to fetch, in the order of first use, and from when on.
    /// `resident`: for each storage, whether it is a weight that is there before the run; then, whether it is there after.
    pub fn arrivals(&self, graph: &Graph, stages: &[usize], resident: &mut [bool]) -> Vec<Arrival> {
        let mut placed: Vec<(StorageId, Range<usize>)> =
            (0..self.offsets.len()).filter_map(|i| Some((StorageId(i), self.place(graph, StorageId(i))?))).collect();
        placed.retain(|(_, place)| !place.is_empty());
        let mut ended: Vec<usize> = vec![0; self.offsets.len()]; // stages of the run up to the last so far that reads it
        let mut arrivals = Vec::new();
        for (at, &stage) in stages.iter().enumerate() {
            let weights = weights_of(graph, stage);
            for &storage in &weights {
                if std::mem::replace(&mut resident[storage.0], true) {
                    continue;
                }
                let mut gate = 0;
                let own = self.place(graph, storage).unwrap_or_default();
                for (other, _) in placed.iter().filter(|(_, place)| place.start < own.end && own.start < place.end) {
                    if *other != storage {
                        resident[other.0] = false;
                        gate = gate.max(ended[other.0]);
                    }
                }
                arrivals.push(Arrival { storage, gate });
            }
            weights.iter().for_each(|storage| ended[storage.0] = at + 1);
        }
        arrivals
    }
}

/// The weights a stage reads, in the order of first use.
fn weights_of(graph: &Graph, stage: usize) -> Vec<StorageId> {
    let nodes = &graph.nodes[graph.stages[stage].nodes.clone()];
    let mut seen = vec![false; graph.storages.len()];
    let storages = nodes.iter().flat_map(|n| &n.inputs).map(|&id| graph.tensor(id).storage);
    storages.filter(|s| matches!(graph.storages[s.0].kind, Kind::Weight(_)) && !std::mem::replace(&mut seen[s.0], true)).collect()
}
