//! The precision pass: one graph, two element types of its activations.

use std::fmt;

use crate::graph::{Graph, Kind};
use crate::tensor::DType;

/// Element type of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// The graph as recorded: bf16 activations, weights rounded to bf16 where they meet them.
    Bf16,
    /// Every 16-bit activation becomes f32, and weights are used as stored.
    F32,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
        })
    }
}

impl Precision {
    /// The element type of activations.
    pub fn dtype(self) -> DType {
        match self {
            Precision::Bf16 => DType::BF16,
            Precision::F32 => DType::F32,
        }
    }

    /// Rewrites the element types of a recorded graph.
    pub(super) fn apply(self, graph: &mut Graph) {
        if self == Precision::Bf16 {
            return;
        }
        for tensor in &mut graph.tensors {
            let storage = &mut graph.storages[tensor.storage.0];
            let is_weight = matches!(storage.kind, Kind::Weight(_) | Kind::Table(_));
            for spec in [&mut storage.spec, &mut tensor.spec] {
                if !is_weight && matches!(spec.dtype, DType::BF16 | DType::F16) {
                    spec.dtype = DType::F32;
                }
            }
        }
    }
}
