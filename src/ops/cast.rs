//! `y = x` in another float type: x, y of any one shape. The rounding is the output's.

use anyhow::Result;

use super::{Arch, Args, BLOCK, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, blocks, row_kernel};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A change of element type.
#[derive(Clone, Copy, Debug)]
pub struct Cast(pub DType);

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    y: u64,
    vectors: u32,
    vectors_of_row: u32,
    x_stride: u32,
    y_stride: u32,
}
const _: () = assert!(size_of::<Params>() == 32);

impl Op for Cast {
    fn kind(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(vec![Spec { dtype: self.0, shape: inputs[0].shape.clone() }])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(0, inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        if !(inputs[0].spec.dtype.is_float() && outputs[0].spec.dtype.is_float()) {
            return Unsupported::new(format!("the kernel does not cast {} to {}", inputs[0].spec, outputs[0].spec));
        }
        row_kernel("cast", arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        outputs[0].f32().copy_from_slice(inputs[0].f32());
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let (x, y) = (&args.inputs[0], &args.outputs[0]);
        let vectors_of_row = y.cols() / kernel.block.vector;
        let vectors = y.rows() * vectors_of_row;
        let params = Params {
            x: x.address,
            y: y.address,
            vectors: vectors as u32,
            vectors_of_row: vectors_of_row as u32,
            x_stride: x.stride(),
            y_stride: y.stride(),
        };
        vec![Launch::kernel("cast", blocks(vectors), BLOCK, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let of = |dtype, shape: [usize; 2], reason| Case {
        bound: 0.0,
        reason,
        ..Case::new(Cast(DType::BF16), vec![Spec::new(dtype, shape)], DType::BF16)
    };
    vec![of(DType::F32, [1014, 64], "both round to nearest even"), of(DType::BF16, [249, 3584], "a copy")]
}
