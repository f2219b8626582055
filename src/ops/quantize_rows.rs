//! `y = round(x / scale)`, `scale = max |x| / 127`, row by row: x [R, D]; y [R, D] s8, scales [R] f32.
//!
//! Rounds to nearest, ties to even. A row of zeros has scale 0; one that is not finite has a scale that is not, so that results
//! show it. Both divisions are IEEE's, on every device: the integers are the same everywhere.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::product::EightBit;
use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, portable, typed};
use super::{Block, select::countable};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Elements that a thread reads at a time, and most that it holds.
const VECTOR: usize = 8;
const MOST_VECTORS: usize = 4;
/// Most columns: 16 warps hold a row.
const MOST_COLUMNS: usize = 16 * 32 * VECTOR * MOST_VECTORS;

/// Rounds rows to integers of eight bits.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeRows;

/// What `quantize_rows.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    y: u64,
    scales: u64,
    cols: u32,
    x_stride: u32,
    y_stride: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 40);

impl Op for QuantizeRows {
    fn kind(&self) -> &'static str {
        "quantize_rows"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [x] = inputs else { anyhow::bail!("quantize_rows takes 1 operand, not {}", inputs.len()) };
        ensure!(x.shape.0.len() == 2, "x is {x}; it must be a matrix");
        Ok(vec![Spec { dtype: DType::S8, shape: x.shape.clone() }, Spec::new(DType::F32, [x.shape.rows()])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(3 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        typed(&inputs[0], DType::BF16)?;
        typed(&outputs[0], DType::S8)?;
        typed(&outputs[1], DType::F32)?;
        countable(inputs)?;
        let (cols, alignment) = (inputs[0].spec.shape.cols(), inputs[0].alignment());
        if alignment < 16 || outputs[0].alignment() < VECTOR || !cols.is_multiple_of(VECTOR) || cols > MOST_COLUMNS {
            return Unsupported::new(format!(
                "x is {}, with rows at multiples of {alignment} bytes; the kernel takes rows at multiples of 16 bytes, of a multiple \
                 of {VECTOR} and at most {MOST_COLUMNS} columns",
                inputs[0].spec
            ));
        }
        // About 16 elements a thread, more where a block has no more threads.
        let vectors = cols.div_ceil(16 * 32 * VECTOR).max(2);
        let warps = cols.div_ceil(32 * VECTOR * vectors);
        let block = Block { vector: VECTOR, threads: 32 * warps as u32, ..Block::USUAL };
        Ok(Kernel { block, ..Kernel::new("quantize_rows", [("ROW_WARPS", warps), ("ROW_VECTORS", vectors)]) })
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (x, d) = (inputs[0].f32(), inputs[0].cols());
        let [y, scales] = outputs else { unreachable!("checked by infer") };
        let rows = y.f32().par_chunks_mut(d).zip(scales.f32()).zip(x.par_chunks(d));
        rows.for_each(|((y, scale), x)| {
            let rounded = EightBit::Int8.rounded(x);
            *scale = rounded.scale;
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = rounded.value(x));
        });
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let (x, [y, scales]) = (&args.inputs[0], [0, 1].map(|i| &args.outputs[i]));
        let params = Params {
            x: x.address,
            y: y.address,
            scales: scales.address,
            cols: x.cols() as u32,
            x_stride: x.stride(),
            y_stride: y.stride(),
            unused: 0,
        };
        vec![Launch::kernel("quantize_rows", [x.rows() as u32, 1, 1], kernel.block.threads, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |rows, cols, broken| Case {
        outputs: vec![DType::S8, DType::F32],
        broken,
        bound: 0.0,
        reason: "the same divisions, and the same rounding to integers",
        ..Case::new(QuantizeRows, vec![Spec::new(DType::BF16, [rows, cols])], DType::S8)
    };
    vec![
        case(53, 3072, None),
        case(7, 12288, None),
        case(9, 15360, None),
        case(3, 24, None),
        case(40, 256, Some(1000)),
        case(16384, 12288, None).timed(),
        case(17069, 3072, None).timed(),
        case(17069, 15360, None).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_a_row_is_127_and_what_is_not_finite_shows() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let x = [254.0, 3.0, -5.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0, nan, 2.0, 3.0, 1.0, -inf, 2.0, 3.0];
        let specs = [Spec::new(DType::F32, [4, 4])];
        let mut outputs: Vec<_> = QuantizeRows.infer(&specs).unwrap().into_iter().map(Output::zeros).collect();
        let values = crate::ops::Values::F32(&x);
        QuantizeRows.reference(&[Operand { spec: specs[0].clone(), values }], &mut outputs);
        // Steps of 2: 1.5 goes to the even 2, -2.5 to -2, -0.5 to 0.
        assert_eq!(outputs[0].f32()[..4], [127.0, 2.0, -2.0, 0.0]);
        assert_eq!(outputs[0].f32()[4..], [0.0; 12]);
        let scales = outputs[1].f32();
        assert!(scales[..2] == [2.0, 0.0] && scales[2].is_nan() && scales[3] == inf, "{scales:?}");
    }
}
