//! The names of the diffusers layout, and of llama.cpp for the text encoder, module by module.
//!
//! In a pattern, `*` is a number that stays, and `~` one that is counted from the other end of the autoencoder's levels. What a
//! tensor's name has behind its module (`.weight`, `.0.conv1.bias`) is the same on both sides.

use super::Move;
use crate::tensor::Component;

/// Levels of the autoencoder less one: diffusers counts those of its decoder from the coarsest on.
pub(super) const LAST_LEVEL: usize = 3;

/// A module of the official release, and those that diffusers makes of it.
pub(super) struct Row {
    pub official: &'static str,
    /// Of the text encoder, those of llama.cpp.
    pub diffusers: &'static [&'static str],
    pub how: Move,
}

const fn whole(official: &'static str, diffusers: &'static [&'static str]) -> Row {
    Row { official, diffusers, how: Move::Whole }
}

const fn stacked(official: &'static str, diffusers: &'static [&'static str]) -> Row {
    Row { official, diffusers, how: Move::Stacked }
}

const fn as_matrix(official: &'static str, diffusers: &'static [&'static str]) -> Row {
    Row { official, diffusers, how: Move::Matrix }
}

/// The rows of a component; of those that fit a name, the first counts. What none fits has one name in both layouts.
pub(super) fn rows(component: Component) -> &'static [Row] {
    match component {
        Component::Dit => &DIT,
        Component::Vae => &VAE,
        Component::Qwen => &QWEN,
    }
}

/// llama.cpp keeps the rows of Qwen's q and k as they are (it changes their order for Llama alone).
const QWEN: [Row; 23] = [
    whole("model.embed_tokens", &["token_embd"]),
    whole("model.norm", &["output_norm"]),
    whole("lm_head", &["output"]),
    whole("model.layers.*.input_layernorm", &["blk.*.attn_norm"]),
    whole("model.layers.*.self_attn.q_proj", &["blk.*.attn_q"]),
    whole("model.layers.*.self_attn.k_proj", &["blk.*.attn_k"]),
    whole("model.layers.*.self_attn.v_proj", &["blk.*.attn_v"]),
    whole("model.layers.*.self_attn.o_proj", &["blk.*.attn_output"]),
    whole("model.layers.*.post_attention_layernorm", &["blk.*.ffn_norm"]),
    whole("model.layers.*.mlp.gate_proj", &["blk.*.ffn_gate"]),
    whole("model.layers.*.mlp.up_proj", &["blk.*.ffn_up"]),
    whole("model.layers.*.mlp.down_proj", &["blk.*.ffn_down"]),
    // The longer name is a beginning's end: it must be looked for first.
    Row {
        official: "visual.patch_embed.proj.weight",
        diffusers: &["v.patch_embd.weight.1", "v.patch_embd.weight"],
        how: Move::Pictures,
    },
    whole("visual.blocks.*.norm1", &["v.blk.*.ln1"]),
    stacked("visual.blocks.*.attn.qkv", &["v.blk.*.attn_q", "v.blk.*.attn_k", "v.blk.*.attn_v"]),
    whole("visual.blocks.*.attn.proj", &["v.blk.*.attn_out"]),
    whole("visual.blocks.*.norm2", &["v.blk.*.ln2"]),
    whole("visual.blocks.*.mlp.gate_proj", &["v.blk.*.ffn_gate"]),
    whole("visual.blocks.*.mlp.up_proj", &["v.blk.*.ffn_up"]),
    whole("visual.blocks.*.mlp.down_proj", &["v.blk.*.ffn_down"]),
    whole("visual.merger.ln_q", &["v.post_ln"]),
    whole("visual.merger.mlp.0", &["mm.0"]),
    whole("visual.merger.mlp.2", &["mm.2"]),
];

const DIT: [Row; 25] = [
    whole("img_in", &["x_embedder"]),
    whole("txt_in", &["context_embedder"]),
    whole("time_in", &["time_embed"]),
    whole("vector_in", &["vec_embed"]),
    whole("double_blocks.*.img_mod.lin", &["transformer_blocks.*.norm1.linear"]),
    whole("double_blocks.*.txt_mod.lin", &["transformer_blocks.*.norm1_context.linear"]),
    stacked(
        "double_blocks.*.img_attn.qkv",
        &["transformer_blocks.*.attn.to_q", "transformer_blocks.*.attn.to_k", "transformer_blocks.*.attn.to_v"],
    ),
    stacked(
        "double_blocks.*.txt_attn.qkv",
        &["transformer_blocks.*.attn.add_q_proj", "transformer_blocks.*.attn.add_k_proj", "transformer_blocks.*.attn.add_v_proj"],
    ),
    whole("double_blocks.*.img_attn.norm.query_norm.scale", &["transformer_blocks.*.attn.norm_q.weight"]),
    whole("double_blocks.*.img_attn.norm.key_norm.scale", &["transformer_blocks.*.attn.norm_k.weight"]),
    whole("double_blocks.*.txt_attn.norm.query_norm.scale", &["transformer_blocks.*.attn.norm_added_q.weight"]),
    whole("double_blocks.*.txt_attn.norm.key_norm.scale", &["transformer_blocks.*.attn.norm_added_k.weight"]),
    whole("double_blocks.*.img_attn.proj", &["transformer_blocks.*.attn.to_out.0"]),
    whole("double_blocks.*.txt_attn.proj", &["transformer_blocks.*.attn.to_add_out"]),
    whole("double_blocks.*.img_mlp.0", &["transformer_blocks.*.ff.net.0.proj"]),
    whole("double_blocks.*.img_mlp.2", &["transformer_blocks.*.ff.net.2"]),
    whole("double_blocks.*.txt_mlp.0", &["transformer_blocks.*.ff_context.net.0.proj"]),
    whole("double_blocks.*.txt_mlp.2", &["transformer_blocks.*.ff_context.net.2"]),
    stacked(
        "single_blocks.*.linear1",
        &[
            "single_transformer_blocks.*.attn.to_q",
            "single_transformer_blocks.*.attn.to_k",
            "single_transformer_blocks.*.attn.to_v",
            "single_transformer_blocks.*.proj_mlp",
        ],
    ),
    whole("single_blocks.*.linear2", &["single_transformer_blocks.*.proj_out"]),
    whole("single_blocks.*.modulation.lin", &["single_transformer_blocks.*.norm.linear"]),
    whole("single_blocks.*.norm.query_norm.scale", &["single_transformer_blocks.*.attn.norm_q.weight"]),
    whole("single_blocks.*.norm.key_norm.scale", &["single_transformer_blocks.*.attn.norm_k.weight"]),
    whole("final_layer.linear", &["proj_out"]),
    Row { official: "final_layer.adaLN_modulation.1", diffusers: &["norm_out.linear"], how: Move::Swapped },
];

const VAE: [Row; 22] = [
    whole("encoder.down.*.block.*.nin_shortcut", &["encoder.down_blocks.*.resnets.*.conv_shortcut"]),
    whole("encoder.down.*.block", &["encoder.down_blocks.*.resnets"]),
    whole("encoder.down.*.downsample.conv", &["encoder.down_blocks.*.downsamplers.0.conv"]),
    whole("decoder.up.*.block.*.nin_shortcut", &["decoder.up_blocks.~.resnets.*.conv_shortcut"]),
    whole("decoder.up.*.block", &["decoder.up_blocks.~.resnets"]),
    whole("decoder.up.*.upsample.conv", &["decoder.up_blocks.~.upsamplers.0.conv"]),
    whole("encoder.norm_out", &["encoder.conv_norm_out"]),
    whole("decoder.norm_out", &["decoder.conv_norm_out"]),
    whole("encoder.mid.block_1", &["encoder.mid_block.resnets.0"]),
    whole("encoder.mid.block_2", &["encoder.mid_block.resnets.1"]),
    whole("decoder.mid.block_1", &["decoder.mid_block.resnets.0"]),
    whole("decoder.mid.block_2", &["decoder.mid_block.resnets.1"]),
    whole("encoder.mid.attn_1.norm", &["encoder.mid_block.attentions.0.group_norm"]),
    whole("decoder.mid.attn_1.norm", &["decoder.mid_block.attentions.0.group_norm"]),
    as_matrix("encoder.mid.attn_1.q", &["encoder.mid_block.attentions.0.to_q"]),
    as_matrix("encoder.mid.attn_1.k", &["encoder.mid_block.attentions.0.to_k"]),
    as_matrix("encoder.mid.attn_1.v", &["encoder.mid_block.attentions.0.to_v"]),
    as_matrix("encoder.mid.attn_1.proj_out", &["encoder.mid_block.attentions.0.to_out.0"]),
    as_matrix("decoder.mid.attn_1.q", &["decoder.mid_block.attentions.0.to_q"]),
    as_matrix("decoder.mid.attn_1.k", &["decoder.mid_block.attentions.0.to_k"]),
    as_matrix("decoder.mid.attn_1.v", &["decoder.mid_block.attentions.0.to_v"]),
    as_matrix("decoder.mid.attn_1.proj_out", &["decoder.mid_block.attentions.0.to_out.0"]),
];
