//! `softmax(q·kᵀ·scale + bias)·v` within segments: q, y [Rq, H·E]; k, v [Rk, G·E] with G dividing H; bias [B ≤ Rk] f32.
//!
//! A segment names the rows that ask and the rows that answer, each as a few ranges of the packed layout, so branches,
//! windows and a shared prefix are read in place through strides. The bias of a key is 0, ln n for a row that stands
//! for n equal ones, or -∞ for one that nobody may see; key rows from B on have none. Softmax in f32.

mod hopper;
mod portable;

use std::ops::Range;

use anyhow::{Result, ensure};
use gemm::Parallelism;
use rayon::prelude::*;

use super::product::matmul;
use super::{Arch, Args, Case, Cost, Kernel, ONE_ROUNDING, Op, Operand, Output, Unsupported, Variant, View, first_fit};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// In the order in which they are asked.
const VARIANTS: [Variant<Attention>; 2] = [hopper::VARIANT, portable::VARIANT];

/// Query rows of one matrix product in the reference; bounds its score matrix to this many rows.
const QUERY_TILE: usize = 256;

/// Rows that attend to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Query rows, in order.
    pub q: Vec<Range<usize>>,
    /// Key and value rows, in order.
    pub k: Vec<Range<usize>>,
}

impl Segment {
    /// All rows of a range among themselves.
    pub fn all(rows: Range<usize>) -> Segment {
        Segment { q: vec![rows.clone()], k: vec![rows] }
    }

    /// Queries and keys.
    pub(super) fn lengths(&self) -> (usize, usize) {
        let count = |ranges: &[Range<usize>]| ranges.iter().map(|r| r.len()).sum();
        (count(&self.q), count(&self.k))
    }
}

/// Scaled dot-product attention in segments.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// The last query sees all keys of its segment, the one before it all but the last, and so on.
    pub causal: bool,
    /// Together they hold every query row once.
    pub segments: Vec<Segment>,
}

impl Op for Attention {
    fn kind(&self) -> &'static str {
        "attention"
    }

    fn attributes(&self) -> String {
        let shown: Vec<String> = self.segments.iter().take(4).map(|s| format!("{:?}x{:?}", s.q, s.k)).collect();
        let more = if self.segments.len() > 4 { format!(" and {} more", self.segments.len() - 4) } else { String::new() };
        let causal = if self.causal { " causal" } else { "" };
        format!("heads {}/{}{causal} {}{more}", self.heads, self.kv_heads, shown.join(" "))
    }

    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let [q, k, v] = [0, 1, 2].map(|i| &inputs[i].shape);
        let width = q.cols() / self.heads;
        ensure!(
            q.cols() == width * self.heads && k.cols() == width * self.kv_heads && k == v,
            "q {q}, k {k}, v {v} for {} and {} heads",
            self.heads,
            self.kv_heads
        );
        ensure!(self.heads.is_multiple_of(self.kv_heads), "{} heads over {} key heads", self.heads, self.kv_heads);
        if let Some(bias) = inputs.get(3) {
            ensure!(matches!(bias.shape.0[..], [n] if n <= k.rows()), "{} key biases for {} keys", bias.shape, k.rows());
        }
        let mut asked = vec![0u8; q.rows()];
        for segment in &self.segments {
            let (queries, keys) = segment.lengths();
            ensure!(keys > 0 && (!self.causal || queries <= keys), "a segment of {queries} queries and {keys} keys");
            ensure!(
                segment.k.iter().all(|r| r.end <= k.rows()) && segment.q.iter().all(|r| r.end <= q.rows()),
                "a segment leaves the rows"
            );
            segment.q.iter().flat_map(|r| r.clone()).for_each(|row| asked[row] += 1);
        }
        ensure!(asked.iter().all(|&n| n == 1), "a query row is in no segment or in several");
        Ok(vec![inputs[0].clone()])
    }

    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        let seen = |(queries, keys): (usize, usize)| match self.causal {
            true => queries * (keys - queries) + queries * (queries + 1) / 2,
            false => queries * keys,
        };
        let pairs: usize = self.segments.iter().map(|s| seen(s.lengths())).sum();
        Cost::streaming(4 * pairs * inputs[0].shape.cols(), inputs, outputs)
    }

    /// All variants take rows of one 16-bit type at multiples of 16 bytes, f32 biases, and up to two ranges in a segment.
    fn select(&self, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
        super::portable(arch)?;
        let dtype = inputs[0].spec.dtype;
        if !matches!(dtype, DType::BF16 | DType::F16) {
            return Unsupported::new(format!("the queries are {dtype}; the kernel takes bf16 and f16"));
        }
        if let Some(s) = self.segments.iter().find(|s| s.q.len() > 2 || s.k.len() > 2) {
            return Unsupported::new(format!(
                "a segment has {} and {} row ranges; the kernel takes at most two",
                s.q.len(),
                s.k.len()
            ));
        }
        for operand in inputs[..3].iter().chain(outputs) {
            if operand.spec.dtype != dtype {
                return Unsupported::new(format!(
                    "an operand is {}, the queries are {dtype}; all must have one type",
                    operand.spec
                ));
            }
            if operand.alignment() < 16 {
                return Unsupported::new(format!(
                    "rows of {} start at multiples of {} bytes, not 16",
                    operand.spec,
                    operand.alignment()
                ));
            }
        }
        if let Some(bias) = inputs.get(3).filter(|b| b.spec.dtype != DType::F32) {
            return Unsupported::new(format!("the key bias is {}; the kernel takes f32", bias.spec));
        }
        first_fit(&VARIANTS, self, arch, inputs, outputs)
    }

    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]) {
        let width = inputs[0].cols() / self.heads;
        let tiles = self.segments.iter().flat_map(|segment| {
            let rows: Vec<usize> = segment.q.iter().flat_map(|r| r.clone()).collect();
            let tiles: Vec<_> =
                (0..rows.len()).step_by(QUERY_TILE).map(|at| (at, rows[at..rows.len().min(at + QUERY_TILE)].to_vec())).collect();
            tiles.into_iter().map(move |tile| (segment, tile))
        });
        let units: Vec<_> = tiles.flat_map(|unit| (0..self.heads).map(move |head| (head, unit.clone()))).collect();
        let results: Vec<Vec<f32>> =
            units.par_iter().map(|(head, (segment, (first, rows)))| self.tile(inputs, segment, *first, rows, *head)).collect();
        let stride = outputs[0].cols();
        let y = outputs[0].f32();
        for ((head, (_, (_, rows))), result) in units.iter().zip(&results) {
            for (&row, values) in rows.iter().zip(result.chunks_exact(width)) {
                y[row * stride + head * width..][..width].copy_from_slice(values);
            }
        }
    }

    fn table(&self) -> Vec<u32> {
        portable::table(self)
    }

    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch> {
        vec![(VARIANTS[kernel.variant].launch)(self, kernel, args)]
    }
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

impl Attention {
    /// Columns of a head of `q`.
    fn width(&self, q: &View) -> usize {
        q.spec.shape.cols() / self.heads
    }

    /// Output rows [rows, E] of one head for query `rows`, the first of which is number `first` of the segment.
    fn tile(&self, inputs: &[Operand], segment: &Segment, first: usize, rows: &[usize], head: usize) -> Vec<f32> {
        let width = inputs[0].cols() / self.heads;
        let kv_head = head * self.kv_heads / self.heads;
        let (queries, keys) = segment.lengths();
        let key_rows = || segment.k.iter().flat_map(|r| r.clone());
        let gather = |operand: &Operand, rows: &mut dyn Iterator<Item = usize>, head: usize| -> Vec<f32> {
            let mut values = Vec::with_capacity(keys.max(queries) * width);
            rows.for_each(|row| values.extend_from_slice(&operand.f32()[row * operand.cols() + head * width..][..width]));
            values
        };
        let q = gather(&inputs[0], &mut rows.iter().copied(), head);
        let k = gather(&inputs[1], &mut key_rows(), kv_head);
        let v = gather(&inputs[2], &mut key_rows(), kv_head);
        let bias: Option<Vec<f32>> =
            inputs.get(3).map(|b| key_rows().map(|row| b.f32().get(row).copied().unwrap_or(0.0)).collect());

        let mut scores = vec![0.0; rows.len() * keys];
        matmul(&q, &k, true, &mut scores, rows.len(), width, keys, Parallelism::None);
        let scale = 1.0 / (width as f32).sqrt();
        for (i, scores) in scores.chunks_exact_mut(keys).enumerate() {
            let visible = if self.causal { keys - queries + first + i + 1 } else { keys };
            softmax(scores, visible, scale, bias.as_deref());
        }
        let mut y = vec![0.0; rows.len() * width];
        matmul(&scores, &v, false, &mut y, rows.len(), keys, width, Parallelism::None);
        y
    }
}

/// Softmax of `scores · scale + bias` over the first `visible` keys; the others get weight 0.
fn softmax(scores: &mut [f32], visible: usize, scale: f32, bias: Option<&[f32]>) {
    let (seen, hidden) = scores.split_at_mut(visible);
    hidden.fill(0.0);
    seen.iter_mut().enumerate().for_each(|(j, s)| *s = *s * scale + bias.map_or(0.0, |b| b[j]));
    let max = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for s in seen.iter_mut() {
        *s = (*s - max).exp();
        sum += *s;
    }
    seen.iter_mut().for_each(|s| *s /= sum);
}

pub(super) fn cases() -> Vec<Case> {
    let case = |dtype: DType, op: Attention, [rows_q, rows_k, width]: [usize; 3], biases: usize| {
        let spec = |rows, heads| Spec::new(dtype, [rows, heads * width]);
        let mut inputs = vec![spec(rows_q, op.heads), spec(rows_k, op.kv_heads), spec(rows_k, op.kv_heads)];
        inputs.extend((biases > 0).then(|| Spec::new(DType::F32, [biases])));
        let (bound, reason) = match dtype {
            DType::F16 => (8.0 * ONE_ROUNDING / 64.0, "weights and results are rounded to f16"),
            _ => (8.0 * ONE_ROUNDING, "weights and results are rounded to bf16"),
        };
        Case { bound, reason, ..Case::new(op, inputs, dtype) }
    };
    let full = |heads, segments| Attention { heads, kv_heads: heads, causal: false, segments };
    let two_branches = vec![
        Segment { q: vec![0..37, 50..146], k: vec![0..37, 50..146] },
        Segment { q: vec![37..50, 146..242], k: vec![37..50, 146..242] },
    ];
    let shared_prefix = vec![
        Segment::all(0..70),
        Segment { q: vec![70..81], k: vec![0..70, 70..81] },
        Segment { q: vec![81..86], k: vec![0..70, 81..86] },
    ];
    let windows = vec![Segment::all(0..64), Segment::all(64..80), Segment::all(80..81)];
    let few_queries =
        vec![Segment { q: vec![0..20], k: vec![0..9, 18..66] }, Segment { q: vec![20..40], k: vec![9..18, 66..114] }];
    let long = vec![Segment { q: vec![0..150, 200..750], k: vec![0..150, 200..750] }, Segment::all(150..200)];
    let three = vec![Segment::all(0..128), Segment::all(128..257), Segment { q: vec![257..300], k: vec![0..4, 200..300] }];
    let unequal = vec![
        Segment { q: vec![0..129, 260..388], k: vec![0..129, 260..388] },
        Segment { q: vec![129..260, 388..700], k: vec![129..130, 388..700] },
    ];
    let causal = Attention { heads: 7, kv_heads: 1, causal: true, segments: shared_prefix };
    // The transformer's two branches: 352 and 333 rows of text, and the image's rows.
    let edit = |image: usize| {
        let branch = |text: Range<usize>, at: usize| vec![text, 685 + at..685 + at + image];
        let segment = |rows: Vec<Range<usize>>| Segment { q: rows.clone(), k: rows };
        let segments = vec![segment(branch(0..352, 0)), segment(branch(352..685, image))];
        let rows = 685 + 2 * image;
        case(DType::BF16, full(24, segments), [rows, rows, 128], 685).timed()
    };
    let text_model = vec![
        Segment::all(0..544),
        Segment { q: vec![544..568], k: vec![0..544, 544..568] },
        Segment { q: vec![568..573], k: vec![0..544, 568..573] },
    ];
    let text_model = Attention { heads: 28, kv_heads: 4, causal: true, segments: text_model };
    vec![
        case(DType::BF16, full(2, two_branches), [242, 242, 128], 50),
        case(DType::BF16, causal, [86, 86, 128], 0),
        case(DType::BF16, full(2, windows), [81, 81, 80], 0),
        case(DType::BF16, full(2, few_queries), [40, 114, 128], 0),
        case(DType::BF16, full(1, vec![Segment::all(0..300)]), [300, 300, 512], 0),
        case(DType::F16, full(1, vec![Segment::all(0..300)]), [300, 300, 512], 0),
        case(DType::BF16, full(2, vec![Segment::all(0..1), Segment::all(1..2)]), [2, 2, 128], 0),
        case(DType::BF16, full(3, long), [750, 750, 128], 750),
        case(DType::BF16, full(2, vec![Segment::all(0..200)]), [200, 200, 80], 0),
        case(DType::BF16, full(2, three), [300, 300, 128], 260),
        case(DType::BF16, Attention { kv_heads: 2, ..full(6, unequal) }, [700, 700, 128], 260),
        case(DType::BF16, full(1, vec![Segment::all(0..257)]), [257, 257, 128], 0),
        case(DType::F16, full(1, vec![Segment::all(0..130)]), [130, 130, 128], 0),
        // The transformer's of 512x512, 768x768 and 1024x1024 pixels; the others' of 1024x1024.
        edit(2048),
        edit(4608),
        edit(8192),
        case(DType::BF16, text_model, [573, 573, 128], 0).timed(),
        case(DType::BF16, full(16, vec![Segment::all(0..1296)]), [1296, 1296, 80], 0).timed(),
        case(DType::BF16, full(1, vec![Segment::all(0..16384)]), [16384, 16384, 512], 0).timed(),
        case(DType::F16, full(1, vec![Segment::all(0..16384)]), [16384, 16384, 512], 0).timed(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{noise, run_f32};

    /// Softmax attention of one query in float64, from the formula.
    fn by_formula(q: &[f32], keys: &[(&[f32], &[f32], f32)]) -> Vec<f64> {
        let score = |k: &[f32]| q.iter().zip(k).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>() / (q.len() as f64).sqrt();
        let weights: Vec<f64> = keys.iter().map(|(k, _, b)| (score(k) + *b as f64).exp()).collect();
        let sum: f64 = weights.iter().sum();
        (0..q.len()).map(|e| keys.iter().zip(&weights).map(|((_, v, _), w)| w * v[e] as f64).sum::<f64>() / sum).collect()
    }

    #[test]
    fn causal_grouped_segments_with_bias_follow_the_formula() {
        const E: usize = 8;
        let (q, k, v) = (noise(7 * 2 * E, 1), noise(7 * E, 2), noise(7 * E, 3));
        let bias = [0.0, 0.7, f32::NEG_INFINITY, 0.0, 0.0, 2.0, 0.0];
        let spec = |cols| Spec::new(DType::F32, [7, cols]);
        let operands = [(spec(2 * E), &q[..]), (spec(E), &k[..]), (spec(E), &v[..]), (Spec::new(DType::F32, [7]), &bias[..])];
        let segments = vec![
            Segment::all(0..3),
            Segment { q: vec![3..5], k: vec![0..3, 3..5] },
            Segment { q: vec![5..7], k: vec![0..3, 5..7] },
        ];
        let y = run_f32(&Attention { heads: 2, kv_heads: 1, causal: true, segments }, &operands);
        let visible: [&[usize]; 7] =
            [&[0], &[0, 1], &[0, 1, 2], &[0, 1, 2, 3], &[0, 1, 2, 3, 4], &[0, 1, 2, 5], &[0, 1, 2, 5, 6]];
        for (row, visible) in visible.iter().enumerate() {
            let keys: Vec<_> = visible.iter().map(|&j| (&k[j * E..][..E], &v[j * E..][..E], bias[j])).collect();
            for head in 0..2 {
                let at = row * 2 * E + head * E;
                let expected = by_formula(&q[at..][..E], &keys);
                expected.iter().zip(&y[at..]).for_each(|(e, y)| assert!((e - *y as f64).abs() < 1e-6, "row {row} head {head}"));
            }
        }
    }

    #[test]
    fn one_weighted_key_stands_for_many_equal_ones() {
        const E: usize = 16;
        let (q, k, v) = (noise(E, 4), noise(3 * E, 5), noise(3 * E, 6));
        let repeat = |x: &[f32]| [x, &x[2 * E..], &x[2 * E..], &x[2 * E..]].concat();
        let spec = |rows| Spec::new(DType::F32, [rows, E]);
        let op = |keys| Attention {
            heads: 1,
            kv_heads: 1,
            causal: false,
            segments: vec![Segment { q: vec![0..1], k: vec![0..keys] }],
        };
        let bias = [0.0, 0.0, 4f32.ln()];
        let few = run_f32(&op(3), &[(spec(1), &q), (spec(3), &k), (spec(3), &v), (Spec::new(DType::F32, [3]), &bias)]);
        let many = run_f32(&op(6), &[(spec(1), &q), (spec(6), &repeat(&k)), (spec(6), &repeat(&v))]);
        few.iter().zip(&many).for_each(|(a, b)| assert!((a - b).abs() < 1e-6));
    }

    #[test]
    fn a_query_outside_all_segments_is_refused() {
        let spec = Spec::new(DType::F32, [4, 8]);
        let op = Attention { heads: 1, kv_heads: 1, causal: false, segments: vec![Segment::all(0..3)] };
        assert!(op.infer(&[spec.clone(), spec.clone(), spec]).is_err());
    }

    #[test]
    fn every_configuration_fits_the_shared_memory_of_its_architecture() {
        for (arch, limit) in [(80, 163), (86, 99), (87, 163), (89, 99), (90, 227), (100, 227), (120, 99)] {
            for case in cases() {
                let views: Vec<View> = case.inputs.iter().map(View::dense).collect();
                let kernel = case.op.select(Arch(arch), &views, &views[..1]).unwrap();
                assert!(kernel.block.shared_bytes <= limit << 10, "sm_{arch}: {kernel}");
            }
        }
    }
}
