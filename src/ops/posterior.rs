//! The reference picture's latent from the encoder's moments: `y = 0.3611·(mean + e^(logvar/2)·ε − 0.1159)`.
//!
//! moments [H, W, 2C] (mean, then logvar), ε [H, W, C], y [H, W, C] f32. Without ε, the posterior's mean. diffusers bounds the
//! logarithm of the variance, the official code does not.

use std::ops::RangeInclusive;

use anyhow::{Result, ensure};

use super::{
    Arch, Args, BLOCK, Block, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, blocks, code, dense, portable,
};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Factor of FLUX's latents.
pub const LATENT_SCALE: f32 = 0.3611;
/// Mean of FLUX's latents.
pub const LATENT_SHIFT: f32 = 0.1159;

/// What diffusers keeps the logarithm of a variance in.
pub const LOGVAR: RangeInclusive<f32> = -30.0..=20.0;

/// Mean or sample of the posterior, scaled.
#[derive(Clone, Copy, Debug)]
pub struct Posterior {
    /// The logarithm of the variance is kept within [`LOGVAR`].
    pub bounded: bool,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    moments: u64,
    noise: u64,
    y: u64,
    vectors: u32,
    channels: u32,
    scale: f32,
    shift: f32,
}
const _: () = assert!(size_of::<Params>() == 40);

impl Op for Posterior {
    fn kind(&self) -> &'static str {
        "posterior"
    }

    fn attributes(&self) -> String {
        if self.bounded { "bounded".to_string() } else { String::new() }
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let mut shape = inputs[0].shape.clone();
        *shape.0.last_mut().expect("rank of three") /= 2;
        if let Some(noise) = inputs.get(1) {
            ensure!(noise.shape == shape, "the noise is {}; it must be {shape}, like the latents", noise.shape);
        }
        Ok(vec![Spec { dtype: DType::F32, shape }])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(5 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        portable(arch)?;
        dense(inputs)?;
        dense(outputs)?;
        let code = |l: &View| code(l.spec.dtype);
        let noise = inputs.get(1).unwrap_or(&inputs[0]);
        let types = [("X_TYPE", code(&inputs[0])?), ("NOISE_TYPE", code(noise)?), ("Y_TYPE", code(&outputs[0])?)];
        let channels = outputs[0].spec.shape.cols();
        let aligned =
            |n: &usize| channels.is_multiple_of(*n) && inputs.iter().chain(outputs).all(|l| l.offset.is_multiple_of(*n));
        let vector = [4, 2].into_iter().find(aligned).unwrap_or(1);
        let sample = inputs.len() > 1;
        let defines = [("SAMPLE", sample as usize), ("BOUNDED", (sample && self.bounded) as usize), ("VECTOR", vector)];
        let kernel = Kernel::new("posterior", defines).with(types);
        Ok(Kernel { block: Block { vector, ..kernel.block }, ..kernel })
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let c = outputs[0].cols();
        let noise = inputs.get(1).map(|n| n.f32());
        for (pixel, y) in outputs[0].f32().chunks_exact_mut(c).enumerate() {
            let (mean, logvar) = inputs[0].f32()[pixel * 2 * c..][..2 * c].split_at(c);
            for (i, y) in y.iter_mut().enumerate() {
                let logvar = if self.bounded { logvar[i].clamp(*LOGVAR.start(), *LOGVAR.end()) } else { logvar[i] };
                let deviation = noise.map_or(0.0, |n| (0.5 * logvar).exp() * n[pixel * c + i]);
                *y = LATENT_SCALE * (mean[i] + deviation - LATENT_SHIFT);
            }
        }
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        let y = &args.outputs[0];
        let vectors = y.view.spec.shape.elements() / kernel.block.vector;
        let params = Params {
            moments: args.inputs[0].address,
            noise: args.inputs.get(1).map_or(0, |n| n.address),
            y: y.address,
            vectors: vectors as u32,
            channels: y.cols() as u32,
            scale: LATENT_SCALE,
            shift: LATENT_SHIFT,
        };
        vec![Launch::kernel("posterior", blocks(vectors), BLOCK, 0, &params)]
    }
}

pub(super) fn cases() -> Vec<Case> {
    let moments = Spec::new(DType::BF16, [8, 12, 32]);
    let sample = vec![moments.clone(), Spec::new(DType::BF16, [8, 12, 16])];
    let case = |bounded, inputs| Case {
        bound: 1e-12,
        reason: "the exponential's last bit",
        ..Case::new(Posterior { bounded }, inputs, DType::F32)
    };
    vec![case(false, vec![moments]), case(false, sample.clone()), case(true, sample)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Values;

    #[test]
    fn a_variance_is_bounded_where_it_is_asked() {
        let specs = [[1, 1, 4], [1, 1, 2]].map(|shape| Spec::new(DType::F32, shape));
        let (moments, noise) = ([0.0, 0.0, 22.0, -40.0], [1.0, 1e6]);
        for (bounded, logvar) in [(false, [22.0f32, -40.0]), (true, [20.0, -30.0])] {
            let op = Posterior { bounded };
            let mut outputs: Vec<_> = op.infer(&specs).unwrap().into_iter().map(Output::zeros).collect();
            let inputs: Vec<_> = specs.iter().cloned().zip([&moments[..], &noise[..]]).collect();
            let inputs: Vec<_> = inputs.into_iter().map(|(spec, values)| Operand { spec, values: Values::F32(values) }).collect();
            op.reference(&inputs, &mut outputs);
            let expected = [0, 1].map(|i| LATENT_SCALE * ((0.5 * logvar[i]).exp() * noise[i] - LATENT_SHIFT));
            assert_eq!(outputs[0].f32(), expected, "bounded: {bounded}");
        }
    }
}
