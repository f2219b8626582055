//! `conv2d_in.cu`: a 16-bit picture of up to 3 channels, or latents of 16, to 32·n channels, same size.

use super::{Conv2d, MOST_TAPS, addresses, aligned, extents, types};
use crate::cuda::Launch;
use crate::ops::{Arch, Args, Block, Kernel, Unsupported, Variant, View};
use crate::tensor::DType;

pub(super) const VARIANT: Variant<Conv2d> = Variant { fits, launch };

/// Channels of latents.
const LATENT_CHANNELS: usize = 16;
/// Tiles that a block takes, and their rows and columns.
const TILES: usize = 2;
const TILE: [usize; 2] = [4, 32];
/// Most channels of its tile, in times out: from 16 to 512 of 128×128 pixels, tiles of 64 took 18.6 µs, of 128 20.6 (H100).
const WEIGHTS_MOST: usize = 1024;

fn fits(op: &Conv2d, _: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
    let (x, w, y) = (&inputs[0], &inputs[1], &outputs[0]);
    let (channels, outputs) = (x.spec.shape.cols(), y.spec.shape.cols());
    let same = *op == Conv2d::SAME && x.spec.dtype != DType::F32;
    let few = 9 * channels <= MOST_TAPS || (channels == LATENT_CHANNELS && x.alignment() == 16 && aligned(w));
    if !same || !few || !outputs.is_multiple_of(32) || y.alignment() < 16 {
        return Unsupported::new(format!("16-bit pictures of few or {LATENT_CHANNELS} channels to 32·n are needed"));
    }
    let whole = |&tile: &usize| outputs.is_multiple_of(tile) && tile * channels <= WEIGHTS_MOST;
    let tile = [128, 64].into_iter().find(whole).unwrap_or(32);
    let kernel = Kernel::new("conv2d_in", [("CHANNELS", channels), ("N_TILE", tile), ("TILES", TILES)]);
    let block = Block { tile, threads: 128, ..Block::USUAL };
    Ok(Kernel { block, ..kernel.with(types(x, y)?) })
}

/// As in `conv2d_in.cu` and `conv2d_out.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
pub(super) struct Params {
    /// x, w, bias, y.
    addresses: [u64; 4],
    /// Height and width.
    size: [u32; 2],
    /// Of y, and nothing.
    channels: [u32; 2],
}
const _: () = assert!(size_of::<Params>() == 48);

impl Params {
    pub(super) fn new(args: &Args) -> Params {
        let [height, width, channels] = extents(&args.outputs[0]).map(|n| n as u32);
        Params { addresses: addresses(args), size: [height, width], channels: [channels, 0] }
    }
}

fn launch(_: &Conv2d, kernel: &Kernel, args: &Args) -> Launch {
    let [height, width, channels] = extents(&args.outputs[0]);
    let blocks = [channels / kernel.block.tile, width.div_ceil(TILES * TILE[1]), height.div_ceil(TILE[0])];
    Launch::kernel("conv2d_in", blocks.map(|n| n as u32), kernel.block.threads, 0, &Params::new(args))
}
