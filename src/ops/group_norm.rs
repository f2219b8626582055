//! Group norm over a picture, with affine weights and optional swish: x, y [H, W, C]; weight, bias [C] f32.
//!
//! Each of 32 groups of neighbouring channels is brought to mean 0 and variance 1 over all pixels (eps 1e-6), then
//! `y = n·weight + bias`, then `y·σ(y)`. Statistics and arithmetic in f32, one rounding.
//!
//! A picture that is normed strip by strip has its statistics from an op of their own, which reads all of it: x [H, W, C] to
//! [192] f32. Strips with these statistics are, to the bit, what norming the whole gives.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::activation::silu;
use super::{Arch, Arg, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, row_kernel, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Shape, Spec};

const GROUPS: usize = 32;
const EPS: f64 = 1e-6;
/// Values of a group's statistics: the mean and 1/σ, each as three f32 whose sum it is, so that f64 keeps all its bits.
const OF_GROUP: usize = 6;

/// Group normalisation, fused with the swish that usually follows. A fourth operand is the statistics of the picture that x is a
/// part of; without it they are those of x.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Apply `y·σ(y)` at the end.
    pub swish: bool,
}

/// What [`GroupNorm`] of a picture's strips needs to know of all of it.
#[derive(Clone, Copy, Debug)]
pub struct GroupStatistics;

/// Threads of a block; as in the kernel.
const THREADS: usize = 512;
/// Bytes of a mean with its deviations.
const MOMENTS: usize = 8;
/// Most blocks of the first pass, one for each multiprocessor of an H100; as in the kernel, whose second pass combines the
/// moments of all in every block.
const MOST_BLOCKS: usize = 132;

/// As in the kernel; what an op has not is zero.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit, bytemuck::Zeroable)]
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
    statistics: u64,
}
const _: () = assert!(size_of::<Params>() == 72);

impl Params {
    /// Of what both ops have: the picture, and the first pass over it.
    fn new(x: &Arg, kernel: &Kernel, args: &Args) -> Params {
        let (pixels, channels, vector) = (x.rows(), x.cols(), kernel.block.vector);
        let blocks = blocks(pixels, channels, vector)[0];
        let step = blocks * lanes(channels, vector);
        Params {
            x: x.address,
            partial: args.scratch,
            pixels: pixels as u32,
            blocks: blocks as u32,
            rounds: (pixels / step) as u32,
            rest: (pixels % step) as u32,
            x_stride: x.stride(),
            ..bytemuck::Zeroable::zeroed()
        }
    }
}

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

/// The kernel that reads x, writes y, and has the first pass's moments as working memory unless the statistics are given.
fn kernel(arch: Arch, x: &View, y: &View, swish: bool, given: bool) -> Result<Kernel, Unsupported> {
    let [x, y] = [x, y].map(std::slice::from_ref);
    let kernel = row_kernel("group_norm", arch, x, y)?;
    let (pixels, channels) = (x[0].spec.shape.rows(), x[0].spec.shape.cols());
    let vector = kernel.block.vector;
    if !(channels / vector).is_power_of_two() || channels / vector > THREADS {
        let reason =
            format!("the picture has {channels} channels, read {vector} at a time; {THREADS} threads must take whole pixels");
        return Unsupported::new(reason);
    }
    let scratch = if given { 0 } else { MOMENTS * GROUPS * blocks(pixels, channels, vector)[0] };
    let constants = [("CHANNELS", channels), ("SWISH", swish as usize), ("GIVEN", given as usize)];
    Ok(Kernel { scratch, ..kernel.with(constants) })
}

/// The mean and 1/σ of each group, accumulated in f64.
fn statistics(x: &[f32], c: usize) -> Vec<[f64; 2]> {
    let width = c / GROUPS;
    let of_group = |g| {
        let values = || x.chunks_exact(c).flat_map(|pixel| &pixel[g * width..][..width]).map(|&v| v as f64);
        let n = (x.len() / GROUPS) as f64;
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        [mean, 1.0 / (variance + EPS).sqrt()]
    };
    (0..GROUPS).into_par_iter().map(of_group).collect()
}

/// Three f32 whose sum is `value`.
fn split(value: f64) -> [f32; 3] {
    let first = value as f32;
    let second = (value - first as f64) as f32;
    [first, second, (value - first as f64 - second as f64) as f32]
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
        let given = inputs.get(3).is_none_or(|statistics| statistics.shape.0 == [GROUPS * OF_GROUP]);
        ensure!(given, "statistics have {} values, {OF_GROUP} of each of {GROUPS} groups", GROUPS * OF_GROUP);
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        let mut cost = Cost::streaming(12 * outputs[0].shape.elements(), inputs, outputs);
        if inputs.len() == 3 {
            cost.bytes += inputs[0].bytes() as u64; // read twice: statistics, then values
        }
        cost
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        inputs[1..].iter().try_for_each(|operand| typed(operand, DType::F32))?;
        let kernel = kernel(arch, &inputs[0], &outputs[0], self.swish, inputs.len() == 4)?;
        let vector = kernel.block.vector;
        if let Some(l) = inputs[1..3].iter().find(|l| l.alignment() < 4 * vector.min(4)) {
            return Unsupported::new(format!(
                "{} starts at a multiple of {} bytes; the kernel reads {vector} elements at a time",
                l.spec,
                l.alignment()
            ));
        }
        Ok(kernel)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let c = inputs[0].cols();
        let (x, weight, bias) = (inputs[0].f32(), inputs[1].f32(), inputs[2].f32());
        let whole = |parts: &[f32]| parts.iter().map(|&part| part as f64).sum::<f64>();
        let statistics = match inputs.get(3) {
            Some(given) => given.f32().chunks_exact(OF_GROUP).map(|g| [whole(&g[..3]), whole(&g[3..])]).collect(),
            None => statistics(x, c),
        };
        outputs[0].f32().par_chunks_mut(c).zip(x.par_chunks(c)).for_each(|(y, x)| {
            for i in 0..c {
                let [mean, inverse] = statistics[i / (c / GROUPS)];
                let n = ((x[i] as f64 - mean) * inverse) as f32 * weight[i] + bias[i];
                y[i] = if self.swish { silu(n) } else { n };
            }
        });
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let ([x, weight, bias, given @ ..], y) = (&args.inputs[..], &args.outputs[0]) else { unreachable!("checked by infer") };
        let params = Params {
            y: y.address,
            weight: weight.address,
            bias: bias.address,
            statistics: given.first().map_or(0, |given| given.address),
            y_stride: y.stride(),
            ..Params::new(x, kernel, args)
        };
        let [first, second] = blocks(x.rows(), x.cols(), kernel.block.vector);
        let launch = |entry, blocks: usize| Launch::kernel(entry, [blocks as u32, 1, 1], THREADS as u32, 0, &params);
        let moments = given.is_empty().then(|| launch("group_norm_moments", first));
        moments.into_iter().chain([launch("group_norm", second)]).collect()
    }
}

impl Op for GroupStatistics {
    fn kind(&self) -> &'static str {
        "group_statistics"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let c = inputs[0].shape.cols();
        ensure!(c.is_multiple_of(GROUPS), "the picture has {c} channels; {GROUPS} groups must divide them");
        Ok(vec![Spec::new(DType::F32, [GROUPS * OF_GROUP])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(4 * inputs[0].shape.elements(), inputs, outputs)
    }

    /// The kernel writes x nowhere: the vectors are those of a norm whose result is at least as aligned.
    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        typed(&outputs[0], DType::F32)?;
        kernel(arch, &inputs[0], &inputs[0], false, false)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let found = statistics(inputs[0].f32(), inputs[0].cols());
        let parts = found.iter().flatten().flat_map(|&value| split(value));
        outputs[0].f32().iter_mut().zip(parts).for_each(|(y, part)| *y = part);
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let x = &args.inputs[0];
        let params = Params { statistics: args.outputs[0].address, ..Params::new(x, kernel, args) };
        let launch = |entry, blocks: u32| Launch::kernel(entry, [blocks, 1, 1], THREADS as u32, 0, &params);
        vec![launch("group_norm_moments", params.blocks), launch("group_norm_statistics", 1)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = |shape: &[usize], x| {
        let c = *shape.last().expect("channels");
        vec![Spec { dtype: x, shape: Shape(shape.to_vec()) }, Spec::new(DType::F32, [c]), Spec::new(DType::F32, [c])]
    };
    let case = |shape: &[usize], swish, x, y| Case::new(GroupNorm { swish }, inputs(shape, x), y);
    let given = |shape: &[usize], x, y| {
        let statistics = Spec::new(DType::F32, [GROUPS * OF_GROUP]);
        Case::new(GroupNorm { swish: true }, [inputs(shape, x), vec![statistics]].concat(), y)
    };
    let statistics = |shape: &[usize], x| Case {
        bound: 1e-11,
        reason: "sums in f32 of up to 8,000 values a thread, against sums in f64",
        ..Case::new(GroupStatistics, inputs(shape, x)[..1].to_vec(), DType::F32)
    };
    use DType::{BF16, F16, F32};
    vec![
        case(&[31, 17, 128], true, BF16, BF16),
        case(&[8, 12, 512], false, F32, F32),
        case(&[16, 24, 32], true, BF16, BF16),
        // Every block of both passes, with some lanes, or a part of a block's, one pixel longer; several batches of a thread.
        case(&[97, 101, 128], true, BF16, BF16),
        case(&[67, 73, 512], true, F32, F16),
        // A matrix, whose rows may lie apart.
        case(&[1100, 256], false, BF16, BF16),
        // Strips and the statistics of their picture.
        given(&[3, 37, 256], F32, F16),
        given(&[19, 35, 128], F32, F16),
        given(&[97, 101, 128], BF16, BF16),
        given(&[300, 64], F32, F32),
        statistics(&[67, 73, 256], F32),
        statistics(&[97, 101, 128], BF16),
        statistics(&[1, 5, 32], F32),
        // The autoencoder's, of 1024x1024 pixels.
        case(&[128, 128, 512], true, BF16, BF16).timed(),
        case(&[1024, 1024, 128], true, BF16, BF16).timed(),
        case(&[512, 512, 512], true, F32, F16).timed(),
        case(&[1024, 1024, 128], true, F32, F16).timed(),
        // Of 2048x2048 pixels, in strips.
        given(&[130, 2048, 256], F32, F16).timed(),
        statistics(&[2048, 2048, 128], F32).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{noise, run_f32};

    /// Also with values of a large mean, which f32 does not keep.
    #[test]
    fn strips_with_the_statistics_of_all_are_the_whole_to_the_bit() {
        let (h, w, c) = (23, 9, 64);
        let x: Vec<f32> = noise(h * w * c, 1).iter().map(|v| v * 3.7 + 11.3).collect();
        let (weight, bias) = ((Spec::new(DType::F32, [c]), noise(c, 2)), (Spec::new(DType::F32, [c]), noise(c, 3)));
        let picture = |rows: usize| Spec::new(DType::F32, [rows, w, c]);
        let affine = [(weight.0, &weight.1[..]), (bias.0, &bias.1[..])];
        let op = GroupNorm { swish: true };
        let whole = run_f32(&op, &[vec![(picture(h), &x[..])], affine.to_vec()].concat());
        let found = run_f32(&GroupStatistics, &[(picture(h), &x)]);
        let statistics = (Spec::new(DType::F32, [GROUPS * OF_GROUP]), &found[..]);
        let mut strips = Vec::new();
        for rows in [0..1, 1..8, 8..23] {
            let strip = (picture(rows.len()), &x[rows.start * w * c..rows.end * w * c]);
            strips.extend(run_f32(&op, &[vec![strip], affine.to_vec(), vec![statistics.clone()]].concat()));
        }
        assert!(strips.iter().map(|v| v.to_bits()).eq(whole.iter().map(|v| v.to_bits())));
        for value in [0.0, 1.0 / 3.0, -11.3e7, std::f64::consts::PI * 1e-20] {
            assert_eq!(split(value).iter().map(|&part| part as f64).sum::<f64>(), value);
        }
    }
}
