//! Where each weight lies on the device, and while which stages.
//!
//! A weight comes while the stage before its first reader runs and leaves after its last reader. Weights that come and
//! leave together are one block; blocks share a region as storages share the arena, so the region is as large as the two
//! neighbouring stages with the most weights, not as the model.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::lifetime::{ALIGNMENT, assign};
use crate::graph::{Graph, Kind};

/// The places of all weights.
#[derive(Clone, Debug, Default)]
pub struct Residency {
    /// Byte offset in the region of each storage; none for what is no weight.
    pub offsets: Vec<Option<usize>>,
    /// First and last stage that reads each storage; none for what is no weight.
    pub readers: Vec<Option<RangeInclusive<usize>>>,
    /// Size of the region in bytes.
    pub bytes: usize,
}

impl Residency {
    /// Places the weights of a graph.
    pub fn new(graph: &Graph) -> Residency {
        let mut readers: Vec<Option<RangeInclusive<usize>>> = vec![None; graph.storages.len()];
        let mut order = Vec::new(); // storages by first use
        for (number, stage) in graph.stages.iter().enumerate() {
            for id in graph.nodes[stage.nodes.clone()].iter().flat_map(|node| &node.inputs) {
                let storage = graph.tensor(*id).storage.0;
                if matches!(graph.storages[storage].kind, Kind::Weight(_)) {
                    match &readers[storage] {
                        Some(known) => readers[storage] = Some(*known.start()..=number),
                        None => {
                            readers[storage] = Some(number..=number);
                            order.push(storage);
                        }
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
        let live = |(&(first, last), &size): (&(usize, usize), &usize)| Some((size, first.saturating_sub(1)..=last));
        let (starts, bytes) = assign(&sizes.iter().map(live).collect::<Vec<_>>());
        let starts: BTreeMap<_, _> = sizes.keys().zip(starts).collect();
        let place = |within: Option<((usize, usize), usize)>| {
            within.and_then(|(block, offset)| starts[&block].map(|start| start + offset))
        };
        Residency { offsets: within.into_iter().map(place).collect(), readers, bytes }
    }
}
