//! The modules of a transformer under the names of all trainers.

use std::collections::BTreeMap;
use std::ops::Range;

use super::keys::bare;
use crate::tensor::Shape;
use crate::weights::names::{modules_of_diffusers, rename};

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

/// Names that trainers have besides the official ones and those of diffusers' model: diffusers' fused ones and its FLUX's, and
/// those of DiffSynth-Studio.
const OTHERS: [(&str, &str); 20] = [
    ("double_blocks.*.img_attn.qkv", "transformer_blocks.*.attn.to_qkv"),
    ("double_blocks.*.txt_attn.qkv", "transformer_blocks.*.attn.to_added_qkv"),
    ("double_blocks.*.img_attn.proj", "transformer_blocks.*.attn.to_out"),
    ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    ("double_blocks.*.img_mod.lin", "blocks.*.norm1_a.linear"),
    ("double_blocks.*.txt_mod.lin", "blocks.*.norm1_b.linear"),
    ("double_blocks.*.img_attn.qkv", "blocks.*.attn.a_to_qkv"),
    ("double_blocks.*.txt_attn.qkv", "blocks.*.attn.b_to_qkv"),
    ("double_blocks.*.img_attn.proj", "blocks.*.attn.a_to_out"),
    ("double_blocks.*.txt_attn.proj", "blocks.*.attn.b_to_out"),
    ("double_blocks.*.img_mlp.0", "blocks.*.ff_a.0"),
    ("double_blocks.*.img_mlp.2", "blocks.*.ff_a.2"),
    ("double_blocks.*.txt_mlp.0", "blocks.*.ff_b.0"),
    ("double_blocks.*.txt_mlp.2", "blocks.*.ff_b.2"),
    ("single_blocks.*.linear1", "single_blocks.*.to_qkv_mlp"),
    ("single_blocks.*.linear2", "single_blocks.*.proj_out"),
    ("single_blocks.*.modulation.lin", "single_blocks.*.norm.linear"),
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
        add(module.to_string(), 0..rows, false);
        for (name, rows, swapped) in modules_of_diffusers(module, rows, columns) {
            add(name, rows, swapped);
        }
        for name in OTHERS.iter().filter_map(|(official, theirs)| rename(official, theirs, module)) {
            add(name, 0..rows, false);
        }
    }

    /// What the module of this name, as a file has it, is here.
    pub fn find(&self, name: &str) -> Option<&Target> {
        let name = bare(name).replace(".processor.", ".");
        self.dotted.get(&name).or_else(|| self.dotted.get(self.flat.get(&name.replace('.', "_"))?))
    }
}
