//! What a folder in the layout of diffusers says of its networks in `config.json`, for networks of these dimensions.

use serde_json::{Map, Value, json};

use super::config::{Config, HEAD_WIDTH};

/// What only says how a file was written or is used elsewhere; models differ in it and are the same.
const IDLE: [&str; 6] = ["_diffusers_version", "_name_or_path", "force_upcast", "sample_size", "latents_mean", "latents_std"];

/// Which tensor says what an entry says.
const TOLD_BY: [(&str, &str); 16] = [
    ("attention_head_dim", "transformer_blocks.0.attn.norm_q.weight"),
    ("num_attention_heads", "x_embedder.weight"),
    ("in_channels", "x_embedder.weight"),
    ("out_channels", "proj_out.weight"),
    ("joint_attention_dim", "context_embedder.weight"),
    ("vector_in_dim", "vec_embed.in_layer.weight"),
    ("timestep_in_dim", "time_embed.in_layer.weight"),
    ("num_layers", "the last of transformer_blocks.*"),
    ("num_single_layers", "the last of single_transformer_blocks.*"),
    ("connector_depth", "the last of connector.S.individual_token_refiner.blocks.*"),
    ("connector_hidden_size", "connector.S.input_embedder.weight"),
    ("connector_in_channels", "connector.S.input_embedder.weight"),
    ("connector_heads_num", "connector.S.input_embedder.weight"),
    ("block_out_channels", "encoder.down_blocks.*.resnets.0.conv1.weight"),
    ("layers_per_block", "the last of encoder.down_blocks.0.resnets.*"),
    ("latent_channels", "decoder.conv_in.weight"),
];

impl Config {
    /// `transformer/config.json`.
    pub fn transformer_json(&self) -> Value {
        let d = &self.dit;
        json!({
            "_class_name": "Step1XEditTransformer2DModel", "attention_head_dim": HEAD_WIDTH, "axes_dims_rope": d.axes,
            "connector_depth": d.connector_depth, "connector_heads_num": d.connector_hidden / HEAD_WIDTH,
            "connector_hidden_size": d.connector_hidden, "connector_in_channels": d.context, "enable_text_token_mapping": false,
            "guidance_embeds": false, "in_channels": d.in_channels, "joint_attention_dim": d.connector_hidden,
            "num_attention_heads": d.hidden / HEAD_WIDTH, "num_layers": d.depth, "num_single_layers": d.depth_single,
            "out_channels": null, "patch_size": 1, "timestep_in_dim": 256, "vector_in_dim": d.vec_in,
        })
    }

    /// `vae/config.json`.
    pub fn vae_json(&self) -> Value {
        let v = &self.vae;
        let blocks = |name: &str| vec![name.to_string(); v.channels.len()];
        json!({
            "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": v.channels,
            "down_block_types": blocks("DownEncoderBlock2D"), "force_upcast": true, "in_channels": 3,
            "latent_channels": v.latent, "latents_mean": null, "latents_std": null, "layers_per_block": v.blocks,
            "mid_block_add_attention": true, "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024,
            "scaling_factor": 0.3611, "shift_factor": 0.1159, "up_block_types": blocks("UpDecoderBlock2D"),
            "use_post_quant_conv": false, "use_quant_conv": false,
        })
    }
}

/// The first entry of a configuration file that is not as it should be, in words. What is left out, null, or unknown
/// here says nothing.
pub fn contradiction(declared: &Value, found: &Value) -> Option<String> {
    let none = Map::new();
    let (declared, found) = (declared.as_object()?, found.as_object().unwrap_or(&none));
    let differs = |(key, value): &(&String, &Value)| {
        let idle = IDLE.contains(&key.as_str()) || value.is_null();
        !idle && declared.get(*key).is_some_and(|said| !said.is_null() && !same(said, value))
    };
    let (key, value) = found.iter().find(differs)?;
    let said = &declared[key];
    Some(match TOLD_BY.iter().find(|(told, _)| told == key) {
        Some((_, tensor)) => format!("{key} is {said}, but the tensors have {value} ({tensor}); take both from one release"),
        None => format!("{key} is {said}, but Step1X-Edit has {value}; take the file from the release of the tensors"),
    })
}

/// Whether two values mean the same: a number may be written as 1 and as 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Version;

    #[test]
    fn files_that_say_what_the_tensors_say_are_taken() {
        let config = Config::full(Version::V1_1);
        for json in [config.transformer_json(), config.vae_json()] {
            assert_eq!(contradiction(&json, &json), None);
            assert_eq!(contradiction(&json!({}), &json), None);
            assert_eq!(
                contradiction(&json!({"new": 1, "sample_size": 512, "out_channels": null, "in_channels": null}), &json),
                None
            );
        }
        assert_eq!(contradiction(&json!({"in_channels": 64.0}), &config.transformer_json()), None);
    }

    #[test]
    fn each_entry_that_says_something_else_is_told_with_its_tensor() {
        let config = Config::full(Version::V1_1);
        let (dit, vae) = (config.transformer_json(), config.vae_json());
        for (json, key, wrong, words) in [
            (&dit, "num_layers", json!(20), "num_layers is 20, but the tensors have 19 (the last of transformer_blocks.*)"),
            (&dit, "num_attention_heads", json!(12), "but the tensors have 24 (x_embedder.weight)"),
            (&dit, "guidance_embeds", json!(true), "guidance_embeds is true, but Step1X-Edit has false"),
            (&dit, "enable_text_token_mapping", json!(true), "but Step1X-Edit has false"),
            (&dit, "axes_dims_rope", json!([64, 32, 32]), "axes_dims_rope is [64,32,32], but Step1X-Edit has [16,56,56]"),
            (&vae, "block_out_channels", json!([128, 256]), "(encoder.down_blocks.*.resnets.0.conv1.weight)"),
            (&vae, "scaling_factor", json!(0.18215), "scaling_factor is 0.18215, but Step1X-Edit has 0.3611"),
        ] {
            let mut declared = json.clone();
            declared[key] = wrong;
            let text = contradiction(&declared, json).unwrap();
            assert!(text.contains(words), "{text}");
        }
    }
}
