//! Which kernel takes a [`Conv2d`], and how it is launched.

use super::conv2d::Conv2d;
use super::{Arch, Arg, Args, Kernel, Unsupported, View};
use crate::cuda::{Launch, TensorMap};
use crate::tensor::DType;

/// Values of all taps of a few channels in `conv2d_in.cu`, of all outputs in `conv2d_out.cu`.
const MOST_TAPS: usize = 32;

/// Channels of latents, which `conv2d_in.cu` takes too.
const LATENT_CHANNELS: usize = 16;

/// Tiles that a block of `conv2d_in.cu` takes, and their rows and columns.
const IN_TILES: usize = 2;
const IN_TILE: [usize; 2] = [4, 32];

/// Most channels of its tile, in times out: from 16 to 512 of 128×128 pixels, tiles of 64 took 18.6 µs, of 128 20.6 (H100).
const IN_WEIGHTS_MOST: usize = 1024;

/// Rows and columns of outputs of a block of `conv2d_out.cu`, and of the inputs under them.
const OUT_TILE: [usize; 2] = [14, 30];
const OUT_HALO: usize = 16 * 32;

/// Most channels of which `conv2d_out.cu` keeps a pixel in registers.
const OUT_CHANNELS_MOST: usize = 128;

/// Output columns of a tile of `conv2d.cu`.
const TILE_WIDTH: usize = 16;

/// Rows and columns of outputs of a tile of `conv2d_hopper.cu`, its channels, channels of the inputs that come at a time, and threads.
const HOPPER_TILE: u32 = 16;
const HOPPER_CHANNELS: u32 = 128;
const HOPPER_CHUNK: u32 = 64;
const HOPPER_THREADS: u32 = 384;

/// The kernel for picture, weight and result, of types and extents that some kernel takes.
pub(super) fn select(op: &Conv2d, arch: Arch, [x, w, y]: [&View; 3]) -> Result<Kernel, Unsupported> {
    let rows = y.spec.shape.0[0];
    if w.spec.shape.elements() > u32::MAX as usize || rows.div_ceil(tile_height(op).min(IN_TILE[0])) > 65535 {
        return Unsupported::new(format!("{} rows of {}: more than 32-bit offsets or a grid hold", rows, w.spec));
    }
    let (channels, outputs) = (x.spec.shape.cols(), y.spec.shape.cols());
    let types = [("X_TYPE", x.spec.dtype.code()), ("Y_TYPE", y.spec.dtype.code())];
    let aligned = |l: &View| (l.offset * l.spec.dtype.bytes()).is_multiple_of(16);
    let whole = channels.is_multiple_of(HOPPER_CHUNK as usize) && outputs.is_multiple_of(HOPPER_CHANNELS as usize);
    if arch == Arch(90)
        && x.spec.dtype != DType::F32
        && !op.upsample
        && whole
        && x.alignment() == 16
        && aligned(w)
        && y.alignment() == 16
    {
        let defines = [("STRIDE", op.stride), ("SHARED_BYTES", hopper_shared_bytes(op))];
        return Ok(Kernel::new("conv2d_hopper", [&defines[..], &types].concat()));
    }
    let thin = *op == Conv2d::SAME && x.spec.dtype != DType::F32;
    let few = 9 * channels <= MOST_TAPS || (channels == LATENT_CHANNELS && x.alignment() == 16 && aligned(w));
    if thin && few && outputs.is_multiple_of(32) && y.alignment() == 16 {
        let fits = |&tile: &usize| outputs.is_multiple_of(tile) && tile * channels <= IN_WEIGHTS_MOST;
        let tile = [128, 64].into_iter().find(fits).unwrap_or(32);
        let defines = [("CHANNELS", channels), ("N_TILE", tile), ("TILES", IN_TILES)];
        return Ok(Kernel::new("conv2d_in", [&defines[..], &types].concat()));
    }
    if thin
        && 9 * outputs <= MOST_TAPS
        && channels.is_multiple_of(32)
        && channels <= OUT_CHANNELS_MOST
        && x.alignment() == 16
        && aligned(w)
    {
        let defines = [("CHANNELS", channels), ("OUTPUTS", outputs), ("SHARED_BYTES", out_shared_bytes(channels, outputs))];
        return Ok(Kernel::new("conv2d_out", [&defines[..], &types].concat()));
    }
    // Rows of w are as long as x's pixels.
    let vector = x.alignment() == 16 && aligned(w);
    let tile = match outputs {
        n if !n.is_multiple_of(8) || n == 8 || y.alignment() < 16 => 8, // the one with scalar stores
        n if n <= 32 => 32,
        _ => 128,
    };
    let defines = [
        ("STRIDE", op.stride),
        ("UPSAMPLE", op.upsample as usize),
        ("VECTOR", vector as usize),
        ("N_TILE", tile),
        ("SHARED_BYTES", shared_bytes(op, tile)),
    ];
    Ok(Kernel::new("conv2d", [&defines[..], &types].concat()))
}

/// The one launch of a kernel that [`select`] chose.
pub(super) fn launch(op: &Conv2d, kernel: &Kernel, args: &Args) -> Launch {
    let [x, w, bias] = &args.inputs[..] else { unreachable!("checked by select") };
    let y = &args.outputs[0];
    let extents = |arg: &Arg| [0, 1, 2].map(|i| arg.view.spec.shape.0[i]);
    let addresses = [x, w, bias, y].map(|arg| arg.address);
    let [height, width, channels] = extents(y);
    let size = [height as u32, width as u32];
    let grid = |blocks: [usize; 3]| blocks.map(|n| n as u32);
    match kernel.source {
        "conv2d_hopper" => {
            let (picture, inputs) = (extents(x).map(|n| n as u32), x.view.spec.shape.cols());
            let halo = op.stride as u32 * hopper_halo(op);
            let box_extents = [HOPPER_CHUNK, halo, halo];
            let taps = 9 * inputs as u32;
            let maps = vec![
                TensorMap::picture(x.address, picture, box_extents, op.stride as u32),
                TensorMap::matrix(w.address, [taps, channels as u32], 2 * taps as u64, [HOPPER_CHUNK, HOPPER_CHANNELS]),
            ];
            let [tiles_y, tiles_x] = size.map(|n| n.div_ceil(HOPPER_TILE));
            let tiles_n = channels as u32 / HOPPER_CHANNELS;
            let params = Hopper {
                bias: bias.address,
                y: y.address,
                size,
                channels: channels as u32,
                chunks: inputs as u32 / HOPPER_CHUNK,
                tiles_x,
                tiles_n,
                tiles: tiles_y * tiles_x * tiles_n,
                padding: [0; 5],
            };
            Launch::persistent("conv2d", params.tiles, HOPPER_THREADS, kernel.define("SHARED_BYTES") as u32, maps, &params)
        }
        "conv2d_in" => {
            let blocks = [channels / kernel.define("N_TILE"), width.div_ceil(IN_TILES * IN_TILE[1]), height.div_ceil(IN_TILE[0])];
            let params = Thin { addresses, size, channels: [channels as u32, 0] };
            Launch::kernel("conv2d_in", grid(blocks), 128, 0, &params)
        }
        "conv2d_out" => {
            let blocks = [width.div_ceil(OUT_TILE[1]), height.div_ceil(OUT_TILE[0]), 1];
            let params = Thin { addresses, size, channels: [channels as u32, 0] };
            Launch::kernel("conv2d_out", grid(blocks), 256, kernel.define("SHARED_BYTES") as u32, &params)
        }
        _ => {
            let params = Params { addresses, x: extents(x).map(|n| n as u32), y: extents(y).map(|n| n as u32) };
            // The channels of a tile of pixels are neighbours in time, so that its inputs are read from memory once.
            let blocks =
                [channels.div_ceil(kernel.define("N_TILE")), width.div_ceil(TILE_WIDTH), height.div_ceil(tile_height(op))];
            Launch::kernel("conv2d", grid(blocks), 128, kernel.define("SHARED_BYTES") as u32, &params)
        }
    }
}

/// As in `kernels/conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    /// x, w, bias, y.
    addresses: [u64; 4],
    /// Height, width, channels.
    x: [u32; 3],
    y: [u32; 3],
}

const _: () = assert!(size_of::<Params>() == 56);

/// As in `kernels/conv2d_in.cu` and `kernels/conv2d_out.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Thin {
    /// x, w, bias, y.
    addresses: [u64; 4],
    /// Height and width.
    size: [u32; 2],
    /// Of y, and nothing.
    channels: [u32; 2],
}

const _: () = assert!(size_of::<Thin>() == 48);

/// As in `kernels/conv2d_hopper.cu`, after the maps of picture and weight.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Hopper {
    bias: u64,
    y: u64,
    /// Height and width.
    size: [u32; 2],
    channels: u32,
    chunks: u32,
    tiles_x: u32,
    tiles_n: u32,
    tiles: u32,
    padding: [u32; 5],
}

const _: () = assert!(size_of::<Hopper>() + 2 * TensorMap::BYTES == 320);

/// Rows and columns of a plane of the inputs under a tile; halving has four planes.
fn hopper_halo(op: &Conv2d) -> u32 {
    HOPPER_TILE + 2 / op.stride as u32
}

/// Two planes, or the four of halving; weights of four taps; two barriers for each of both.
fn hopper_shared_bytes(op: &Conv2d) -> usize {
    let (planes, taps) = (2 * op.stride as u32, 4);
    let plane = (hopper_halo(op).pow(2) * 2 * HOPPER_CHUNK).next_multiple_of(1024);
    (planes * plane + taps * HOPPER_CHANNELS * 2 * HOPPER_CHUNK + 2 * 8 * (planes + taps)) as usize
}

/// Output rows of a tile of `conv2d.cu`.
fn tile_height(op: &Conv2d) -> usize {
    if op.stride == 2 { 4 } else { 8 }
}

/// Two halves of 64-byte rows: the inputs under a tile of pixels, an even number in a row; three taps of `channels`.
fn shared_bytes(op: &Conv2d, channels: usize) -> usize {
    let under = |outputs: usize| if op.upsample { outputs / 2 + 2 } else { op.stride * (outputs - 1) + 3 };
    2 * 64 * (under(tile_height(op)) * under(TILE_WIDTH).next_multiple_of(2) + 3 * channels)
}

/// The weights, rows apart by 32 values more than they have, and 9 values for each output of a pixel.
fn out_shared_bytes(channels: usize, outputs: usize) -> usize {
    (9 * outputs).next_multiple_of(8) * (channels + 32) * 2 + OUT_HALO * 9 * outputs * 4
}
