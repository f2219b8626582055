//! The modules of a transformer under the names of all trainers.

use std::collections::BTreeMap;
use std::ops::Range;

use super::keys::bare;
use crate::tensor::Shape;

/// Rows of a weight that a module of some layout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Canonical name.
    pub weight: String,
    pub rows: Range<usize>,
    /// The module has its two halves the other way round.
    pub swapped: bool,
}

/// Every matrix of a transformer, by every name of a module that is a part of it.
pub(super) struct Modules {
    dotted: BTreeMap<String, Target>,
    /// With underscores for dots.
    flat: BTreeMap<String, String>,
}

/// Names of a block's modules: official; diffusers'; DiffSynth-Studio's.
const DOUBLE: [(&str, &str, &str); 8] = [
    ("img_mod.lin", "norm1.linear", "norm1_a.linear"),
    ("txt_mod.lin", "norm1_context.linear", "norm1_b.linear"),
    ("img_attn.proj", "attn.to_out.0", "attn.a_to_out"),
    ("txt_attn.proj", "attn.to_add_out", "attn.b_to_out"),
    ("img_mlp.0", "ff.net.0.proj", "ff_a.0"),
    ("img_mlp.2", "ff.net.2", "ff_a.2"),
    ("txt_mlp.0", "ff_context.net.0.proj", "ff_b.0"),
    ("txt_mlp.2", "ff_context.net.2", "ff_b.2"),
];

/// Names of queries, keys and values together: official; diffusers'; DiffSynth-Studio's; and diffusers' of the three parts.
const QKV: [(&str, &str, &str, [&str; 3]); 2] = [
    ("img_attn.qkv", "attn.to_qkv", "attn.a_to_qkv", ["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("txt_attn.qkv", "attn.to_added_qkv", "attn.b_to_qkv", ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
];

/// Names outside of blocks, official and diffusers'; and whether the latter has its halves the other way round.
const OTHERS: [(&str, &str, bool); 12] = [
    ("img_in", "x_embedder", false),
    ("txt_in", "context_embedder", false),
    ("time_in.in_layer", "time_embed.in_layer", false),
    ("time_in.out_layer", "time_embed.out_layer", false),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1", false),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2", false),
    ("vector_in.in_layer", "vec_embed.in_layer", false),
    ("vector_in.out_layer", "vec_embed.out_layer", false),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1", false),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2", false),
    ("final_layer.linear", "proj_out", false),
    ("final_layer.adaLN_modulation.1", "norm_out.linear", true),
];

impl Modules {
    /// The modules of a transformer that has these tensors, by canonical name.
    pub fn new<'t>(tensors: impl Iterator<Item = (&'t str, &'t Shape)>) -> Modules {
        let mut modules = Modules { dotted: BTreeMap::new(), flat: BTreeMap::new() };
        for (weight, shape) in tensors {
            if let (Some(module), [rows, columns]) = (weight.strip_suffix(".weight"), &shape.0[..]) {
                modules.insert(module, weight, *rows, *columns);
            }
        }
        modules
    }

    fn insert(&mut self, module: &str, weight: &str, rows: usize, columns: usize) {
        let mut add = |name: String, rows: Range<usize>, swapped: bool| {
            self.flat.insert(name.replace('.', "_"), name.clone());
            self.dotted.insert(name, Target { weight: weight.to_string(), rows, swapped });
        };
        let all = 0..rows;
        add(module.to_string(), all.clone(), false);
        for (_, name, swapped) in OTHERS.iter().filter(|(official, ..)| *official == module) {
            add(name.to_string(), all.clone(), *swapped);
        }
        if let Some((block, inner)) = block_of(module, "double_blocks.") {
            let (diffusers, studio) = (format!("transformer_blocks.{block}"), format!("blocks.{block}"));
            for (_, theirs, studios) in DOUBLE.iter().filter(|(official, ..)| *official == inner) {
                add(format!("{diffusers}.{theirs}"), all.clone(), false);
                add(format!("{studio}.{studios}"), all.clone(), false);
            }
            if inner == "img_attn.proj" {
                add(format!("{diffusers}.attn.to_out"), all.clone(), false);
            }
            for (_, theirs, studios, parts) in QKV.iter().filter(|(official, ..)| *official == inner) {
                add(format!("{diffusers}.{theirs}"), all.clone(), false);
                add(format!("{studio}.{studios}"), all.clone(), false);
                for (i, part) in parts.iter().enumerate() {
                    add(format!("{diffusers}.{part}"), i * rows / 3..(i + 1) * rows / 3, false);
                }
            }
        }
        if let Some((block, inner)) = block_of(module, "single_blocks.") {
            let diffusers = format!("single_transformer_blocks.{block}");
            match inner {
                "linear1" => {
                    for (i, part) in ["attn.to_q", "attn.to_k", "attn.to_v"].iter().enumerate() {
                        add(format!("{diffusers}.{part}"), i * columns..(i + 1) * columns, false);
                    }
                    add(format!("{diffusers}.proj_mlp"), 3 * columns..rows, false);
                    add(format!("single_blocks.{block}.to_qkv_mlp"), all, false);
                }
                "linear2" => {
                    add(format!("{diffusers}.proj_out"), all.clone(), false);
                    add(format!("single_blocks.{block}.proj_out"), all, false);
                }
                "modulation.lin" => {
                    add(format!("{diffusers}.norm.linear"), all.clone(), false);
                    add(format!("single_blocks.{block}.norm.linear"), all, false);
                }
                _ => {}
            }
        }
    }

    /// What the module of this name, as a file has it, is here.
    pub fn find(&self, name: &str) -> Option<&Target> {
        let name = bare(name).replace(".processor.", ".");
        self.dotted.get(&name).or_else(|| self.dotted.get(self.flat.get(&name.replace('.', "_"))?))
    }
}

/// The number of a block and the name of a module in it.
fn block_of<'n>(module: &'n str, blocks: &str) -> Option<(usize, &'n str)> {
    let (number, inner) = module.strip_prefix(blocks)?.split_once('.')?;
    Some((number.parse().ok()?, inner))
}
