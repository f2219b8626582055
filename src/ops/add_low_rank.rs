//! `y = round(w + Σ factor · (up · down))`, each product of a few ranks added to rows of its own: w, y [R, D], up [R, K],
//! down [K, D].
//!
//! A product is one chain of fused multiply-adds in the order of its ranks. Products are added in their order, all in f32; the sum is
//! rounded once, to the type that it has where the host adds it up (`src/weights/recipe`), so that the bytes are the same.

use std::ops::Range;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::select::{countable, largest_divisor};
use super::{Arch, Args, Block, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, code, portable, round};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Adds what LoRA files make of a weight.
#[derive(Clone, Debug)]
pub struct AddLowRank {
    /// The products, in the order in which they are added.
    pub products: Vec<LowRankProduct>,
    /// The type that the sum is rounded to first.
    pub rounded: DType,
}

/// A product of a few ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankProduct {
    /// The rows that it is added to.
    pub rows: Range<usize>,
    /// Its columns of `up`, which are its rows of `down`.
    pub ranks: Range<usize>,
    /// What it is multiplied with.
    pub factor: f32,
}

/// Rows and columns of a block's tile, and its threads; as in the kernel.
const TALL: usize = 64;
const WIDE: usize = 128;
const THREADS: u32 = 256;
/// Columns that a thread reads of a row at once, at most.
const VECTOR: usize = 4;

/// What `add_low_rank.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    w: u64,
    up: u64,
    down: u64,
    y: u64,
    products: u64,
    count: u32,
    rows: u32,
    cols: u32,
    w_stride: u32,
    up_stride: u32,
    down_stride: u32,
    y_stride: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 72);

impl Op for AddLowRank {
    fn kind(&self) -> &'static str {
        "add_low_rank"
    }

    fn attributes(&self) -> String {
        let product = |p: &LowRankProduct| format!("{} · {:?} to {:?}", p.factor, p.ranks, p.rows);
        format!("{}, rounded to {}", self.products.iter().map(product).collect::<Vec<_>>().join(", "), self.rounded)
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [w, up, down] = [0, 1, 2].map(|i| &inputs[i].shape);
        let fits = up.rows() == w.rows() && down.cols() == w.cols() && up.cols() == down.rows();
        ensure!(fits, "{up} · {down} is not {w}");
        let within = |p: &LowRankProduct| p.rows.end <= w.rows() && p.ranks.end <= down.rows() && !p.ranks.is_empty();
        ensure!(self.products.iter().all(within), "the products {:?} leave {up} · {down}", self.products);
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        let multiplied: usize = self.products.iter().map(|p| p.rows.len() * p.ranks.len()).sum();
        Cost::streaming(2 * multiplied * inputs[0].shape.cols(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        countable(inputs)?;
        if inputs[1].spec.dtype != inputs[2].spec.dtype {
            let types = format!("{} and {}", inputs[1].spec, inputs[2].spec);
            return Unsupported::new(format!("the factors are {types}; they must have one type"));
        }
        let of_rows = [&inputs[0], &inputs[2], &outputs[0]].into_iter();
        let vector = of_rows.map(|l| (l.alignment() / l.spec.dtype.bytes()).min(largest_divisor(l.spec.shape.cols()))).min();
        let vector = vector.unwrap_or(1).clamp(1, VECTOR);
        let [w, factors, y] = [&inputs[0], &inputs[1], &outputs[0]].map(|l| code(l.spec.dtype));
        let types = [("W_TYPE", w?), ("F_TYPE", factors?), ("R_TYPE", code(self.rounded)?), ("Y_TYPE", y?)];
        let kernel = Kernel::new("add_low_rank", types).with([("VECTOR", vector)]);
        Ok(Kernel { block: Block { vector, threads: THREADS, ..kernel.block }, ..kernel })
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (cols, ranks) = (inputs[0].cols(), inputs[1].cols());
        let [w, up, down] = [0, 1, 2].map(|i| inputs[i].f32());
        let rows = outputs[0].f32().par_chunks_exact_mut(cols).zip(w.par_chunks_exact(cols)).enumerate();
        rows.for_each(|(row, (sums, w))| {
            sums.copy_from_slice(w);
            for LowRankProduct { ranks: own, factor, .. } in self.products.iter().filter(|p| p.rows.contains(&row)) {
                let mut product = vec![0.0f32; cols];
                for k in own.clone() {
                    let (up, down) = (up[row * ranks + k], &down[k * cols..][..cols]);
                    product.iter_mut().zip(down).for_each(|(product, down)| *product = up.mul_add(*down, *product));
                }
                sums.iter_mut().zip(product).for_each(|(sum, product)| *sum += factor * product);
            }
            sums.iter_mut().for_each(|sum| *sum = round(self.rounded, *sum));
        });
    }

    /// Of each product first row, end, first rank, end, and the bits of its factor.
    fn table(&self) -> Vec<u32> {
        let of = |p: &LowRankProduct| {
            let [first_row, end_row, first_rank, end_rank] =
                [p.rows.start, p.rows.end, p.ranks.start, p.ranks.end].map(|n| n as u32);
            [first_row, end_row, first_rank, end_rank, p.factor.to_bits()]
        };
        self.products.iter().flat_map(of).collect()
    }

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        let ([w, up, down], y) = ([0, 1, 2].map(|i| &args.inputs[i]), &args.outputs[0]);
        let params = Params {
            w: w.address,
            up: up.address,
            down: down.address,
            y: y.address,
            products: args.table,
            count: self.products.len() as u32,
            rows: y.rows() as u32,
            cols: y.cols() as u32,
            w_stride: w.stride(),
            up_stride: up.stride(),
            down_stride: down.stride(),
            y_stride: y.stride(),
            unused: 0,
        };
        // Tiles of the same columns follow each other: they share what they read of `down`.
        let grid = [y.rows().div_ceil(TALL) as u32, y.cols().div_ceil(WIDE) as u32, 1];
        vec![Launch::kernel("add_low_rank", grid, THREADS, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let product = |rows, ranks, factor| LowRankProduct { rows, ranks, factor };
    let case = |[w, factors, rounded, y]: [DType; 4], [rows, cols, ranks]: [usize; 3], products| Case {
        bound: 0.0,
        reason: "one chain of fused multiply-adds, as the reference has it",
        ..Case::new(
            AddLowRank { products, rounded },
            vec![Spec::new(w, [rows, cols]), Spec::new(factors, [rows, ranks]), Spec::new(factors, [ranks, cols])],
            y,
        )
    };
    let (bf16, f16, f32) = (DType::BF16, DType::F16, DType::F32);
    // Query, key and value of one file, and all rows of another.
    let parts = vec![product(0..50, 0..16, 0.5), product(50..90, 16..37, -1.5), product(0..130, 37..40, 0.25)];
    vec![
        case([bf16; 4], [130, 392, 40], parts.clone()),
        case([bf16, f32, bf16, bf16], [67, 131, 5], vec![product(0..67, 0..5, 1.0)]),
        case([bf16, f16, bf16, f32], [130, 72, 40], parts.clone()),
        case([f32; 4], [130, 260, 40], parts.clone()),
        case([f16, f16, f16, bf16], [130, 256, 40], parts),
        case([f16, bf16, f16, f16], [3, 7, 70], vec![product(1..2, 1..70, 3.0)]),
        case([bf16; 4], [5461, 3072, 64], vec![product(0..5461, 0..64, 0.5)]).timed(),
        case([bf16; 4], [1092, 15360, 64], vec![product(0..1092, 0..64, 0.5)]).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::run_f32;

    #[test]
    fn products_are_added_to_their_own_rows_and_rounded_once() {
        let product = |rows, ranks, factor| LowRankProduct { rows, ranks, factor };
        let op = AddLowRank { products: vec![product(0..1, 0..1, 2.0), product(0..2, 1..3, -1.0)], rounded: DType::BF16 };
        let spec = |shape: [usize; 2]| Spec::new(DType::F32, shape);
        let (w, up, down) = ([256.0, -0.0, 3.0, 4.0], [1.0, 2.0, 3.0, 9.0, 0.0, 1.0], [0.5, 1.0, 1.0, 2.0, 3.0, 4.0]);
        let y = run_f32(&op, &[(spec([2, 2]), &w), (spec([2, 3]), &up), (spec([3, 2]), &down)]);
        // 256 + 2·0.5 - (2 + 9) is 246; row 1 has no part of the first product.
        assert_eq!(y, [246.0, 2.0 - 16.0, 0.0, 0.0]);
        let once = AddLowRank { products: vec![product(0..1, 0..1, 1.0), product(0..1, 0..1, 1.0)], rounded: DType::BF16 };
        let y = run_f32(&once, &[(spec([1, 1]), &[256.0]), (spec([1, 1]), &[0.75]), (spec([1, 1]), &[1.0])]);
        assert_eq!(y, [258.0], "257.5 rounds to 258; rounded between the two, the sum would be 256");
    }
}
