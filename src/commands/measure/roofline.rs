//! Times of nodes against what the device could do at most. Pure: what was measured goes in.

use std::collections::BTreeMap;

use crate::graph::BodyId;
use crate::ops::Cost;
use crate::plan::Plan;
use crate::tensor::DType;

/// Share of the roofline from which on a kernel is as fast as can be asked.
const NEAR: f64 = 0.9;

/// Rates of the device.
#[derive(Clone, Debug)]
pub(in crate::commands) struct Rates {
    /// GB/s, read and written, of a large copy.
    pub(in crate::commands) copy_gb_per_s: f64,
    /// TFLOP/s of a large product of bf16 matrices; f16 has the same.
    pub(in crate::commands) bf16_tflops: f64,
    /// Of f32 matrices, multiplied as TF32.
    pub(in crate::commands) tf32_tflops: f64,
    /// Milliseconds of a copy that reads and writes so many bytes, timed as nodes are.
    pub(in crate::commands) copies: BTreeMap<u64, f64>,
}

/// A node with what it took.
#[derive(Clone, Debug)]
pub(in crate::commands) struct Timed {
    pub(in crate::commands) name: String,
    pub(in crate::commands) kind: &'static str,
    /// The kernel with its constants.
    pub(in crate::commands) kernel: String,
    /// Of a product or convolution the two operands, of anything else the first.
    pub(in crate::commands) shapes: String,
    /// Whether tensor cores multiply integers of eight bits.
    pub(in crate::commands) eight_bit: bool,
    /// Whether tensor cores multiply f32 operands.
    pub(in crate::commands) tf32: bool,
    pub(in crate::commands) cost: Cost,
    pub(in crate::commands) ms: f64,
}

impl Timed {
    /// A body's nodes with the milliseconds of each.
    pub(in crate::commands) fn of_body(plan: &Plan, body: BodyId, times: &[f64]) -> Vec<Timed> {
        let nodes = plan.graph.nodes_of(body);
        let timed = |(at, &ms): (usize, &f64)| {
            let node = &plan.graph.nodes[at];
            let (inputs, outputs) = plan.graph.specs(node);
            let kind = node.op.kind();
            let eight_bit = kind == "linear_int8";
            let multiplies = matches!(kind, "linear" | "conv2d");
            Timed {
                name: node.name.clone(),
                kind,
                kernel: plan.kernels[at].to_string(),
                eight_bit,
                shapes: match multiplies {
                    _ if eight_bit => format!("{} {}", inputs[0], inputs[2]),
                    true => format!("{} {}", inputs[0], inputs[1]),
                    false => inputs.first().unwrap_or(&outputs[0]).to_string(),
                },
                tf32: multiplies && inputs[0].dtype == DType::F32,
                cost: node.op.cost(&inputs, &outputs),
                ms,
            }
        };
        nodes.zip(times).map(timed).collect()
    }

    /// What nodes have in common that do the same.
    pub(in crate::commands) fn group(&self) -> String {
        format!("{} {}", self.kernel, self.shapes)
    }
}

/// What keeps a node from being faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum Bound {
    /// Tensor cores.
    Compute,
    /// Memory's bandwidth.
    Memory,
    /// That there is a launch at all: even a copy of as many bytes takes twice the roofline's time or more.
    Launch,
}

impl Bound {
    pub(in crate::commands) fn name(self) -> &'static str {
        match self {
            Bound::Compute => "compute",
            Bound::Memory => "memory",
            Bound::Launch => "launch",
        }
    }
}

/// Nodes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::commands) struct Sum {
    pub(in crate::commands) count: usize,
    pub(in crate::commands) ms: f64,
    flops: f64,
    bytes: f64,
    /// Milliseconds that the operations take at the rate of a large product.
    compute_ms: f64,
    /// Milliseconds that the bytes take at the rate of a large copy.
    memory_ms: f64,
    /// The larger of both, node by node.
    pub(in crate::commands) roofline_ms: f64,
    /// Milliseconds of copies of as many bytes.
    copy_ms: f64,
}

impl Sum {
    /// Adds nodes up.
    pub(in crate::commands) fn of<'t>(nodes: impl IntoIterator<Item = &'t Timed>, rates: &Rates) -> Sum {
        let mut sum = Sum::default();
        for node in nodes {
            let peak = match node {
                // Twice what of bf16: so the tensor cores are built, where they have such products.
                Timed { eight_bit: true, .. } => 2.0 * rates.bf16_tflops,
                Timed { tf32: true, .. } => rates.tf32_tflops,
                _ => rates.bf16_tflops,
            };
            let (flops, bytes) = (node.cost.flops as f64, node.cost.bytes as f64);
            let (compute_ms, memory_ms) = (flops / peak / 1e9, bytes / rates.copy_gb_per_s / 1e6);
            sum.count += 1;
            sum.ms += node.ms;
            sum.flops += flops;
            sum.bytes += bytes;
            sum.compute_ms += compute_ms;
            sum.memory_ms += memory_ms;
            sum.roofline_ms += compute_ms.max(memory_ms);
            sum.copy_ms += rates.copies.get(&node.cost.bytes).copied().unwrap_or(memory_ms);
        }
        sum
    }

    /// Operations a second, in units of 10^12.
    pub(in crate::commands) fn tflops(&self) -> f64 {
        ratio(self.flops, self.ms) / 1e9
    }

    /// Bytes a second, in units of 10^9.
    pub(in crate::commands) fn gb_per_s(&self) -> f64 {
        ratio(self.bytes, self.ms) / 1e6
    }

    /// The roofline's time as a share of the time it took.
    pub(in crate::commands) fn of_roofline(&self) -> f64 {
        ratio(self.roofline_ms, self.ms)
    }

    /// The time of copies of as many bytes, timed as the nodes are, as a share of the time it took.
    pub(in crate::commands) fn of_copy(&self) -> f64 {
        ratio(self.copy_ms, self.ms)
    }

    /// Milliseconds above the roofline.
    pub(in crate::commands) fn lost_ms(&self) -> f64 {
        self.ms - self.roofline_ms
    }

    pub(in crate::commands) fn bound(&self) -> Bound {
        if self.copy_ms >= 2.0 * self.roofline_ms {
            Bound::Launch
        } else if self.compute_ms >= self.memory_ms {
            Bound::Compute
        } else {
            Bound::Memory
        }
    }

    /// What would close the gap to the roofline.
    pub(in crate::commands) fn remedy(&self) -> String {
        let micros = |ms: f64| 1e3 * ratio(ms, self.count as f64);
        let (own, copy) = (micros(self.ms), micros(self.copy_ms));
        let peak = ratio(self.flops, self.compute_ms) / 1e9;
        let bandwidth = ratio(self.bytes, self.memory_ms) / 1e6;
        let near = self.of_roofline() >= NEAR;
        match self.bound() {
            Bound::Launch if own < 2.0 * copy => {
                format!("fewer launches, by fusion: {own:.1} µs each, a copy of as many bytes {copy:.1} µs")
            }
            Bound::Launch => format!("a faster kernel: {own:.1} µs each, a copy of as many bytes {copy:.1} µs"),
            Bound::Compute if near => format!("fewer operations: {:.0} of {peak:.0} TFLOP/s are reached", self.tflops()),
            Bound::Compute => format!("a faster kernel: {:.0} of {peak:.0} TFLOP/s", self.tflops()),
            Bound::Memory if near => {
                format!("fewer bytes, by fusion with a neighbour: {:.0} of {bandwidth:.0} GB/s are reached", self.gb_per_s())
            }
            Bound::Memory => format!("better access, or fusion with a neighbour: {:.0} of {bandwidth:.0} GB/s", self.gb_per_s()),
        }
    }
}

/// A quotient; nothing of nothing is nothing.
/// The time that half of these are not above; of an even number the longer one in the middle.
pub(in crate::commands) fn median(mut times: Vec<f32>) -> f64 {
    times.sort_by(f32::total_cmp);
    times[times.len() / 2] as f64
}

pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// Sums of nodes by what `key` says of them, the longest first.
pub(in crate::commands) fn grouped<K: Ord>(nodes: &[Timed], rates: &Rates, key: impl Fn(&Timed) -> K) -> Vec<(K, Sum)> {
    let mut groups: BTreeMap<K, Vec<&Timed>> = BTreeMap::new();
    nodes.iter().for_each(|node| groups.entry(key(node)).or_default().push(node));
    let mut sums: Vec<(K, Sum)> = groups.into_iter().map(|(key, nodes)| (key, Sum::of(nodes, rates))).collect();
    sums.sort_by(|a, b| b.1.ms.total_cmp(&a.1.ms));
    sums
}

#[cfg(test)]
pub(in crate::commands) mod tests {
    use super::*;

    /// A device of 1000 GB/s and 100 TFLOP/s, half of it for TF32; no copy is done in less than 2 µs.
    pub(in crate::commands) fn rates(nodes: &[Timed]) -> Rates {
        let copy = |node: &Timed| (node.cost.bytes, (node.cost.bytes as f64 / 1e9).max(0.002));
        Rates { copy_gb_per_s: 1000.0, bf16_tflops: 100.0, tf32_tflops: 50.0, copies: nodes.iter().map(copy).collect() }
    }

    pub(in crate::commands) fn timed(name: &str, kind: &'static str, flops: u64, bytes: u64, ms: f64) -> Timed {
        let kernel = format!("{kind} VECTOR=8");
        Timed {
            name: name.into(),
            kind,
            kernel,
            shapes: "bf16[4, 4]".into(),
            tf32: false,
            eight_bit: false,
            cost: Cost { flops, bytes },
            ms,
        }
    }

    fn sum(flops: u64, bytes: u64, ms: f64) -> Sum {
        let node = [timed("x", "op", flops, bytes, ms)];
        Sum::of(&node, &rates(&node))
    }

    #[test]
    fn the_nearer_ceiling_is_the_roofline() {
        // 1e11 operations take 1 ms, 1e9 bytes too.
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b.abs(), "{a} is not {b}");
        let compute = sum(400_000_000_000, 1_000_000_000, 5.0);
        assert_eq!(compute.bound(), Bound::Compute);
        close(compute.of_roofline(), 0.8);
        close(compute.tflops(), 80.0);
        close(compute.gb_per_s(), 200.0);
        close(compute.lost_ms(), 1.0);
        assert!(compute.remedy().contains("a faster kernel: 80 of 100 TFLOP/s"), "{}", compute.remedy());
        let memory = sum(1_000_000_000, 2_000_000_000, 2.1);
        assert_eq!(memory.bound(), Bound::Memory);
        close(memory.of_roofline(), 2.0 / 2.1);
        assert!(memory.remedy().starts_with("fewer bytes"), "{}", memory.remedy());
        let slow = sum(1_000_000_000, 2_000_000_000, 4.0);
        assert!(slow.remedy().starts_with("better access") && slow.remedy().contains("500 of 1000 GB/s"), "{}", slow.remedy());
    }

    #[test]
    fn tf32_has_its_own_ceiling() {
        let node = [Timed { tf32: true, ..timed("x", "conv2d", 100_000_000_000, 1000, 4.0) }];
        let sum = Sum::of(&node, &rates(&node));
        assert_eq!((sum.of_roofline(), sum.bound()), (0.5, Bound::Compute));
        assert!(sum.remedy().contains("25 of 50 TFLOP/s"), "{}", sum.remedy());
    }

    #[test]
    fn small_nodes_are_held_against_a_small_copy() {
        let fused = sum(0, 4096, 0.003);
        assert_eq!(fused.bound(), Bound::Launch);
        assert!(fused.of_roofline() < 0.01, "the roofline stays what it is");
        assert!(fused.remedy().starts_with("fewer launches") && fused.remedy().contains("copy of as many bytes 2.0 µs"));
        assert!(sum(0, 4096, 0.050).remedy().starts_with("a faster kernel: 50.0 µs"));
    }

    #[test]
    fn nothing_takes_no_time_and_gives_numbers() {
        let nothing = sum(0, 0, 0.0);
        for number in [nothing.tflops(), nothing.gb_per_s(), nothing.of_roofline(), nothing.lost_ms()] {
            assert!(number.is_finite());
        }
    }

    #[test]
    fn groups_come_longest_first_and_hold_every_node() {
        let nodes = [timed("a", "add", 1, 10, 1.0), timed("b", "norm", 1, 10, 1.5), timed("c", "add", 1, 10, 1.0)];
        let groups = grouped(&nodes, &rates(&nodes), |node| node.kind);
        let found: Vec<_> = groups.iter().map(|(kind, sum)| (*kind, sum.count, sum.ms)).collect();
        assert_eq!(found, [("add", 2, 2.0), ("norm", 1, 1.5)]);
    }
}
