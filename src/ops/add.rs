//! `y = a + b`: a, y [R, D]; b [r, D] with r dividing R, repeated down the rows. One rounding.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, STREAM_THREADS, Unsupported, View};
use super::{stream_grid, stream_kernel};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A sum, the second operand tiled over the rows.
#[derive(Clone, Copy, Debug)]
pub struct Add;

/// What `add.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    a: u64,
    b: u64,
    y: u64,
    rows: u32,
    cols: u32,
    a_stride: u32,
    b_rows: u32,
    b_stride: u32,
    y_stride: u32,
}
const _: () = assert!(size_of::<Params>() == 48);

impl Op for Add {
    fn kind(&self) -> &'static str {
        "add"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (a, b) = (&inputs[0].shape, &inputs[1].shape);
        ensure!(a.cols() == b.cols() && a.rows().is_multiple_of(b.rows()), "{b} does not tile {a}");
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        stream_kernel("add", arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (a, b) = (inputs[0].f32(), inputs[1].f32());
        outputs[0].f32().par_chunks_mut(b.len()).zip(a.par_chunks(b.len())).for_each(|(y, a)| {
            y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + b);
        });
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let ([a, b], y) = ([0, 1].map(|i| &args.inputs[i]), &args.outputs[0]);
        let params = Params {
            a: a.address,
            b: b.address,
            y: y.address,
            rows: y.rows() as u32,
            cols: y.cols() as u32,
            a_stride: a.stride(),
            b_rows: b.rows() as u32,
            b_stride: b.stride(),
            y_stride: y.stride(),
        };
        vec![Launch::kernel("add", stream_grid(kernel, y), STREAM_THREADS, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let spec = |rows, cols| Spec::new(DType::BF16, [rows, cols]);
    vec![
        Case::new(Add, vec![spec(56, 3072), spec(2, 3072)], DType::BF16),
        Case::new(Add, vec![spec(81, 1280), spec(81, 1280)], DType::BF16),
        Case::new(Add, vec![Spec::new(DType::F32, [6, 5, 128]), Spec::new(DType::F32, [6, 5, 128])], DType::F32),
        Case::new(Add, vec![spec(3, 7), spec(1, 7)], DType::BF16),
        Case::new(Add, vec![Spec::new(DType::F32, [1024, 1024, 128]); 2], DType::F32).timed(),
    ]
}
