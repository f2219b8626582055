//! Group norm over a picture, with affine weights and optional swish: x, y [H, W, C]; weight, bias [C] f32.
//!
//! Each of 32 groups of neighbouring channels is brought to mean 0 and variance 1 over all pixels (eps 1e-6), then
//! `y = n·weight + bias`, then `y·σ(y)`. Statistics and arithmetic in f32, one rounding.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::activation::silu;
use super::{Arch, Args, Case, Cost, Kernel, Layout, Op, Operand, Output, Unsupported, row_kernel, typed};
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

/// Threads of a block; as in the kernel.
const THREADS: usize = 256;
/// Bytes of a mean with its deviations.
const MOMENTS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    y: u64,
    weight: u64,
    bias: u64,
    partial: u64,
    combined: u64,
    pixels: u32,
    pixels_of_block: u32,
    blocks: u32,
    x_stride: u32,
    y_stride: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 72);

/// Pixels of a block and number of blocks: some thousand blocks, so that small pictures fill a device too, but enough
/// work in each to be worth its start.
fn tiles(pixels: usize, channels: usize, vector: usize) -> (usize, usize) {
    let lanes = THREADS / (channels / vector);
    let pixels_of_block = lanes * (pixels / (2048 * lanes)).clamp(4, 32);
    (pixels_of_block, pixels.div_ceil(pixels_of_block))
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
        let mut kernel = row_kernel("group_norm", arch, &inputs[..1], outputs)?;
        typed(&inputs[1], DType::F32)?;
        typed(&inputs[2], DType::F32)?;
        let (pixels, channels) = (inputs[0].spec.shape.rows(), inputs[0].spec.shape.cols());
        let vector = kernel.define("VECTOR");
        if !(channels / vector).is_power_of_two() || channels / vector > THREADS {
            let reason = format!("{channels} channels in vectors of {vector}; {THREADS} threads must divide among whole pixels");
            return Unsupported::new(reason);
        }
        kernel.defines.extend([("CHANNELS", channels), ("SWISH", self.swish as usize)]);
        let (_, blocks) = tiles(pixels, channels, vector);
        Ok(Kernel { scratch: MOMENTS * GROUPS * (blocks + 1), ..kernel })
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

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let ([x, weight, bias], y) = (&args.inputs[..], &args.outputs[0]) else { unreachable!("checked by infer") };
        let (pixels_of_block, blocks) = tiles(x.rows(), x.cols(), kernel.define("VECTOR"));
        let params = Params {
            x: x.address,
            y: y.address,
            weight: weight.address,
            bias: bias.address,
            partial: args.scratch,
            combined: args.scratch + (MOMENTS * GROUPS * blocks) as u64,
            pixels: x.rows() as u32,
            pixels_of_block: pixels_of_block as u32,
            blocks: blocks as u32,
            x_stride: x.stride(),
            y_stride: y.stride(),
            unused: 0,
        };
        let launch = |entry, blocks: usize| Launch::kernel(entry, [blocks as u32, 1, 1], THREADS as u32, 0, &params);
        vec![launch("group_norm_moments", blocks), launch("group_norm_combine", GROUPS), launch("group_norm", blocks)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |h: usize, w: usize, c: usize, swish, dtype| {
        let inputs = vec![Spec::new(dtype, [h, w, c]), Spec::new(DType::F32, [c]), Spec::new(DType::F32, [c])];
        Case::new(GroupNorm { swish }, inputs, dtype)
    };
    vec![case(31, 17, 128, true, DType::BF16), case(8, 12, 512, false, DType::F32), case(16, 24, 32, true, DType::BF16)]
}
