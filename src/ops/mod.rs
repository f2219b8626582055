//! The ops a graph is made of, one file each.
//!
//! An op file reads: formula and shapes; struct; `infer`; `cost`; `select`, the only statement of what its CUDA kernel
//! requires; `reference`, the CPU arithmetic that every kernel is held against; `launch`, the kernel's grid and arguments
//! as plain data; `cases`, the shapes that tests, parity runs and the op laboratory share. An op with several kernels is a
//! folder: each variant is a file with what it requires, its constants, parameters and launch. Ops know nothing of graphs'
//! storages, plans or executors.

mod branches;
mod case;
mod product;
mod select;
mod values;

use std::fmt::Debug;
use std::sync::Arc;

use anyhow::Result;

use branches::BranchParams;
pub use branches::BranchRows;
pub use case::Case;
use case::ONE_ROUNDING;
pub use noise::normal as philox_normal;
pub use product::EightBit;
pub use select::{Arch, How, Kernel, ProductConfig, Unsupported, View};
use select::{
    BLOCK, Block, STREAM_THREADS, Variant, blocks, code, dense, first_fit, held_row_kernel, one_stride, one_type, portable,
    row_kernel, same_type, stream_grid, stream_kernel, typed,
};
pub use values::{HostValues, Operand, Output, Values, round};

use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Declares the files of ops, gives out what they name, and collects their cases.
macro_rules! ops {
    ($($file:ident $names:tt)+) => {
        $(mod $file; pub use $file::$names;)+

        /// Every op's cases.
        pub fn cases() -> Vec<Case> {
            let all: [fn() -> Vec<Case>; _] = [$($file::cases),+];
            all.iter().flat_map(|cases| cases()).collect()
        }
    };
}

// The one list that a new op joins.
ops! {
    activation {Activation}
    add {Add}
    add_low_rank {AddLowRank, LowRankProduct}
    attention {Attention, Segment}
    cast {Cast}
    conv2d {Conv2d}
    count_faults {CountFaults}
    gate_residual {GateResidual}
    gather {Gather}
    group_norm {GroupNorm, GroupStatistics}
    guidance_euler {GuidanceEuler, Rounding}
    layer_norm {LayerNorm}
    linear {Linear}
    linear_int8 {LinearInt8, Quantized}
    noise {H100_GRID_THREADS, Noise, drawn_at}
    patchify {Pack, Unpack}
    pixels {Levels, PixelsIn, PixelsOut}
    posterior {LATENT_SCALE, LATENT_SHIFT, LOGVAR, Posterior}
    qk_norm_rope {QkNormRope}
    quantize_rows {QuantizeRows}
    rms_norm {RmsNorm}
    rope_half {RopeHalf}
    segment_mean {SegmentMean}
    step_slice {StepSlice}
    swiglu {SwiGlu}
    timestep_embedding {TimestepEmbedding}
}

/// One kind of computation with its attributes.
pub trait Op: Debug + Send + Sync {
    /// The op's name, as printed graphs and messages show it. (Which kernel file computes it, its [`Kernel`] says.)
    fn kind(&self) -> &'static str;

    /// Attributes as the printed graph shows them; empty if there are none.
    fn attributes(&self) -> String {
        String::new()
    }

    /// Shapes and natural types of the results.
    ///
    /// # Errors
    /// What about the operands does not fit.
    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>>;

    /// Whether an output may be the very view of an input.
    fn in_place(&self) -> bool {
        false
    }

    /// Arithmetic and memory traffic of one run.
    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost;

    /// Chooses the CUDA kernel configuration for these operands.
    ///
    /// # Errors
    /// The requirement that no kernel of this op meets.
    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported>;

    /// Computes in f32; the caller rounds each output to its type. Operands arrive dense, with the specs of `infer`.
    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]);

    /// The same op with operands rounded to eight bits; none if it is no product of rows with a weight.
    fn in_eight_bits(&self, _format: EightBit) -> Option<Arc<dyn Op>> {
        None
    }

    /// The same product with operands that were rounded to integers before, as [`LinearInt8`] takes them; none if this op does not
    /// round its operands so.
    fn of_integers(&self) -> Option<Arc<dyn Op>> {
        None
    }

    /// How a weight operand lies in device memory; all users of a weight agree on it.
    fn weight_order(&self, _input: usize) -> WeightOrder {
        WeightOrder::AsStored
    }

    /// Row numbers that the kernel reads from device memory, put there once; empty if it needs none.
    fn table(&self) -> Vec<u32> {
        vec![]
    }

    /// The device work of one run with the kernel that `select` gave, in order.
    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch>;
}

/// Order of a weight's elements in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightOrder {
    /// As in the checkpoint.
    AsStored,
    /// A convolution's [O, C, K, K] as [O, K, K, C], the order of a channels-last patch.
    ChannelsLast,
}

/// An operand in device memory.
#[derive(Clone, Debug)]
pub struct Arg {
    /// Address of the view's first element.
    pub address: u64,
    /// Spec and strides.
    pub view: View,
}

impl Arg {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.view.spec.dtype
    }

    /// Product of all extents but the innermost.
    pub fn rows(&self) -> usize {
        self.view.spec.shape.rows()
    }

    /// Innermost extent.
    pub fn cols(&self) -> usize {
        self.view.spec.shape.cols()
    }

    /// Elements between consecutive rows, as kernels take it.
    pub fn stride(&self) -> u32 {
        self.view.row_stride as u32
    }
}

/// Where a node's operands lie on the device.
#[derive(Clone, Debug)]
pub struct Args {
    /// Operands read.
    pub inputs: Vec<Arg>,
    /// Operands written.
    pub outputs: Vec<Arg>,
    /// Address of [`Op::table`]'s numbers.
    pub table: u64,
    /// Address of [`Kernel::scratch`] bytes that hold nothing before and after.
    pub scratch: u64,
}

/// Floating-point operations and bytes moved, the two sides of a roofline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: u64,
    /// Bytes read and written once each.
    pub bytes: u64,
}

impl Cost {
    /// The cost of an op that reads its inputs and writes its outputs once, with `flops` operations in all.
    pub fn streaming(flops: usize, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost { flops: flops as u64, bytes: inputs.iter().chain(outputs).map(|s| s.bytes() as u64).sum() }
    }
}

#[cfg(test)]
mod tests;
