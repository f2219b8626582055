//! The rows of the current step: `y = table[step·R .. (step + 1)·R]`; table [K·R, D], counter [1] i32, y [R, D].
//!
//! What a step needs of the values made for all steps; the counter lives on the device, so that one recorded step serves
//! them all.

use anyhow::{Result, ensure};

use super::{Arch, Args, BLOCK, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, blocks, row_kernel, same_type};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A step's share of a table.
#[derive(Clone, Copy, Debug)]
pub struct StepSlice {
    /// Rows a step.
    pub rows: usize,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    table: u64,
    counter: u64,
    y: u64,
    rows: u32,
    vectors_of_row: u32,
    table_stride: u32,
    y_stride: u32,
}
const _: () = assert!(size_of::<Params>() == 40);

impl Op for StepSlice {
    fn kind(&self) -> &'static str {
        "step_slice"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let table = &inputs[0];
        ensure!(
            table.shape.rows().is_multiple_of(self.rows) && inputs[1].dtype == DType::I32,
            "the table is {table}; steps of {} rows must divide it, and the counter must be i32",
            self.rows
        );
        Ok(vec![Spec::new(table.dtype, [self.rows, table.shape.cols()])])
    }

    fn cost(&self, _: &[Spec], outputs: &[Spec]) -> Cost {
        Cost { flops: 0, bytes: 2 * outputs[0].bytes() as u64 }
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        same_type(&inputs[0], &outputs[0])?;
        row_kernel("step_slice", arch, &inputs[..1], outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let n = self.rows * inputs[0].cols();
        outputs[0].f32().copy_from_slice(&inputs[0].f32()[inputs[1].i32()[0] as usize * n..][..n]);
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let ([table, counter], y) = (&args.inputs[..], &args.outputs[0]) else { unreachable!("two operands") };
        let vectors_of_row = y.cols() / kernel.block.vector;
        let params = Params {
            table: table.address,
            counter: counter.address,
            y: y.address,
            rows: self.rows as u32,
            vectors_of_row: vectors_of_row as u32,
            table_stride: table.stride(),
            y_stride: y.stride(),
        };
        vec![Launch::kernel("step_slice", blocks(self.rows * vectors_of_row), BLOCK, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |steps: usize, rows: usize, cols: usize| {
        let inputs = vec![Spec::new(DType::BF16, [steps * rows, cols]), Spec::new(DType::I32, [1])];
        Case { index_bound: steps, bound: 0.0, reason: "a copy", ..Case::new(StepSlice { rows }, inputs, DType::BF16) }
    };
    vec![case(8, 53, 256), case(28, 2, 1056768).timed()]
}
