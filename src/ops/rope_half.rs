//! Rotary embedding of half-split pairs, in place: x [R, H·E], table [R, E] with (cos, sin) of pair k at 2k, 2k+1.
//!
//! `y[k] = x[k]·cos − x[k+E/2]·sin`, `y[k+E/2] = x[k+E/2]·cos + x[k]·sin`. Products are rounded to the table's type: the
//! text model works in bf16 with a bf16 table, the vision tower in f32 with an f32 table.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, Case, Cost, Kernel, Layout, Op, Operand, Output, Unsupported, portable, round};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Qwen's rotary embedding.
#[derive(Clone, Copy, Debug)]
pub struct RopeHalf;

impl Op for RopeHalf {
    fn kind(&self) -> &'static str {
        "rope_half"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (x, table) = (&inputs[0].shape, &inputs[1].shape);
        ensure!(x.rows() == table.rows() && x.cols().is_multiple_of(table.cols()), "x {x} and table {table}");
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(3 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[Layout], _: &[Layout]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        let width = inputs[1].spec.shape.cols();
        if !width.is_multiple_of(16) || inputs[0].alignment() < 16 {
            return Unsupported::new(format!(
                "heads of {width} in {} at multiples of {} bytes; 16 and 16 are needed",
                inputs[0].spec,
                inputs[0].alignment()
            ));
        }
        Ok(Kernel::new("rope_half", vec![("HEAD_WIDTH", width), ("TABLE_BYTES", inputs[1].spec.dtype.bytes())]))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (cols, width, dtype) = (inputs[0].cols(), inputs[1].cols(), inputs[1].spec.dtype);
        let (heads, half, table) = (cols / width, width / 2, inputs[1].f32());
        outputs[0].f32().par_chunks_mut(width).zip(inputs[0].f32().par_chunks(width)).enumerate().for_each(|(at, (y, x))| {
            for k in 0..half {
                let [cos, sin] = [0, 1].map(|part| table[at / heads * width + 2 * k + part]);
                y[k] = round(dtype, x[k] * cos) - round(dtype, x[k + half] * sin);
                y[k + half] = round(dtype, x[k + half] * cos) + round(dtype, x[k] * sin);
            }
        });
    }

    fn launch(&self, _: &Kernel, _: &Args) -> Vec<Launch> {
        todo!()
    }
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = |rows: usize, heads: usize, width: usize, table| {
        vec![Spec::new(DType::BF16, [rows, heads * width]), Spec::new(table, [rows, width])]
    };
    vec![
        Case::new(RopeHalf, inputs(61, 32, 128, DType::BF16), DType::BF16),
        Case::new(RopeHalf, inputs(64, 32, 80, DType::F32), DType::BF16),
    ]
}
