//! `conv2d.cu`, on every architecture: all types and extents that the op has kernels for.

use super::{Conv2d, addresses, aligned, extents, types};
use crate::cuda::Launch;
use crate::ops::{Arch, Args, Block, Kernel, Unsupported, Variant, View};

pub(super) const VARIANT: Variant<Conv2d> = Variant { fits, launch };

/// Output columns of a tile.
const TILE_WIDTH: usize = 16;

/// Output rows of a tile.
fn tile_height(op: &Conv2d) -> usize {
    if op.stride == 2 { 4 } else { 8 }
}

fn fits(op: &Conv2d, _: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
    let (x, w, y) = (&inputs[0], &inputs[1], &outputs[0]);
    // Rows of w are as long as x's pixels.
    let vector = x.alignment() == 16 && aligned(w);
    let tile = match y.spec.shape.cols() {
        n if !n.is_multiple_of(8) || n == 8 || y.alignment() < 16 => 8, // the one with scalar stores
        n if n <= 32 => 32,
        _ => 128,
    };
    let shared = shared_bytes(op, tile);
    let defines = [
        ("STRIDE", op.stride),
        ("UPSAMPLE", op.upsample as usize),
        ("VECTOR", vector as usize),
        ("N_TILE", tile),
        ("SHARED_BYTES", shared),
    ];
    let block = Block { tile, threads: 128, shared_bytes: shared as u32, ..Block::USUAL };
    Ok(Kernel { block, ..Kernel::new("conv2d", defines).with(types(x, y)?) })
}

/// Two halves of 64-byte rows: the inputs under a tile of pixels, an even number in a row; three taps of `channels`.
fn shared_bytes(op: &Conv2d, channels: usize) -> usize {
    let under = |outputs: usize| if op.upsample { outputs / 2 + 2 } else { op.stride * (outputs - 1) + 3 };
    2 * 64 * (under(tile_height(op)) * under(TILE_WIDTH).next_multiple_of(2) + 3 * channels)
}

/// As in the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    /// x, w, bias, y.
    addresses: [u64; 4],
    /// Height, width, channels.
    x: [u32; 3],
    y: [u32; 3],
    /// Rows of zeros above x.
    above: u32,
    unused: u32,
}
const _: () = assert!(size_of::<Params>() == 64);

fn launch(op: &Conv2d, kernel: &Kernel, args: &Args) -> Launch {
    let [x, y] = [&args.inputs[0], &args.outputs[0]].map(extents);
    let [height, width, channels] = y;
    let (x, y, above) = (x.map(|n| n as u32), y.map(|n| n as u32), op.row_padding().0 as u32);
    let params = Params { addresses: addresses(args), x, y, above, unused: 0 };
    // The channels of a tile of pixels are neighbours in time, so that its inputs are read from memory once.
    let blocks = [channels.div_ceil(kernel.block.tile), width.div_ceil(TILE_WIDTH), height.div_ceil(tile_height(op))];
    Launch::kernel("conv2d", blocks.map(|n| n as u32), kernel.block.threads, kernel.block.shared_bytes, &params)
}
