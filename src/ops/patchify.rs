//! Latents [H, W, C] to tokens [H/2·W/2, 4·C] and back. Token (i, j) in row-major order holds the 2×2 square at (2i, 2j);
//! its channel `c·4 + row·2 + col` is channel c there: channel outermost.

use anyhow::{Result, ensure};

use super::{Arch, Args, BLOCK, Case, Cost, Kernel, Op, Operand, Output, Unsupported, View, blocks, code, dense, portable};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Latents to tokens.
#[derive(Clone, Copy, Debug)]
pub struct Pack;

/// Tokens to latents, `x / divisor + shift`.
#[derive(Clone, Copy, Debug)]
pub struct Unpack {
    /// Latent height and width.
    pub size: (usize, usize),
    /// What values are divided by.
    pub divisor: f32,
    /// What is added after.
    pub shift: f32,
}

/// Index in [H, W, C] of element `channel` of token `token`.
fn place(w: usize, c: usize, token: usize, channel: usize) -> usize {
    let (row, col) = (token / (w / 2) * 2 + channel / 2 % 2, token % (w / 2) * 2 + channel % 2);
    (row * w + col) * c + channel / 4
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x: u64,
    y: u64,
    values: u32,
    width: u32,
    channels: u32,
    divisor: f32,
    shift: f32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 40);

/// Both directions are one kernel.
fn kernel(pack: bool, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
    portable(arch)?;
    dense(inputs)?;
    dense(outputs)?;
    let (x, y) = (inputs[0].spec.dtype, outputs[0].spec.dtype);
    if !(x.is_float() && y.is_float()) {
        return Unsupported::new(format!("the latents are {x} and become {y}; the kernel takes floats"));
    }
    Ok(Kernel::new("patchify", [("PACK", pack as usize), ("X_TYPE", code(x)?), ("Y_TYPE", code(y)?)]))
}

/// The launch for latents of `width` and `channels`.
fn launch(args: &Args, width: usize, channels: usize, divisor: f32, shift: f32) -> Vec<Launch> {
    let (x, y) = (&args.inputs[0], &args.outputs[0]);
    let values = x.view.spec.shape.elements();
    let params = Params {
        x: x.address,
        y: y.address,
        values: values as u32,
        width: width as u32,
        channels: channels as u32,
        divisor,
        shift,
        unused: 0,
    };
    vec![Launch::kernel("patchify", blocks(values), BLOCK, 0, &params)]
}

impl Op for Pack {
    fn kind(&self) -> &'static str {
        "pack"
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [h, w, c] = inputs[0].shape.0[..] else { anyhow::bail!("the latents must be [H, W, C]") };
        ensure!(h.is_multiple_of(2) && w.is_multiple_of(2), "the latents are {h}x{w}; both sides must be even");
        Ok(vec![Spec::new(inputs[0].dtype, [h / 2 * w / 2, 4 * c])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(0, inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        kernel(true, arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let [_, w, c] = inputs[0].spec.shape.0[..] else { unreachable!("checked by infer") };
        let x = inputs[0].f32();
        outputs[0].f32().iter_mut().enumerate().for_each(|(i, y)| *y = x[place(w, c, i / (4 * c), i % (4 * c))]);
    }

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        let [_, w, c] = args.inputs[0].view.spec.shape.0[..] else { unreachable!("checked by infer") };
        launch(args, w, c, 1.0, 0.0)
    }
}

impl Op for Unpack {
    fn kind(&self) -> &'static str {
        "unpack"
    }

    fn attributes(&self) -> String {
        format!("/{} +{}", self.divisor, self.shift)
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let ((h, w), tokens) = (self.size, &inputs[0].shape);
        ensure!(tokens.rows() == h / 2 * w / 2 && tokens.cols().is_multiple_of(4), "{tokens} are not the tokens of {h}x{w}");
        Ok(vec![Spec::new(inputs[0].dtype, [h, w, tokens.cols() / 4])])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost::streaming(2 * outputs[0].shape.elements(), inputs, outputs)
    }

    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        kernel(false, arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let (w, c) = (self.size.1, outputs[0].cols());
        let y = outputs[0].f32();
        for (i, &x) in inputs[0].f32().iter().enumerate() {
            y[place(w, c, i / (4 * c), i % (4 * c))] = x / self.divisor + self.shift;
        }
    }

    fn launch(&self, _: &Kernel, args: &Args) -> Vec<Launch> {
        launch(args, self.size.1, args.outputs[0].cols(), self.divisor, self.shift)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let unpack = Unpack { size: (10, 14), divisor: 0.3611, shift: 0.1159 };
    vec![
        Case { bound: 0.0, reason: "a copy", ..Case::new(Pack, vec![Spec::new(DType::F32, [10, 14, 16])], DType::F32) },
        Case {
            bound: 1e-13,
            reason: "a division in f32",
            ..Case::new(unpack, vec![Spec::new(DType::F32, [35, 64])], DType::F32)
        },
        Case {
            bound: 1e-9,
            reason: "a division in f32, of which few fall to the other f16",
            ..Case::new(unpack, vec![Spec::new(DType::F32, [35, 64])], DType::F16)
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::run_f32;

    #[test]
    fn channel_is_outermost_in_a_token() {
        // Latents [2, 4, 2] with value 100·row + 10·column + channel.
        let x: Vec<f32> = (0..16).map(|i| (100 * (i / 8) + 10 * (i / 2 % 4) + i % 2) as f32).collect();
        let tokens = run_f32(&Pack, &[(Spec::new(DType::F32, [2, 4, 2]), &x)]);
        assert_eq!(tokens, [0., 10., 100., 110., 1., 11., 101., 111., 20., 30., 120., 130., 21., 31., 121., 131.]);
        let back = run_f32(&Unpack { size: (2, 4), divisor: 1.0, shift: 0.0 }, &[(Spec::new(DType::F32, [2, 8]), &tokens)]);
        assert_eq!(back, x);
    }
}
