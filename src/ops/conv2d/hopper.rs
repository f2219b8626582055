//! `conv2d_hopper.cu`, on sm_90: 64·n channels of a 16-bit type to 128·n, same or half size.

use super::{Conv2d, aligned, extents, types};
use crate::cuda::{Launch, TensorMap};
use crate::ops::{Arch, Args, Block, Kernel, Unsupported, Variant, View};
use crate::tensor::DType;

pub(super) const VARIANT: Variant<Conv2d> = Variant { fits, launch };

/// Rows and columns of outputs of a tile.
const TILE: u32 = 16;
/// Channels of a tile.
const CHANNELS: u32 = 128;
/// Channels of the inputs that come at a time.
const CHUNK: u32 = 64;
/// A producer and two consumers.
const THREADS: u32 = 384;

fn fits(op: &Conv2d, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
    let (x, w, y) = (&inputs[0], &inputs[1], &outputs[0]);
    let whole = x.spec.shape.cols().is_multiple_of(CHUNK as usize) && y.spec.shape.cols().is_multiple_of(CHANNELS as usize);
    let rows = x.alignment() == 16 && aligned(w) && y.alignment() == 16;
    if arch != Arch(90) || x.spec.dtype == DType::F32 || op.upsample || !whole || !rows {
        return Unsupported::new(format!("sm_90, {CHUNK}·n channels of 16 bits to {CHANNELS}·n and aligned rows are needed"));
    }
    let shared = shared_bytes(op);
    let block = Block { tile: TILE as usize, threads: THREADS, shared_bytes: shared as u32, ..Block::USUAL };
    let kernel = Kernel::new("conv2d_hopper", [("STRIDE", op.stride), ("SHARED_BYTES", shared)]);
    Ok(Kernel { block, ..kernel.with(types(x, y)?) })
}

/// Rows and columns of a plane of the inputs under a tile; halving has four planes.
fn halo(op: &Conv2d) -> u32 {
    TILE + 2 / op.stride as u32
}

/// Two planes, or the four of halving; weights of four taps; two barriers for each of both.
fn shared_bytes(op: &Conv2d) -> usize {
    let (planes, taps) = (2 * op.stride as u32, 4);
    let plane = (halo(op).pow(2) * 2 * CHUNK).next_multiple_of(1024);
    (planes * plane + taps * CHANNELS * 2 * CHUNK + 2 * 8 * (planes + taps)) as usize
}

/// As in the kernel, after the maps of picture and weight.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    bias: u64,
    y: u64,
    /// Height and width.
    size: [u32; 2],
    channels: u32,
    chunks: u32,
    tiles_x: u32,
    tiles_n: u32,
    tiles: u32,
    /// Rows of zeros above x.
    above: u32,
    padding: [u32; 4],
}
const _: () = assert!(size_of::<Params>() + 2 * TensorMap::BYTES == 320);

fn launch(op: &Conv2d, kernel: &Kernel, args: &Args) -> Launch {
    let ([x, w, bias], [y]) = (&args.inputs[..], &args.outputs[..]) else { unreachable!("checked by select") };
    let (picture, inputs) = (extents(x).map(|n| n as u32), x.cols() as u32);
    let [height, width, channels] = extents(y).map(|n| n as u32);
    let (box_side, taps) = (op.stride as u32 * halo(op), 9 * inputs);
    let maps = vec![
        TensorMap::picture(x.address, picture, [CHUNK, box_side, box_side], op.stride as u32),
        TensorMap::matrix(w.address, [taps, channels], 2 * taps as u64, [CHUNK, CHANNELS]),
    ];
    let [tiles_y, tiles_x] = [height, width].map(|n| n.div_ceil(TILE));
    let tiles_n = channels / CHANNELS;
    let params = Params {
        bias: bias.address,
        y: y.address,
        size: [height, width],
        channels,
        chunks: inputs / CHUNK,
        tiles_x,
        tiles_n,
        tiles: tiles_y * tiles_x * tiles_n,
        above: op.row_padding().0 as u32,
        padding: [0; 4],
    };
    Launch::persistent("conv2d", params.tiles, kernel.block.threads, kernel.block.shared_bytes, maps, &params)
}
