//! `y = x + gate·z`: x, z [R, D] or one period of it, repeated; gate one row a step and branch; y [R, D].
//!
//! The official code rounds the product before the sum where the two are separate operations (attention branches,
//! connector), and once where its compiler fused them (the transformer's MLP branches, single blocks).

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, BranchRows, Case, Cost, Kernel, Layout, Op, Operand, Output, Unsupported, round, row_kernel};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A gated residual sum.
#[derive(Clone, Debug)]
pub struct GateResidual {
    /// Which gate row a stream row uses.
    pub rows: BranchRows,
    /// Round the product to the output's type before the sum.
    pub round_product: bool,
}

impl Op for GateResidual {
    fn kind(&self) -> &'static str {
        "gate_residual"
    }

    fn attributes(&self) -> String {
        format!("branches {}{}", self.rows, if self.round_product { " round_product" } else { "" })
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [x, z, gate] = [0, 1, 2].map(|i| &inputs[i].shape);
        let steps = gate.rows() / self.rows.branches();
        let rows = steps * self.rows.period();
        self.rows.check(rows, gate.rows())?;
        ensure!(x.cols() == z.cols() && x.cols() == gate.cols(), "x {x}, z {z} and gate {gate} differ in width");
        for shape in [x, z] {
            ensure!(shape.rows() == rows || shape.rows() == self.rows.period(), "{shape} is neither {rows} rows nor one period");
        }
        Ok(vec![Spec::new(inputs[0].dtype, [rows, x.cols()])])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(2 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported> {
        let mut kernel = row_kernel("gate_residual", arch, inputs, outputs)?;
        kernel.defines.push(("ROUND_PRODUCT", self.round_product as usize));
        Ok(kernel)
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
    }

    fn launch(&self, _: &Kernel, _: &Args) -> Vec<Launch> {
        todo!()
    }
}

pub(super) fn cases() -> Vec<Case> {
    let spec = |rows, cols| Spec::new(DType::BF16, [rows, cols]);
    let op = |rows: &[usize], round_product| GateResidual { rows: BranchRows::of(rows), round_product };
    vec![
        Case::new(op(&[40, 13], true), vec![spec(53, 3072), spec(53, 3072), spec(2, 3072)], DType::BF16),
        Case::new(op(&[11, 7], true), vec![spec(18, 512), spec(18, 512), spec(6, 512)], DType::BF16),
        Case::new(op(&[64, 64], false), vec![spec(128, 256), spec(128, 256), spec(2, 256)], DType::BF16),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::run_f32;

    #[test]
    fn one_period_expands_over_steps() {
        let spec = |rows| Spec::new(DType::F32, [rows, 1]);
        let op = GateResidual { rows: BranchRows::of(&[2, 1]), round_product: false };
        let y = run_f32(&op, &[(spec(3), &[1., 2., 3.]), (spec(3), &[1., 1., 1.]), (spec(4), &[10., 20., 30., 40.])]);
        assert_eq!(y, [11., 12., 23., 31., 32., 43.]);
    }
}
