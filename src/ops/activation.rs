//! Pointwise functions: SiLU `x·σ(x)` and the exact GELU `x·Φ(x)`. x and y of any one shape.

use anyhow::Result;
use rayon::prelude::*;

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, STREAM_THREADS, Unsupported, View};
use super::{stream_grid, stream_kernel};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A pointwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x/2 · (1 + erf(x/√2))`.
    GeluErf,
}

/// What `activation.cu` takes.
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

/// `x / (1 + e^-x)`.
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `x/2 · (1 + tanh(u))`, u = √(2/π)·(x + 0.044715·x³), as `x·σ(2u)`, which is the same function.
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    x / (1.0 + (-2.0 * SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)).exp())
}

/// `x/2 · (1 + erf(x/√2))`.
fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

impl Op for Activation {
    fn kind(&self) -> &'static str {
        "activation"
    }

    fn attributes(&self) -> String {
        match self {
            Activation::Silu => "silu",
            Activation::GeluErf => "gelu_erf",
        }
        .into()
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(8 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        let kernel = stream_kernel("activation", arch, inputs, outputs)?;
        Ok(kernel.with([("GELU_ERF", (*self == Activation::GeluErf) as usize)]))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let f = match self {
            Activation::Silu => silu,
            Activation::GeluErf => gelu_erf,
        };
        outputs[0].f32().par_iter_mut().zip(inputs[0].f32()).with_min_len(4096).for_each(|(y, &x)| *y = f(x));
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let (x, y) = (&args.inputs[0], &args.outputs[0]);
        let (rows, cols) = (y.rows() as u32, y.cols() as u32);
        let params = Params { x: x.address, y: y.address, rows, cols, x_stride: x.stride(), y_stride: y.stride() };
        vec![Launch::kernel("activation", stream_grid(kernel, y), STREAM_THREADS, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let spec = |rows, cols| vec![Spec::new(DType::BF16, [rows, cols])];
    vec![
        Case::new(Activation::Silu, spec(56, 3072), DType::BF16),
        Case::new(Activation::GeluErf, spec(81, 5120), DType::BF16),
        Case::new(Activation::Silu, spec(3, 7), DType::BF16),
        Case::new(Activation::Silu, spec(19180, 16384), DType::BF16).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_against_float64() {
        // x/(1+e^-x), x/2(1+erf(x/√2)) and the tanh form, evaluated in float64 by Python's math module.
        for (x, s, e, t) in [
            (-3.0, -0.142_277_62, -0.004_049_694, -0.003_637_392),
            (0.5, 0.311_229_67, 0.345_731_23, 0.345_714_01),
            (4.0, 3.928_055_2, 3.999_873_3, 3.999_930_1),
        ] {
            assert!(
                (silu(x) - s).abs() < 1e-6 && (gelu_erf(x) - e).abs() < 1e-6 && (gelu_tanh(x) - t).abs() < 1e-6,
                "x = {x}: {} {} {}",
                silu(x),
                gelu_erf(x),
                gelu_tanh(x)
            );
        }
    }
}
