//! Rotary embedding of half-split pairs, in place: x [R, H·E], table [R, E] with (cos, sin) of pair k at 2k, 2k+1.
//!
//! `y[k] = x[k]·cos − x[k+E/2]·sin`, `y[k+E/2] = x[k+E/2]·cos + x[k]·sin`. Products are rounded to the table's type: the
//! text model works in bf16 with a bf16 table, the vision tower in f32 with an f32 table.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, code, one_type, portable, round};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Qwen's rotary embedding.
#[derive(Clone, Copy, Debug)]
pub struct RopeHalf;

/// What `rope_half.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    table: u64,
    y: u64,
    rows: u32,
    heads: u32,
    x_stride: u32,
    table_stride: u32,
    y_stride: u32,
    items: u32,
}
const _: () = assert!(size_of::<Params>() == 48);

/// Threads of a block.
const THREADS: u32 = 128;

impl Op for RopeHalf {
    fn kind(&self) -> &'static str {
        "rope_half"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (x, table) = (&inputs[0].shape, &inputs[1].shape);
        ensure!(
            x.rows() == table.rows() && x.cols().is_multiple_of(table.cols()),
            "x {x} and table {table} do not fit each other"
        );
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(3 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        let (x, table) = (&inputs[0].spec, &inputs[1].spec);
        let width = table.shape.cols();
        if !width.is_multiple_of(16) || x.dtype.bytes() != 2 || x.shape.elements() >= 1 << 32 {
            return Unsupported::new(format!(
                "x is {x} in heads of {width}; the kernel takes fewer than 2^32 elements of 16 bits, in heads of a multiple of 16"
            ));
        }
        one_type(&[&inputs[..1], outputs].concat())?;
        if let Some(l) = inputs.iter().chain(outputs).find(|l| l.alignment() < 16) {
            return Unsupported::new(format!(
                "rows of {} start at multiples of {} bytes; they must start at multiples of 16",
                l.spec,
                l.alignment()
            ));
        }
        let (x, table) = (code(x.dtype)?, code(table.dtype)?);
        Ok(Kernel::new("rope_half", [("X_TYPE", x), ("TABLE_TYPE", table), ("HEAD_WIDTH", width)]))
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

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        let ([x, table], y) = ([0, 1].map(|i| &args.inputs[i]), &args.outputs[0]);
        let params = Params {
            x: x.address,
            table: table.address,
            y: y.address,
            rows: x.rows() as u32,
            heads: (x.cols() / table.cols()) as u32,
            x_stride: x.stride(),
            table_stride: table.stride(),
            y_stride: y.stride(),
            items: (x.rows() * x.cols() / 16) as u32,
        };
        vec![Launch::kernel("rope_half", [params.items.div_ceil(THREADS), 1, 1], THREADS, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = |rows: usize, heads: usize, width: usize, table| {
        vec![Spec::new(DType::BF16, [rows, heads * width]), Spec::new(table, [rows, width])]
    };
    vec![
        Case::new(RopeHalf, inputs(61, 32, 128, DType::BF16), DType::BF16),
        Case::new(RopeHalf, inputs(64, 32, 80, DType::F32), DType::BF16),
        Case::new(RopeHalf, inputs(573, 32, 128, DType::BF16), DType::BF16).timed(),
        Case::new(RopeHalf, inputs(1296, 32, 80, DType::F32), DType::BF16).timed(),
    ]
}
