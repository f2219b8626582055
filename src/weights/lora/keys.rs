//! What a tensor of a LoRA file is, by its name: the module that it changes, and which factor of the change.

use std::fmt;

/// A tensor's part in the change of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Down,
    Up,
    Alpha,
    /// Of DoRA.
    Magnitudes,
    /// Of LoHa: first or second product, its first or second factor.
    Hada(usize, usize),
    /// Of LoKr: first or second matrix as it is.
    Lokr(usize),
    /// Of LoKr: first or second matrix, its first or second factor.
    LokrPair(usize, usize),
}

impl fmt::Display for Part {
    /// As trainers call it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let factor = |i: &usize| if *i == 0 { 'a' } else { 'b' };
        match self {
            Part::Down => write!(f, "lora_down (lora_A)"),
            Part::Up => write!(f, "lora_up (lora_B)"),
            Part::Alpha => write!(f, "alpha"),
            Part::Magnitudes => write!(f, "dora_scale"),
            Part::Hada(i, j) => write!(f, "hada_w{}_{}", i + 1, factor(j)),
            Part::Lokr(i) => write!(f, "lokr_w{}", i + 1),
            Part::LokrPair(i, j) => write!(f, "lokr_w{}_{}", i + 1, factor(j)),
        }
    }
}

/// Ends of names, as trainers write them.
const ENDS: [(&str, Part); 32] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora_A", Part::Down),
    (".lora_B", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::Magnitudes),
    (".lora_magnitude_vector", Part::Magnitudes),
    (".lora_magnitude_vector.weight", Part::Magnitudes),
    (".lora_magnitude_vector.default", Part::Magnitudes),
    (".lora_magnitude_vector.default.weight", Part::Magnitudes),
    (".hada_w1_a", Part::Hada(0, 0)),
    (".hada_w1_b", Part::Hada(0, 1)),
    (".hada_w2_a", Part::Hada(1, 0)),
    (".hada_w2_b", Part::Hada(1, 1)),
    (".lokr_w1", Part::Lokr(0)),
    (".lokr_w2", Part::Lokr(1)),
    (".lokr_w1_a", Part::LokrPair(0, 0)),
    (".lokr_w1_b", Part::LokrPair(0, 1)),
    (".lokr_w2_a", Part::LokrPair(1, 0)),
    (".lokr_w2_b", Part::LokrPair(1, 1)),
    (".lora.alpha", Part::Alpha),
    ("_lora.alpha", Part::Alpha),
];

/// What stands before the names of modules, in any number.
const PREFIXES: [&str; 10] = [
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "pipe.dit.",
    "dit.",
    "unet.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
];

/// How names of text encoders' tensors begin.
const TEXT_ENCODERS: [&str; 12] = [
    "lora_te",
    "text_encoder",
    "te1.",
    "te2.",
    "te3.",
    "clip_l.",
    "clip_g.",
    "t5xxl.",
    "cond_stage_model.",
    "conditioner.",
    "lora_qwen_te",
    "lora_prior_te",
];

/// The module of a tensor, as the file has it, and the tensor's part; none for what is no part of a change.
pub(super) fn split(key: &str) -> Option<(&str, Part)> {
    ENDS.iter().filter_map(|(end, part)| Some((key.strip_suffix(end)?, *part))).min_by_key(|(module, _)| module.len())
}

/// A module's name without what stands before it.
pub(super) fn bare(mut module: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)) {
        module = rest;
    }
    module
}

/// Whether a tensor of this name changes a text encoder.
pub(super) fn is_of_text_encoder(key: &str) -> bool {
    let key = key.strip_prefix("base_model.model.").unwrap_or(key);
    TEXT_ENCODERS.iter().any(|begin| key.starts_with(begin))
}
