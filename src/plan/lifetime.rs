//! When each storage is live, and where in the arena it lies.

use std::ops::{Range, RangeInclusive};

use super::itinerary::Itinerary;
use crate::graph::{BodyId, Graph, Kind, Storage, StorageId};

/// Storages start at multiples of this many bytes.
pub const ALIGNMENT: usize = 256;

/// First and last node at which a storage must keep its bytes.
pub type Lifetime = RangeInclusive<usize>;

/// The lifetime of every storage but weights. A node's inputs and outputs are live together, so they never share bytes.
///
/// - A buffer lives from its first writer to its last reader.
/// - An input lives from the start; one that is updated in place (state), like an output, to the end.
/// - A leg of several turns needs, until its end, all that was made before it and is read in it; and, from its start to its
///   end, what one of its bodies hands to another, or to what comes after the leg while another may run again.
pub fn lifetimes(graph: &Graph, itinerary: &Itinerary) -> Vec<Option<Lifetime>> {
    let uses = uses(graph);
    let live = |(storage, used): (&Storage, &Uses)| {
        // As the nodes stand in the program.
        let end = graph.nodes.len().saturating_sub(1);
        let (mut first, mut last) = match storage.kind {
            Kind::Weight(_) | Kind::Table(_) => return None,
            Kind::Buffer => (used.first(), used.last()),
            Kind::Input => (0, if used.written { end } else { used.last() }),
            Kind::Output => (used.first(), end),
        };
        // As they are run again.
        for leg in itinerary.0.iter().filter(|leg| leg.comes_round()) {
            let nodes = leg.nodes(graph);
            let in_bodies = leg.bodies.iter().filter(|&&body| used.within(&graph.nodes_of(body))).count();
            let made_before = storage.kind == Kind::Input || first < nodes.start;
            if in_bodies > 0 && made_before {
                last = last.max(nodes.end - 1);
            } else if in_bodies > 1 || (in_bodies == 1 && leg.bodies.len() > 1 && last >= nodes.end) {
                (first, last) = (first.min(nodes.start), last.max(nodes.end - 1));
            }
        }
        Some(first..=last)
    };
    graph.storages.iter().zip(&uses).map(live).collect()
}

/// The nodes that read or write a storage, in program order.
#[derive(Clone, Default)]
struct Uses {
    nodes: Vec<usize>,
    written: bool,
}

impl Uses {
    fn first(&self) -> usize {
        self.nodes.first().copied().unwrap_or(0)
    }

    fn last(&self) -> usize {
        self.nodes.last().copied().unwrap_or(0)
    }

    fn within(&self, nodes: &Range<usize>) -> bool {
        let next = self.nodes.partition_point(|&node| node < nodes.start);
        self.nodes.get(next).is_some_and(|&node| node < nodes.end)
    }
}

fn uses(graph: &Graph) -> Vec<Uses> {
    let mut uses = vec![Uses::default(); graph.storages.len()];
    for (at, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().chain(&node.outputs).for_each(|&id| uses[graph.tensor(id).storage.0].nodes.push(at));
        node.outputs.iter().for_each(|&id| uses[graph.tensor(id).storage.0].written = true);
    }
    uses
}

/// Byte offsets such that blocks (size in bytes, lifetime) that are live together do not overlap, and the arena's size. Each lies at
/// the lowest place that is free during its life: first those that live through the most of `bodies` (ranges of time, in order), so
/// that no body's activations lie higher than they need, then the largest.
pub fn assign(blocks: &[Option<(usize, Lifetime)>], bodies: &[Range<usize>]) -> (Vec<Option<usize>>, usize) {
    let body_of = |at: &usize| bodies.partition_point(|body| body.end <= *at);
    let beyond = |life: &Lifetime| body_of(life.end()) - body_of(life.start());
    let mut order: Vec<(usize, usize, &Lifetime)> = blocks
        .iter()
        .enumerate()
        .filter_map(|(i, b)| b.as_ref().map(|(size, life)| (i, size.next_multiple_of(ALIGNMENT), life)))
        .collect();
    order.sort_by_key(|&(i, size, life)| (std::cmp::Reverse((beyond(life), size)), *life.start(), i));

    let mut offsets = vec![None; blocks.len()];
    let mut placed: Vec<(usize, usize, &Lifetime)> = Vec::new(); // offset, size, lifetime; by offset
    for (i, size, life) in order {
        let mut offset = 0;
        for &(taken, taken_size, other) in &placed {
            let together = life.start() <= other.end() && other.start() <= life.end();
            if together && offset < taken + taken_size {
                if offset + size <= taken {
                    break;
                }
                offset = taken + taken_size;
            }
        }
        offsets[i] = Some(offset);
        let at = placed.partition_point(|p| p.0 <= offset);
        placed.insert(at, (offset, size, life));
    }
    let arena = placed.iter().map(|(offset, size, _)| offset + size).max().unwrap_or(0);
    (offsets, arena)
}

impl super::Plan {
    /// Bytes at the arena's start that hold all that is live while a body runs, its working memory included.
    pub fn arena_of(&self, body: BodyId) -> usize {
        let nodes = self.graph.nodes_of(body);
        let live = |life: &Lifetime| *life.start() < nodes.end && nodes.start <= *life.end();
        let of = |(i, storage): (usize, &Storage)| {
            let offset = self.offsets[i].filter(|_| self.lifetimes[i].as_ref().is_some_and(live))?;
            Some(offset + storage.spec.bytes())
        };
        let scratch = self.kernels.get(nodes.clone()).into_iter().flatten().map(|kernel| kernel.scratch).max().unwrap_or(0);
        let storages = self.graph.storages.iter().enumerate().filter_map(of).max().unwrap_or(0);
        storages.max(if scratch > 0 { self.scratch_offsets[body.0] + scratch } else { 0 })
    }

    /// Pairs of storages that are live together and share bytes; empty for a correct plan.
    pub fn overlaps(&self) -> Vec<(StorageId, StorageId)> {
        let mut placed: Vec<(usize, usize, &Lifetime, usize)> = Vec::new();
        for (i, storage) in self.graph.storages.iter().enumerate() {
            if let (Some(offset), Some(life)) = (self.offsets[i], &self.lifetimes[i]) {
                placed.push((offset, offset + storage.spec.bytes(), life, i));
            }
        }
        let clash = |a: &(usize, usize, &Lifetime, usize), b: &(usize, usize, &Lifetime, usize)| {
            a.0 < b.1 && b.0 < a.1 && a.2.start() <= b.2.end() && b.2.start() <= a.2.end()
        };
        let pairs = placed.iter().enumerate().flat_map(|(n, a)| placed[..n].iter().map(move |b| (a, b)));
        pairs.filter(|(a, b)| clash(a, b)).map(|(a, b)| (StorageId(b.3), StorageId(a.3))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_live_together_never_share_bytes(
            blocks in prop::collection::vec((1usize..100_000, 0usize..60, 0usize..20), 1..120),
            cuts in prop::collection::vec(0usize..80, 0..5),
        ) {
            let blocks: Vec<_> = blocks.into_iter().map(|(size, first, length)| Some((size, first..=first + length))).collect();
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (offsets, arena) = assign(&blocks, &cuts.windows(2).map(|pair| pair[0]..pair[1]).collect::<Vec<_>>());
            for (i, a) in blocks.iter().enumerate() {
                let ((size_a, life_a), at_a) = (a.as_ref().unwrap(), offsets[i].unwrap());
                prop_assert!(at_a + size_a <= arena && at_a % ALIGNMENT == 0);
                for (j, b) in blocks.iter().enumerate().take(i) {
                    let ((size_b, life_b), at_b) = (b.as_ref().unwrap(), offsets[j].unwrap());
                    let together = life_a.start() <= life_b.end() && life_b.start() <= life_a.end();
                    prop_assert!(!together || at_a + size_a <= at_b || at_b + size_b <= at_a, "{i} and {j}");
                }
            }
            // Never worse than no reuse at all, never better than the most that is live at once.
            let padded = |b: &Option<(usize, Lifetime)>| b.as_ref().unwrap().0.next_multiple_of(ALIGNMENT);
            let live = |at: usize| blocks.iter().filter(|b| b.as_ref().unwrap().1.contains(&at)).map(padded).sum::<usize>();
            prop_assert!(arena <= blocks.iter().map(padded).sum() && arena >= (0..80).map(live).max().unwrap());
        }
    }

    /// What outlives a body lies below what does not, however large that is.
    #[test]
    fn what_lives_long_lies_low() {
        let (offsets, _) = assign(&[Some((9000, 0..=1)), Some((100, 1..=2)), Some((500, 2..=3))], &[0..2, 2..4]);
        assert_eq!(offsets, [Some(256), Some(0), Some(256)]);
    }

    #[test]
    fn blocks_one_after_another_share_their_place() {
        let (offsets, arena) = assign(&[Some((1000, 0..=1)), Some((1000, 2..=3)), None], &[]);
        assert_eq!((offsets, arena), (vec![Some(0), Some(0), None], 1024));
    }
}
