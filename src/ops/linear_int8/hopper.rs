//! `product_hopper.cu`, on sm_90: rows at multiples of 16 bytes.

use super::{LinearInt8, MOST_COLUMNS};
use crate::cuda::{Launch, TensorMap};
use crate::ops::{Arch, Args, Block, BranchParams, BranchRows, Kernel, Unsupported, Variant, View};

pub(super) const VARIANT: Variant<LinearInt8> = Variant { fits, launch };

/// Rows and columns of a block's tile.
const TILE: [u32; 2] = [128, 256];
/// Columns of x and w that come at a time, and how many of those are held.
const SLICE: u32 = 128;
const STAGES: u32 = 4;
/// Blocks whose tiles lie below each other and share their part of w.
const CLUSTER: u32 = 2;
/// Tiles below each other that are computed at a time, so that they share rows of w in the cache.
const GROUP: u32 = 32;
/// Columns and rows of y that a warp writes at a time, and how many warps do, with two places each.
const PANEL: [u32; 2] = [64, 16];
const WRITERS: u32 = 8;
/// A producer and two consumers.
const THREADS: u32 = 384;
/// Slices with two barriers each, panels of bf16, scale and bias of each column.
const SHARED: u32 = STAGES * ((TILE[0] + TILE[1]) * SLICE + 16) + WRITERS * 2 * PANEL[0] * PANEL[1] * 2 + TILE[1] * 8;
const _: () = assert!(SHARED <= 227 << 10);
/// The number by which the kernel knows signed integers of eight bits.
const INT8: usize = 5;

fn fits(op: &LinearInt8, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
    let (x, w, columns, y) = (&inputs[0], &inputs[2], &inputs[3], &outputs[0]);
    let aligned = [x, w, columns, y].iter().all(|view| view.alignment() == 16);
    if arch != Arch(90) || !aligned || x.spec.shape.cols() > MOST_COLUMNS {
        return Unsupported::new(format!(
            "the GPU is sm_{}, x {}, y {}; the kernel takes sm_90, rows at multiples of 16 bytes and up to {MOST_COLUMNS} columns of x",
            arch.0, x.spec, y.spec
        ));
    }
    let block = Block { threads: THREADS, shared_bytes: SHARED, ..Block::USUAL };
    let kernel = Kernel::new("product_hopper", [("X_TYPE", INT8), ("ENDING", op.gelu as usize)]);
    let tiles = [("TILE_M", TILE[0]), ("TILE_N", TILE[1]), ("STAGES", STAGES), ("CLUSTER", CLUSTER), ("GROUP", GROUP)];
    let tiles = tiles.map(|(name, n)| (name, n as usize));
    let other = [("PROMOTE", 0), ("ROUND_PRODUCT", 0), ("SHARED_BYTES", SHARED as usize)];
    Ok(Kernel { block, ..kernel.with(tiles).with(other) })
}

/// As in the kernel, after the maps of x, w and y. What other endings read is 0.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    x_scales: u64,
    columns: u64,
    /// Residual, gate, y without a map, integers, scales, maxima, counters.
    other_endings: [u64; 7],
    rows: u32,
    slices: u32,
    /// Of a cluster.
    tiles_m: u32,
    tiles_n: u32,
    /// Strides of residual, gate and y, columns and stride of integers.
    other_strides: [u32; 5],
    branches: BranchParams,
    columns_count: u32,
    padding: [u32; 6],
}
const _: () = assert!(size_of::<Params>() + 3 * TensorMap::BYTES == 576);

fn launch(_: &LinearInt8, kernel: &Kernel, args: &Args) -> Launch {
    let ([x, x_scales, w, columns], [y]) = (&args.inputs[..], &args.outputs[..]) else { unreachable!("checked by infer") };
    let (rows, k, n) = (x.rows() as u32, x.cols() as u32, y.cols() as u32);
    let integers = |address, rows, stride: u32, box_rows| TensorMap::bytes(address, [k, rows], stride.into(), [SLICE, box_rows]);
    let maps = vec![
        integers(x.address, rows, x.stride(), TILE[0]),
        integers(w.address, n, w.stride(), TILE[1] / CLUSTER),
        TensorMap::matrix(y.address, [n, rows], 2 * u64::from(y.stride()), PANEL),
    ];
    let (tiles_m, tiles_n) = (rows.div_ceil(TILE[0] * CLUSTER), n.div_ceil(TILE[1]));
    let params = Params {
        x_scales: x_scales.address,
        columns: columns.address,
        other_endings: [0; 7],
        rows,
        // Slices past the end are zeros: the columns' scales come with one that follows STAGES others.
        slices: k.div_ceil(SLICE).max(STAGES + 1),
        tiles_m,
        tiles_n,
        other_strides: [0; 5],
        branches: BranchRows(vec![(rows as usize, 0)]).params(),
        columns_count: n,
        padding: [0; 6],
    };
    let blocks = tiles_m * tiles_n * CLUSTER;
    Launch::clusters("product", CLUSTER, blocks, kernel.block.threads, kernel.block.shared_bytes, maps, &params)
}
