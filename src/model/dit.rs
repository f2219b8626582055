//! The diffusion transformer: what is prepared for all steps, and one step for all guidance branches, two or one.
//!
//! One buffer holds the rows of all branches:
//!
//! ```text
//! [txt 0 | txt 1 | ref 0 | noisy 0 | noisy 1 | ref 1]        (without ref in text-to-image)
//! [txt 0 | ref 0 | noisy 0]                                  (one branch)
//! ```
//!
//! Text and image rows are one range each, so their products are; a branch's image rows are one range for attention
//! (keys have no order, positions come from the rotary table); and the noisy rows of all branches, all that the last
//! block and the final layer need, are one range too.

use std::ops::Range;

use super::config::{Config, DitConfig, HEAD_WIDTH, Version};
use super::connector::{self, PromptRows, mlp};
use crate::graph::{Graph, TensorId};
use crate::ops::{Activation, Add, Attention, BranchRows, GateResidual, LayerNorm, QkNormRope, Segment, TimestepEmbedding};
use crate::tensor::DType::{BF16, F32};

/// Where the rows of a step lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRows {
    /// Text rows of each branch.
    pub prompt: PromptRows,
    /// Latent height and width in tokens.
    pub grid: (usize, usize),
    /// Whether there is a reference picture.
    pub reference: bool,
}

impl StepRows {
    /// Guidance branches, two or one.
    pub fn branches(&self) -> usize {
        self.prompt.count()
    }

    /// Noisy tokens of a branch.
    pub fn tokens(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    fn image_rows(&self) -> usize {
        self.tokens() * if self.reference { 2 } else { 1 }
    }

    /// All rows.
    pub fn total(&self) -> usize {
        self.prompt.total() + self.branches() * self.image_rows()
    }

    /// Noisy rows of all branches.
    pub fn noisy(&self) -> Range<usize> {
        let before = self.prompt.total() + self.image_rows() - self.tokens();
        before..before + self.branches() * self.tokens()
    }

    /// Noisy rows of a branch.
    pub fn noisy_of(&self, branch: usize) -> Range<usize> {
        let start = self.noisy().start + branch * self.tokens();
        start..start + self.tokens()
    }

    /// Reference rows of a branch.
    pub fn reference_of(&self, branch: usize) -> Range<usize> {
        let start = if branch == 0 { self.prompt.total() } else { self.noisy().end };
        start..start + self.tokens()
    }

    fn image_of(&self, branch: usize) -> Range<usize> {
        let start = self.prompt.total() + branch * self.image_rows();
        start..start + self.image_rows()
    }

    /// Each branch attends to its text and image rows; `queries` picks the rows that ask, by branch.
    fn segments(&self, queries: impl Fn(usize) -> Vec<Range<usize>>) -> Vec<Segment> {
        let segment = |b| Segment { q: queries(b), k: vec![self.prompt.branch(b), self.image_of(b)] };
        (0..self.branches()).map(segment).collect()
    }

    fn all_queries(&self, branch: usize) -> Vec<Range<usize>> {
        vec![self.prompt.branch(branch), self.image_of(branch)]
    }

    fn image_branches(&self) -> BranchRows {
        BranchRows::of(&vec![self.image_rows(); self.branches()])
    }

    /// Text and image rows, which the double blocks give products of their own.
    fn streams(&self) -> [(&'static str, Range<usize>, BranchRows); 2] {
        let text = self.prompt.total();
        [("txt", 0..text, self.prompt.branches()), ("img", text..self.total(), self.image_branches())]
    }

    fn noisy_branches(&self) -> BranchRows {
        BranchRows::of(&vec![self.tokens(); self.branches()])
    }

    /// (cos, sin) pairs of every row [rows, 128]: text rows stand at (0, 0, 0), noisy tokens at (0, y, x), reference
    /// tokens at (0, y, x) too in v1.0 and at (1, y+1, x+1) in v1.1.
    pub fn rope_table(&self, config: &Config) -> Vec<f32> {
        let frequencies = axis_frequencies(config.dit.axes);
        let mut table = vec![0.0; self.total() * HEAD_WIDTH];
        let mut fill = |row: usize, position: [usize; 3]| {
            for ((axis, f), pair) in frequencies.iter().zip(table[row * HEAD_WIDTH..][..HEAD_WIDTH].chunks_exact_mut(2)) {
                let (sin, cos) = (position[*axis] as f64 * f).sin_cos();
                pair.copy_from_slice(&[cos as f32, sin as f32]);
            }
        };
        (0..self.prompt.total()).for_each(|row| fill(row, [0; 3]));
        let shift = (config.version == Version::V1_1) as usize;
        for branch in 0..self.branches() {
            for token in 0..self.tokens() {
                let (y, x) = (token / self.grid.1, token % self.grid.1);
                fill(self.noisy_of(branch).start + token, [0, y, x]);
                if self.reference {
                    fill(self.reference_of(branch).start + token, [shift, y + shift, x + shift]);
                }
            }
        }
        table
    }
}

/// Axis and frequency of each rotary pair; frequencies 10000^(−2k/d) of an axis of d channels, in f64.
fn axis_frequencies(axes: [usize; 3]) -> Vec<(usize, f64)> {
    let of_axis = |(axis, d): (usize, usize)| (0..d / 2).map(move |k| (axis, 10000f64.powf(-2.0 * k as f64 / d as f64)));
    axes.into_iter().enumerate().flat_map(of_axis).collect()
}

/// Values that depend on time and prompts alone, for several times.
#[derive(Clone, Copy, Debug)]
pub struct Conditioned {
    /// Text rows that enter the blocks [times · T, hidden].
    pub text: TensorId,
    /// All blocks' modulation vectors side by side [times · B, width].
    pub modulation: TensorId,
}

/// Records connector, `txt_in` and all modulations for `embedding` [T, context] and times `t` [times · B].
pub fn condition(g: &mut Graph, config: &Config, rows: &PromptRows, embedding: TensorId, t: TensorId) -> Conditioned {
    let (dit, d) = (&config.dit, config.dit.hidden);
    let connected = connector::record(g, config, rows, embedding, t);
    let text = g.linear("txt_in", connected.text, d).op();

    let time = g.op("t_embedding", TimestepEmbedding(BF16), &[t]);
    let time = mlp(g, ["time_in.in_layer", "time_in.silu", "time_in.out_layer"], time, d);
    let pooled = mlp(g, ["vector_in.in_layer", "vector_in.silu", "vector_in.out_layer"], connected.pooled, d);
    let vec = g.op("vec", Add, &[time, pooled]);
    let vec = g.op("vec.silu", Activation::Silu, &[vec]);
    let modulation = g.buffer("modulation", BF16, [g.cols_of(t), Modulation::width(dit)]);
    for (name, columns) in Modulation::all(dit) {
        let part = g.cols(modulation, columns.clone());
        g.linear(&name, vec, columns.len()).into(part);
    }
    Conditioned { text, modulation }
}

/// Columns of the modulation vectors.
struct Modulation;

impl Modulation {
    fn double(dit: &DitConfig, block: usize, stream: &str) -> Range<usize> {
        let start = (12 * block + if stream == "txt" { 6 } else { 0 }) * dit.hidden;
        start..start + 6 * dit.hidden
    }

    fn single(dit: &DitConfig, block: usize) -> Range<usize> {
        let start = (12 * dit.depth + 3 * block) * dit.hidden;
        start..start + 3 * dit.hidden
    }

    fn last(dit: &DitConfig) -> Range<usize> {
        let start = (12 * dit.depth + 3 * dit.depth_single) * dit.hidden;
        start..start + 2 * dit.hidden
    }

    /// The vectors that begin with shift and scale of a stream's norm before block `at`, counted through double and single
    /// blocks, or before the final layer.
    fn before(dit: &DitConfig, at: usize, stream: &str) -> Range<usize> {
        match at {
            _ if at < dit.depth => Self::double(dit, at, stream),
            _ if at < dit.depth + dit.depth_single => Self::single(dit, at - dit.depth),
            _ => Self::last(dit),
        }
    }

    fn width(dit: &DitConfig) -> usize {
        Self::last(dit).end
    }

    /// The module that makes each range of columns.
    fn all(dit: &DitConfig) -> Vec<(String, Range<usize>)> {
        let double = (0..dit.depth).flat_map(|i| {
            [
                (format!("double_blocks.{i}.img_mod.lin"), Self::double(dit, i, "img")),
                (format!("double_blocks.{i}.txt_mod.lin"), Self::double(dit, i, "txt")),
            ]
        });
        let single = (0..dit.depth_single).map(|i| (format!("single_blocks.{i}.modulation.lin"), Self::single(dit, i)));
        double.chain(single).chain([("final_layer.adaLN_modulation.1".to_string(), Self::last(dit))]).collect()
    }
}

/// What a step reads.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs {
    /// The stream [rows, hidden]; text and image rows are written before the blocks, which update it in place.
    pub x: TensorId,
    /// Modulation vectors of this step [B, width].
    pub modulation: TensorId,
    /// Rotary table [rows, 128].
    pub rope: TensorId,
    /// Key bias [rows]; none if every padding row is computed.
    pub key_bias: Option<TensorId>,
}

/// Records `img_in` for one branch's noisy and reference tokens [n, 64] into the rows of `x`.
pub fn image_in(g: &mut Graph, rows: &StepRows, x: TensorId, branch: usize, noisy: TensorId, reference: Option<TensorId>) {
    let d = g.cols_of(x);
    let part = g.rows(x, rows.noisy_of(branch));
    g.linear("img_in", noisy, d).into(part);
    if let Some(reference) = reference {
        let part = g.rows(x, rows.reference_of(branch));
        g.linear("img_in", reference, d).into(part);
    }
}

/// Records all blocks over the rows of `inputs.x` and gives the velocities of the noisy rows [B·n, 64]. `trim` leaves out
/// of the last block what nobody reads.
pub fn blocks(g: &mut Graph, config: &DitConfig, rows: &StepRows, inputs: StepInputs, trim: bool) -> TensorId {
    let d = config.hidden;
    let normed = g.buffer("normed", BF16, [rows.total(), d]);
    for (name, range, branches) in rows.streams() {
        let [x, n] = [inputs.x, normed].map(|t| g.rows(t, range.clone()));
        let [shift, scale] = modulation(g, inputs, Modulation::before(config, 0, name), d); // shift first
        g.op_into(&format!("{name}_norm1"), LayerNorm { modulation: Some(branches) }, &[x, scale, shift], &[n]);
    }
    let stream = Stream { x: inputs.x, normed };
    for i in 0..config.depth {
        g.scoped(format_args!("double_blocks.{i}"), |g| double_block(g, config, rows, inputs, stream, i));
    }
    for i in 0..config.depth_single {
        let trimmed = trim && i + 1 == config.depth_single;
        g.scoped(format_args!("single_blocks.{i}"), |g| single_block(g, config, rows, inputs, stream, i, trimmed));
    }
    let noisy = g.rows(normed, rows.noisy());
    g.scoped("final_layer", |g| g.linear("linear", noisy, config.in_channels).op())
}

/// What blocks hand on: each residual sum is written together with its norm, modulated for the products that come next,
/// within the block, in the next block or in the final layer.
#[derive(Clone, Copy)]
struct Stream {
    /// The sums [rows, hidden].
    x: TensorId,
    /// Their norms [rows, hidden].
    normed: TensorId,
}

impl Stream {
    fn rows(self, g: &mut Graph, range: Range<usize>) -> Stream {
        Stream { x: g.rows(self.x, range.clone()), normed: g.rows(self.normed, range) }
    }

    /// `x += gate·h`, then `normed` of it.
    fn add(self, g: &mut Graph, name: &str, op: GateResidual, [h, gate, shift, scale]: [TensorId; 4]) {
        g.op_into(name, op, &[self.x, h, gate, scale, shift], &[self.x, self.normed]);
    }
}

/// The consecutive vectors of width d within `columns`.
fn modulation<const N: usize>(g: &mut Graph, inputs: StepInputs, columns: Range<usize>, d: usize) -> [TensorId; N] {
    std::array::from_fn(|i| g.cols(inputs.modulation, columns.start + i * d..columns.start + (i + 1) * d))
}

fn double_block(g: &mut Graph, config: &DitConfig, rows: &StepRows, inputs: StepInputs, stream: Stream, block: usize) {
    let (d, total) = (config.hidden, rows.total());
    let qkv = g.buffer("qkv", BF16, [total, 3 * d]); // columns: all q, all k, all v
    for (name, range, _) in rows.streams() {
        let n = g.rows(stream.normed, range.clone());
        let part = g.rows(qkv, range.clone());
        g.linear(&format!("{name}_attn.qkv"), n, 3 * d).into(part);
        let (qk, rope) = (g.cols(part, 0..2 * d), g.rows(inputs.rope, range));
        norm_and_rotate(g, &format!("{name}_attn.norm"), qk, rope, &["query_norm", "key_norm"]);
    }
    let attended = g.buffer("attended", BF16, [total, d]);
    let [q, k, v] = [0, 1, 2].map(|i| g.cols(qkv, i * d..(i + 1) * d));
    attend(g, config, rows.segments(|b| rows.all_queries(b)), [q, k, v], inputs.key_bias, attended);
    for (name, range, branches) in rows.streams() {
        let (own, next) = (Modulation::double(config, block, name), Modulation::before(config, block + 1, name));
        let [_, _, gate1, shift2, scale2, gate2] = modulation(g, inputs, own, d);
        let [next_shift, next_scale] = modulation(g, inputs, next, d);
        let stream = stream.rows(g, range.clone());
        let residual = |round_product| GateResidual { rows: branches.clone(), round_product, norm: true };
        let part = g.rows(attended, range);
        let projected = g.linear(&format!("{name}_attn.proj"), part, d).op();
        stream.add(g, &format!("{name}_residual1"), residual(true), [projected, gate1, shift2, scale2]);
        let h = g.linear(&format!("{name}_mlp.0"), stream.normed, config.mlp).gelu().op();
        let h = g.linear(&format!("{name}_mlp.2"), h, d).op();
        stream.add(g, &format!("{name}_residual2"), residual(false), [h, gate2, next_shift, next_scale]);
    }
}

/// `linear1` gives q, k, v and the MLP's input; `linear2` takes attention and MLP side by side. The last block, trimmed,
/// computes keys and values of all rows, and all else of the noisy rows alone.
fn single_block(
    g: &mut Graph,
    config: &DitConfig,
    rows: &StepRows,
    inputs: StepInputs,
    stream: Stream,
    block: usize,
    trim: bool,
) {
    let (d, mlp, n) = (config.hidden, config.mlp, stream.normed);

    // The rows that ask, where they lie among all, and their own numbering.
    let asking = if trim { rows.noisy() } else { 0..rows.total() };
    let asking_stream = stream.rows(g, asking.clone());
    let asking_branches = if trim { rows.noisy_branches() } else { rows.prompt.branches().then(&rows.image_branches()) };
    let own = |r: Range<usize>| r.start - asking.start..r.end - asking.start;
    let segments = rows.segments(|b| if trim { vec![own(rows.noisy_of(b))] } else { rows.all_queries(b) });

    let width = 3 * d + mlp;
    let qkv = if trim {
        let q = g.linear("linear1", asking_stream.normed, width).rows(0..d).op();
        let kv = g.linear("linear1", n, width).rows(d..3 * d).op();
        let (k, v) = (g.cols(kv, 0..d), g.cols(kv, d..2 * d));
        let rope = g.rows(inputs.rope, asking.clone());
        norm_and_rotate(g, "norm", q, rope, &["query_norm"]);
        norm_and_rotate(g, "norm", k, inputs.rope, &["key_norm"]);
        [q, k, v]
    } else {
        let qkv = g.linear("linear1", n, width).rows(0..3 * d).op();
        let qk = g.cols(qkv, 0..2 * d);
        norm_and_rotate(g, "norm", qk, inputs.rope, &["query_norm", "key_norm"]);
        [0, 1, 2].map(|i| g.cols(qkv, i * d..(i + 1) * d))
    };
    let joined = g.buffer("attended_and_mlp", BF16, [asking.len(), d + mlp]);
    let (attended, hidden) = (g.cols(joined, 0..d), g.cols(joined, d..d + mlp));
    attend(g, config, segments, qkv, inputs.key_bias, attended);
    g.linear("linear1", asking_stream.normed, width).rows(3 * d..width).gelu().into(hidden);
    let h = g.linear("linear2", joined, d).op();
    let [_, _, gate] = modulation(g, inputs, Modulation::single(config, block), d);
    let [next_shift, next_scale] = modulation(g, inputs, Modulation::before(config, config.depth + block + 1, "both"), d);
    let residual = GateResidual { rows: asking_branches, round_product: false, norm: true };
    asking_stream.add(g, "residual", residual, [h, gate, next_shift, next_scale]);
}

fn norm_and_rotate(g: &mut Graph, name: &str, x: TensorId, rope: TensorId, norms: &[&str]) {
    let scales = norms.iter().map(|norm| g.weight(&format!("{name}.{norm}.scale"), BF16, [HEAD_WIDTH]));
    let scales: Vec<TensorId> = scales.collect();
    g.op_into(name, QkNormRope, &[[x, rope].as_slice(), &scales].concat(), &[x]);
}

fn attend(
    g: &mut Graph,
    config: &DitConfig,
    segments: Vec<Segment>,
    qkv: [TensorId; 3],
    key_bias: Option<TensorId>,
    out: TensorId,
) {
    let heads = config.hidden / HEAD_WIDTH;
    let operands: Vec<TensorId> = qkv.into_iter().chain(key_bias).collect();
    g.op_into("attention", Attention { heads, kv_heads: heads, causal: false, segments }, &operands, &[out]);
}

/// The inputs that every step shares, declared.
pub fn step_tables(g: &mut Graph, rows: &StepRows) -> (TensorId, Option<TensorId>) {
    let weighted = rows.prompt.padding.iter().zip(&rows.prompt.padding_meant).any(|(p, meant)| p != meant);
    let rope = g.input("rope", F32, [rows.total(), HEAD_WIDTH]);
    (rope, weighted.then(|| g.input("key_bias", F32, [rows.prompt.total()])))
}
