//! `y = act(x · Wᵀ ∘ scales + b)` of rows that were rounded to integers of eight bits: x [R, K] and W [N, K] s8, a scale for each
//! row of x [R] f32, scale and bias for each row of W side by side [2·N] f32; y [R, N].
//!
//! To the bit what [`Linear`](super::Linear) gives of the values that were rounded. Sums of integers are exact; the product of two
//! scales, and the scaled sum with its bias, are rounded to f32 once each. The tanh form of GELU can follow.

mod hopper;

use std::ops::Range;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::activation::gelu_tanh;
use super::product::product_of_integers;
use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, Variant, View, first_fit, portable, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// In the order in which they are asked.
const VARIANTS: [Variant<LinearInt8>; 1] = [hopper::VARIANT];

/// Of so many columns 32 bits hold every sum: 2¹⁷ · 127² is below 2³¹.
const MOST_COLUMNS: usize = 1 << 17;

/// How a weight [N, K] lies on a device: N·K integers, then for each row a pair of f32, its scale and the module's bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// How many rows it has.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

impl Quantized {
    /// Bytes of a row's scale and bias.
    pub const PAIR: usize = 8;

    /// Bytes of all of it.
    pub fn bytes(self) -> usize {
        self.rows * (self.cols + Self::PAIR)
    }

    /// Where the pairs of some rows lie.
    pub fn pairs(self, rows: Range<usize>) -> Range<usize> {
        let start = self.rows * self.cols;
        start + rows.start * Self::PAIR..start + rows.end * Self::PAIR
    }
}

/// A matrix product of integers with a weight, optional GELU.
#[derive(Clone, Copy, Debug)]
pub struct LinearInt8 {
    /// Apply the tanh form of GELU to the result.
    pub gelu: bool,
}

impl Op for LinearInt8 {
    fn kind(&self) -> &'static str {
        "linear_int8"
    }

    fn attributes(&self) -> String {
        if self.gelu { "gelu_tanh".into() } else { String::new() }
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [x, x_scales, w, columns] = inputs else { anyhow::bail!("linear_int8 takes 4 operands, not {}", inputs.len()) };
        let matrices = x.shape.0.len() == 2 && w.shape.0.len() == 2;
        ensure!(matrices && w.shape.cols() == x.shape.cols(), "the weight {w} does not fit rows of {x}");
        ensure!(x_scales.shape.0 == [x.shape.rows()], "the scales {x_scales} do not fit rows of {x}");
        ensure!(columns.shape.0 == [2 * w.shape.rows()], "scales and biases {columns} do not fit the weight {w}");
        Ok(vec![Spec::new(DType::BF16, [x.shape.rows(), w.shape.rows()])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(2 * outputs[0].shape.elements() * inputs[0].shape.cols(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        for (operand, dtype) in inputs.iter().chain(outputs).zip([DType::S8, DType::F32, DType::S8, DType::F32, DType::BF16]) {
            typed(operand, dtype)?;
        }
        first_fit(&VARIANTS, self, arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let [x, x_scales, w, columns] = [0, 1, 2, 3].map(|i| inputs[i].f32());
        let (k, n) = (inputs[0].cols(), outputs[0].cols());
        let (scales, biases): (Vec<f32>, Vec<f32>) =
            columns.as_chunks::<2>().0.iter().map(|&[scale, bias]| (scale, bias)).unzip();
        let y = outputs[0].f32();
        product_of_integers([x, w], [x_scales, &scales], &biases, y, k);
        if self.gelu {
            y.par_chunks_mut(n).for_each(|row| row.iter_mut().for_each(|y| *y = gelu_tanh(*y)));
        }
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        vec![(VARIANTS[kernel.variant].launch)(self, kernel, args)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |rows: usize, k: usize, n: usize, gelu: bool| {
        let inputs = vec![
            Spec::new(DType::S8, [rows, k]),
            Spec::new(DType::F32, [rows]),
            Spec::new(DType::S8, [n, k]),
            Spec::new(DType::F32, [2 * n]),
        ];
        let case = Case { least: Arch(90), ..Case::new(LinearInt8 { gelu }, inputs, DType::BF16) };
        match gelu {
            true => Case { reason: "the device's tanh errs by 2^-10.9, and one rounding to bf16", ..case },
            false => Case { bound: 0.0, reason: "exact sums, and the same roundings after them", ..case },
        }
    };
    vec![
        case(77, 3072, 3072, false),
        case(33, 3072, 1536, true),
        // Fewer slices than the kernel holds, no whole slices, no whole tiles.
        case(300, 256, 768, false),
        case(5, 48, 24, false),
        case(700, 1040, 520, true),
        // The transformer's blocks, of 512x512 and of 1024x1024 pixels.
        case(4096, 3072, 9216, false).timed(),
        case(4781, 3072, 12288, true).timed(),
        case(4781, 15360, 3072, false).timed(),
        case(685, 3072, 9216, false).timed(),
        case(685, 12288, 3072, false).timed(),
        case(16384, 3072, 3072, false).timed(),
        case(16384, 3072, 9216, false).timed(),
        case(16384, 3072, 12288, true).timed(),
        case(16384, 12288, 3072, false).timed(),
        case(17069, 3072, 9216, false).timed(),
        case(17069, 3072, 12288, true).timed(),
        case(17069, 15360, 3072, false).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{noise, run_f32};
    use crate::ops::{EightBit, Linear, QuantizeRows};

    #[test]
    fn scales_and_biases_lie_side_by_side() {
        let spec = |dtype, shape: &[usize]| Spec::new(dtype, crate::tensor::Shape(shape.to_vec()));
        let operands = [
            (spec(DType::S8, &[2, 2]), &[127.0, -3.0, 1.0, 2.0][..]),
            (spec(DType::F32, &[2]), &[0.5, 2.0]),
            (spec(DType::S8, &[2, 2]), &[1.0, 1.0, -1.0, 4.0]),
            (spec(DType::F32, &[4]), &[0.25, 1.0, 3.0, -2.0]),
        ];
        // 124·0.125 + 1, -139·1.5 - 2, 3·0.5 + 1, 7·6 - 2.
        assert_eq!(run_f32(&LinearInt8 { gelu: false }, &operands), [16.5, -210.5, 2.5, 40.0]);
    }

    #[test]
    fn rows_rounded_apart_give_what_linear_gives() {
        let (m, k, n) = (5, 1100, 6);
        let spec = |dtype, shape: &[usize]| Spec::new(dtype, crate::tensor::Shape(shape.to_vec()));
        let (x, w, b) = (noise(m * k, 1), noise(n * k, 2), noise(n, 3));
        let rounded = |values: &[f32], rows: usize| {
            let specs = [spec(DType::F32, &[rows, k])];
            let mut outputs: Vec<_> = QuantizeRows.infer(&specs).unwrap().into_iter().map(Output::zeros).collect();
            let values = crate::ops::Values::F32(values);
            QuantizeRows.reference(&[Operand { spec: specs[0].clone(), values }], &mut outputs);
            let scales = outputs[1].f32().to_vec();
            (outputs[0].f32().to_vec(), scales)
        };
        let ((x8, x_scales), (w8, w_scales)) = (rounded(&x, m), rounded(&w, n));
        let columns: Vec<f32> = w_scales.iter().zip(&b).flat_map(|(&scale, &bias)| [scale, bias]).collect();
        for gelu in [false, true] {
            let ours = run_f32(
                &LinearInt8 { gelu },
                &[
                    (spec(DType::S8, &[m, k]), &x8),
                    (spec(DType::F32, &[m]), &x_scales),
                    (spec(DType::S8, &[n, k]), &w8),
                    (spec(DType::F32, &[2 * n]), &columns),
                ],
            );
            let op = Linear { gelu, eight_bit: Some(EightBit::Int8) };
            let of_floats = [(spec(DType::F32, &[m, k]), &x[..]), (spec(DType::F32, &[n, k]), &w), (spec(DType::F32, &[n]), &b)];
            assert_eq!(ours, run_f32(&op, &of_floats));
        }
    }
}
