//! Group norm over a picture, with affine weights and optional swish: x, y [H, W, C]; weight, bias [C] f32.
//!
//! Each of 32 groups of neighbouring channels is brought to mean 0 and variance 1 over all pixels (eps 1e-6), then
//! `y = n·weight + bias`, then `y·σ(y)`. Statistics and arithmetic in f32, one rounding.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::activation::silu;
use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, row_kernel, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Shape, Spec};

const GROUPS: usize = 32;
const EPS: f64 = 1e-6;

/// Group normalisation, fused with the swish that usually follows.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Apply `y·σ(y)` at the end.
    pub swish: bool,
}

/// Threads of a block; as in the kernel.
const THREADS: usize = 512;
/// Bytes of a mean with its deviations.
const MOMENTS: usize = 8;
/// Most blocks of the first pass, one for each multiprocessor of an H100; as in the kernel, whose second pass combines the
/// moments of all in every block.
const MOST_BLOCKS: usize = 132;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    y: u64,
    weight: u64,
    bias: u64,
    partial: u64,
    pixels: u32,
    blocks: u32,
    rounds: u32,
    rest: u32,
    x_stride: u32,
    y_stride: u32,
}
const _: () = assert!(size_of::<Params>() == 64);

/// Blocks of the first and of the second pass over a picture. The second has two on a multiprocessor at a time, and up to
/// four times as many where their work makes the moments' share in it small.
fn blocks(pixels: usize, channels: usize, vector: usize) -> [usize; 2] {
    let most = pixels.div_ceil(lanes(channels, vector));
    [MOST_BLOCKS, 2 * MOST_BLOCKS * ((pixels * channels) >> 24).clamp(1, 4)].map(|blocks| blocks.min(most))
}

/// Pixels that a block takes at a time.
fn lanes(channels: usize, vector: usize) -> usize {
    THREADS / (channels / vector)
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
            "the picture has {c} channels; scale and shift need as many, and {GROUPS} groups must divide them"
        );
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        let mut cost = Cost::streaming(12 * outputs[0].shape.elements(), inputs, outputs);
        cost.bytes += inputs[0].bytes() as u64; // read twice: statistics, then values
        cost
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        let kernel = row_kernel("group_norm", arch, &inputs[..1], outputs)?;
        typed(&inputs[1], DType::F32)?;
        typed(&inputs[2], DType::F32)?;
        let (pixels, channels) = (inputs[0].spec.shape.rows(), inputs[0].spec.shape.cols());
        let vector = kernel.block.vector;
        if !(channels / vector).is_power_of_two() || channels / vector > THREADS {
            let reason =
                format!("the picture has {channels} channels, read {vector} at a time; {THREADS} threads must take whole pixels");
            return Unsupported::new(reason);
        }
        if let Some(l) = inputs[1..].iter().find(|l| l.alignment() < 4 * vector.min(4)) {
            return Unsupported::new(format!(
                "{} starts at a multiple of {} bytes; the kernel reads {vector} elements at a time",
                l.spec,
                l.alignment()
            ));
        }
        let scratch = MOMENTS * GROUPS * blocks(pixels, channels, vector)[0];
        Ok(Kernel { scratch, ..kernel.with([("CHANNELS", channels), ("SWISH", self.swish as usize)]) })
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
        let (pixels, channels, vector) = (x.rows(), x.cols(), kernel.block.vector);
        let blocks = blocks(pixels, channels, vector);
        let step = blocks[0] * lanes(channels, vector);
        let params = Params {
            x: x.address,
            y: y.address,
            weight: weight.address,
            bias: bias.address,
            partial: args.scratch,
            pixels: pixels as u32,
            blocks: blocks[0] as u32,
            rounds: (pixels / step) as u32,
            rest: (pixels % step) as u32,
            x_stride: x.stride(),
            y_stride: y.stride(),
        };
        let launch = |entry, blocks: usize| Launch::kernel(entry, [blocks as u32, 1, 1], THREADS as u32, 0, &params);
        vec![launch("group_norm_moments", blocks[0]), launch("group_norm", blocks[1])]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |shape: &[usize], swish, x, y| {
        let c = *shape.last().expect("channels");
        let inputs =
            vec![Spec { dtype: x, shape: Shape(shape.to_vec()) }, Spec::new(DType::F32, [c]), Spec::new(DType::F32, [c])];
        Case::new(GroupNorm { swish }, inputs, y)
    };
    vec![
        case(&[31, 17, 128], true, DType::BF16, DType::BF16),
        case(&[8, 12, 512], false, DType::F32, DType::F32),
        case(&[16, 24, 32], true, DType::BF16, DType::BF16),
        // Every block of both passes, with some lanes, or a part of a block's, one pixel longer; several batches of a thread.
        case(&[97, 101, 128], true, DType::BF16, DType::BF16),
        case(&[67, 73, 512], true, DType::F32, DType::F16),
        // A matrix, whose rows may lie apart.
        case(&[1100, 256], false, DType::BF16, DType::BF16),
        // The autoencoder's, of 1024x1024 pixels.
        case(&[128, 128, 512], true, DType::BF16, DType::BF16).timed(),
        case(&[1024, 1024, 128], true, DType::BF16, DType::BF16).timed(),
        case(&[512, 512, 512], true, DType::F32, DType::F16).timed(),
        case(&[1024, 1024, 128], true, DType::F32, DType::F16).timed(),
    ]
}
