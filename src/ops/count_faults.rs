//! How many values of x are not finite: x of any shape, the count [1] i32.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::{Arch, Args, BLOCK, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, blocks, row_kernel, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A count of infinities and NaNs.
#[derive(Clone, Copy, Debug)]
pub struct CountFaults;

/// What `count_faults.cu` takes.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    faults: u64,
    vectors: u32,
    vectors_of_row: u32,
    x_stride: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 32);

impl Op for CountFaults {
    fn kind(&self) -> &'static str {
        "count_faults"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        ensure!(inputs[0].dtype.is_float(), "{} has no values that are not finite", inputs[0]);
        Ok(vec![Spec::new(DType::I32, [1])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(0, inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        typed(&outputs[0], DType::I32)?;
        row_kernel("count_faults", arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let faults = inputs[0].f32().par_iter().with_min_len(4096).filter(|v| !v.is_finite()).count();
        outputs[0].i32()[0] = faults as i32;
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let (x, faults) = (&args.inputs[0], args.outputs[0].address);
        let vectors_of_row = x.cols() / kernel.block.vector;
        let vectors = x.rows() * vectors_of_row;
        let params = Params {
            x: x.address,
            faults,
            vectors: vectors as u32,
            vectors_of_row: vectors_of_row as u32,
            x_stride: x.stride(),
            unused: 0,
        };
        let zero = Launch::Zero { address: faults, bytes: size_of::<i32>() };
        vec![zero, Launch::kernel("count_faults", blocks(vectors), BLOCK, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = |spec: Spec, broken: Option<usize>| Case {
        broken,
        bound: 0.0,
        reason: "integers, counted",
        ..Case::new(CountFaults, vec![spec], DType::I32)
    };
    vec![
        case(Spec::new(DType::F32, [64, 48, 16]), None),
        case(Spec::new(DType::BF16, [640, 3584]), Some(97)),
        case(Spec::new(DType::F16, [33, 40]), Some(1)),
        case(Spec::new(DType::BF16, [3, 7]), Some(5)),
        case(Spec::new(DType::BF16, [19180, 4096]), None).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Values;

    #[test]
    fn infinities_and_nans_count() {
        let x = [0.0, f32::NAN, -1.0, f32::INFINITY, f32::MAX, f32::NEG_INFINITY, f32::MIN_POSITIVE / 2.0];
        let spec = Spec::new(DType::F32, [7]);
        let mut count = vec![Output::zeros(Spec::new(DType::I32, [1]))];
        CountFaults.reference(&[Operand { spec, values: Values::F32(&x) }], &mut count);
        assert_eq!(count[0].i32(), [3]);
        assert!(CountFaults.infer(&[Spec::new(DType::I32, [7])]).is_err());
    }
}
