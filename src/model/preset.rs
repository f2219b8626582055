//! Networks known without a checkpoint: the released size, and the tiny size of the golden files.

use serde_json::{Value, json};

use super::config::{Config, DitConfig, TextConfig, VaeConfig, Version, VisionConfig};
use super::connector::PromptRows;
use super::edit::{self, Conventions, EditSpec, NoiseSource, Savings};
use super::text::TextRows;
use crate::graph::Graph;
use crate::tensor::{Component, DType, Shape};

/// Rotary axes of the released transformer: 16 channels for time, 56 each for row and column.
pub const AXES: [usize; 3] = [16, 56, 56];

/// A size of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The released one: 42 GB.
    Full,
    /// The same parts with few, narrow layers: 51 MB.
    Tiny,
}

impl Config {
    /// The released networks.
    pub fn full(version: Version) -> Config {
        Config {
            version,
            dit: DitConfig {
                in_channels: 64,
                hidden: 3072,
                mlp: 12288,
                depth: 19,
                depth_single: 38,
                axes: AXES,
                vec_in: 768,
                context: 3584,
                connector_hidden: 4096,
                connector_mlp: 16384,
                connector_depth: 2,
            },
            vae: VaeConfig { channels: vec![128, 256, 512, 512], blocks: 2, latent: 16 },
            vision: VisionConfig {
                depth: 32,
                hidden: 1280,
                heads: 16,
                mlp: 3420,
                out: 3584,
                window: 4,
                full: vec![7, 15, 23, 31],
            },
            text: TextConfig {
                vocabulary: 152_064,
                hidden: 3584,
                layers: 28,
                heads: 28,
                kv_heads: 4,
                mlp: 18944,
                rope_theta: 1e6,
                mrope: [16, 24, 24],
            },
        }
    }

    /// The golden files' networks: the same parts with few, narrow layers.
    pub fn tiny(version: Version) -> Config {
        Config {
            version,
            dit: DitConfig {
                in_channels: 64,
                hidden: 256,
                mlp: 1024,
                depth: 2,
                depth_single: 3,
                axes: AXES,
                vec_in: 768,
                context: 256,
                connector_hidden: 256,
                connector_mlp: 1024,
                connector_depth: 2,
            },
            vae: VaeConfig { channels: vec![32, 64, 128, 128], blocks: 2, latent: 16 },
            vision: VisionConfig { depth: 4, hidden: 160, heads: 2, mlp: 320, out: 256, window: 4, full: vec![1, 3] },
            text: TextConfig {
                vocabulary: 1024,
                hidden: 256,
                layers: 3,
                heads: 2,
                kv_heads: 1,
                mlp: 512,
                rope_theta: 1e6,
                mrope: [16, 24, 24],
            },
        }
    }

    /// Qwen's `config.json` with these dimensions; `token_id` gives the ids of `<|image_pad|>` and its like.
    pub fn qwen_json(&self, token_id: impl Fn(&str) -> Option<u32>) -> Value {
        let (t, v) = (&self.text, &self.vision);
        json!({
            "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "torch_dtype": "bfloat16",
            "hidden_size": t.hidden, "intermediate_size": t.mlp, "num_hidden_layers": t.layers, "num_attention_heads": t.heads,
            "num_key_value_heads": t.kv_heads, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": t.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": t.mrope}, "tie_word_embeddings": false, "vocab_size": t.vocabulary,
            "image_token_id": token_id("<|image_pad|>"), "video_token_id": token_id("<|video_pad|>"),
            "vision_start_token_id": token_id("<|vision_start|>"), "vision_end_token_id": token_id("<|vision_end|>"),
            "vision_config": {
                "depth": v.depth, "hidden_size": v.hidden, "num_heads": v.heads, "intermediate_size": v.mlp, "hidden_act": "silu",
                "out_hidden_size": v.out, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "in_channels": 3,
                "window_size": 28 * v.window, "fullatt_block_indexes": v.full,
            },
        })
    }

    /// Every weight that an edit reads, and nothing else: the weights of a recorded program of the smallest sizes.
    pub fn manifest(&self) -> Vec<(Component, String, Shape)> {
        let spec = EditSpec {
            latent: (2, 2),
            reference: true,
            patches: 4,
            windows: vec![0..4],
            text: TextRows { prefix: 2, tails: vec![1, 1], pictures: vec![0..1], hidden_keys: false },
            prompt: PromptRows::new(&[2, 2], 3, true),
            steps: 1,
            noise: NoiseSource::Host,
            sample_posterior: false,
            savings: Savings::ALL,
            conventions: Conventions::OFFICIAL,
        };
        let (graph, _): (Graph, _) = edit::record(self, &spec);
        graph.weights().map(|(component, s)| (component, s.name.clone(), s.spec.shape.clone())).collect()
    }

    /// The weights in the released files with their types: those of [`Config::manifest`], and Qwen's output head, which an
    /// edit never reads.
    pub fn checkpoint(&self) -> Vec<(Component, String, DType, Shape)> {
        let head = (Component::Qwen, LM_HEAD.to_string(), Shape::from([self.text.vocabulary, self.text.hidden]));
        let dtype = |component| if component == Component::Vae { DType::F32 } else { DType::BF16 };
        self.manifest()
            .into_iter()
            .chain([head])
            .map(|(component, name, shape)| (component, name, dtype(component), shape))
            .collect()
    }
}

/// Qwen's output head: in the released files, never read by an edit.
pub const LM_HEAD: &str = "lm_head.weight";
