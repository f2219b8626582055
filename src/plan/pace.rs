//! How long nodes and copies take, so that a plan can say what it costs to stream weights: a model, not a measurement.
//!
//! The rates are an H100's at its power limit, from profiles of whole edits from 512x512 to 2048x2048. On a slower card nodes take
//! longer than this says, so copies hide better than planned.

use crate::graph::{Graph, Node};
use crate::ops::Kernel;
use crate::tensor::DType;

/// GB/s of copies from page-locked memory, where the link was not measured: PCIe 5 with 16 lanes.
pub const LINK_GB_PER_S: f64 = 55.0;

/// Operations a second of large products.
const PRODUCT: f64 = 700e12;
/// The same of integers of eight bits.
const PRODUCT_INT8: f64 = 1330e12;
/// Of attention by the kernel for Hopper over endlessly many rows; over fewer it is less, half of it at [`FEW`].
const ATTENTION_HOPPER: f64 = 640e12;
const FEW: f64 = 800.0;
/// Of attention by the portable kernel.
const ATTENTION: f64 = 230e12;
/// Of convolutions in 16 bits, and as TF32.
const CONVOLUTION: [f64; 2] = [400e12, 182e12];
/// Bytes a second, read and written.
const MEMORY: f64 = 2.8e12;
/// Seconds of a node with little to do.
const LAUNCH: f64 = 3e-6;

/// What takes how long.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Seconds of each node.
    pub nodes: Vec<f64>,
    /// Bytes a second of copies to the device.
    pub link: f64,
}

impl Pace {
    /// The pace of a graph's nodes with these kernels, and of a link of so many GB/s.
    pub fn of(graph: &Graph, kernels: &[Kernel], link_gb_per_s: f64) -> Pace {
        let nodes = graph.nodes.iter().zip(kernels).map(|(node, kernel)| seconds(graph, node, kernel)).collect();
        Pace { nodes, link: link_gb_per_s * 1e9 }
    }
}

fn seconds(graph: &Graph, node: &Node, kernel: &Kernel) -> f64 {
    let (inputs, outputs) = graph.specs(node);
    let cost = node.op.cost(&inputs, &outputs);
    let wide = inputs.first().is_some_and(|input| input.dtype == DType::F32);
    let rate = match node.op.kind() {
        "linear" if wide => PRODUCT / 2.0,
        "linear" => PRODUCT,
        "linear_int8" => PRODUCT_INT8,
        "attention" if kernel.to_string().starts_with("attention_hopper") => {
            ATTENTION_HOPPER / (1.0 + FEW / outputs[0].shape.rows() as f64)
        }
        "attention" => ATTENTION,
        "conv2d" => CONVOLUTION[usize::from(wide)],
        _ => f64::INFINITY,
    };
    (cost.flops as f64 / rate).max(cost.bytes as f64 / MEMORY) + LAUNCH
}
