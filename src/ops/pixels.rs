//! Pixels in: `y = x/255·2 − 1`, x [H, W, 3] u8. Pixels out: `y = (clamp(x, −1, 1)·0.5 + 0.5)·255` as u8, with the number of
//! values that were not finite. The official code truncates; diffusers rounds, halves to even.

use anyhow::{Result, ensure};

use super::{Arch, Args, BLOCK, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, blocks, dense, row_kernel, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// 8-bit pixels to the autoencoder's input in [-1, 1].
#[derive(Clone, Copy, Debug)]
pub struct PixelsIn(pub DType);

/// The autoencoder's output to 8-bit pixels and a count [1] of values that are NaN or infinite.
#[derive(Clone, Copy, Debug)]
pub struct PixelsOut(pub Levels);

/// Which of 256 levels a value becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Levels {
    /// The one below.
    Truncated,
    /// The nearest, of two the even one.
    Nearest,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    y: u64,
    faults: u64,
    vectors: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 32);

/// Both directions stream a picture as the one row that it is in memory.
fn kernel(pixels_in: bool, arch: Arch, x: &View, y: &View) -> Result<Kernel, Unsupported> {
    dense(&[x.clone(), y.clone()])?;
    let row = |l: &View| {
        let elements = l.spec.shape.elements();
        View { spec: Spec::new(l.spec.dtype, [elements]), row_stride: elements, offset: l.offset }
    };
    let kernel = row_kernel("pixels", arch, &[row(x)], &[row(y)])?;
    Ok(kernel.with([("IN", pixels_in as usize)]))
}

/// The launch of either entry.
fn launch(entry: &'static str, kernel: &Kernel, args: &Args, faults: u64) -> Launch {
    let (x, y) = (&args.inputs[0], &args.outputs[0]);
    let vectors = x.view.spec.shape.elements() / kernel.block.vector;
    let params = Params { x: x.address, y: y.address, faults, vectors: vectors as u32, unused: 0 };
    Launch::kernel(entry, blocks(vectors), BLOCK, 0, &params)
}

impl Op for PixelsIn {
    fn kind(&self) -> &'static str {
        "pixels_in"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        ensure!(inputs[0].dtype == DType::U8, "the pixels are {}; they must be u8", inputs[0]);
        Ok(vec![Spec { dtype: self.0, shape: inputs[0].shape.clone() }])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(3 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        typed(&inputs[0], DType::U8)?;
        kernel(true, arch, &inputs[0], &outputs[0])
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        outputs[0].f32().iter_mut().zip(inputs[0].u8()).for_each(|(y, &x)| *y = x as f32 / 255.0 * 2.0 - 1.0);
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        vec![launch("pixels_in", kernel, args, 0)]
    }
}

impl Op for PixelsOut {
    fn kind(&self) -> &'static str {
        "pixels_out"
    }

    fn attributes(&self) -> String {
        match self.0 {
            Levels::Truncated => String::new(),
            Levels::Nearest => "nearest".to_string(),
        }
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(vec![Spec { dtype: DType::U8, shape: inputs[0].shape.clone() }, Spec::new(DType::I32, [1])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(5 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        typed(&outputs[0], DType::U8)?;
        Ok(kernel(false, arch, &inputs[0], &outputs[0])?.with([("NEAREST", (self.0 == Levels::Nearest) as usize)]))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let x = inputs[0].f32();
        let level = |x: f32| match (self.0, (x.clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0) {
            (Levels::Truncated, value) => value as u8,
            (Levels::Nearest, value) => value.round_ties_even() as u8,
        };
        outputs[0].u8().iter_mut().zip(x).for_each(|(y, x)| *y = level(*x));
        outputs[1].i32()[0] = x.iter().filter(|v| !v.is_finite()).count() as i32;
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let faults = args.outputs[1].address;
        vec![Launch::Zero { address: faults, bytes: size_of::<i32>() }, launch("pixels_out", kernel, args, faults)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let out = |levels| Case {
        outputs: vec![DType::U8, DType::I32],
        bound: 0.0,
        reason: "the same operations in f32",
        ..Case::new(PixelsOut(levels), vec![Spec::new(DType::F32, [9, 7, 3])], DType::U8)
    };
    let pixels = vec![Spec::new(DType::U8, [9, 7, 3])];
    vec![
        Case { index_bound: 256, ..Case::new(PixelsIn(DType::BF16), pixels, DType::BF16) },
        out(Levels::Truncated),
        out(Levels::Nearest),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Values;

    #[test]
    fn output_has_levels_clamps_and_counts() {
        // 0 is half way between 127 and 128.
        let x = [-2.0, -1.0, 0.0, 0.999, 1.0, 7.0, f32::NAN, f32::INFINITY];
        for (levels, expected) in
            [(Levels::Truncated, [0, 0, 127, 254, 255, 255, 0, 255]), (Levels::Nearest, [0, 0, 128, 255, 255, 255, 0, 255])]
        {
            let (op, spec) = (PixelsOut(levels), Spec::new(DType::F32, [8]));
            let mut outputs: Vec<_> = op.infer(std::slice::from_ref(&spec)).unwrap().into_iter().map(Output::zeros).collect();
            op.reference(&[Operand { spec, values: Values::F32(&x) }], &mut outputs);
            assert_eq!(outputs[0].u8(), expected);
            assert_eq!(outputs[1].i32(), [2]);
        }
    }
}
