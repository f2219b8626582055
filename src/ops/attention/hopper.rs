//! `attention_hopper.cu`, on sm_90: heads of 128 bf16 columns in up to two segments, without a causal mask, and no more biases
//! than shared memory holds.

use std::ops::Range;

use super::{Attention, Segment, bias, biases, scale_log2};
use crate::cuda::{Launch, TensorMap};
use crate::ops::{Arch, Arg, Args, Block, Kernel, Unsupported, Variant, View};
use crate::tensor::DType;

pub(super) const VARIANT: Variant<Attention> = Variant { fits, launch };

/// Columns of a head, and rows of a tile of queries or keys.
const TILE: u32 = 128;
/// Columns of a box: 128 bytes.
const PANEL: u32 = 64;
/// A producer and two consumers.
const THREADS: u32 = 3 * 128;
/// Queries, two tiles of keys and of values, and barriers; behind them lie the biases.
const SHARED: u32 = 163_920;
/// Biases for which a block's 227 KB have room beside them; behind those lies the zero of all other rows.
const MOST_BIASES: usize = ((227 << 10) - SHARED as usize) / 4 - 1;
const _: () = assert!(shared_bytes(MOST_BIASES) <= 227 << 10);

/// Shared memory of a block, in bytes.
const fn shared_bytes(biases: usize) -> u32 {
    SHARED + 4 * (biases as u32 + 1)
}

fn fits(op: &Attention, arch: Arch, inputs: &[View], _: &[View]) -> Result<Kernel, Unsupported> {
    let heads = op.width(&inputs[0]) == TILE as usize && inputs[0].spec.dtype == DType::BF16;
    let biases = inputs.get(3).map_or(0, |bias| bias.spec.shape.cols());
    if arch != Arch(90) || !heads || op.causal || op.segments.len() > 2 || biases > MOST_BIASES {
        return Unsupported::new(format!(
            "sm_90, bf16 heads of {TILE}, up to two segments without a causal mask and {MOST_BIASES} biases are needed"
        ));
    }
    let block = Block { tile: TILE as usize, threads: THREADS, shared_bytes: shared_bytes(biases), ..Block::USUAL };
    Ok(Kernel { block, ..Kernel::new("attention_hopper", []) })
}

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
struct Params {
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
const _: () = assert!(size_of::<Params>() + 12 * TensorMap::BYTES == 1664);

fn launch(op: &Attention, kernel: &Kernel, args: &Args) -> Launch {
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
    let tiles = |count: u32| count.div_ceil(TILE);
    let blocks = op.heads as u32 * ranges.iter().flatten().map(|rows| tiles(rows.q_count)).sum::<u32>();
    let params = Params {
        ranges,
        bias: bias(args),
        y: y.address,
        y_stride: y.stride(),
        heads: op.heads as u32,
        group: (op.heads / op.kv_heads) as u32,
        scale_log2: scale_log2(TILE as usize),
        inverse_scale: (TILE as f32).sqrt(),
        biases: biases(args),
        padding: [0; 6],
    };
    Launch::persistent("attention", blocks, kernel.block.threads, kernel.block.shared_bytes, maps, &params)
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
    TensorMap::matrix(address, [operand.cols() as u32, rows.len() as u32], stride, [PANEL, TILE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Op;
    use crate::tensor::Spec;

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
            op.select(Arch(90), &[rows.clone(), rows.clone(), rows.clone(), bias], &[rows]).unwrap()
        };
        let sources = [0, 1].map(|more| kernel(MOST_BIASES + more).compiled().unwrap().0);
        assert_eq!(sources, ["attention_hopper", "attention"]);
    }
}
