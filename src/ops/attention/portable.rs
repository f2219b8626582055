//! `attention.cu`, on every architecture: head widths of 80, 128 and 512 (the autoencoder's, neither causal nor biased).

use std::ops::Range;

use super::{Attention, bias, biases, scale_log2};
use crate::cuda::Launch;
use crate::ops::{Arch, Args, Block, Kernel, Unsupported, Variant, View, code};

pub(super) const VARIANT: Variant<Attention> = Variant { fits, launch };

/// Sizes of a tile of queries, of which a kernel takes one.
const QUERY_TILES: [usize; 2] = [64, 128];

/// The tiles of keys for width 512 are as large as a block's shared memory allows.
fn fits(op: &Attention, arch: Arch, inputs: &[View], _: &[View]) -> Result<Kernel, Unsupported> {
    let (width, biased) = (op.width(&inputs[0]), inputs.len() > 3);
    let (queries, keys) = match (width, arch.0) {
        (80, _) => (64, 64),
        (128, _) => (128, 64),
        (512, 90 | 100 | 103) => (64, 64), // 227 KB
        (512, 80 | 87) => (64, 32),        // 163 KB
        (512, _) => (64, 16),              // 99 KB
        _ => return Unsupported::new(format!("the head width is {width}; there are kernels for 80, 128 and 512")),
    };
    if width == 512 && (op.causal || biased) {
        return Unsupported::new("there is a causal mask or a key bias; the kernel for a head width of 512 takes neither");
    }
    let defines = [
        ("HEAD_WIDTH", width),
        ("QUERIES", queries),
        ("KEYS", keys),
        ("X_TYPE", code(inputs[0].spec.dtype)?),
        ("CAUSAL", op.causal as usize),
        ("KEY_BIAS", biased as usize),
    ];
    let threads = if width > 128 { 256 } else { 128 };
    let block = Block { tile: queries, threads, shared_bytes: shared_bytes(width, queries, keys), ..Block::USUAL };
    Ok(Kernel { block, ..Kernel::new("attention", defines) })
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
struct Params {
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
const _: () = assert!(size_of::<Params>() == 80 && size_of::<Tile>() == 36);

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

/// The tiles of each size that the portable kernel may take, size after size.
pub(super) fn table(op: &Attention) -> Vec<u32> {
    QUERY_TILES.iter().flat_map(|&size| tiles(op, size)).flat_map(bytemuck::cast::<Tile, [u32; Tile::WORDS]>).collect()
}

fn launch(op: &Attention, kernel: &Kernel, args: &Args) -> Launch {
    let (width, queries) = (op.width(&args.inputs[0].view), kernel.block.tile);
    let before = QUERY_TILES.iter().take_while(|&&size| size != queries).map(|&size| tiles(op, size).len()).sum::<usize>();
    let [q, k, v] = [0, 1, 2].map(|i| &args.inputs[i]);
    let y = &args.outputs[0];
    let params = Params {
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
    Launch::kernel("attention", grid, kernel.block.threads, kernel.block.shared_bytes, &params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::Segment;

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
}
