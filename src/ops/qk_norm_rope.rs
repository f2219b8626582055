//! RMS norm of each head, then rotary embedding of interleaved pairs, in place: x [R, H·E].
//!
//! `n = x/√(mean(x²) + 1e-6)·scale` over the head's E channels, scale [E]; with two scales the first half of the heads
//! (queries) takes the first, the second half (keys) the other. rope [R, E] f32 holds (cos, sin) of pair k at 2k, 2k+1:
//! `y[2k] = cos·n[2k] − sin·n[2k+1]`, `y[2k+1] = sin·n[2k] + cos·n[2k+1]`. f32 inside; the norm's result is rounded to
//! the output's type before the rotation, as the official code returns it, and the rotation's result once.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, code, one_type, portable, round};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

const EPS: f32 = 1e-6;

/// QK-norm and rotary embedding. Operands: x, rope, one or two scales.
#[derive(Clone, Copy, Debug)]
pub struct QkNormRope;

/// What `qk_norm_rope.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    rope: u64,
    scales: [u64; 2],
    y: u64,
    heads: u32,
    x_stride: u32,
    rope_stride: u32,
    y_stride: u32,
}
const _: () = assert!(size_of::<Params>() == 56);

impl Op for QkNormRope {
    fn kind(&self) -> &'static str {
        "qk_norm_rope"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (x, rope) = (&inputs[0].shape, &inputs[1].shape);
        let width = rope.cols();
        ensure!(
            x.rows() == rope.rows() && x.cols().is_multiple_of(width * (inputs.len() - 2)),
            "x {x} and rope {rope} do not fit each other"
        );
        ensure!(inputs[2..].iter().all(|s| s.shape.0 == [width]), "scales must be [{width}]");
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(10 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        let (x, rope, scales) = (&inputs[0].spec, &inputs[1].spec, &inputs[2..]);
        if rope.shape.cols() != 128 || rope.dtype != DType::F32 || x.dtype.bytes() != 2 || scales.len() > 2 {
            return Unsupported::new(format!(
                "x is {x}, the rope {rope}, with {} scales; the kernel takes 16-bit heads of 128, an f32 rope and up to 2 scales",
                scales.len()
            ));
        }
        one_type(&[&inputs[..1], scales, outputs].concat())?;
        if let Some(l) = inputs.iter().chain(outputs).find(|l| l.alignment() < 16) {
            return Unsupported::new(format!(
                "rows of {} start at multiples of {} bytes; they must start at multiples of 16",
                l.spec,
                l.alignment()
            ));
        }
        Ok(Kernel::new("qk_norm_rope", [("X_TYPE", code(x.dtype)?), ("SCALES", scales.len())]))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (cols, width, dtype) = (inputs[0].cols(), inputs[1].cols(), outputs[0].spec.dtype);
        let heads = cols / width;
        let (x, rope) = (inputs[0].f32(), inputs[1].f32());
        outputs[0].f32().par_chunks_mut(width).zip(x.par_chunks(width)).enumerate().for_each(|(at, (y, x))| {
            let (row, head) = (at / heads, at % heads);
            let scale = inputs[2 + head * (inputs.len() - 2) / heads].f32();
            let square = x.iter().map(|&v| v as f64 * v as f64).sum::<f64>() / width as f64;
            let inverse = 1.0 / (square as f32 + EPS).sqrt();
            let normed = |i: usize| round(dtype, x[i] * inverse * scale[i]);
            for pair in 0..width / 2 {
                let [cos, sin] = [0, 1].map(|part| rope[row * width + 2 * pair + part]);
                let (a, b) = (normed(2 * pair), normed(2 * pair + 1));
                y[2 * pair] = cos * a - sin * b;
                y[2 * pair + 1] = sin * a + cos * b;
            }
        });
    }

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        let ([x, rope], scales, y) = ([0, 1].map(|i| &args.inputs[i]), &args.inputs[2..], &args.outputs[0]);
        let params = Params {
            x: x.address,
            rope: rope.address,
            scales: [scales[0].address, scales[scales.len() - 1].address],
            y: y.address,
            heads: (x.cols() / rope.cols() / scales.len()) as u32,
            x_stride: x.stride(),
            rope_stride: rope.stride(),
            y_stride: y.stride(),
        };
        vec![Launch::kernel("qk_norm_rope", [x.rows() as u32, 1, 1], 128, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = |rows: usize, heads: usize, scales: usize| {
        let mut specs = vec![Spec::new(DType::BF16, [rows, heads * 128]), Spec::new(DType::F32, [rows, 128])];
        specs.extend(vec![Spec::new(DType::BF16, [128]); scales]);
        specs
    };
    vec![
        Case::new(QkNormRope, inputs(53, 48, 2), DType::BF16),
        Case::new(QkNormRope, inputs(7, 2, 1), DType::BF16),
        Case::new(QkNormRope, inputs(9, 54, 2), DType::BF16),
        // All rows of 512x512 and of 1024x1024 pixels.
        Case::new(QkNormRope, inputs(4781, 48, 2), DType::BF16).timed(),
        Case::new(QkNormRope, inputs(17069, 48, 2), DType::BF16).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::run_f32;

    #[test]
    fn pairs_are_interleaved_and_halves_have_their_scale() {
        // Two heads of width 2, values (3, 4): rms = √12.5; a quarter turn maps (a, b) to (−b, a).
        let spec = |cols| Spec::new(DType::F32, [1, cols]);
        let scale = Spec::new(DType::F32, [2]);
        let y = run_f32(
            &QkNormRope,
            &[(spec(4), &[3., 4., 3., 4.]), (spec(2), &[0., 1.]), (scale.clone(), &[1., 1.]), (scale, &[10., 10.])],
        );
        let rms = 12.5f32.sqrt();
        let expected = [-4. / rms, 3. / rms, -40. / rms, 30. / rms];
        y.iter().zip(expected).for_each(|(y, e)| assert!((y - e).abs() < 1e-5, "{y} {e}"));
    }
}
