//! Qwen2.5-VL's text model, for all prompts at once.
//!
//! Rows are `[shared prefix | tail of branch 0 | tail of branch 1]`: template and picture come before the prompt, the
//! model is causal, so what the branches share is computed once and the tails see it as keys. Without sharing the
//! prefix is empty and the tails are whole sequences.

use std::ops::Range;

use super::config::{HEAD_WIDTH, TextConfig};
use crate::graph::{Graph, TensorId};
use crate::ops::{Add, Attention, Cast, Gather, RopeHalf, Segment, SwiGlu};
use crate::tensor::DType::{BF16, F32, I32};

/// The table of the tokens' embeddings [vocabulary, hidden]. A prompt needs a few hundred rows of it: the host looks them up.
pub const EMBEDDINGS: &str = "model.embed_tokens.weight";

/// Which rows there are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TextRows {
    /// Rows that all branches share.
    pub prefix: usize,
    /// Rows of each branch after them.
    pub tails: Vec<usize>,
    /// Rows that hold picture tokens, as ranges of the packed rows.
    pub pictures: Vec<Range<usize>>,
    /// Whether some key is hidden (a lone `!`).
    pub hidden_keys: bool,
}

impl TextRows {
    /// All rows.
    pub fn total(&self) -> usize {
        self.prefix + self.tails.iter().sum::<usize>()
    }

    /// Rows that hold picture tokens.
    pub fn of_pictures(&self) -> usize {
        self.pictures.iter().map(Range::len).sum()
    }

    fn tail(&self, branch: usize) -> Range<usize> {
        let start = self.prefix + self.tails[..branch].iter().sum::<usize>();
        start..start + self.tails[branch]
    }

    fn segments(&self) -> Vec<Segment> {
        let prefix = (self.prefix > 0).then(|| Segment::all(0..self.prefix));
        let tails = (0..self.tails.len()).map(|b| Segment { q: vec![self.tail(b)], k: vec![0..self.prefix, self.tail(b)] });
        prefix.into_iter().chain(tails).collect()
    }

    /// Ranges of rows in order, each with whether it holds picture tokens.
    fn runs(&self) -> Vec<(Range<usize>, bool)> {
        let mut runs = Vec::new();
        let mut at = 0;
        for picture in &self.pictures {
            runs.push((at..picture.start, false));
            runs.push((picture.clone(), true));
            at = picture.end;
        }
        runs.push((at..self.total(), false));
        runs.retain(|(rows, _)| !rows.is_empty());
        runs
    }
}

/// What the host gives, and the result.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// Row of the table of embeddings of each row that is no picture's [R − pictures, hidden].
    pub tokens: TensorId,
    /// Row of the vision tower's result of each picture row [pictures].
    pub places: TensorId,
    /// (cos, sin) of each row [R, 128].
    pub rope: TensorId,
    /// 0, or −∞ for a key that nobody may see [R]; only if there is one.
    pub key_bias: Option<TensorId>,
    /// Last hidden state after the final norm [R, hidden].
    pub hidden: TensorId,
}

/// Records the model; `vision` holds the merged picture tokens.
pub fn record(g: &mut Graph, config: &TextConfig, rows: &TextRows, vision: TensorId) -> Text {
    g.table(EMBEDDINGS, BF16, [config.vocabulary, config.hidden]);
    g.scoped("model", |g| {
        let (total, pictures) = (rows.total(), rows.of_pictures());
        let tokens = g.input("tokens", BF16, [total - pictures, config.hidden]);
        let places = g.input("places", I32, [pictures]);
        let rope = g.input("rope", BF16, [total, HEAD_WIDTH]);
        let key_bias = rows.hidden_keys.then(|| g.input("key_bias", F32, [total]));
        let x = g.buffer("embedded", BF16, [total, config.hidden]);
        let (mut token, mut place) = (0, 0);
        for (n, (run, is_picture)) in rows.runs().into_iter().enumerate() {
            let (part, name) = (g.rows(x, run.clone()), format!("embedded.run{n}"));
            let next = if is_picture { &mut place } else { &mut token };
            let own = *next..*next + run.len();
            *next = own.end;
            if is_picture {
                let own = g.cols(places, own);
                g.op_into(&name, Gather, &[vision, own], &[part]);
            } else {
                let own = g.rows(tokens, own);
                g.op_into(&name, Cast(BF16), &[own], &[part]);
            }
        }
        for i in 0..config.layers {
            g.scoped(format_args!("layers.{i}"), |g| layer(g, config, rows, x, rope, key_bias));
        }
        let hidden = g.rms_norm("norm", x);
        Text { tokens, places, rope, key_bias, hidden }
    })
}

fn layer(g: &mut Graph, config: &TextConfig, rows: &TextRows, x: TensorId, rope: TensorId, key_bias: Option<TensorId>) {
    let (total, d, kv) = (rows.total(), config.hidden, config.kv_heads * HEAD_WIDTH);
    let n = g.rms_norm("input_layernorm", x);
    let qkv = g.buffer("self_attn.qkv", BF16, [total, d + 2 * kv]);
    let [q, k, v] = [0..d, d..d + kv, d + kv..d + 2 * kv].map(|columns| g.cols(qkv, columns));
    g.linear("self_attn.q_proj", n, d).into(q);
    g.linear("self_attn.k_proj", n, kv).into(k);
    g.linear("self_attn.v_proj", n, kv).into(v);
    let qk = g.cols(qkv, 0..d + kv);
    g.op_into("self_attn.rope", RopeHalf, &[qk, rope], &[qk]);
    let attention = Attention { heads: config.heads, kv_heads: config.kv_heads, causal: true, segments: rows.segments() };
    let operands: Vec<TensorId> = [q, k, v].into_iter().chain(key_bias).collect();
    let attended = g.op("self_attn", attention, &operands);
    let projected = g.linear("self_attn.o_proj", attended, d).without_bias().op();
    g.op_into("residual1", Add, &[x, projected], &[x]);

    let n = g.rms_norm("post_attention_layernorm", x);
    let gate_up = g.buffer("mlp.gate_up", BF16, [total, 2 * config.mlp]);
    let (gate, up) = (g.cols(gate_up, 0..config.mlp), g.cols(gate_up, config.mlp..2 * config.mlp));
    g.linear("mlp.gate_proj", n, config.mlp).without_bias().into(gate);
    g.linear("mlp.up_proj", n, config.mlp).without_bias().into(up);
    let h = g.op("mlp.swiglu", SwiGlu, &[gate_up]);
    let down = g.linear("mlp.down_proj", h, d).without_bias().op();
    g.op_into("residual2", Add, &[x, down], &[x]);
}

/// (cos, sin) pairs [R, 128] for 3-axis positions (time, row, column): pair j follows the axis of its section; the
/// frequencies are theta^(−2j/128) in f32. Qwen rounds cos and sin to bf16: the graph's input does.
pub fn rope_table(positions: &[[usize; 3]], config: &TextConfig) -> Vec<f32> {
    let axes: Vec<usize> = config.mrope.iter().enumerate().flat_map(|(axis, &pairs)| vec![axis; pairs]).collect();
    let frequency = |j: usize| 1.0 / (config.rope_theta as f32).powf(2.0 * j as f32 / HEAD_WIDTH as f32);
    let frequencies: Vec<f32> = (0..HEAD_WIDTH / 2).map(frequency).collect();
    let mut table = Vec::with_capacity(positions.len() * HEAD_WIDTH);
    for position in positions {
        for (&axis, f) in axes.iter().zip(&frequencies) {
            let (sin, cos) = (position[axis] as f32 * f).sin_cos();
            table.extend([cos, sin]);
        }
    }
    table
}
