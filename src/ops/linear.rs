//! `y = act(x · Wᵀ + b)`: x [.., K], W [N, K], b [N], y [.., N].
//!
//! The tanh form of GELU can be applied in the product's epilogue, before the one rounding. (The official code rounds to
//! bf16 in between; leaving that out brings the result closer to float32.) Both operands may be rounded to eight bits.

use std::sync::Arc;

use anyhow::{Result, ensure};
use gemm::Parallelism;
use rayon::prelude::*;

use super::activation::gelu_tanh;
use super::product::matmul;
use super::{
    Arch, Arg, Args, Case, Cost, EightBit, Kernel, LinearInt8, Op, Operand, Output, ProductConfig, Unsupported, View, portable,
};
use crate::cuda::{Gemm, Launch, Matrix};
use crate::tensor::{DType, Spec};

/// A matrix product with a weight, optional bias and optional GELU.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Apply the tanh form of GELU to the result.
    pub gelu: bool,
    /// Round both operands, row by row, before they are multiplied.
    pub eight_bit: Option<EightBit>,
}

impl Op for Linear {
    fn kind(&self) -> &'static str {
        "linear"
    }

    fn attributes(&self) -> String {
        let words = [self.gelu.then_some("gelu_tanh"), self.eight_bit.map(EightBit::name)];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (x, w) = (&inputs[0], &inputs[1]);
        ensure!(w.shape.0.len() == 2 && w.shape.cols() == x.shape.cols(), "the weight {w} does not fit rows of {x}");
        if let Some(b) = inputs.get(2) {
            ensure!(b.shape.0 == [w.shape.rows()], "the bias {b} does not fit the weight {w}");
        }
        let mut shape = x.shape.clone();
        *shape.0.last_mut().expect("rank of at least one") = w.shape.rows();
        Ok(vec![Spec { dtype: x.dtype, shape }])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(2 * outputs[0].shape.elements() * inputs[0].shape.cols(), inputs, outputs)
    }

    /// cuBLASLt: operands of one type, a result of that type or f32, a bias of the result's type, and rows that start at
    /// multiples of 8 bytes (16 take its fastest kernels). f32 is multiplied as TF32.
    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        if let Some(format) = self.eight_bit {
            return Unsupported::new(format!("the operands are rounded to {}; the kernel takes rounded ones", format.name()));
        }
        let dtype = inputs[0].spec.dtype;
        if inputs[1].spec.dtype != dtype {
            return Unsupported::new(format!("the operands are {} and {}; they must have one type", dtype, inputs[1].spec.dtype));
        }
        let result = outputs[0].spec.dtype;
        if ![DType::BF16, DType::F16, DType::F32].contains(&dtype) || (result != dtype && result != DType::F32) {
            return Unsupported::new(format!(
                "the operands are {dtype} and the result {result}; operands must be bf16, f16 or f32, the result the same or f32"
            ));
        }
        if let Some(bias) = inputs.get(2).filter(|bias| bias.spec.dtype != result) {
            return Unsupported::new(format!("the bias is {}; it must have the result's type {result}", bias.spec));
        }
        let alignment = inputs[..2].iter().chain(outputs).map(View::alignment).min().unwrap_or(16);
        if alignment < 8 {
            return Unsupported::new(format!(
                "the rows of an operand start at multiples of {alignment} bytes; they must start at multiples of 8"
            ));
        }
        let config = ProductConfig { bias: inputs.len() > 2, gelu: self.gelu, alignment };
        Ok(Kernel::product(config, Gemm::WORKSPACE))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (m, k, n) = (inputs[0].rows(), inputs[0].cols(), outputs[0].cols());
        let y = outputs[0].f32();
        let (x, w, bias) = (inputs[0].f32(), inputs[1].f32(), inputs.get(2).map(Operand::f32));
        match self.eight_bit {
            Some(format) => format.product(x, w, bias, y, k),
            None => matmul(x, w, true, y, m, k, n, Parallelism::Rayon(0)),
        }
        y.par_chunks_mut(n).for_each(|row| {
            if let (Some(bias), None) = (bias, self.eight_bit) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
            if self.gelu {
                row.iter_mut().for_each(|y| *y = gelu_tanh(*y));
            }
        });
    }

    fn in_eight_bits(&self, format: EightBit) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Linear { eight_bit: Some(format), ..self.clone() }))
    }

    fn of_integers(&self) -> Option<Arc<dyn Op>> {
        (self.eight_bit == Some(EightBit::Int8)).then(|| Arc::new(LinearInt8 { gelu: self.gelu }) as Arc<dyn Op>)
    }

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        let [x, w] = [0, 1].map(|i| &args.inputs[i]);
        let y = &args.outputs[0];
        let matrix = |arg: &Arg| Matrix { address: arg.address, stride: arg.view.row_stride, dtype: arg.dtype() };
        vec![Launch::Gemm(Gemm {
            m: x.rows(),
            n: y.cols(),
            k: x.cols(),
            x: matrix(x),
            w: matrix(w),
            bias: args.inputs.get(2).map(|bias| bias.address),
            y: matrix(y),
            gelu: self.gelu,
            workspace: args.scratch,
        })]
    }
}

pub(super) fn cases() -> Vec<Case> {
    // The transformer's own widths with few rows; odd row counts; a bias-free one; a velocity head.
    let case = |rows: usize, k: usize, n: usize, bias: bool, gelu: bool| {
        let mut inputs = vec![Spec::new(DType::BF16, [rows, k]), Spec::new(DType::BF16, [n, k])];
        if bias {
            inputs.push(Spec::new(DType::BF16, [n]));
        }
        Case::new(Linear { gelu, eight_bit: None }, inputs, DType::BF16)
    };
    vec![
        case(77, 3072, 3072, true, false),
        case(33, 3072, 1536, true, true),
        case(130, 512, 256, false, false),
        case(256, 3072, 64, true, false),
        case(1, 256, 3072, true, false),
        // The transformer's blocks, of 512x512 and of 1024x1024 pixels.
        case(4096, 3072, 9216, true, false).timed(),
        case(4781, 3072, 12288, true, true).timed(),
        case(4781, 15360, 3072, true, false).timed(),
        case(16384, 3072, 3072, true, false).timed(),
        case(16384, 3072, 9216, true, false).timed(),
        case(16384, 3072, 12288, true, true).timed(),
        case(16384, 12288, 3072, true, false).timed(),
        case(17069, 3072, 9216, true, false).timed(),
        case(17069, 3072, 12288, true, true).timed(),
        case(17069, 15360, 3072, true, false).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::run_f32;

    #[test]
    fn product_bias_and_gelu() {
        let spec = |shape: &[usize]| Spec::new(DType::F32, crate::tensor::Shape(shape.to_vec()));
        let (x, w, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0, 1.0, -1.0], [0.5, 0.0, 0.0]);
        let operands = [(spec(&[2, 2]), &x[..]), (spec(&[3, 2]), &w[..]), (spec(&[3]), &b[..])];
        assert_eq!(run_f32(&Linear { gelu: false, eight_bit: None }, &operands), [1.5, 2.0, -1.0, 3.5, 4.0, -1.0]);
        // gelu_tanh(-1) = -0.15880801 (PyTorch's formula evaluated in float64).
        let y = run_f32(&Linear { gelu: true, eight_bit: None }, &operands);
        assert!((y[2] + 0.158_808).abs() < 1e-6, "{y:?}");
    }

    #[test]
    fn operands_of_eight_bits_keep_bias_and_gelu_and_have_no_kernel() {
        let spec = |shape: &[usize]| Spec::new(DType::F32, crate::tensor::Shape(shape.to_vec()));
        // Of x 127 steps of 1, of w 127 of 1/127: 2.4 becomes 2, half a step is even.
        let (x, w, b) = ([127.0, 2.4], [1.0, -0.5], [-127.0]);
        let operands = [(spec(&[1, 2]), &x[..]), (spec(&[1, 2]), &w[..]), (spec(&[1]), &b[..])];
        let op = Linear { gelu: true, eight_bit: None }.in_eight_bits(EightBit::Int8).unwrap();
        let sum = 127.0 - 2.0 * 64.0 / 127.0 - 127.0;
        let y = run_f32(&*op, &operands)[0];
        assert!((y - gelu_tanh(sum)).abs() < 1e-5, "{y}");
        let views = operands.map(|(spec, _)| View::dense(&spec));
        let refused = op.select(Arch(90), &views, &[View::dense(&spec(&[1, 1]))]).unwrap_err();
        assert!(refused.reason.contains("int8; the kernel takes rounded ones"), "{}", refused.reason);
    }
}
