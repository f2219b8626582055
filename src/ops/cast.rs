//! `y = x` in another float type: x, y of any one shape. The rounding is the output's.

use anyhow::Result;

use super::{Arch, Args, Case, Cost, Kernel, Layout, Op, Operand, Output, Unsupported, row_kernel};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A change of element type.
#[derive(Clone, Copy, Debug)]
pub struct Cast(pub DType);

impl Op for Cast {
    fn kind(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(vec![Spec { dtype: self.0, shape: inputs[0].shape.clone() }])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(0, inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported> {
        row_kernel("cast", arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        outputs[0].f32().copy_from_slice(inputs[0].f32());
    }

    fn launch(&self, _: &Kernel, _: &Args) -> Vec<Launch> {
        todo!()
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = Case::new(Cast(DType::BF16), vec![Spec::new(DType::F32, [1014, 64])], DType::BF16);
    vec![Case { bound: 0.0, reason: "both round to nearest even", ..case }]
}
