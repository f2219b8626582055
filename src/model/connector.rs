//! The connector: the text encoder's rows to the transformer's text rows and a pooled vector.
//!
//! Text rows of all branches lie one after another, each branch `[valid rows | padding rows]`. All padding rows of a
//! branch are and stay equal, so one row may stand for them. Everything is computed for several times t at once: row
//! blocks repeat once a time, and only the gates differ. (The first block's attention does not depend on t at all, so it
//! is computed once.)

use std::ops::Range;

use super::config::{Config, HEAD_WIDTH, Version};
use crate::graph::{Graph, TensorId};
use crate::ops::{Activation, Add, Attention, BranchRows, GateResidual, Segment, SegmentMean, TimestepEmbedding};
use crate::tensor::DType::BF16;

/// Text rows of each branch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PromptRows {
    /// Rows that hold tokens; at least one a branch.
    pub valid: Vec<usize>,
    /// Padding rows that are computed: none, one that stands for all, or all.
    pub padding: Vec<usize>,
    /// Padding rows that the official code computes.
    pub padding_meant: Vec<usize>,
}

impl PromptRows {
    /// Rows for prompts of these lengths, padded to `max_text`; `collapse` keeps one padding row.
    pub fn new(valid: &[usize], max_text: usize, collapse: bool) -> PromptRows {
        let padding_meant: Vec<usize> = valid.iter().map(|v| max_text - v).collect();
        let padding = padding_meant.iter().map(|&n| if collapse { n.min(1) } else { n }).collect();
        PromptRows { valid: valid.to_vec(), padding, padding_meant }
    }

    /// Number of branches.
    pub fn count(&self) -> usize {
        self.valid.len()
    }

    /// Rows of each branch.
    pub fn branches(&self) -> BranchRows {
        BranchRows::of(&self.valid.iter().zip(&self.padding).map(|(v, p)| v + p).collect::<Vec<_>>())
    }

    /// Rows of all branches.
    pub fn total(&self) -> usize {
        self.branches().period()
    }

    /// Rows of branch `b`.
    pub fn branch(&self, b: usize) -> Range<usize> {
        let rows = |b: usize| self.valid[b] + self.padding[b];
        let start = (0..b).map(rows).sum();
        start..start + rows(b)
    }

    /// How many rows each row stands for, as the logarithm that is added to its score as a key.
    pub fn key_bias(&self) -> Vec<f32> {
        let weight = |b: usize| if self.padding[b] == 1 { (self.padding_meant[b] as f32).ln() } else { 0.0 };
        (0..self.count()).flat_map(|b| [vec![0.0; self.valid[b]], vec![weight(b); self.padding[b]]].concat()).collect()
    }

    /// Valid rows see the valid rows; a padding row sees only row 0 of its branch, as the official mask has it.
    fn segments(&self, times: usize) -> Vec<Segment> {
        let mut segments = Vec::new();
        for base in (0..times).map(|s| s * self.total()) {
            for b in 0..self.count() {
                let start = base + self.branch(b).start;
                let end = start + self.valid[b];
                segments.push(Segment::all(start..end));
                if self.padding[b] > 0 {
                    segments.push(Segment { q: vec![end..end + self.padding[b]], k: vec![start..start + 1] });
                }
            }
        }
        segments
    }
}

/// What the connector gives.
#[derive(Clone, Copy, Debug)]
pub struct Connected {
    /// Text rows for every time [times · T, connector width].
    pub text: TensorId,
    /// Pooled text of each branch [B, 768]; it does not depend on t.
    pub pooled: TensorId,
}

/// Records the connector for `embedding` [T, context] and times `t` [times · B].
pub fn record(g: &mut Graph, config: &Config, rows: &PromptRows, embedding: TensorId, t: TensorId) -> Connected {
    g.scoped("connector", |g| {
        let width = config.dit.connector_hidden;
        let segments: Vec<Range<usize>> =
            (0..rows.count()).map(|b| rows.branch(b).start..rows.branch(b).start + rows.valid[b]).collect();
        let mean = g.op("mean", SegmentMean { segments: segments.clone() }, &[embedding]);
        // v1.0 scales the pooled mean; the mean that joins the time embedding never is.
        let pooled = match config.version {
            Version::V1_0 => {
                let factor = g.weight("scale_factor", BF16, [1]);
                g.op("scaled_mean", SegmentMean { segments }, &[embedding, factor])
            }
            Version::V1_1 => mean,
        };
        let pooled = g.linear("global_proj_out", pooled, config.dit.vec_in).op();
        let text = g.scoped("S", |g| {
            let time = g.op("t_embedding", TimestepEmbedding(BF16), &[t]);
            let time = mlp(g, ["t_embedder.mlp.0", "t_embedder.mlp.1", "t_embedder.mlp.2"], time, width);
            let context = mlp(g, ["c_embedder.linear_1", "c_embedder.act", "c_embedder.linear_2"], mean, width);
            let c = g.op("c", Add, &[time, context]);
            g.op_into("c.silu", Activation::Silu, &[c], &[c]);
            let mut h = g.linear("input_embedder", embedding, width).op();
            for i in 0..config.dit.connector_depth {
                h = g.scoped(format_args!("individual_token_refiner.blocks.{i}"), |g| block(g, config, rows, h, c));
            }
            h
        });
        Connected { text, pooled }
    })
}

/// Linear, SiLU, Linear.
pub(super) fn mlp(g: &mut Graph, names: [&str; 3], x: TensorId, width: usize) -> TensorId {
    let h = g.linear(names[0], x, width).op();
    g.op_into(names[1], Activation::Silu, &[h], &[h]);
    g.linear(names[2], h, width).op()
}

/// One refiner block: h [T] or [times · T] rows, c [times · B]; gives [times · T]. Norms are affine; c only gates.
fn block(g: &mut Graph, config: &Config, rows: &PromptRows, h: TensorId, c: TensorId) -> TensorId {
    let d = config.dit.connector_hidden;
    let gates = g.linear("adaLN_modulation.1", c, 2 * d).op();
    let (gate_attn, gate_mlp) = (g.cols(gates, 0..d), g.cols(gates, d..2 * d));
    let gated = GateResidual { rows: rows.branches(), round_product: true, norm: false };

    let n = g.layer_norm("norm1", h);
    let qkv = g.linear("self_attn_qkv", n, 3 * d).op(); // columns: all q, all k, all v
    let [q, k, v] = [0, 1, 2].map(|i| g.cols(qkv, i * d..(i + 1) * d));
    let (heads, segments) = (d / HEAD_WIDTH, rows.segments(g.rows_of(h) / rows.total()));
    let attended = g.op("self_attn", Attention { heads, kv_heads: heads, causal: false, segments }, &[q, k, v]);
    let projected = g.linear("self_attn_proj", attended, d).op();
    let h = g.op("residual1", gated.clone(), &[h, projected, gate_attn]);

    let n = g.layer_norm("norm2", h);
    let m = g.linear("mlp.fc1", n, config.dit.connector_mlp).op();
    g.op_into("mlp.act", Activation::Silu, &[m], &[m]);
    let m = g.linear("mlp.fc2", m, d).op();
    g.op_into("residual2", gated, &[h, m, gate_mlp], &[h]);
    h
}
