//! Group norm over a picture, with affine weights and optional swish: x, y [H, W, C]; weight, bias [C] f32.
//!
//! Each of 32 groups of neighbouring channels is brought to mean 0 and variance 1 over all pixels (eps 1e-6), then
//! `y = n·weight + bias`, then `y·σ(y)`. Statistics and arithmetic in f32, one rounding.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::activation::silu;
use super::{Arch, Args, Case, Cost, Kernel, Layout, Op, Operand, Output, Unsupported, row_kernel};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

const GROUPS: usize = 32;
const EPS: f64 = 1e-6;

/// Group normalisation, fused with the swish that usually follows.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Apply `y·σ(y)` at the end.
    pub swish: bool,
}

impl Op for GroupNorm {
    fn kind(&self) -> &'static str {
        "group_norm"
    }

    fn attributes(&self) -> String {
        if self.swish { "swish".into() } else { String::new() }
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let c = inputs[0].shape.cols();
        ensure!(
            c.is_multiple_of(GROUPS) && inputs[1].shape.0 == [c] && inputs[2].shape.0 == [c],
            "{c} channels in {GROUPS} groups"
        );
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        let mut cost = Cost::streaming(12 * outputs[0].shape.elements(), inputs, outputs);
        cost.bytes += inputs[0].bytes() as u64; // read twice: statistics, then values
        cost
    }

    fn select(&self, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported> {
        let mut kernel = row_kernel("group_norm", arch, inputs, outputs)?;
        kernel.defines.push(("SWISH", self.swish as usize));
        Ok(kernel)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let c = inputs[0].cols();
        let width = c / GROUPS;
        let (x, weight, bias) = (inputs[0].f32(), inputs[1].f32(), inputs[2].f32());
        // [mean, 1/σ] of each group, accumulated in f64.
        let statistics: Vec<[f64; 2]> = (0..GROUPS)
            .into_par_iter()
            .map(|g| {
                let values = || x.chunks_exact(c).flat_map(|pixel| &pixel[g * width..][..width]).map(|&v| v as f64);
                let n = (x.len() / GROUPS) as f64;
                let mean = values().sum::<f64>() / n;
                let variance = values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
                [mean, 1.0 / (variance + EPS).sqrt()]
            })
            .collect();
        outputs[0].f32().par_chunks_mut(c).zip(x.par_chunks(c)).for_each(|(y, x)| {
            for i in 0..c {
                let [mean, inverse] = statistics[i / width];
                let n = ((x[i] as f64 - mean) * inverse) as f32 * weight[i] + bias[i];
                y[i] = if self.swish { silu(n) } else { n };
            }
        });
    }

    fn launch(&self, _: &Kernel, _: &Args) -> Vec<Launch> {
        todo!()
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |h: usize, w: usize, c: usize, swish, dtype| {
        let inputs = vec![Spec::new(dtype, [h, w, c]), Spec::new(DType::F32, [c]), Spec::new(DType::F32, [c])];
        Case::new(GroupNorm { swish }, inputs, dtype)
    };
    vec![case(31, 17, 128, true, DType::BF16), case(8, 12, 512, false, DType::F32), case(16, 24, 32, true, DType::BF16)]
}
