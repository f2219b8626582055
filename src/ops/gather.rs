//! `y[r] = table[index[r]]`, zeros where the index is negative: table [V, D], index [R] i32, y [R, D].

use anyhow::{Result, ensure};

use super::{Arch, Args, BLOCK, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, blocks, row_kernel, same_type};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Rows of a table by index: embedding lookup, permutation, padding with zero rows.
#[derive(Clone, Copy, Debug)]
pub struct Gather;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    table: u64,
    index: u64,
    y: u64,
    vectors: u32,
    vectors_of_row: u32,
    table_stride: u32,
    y_stride: u32,
}
const _: () = assert!(size_of::<Params>() == 40);

impl Op for Gather {
    fn kind(&self) -> &'static str {
        "gather"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (table, index) = (&inputs[0], &inputs[1]);
        ensure!(
            table.shape.0.len() == 2 && index.shape.0.len() == 1 && index.dtype == DType::I32,
            "the table is {table} and the index {index}; they must be a matrix and a vector of i32"
        );
        Ok(vec![Spec::new(table.dtype, [index.shape.elements(), table.shape.cols()])])
    }

    fn cost(&self, _: &[Spec], outputs: &[Spec]) -> Cost {
        Cost { flops: 0, bytes: 2 * outputs[0].bytes() as u64 }
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        same_type(&inputs[0], &outputs[0])?;
        row_kernel("gather", arch, &inputs[..1], outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (table, d) = (inputs[0].f32(), inputs[0].cols());
        for (y, &index) in outputs[0].f32().chunks_exact_mut(d).zip(inputs[1].i32()) {
            match usize::try_from(index) {
                Ok(row) => y.copy_from_slice(&table[row * d..][..d]),
                Err(_) => y.fill(0.0),
            }
        }
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let ([table, index], y) = (&args.inputs[..], &args.outputs[0]) else { unreachable!("checked by infer") };
        let vectors_of_row = y.cols() / kernel.block.vector;
        let vectors = y.rows() * vectors_of_row;
        let params = Params {
            table: table.address,
            index: index.address,
            y: y.address,
            vectors: vectors as u32,
            vectors_of_row: vectors_of_row as u32,
            table_stride: table.stride(),
            y_stride: y.stride(),
        };
        vec![Launch::kernel("gather", blocks(vectors), BLOCK, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let inputs = |rows: usize, d: usize, index: usize| vec![Spec::new(DType::BF16, [rows, d]), Spec::new(DType::I32, [index])];
    [(50, 3584, 30), (81, 128, 324), (9, 24, 5)]
        .into_iter()
        .map(|(rows, d, index)| Case {
            index_bound: rows,
            bound: 0.0,
            reason: "a copy",
            ..Case::new(Gather, inputs(rows, d, index), DType::BF16)
        })
        .collect()
}
