//! Mean of the rows of each segment, times `1 + scale_factor` if that is given: x [R, D], scale_factor [1], y [S, D]. Sums in f32,
//! one rounding.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, row_kernel, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Row means.
#[derive(Clone, Debug)]
pub struct SegmentMean {
    /// Rows of each segment; none is empty.
    pub segments: Vec<Range<usize>>,
}

/// Vectors of a row that a block takes, and threads that share the rows of each; as in the kernel.
const LANES: usize = 8;
const ROWS: usize = 32;
/// Largest second extent of a grid.
const MOST_SEGMENTS: usize = 65_535;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    scale_factor: u64,
    y: u64,
    segments: u64,
    vectors: u32,
    x_stride: u32,
    y_stride: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 48);

impl Op for SegmentMean {
    fn kind(&self) -> &'static str {
        "segment_mean"
    }

    fn attributes(&self) -> String {
        format!("{:?}", self.segments)
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let x = &inputs[0].shape;
        ensure!(
            self.segments.iter().all(|s| !s.is_empty() && s.end <= x.rows()),
            "the segments {:?} are empty or leave {x}",
            self.segments
        );
        Ok(vec![Spec::new(inputs[0].dtype, [self.segments.len(), x.cols()])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(inputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        let kernel = row_kernel("segment_mean", arch, &inputs[..1], outputs)?;
        if let Some(factor) = inputs.get(1) {
            typed(factor, inputs[0].spec.dtype)?;
        }
        if self.segments.len() > MOST_SEGMENTS {
            return Unsupported::new(format!(
                "there are {} segments; the kernel takes at most {MOST_SEGMENTS}",
                self.segments.len()
            ));
        }
        Ok(kernel.with([("SCALED", (inputs.len() > 1) as usize)]))
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

    fn table(&self) -> Vec<u32> {
        self.segments.iter().flat_map(|s| [s.start as u32, s.end as u32]).collect()
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let (x, y) = (&args.inputs[0], &args.outputs[0]);
        let vectors = y.cols() / kernel.block.vector;
        let params = Params {
            x: x.address,
            scale_factor: args.inputs.get(1).map_or(0, |s| s.address),
            y: y.address,
            segments: args.table,
            vectors: vectors as u32,
            x_stride: x.stride(),
            y_stride: y.stride(),
            unused: 0,
        };
        let grid = [vectors.div_ceil(LANES) as u32, self.segments.len() as u32, 1];
        vec![Launch::kernel("segment_mean", grid, (LANES * ROWS) as u32, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let op = || SegmentMean { segments: vec![0..40, 41..54] };
    let x = Spec::new(DType::BF16, [55, 3584]);
    let case = |inputs| Case::new(op(), inputs, DType::BF16);
    vec![case(vec![x.clone()]), case(vec![x, Spec::new(DType::BF16, [1])])]
}
