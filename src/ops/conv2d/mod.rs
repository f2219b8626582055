//! Convolution of a picture: x [H, W, C], w [O, C, K, K], b [O], y [H', W', O]; channels last.
//!
//! x may be a strip of a picture's rows, which have the same results there as in the whole, to the bit. It brings the rows
//! above and below that its results read; zeros stand only where the picture ends.
//!
//! With `upsample` the input is read as if every pixel stood in a 2×2 square (nearest neighbour), without a buffer for it.
//! x and w are of one type, bf16, f16 or f32 (which the device multiplies as TF32: 11 bits, as f16); y and b of another,
//! bf16 or f32. Sums are f32, and there is one rounding, at the end.

mod hopper;
mod portable;
mod thin_in;
mod thin_out;

use anyhow::{Result, ensure};
use gemm::Parallelism;
use rayon::prelude::*;

use super::product::matmul;
use super::{Arch, Arg, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, Variant, View, WeightOrder};
use super::{code, dense, first_fit};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// In the order in which they are asked.
const VARIANTS: [Variant<Conv2d>; 4] = [hopper::VARIANT, thin_in::VARIANT, thin_out::VARIANT, portable::VARIANT];

/// Values of all taps of a few channels, or of all outputs, that the thin kernels take at a time.
const MOST_TAPS: usize = 32;

/// Rows of the lowest tile of any kernel.
const LOWEST_TILE: usize = 4;

/// Elements of the patch matrix that the reference builds at a time (16 MiB).
const PATCH_ELEMENTS: usize = 4 << 20;

/// A square convolution with zero padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Step between outputs, in input pixels.
    pub stride: usize,
    /// Zeros before the first row and column, after the last row and column.
    pub padding: (usize, usize),
    /// Double the input first.
    pub upsample: bool,
    /// Whether the input goes on above its first row, below its last: it is a strip of a picture, with the rows that its results
    /// need beyond their own, and no zeros stand there.
    pub goes_on: (bool, bool),
}

impl Conv2d {
    /// Stride 1, one zero on every side: 3×3, same size.
    pub const SAME: Conv2d = Conv2d { stride: 1, padding: (1, 1), upsample: false, goes_on: (false, false) };
    /// Stride 2, zeros at the right and bottom only: the autoencoder's downsampling.
    pub const HALVE: Conv2d = Conv2d { stride: 2, padding: (0, 1), upsample: false, goes_on: (false, false) };
    /// Nearest ×2, then 3×3 of the same size.
    pub const DOUBLE: Conv2d = Conv2d { stride: 1, padding: (1, 1), upsample: true, goes_on: (false, false) };

    /// The same of a strip; whether the picture goes on above it, below it.
    pub fn strip(self, above: bool, below: bool) -> Conv2d {
        Conv2d { goes_on: (above, below), ..self }
    }

    /// Rows of zeros before the first row, after the last.
    fn row_padding(&self) -> (usize, usize) {
        let unless = |goes_on, padding| if goes_on { 0 } else { padding };
        (unless(self.goes_on.0, self.padding.0), unless(self.goes_on.1, self.padding.1))
    }

    fn extent(&self, input: usize, padding: (usize, usize), kernel: usize) -> Option<usize> {
        let padded = input * (1 + self.upsample as usize) + padding.0 + padding.1;
        Some(padded.checked_sub(kernel)? / self.stride + 1)
    }
}

impl Op for Conv2d {
    fn kind(&self) -> &'static str {
        "conv2d"
    }

    fn attributes(&self) -> String {
        let upsample = if self.upsample { " upsample" } else { "" };
        let strip = match self.goes_on {
            (false, false) => "",
            (false, true) => " first strip",
            (true, true) => " middle strip",
            (true, false) => " last strip",
        };
        format!("stride {} padding {}+{}{upsample}{strip}", self.stride, self.padding.0, self.padding.1)
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let ([h, w, c], [o, i, k, k2]) = (&inputs[0].shape.0[..], &inputs[1].shape.0[..]) else {
            anyhow::bail!("a picture [H, W, C] and a weight [O, C, K, K] are needed");
        };
        ensure!(
            c == i && k == k2 && inputs[2].shape.0 == [*o],
            "the weight {} or bias {} does not fit {c} channels",
            inputs[1],
            inputs[2]
        );
        let (Some(height), Some(width)) = (self.extent(*h, self.row_padding(), *k), self.extent(*w, self.padding, *k)) else {
            anyhow::bail!("a picture of {h}x{w} is smaller than the kernel");
        };
        Ok(vec![Spec::new(inputs[0].dtype, [height, width, *o])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        let taps: usize = inputs[1].shape.0[1..].iter().product();
        Cost::streaming(2 * outputs[0].shape.elements() * taps, inputs, outputs)
    }

    /// Implicit GEMM on tensor cores, by the kernel that fits types and extents best.
    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        super::portable(arch)?;
        dense(inputs)?;
        dense(outputs)?;
        let [x, w, bias] = inputs else { return Unsupported::new("a convolution needs a picture, a weight and a bias") };
        let y = &outputs[0];
        let types = [x, w, bias, y].map(|l| l.spec.dtype);
        if types[0] != types[1] || ![DType::BF16, DType::F16, DType::F32].contains(&types[0]) {
            return Unsupported::new(format!(
                "the picture is {} and the weight {}; both must be bf16, both f16 or both f32",
                x.spec, w.spec
            ));
        }
        if types[2] != types[3] || ![DType::BF16, DType::F32].contains(&types[3]) {
            return Unsupported::new(format!(
                "the bias is {} and the result {}; both must be bf16 or both f32",
                bias.spec, y.spec
            ));
        }
        let whole = [Conv2d::SAME, Conv2d::HALVE, Conv2d::DOUBLE].contains(self);
        if !(whole || self.strip(false, false) == Conv2d::SAME) || w.spec.shape.0[2] != 3 {
            return Unsupported::new(format!(
                "{} with {}; there are 3x3 kernels for the same, half and double size, of strips for the same; 1x1 is a linear",
                self.attributes(),
                w.spec
            ));
        }
        let rows = y.spec.shape.0[0];
        if w.spec.shape.elements() > u32::MAX as usize || rows.div_ceil(LOWEST_TILE) > 65535 {
            return Unsupported::new(format!("{} rows of {} are more than the kernel counts in 32 bits", rows, w.spec));
        }
        first_fit(&VARIANTS, self, arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let [h, w, c] = inputs[0].spec.shape.0[..] else { unreachable!("checked by infer") };
        let [o, _, k, _] = inputs[1].spec.shape.0[..] else { unreachable!("checked by infer") };
        let width = outputs[0].spec.shape.0[1];
        let taps = k * k * c;
        // [O, C, K, K] -> [O, K, K, C], the order of a channels-last patch.
        let weight = inputs[1].f32();
        let filters: Vec<f32> = (0..o * taps).map(|i| weight[(i / taps * c + i % c) * k * k + i % taps / c]).collect();
        let x = inputs[0].f32();
        let rows_at_once = (PATCH_ELEMENTS / (width * taps)).max(1);
        let mut patches = Vec::new();
        for (block, y) in outputs[0].f32().chunks_mut(rows_at_once * width * o).enumerate() {
            let pixels = y.len() / o;
            patches.resize(pixels * taps, 0.0);
            patches.par_chunks_mut(taps).enumerate().for_each(|(i, patch)| {
                let at = block * rows_at_once * width + i;
                self.patch(x, [h, w, c], k, [at / width, at % width], patch);
            });
            matmul(&patches, &filters, true, y, pixels, taps, o, Parallelism::Rayon(0));
            y.chunks_exact_mut(o).for_each(|y| y.iter_mut().zip(inputs[2].f32()).for_each(|(y, b)| *y += b));
        }
    }

    fn weight_order(&self, input: usize) -> WeightOrder {
        if input == 1 { WeightOrder::ChannelsLast } else { WeightOrder::AsStored }
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        vec![(VARIANTS[kernel.variant].launch)(self, kernel, args)]
    }
}

/// Whether a dense operand starts at a multiple of 16 bytes.
fn aligned(view: &View) -> bool {
    (view.offset * view.spec.dtype.bytes()).is_multiple_of(16)
}

/// The types of picture and result as constants.
fn types(x: &View, y: &View) -> Result<[(&'static str, usize); 2], Unsupported> {
    Ok([("X_TYPE", code(x.spec.dtype)?), ("Y_TYPE", code(y.spec.dtype)?)])
}

/// Height, width and channels of a picture.
fn extents(picture: &Arg) -> [usize; 3] {
    [0, 1, 2].map(|i| picture.view.spec.shape.0[i])
}

/// Of x, w, bias and y.
fn addresses(args: &Args) -> [u64; 4] {
    [&args.inputs[0], &args.inputs[1], &args.inputs[2], &args.outputs[0]].map(|arg| arg.address)
}

impl Conv2d {
    /// The [K, K, C] inputs of output pixel `at` (row, column).
    fn patch(&self, x: &[f32], [h, w, c]: [usize; 3], k: usize, at: [usize; 2], patch: &mut [f32]) {
        let (scale, above) = (1 + self.upsample as usize, self.row_padding().0);
        for (tap, values) in patch.chunks_exact_mut(c).enumerate() {
            let row = (at[0] * self.stride + tap / k).checked_sub(above).filter(|&r| r < h * scale);
            let col = (at[1] * self.stride + tap % k).checked_sub(self.padding.0).filter(|&q| q < w * scale);
            match (row, col) {
                (Some(row), Some(col)) => values.copy_from_slice(&x[(row / scale * w + col / scale) * c..][..c]),
                _ => values.fill(0.0),
            }
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |h: usize, w: usize, c: usize, o: usize, how: Conv2d, x: DType, y: DType| {
        let inputs = vec![Spec::new(x, [h, w, c]), Spec::new(x, [o, c, 3, 3]), Spec::new(y, [o])];
        Case::new(how, inputs, y)
    };
    use DType::{BF16, F16, F32};
    let mut cases = vec![
        case(13, 10, 64, 32, Conv2d::SAME, BF16, BF16),
        case(12, 18, 32, 32, Conv2d::HALVE, BF16, BF16),
        case(13, 19, 72, 136, Conv2d::HALVE, BF16, BF16),
        case(16, 16, 3, 128, Conv2d::SAME, BF16, BF16),
        case(5, 270, 3, 64, Conv2d::SAME, BF16, BF16),
        case(9, 33, 2, 32, Conv2d::SAME, F16, F32),
        case(7, 9, 4, 32, Conv2d::SAME, BF16, BF16),
        case(9, 7, 32, 16, Conv2d::DOUBLE, F32, F32),
        case(9, 11, 32, 64, Conv2d::DOUBLE, F32, F32),
        case(8, 6, 128, 3, Conv2d::SAME, F32, F32),
        case(9, 21, 128, 3, Conv2d::SAME, F16, F32),
        case(29, 61, 64, 3, Conv2d::SAME, BF16, BF16),
        case(3, 5, 40, 3, Conv2d::SAME, BF16, BF16),
        case(11, 20, 128, 128, Conv2d::SAME, F16, F32),
        case(35, 17, 64, 256, Conv2d::SAME, BF16, BF16),
        case(35, 34, 128, 128, Conv2d::HALVE, BF16, BF16),
        case(1, 1, 64, 128, Conv2d::SAME, F16, F32),
        case(6, 17, 16, 256, Conv2d::SAME, F32, F32),
        case(6, 70, 16, 64, Conv2d::SAME, F16, F32),
        case(5, 33, 16, 32, Conv2d::SAME, BF16, BF16),
        // Strips, with odd extents and lower than a tile; of one row; with channels of none of the wide kernels.
        case(18, 19, 256, 128, Conv2d::SAME.strip(false, true), F16, F32),
        case(19, 35, 128, 128, Conv2d::SAME.strip(true, true), F16, F32),
        case(6, 17, 64, 128, Conv2d::SAME.strip(true, false), BF16, BF16),
        case(3, 21, 64, 128, Conv2d::SAME.strip(true, true), F16, F32),
        case(10, 19, 40, 24, Conv2d::SAME.strip(false, true), F16, F32),
        case(21, 18, 64, 32, Conv2d::SAME.strip(true, true), F16, F32),
        case(7, 11, 3, 32, Conv2d::SAME.strip(true, false), BF16, BF16),
        case(9, 33, 16, 64, Conv2d::SAME.strip(true, true), F16, F32),
        case(12, 31, 128, 3, Conv2d::SAME.strip(true, false), F16, F32),
        case(6, 9, 16, 32, Conv2d::SAME.strip(false, true), F32, F32),
        // The autoencoder's, of 1024x1024 pixels.
        case(1024, 1024, 3, 128, Conv2d::SAME, BF16, BF16).timed(),
        case(1024, 1024, 128, 128, Conv2d::SAME, BF16, BF16).timed(),
        case(1024, 1024, 128, 128, Conv2d::HALVE, BF16, BF16).timed(),
        case(256, 256, 512, 512, Conv2d::SAME, BF16, BF16).timed(),
        case(128, 128, 16, 512, Conv2d::SAME, F16, F32).timed(),
        case(512, 512, 256, 256, Conv2d::SAME, F16, F32).timed(),
        case(1024, 1024, 128, 128, Conv2d::SAME, F16, F32).timed(),
        case(128, 128, 512, 512, Conv2d::DOUBLE, F32, F32).timed(),
        case(1024, 1024, 128, 3, Conv2d::SAME, F16, F32).timed(),
        // A strip of 2048x2048 pixels.
        case(130, 2048, 256, 128, Conv2d::SAME.strip(true, true), F16, F32).timed(),
    ];
    for case in cases.iter_mut().filter(|case| case.outputs == [F32]) {
        let f16 = case.inputs[0].dtype == F16;
        (case.bound, case.reason) = match f16 {
            true => (1e-9, "exact products, summed in another order and truncated as tensor cores do"),
            false => (4e-7, "two roundings to TF32, each of at most 2^-11 of the value"),
        };
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{noise, run_f32};

    #[test]
    fn follows_the_definition() {
        let (h, w, c, o) = (6, 5, 2, 3);
        let (x, weight, bias) = (noise(h * w * c, 1), noise(o * c * 9, 2), noise(o, 3));
        for how in [Conv2d::SAME, Conv2d::HALVE, Conv2d::DOUBLE] {
            let operands = [
                (Spec::new(DType::F32, [h, w, c]), &x[..]),
                (Spec::new(DType::F32, [o, c, 3, 3]), &weight),
                (Spec::new(DType::F32, [o]), &bias),
            ];
            let y = run_f32(&how, &operands);
            let scale = 1 + how.upsample as usize;
            let [height, width] = [h, w].map(|n| how.extent(n, how.padding, 3).unwrap());
            for at in 0..height * width * o {
                let (row, col, out) = (at / o / width, at / o % width, at % o);
                let mut sum = bias[out] as f64;
                for (i, ky, kx) in (0..c * 9).map(|i| (i / 9, i / 3 % 3, i % 3)) {
                    let (r, q) = (
                        (row * how.stride + ky) as isize - how.padding.0 as isize,
                        (col * how.stride + kx) as isize - how.padding.0 as isize,
                    );
                    if r >= 0 && q >= 0 && (r as usize) < h * scale && (q as usize) < w * scale {
                        let pixel = x[((r as usize / scale) * w + q as usize / scale) * c + i];
                        sum += pixel as f64 * weight[((out * c + i) * 3 + ky) * 3 + kx] as f64;
                    }
                }
                assert!((sum - y[at] as f64).abs() < 1e-5, "{how:?} at {row},{col},{out}");
            }
        }
    }

    /// Larger than what the reference multiplies at a time, so that its parts are others than those of the strips.
    #[test]
    fn strips_are_the_whole_to_the_bit() {
        let (h, w, c, o) = (37, 301, 64, 24);
        let (x, weight, bias) = (noise(h * w * c, 1), noise(o * c * 9, 2), noise(o, 3));
        let convolve = |rows: std::ops::Range<usize>| {
            let (above, below) = (rows.start > 0, rows.end < h);
            let read = rows.start - above as usize..rows.end + below as usize;
            let operands = [
                (Spec::new(DType::F32, [read.len(), w, c]), &x[read.start * w * c..read.end * w * c]),
                (Spec::new(DType::F32, [o, c, 3, 3]), &weight[..]),
                (Spec::new(DType::F32, [o]), &bias[..]),
            ];
            run_f32(&Conv2d::SAME.strip(above, below), &operands)
        };
        let whole = convolve(0..h);
        assert!(whole.len() == h * w * o && h * w * c * 9 > PATCH_ELEMENTS);
        for height in [1, 5, 16, 36] {
            let strips: Vec<f32> = (0..h).step_by(height).flat_map(|top| convolve(top..(top + height).min(h))).collect();
            assert!(strips.iter().map(|v| v.to_bits()).eq(whole.iter().map(|v| v.to_bits())), "strips of {height} rows");
        }
    }
}
