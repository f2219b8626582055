//! The precision pass: one graph, the element type of its activations, and which of its products round their operands.

use std::fmt;

use anyhow::Result;

use crate::error::UsageError;
use crate::graph::{Graph, Kind, Node};
use crate::ops::{Arch, EightBit};
use crate::tensor::DType;

/// Element type of activations, and what products of the transformer's blocks multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// The graph as recorded: bf16 activations, weights rounded to bf16 where they meet them.
    Bf16,
    /// Every 16-bit activation becomes f32, and weights are used as stored.
    F32,
    /// As bf16, but the blocks' products round both operands to integers of eight bits, with a scale for each row.
    Int8,
    /// As int8, of floats of eight bits (e4m3).
    Fp8,
    /// As int8, but for the products that read what GELU gives, whose rows have the farthest outliers: they stay in bf16.
    Mixed,
}

/// The architecture with products of integers.
const INTEGERS: Arch = Arch(90);

/// The products of a block, by the ends of their weights' modules. All else is small or sensitive, and is never rounded:
/// modulations, embedders, the final layer.
const OF_BLOCKS: [&str; 6] = ["attn.qkv", "attn.proj", "mlp.0", "mlp.2", "linear1", "linear2"];
/// Those of them that read what GELU gives.
const AFTER_GELU: [&str; 2] = ["mlp.2", "linear2"];

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Precision::Bf16 => "bf16",
            Precision::F32 => "f32",
            Precision::Int8 => "int8",
            Precision::Fp8 => "fp8",
            Precision::Mixed => "mixed",
        })
    }
}

impl Precision {
    /// The element type of activations.
    pub fn dtype(self) -> DType {
        if self == Precision::F32 { DType::F32 } else { DType::BF16 }
    }

    /// Whether some products round their operands to eight bits.
    pub fn rounds_products(self) -> bool {
        !matches!(self, Precision::Bf16 | Precision::F32)
    }

    /// Whether there are CUDA kernels for it, of some architecture.
    pub fn runs_on_cuda(self) -> bool {
        matches!(self, Precision::Bf16 | Precision::Int8 | Precision::Mixed)
    }

    /// Whether a GPU of this architecture runs it.
    ///
    /// # Errors
    /// A usage error, with what would help.
    pub fn check(self, arch: Arch) -> Result<()> {
        let text = match self {
            Precision::Bf16 => return Ok(()),
            Precision::Int8 | Precision::Mixed if arch == INTEGERS => return Ok(()),
            Precision::Int8 | Precision::Mixed => format!(
                "--precision {self} needs a GPU of compute capability 9.0 (H100, H200), and this one has {}.{}; use --precision bf16, \
                 or --device cpu",
                arch.0 / 10,
                arch.0 % 10
            ),
            Precision::F32 | Precision::Fp8 => {
                format!("only the CPU runs --precision {self}; use --device cpu, or --precision bf16")
            }
        };
        Err(UsageError(text).into())
    }

    /// How the product with this module's weight rounds its operands.
    fn product(self, module: &str) -> Option<EightBit> {
        let ends = |names: &[&str]| names.iter().any(|name| module.ends_with(name));
        let of_block = module.starts_with("double_blocks.") || module.starts_with("single_blocks.");
        match self {
            _ if !of_block || !ends(&OF_BLOCKS) => None,
            Precision::Mixed if ends(&AFTER_GELU) => None,
            Precision::Int8 | Precision::Mixed => Some(EightBit::Int8),
            Precision::Fp8 => Some(EightBit::E4m3),
            Precision::Bf16 | Precision::F32 => None,
        }
    }

    /// Rewrites the element types and the products of a recorded graph.
    pub(super) fn apply(self, graph: &mut Graph) {
        let rounded = |node: &Node| {
            // A graph that was planned before has the nodes of `integers` already: none of them is asked again.
            let module = graph.storage_of(*node.inputs.get(1)?).name.strip_suffix(".weight")?;
            node.op.in_eight_bits(self.product(module)?)
        };
        let rounded: Vec<_> = graph.nodes.iter().map(rounded).collect();
        graph.nodes.iter_mut().zip(rounded).for_each(|(node, op)| node.op = op.unwrap_or_else(|| node.op.clone()));
        if self.dtype() == DType::BF16 {
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
