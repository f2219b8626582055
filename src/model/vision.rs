//! Qwen2.5-VL's vision tower: patches of one picture to merged tokens.
//!
//! Rows are in window order inside: windows of 4×4 merged tokens one after another, each merged token four rows. The
//! result stays in that order; whoever reads it undoes the permutation with its own index.

use std::ops::Range;

use super::config::VisionConfig;
use crate::graph::{Graph, TensorId};
use crate::ops::{Activation, Add, Attention, Gather, RopeHalf, Segment, SwiGlu};
use crate::tensor::DType::{BF16, F32, I32};

/// Values of a patch row: 3 channels, 2 equal frames, 14×14 pixels.
pub const PATCH_VALUES: usize = 3 * 2 * 14 * 14;

/// What the host gives, and the result.
#[derive(Clone, Copy, Debug)]
pub struct Vision {
    /// Patch rows in block order [P, 1176].
    pub pixel_values: TensorId,
    /// For each row in window order, its row in block order [P].
    pub window_rows: TensorId,
    /// (cos, sin) of each row in window order [P, head width].
    pub rope: TensorId,
    /// Merged tokens in window order [P/4, out].
    pub merged: TensorId,
}

/// Records the tower for `patches` rows whose windows are `windows` (row ranges in window order).
pub fn record(g: &mut Graph, config: &VisionConfig, patches: usize, windows: &[Range<usize>]) -> Vision {
    g.scoped("visual", |g| {
        let pixel_values = g.input("pixel_values", BF16, [patches, PATCH_VALUES]);
        let window_rows = g.input("window_rows", I32, [patches]);
        let rope = g.input("rope", F32, [patches, config.hidden / config.heads]);

        // A convolution whose kernel is its stride is a product with the flattened kernel.
        let kernel = [config.hidden, 3, 2, 14, 14];
        let embedded = g.linear("patch_embed.proj", pixel_values, config.hidden).stored_as(kernel).without_bias();
        let embedded = embedded.node("patch_embed").op();
        let x = g.op("windows", Gather, &[embedded, window_rows]);
        for i in 0..config.depth {
            let full = [0..patches];
            let segments = if config.full.contains(&i) { &full[..] } else { windows };
            g.scoped(format_args!("blocks.{i}"), |g| block(g, config, x, rope, segments));
        }
        let merged = g.scoped("merger", |g| {
            let n = g.rms_norm("ln_q", x);
            let grouped = g.reshape(n, [patches / 4, 4 * config.hidden]);
            let h = g.linear("mlp.0", grouped, 4 * config.hidden).op();
            g.op_into("mlp.1", Activation::GeluErf, &[h], &[h]);
            g.linear("mlp.2", h, config.out).op()
        });
        Vision { pixel_values, window_rows, rope, merged }
    })
}

fn block(g: &mut Graph, config: &VisionConfig, x: TensorId, rope: TensorId, segments: &[Range<usize>]) {
    let (rows, d) = (g.rows_of(x), config.hidden);
    let n = g.rms_norm("norm1", x);
    let qkv = g.linear("attn.qkv", n, 3 * d).op(); // columns: q, k, v, each heads × 80
    let qk = g.cols(qkv, 0..2 * d);
    g.op_into("attn.rope", RopeHalf, &[qk, rope], &[qk]);
    let [q, k, v] = [0, 1, 2].map(|i| g.cols(qkv, i * d..(i + 1) * d));
    let segments = segments.iter().cloned().map(Segment::all).collect();
    let attended = g.op("attn", Attention { heads: config.heads, kv_heads: config.heads, causal: false, segments }, &[q, k, v]);
    let projected = g.linear("attn.proj", attended, d).op();
    g.op_into("residual1", Add, &[x, projected], &[x]);

    let n = g.rms_norm("norm2", x);
    let gate_up = g.buffer("mlp.gate_up", BF16, [rows, 2 * config.mlp]);
    let (gate, up) = (g.cols(gate_up, 0..config.mlp), g.cols(gate_up, config.mlp..2 * config.mlp));
    g.linear("mlp.gate_proj", n, config.mlp).into(gate);
    g.linear("mlp.up_proj", n, config.mlp).into(up);
    let h = g.op("mlp.swiglu", SwiGlu, &[gate_up]);
    let down = g.linear("mlp.down_proj", h, d).op();
    g.op_into("residual2", Add, &[x, down], &[x]);
}

/// (cos, sin) pairs of the 2-D rotary embedding [P, width] for patches at (row, column): the first half of a head's
/// pairs turn with the row, the second with the column; frequencies 10000^(−2j/(width/2)), in f32.
pub fn rope_table(places: &[(usize, usize)], width: usize) -> Vec<f32> {
    let axis = width / 4; // pairs an axis
    let frequency = |j: usize| 1.0 / 10000f32.powf(2.0 * j as f32 / (2 * axis) as f32);
    let frequencies: Vec<f32> = (0..axis).map(frequency).collect();
    let mut table = Vec::with_capacity(places.len() * width);
    for &(row, col) in places {
        for position in [row, col] {
            for f in &frequencies {
                let (sin, cos) = (position as f32 * f).sin_cos();
                table.extend([cos, sin]);
            }
        }
    }
    table
}
