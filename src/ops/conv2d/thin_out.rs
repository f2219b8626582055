//! `conv2d_out.cu`: up to 128 channels of a 16-bit type to a picture of up to 3, same size.

use super::thin_in::Params;
use super::{Conv2d, MOST_TAPS, aligned, extents, types};
use crate::cuda::Launch;
use crate::ops::{Arch, Args, Block, Kernel, Unsupported, Variant, View};
use crate::tensor::DType;

pub(super) const VARIANT: Variant<Conv2d> = Variant { fits, launch };

/// Rows and columns of outputs of a block, and the inputs under them.
const TILE: [usize; 2] = [14, 30];
const HALO: usize = 16 * 32;
/// Most channels of which a pixel is kept in registers.
const CHANNELS_MOST: usize = 128;

fn fits(op: &Conv2d, _: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
    let (x, w, y) = (&inputs[0], &inputs[1], &outputs[0]);
    let (channels, outputs) = (x.spec.shape.cols(), y.spec.shape.cols());
    let same = *op == Conv2d::SAME && x.spec.dtype != DType::F32;
    let fit = 9 * outputs <= MOST_TAPS && channels.is_multiple_of(32) && channels <= CHANNELS_MOST;
    if !same || !fit || x.alignment() < 16 || !aligned(w) {
        return Unsupported::new(format!("32·n channels of 16 bits, at most {CHANNELS_MOST}, to few are needed"));
    }
    let shared = shared_bytes(channels, outputs);
    let kernel = Kernel::new("conv2d_out", [("CHANNELS", channels), ("OUTPUTS", outputs), ("SHARED_BYTES", shared)]);
    let block = Block { threads: 256, shared_bytes: shared as u32, ..Block::USUAL };
    Ok(Kernel { block, ..kernel.with(types(x, y)?) })
}

/// The weights, rows apart by 32 values more than they have, and 9 values for each output of a pixel.
fn shared_bytes(channels: usize, outputs: usize) -> usize {
    (9 * outputs).next_multiple_of(8) * (channels + 32) * 2 + HALO * 9 * outputs * 4
}

fn launch(_: &Conv2d, kernel: &Kernel, args: &Args) -> Launch {
    let [height, width, _] = extents(&args.outputs[0]);
    let blocks = [width.div_ceil(TILE[1]), height.div_ceil(TILE[0]), 1].map(|n| n as u32);
    Launch::kernel("conv2d_out", blocks, kernel.block.threads, kernel.block.shared_bytes, &Params::new(args))
}
