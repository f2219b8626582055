//! How the kernels of [`Attention`] are launched: their argument structs, tiles and tensor maps.

use std::ops::Range;

use super::attention::{Attention, Segment};
use super::{Arg, Args, Kernel};
use crate::cuda::{Launch, TensorMap};

/// The tiles of each size that the portable kernel may take, size after size.
pub(super) fn table(op: &Attention) -> Vec<u32> {
    QUERY_TILES.iter().flat_map(|&size| tiles(op, size)).flat_map(bytemuck::cast::<Tile, [u32; Tile::WORDS]>).collect()
}

/// The one launch of a kernel that `select` chose.
pub(super) fn launch(op: &Attention, kernel: &Kernel, args: &Args) -> Launch {
    if kernel.source == "attention_hopper" { hopper(op, args) } else { portable(op, kernel, args) }
}

fn portable(op: &Attention, kernel: &Kernel, args: &Args) -> Launch {
    let [width, queries, keys] = ["HEAD_WIDTH", "QUERIES", "KEYS"].map(|name| kernel.define(name));
    let before = QUERY_TILES.iter().take_while(|&&size| size != queries).map(|&size| tiles(op, size).len()).sum::<usize>();
    let [q, k, v] = [0, 1, 2].map(|i| &args.inputs[i]);
    let y = &args.outputs[0];
    let params = Portable {
        q: q.address,
        k: k.address,
        v: v.address,
        bias: bias(args),
        y: y.address,
        tiles: args.table + (before * size_of::<Tile>()) as u64,
        q_stride: q.stride(),
        k_stride: k.stride(),
        v_stride: v.stride(),
        y_stride: y.stride(),
        group: (op.heads / op.kv_heads) as u32,
        scale_log2: scale_log2(width),
        inverse_scale: (width as f32).sqrt(),
        biases: biases(args),
    };
    // Blocks in flight share a head, and with it keys and values in the cache.
    let grid = [tiles(op, queries).len() as u32, op.heads as u32, 1];
    let threads = if width > 128 { 256 } else { 128 };
    Launch::kernel("attention", grid, threads, shared_bytes(width, queries, keys), &params)
}

/// Address of the keys' biases; 0 without.
fn bias(args: &Args) -> u64 {
    args.inputs.get(3).map_or(0, |bias| bias.address)
}

/// How many there are.
fn biases(args: &Args) -> u32 {
    args.inputs.get(3).map_or(0, |bias| bias.cols() as u32)
}

/// log2(e) / √width.
fn scale_log2(width: usize) -> f32 {
    (std::f64::consts::LOG2_E / (width as f64).sqrt()) as f32
}

/// Sizes of a tile of queries, of which a kernel takes one.
const QUERY_TILES: [usize; 2] = [64, 128];

/// Rows of a segment as the kernel finds them: row `i` at `i + low` before `split`, at `i + high` from there on, modulo 2³².
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Rows {
    count: u32,
    split: u32,
    low: u32,
    high: u32,
}

impl Rows {
    fn new(ranges: &[Range<usize>]) -> Rows {
        let range = |i: usize| ranges.get(i).cloned().unwrap_or_default();
        let split = range(0).len() as u32;
        let high = (range(1).start as u32).wrapping_sub(split);
        Rows { count: split + range(1).len() as u32, split, low: range(0).start as u32, high }
    }
}

/// The queries of one block: those of a segment from number `first` on.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Tile {
    first: u32,
    q: Rows,
    k: Rows,
}

impl Tile {
    const WORDS: usize = size_of::<Tile>() / 4;
}

/// `attention.cu`'s argument.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Portable {
    q: u64,
    k: u64,
    v: u64,
    bias: u64,
    y: u64,
    tiles: u64,
    q_stride: u32,
    k_stride: u32,
    v_stride: u32,
    y_stride: u32,
    group: u32,
    scale_log2: f32,
    inverse_scale: f32,
    biases: u32,
}
const _: () = assert!(size_of::<Portable>() == 80 && size_of::<Tile>() == 36);

/// Tiles of up to `size` queries, those that see most keys first; neighbours are of one segment.
fn tiles(op: &Attention, size: usize) -> Vec<Tile> {
    let mut tiles = vec![];
    for segment in &op.segments {
        let ((queries, keys), q, k) = (segment.lengths(), Rows::new(&segment.q), Rows::new(&segment.k));
        for first in (0..queries).step_by(size) {
            let seen = if op.causal { keys - queries + queries.min(first + size) } else { keys };
            tiles.push((seen, Tile { first: first as u32, q, k }));
        }
    }
    tiles.sort_by_key(|(seen, _)| std::cmp::Reverse(*seen));
    tiles.into_iter().map(|(_, tile)| tile).collect()
}

/// Shared memory of a block: tiles of rows, padded where their 16-byte chunks are not a multiple of eight. Narrow heads have
/// two stages of keys and values and two of biases; wide ones one of each, weights, and the statistics of one or two parts of a tile.
fn shared_bytes(width: usize, queries: usize, keys: usize) -> u32 {
    let chunks = width / 8;
    let pitch = 16 * if chunks.is_multiple_of(8) { chunks } else { chunks | 1 };
    let bytes = match width {
        512 => {
            let (weights, parts) = (keys * 2 + if keys > 16 { 16 } else { 0 }, (keys / 16).min(2));
            (queries + 2 * keys) * pitch + queries * (weights + (parts + 1) * 4)
        }
        _ => (queries + 4 * keys) * pitch + 2 * keys * 4,
    };
    bytes as u32
}

/// Columns of a head, and rows of a tile of queries or keys, in `attention_hopper.cu`.
const HOPPER_TILE: u32 = 128;
/// Columns of a box: 128 bytes.
const HOPPER_PANEL: u32 = 64;
/// A producer and two consumers.
const HOPPER_THREADS: u32 = 3 * 128;
/// Queries, two tiles of keys and of values, and barriers; behind them lie the biases.
const HOPPER_SHARED: u32 = 163_920;
/// Biases for which a block's 227 KB have room beside them; behind those lies the zero of all other rows.
pub(super) const HOPPER_BIASES: usize = ((227 << 10) - HOPPER_SHARED as usize) / 4 - 1;

/// Rows of a range as queries and as keys; nothing of what is not there.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct RangeRows {
    q_first: u32,
    q_count: u32,
    k_first: u32,
    k_count: u32,
}

/// `attention_hopper.cu`'s argument after the maps of queries, keys and values of each range of each segment.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Hopper {
    ranges: [[RangeRows; 2]; 2],
    bias: u64,
    y: u64,
    y_stride: u32,
    heads: u32,
    group: u32,
    scale_log2: f32,
    inverse_scale: f32,
    biases: u32,
    padding: [u32; 6],
}
const _: () = assert!(size_of::<Hopper>() + 12 * TensorMap::BYTES == 1664);

fn hopper(op: &Attention, args: &Args) -> Launch {
    let (mut ranges, mut maps) = ([[RangeRows::default(); 2]; 2], Vec::new());
    for (s, of_segment) in ranges.iter_mut().enumerate() {
        let of = |rows: fn(&Segment) -> &Vec<Range<usize>>| op.segments.get(s).map_or_else(Default::default, |s| two(rows(s)));
        let (q, k) = (of(|segment| &segment.q), of(|segment| &segment.k));
        for (r, rows) in of_segment.iter_mut().enumerate() {
            let (q, k) = (&q[r], &k[r]);
            *rows =
                RangeRows { q_first: q.start as u32, q_count: q.len() as u32, k_first: k.start as u32, k_count: k.len() as u32 };
            maps.extend([map(&args.inputs[0], q), map(&args.inputs[1], k), map(&args.inputs[2], k)]);
        }
    }
    let y = &args.outputs[0];
    let tiles = |count: u32| count.div_ceil(HOPPER_TILE);
    let blocks = op.heads as u32 * ranges.iter().flatten().map(|rows| tiles(rows.q_count)).sum::<u32>();
    let params = Hopper {
        ranges,
        bias: bias(args),
        y: y.address,
        y_stride: y.stride(),
        heads: op.heads as u32,
        group: (op.heads / op.kv_heads) as u32,
        scale_log2: scale_log2(HOPPER_TILE as usize),
        inverse_scale: (HOPPER_TILE as f32).sqrt(),
        biases: biases(args),
        padding: [0; 6],
    };
    Launch::persistent("attention", blocks, HOPPER_THREADS, hopper_shared(biases(args)), maps, &params)
}

/// Shared memory of a block, in bytes.
fn hopper_shared(biases: u32) -> u32 {
    HOPPER_SHARED + 4 * (biases + 1)
}

/// A segment's ranges as the kernel wants them: the second has rows.
fn two(ranges: &[Range<usize>]) -> [Range<usize>; 2] {
    let mut of_rows = ranges.iter().filter(|range| !range.is_empty()).rev().cloned();
    let second = of_rows.next().unwrap_or_default();
    [of_rows.next().unwrap_or_default(), second]
}

/// The rows of a range, which end where it ends: TMA brings zeros from there on.
fn map(operand: &Arg, rows: &Range<usize>) -> TensorMap {
    let bytes = operand.view.spec.dtype.bytes() as u64;
    let stride = operand.stride() as u64 * bytes;
    let address = operand.address + rows.start as u64 * stride;
    TensorMap::matrix(address, [operand.cols() as u32, rows.len() as u32], stride, [HOPPER_PANEL, HOPPER_TILE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::{Segment, cases};
    use crate::ops::{Arch, Op, View};
    use crate::tensor::{DType, Spec};

    #[test]
    fn tiles_cover_every_query_and_find_its_rows() {
        let segments = vec![
            Segment { q: vec![0..3, 10..150], k: vec![200..300, 0..150] },
            Segment { q: vec![3..10], k: vec![7..9] },
            Segment { q: vec![150..350], k: vec![0..300] },
        ];
        let op = Attention { heads: 1, kv_heads: 1, causal: false, segments };
        let at = |rows: &Rows, i: u32| i.wrapping_add(if i < rows.split { rows.low } else { rows.high }) as usize;
        for size in QUERY_TILES {
            let found = tiles(&op, size);
            assert!(found.is_sorted_by_key(|tile| std::cmp::Reverse(tile.k.count)), "long tiles first");
            let of = |t: &Tile| (t.first..t.q.count.min(t.first + size as u32)).map(|i| at(&t.q, i)).collect::<Vec<_>>();
            let mut asked: Vec<usize> = found.iter().flat_map(of).collect();
            asked.sort();
            assert!(asked.into_iter().eq(0..350), "tiles of {size}");
        }
        let keys = Rows::new(&op.segments[0].k);
        assert!((0..keys.count).map(|i| at(&keys, i)).eq((200..300).chain(0..150)));
        let words = table(&op).len() / Tile::WORDS;
        assert_eq!(words, tiles(&op, 64).len() + tiles(&op, 128).len());
    }

    #[test]
    fn the_second_range_has_rows_and_the_order_stays() {
        assert_eq!(two(&[3..5, 8..9]), [3..5, 8..9]);
        assert_eq!(two(&[3..5]), [0..0, 3..5]);
        assert_eq!(two(&[3..5, 9..9]), [0..0, 3..5]);
        assert_eq!(two(&[4..4, 8..9]), [0..0, 8..9]);
        assert_eq!(two(&[]), [0..0, 0..0]);
    }

    #[test]
    fn biases_that_shared_memory_cannot_hold_go_to_the_portable_kernel() {
        let kernel = |biases: usize| {
            let op = Attention { heads: 1, kv_heads: 1, causal: false, segments: vec![Segment::all(0..20_000)] };
            let rows = View::dense(&Spec::new(DType::BF16, [20_000, 128]));
            let bias = View::dense(&Spec::new(DType::F32, [biases]));
            op.select(Arch(90), &[rows.clone(), rows.clone(), rows.clone(), bias], &[rows]).unwrap().source
        };
        assert_eq!((kernel(HOPPER_BIASES), kernel(HOPPER_BIASES + 1)), ("attention_hopper", "attention"));
    }

    #[test]
    fn every_configuration_fits_the_shared_memory_of_its_architecture() {
        for (arch, limit) in [(80, 163), (86, 99), (87, 163), (89, 99), (90, 227), (100, 227), (120, 99)] {
            for case in cases() {
                let views: Vec<View> = case.inputs.iter().map(View::dense).collect();
                let kernel = case.op.select(Arch(arch), &views, &views[..1]).unwrap();
                let bytes = if kernel.source == "attention_hopper" {
                    hopper_shared(HOPPER_BIASES as u32)
                } else {
                    let [width, queries, keys] = ["HEAD_WIDTH", "QUERIES", "KEYS"].map(|name| kernel.define(name));
                    shared_bytes(width, queries, keys)
                };
                assert!(bytes <= limit << 10, "sm_{arch}: {kernel}");
            }
        }
    }
}
