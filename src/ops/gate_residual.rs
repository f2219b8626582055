//! `y = x + gate·z`: x, z [R, D] or one period of it, repeated; gate one row a step and branch; y [R, D].
//!
//! With a norm: also `n = (1 + scale)·(y − mean)/√(var + 1e-6) + shift` of y as stored [R, D], which is the modulated
//! [`super::LayerNorm`] of y; scale and shift one row a step and branch, like gate. Operands x, z, gate, scale, shift;
//! results y, n.
//!
//! The official code rounds the product before the sum where the two are separate operations (attention branches,
//! connector), and once where its compiler fused them (the transformer's MLP branches, single blocks).

use std::sync::Arc;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::layer_norm::{norm_row, one_plus};
use super::{Arch, Args, BranchParams, BranchRows, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View};
use super::{held_row_kernel, one_stride, one_type, round};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A gated residual sum, and the norm that follows it.
#[derive(Clone, Debug)]
pub struct GateResidual {
    /// Which row of gate, scale and shift a stream row uses.
    pub rows: BranchRows,
    /// Round the product to the output's type before the sum.
    pub round_product: bool,
    /// Norm and modulate the sum in the same pass.
    pub norm: bool,
}

/// What `gate_residual.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    z: u64,
    gate: u64,
    scale: u64,
    shift: u64,
    y: u64,
    n: u64,
    cols: u32,
    x_rows: u32,
    x_stride: u32,
    z_rows: u32,
    z_stride: u32,
    table_stride: u32,
    y_stride: u32,
    n_stride: u32,
    rows: BranchParams,
}
const _: () = assert!(size_of::<Params>() == 144);

impl Op for GateResidual {
    fn kind(&self) -> &'static str {
        "gate_residual"
    }

    fn attributes(&self) -> String {
        let flag = |set: bool, name: &'static str| if set { name } else { "" };
        format!("branches {}{}{}", self.rows, flag(self.round_product, " round_product"), flag(self.norm, " norm"))
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [x, z, gate] = [0, 1, 2].map(|i| &inputs[i].shape);
        let steps = gate.rows() / self.rows.branches();
        let rows = steps * self.rows.period();
        self.rows.check(rows, gate.rows())?;
        ensure!(x.cols() == z.cols() && x.cols() == gate.cols(), "x {x}, z {z} and gate {gate} differ in width");
        ensure!(inputs[3..].iter().all(|s| s.shape == *gate), "scale and shift must be {gate}, like the gate");
        ensure!(
            inputs.len() == if self.norm { 5 } else { 3 },
            "there are {} operands; there must be 3, or 5 with a norm",
            inputs.len()
        );
        for shape in [x, z] {
            ensure!(shape.rows() == rows || shape.rows() == self.rows.period(), "{shape} is neither {rows} rows nor one period");
        }
        Ok(vec![Spec::new(inputs[0].dtype, [rows, x.cols()]); if self.norm { 2 } else { 1 }])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(if self.norm { 10 } else { 2 } * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        let kernel = held_row_kernel("gate_residual", arch, inputs, outputs)?;
        one_type(outputs)?;
        one_stride(&inputs[2..])?;
        self.rows.fits()?;
        Ok(kernel.with([("ROUND_PRODUCT", self.round_product as usize), ("NORM", self.norm as usize)]))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (dtype, d) = (outputs[0].spec.dtype, outputs[0].cols());
        let row_of = |operand: usize, row: usize| &inputs[operand].f32()[row * d..][..d];
        let (rows_x, rows_z) = (inputs[0].rows(), inputs[1].rows());
        outputs[0].f32().par_chunks_mut(d).enumerate().for_each(|(row, y)| {
            let (x, z, gate) = (row_of(0, row % rows_x), row_of(1, row % rows_z), row_of(2, self.rows.table_row(row)));
            for (i, y) in y.iter_mut().enumerate() {
                let product = gate[i] * z[i];
                *y = x[i] + if self.round_product { round(dtype, product) } else { product };
            }
        });
        if let [y, n] = outputs {
            let modulation = inputs[3].spec.dtype;
            n.f32().par_chunks_mut(d).zip(y.f32().par_chunks(d)).enumerate().for_each(|(row, (n, y))| {
                let stored: Vec<f32> = y.iter().map(|&v| round(dtype, v)).collect();
                let [scale, shift] = [3, 4].map(|operand| row_of(operand, self.rows.table_row(row)));
                norm_row(&stored, |i| one_plus(modulation, scale[i]), shift, n);
            });
        }
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let ([x, z, gate], y) = ([0, 1, 2].map(|i| &args.inputs[i]), &args.outputs[0]);
        let address = |arg: Option<&super::Arg>| arg.map_or(0, |a| a.address);
        let params = Params {
            x: x.address,
            z: z.address,
            gate: gate.address,
            scale: address(args.inputs.get(3)),
            shift: address(args.inputs.get(4)),
            y: y.address,
            n: address(args.outputs.get(1)),
            cols: y.cols() as u32,
            x_rows: x.rows() as u32,
            x_stride: x.stride(),
            z_rows: z.rows() as u32,
            z_stride: z.stride(),
            table_stride: gate.stride(),
            y_stride: y.stride(),
            n_stride: args.outputs.get(1).map_or(0, |n| n.stride()),
            rows: self.rows.params(),
        };
        vec![Launch::kernel("gate_residual", [y.rows() as u32, 1, 1], kernel.block.threads, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let spec = |rows, cols| Spec::new(DType::BF16, [rows, cols]);
    let op = |rows: &[usize], round_product| GateResidual { rows: BranchRows::of(rows), round_product, norm: false };
    let normed = |rows: &[usize], round_product, stream: [usize; 2], table: [usize; 2]| {
        let shapes = [stream, stream, table, table, table];
        Case {
            op: Arc::new(GateResidual { norm: true, ..op(rows, round_product) }),
            outputs: vec![DType::BF16; 2],
            reason: "the sum rounds once to bf16, its norm once more, with sums in another order",
            ..Case::new(op(rows, round_product), shapes.map(|s| Spec::new(DType::BF16, s)).to_vec(), DType::BF16)
        }
    };
    let rows = BranchRows::of(&[352, 333]).then(&BranchRows::of(&[8192, 8192]));
    let single_block = Arc::new(GateResidual { rows, round_product: false, norm: true });
    vec![
        Case::new(op(&[40, 13], true), vec![spec(53, 3072), spec(53, 3072), spec(2, 3072)], DType::BF16),
        Case::new(op(&[11, 7], true), vec![spec(18, 512), spec(18, 512), spec(6, 512)], DType::BF16),
        Case::new(op(&[64, 64], false), vec![spec(128, 256), spec(128, 256), spec(2, 256)], DType::BF16),
        Case::new(op(&[2, 1], true), vec![spec(3, 7), spec(6, 7), spec(4, 7)], DType::BF16),
        normed(&[40, 13], true, [53, 3072], [2, 3072]),
        normed(&[11, 7, 20], false, [76, 512], [6, 512]),
        normed(&[2, 1], false, [3, 7], [2, 7]),
        // An image stream's, and a single block's, of 512x512 and of 1024x1024 pixels.
        normed(&[2048, 2048], true, [4096, 3072], [2, 3072]).timed(),
        normed(&[8192, 8192], true, [16384, 3072], [2, 3072]).timed(),
        Case { op: single_block, ..normed(&[352, 333], false, [17069, 3072], [2, 3072]) }.timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{noise, run_f32};
    use crate::ops::{LayerNorm, Values};

    #[test]
    fn one_period_expands_over_steps() {
        let spec = |rows| Spec::new(DType::F32, [rows, 1]);
        let op = GateResidual { rows: BranchRows::of(&[2, 1]), round_product: false, norm: false };
        let y = run_f32(&op, &[(spec(3), &[1., 2., 3.]), (spec(3), &[1., 1., 1.]), (spec(4), &[10., 20., 30., 40.])]);
        assert_eq!(y, [11., 12., 23., 31., 32., 43.]);
    }

    #[test]
    fn the_norm_is_that_of_the_rounded_sum() {
        let rows = BranchRows::of(&[2, 1]);
        let specs = [3, 3, 2, 2, 2].map(|r| Spec::new(DType::BF16, [r, 8]));
        let values: Vec<Vec<f32>> = (0..5)
            .map(|i| noise(specs[i].shape.elements(), i as u64).into_iter().map(|v| round(DType::BF16, v)).collect())
            .collect();
        let operand = |i: usize| Operand { spec: specs[i].clone(), values: Values::F32(&values[i]) };
        let run = |op: &dyn Op, inputs: &[Operand]| {
            let specs: Vec<Spec> = inputs.iter().map(|o| o.spec.clone()).collect();
            let mut outputs: Vec<_> = op.infer(&specs).unwrap().into_iter().map(Output::zeros).collect();
            op.reference(inputs, &mut outputs);
            outputs.iter_mut().map(|o| o.f32().to_vec()).collect::<Vec<_>>()
        };
        let fused = GateResidual { rows: rows.clone(), round_product: true, norm: true };
        let both = run(&fused, &[0, 1, 2, 3, 4].map(operand));
        let alone = run(&GateResidual { norm: false, ..fused }, &[0, 1, 2].map(operand));
        assert_eq!(both[0], alone[0]);
        let stored: Vec<f32> = alone[0].iter().map(|&v| round(DType::BF16, v)).collect();
        let stored = Operand { spec: specs[0].clone(), values: Values::F32(&stored) };
        assert_eq!(both[1], run(&LayerNorm { modulation: Some(rows) }, &[stored, operand(3), operand(4)])[0]);
    }
}
