//! Weights that stream: for a region of any size, which weights are kept in it, and where the others pass through.
//!
//! The region is arena and weights in one: activations at its start, as high as each body needs; kept weights at its end, for all
//! bodies; between them each body's *ring*, through which its other weights pass in the order of use, one after another, from its
//! end back to its start. A place is written again as soon as its last reader is done, so a ring lets copies run ahead by as many
//! bytes as it holds. A body of several turns passes its weights in every turn, at the same places, so its launches never change.
//!
//! What is kept is chosen by what it saves: all weights of bodies of several turns, if there is room for them, since then nothing
//! streams again and again; else first what such a body cannot bring in time, where the copies fall behind its nodes; then weights of
//! bodies that run once, which always wait for their copies; then the rest.

use std::ops::Range;

use super::lifetime::ALIGNMENT;
use super::pace::Pace;
use super::residency::{Arrival, Policy, Residency, Segment, weights_of};
use crate::graph::{Body, BodyId, Graph, StorageId};

/// Most bytes of streamed weights in a segment; less in a small ring, so that it holds so many segments.
const SEGMENT: usize = 192_000_000;
const SEGMENTS: usize = 20;
/// Rings are given so many segments before anything is kept.
const RESERVED: usize = 4;
/// Weights below this part of all are always kept: copies would take longer than their bytes do.
const SMALL: usize = 1 << 16;
/// Of the link's rate the share that a plan counts on.
const COUNTED: f64 = 0.95;
/// How many sizes of a ring are tried.
const TRIED: usize = 24;
/// Turns of a body that are looked at to see how a turn goes once copies run ahead.
const TURNS: usize = 3;

/// A body with what it streams.
struct Stage<'g> {
    body: &'g Body,
    id: BodyId,
    runs: usize,
    /// Bytes at the region's start that are its activations'.
    arena: usize,
    /// Its weights, in the order of first use, with the node that reads each first.
    weights: Vec<(usize, StorageId)>,
}

/// Everything that the choice depends on.
struct Choice<'g> {
    graph: &'g Graph,
    pace: &'g Pace,
    stages: Vec<Stage<'g>>,
    bytes: usize,
    kept: Vec<bool>,
}

impl Residency {
    /// Weights of a graph that stream through a region of so many bytes. `runs`: how often each body runs; `arena`: bytes at
    /// the region's start that are its activations'.
    ///
    /// # Errors
    /// The least number of bytes, if these are fewer.
    pub(super) fn streamed(
        graph: &Graph,
        runs: &[usize],
        arena: &[usize],
        bytes: usize,
        pace: &Pace,
    ) -> Result<Residency, usize> {
        let mut choice = Choice::new(graph, runs, arena, bytes / ALIGNMENT * ALIGNMENT, pace);
        let least = choice.least();
        if choice.bytes < least {
            return Err(least);
        }
        choice.keep();
        choice.place().ok_or(least)
    }
}

impl<'g> Choice<'g> {
    /// Nothing is chosen but what must be kept: small weights, and those of several bodies.
    fn new(graph: &'g Graph, runs: &[usize], arena: &[usize], bytes: usize, pace: &'g Pace) -> Choice<'g> {
        let mut readers = vec![0; graph.storages.len()];
        let mut stages: Vec<Stage> = Vec::new();
        for (number, body) in graph.bodies.iter().enumerate() {
            let (mut weights, mut seen) = (Vec::new(), std::collections::HashSet::new());
            for at in body.nodes.clone() {
                weights.extend(weights_of(graph, &(at..at + 1)).into_iter().filter(|s| seen.insert(*s)).map(|s| (at, s)));
            }
            weights.iter().for_each(|(_, storage)| readers[storage.0] += 1);
            let (runs, arena) = (runs[number], arena[number].next_multiple_of(ALIGNMENT));
            stages.push(Stage { body, id: BodyId(number), runs, arena, weights });
        }
        let all: usize = graph.weights().map(|(_, storage)| storage.spec.bytes()).sum();
        let must = |(storage, readers): (&crate::graph::Storage, &usize)| {
            *readers > 1 || (*readers == 1 && storage.spec.bytes() <= all / SMALL)
        };
        let kept = graph.storages.iter().zip(&readers).map(must).collect();
        Choice { graph, pace, stages, bytes, kept }
    }

    fn size(&self, storage: StorageId) -> usize {
        self.graph.storages[storage.0].spec.bytes().next_multiple_of(ALIGNMENT)
    }

    fn kept_bytes(&self) -> usize {
        (0..self.kept.len()).filter(|&i| self.kept[i]).map(|i| self.size(StorageId(i))).sum()
    }

    /// What a stage streams.
    fn streamed<'s>(&'s self, stage: &'s Stage) -> impl Iterator<Item = (usize, StorageId)> + 's {
        stage.weights.iter().copied().filter(|(_, storage)| !self.kept[storage.0])
    }

    /// Most bytes that one node of a stage streams.
    fn largest(&self, stage: &Stage) -> usize {
        let mut largest = 0;
        let mut node = (usize::MAX, 0);
        for (at, storage) in self.streamed(stage) {
            node = (at, self.size(storage) + if node.0 == at { node.1 } else { 0 });
            largest = largest.max(node.1);
        }
        largest
    }

    /// The least number of bytes: every node finds its weights beside the body's activations.
    fn least(&self) -> usize {
        let ring = |stage: &Stage| stage.arena + self.largest(stage);
        self.kept_bytes() + self.stages.iter().map(ring).max().unwrap_or(0)
    }

    /// Bytes that are left for a stage's ring.
    fn room(&self, stage: &Stage) -> usize {
        self.bytes - self.kept_bytes() - stage.arena
    }

    /// Most bytes of a stage's segment.
    fn segment_bytes(&self, stage: &Stage) -> usize {
        SEGMENT.min(self.room(stage) / SEGMENTS).max(self.largest(stage))
    }

    /// Chooses what is kept.
    fn keep(&mut self) {
        // What rings need to let copies run ahead is theirs.
        let ring = |stage: &Stage| {
            let all: usize = self.streamed(stage).map(|(_, storage)| self.size(storage)).sum();
            stage.arena + all.min(RESERVED * self.segment_bytes(stage) + self.largest(stage)).min(self.room(stage))
        };
        let most = self.bytes - self.stages.iter().map(ring).max().unwrap_or(0);
        let (again, once): (Vec<usize>, Vec<usize>) = (0..self.stages.len()).partition(|&n| self.stages[n].runs > 1);
        let all: usize = again.iter().flat_map(|&n| self.streamed(&self.stages[n])).map(|(_, storage)| self.size(storage)).sum();
        let rate = if self.kept_bytes() + all <= most { 0.0 } else { COUNTED * self.pace.link };
        for &stage in &again {
            self.level(stage, rate, most);
        }
        let weights: Vec<StorageId> = once.iter().flat_map(|&n| &self.stages[n].weights).map(|(_, storage)| *storage).collect();
        let mut free = most.saturating_sub(self.kept_bytes());
        for storage in weights {
            let size = self.size(storage);
            if !self.kept[storage.0] && size <= free {
                self.kept[storage.0] = true;
                free -= size;
            }
        }
        for &stage in &again {
            self.level(stage, 0.0, most);
        }
    }

    /// Keeps weights of a stage, evenly spread, so that a link of so many bytes a second brings the others in time; or of a rate
    /// that is faster, as little as possible, where no more than `most` bytes may be kept.
    fn level(&mut self, stage: usize, rate: f64, most: usize) {
        let before = self.kept_bytes();
        let fits = |kept: &[bool]| {
            let more = (0..kept.len()).filter(|&i| kept[i] && !self.kept[i]).map(|i| self.size(StorageId(i))).sum::<usize>();
            before + more <= most
        };
        let at = |rate: f64| self.behind(&self.stages[stage], rate);
        let first = at(rate);
        let chosen = match fits(&first) {
            true => first,
            false => {
                let (mut low, mut high) = (rate, 1e13);
                for _ in 0..40 {
                    let middle = if low > 0.0 { (low * high).sqrt() } else { high / 16.0 };
                    match fits(&at(middle)) {
                        true => high = middle,
                        false => low = middle,
                    }
                }
                at(high)
            }
        };
        if fits(&chosen) {
            self.kept = chosen;
        }
    }

    /// What is kept once the weights are that copies at a rate would bring too late, in a turn after others.
    fn behind(&self, stage: &Stage, rate: f64) -> Vec<bool> {
        let ahead = if rate > 0.0 { (RESERVED * self.segment_bytes(stage)).min(self.room(stage)) as f64 } else { 0.0 };
        let mut lead = ahead;
        let mut kept = self.kept.clone();
        for _ in 0..2 {
            kept.clone_from(&self.kept);
            let mut weights = self.streamed(stage).peekable();
            for at in stage.body.nodes.clone() {
                while let Some((_, storage)) = weights.next_if(|(node, _)| *node == at) {
                    let size = self.size(storage) as f64;
                    match lead < size {
                        true => kept[storage.0] = true,
                        false => lead -= size,
                    }
                }
                lead = ahead.min(lead + rate * self.pace.nodes[at]);
            }
        }
        kept
    }

    /// Cuts the graph where a segment streams enough.
    fn segments(&self) -> Vec<Segment> {
        let mut segments = Vec::new();
        for stage in &self.stages {
            let most = self.segment_bytes(stage);
            let (mut start, mut held) = (stage.body.nodes.start, 0);
            let mut weights = self.streamed(stage).peekable();
            for at in stage.body.nodes.clone() {
                let mut own = 0;
                while let Some((_, storage)) = weights.next_if(|(node, _)| *node == at) {
                    own += self.size(storage);
                }
                if held > 0 && held + own > most {
                    segments.push(Segment { body: stage.id, nodes: start..at });
                    (start, held) = (at, 0);
                }
                held += own;
            }
            segments.push(Segment { body: stage.id, nodes: start..stage.body.nodes.end });
        }
        segments
    }

    /// Gives every weight its place; none if some segment does not find room for all of its weights at once.
    fn place(&self) -> Option<Residency> {
        let segments = self.segments();
        let arena: Vec<usize> = segments.iter().map(|segment| self.stages[segment.body.0].arena).collect();
        let mut offsets = vec![None; self.graph.storages.len()];
        let mut end = self.bytes;
        for (_, StorageId(storage)) in self.stages.iter().flat_map(|stage| &stage.weights) {
            if self.kept[*storage] && offsets[*storage].is_none() {
                end -= self.size(StorageId(*storage));
                offsets[*storage] = Some(end);
            }
        }
        let (policy, kept) = (Policy::Streamed { bytes: self.bytes }, self.kept.clone());
        let mut residency = Residency::placed(self.graph, policy, segments.clone(), offsets, kept, self.bytes, arena);
        let mut at = end;
        for stage in &self.stages {
            let ring = stage.arena..end;
            let mut best: Option<(f64, usize, Vec<_>)> = None;
            let all: usize = self.streamed(stage).map(|(_, storage)| self.size(storage)).sum();
            let tried = if stage.runs > 1 && all > ring.len() { TRIED } else { 1 };
            for (less, whole) in (0..tried).flat_map(|less| [(less, false), (less, true)]) {
                if whole && tried == 1 && best.is_some() {
                    continue;
                }
                let ring = ring.start + ring.len() / (2 * TRIED) * less / ALIGNMENT * ALIGNMENT..end;
                let Some((places, at)) = self.pass(stage, &segments, &ring, at, whole) else { continue };
                residency.move_to(&places);
                if !residency.finds_all(stage.id) {
                    continue;
                }
                let turn = if tried == 1 { 0.0 } else { residency.turn(stage.id, self.pace) };
                if best.as_ref().is_none_or(|(seconds, ..)| turn < 0.9999 * seconds) {
                    best = Some((turn, at, places));
                }
            }
            let (_, next, places) = best?;
            at = next;
            residency.move_to(&places);
        }
        Some(residency)
    }

    /// Lays a stage's weights into its ring, each below the one before, the first below `at`; gives where the next would be. `whole`:
    /// no segment is torn apart where the ring begins anew.
    fn pass(
        &self,
        stage: &Stage,
        segments: &[Segment],
        ring: &Range<usize>,
        at: usize,
        whole: bool,
    ) -> Option<(Vec<(StorageId, usize)>, usize)> {
        let (mut places, mut at) = (Vec::new(), if ring.contains(&at) { at } else { ring.end });
        let mut weights = self.streamed(stage).map(|(node, storage)| (node, storage, self.size(storage))).peekable();
        for segment in segments.iter().filter(|segment| segment.body == stage.id) {
            let own: Vec<_> = std::iter::from_fn(|| weights.next_if(|(node, ..)| segment.nodes.contains(node))).collect();
            let all: usize = own.iter().map(|(.., size)| size).sum();
            if whole && at < ring.start + all {
                at = ring.end;
            }
            for (_, storage, size) in own {
                if at < ring.start + size {
                    at = ring.end;
                }
                at = at.checked_sub(size).filter(|at| *at >= ring.start)?;
                places.push((storage, at));
            }
        }
        Some((places, at))
    }
}

/// How a visit goes, in seconds from the run's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Visit {
    /// When its nodes begin.
    pub begins: f64,
    /// When they have ended.
    pub ends: f64,
    /// How long it waited for its weights.
    pub stalls: f64,
}

impl Residency {
    /// Whether every segment of a body has all its weights in places of their own.
    fn finds_all(&self, body: BodyId) -> bool {
        self.segments_of(body).all(|segment| {
            let weights = self.reads_of(segment);
            weights.iter().all(|weight| self.neighbours_of(*weight).iter().all(|other| !weights.contains(other)))
        })
    }

    /// Seconds of a turn of a body after others.
    fn turn(&self, body: BodyId, pace: &Pace) -> f64 {
        let visits = self.visits(&[body; TURNS]);
        let timeline = self.timeline(&visits, &mut vec![false; self.offsets.len()], pace);
        let end = |turn: usize| timeline[visits.len() / TURNS * turn - 1].ends;
        end(TURNS) - end(TURNS - 1)
    }

    /// How a run that visits these segments goes: copies one after another, each once its place is free; nodes one after another,
    /// each segment once its weights are there. `resident`: as for [`Residency::arrivals`].
    pub fn timeline(&self, visits: &[usize], resident: &mut [bool], pace: &Pace) -> Vec<Visit> {
        let mut arrivals = self.arrivals(visits, resident).into_iter().peekable();
        let (mut timeline, mut copied) = (Vec::<Visit>::with_capacity(visits.len()), 0f64);
        for (visit, &segment) in visits.iter().enumerate() {
            let ready = timeline.last().map_or(0.0, |before: &Visit| before.ends);
            let mut begins = ready;
            while let Some(Arrival { storage, gate, .. }) = arrivals.next_if(|arrival| arrival.visit == visit) {
                let free = gate.checked_sub(1).map_or(0.0, |before| timeline[before].ends);
                copied = copied.max(free) + self.size_of(storage) as f64 / pace.link;
                begins = begins.max(copied);
            }
            let nodes: f64 = self.segments[segment].nodes.clone().map(|at| pace.nodes[at]).sum();
            timeline.push(Visit { begins, ends: begins + nodes, stalls: begins - ready });
        }
        timeline
    }
}
