//! What ComfyUI puts before the names of tensors, so that one file can hold all parts of a model: a checkpoint "all in one".
//!
//! ```text
//! model.diffusion_model.double_blocks.0.img_attn.qkv.weight                     the transformer
//! vae.decoder.conv_in.weight, or first_stage_model.decoder.conv_in.weight       the autoencoder
//! text_encoders.qwen25_7b.transformer.model.layers.0.mlp.up_proj.weight         the text encoder, or cond_stage_model…
//! ```
//!
//! Between the head of a text encoder and its own names stand the names that ComfyUI has for it, whatever they are.

use crate::tensor::Component;

const HEADS: [(&str, Component); 5] = [
    ("model.diffusion_model.", Component::Dit),
    ("vae.", Component::Vae),
    ("first_stage_model.", Component::Vae),
    ("text_encoders.", Component::Qwen),
    ("cond_stage_model.", Component::Qwen),
];

/// How the names of a text encoder begin.
const OF_QWEN: [&str; 3] = ["model.", "visual.", "lm_head."];

/// Names that ComfyUI puts between: that of the encoder, and `transformer`.
const BETWEEN: usize = 2;

/// A number that ComfyUI keeps with every text encoder, and that none of these has a use for.
const IDLE: &str = ".logit_scale";

/// The part of a model that a name says it belongs to by its head; none without one.
pub(super) fn part(name: &str) -> Option<Component> {
    HEADS.iter().find(|(head, _)| name.starts_with(head)).map(|(_, component)| *component)
}

/// Whether a tensor behind a head is read by nobody.
pub(super) fn is_idle(name: &str) -> bool {
    part(name) == Some(Component::Qwen) && name.ends_with(IDLE)
}

/// What stands before a name that a component's files have; nothing in most files.
pub(super) fn head(component: Component, name: &str) -> &str {
    let Some((head, _)) = HEADS.iter().find(|(head, of)| *of == component && name.starts_with(head)) else { return "" };
    let own = &name[head.len()..];
    let between = match component {
        Component::Qwen => (0..=BETWEEN).scan(0, |at, _| {
            let here = *at;
            *at += own[here..].find('.').map_or(own.len() - here, |dot| dot + 1);
            Some(here)
        }),
        _ => return head,
    };
    let begins = |at: &usize| OF_QWEN.iter().any(|first| own[*at..].starts_with(first));
    let mut between = between.filter(begins);
    &name[..head.len() + between.next().unwrap_or(0)]
}

/// A name without what stands before it.
pub(super) fn bare(component: Component, name: &str) -> &str {
    &name[head(component, name).len()..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_told_from_names() {
        for (component, name, own) in [
            (Component::Dit, "model.diffusion_model.img_in.bias", "img_in.bias"),
            (Component::Vae, "vae.decoder.conv_in.weight", "decoder.conv_in.weight"),
            (Component::Vae, "first_stage_model.decoder.conv_in.weight", "decoder.conv_in.weight"),
            (Component::Qwen, "text_encoders.qwen25_7b.transformer.model.norm.weight", "model.norm.weight"),
            (Component::Qwen, "text_encoders.qwen25_7b.transformer.visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
            (Component::Qwen, "cond_stage_model.qwen.model.visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight"),
            (Component::Qwen, "text_encoders.lm_head.weight", "lm_head.weight"),
            (Component::Qwen, "text_encoders.a.b.c.model.norm.weight", "a.b.c.model.norm.weight"),
            (Component::Qwen, "text_encoders.x", "x"),
            (Component::Qwen, "text_encoders.", ""),
        ] {
            assert_eq!((part(name), bare(component, name)), (Some(component), own), "{name}");
        }
        for name in ["img_in.bias", "model.norm.weight", "visual.w", "vaes.a", "decoder.conv_in.weight", ""] {
            assert_eq!(part(name), None);
            assert!([Component::Dit, Component::Vae, Component::Qwen].into_iter().all(|of| bare(of, name) == name), "{name}");
        }
        assert!(is_idle("text_encoders.qwen25_7b.logit_scale") && !is_idle("qwen25_7b.logit_scale"));
    }
}
