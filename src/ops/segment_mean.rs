//! Mean of the rows of each segment, times `1 + scale_factor` if that is given: x [R, D], scale_factor [1], y [S, D]. Sums in f32,
//! one rounding.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::{Arch, Args, Case, Cost, Kernel, Layout, Op, Operand, Output, Unsupported, row_kernel};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Row means.
#[derive(Clone, Debug)]
pub struct SegmentMean {
    /// Rows of each segment; none is empty.
    pub segments: Vec<Range<usize>>,
}

impl Op for SegmentMean {
    fn kind(&self) -> &'static str {
        "segment_mean"
    }

    fn attributes(&self) -> String {
        format!("{:?}", self.segments)
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let x = &inputs[0].shape;
        ensure!(self.segments.iter().all(|s| !s.is_empty() && s.end <= x.rows()), "segments {:?} of {x}", self.segments);
        Ok(vec![Spec::new(inputs[0].dtype, [self.segments.len(), x.cols()])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(inputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported> {
        row_kernel("segment_mean", arch, &inputs[..1], outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let d = inputs[0].cols();
        let factor = inputs.get(1).map_or(1.0, |s| 1.0 + s.f32()[0]);
        for (segment, y) in self.segments.iter().zip(outputs[0].f32().chunks_exact_mut(d)) {
            let mut sums = vec![0f64; d];
            for row in inputs[0].f32()[segment.start * d..segment.end * d].chunks_exact(d) {
                sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += v as f64);
            }
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y = (sum / segment.len() as f64) as f32 * factor);
        }
    }

    fn launch(&self, _: &Kernel, _: &Args) -> Vec<Launch> {
        todo!()
    }
}

pub(super) fn cases() -> Vec<Case> {
    let op = || SegmentMean { segments: vec![0..40, 41..54] };
    let x = Spec::new(DType::BF16, [55, 3584]);
    let case = |inputs| Case::new(op(), inputs, DType::BF16);
    vec![case(vec![x.clone()]), case(vec![x, Spec::new(DType::BF16, [1])])]
}
