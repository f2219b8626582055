//! Where each weight lies on the device, and while which segments run.
//!
//! A *segment* is a run of nodes whose weights come and leave together; today every body is one. Weights that come and leave
//! together are one block. Blocks share a region as storages share the arena: the policy says how many segments ahead of its
//! first reader a block may come, so the fewer they are, the smaller the region. A weight is written as soon as no segment
//! that still runs reads what lies in its place: [`Residency::arrivals`] is the only word on when that is.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use super::lifetime::{ALIGNMENT, assign};
use crate::graph::{BodyId, Graph, Kind, StorageId};

/// A run of nodes whose weights come and leave together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The body that the nodes belong to.
    pub body: BodyId,
    /// The nodes.
    pub nodes: Range<usize>,
}

/// Cuts a graph into segments: one a body.
pub fn segments(graph: &Graph) -> Vec<Segment> {
    graph.bodies.iter().enumerate().map(|(n, body)| Segment { body: BodyId(n), nodes: body.nodes.clone() }).collect()
}

/// How many segments before the one that reads them weights may come. The more, the faster and the larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Policy {
    /// Segments ahead.
    pub ahead: usize,
}

impl Policy {
    /// All: nothing leaves, uploads wait for no segment, and a later run finds its weights there.
    pub const RESIDENT: Policy = Policy { ahead: usize::MAX };
    /// A stage's weights come while the one before it runs.
    pub const OVERLAPPED: Policy = Policy { ahead: 1 };
    /// A stage's weights come when the one before it has ended.
    pub const PHASED: Policy = Policy { ahead: 0 };
    /// Those that are tried, the fastest and largest first.
    pub const ALL: [Policy; 3] = [Policy::RESIDENT, Policy::OVERLAPPED, Policy::PHASED];

    /// Whether every weight has a place of its own and stays.
    pub fn keeps_all(self) -> bool {
        self == Policy::RESIDENT
    }

    /// The segments during which a block's place is its own. `readers`: first and last segment that reads it; `count`: how
    /// many there are.
    fn held(self, readers: &RangeInclusive<usize>, count: usize) -> RangeInclusive<usize> {
        match self.keeps_all() {
            true => 0..=count.saturating_sub(1),
            false => readers.start().saturating_sub(self.ahead)..=*readers.end(),
        }
    }

    /// What it means, in a line.
    pub fn meaning(self) -> String {
        match self.ahead {
            usize::MAX => "every weight stays, uploads run ahead".into(),
            1 => "a stage's weights come while the one before runs".into(),
            0 => "a stage's weights come when the one before has ended".into(),
            n => format!("weights come up to {n} segments ahead"),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.ahead {
            usize::MAX => f.pad("resident"),
            1 => f.pad("overlapped"),
            0 => f.pad("phased"),
            n => f.pad(&format!("{n} ahead")),
        }
    }
}

/// The places of all weights.
#[derive(Clone, Debug)]
pub struct Residency {
    /// How far ahead they come.
    pub policy: Policy,
    /// What the graph was cut into, in program order.
    pub segments: Vec<Segment>,
    /// Byte offset in the region of each storage; none for what is no weight.
    pub offsets: Vec<Option<usize>>,
    /// First and last segment that reads each storage; none for what is no weight.
    pub readers: Vec<Option<RangeInclusive<usize>>>,
    /// Size of the region in bytes.
    pub bytes: usize,
}

/// A weight that a run has to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The weight.
    pub storage: StorageId,
    /// The visit of the run that reads it first.
    pub visit: usize,
    /// How many of the run's visits must have ended before its place may be written to.
    pub gate: usize,
}

impl Residency {
    /// Places the weights of a graph.
    pub fn new(graph: &Graph, policy: Policy) -> Residency {
        // Who reads each weight: first and last segment; weights in the order of first use.
        let segments = segments(graph);
        let mut readers: Vec<Option<RangeInclusive<usize>>> = vec![None; graph.storages.len()];
        let mut order = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            for StorageId(storage) in weights_of(graph, segment) {
                if readers[storage].is_none() {
                    order.push(storage);
                }
                let first = readers[storage].as_ref().map_or(number, |known| *known.start());
                readers[storage] = Some(first..=number);
            }
        }

        // Blocks: weights with the same readers, one after another.
        let mut blocks: BTreeMap<(usize, usize), usize> = BTreeMap::new(); // readers: size
        let mut within = vec![None; graph.storages.len()]; // readers, offset in their block
        for &storage in &order {
            let block = readers[storage].as_ref().map(|r| (*r.start(), *r.end())).expect("readers were just found");
            let size = blocks.entry(block).or_default();
            within[storage] = Some((block, *size));
            *size += graph.storages[storage].spec.bytes().next_multiple_of(ALIGNMENT);
        }

        // Places: as storages in the arena, with segments for time.
        let held =
            |(&(first, last), &size): (&(usize, usize), &usize)| Some((size, policy.held(&(first..=last), segments.len())));
        let (starts, bytes) = assign(&blocks.iter().map(held).collect::<Vec<_>>());
        let starts: BTreeMap<_, _> = blocks.keys().zip(starts).collect();
        let place = |within: Option<((usize, usize), usize)>| {
            within.and_then(|(block, offset)| starts[&block].map(|start| start + offset))
        };
        Residency { policy, offsets: within.into_iter().map(place).collect(), segments, readers, bytes }
    }

    /// The segments that a run of bodies visits.
    pub fn visits(&self, bodies: &[BodyId]) -> Vec<usize> {
        let of = |body: &BodyId| (0..self.segments.len()).filter(|&n| self.segments[n].body == *body).collect::<Vec<_>>();
        bodies.iter().flat_map(of).collect()
    }

    /// Where a weight lies; none for what is no weight.
    pub fn place(&self, graph: &Graph, storage: StorageId) -> Option<Range<usize>> {
        let start = self.offsets[storage.0]?;
        Some(start..start + graph.storages[storage.0].spec.bytes())
    }

    /// What a run that visits these segments has to fetch, in the order of need, and from when on; what has to make way in
    /// between comes again. `resident`: for each storage, whether it is a weight that is there before the run; then, whether
    /// it is there after it.
    pub fn arrivals(&self, graph: &Graph, visits: &[usize], resident: &mut [bool]) -> Vec<Arrival> {
        // Every weight with its place.
        let mut placed: Vec<(StorageId, Range<usize>)> =
            (0..self.offsets.len()).filter_map(|i| Some((StorageId(i), self.place(graph, StorageId(i))?))).collect();
        placed.retain(|(_, place)| !place.is_empty());

        // How many visits must end before nobody reads a weight any more, among the visits so far.
        let mut ended: Vec<usize> = vec![0; self.offsets.len()];

        // What a visit lacks comes, and displaces what lies in its place.
        let mut arrivals = Vec::new();
        for (visit, &segment) in visits.iter().enumerate() {
            let weights = weights_of(graph, &self.segments[segment]);
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
                arrivals.push(Arrival { storage, visit, gate });
            }
            weights.iter().for_each(|storage| ended[storage.0] = visit + 1);
        }
        arrivals
    }
}

/// The weights a segment reads, in the order of first use.
fn weights_of(graph: &Graph, segment: &Segment) -> Vec<StorageId> {
    let nodes = &graph.nodes[segment.nodes.clone()];
    let mut seen = vec![false; graph.storages.len()];
    let storages = nodes.iter().flat_map(|n| &n.inputs).map(|&id| graph.tensor(id).storage);
    storages.filter(|s| matches!(graph.storages[s.0].kind, Kind::Weight(_)) && !std::mem::replace(&mut seen[s.0], true)).collect()
}
