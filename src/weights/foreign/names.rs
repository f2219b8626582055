//! What a safetensors file is, by the names of its tensors.

use std::collections::BTreeSet;

use super::super::heads::{bare, part};
use super::{Foreign, OFFICIAL};
use crate::tensor::Component;

/// What the names of the tensors begin with that only Step1X-Edit has, in every layout.
const CONNECTOR: &str = "connector.";

/// A model, by names of its tensors.
struct Kind {
    what: &'static str,
    /// All of these are there.
    has: &'static [&'static str],
    /// No name begins with any of these.
    lacks: &'static [&'static str],
    /// The place of Step1X-Edit's files in which it is right.
    place: Option<Component>,
}

const fn kind(what: &'static str, has: &'static [&'static str]) -> Kind {
    Kind { what, has, lacks: &[], place: None }
}

const fn own(place: Component, what: &'static str, has: &'static [&'static str]) -> Kind {
    Kind { place: Some(place), ..kind(what, has) }
}

const fn without(lacks: &'static [&'static str], what: &'static str, has: &'static [&'static str]) -> Kind {
    Kind { lacks, ..kind(what, has) }
}

/// Models that people take for one of Step1X-Edit's files; of those that fit, the first counts.
const KINDS: [Kind; 26] = [
    kind("the transformer of Step1X-Edit 1.2, which is not read yet", &["text_token_mapping.weight", "x_embedder.weight"]),
    own(
        Component::Dit,
        "Step1X-Edit's transformer",
        &["double_blocks.0.img_attn.qkv.weight", "connector.S.input_embedder.weight"],
    ),
    own(
        Component::Dit,
        "Step1X-Edit's transformer in the diffusers layout",
        &["transformer_blocks.0.attn.add_k_proj.weight", "connector.S.input_embedder.weight"],
    ),
    without(&[CONNECTOR], "FLUX, not Step1X-Edit", &["double_blocks.0.img_attn.qkv.weight", "txt_in.weight"]),
    without(
        &[CONNECTOR],
        "FLUX in the diffusers layout, not Step1X-Edit",
        &["single_transformer_blocks.0.proj_mlp.weight", "context_embedder.weight"],
    ),
    kind("Stable Diffusion 3, not Step1X-Edit", &["joint_blocks.0.context_block.attn.qkv.weight"]),
    kind("Stable Diffusion 3, not Step1X-Edit", &["pos_embed.proj.weight", "transformer_blocks.0.attn.add_k_proj.weight"]),
    kind("Stable Diffusion XL, not Step1X-Edit", &["input_blocks.0.0.weight", "label_emb.0.0.weight"]),
    kind("Stable Diffusion XL, not Step1X-Edit", &["conv_in.weight", "add_embedding.linear_1.weight"]),
    kind("Stable Diffusion, not Step1X-Edit", &["input_blocks.0.0.weight"]),
    kind("Stable Diffusion, not Step1X-Edit", &["conv_in.weight", "time_embedding.linear_1.weight"]),
    kind("Qwen-Image, not Step1X-Edit", &["txt_norm.weight", "transformer_blocks.0.img_mod.1.weight"]),
    kind("Wan, not Step1X-Edit", &["patch_embedding.weight", "blocks.0.self_attn.q.weight"]),
    kind("Wan, not Step1X-Edit", &["patch_embedding.weight", "blocks.0.attn1.to_q.weight"]),
    own(Component::Qwen, "Qwen2.5-VL, the text encoder", &["visual.blocks.0.mlp.gate_proj.weight"]),
    own(Component::Qwen, "Qwen2.5-VL, the text encoder", &["model.visual.blocks.0.mlp.gate_proj.weight"]),
    kind("Qwen2-VL, not Qwen2.5-VL", &["visual.blocks.0.mlp.fc1.weight"]),
    kind("Qwen2-VL, not Qwen2.5-VL", &["model.visual.blocks.0.mlp.fc1.weight"]),
    without(
        &["visual.", "model.visual."],
        "a language model that sees no pictures",
        &["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"],
    ),
    kind("T5, a text encoder of other models", &["encoder.block.0.layer.0.SelfAttention.q.weight"]),
    kind("CLIP, a text encoder of other models", &["text_model.encoder.layers.0.self_attn.q_proj.weight"]),
    kind("an autoencoder of Stable Diffusion, not FLUX's", &["decoder.conv_in.weight", "quant_conv.weight"]),
    own(
        Component::Vae,
        "an autoencoder in the diffusers layout",
        &["decoder.conv_in.weight", "decoder.mid_block.attentions.0.to_q.weight"],
    ),
    kind("the autoencoder of Wan or Qwen-Image", &["decoder.middle.0.residual.0.gamma"]),
    kind("the autoencoder of Wan or Qwen-Image", &["decoder.mid_block.resnets.0.norm1.gamma"]),
    own(Component::Vae, "FLUX's autoencoder", &["decoder.conv_in.weight", "decoder.mid.attn_1.q.weight"]),
];

/// What a safetensors file with tensors of these names is, if it is known and not right in the wanted place; with no wanted
/// place, any of Step1X-Edit's files is right.
pub fn what_names<'n>(names: impl Iterator<Item = &'n str>, wanted: Option<Component>) -> Option<Foreign> {
    let names: BTreeSet<&str> = names.collect();
    let share = |is: fn(&str) -> bool| names.iter().filter(|name| is(name)).count();
    if 2 * share(is_lora) > names.len() {
        let remedy = "give the model itself with -m, and this file with --lora (docs/lora.md)";
        return Some(Foreign { is_lora: true, ..Foreign::new("a LoRA, which changes a model, not a model", remedy) });
    }
    if share(is_scale) > 0 {
        let remedy = "FP8 is read with one scale a weight; or use the file of the official release (docs/models.md)";
        return Some(Foreign::new(
            "a checkpoint with two scales a weight, as NVFP4 and AWQ have: it has tensors such as .weight_scale_2",
            remedy,
        ));
    }
    if share(is_quantised) > 0 {
        return Some(Foreign::new(
            "a checkpoint quantised to four or eight bits (bitsandbytes, GPTQ, AWQ, Nunchaku, Quanto)",
            OFFICIAL,
        ));
    }
    let bare: BTreeSet<&str> = names.iter().map(|name| part(name).map_or(*name, |component| bare(component, name))).collect();
    let kind = known(&bare)?;
    let right = kind.place.is_some_and(|place| wanted.is_none_or(|wanted| wanted == place));
    (!right).then(|| {
        let remedy = match wanted {
            Some(Component::Vae) => "put vae.safetensors of the official release in its place (docs/models.md)",
            Some(Component::Qwen) => "put Qwen2.5-VL-7B-Instruct in its place (docs/models.md)",
            _ => OFFICIAL,
        };
        Foreign::new(kind.what, remedy)
    })
}

fn known(names: &BTreeSet<&str>) -> Option<&'static Kind> {
    let begins = |prefix: &&str| names.range(*prefix..).next().is_some_and(|name| name.starts_with(prefix));
    let fits = |kind: &&Kind| kind.has.iter().all(|name| names.contains(name)) && !kind.lacks.iter().any(begins);
    KINDS.iter().find(fits)
}

fn is_lora(name: &str) -> bool {
    let within = [".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.", ".hada_w", ".lokr_w"];
    ["lora_unet_", "lora_te"].iter().any(|prefix| name.starts_with(prefix))
        || within.iter().any(|part| name.contains(part))
        || [".alpha", ".lora_A", ".lora_B", ".dora_scale"].iter().any(|suffix| name.ends_with(suffix))
}

fn is_scale(name: &str) -> bool {
    [".weight_scale_2", ".pre_quant_scale"].iter().any(|s| name.ends_with(s))
}

fn is_quantised(name: &str) -> bool {
    let within = [".quant_state.", ".quant_map", ".absmax", ".qweight", ".qzeros", ".wscales", ".SCB", ".weight._data"];
    within.iter().any(|part| name.contains(part))
}
