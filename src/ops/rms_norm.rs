//! RMS norm over the last dimension (eps 1e-6): `y = round(x/√(mean(x²) + eps))·weight`; x, y [R, D], weight [D].
//!
//! Qwen rounds the normalised value to the activations' type before it multiplies the weight.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, held_row_kernel, round};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

const EPS: f32 = 1e-6;

/// Root mean square normalisation.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm;

/// What `rms_norm.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    weight: u64,
    y: u64,
    cols: u32,
    rows: u32,
    x_stride: u32,
    y_stride: u32,
}
const _: () = assert!(size_of::<Params>() == 40);

impl Op for RmsNorm {
    fn kind(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        ensure!(
            inputs[1].shape.0 == [inputs[0].shape.cols()],
            "the weight is {}; it must be as wide as rows of {}",
            inputs[1],
            inputs[0]
        );
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(4 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        held_row_kernel("rms_norm", arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (d, dtype, weight) = (inputs[0].cols(), outputs[0].spec.dtype, inputs[1].f32());
        outputs[0].f32().par_chunks_mut(d).zip(inputs[0].f32().par_chunks(d)).for_each(|(y, x)| {
            let square = x.iter().map(|&v| v as f64 * v as f64).sum::<f64>() / d as f64;
            let inverse = 1.0 / (square as f32 + EPS).sqrt();
            y.iter_mut().zip(x).zip(weight).for_each(|((y, x), w)| *y = round(dtype, x * inverse) * w);
        });
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let ([x, weight], y) = ([0, 1].map(|i| &args.inputs[i]), &args.outputs[0]);
        let params = Params {
            x: x.address,
            weight: weight.address,
            y: y.address,
            cols: x.cols() as u32,
            rows: x.rows() as u32,
            x_stride: x.stride(),
            y_stride: y.stride(),
        };
        vec![Launch::kernel("rms_norm", [params.rows, 1, 1], kernel.block.threads, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = |rows: usize, d: usize| vec![Spec::new(DType::BF16, [rows, d]), Spec::new(DType::BF16, [d])];
    vec![
        Case::new(RmsNorm, inputs(61, 3584), DType::BF16),
        Case::new(RmsNorm, inputs(80, 1280), DType::BF16),
        Case::new(RmsNorm, inputs(3, 7), DType::BF16),
        Case::new(RmsNorm, inputs(573, 3584), DType::BF16).timed(),
        Case::new(RmsNorm, inputs(1296, 1280), DType::BF16).timed(),
    ]
}
