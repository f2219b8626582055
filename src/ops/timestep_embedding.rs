//! Sinusoidal embedding of times in [0, 1]: t [N] f32, y [N, 256] = [cos(a) | sin(a)] (cos first), a = (1000·t)·f_k,
//! f_k = 10000^(−k/128), in f32.

use anyhow::{Result, ensure};

use super::{Arch, Args, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, code, portable, typed};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

const HALF: usize = 128;

/// The embedding that both time MLPs start from.
#[derive(Clone, Copy, Debug)]
pub struct TimestepEmbedding(pub DType);

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    t: u64,
    y: u64,
    y_stride: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 24);

impl Op for TimestepEmbedding {
    fn kind(&self) -> &'static str {
        "timestep_embedding"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        ensure!(inputs[0].shape.0.len() == 1, "the times are {}; they must be a vector", inputs[0]);
        Ok(vec![Spec::new(self.0, [inputs[0].shape.elements(), 2 * HALF])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(20 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        typed(&inputs[0], DType::F32)?;
        Ok(Kernel::new("timestep_embedding", [("Y_TYPE", code(outputs[0].spec.dtype)?)]))
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        for (y, &t) in outputs[0].f32().chunks_exact_mut(2 * HALF).zip(inputs[0].f32()) {
            let (cos, sin) = y.split_at_mut(HALF);
            for k in 0..HALF {
                let frequency = (-(10000f64.ln()) as f32 * k as f32 / HALF as f32).exp();
                let angle = 1000.0 * t * frequency;
                (sin[k], cos[k]) = angle.sin_cos();
            }
        }
    }

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        let (t, y) = (&args.inputs[0], &args.outputs[0]);
        let params = Params { t: t.address, y: y.address, y_stride: y.stride(), unused: 0 };
        vec![Launch::kernel("timestep_embedding", [y.rows() as u32, 1, 1], HALF as u32, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let case = Case::new(TimestepEmbedding(DType::BF16), vec![Spec::new(DType::F32, [56])], DType::BF16);
    vec![Case { reason: "one rounding to bf16; the accurate sine of angles up to 1000", ..case }]
}
