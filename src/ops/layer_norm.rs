//! Layer norm over the last dimension (eps 1e-6): `n = (x − mean)/√(var + eps)`; x, y [R, D].
//!
//! - affine (connector): `y = n·weight + bias`, weight and bias [D];
//! - modulated (transformer): `y = (1 + scale)·n + shift`, one row of scale and shift a step and branch. The official
//!   code keeps `1 + scale` in the modulation's type, so it is rounded to that; the rest is f32 with one rounding.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, BranchParams, BranchRows, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View};
use super::{held_row_kernel, one_stride, round};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

const EPS: f32 = 1e-6;

/// Layer normalisation; the second and third operands are weight and bias, or scale and shift.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Which modulation row a stream row uses; none: affine.
    pub modulation: Option<BranchRows>,
}

/// What `layer_norm.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    scale: u64,
    shift: u64,
    y: u64,
    cols: u32,
    x_stride: u32,
    table_stride: u32,
    y_stride: u32,
    rows: BranchParams,
}
const _: () = assert!(size_of::<Params>() == 104);

/// The norm of one row: `y = factor·(x − mean)/√(var + eps) + shift`.
pub(super) fn norm_row(x: &[f32], factor: impl Fn(usize) -> f32, shift: &[f32], y: &mut [f32]) {
    let d = x.len() as f64;
    let mean = (x.iter().map(|&v| v as f64).sum::<f64>() / d) as f32;
    let variance = (x.iter().map(|&v| ((v - mean) as f64).powi(2)).sum::<f64>() / d) as f32;
    let inverse = 1.0 / (variance + EPS).sqrt();
    for (i, y) in y.iter_mut().enumerate() {
        *y = factor(i) * ((x[i] - mean) * inverse) + shift[i];
    }
}

/// The factor of a modulated norm, `1 + scale` as a tensor of the modulation's type holds it.
pub(super) fn one_plus(modulation: DType, scale: f32) -> f32 {
    round(modulation, 1.0 + scale)
}

impl Op for LayerNorm {
    fn kind(&self) -> &'static str {
        "layer_norm"
    }

    fn attributes(&self) -> String {
        self.modulation.as_ref().map_or("affine".into(), |rows| format!("branches {rows}"))
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [x, scale, shift] = [0, 1, 2].map(|i| &inputs[i].shape);
        ensure!(x.cols() == scale.cols() && scale == shift, "x {x}, scale {scale} and shift {shift} differ in width");
        match &self.modulation {
            Some(rows) => rows.check(x.rows(), scale.rows())?,
            None => ensure!(scale.0.len() == 1, "the scale of an affine norm is {scale}; it must be a vector"),
        }
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(8 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        let kernel = held_row_kernel("layer_norm", arch, inputs, outputs)?;
        if let Some(rows) = &self.modulation {
            rows.fits()?;
            one_stride(&inputs[1..])?;
        }
        Ok(kernel.with([("MODULATED", self.modulation.is_some() as usize)]))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (d, modulation_dtype) = (inputs[0].cols(), inputs[1].spec.dtype);
        let (x, scale, shift) = (inputs[0].f32(), inputs[1].f32(), inputs[2].f32());
        outputs[0].f32().par_chunks_mut(d).zip(x.par_chunks(d)).enumerate().for_each(|(row, (y, x))| {
            let at = self.modulation.as_ref().map_or(0, |rows| rows.table_row(row)) * d;
            let (scale, shift) = (&scale[at..][..d], &shift[at..][..d]);
            match self.modulation {
                Some(_) => norm_row(x, |i| one_plus(modulation_dtype, scale[i]), shift, y),
                None => norm_row(x, |i| scale[i], shift, y),
            }
        });
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let ([x, scale, shift], y) = ([0, 1, 2].map(|i| &args.inputs[i]), &args.outputs[0]);
        let one_run = BranchRows(vec![(x.rows(), 0)]);
        let params = Params {
            x: x.address,
            scale: scale.address,
            shift: shift.address,
            y: y.address,
            cols: x.cols() as u32,
            x_stride: x.stride(),
            table_stride: scale.stride(),
            y_stride: y.stride(),
            rows: self.modulation.as_ref().unwrap_or(&one_run).params(),
        };
        vec![Launch::kernel("layer_norm", [x.rows() as u32, 1, 1], kernel.block.threads, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let spec = |rows, cols| Spec::new(DType::BF16, [rows, cols]);
    let vector = |cols| Spec::new(DType::BF16, [cols]);
    let modulated = |rows: &[usize]| LayerNorm { modulation: Some(BranchRows::of(rows)) };
    vec![
        Case::new(modulated(&[40, 13]), vec![spec(53, 3072), spec(2, 3072), spec(2, 3072)], DType::BF16),
        Case::new(LayerNorm { modulation: None }, vec![spec(53, 4096), vector(4096), vector(4096)], DType::BF16),
        Case::new(modulated(&[3]), vec![spec(6, 256), spec(2, 256), spec(2, 256)], DType::BF16),
        Case::new(modulated(&[2, 1]), vec![spec(3, 7), spec(2, 7), spec(2, 7)], DType::BF16),
        // An image stream's, and the connector's of all steps, of 1024x1024 pixels.
        Case::new(modulated(&[8192, 8192]), vec![spec(16384, 3072), spec(2, 3072), spec(2, 3072)], DType::BF16).timed(),
        Case::new(LayerNorm { modulation: None }, vec![spec(19180, 4096), vector(4096), vector(4096)], DType::BF16).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::run_f32;

    #[test]
    fn each_branch_has_its_modulation() {
        // Rows (-1, 1) have mean 0, variance 1: n = ±1/√(1 + 1e-6).
        let spec = |rows| Spec::new(DType::F32, [rows, 2]);
        let op = LayerNorm { modulation: Some(BranchRows::of(&[1, 2])) };
        let x = [-1.0, 1.0, -1.0, 1.0, 3.0, 5.0];
        let y = run_f32(&op, &[(spec(3), &x), (spec(2), &[0.0, 0.0, 1.0, 2.0]), (spec(2), &[0.0, 0.0, 10.0, 20.0])]);
        let expected = [-1.0, 1.0, 8.0, 23.0, 8.0, 23.0];
        y.iter().zip(expected).for_each(|(y, e)| assert!((y - e).abs() < 1e-5, "{y} {e}"));
    }
}
