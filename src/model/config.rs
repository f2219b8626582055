//! Dimensions of the networks, from tensor shapes and Qwen's `config.json`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::tensor::{Component, Shape};

/// Width of every attention head of the transformer and the connector.
pub const HEAD_WIDTH: usize = 128;

/// The released generation of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `step1x-edit-i1258`: has `connector.scale_factor`; reference tokens share the noisy tokens' positions.
    V1_0,
    /// `step1x-edit-v1p1-official`: reference tokens lie one further on all three axes.
    V1_1,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Version::V1_0 => "v1.0",
            Version::V1_1 => "v1.1",
        })
    }
}

/// The diffusion transformer and its connector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DitConfig {
    /// Channels of a packed latent token (64).
    pub in_channels: usize,
    /// Width of the streams (3072).
    pub hidden: usize,
    /// Width of the MLPs (12288).
    pub mlp: usize,
    /// Double blocks (19).
    pub depth: usize,
    /// Single blocks (38).
    pub depth_single: usize,
    /// Rotary channels of the axes; their sum is the head width.
    pub axes: [usize; 3],
    /// Width of the pooled text vector (768).
    pub vec_in: usize,
    /// Width of the text encoder's rows (3584).
    pub context: usize,
    /// Width of the connector (4096).
    pub connector_hidden: usize,
    /// Width of its MLPs (16384).
    pub connector_mlp: usize,
    /// Its blocks (2).
    pub connector_depth: usize,
}

/// FLUX's autoencoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaeConfig {
    /// Channels of each level, finest first (128, 256, 512, 512).
    pub channels: Vec<usize>,
    /// Residual blocks of an encoder level (2); a decoder level has one more.
    pub blocks: usize,
    /// Latent channels (16).
    pub latent: usize,
}

/// Qwen2.5-VL's vision tower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VisionConfig {
    /// Blocks (32).
    pub depth: usize,
    /// Width (1280).
    pub hidden: usize,
    /// Attention heads (16).
    pub heads: usize,
    /// Width of the MLPs (3420).
    pub mlp: usize,
    /// Width of the merged tokens (3584).
    pub out: usize,
    /// Side of an attention window in merged tokens (4).
    pub window: usize,
    /// Blocks that attend over the whole picture (7, 15, 23, 31).
    pub full: Vec<usize>,
}

/// Qwen2.5-VL's text model.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Rows of the embedding (152064).
    pub vocabulary: usize,
    /// Width (3584).
    pub hidden: usize,
    /// Layers (28).
    pub layers: usize,
    /// Query heads (28).
    pub heads: usize,
    /// Key and value heads (4).
    pub kv_heads: usize,
    /// Width of the MLPs (18944).
    pub mlp: usize,
    /// Rotary base (1e6).
    pub rope_theta: f64,
    /// Rotary pairs that follow time, row and column (16, 24, 24).
    pub mrope: [usize; 3],
}

/// All networks of a model folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Generation of the weights.
    pub version: Version,
    /// Diffusion transformer and connector.
    pub dit: DitConfig,
    /// Autoencoder.
    pub vae: VaeConfig,
    /// Vision tower.
    pub vision: VisionConfig,
    /// Text model.
    pub text: TextConfig,
}

/// Shape of a checkpoint tensor, if it exists.
pub type ShapeOf<'a> = dyn Fn(Component, &str) -> Option<Shape> + 'a;

impl Config {
    /// Reads the dimensions off a checkpoint.
    ///
    /// # Errors
    /// A tensor or a field that a dimension is read from is missing, or dimensions contradict what the code assumes.
    pub fn infer(shape_of: &ShapeOf, qwen: &Value, axes: [usize; 3]) -> Result<Config> {
        let version = match shape_of(Component::Dit, "connector.scale_factor") {
            Some(_) => Version::V1_0,
            None => Version::V1_1,
        };
        let (vision, text) = (VisionConfig::parse(qwen)?, TextConfig::parse(qwen)?);
        let dit = DitConfig::infer(shape_of, axes)?;
        let vae = VaeConfig::infer(shape_of)?;
        ensure!(
            vision.out == text.hidden,
            "the vision tower gives rows of {} values, but the text model takes {}; take all files from one release",
            vision.out,
            text.hidden
        );
        ensure!(
            dit.context == text.hidden,
            "the connector takes rows of {} values, but the text model gives {}; take all files from one release",
            dit.context,
            text.hidden
        );
        ensure!(
            vae.latent == LATENT_CHANNELS && dit.in_channels == 4 * LATENT_CHANNELS,
            "the autoencoder has {} latent channels, the transformer {} a token; Step1X-Edit has {LATENT_CHANNELS} and {}",
            vae.latent,
            dit.in_channels,
            4 * LATENT_CHANNELS
        );
        Ok(Config { version, dit, vae, vision, text })
    }
}

/// Channels of FLUX's latents, on which noise and packing rest; a token packs 2×2 of them.
const LATENT_CHANNELS: usize = 16;

/// Most blocks of a stack; tensors are listed block by block, so no file may claim any number.
const DEPTH_MAX: usize = 1000;

/// Largest dimension, which none of these networks comes near; products of three stay within 64 bits.
const LARGEST: usize = 1 << 20;

/// A tensor that a dimension is read from is not there.
#[derive(Debug)]
pub struct AbsentTensor(pub Component, pub String);

impl std::fmt::Display for AbsentTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "the {} file lacks the tensor {}; is it the right file?", self.0, self.1)
    }
}

impl std::error::Error for AbsentTensor {}

/// Extent `axis` of a tensor that a dimension is read from.
fn extent(shape_of: &ShapeOf, component: Component, name: &str, axis: usize) -> Result<usize> {
    let shape = shape_of(component, name).ok_or_else(|| AbsentTensor(component, name.into()))?;
    let extent =
        shape.0.get(axis).copied().with_context(|| format!("{name} has the shape {shape}, which has too few dimensions"))?;
    ensure!((1..=LARGEST).contains(&extent), "{name} has the shape {shape}; dimension {axis} is not within 1 to {LARGEST}");
    Ok(extent)
}

/// One more than the last i for which the tensor exists, so that one missing in between is still asked for by name.
fn count(shape_of: &ShapeOf, component: Component, name: impl Fn(usize) -> String) -> usize {
    (0..DEPTH_MAX).rev().find(|&i| shape_of(component, &name(i)).is_some()).map_or(0, |last| last + 1)
}

impl DitConfig {
    fn infer(shape_of: &ShapeOf, axes: [usize; 3]) -> Result<DitConfig> {
        let of = |name: &str, axis| extent(shape_of, Component::Dit, name, axis);
        let refiner = |i| format!("connector.S.individual_token_refiner.blocks.{i}.mlp.fc1.weight");
        let config = DitConfig {
            in_channels: of("img_in.weight", 1)?,
            hidden: of("img_in.weight", 0)?,
            mlp: of("double_blocks.0.img_mlp.0.weight", 0)?,
            depth: count(shape_of, Component::Dit, |i| format!("double_blocks.{i}.img_attn.qkv.weight")),
            depth_single: count(shape_of, Component::Dit, |i| format!("single_blocks.{i}.linear1.weight")),
            axes,
            vec_in: of("vector_in.in_layer.weight", 1)?,
            context: of("connector.S.input_embedder.weight", 1)?,
            connector_hidden: of("connector.S.input_embedder.weight", 0)?,
            connector_mlp: of(&refiner(0), 0)?,
            connector_depth: count(shape_of, Component::Dit, refiner),
        };
        for width in [config.hidden, config.connector_hidden] {
            ensure!(
                width > 0 && width.is_multiple_of(HEAD_WIDTH),
                "the transformer has a width of {width}; it must be a multiple of {HEAD_WIDTH}"
            );
        }
        ensure!(config.depth_single > 0, "the transformer file has no single blocks");
        ensure!(
            axes.iter().all(|&a| a <= HEAD_WIDTH && a % 2 == 0) && axes.iter().sum::<usize>() == HEAD_WIDTH,
            "the rotary axes are {axes:?}; they must be three even numbers that add up to {HEAD_WIDTH}"
        );
        Ok(config)
    }
}

impl VaeConfig {
    fn infer(shape_of: &ShapeOf) -> Result<VaeConfig> {
        let of = |name: &str, axis| extent(shape_of, Component::Vae, name, axis);
        let level = |i| format!("encoder.down.{i}.block.0.conv1.weight");
        let levels = count(shape_of, Component::Vae, level);
        let channels = (0..levels).map(|i| of(&level(i), 0)).collect::<Result<Vec<_>>>()?;
        let blocks = count(shape_of, Component::Vae, |j| format!("encoder.down.0.block.{j}.conv1.weight"));
        let latent = of("decoder.conv_in.weight", 1)?;
        ensure!(levels == 4, "the autoencoder has {levels} levels; latents of an eighth of the picture's size need 4");
        ensure!(
            channels.iter().all(|c| *c > 0 && c % 32 == 0),
            "the autoencoder has {channels:?} channels; each number must be a multiple of 32"
        );
        Ok(VaeConfig { channels, blocks, latent })
    }
}

fn number(json: &Value, field: &str) -> Result<usize> {
    let value = json.get(field).with_context(|| format!("config.json lacks {field}"))?;
    let n = value
        .as_u64()
        .filter(|n| (1..=LARGEST as u64).contains(n))
        .with_context(|| format!("config.json: {field} is {value}; it must be a number from 1 to {LARGEST}"))?;
    Ok(n as usize)
}

/// Number of blocks.
fn depth(json: &Value, field: &str) -> Result<usize> {
    let depth = number(json, field)?;
    ensure!(
        depth <= DEPTH_MAX,
        "config.json: {field} is {depth}; it may be at most {DEPTH_MAX}, and Qwen2.5-VL-7B has 28 and 32"
    );
    Ok(depth)
}

fn numbers(json: &Value, field: &str) -> Result<Vec<usize>> {
    let list = json.get(field).and_then(Value::as_array).with_context(|| format!("config.json lacks the list {field}"))?;
    list.iter()
        .map(|v| {
            v.as_u64().map(|n| n as usize).with_context(|| format!("config.json: {field} holds {v}; it must hold whole numbers"))
        })
        .collect()
}

impl VisionConfig {
    /// Reads Qwen's `config.json`.
    ///
    /// # Errors
    /// A field that is missing, or no number of its kind.
    pub fn parse(json: &Value) -> Result<VisionConfig> {
        let v = json.get("vision_config").context("config.json lacks vision_config; it must be that of Qwen2.5-VL")?;
        for (field, expected) in [("patch_size", 14), ("temporal_patch_size", 2), ("spatial_merge_size", 2)] {
            let found = number(v, field)?;
            ensure!(found == expected, "config.json: {field} is {found}; the picture processor is made for {expected}");
        }
        let config = VisionConfig {
            depth: depth(v, "depth")?,
            hidden: number(v, "hidden_size")?,
            heads: number(v, "num_heads")?,
            mlp: number(v, "intermediate_size")?,
            out: number(v, "out_hidden_size")?,
            window: number(v, "window_size")? / 28,
            full: numbers(v, "fullatt_block_indexes")?,
        };
        ensure!(
            config.hidden.is_multiple_of(config.heads) && (config.hidden / config.heads).is_multiple_of(4),
            "config.json: the vision tower has {} channels and {} heads; a head must have a multiple of 4 channels",
            config.hidden,
            config.heads
        );
        ensure!(config.window > 0, "config.json: window_size must be at least 28 pixels, the side of a merged token");
        ensure!(
            config.full.iter().all(|&i| i < config.depth),
            "config.json: fullatt_block_indexes is {:?}; each must be below {}, the number of blocks",
            config.full,
            config.depth
        );
        Ok(config)
    }
}

impl TextConfig {
    /// Reads Qwen's `config.json`; newer releases keep the fields in `text_config`.
    ///
    /// # Errors
    /// A field that is missing, or no number of its kind.
    pub fn parse(json: &Value) -> Result<TextConfig> {
        let t = json.get("text_config").filter(|t| t.get("hidden_size").is_some()).unwrap_or(json);
        let rope = t.get("rope_scaling").or_else(|| t.get("rope_parameters")).context("config.json lacks rope_scaling")?;
        let sections = numbers(rope, "mrope_section")?;
        let theta = t
            .get("rope_theta")
            .or_else(|| rope.get("rope_theta"))
            .and_then(Value::as_f64)
            .context("config.json lacks rope_theta")?;
        ensure!(theta > 0.0, "config.json: rope_theta is {theta}; it must be above 0, and Qwen2.5-VL has 1e6");
        let config = TextConfig {
            vocabulary: number(t, "vocab_size")?,
            hidden: number(t, "hidden_size")?,
            layers: depth(t, "num_hidden_layers")?,
            heads: number(t, "num_attention_heads")?,
            kv_heads: number(t, "num_key_value_heads")?,
            mlp: number(t, "intermediate_size")?,
            rope_theta: theta,
            mrope: sections
                .try_into()
                .map_err(|s| anyhow::anyhow!("config.json: mrope_section is {s:?}; it must have three parts"))?,
        };
        ensure!(
            config.hidden == config.heads * HEAD_WIDTH,
            "config.json: {} text heads of {HEAD_WIDTH} channels do not make a hidden_size of {}",
            config.heads,
            config.hidden
        );
        ensure!(
            config.heads.is_multiple_of(config.kv_heads),
            "config.json: the text model has {} heads and {} key heads; the second must divide the first",
            config.heads,
            config.kv_heads
        );
        ensure!(
            config.mrope.iter().all(|&pairs| pairs <= HEAD_WIDTH) && config.mrope.iter().sum::<usize>() == HEAD_WIDTH / 2,
            "mrope_section {:?} does not add up to {}",
            config.mrope,
            HEAD_WIDTH / 2
        );
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `Config::infer` finds in a checkpoint of the config itself.
    fn round_trip(config: &Config, json: &Value) -> Result<Config> {
        infer_with(config, json, |_, shape| Some(shape))
    }

    /// The same with each tensor's shape through `change`, which may also leave the tensor out.
    fn infer_with(config: &Config, json: &Value, change: impl Fn(&str, Shape) -> Option<Shape>) -> Result<Config> {
        let manifest = config.manifest();
        let shape_of = |component, name: &str| {
            let found = manifest.iter().find(|(c, n, _)| *c == component && n == name);
            found.and_then(|(_, _, shape)| change(name, shape.clone()))
        };
        Config::infer(&shape_of, json, config.dit.axes)
    }

    #[test]
    fn dimensions_are_read_back() {
        for config in [Config::tiny(Version::V1_0), Config::tiny(Version::V1_1), Config::full(Version::V1_1)] {
            assert_eq!(round_trip(&config, &config.qwen_json(|_| Some(1))).unwrap(), config);
        }
        let config = Config::tiny(Version::V1_1);
        let mut newer = config.qwen_json(|_| None);
        newer["text_config"] = newer.clone(); // newer releases nest the text model's fields
        newer.as_object_mut().unwrap().retain(|key, _| ["text_config", "vision_config"].contains(&key.as_str()));
        assert_eq!(round_trip(&config, &newer).unwrap(), config);
    }

    #[test]
    fn no_depth_is_believed_beyond_reason() {
        let config = Config::tiny(Version::V1_1);
        let mut json = config.qwen_json(|_| None);
        for depth in [1001, 900_000] {
            json["num_hidden_layers"] = depth.into();
            let text = round_trip(&config, &json).unwrap_err().to_string();
            assert!(text.contains(&format!("num_hidden_layers is {depth}; it may be at most 1000")), "{text}");
        }
        json["num_hidden_layers"] = 1000.into();
        assert_eq!(round_trip(&config, &json).unwrap().text.layers, 1000);
        // A block that lies beyond is not counted, however many names a file has.
        let block = |name: &str| [999, 1000].map(|i| format!("single_blocks.{i}.linear1.weight")).contains(&name.into());
        let shape_of = |component, name: &str| {
            let manifest = config.manifest();
            let found = manifest.iter().find(|(c, n, _)| {
                *c == component && (n == name || (block(name) && n.contains("single_blocks.0.linear1.weight")))
            });
            found.map(|(_, _, shape)| shape.clone())
        };
        let found = Config::infer(&shape_of, &config.qwen_json(|_| None), config.dit.axes).unwrap();
        assert_eq!(found.dit.depth_single, 1000);
    }

    #[test]
    fn no_extent_is_believed_beyond_reason() {
        let config = Config::tiny(Version::V1_1);
        let mut json = config.qwen_json(|_| None);
        json["vocab_size"] = (1 << 20).into();
        assert_eq!(round_trip(&config, &json).unwrap().text.vocabulary, 1 << 20);
        json["vocab_size"] = ((1 << 20) + 1).into();
        let text = round_trip(&config, &json).unwrap_err().to_string();
        assert!(text.contains("vocab_size is 1048577; it must be a number from 1 to 1048576"), "{text}");
        let of_width = |extent: usize| {
            let changed =
                move |name: &str, shape| Some(if name == "vector_in.in_layer.weight" { Shape::from([1, extent]) } else { shape });
            infer_with(&config, &config.qwen_json(|_| None), changed)
        };
        assert_eq!(of_width(1 << 20).unwrap().dit.vec_in, 1 << 20);
        let text = of_width((1 << 20) + 1).unwrap_err().to_string();
        assert!(text.contains("dimension 1 is not within 1 to 1048576"), "{text}");
    }

    #[test]
    fn rotary_parts_cannot_overflow_to_a_right_sum() {
        let config = Config::tiny(Version::V1_1);
        let mut json = config.qwen_json(|_| None);
        json["rope_scaling"]["mrope_section"] = serde_json::json!([u64::MAX, 33, 32]);
        let text = round_trip(&config, &json).unwrap_err().to_string();
        assert!(text.contains("mrope_section [18446744073709551615, 33, 32] does not add up to 64"), "{text}");
        let mut wide = config.clone();
        wide.dit.axes = [usize::MAX - 1, 66, 64];
        let text = round_trip(&wide, &config.qwen_json(|_| None)).unwrap_err().to_string();
        assert!(text.contains("rotary axes"), "{text}");
    }

    #[test]
    fn latents_of_another_width_are_refused() {
        let config = Config::tiny(Version::V1_1);
        let halved = |name: &str, mut shape: Shape| {
            if ["img_in.weight", "decoder.conv_in.weight"].contains(&name) {
                shape.0[1] /= 2;
            }
            Some(shape)
        };
        let text = infer_with(&config, &config.qwen_json(|_| None), halved).unwrap_err().to_string();
        assert!(text.contains("8 latent channels, the transformer 32 a token"), "{text}");
    }

    #[test]
    fn a_block_missing_in_between_does_not_shorten_the_stack() {
        let config = Config::tiny(Version::V1_1);
        let without = |name: &str, shape| (!name.starts_with("single_blocks.1.")).then_some(shape);
        assert_eq!(infer_with(&config, &config.qwen_json(|_| None), without).unwrap(), config);
    }

    proptest! {
        #[test]
        fn damaged_config_json_never_panics(at in 0usize..1200, byte in any::<u8>(), digits in 0usize..12) {
            let config = Config::tiny(Version::V1_1);
            let mut text = config.qwen_json(|_| Some(7)).to_string().into_bytes();
            let at = at % text.len();
            match text[at].is_ascii_digit() {
                true => drop(text.splice(at..at + 1, vec![b'0' + byte % 10; digits])),
                false => text[at] = byte,
            }
            if let Ok(json) = serde_json::from_slice(&text) {
                let _ = round_trip(&config, &json);
            }
        }
    }
}
