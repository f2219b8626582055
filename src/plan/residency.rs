//! Where each weight lies on the device, and while which segments run.
//!
//! A *segment* is a run of nodes whose weights come and leave together. *Resident*, every weight has a place of its own in a region
//! beside the arena, and every body is one segment. *Streamed* ([`super::stream`]), arena and weights share one region of a size that
//! the user may choose: some weights are kept in places of their own, the others pass through a ring, in the order of use, again in
//! every turn. A weight is written as soon as no segment that still runs reads what lies in its place: [`Residency::arrivals`] is
//! the only word on when that is.

use std::fmt;
use std::ops::{Range, RangeInclusive};

use super::lifetime::ALIGNMENT;
use crate::graph::{BodyId, Graph, Kind, StorageId};

/// A run of nodes whose weights come and leave together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The body that the nodes belong to.
    pub body: BodyId,
    /// The nodes.
    pub nodes: Range<usize>,
}

/// How much of the weights stays on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// All: nothing leaves, uploads wait for no segment, and a later run finds its weights there.
    Resident,
    /// As many as there is room for; the others come whenever they are read.
    Streamed {
        /// Bytes of activations and weights together.
        bytes: usize,
    },
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Policy::Resident => f.pad("resident"),
            Policy::Streamed { .. } => f.pad("streamed"),
        }
    }
}

/// The places of all weights.
#[derive(Clone, Debug)]
pub struct Residency {
    /// How much stays.
    pub policy: Policy,
    /// What the graph was cut into, in program order.
    pub segments: Vec<Segment>,
    /// Byte offset in the region of each storage; none for what is no weight.
    pub offsets: Vec<Option<usize>>,
    /// First and last segment that reads each storage; none for what is no weight.
    pub readers: Vec<Option<RangeInclusive<usize>>>,
    /// For each storage, whether it is a weight whose place is nobody else's.
    pub kept: Vec<bool>,
    /// Size of the region in bytes.
    pub bytes: usize,
    /// Bytes at the region's start that are activations' while each segment runs.
    pub arena: Vec<usize>,
    /// The weights of each segment, in the order of first use.
    reads: Vec<Vec<StorageId>>,
    /// For each weight, those that share bytes with it.
    neighbours: Vec<Vec<StorageId>>,
    /// Bytes of each storage.
    sizes: Vec<usize>,
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
    /// Every weight of a graph in a place of its own.
    pub fn resident(graph: &Graph) -> Residency {
        let whole = |(n, body): (usize, &crate::graph::Body)| Segment { body: BodyId(n), nodes: body.nodes.clone() };
        let segments: Vec<Segment> = graph.bodies.iter().enumerate().map(whole).collect();
        let (mut offsets, mut kept, mut bytes) = (vec![None; graph.storages.len()], vec![false; graph.storages.len()], 0);
        for StorageId(storage) in segments.iter().flat_map(|segment| weights_of(graph, &segment.nodes)) {
            if offsets[storage].is_none() {
                (offsets[storage], kept[storage]) = (Some(bytes), true);
                bytes += graph.storages[storage].spec.bytes().next_multiple_of(ALIGNMENT);
            }
        }
        let arena = vec![0; segments.len()];
        Residency::placed(graph, Policy::Resident, segments, offsets, kept, bytes, arena)
    }

    /// Weights at places that are chosen.
    pub(super) fn placed(
        graph: &Graph,
        policy: Policy,
        segments: Vec<Segment>,
        offsets: Vec<Option<usize>>,
        kept: Vec<bool>,
        bytes: usize,
        arena: Vec<usize>,
    ) -> Residency {
        let reads: Vec<Vec<StorageId>> = segments.iter().map(|segment| weights_of(graph, &segment.nodes)).collect();
        let mut readers: Vec<Option<RangeInclusive<usize>>> = vec![None; offsets.len()];
        for (number, weights) in reads.iter().enumerate() {
            for &StorageId(storage) in weights {
                let first = readers[storage].as_ref().map_or(number, |known| *known.start());
                readers[storage] = Some(first..=number);
            }
        }
        let sizes = graph.storages.iter().map(|storage| storage.spec.bytes()).collect();
        let mut residency =
            Residency { policy, segments, offsets, readers, kept, bytes, arena, reads, neighbours: vec![], sizes };
        residency.neighbours = residency.shared();
        residency
    }

    /// Gives weights other places.
    pub(super) fn move_to(&mut self, places: &[(StorageId, usize)]) {
        places.iter().for_each(|(storage, offset)| self.offsets[storage.0] = Some(*offset));
        self.neighbours = self.shared();
    }

    /// Who shares bytes with whom.
    fn shared(&self) -> Vec<Vec<StorageId>> {
        let mut placed: Vec<(Range<usize>, usize)> =
            (0..self.offsets.len()).filter_map(|i| Some((self.place(StorageId(i))?, i))).collect();
        placed.retain(|(place, i)| !place.is_empty() && !self.kept[*i]);
        placed.sort_unstable_by_key(|(place, i)| (place.start, *i));
        let mut shared = vec![Vec::new(); self.offsets.len()];
        for (at, (place, one)) in placed.iter().enumerate() {
            for (_, other) in placed[at + 1..].iter().take_while(|(other, _)| other.start < place.end) {
                shared[*one].push(StorageId(*other));
                shared[*other].push(StorageId(*one));
            }
        }
        shared
    }

    /// Whether every weight has a place of its own.
    pub fn keeps_all(&self) -> bool {
        self.policy == Policy::Resident
    }

    /// The segments that a run of bodies visits.
    pub fn visits(&self, bodies: &[BodyId]) -> Vec<usize> {
        bodies.iter().flat_map(|&body| self.segments_of(body)).collect()
    }

    /// A body's segments: they follow each other.
    pub fn segments_of(&self, body: BodyId) -> Range<usize> {
        let start = self.segments.partition_point(|segment| segment.body < body);
        start..self.segments.partition_point(|segment| segment.body <= body)
    }

    /// Where a weight lies; none for what is no weight.
    pub fn place(&self, storage: StorageId) -> Option<Range<usize>> {
        let start = self.offsets[storage.0]?;
        Some(start..start + self.sizes[storage.0])
    }

    /// The weights that a segment reads, in the order of first use.
    pub fn reads_of(&self, segment: usize) -> &[StorageId] {
        &self.reads[segment]
    }

    /// The weights that share bytes with one.
    pub(super) fn neighbours_of(&self, weight: StorageId) -> &[StorageId] {
        &self.neighbours[weight.0]
    }

    /// Bytes of a storage.
    pub(super) fn size_of(&self, storage: StorageId) -> usize {
        self.sizes[storage.0]
    }

    /// What a run that visits these segments has to fetch, in the order of need, and from when on; what has to make way in
    /// between comes again. `resident`: for each storage, whether it is a weight that is there before the run; then, whether
    /// it is there after it.
    pub fn arrivals(&self, visits: &[usize], resident: &mut [bool]) -> Vec<Arrival> {
        // How many visits must end before nobody reads a weight any more, and before activations leave each height of the
        // region, among the visits so far.
        let mut ended: Vec<usize> = vec![0; self.offsets.len()];
        let mut left: Vec<(usize, usize)> = Vec::new(); // height, visits

        // What a visit lacks comes, and displaces what lies in its place.
        let mut arrivals = Vec::new();
        for (visit, &segment) in visits.iter().enumerate() {
            let height = self.arena[segment];
            if left.last().is_none_or(|(last, _)| *last != height) {
                let below = |offset: &Option<usize>| offset.is_some_and(|offset| offset < height);
                self.offsets.iter().zip(resident.iter_mut()).filter(|(o, _)| below(o)).for_each(|(_, there)| *there = false);
                left.retain(|(other, _)| *other != height);
                left.push((height, visit));
            }
            for &storage in &self.reads[segment] {
                if std::mem::replace(&mut resident[storage.0], true) {
                    continue;
                }
                let start = self.offsets[storage.0].unwrap_or(0);
                let mut gate = left.iter().filter(|(height, _)| start < *height).map(|(_, visits)| *visits).max().unwrap_or(0);
                for other in &self.neighbours[storage.0] {
                    resident[other.0] = false;
                    gate = gate.max(ended[other.0]);
                }
                arrivals.push(Arrival { storage, visit, gate });
            }
            self.reads[segment].iter().for_each(|storage| ended[storage.0] = visit + 1);
            left.last_mut().expect("this visit's height").1 = visit + 1;
        }
        arrivals
    }

    /// For each visit of a run, the weights that nobody needs where they lie once it has ended: they come again before they are
    /// read again, or are not there after the run. `resident`: as for [`Residency::arrivals`].
    pub fn spent(&self, visits: &[usize], resident: &mut [bool]) -> Vec<Vec<StorageId>> {
        let comes: std::collections::HashSet<(usize, StorageId)> =
            self.arrivals(visits, resident).iter().map(|arrival| (arrival.visit, arrival.storage)).collect();
        let mut needed = resident.to_vec(); // after a visit
        let mut spent = vec![vec![]; visits.len()];
        for (visit, &segment) in visits.iter().enumerate().rev() {
            for &storage in &self.reads[segment] {
                if !needed[storage.0] {
                    spent[visit].push(storage);
                }
                needed[storage.0] = !comes.contains(&(visit, storage));
            }
        }
        spent
    }
}

/// The weights that nodes read, in the order of first use.
pub(super) fn weights_of(graph: &Graph, nodes: &Range<usize>) -> Vec<StorageId> {
    let mut seen = std::collections::HashSet::new();
    let storages = graph.nodes[nodes.clone()].iter().flat_map(|n| &n.inputs).map(|&id| graph.tensor(id).storage);
    storages.filter(|s| matches!(graph.storages[s.0].kind, Kind::Weight(_)) && seen.insert(*s)).collect()
}
