//! `y = silu(gate)·up`: x [R, 2·D] holds gate, then up; y [R, D]. silu's result is rounded, then the product.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::activation::silu;
use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, STREAM_THREADS, Unsupported, View};
use super::{round, stream_grid, stream_kernel};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A gated unit.
#[derive(Clone, Copy, Debug)]
pub struct SwiGlu;

/// What `swiglu.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    y: u64,
    rows: u32,
    cols: u32,
    x_stride: u32,
    y_stride: u32,
}
const _: () = assert!(size_of::<Params>() == 32);

impl Op for SwiGlu {
    fn kind(&self) -> &'static str {
        "swiglu"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let x = &inputs[0].shape;
        ensure!(x.cols().is_multiple_of(2), "{x} has an odd width; it must have two halves");
        Ok(vec![Spec::new(inputs[0].dtype, [x.rows(), x.cols() / 2])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(6 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        stream_kernel("swiglu", arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (d, dtype) = (outputs[0].cols(), outputs[0].spec.dtype);
        outputs[0].f32().par_chunks_mut(d).zip(inputs[0].f32().par_chunks(2 * d)).for_each(|(y, x)| {
            let (gate, up) = x.split_at(d);
            y.iter_mut().zip(gate).zip(up).for_each(|((y, g), u)| *y = round(dtype, silu(*g)) * u);
        });
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let (x, y) = (&args.inputs[0], &args.outputs[0]);
        let (rows, cols) = (y.rows() as u32, y.cols() as u32);
        let params = Params { x: x.address, y: y.address, rows, cols, x_stride: x.stride(), y_stride: y.stride() };
        vec![Launch::kernel("swiglu", stream_grid(kernel, y), STREAM_THREADS, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = |rows: usize, d: usize| vec![Spec::new(DType::BF16, [rows, 2 * d])];
    vec![
        Case::new(SwiGlu, inputs(61, 18944), DType::BF16),
        Case::new(SwiGlu, inputs(80, 3420), DType::BF16),
        Case::new(SwiGlu, inputs(3, 7), DType::BF16),
        Case::new(SwiGlu, inputs(573, 18944), DType::BF16).timed(),
        Case::new(SwiGlu, inputs(1296, 3420), DType::BF16).timed(),
    ]
}
