//! What `config.json` says of the text encoder, where there is none: from the shapes of the tensors, and from the notes of a GGUF file.
//!
//! What neither tells is that of Qwen2.5-VL, where the vision tower is its: all sizes of Qwen2.5-VL have the same one but for its output.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::file::Notes;
use super::recipe::{Recipe, row_elements};
use super::words::shown;
use super::{ModelError, Result};
use crate::model::text::EMBEDDINGS;

/// Channels of a head of the text model.
const HEAD: usize = 128;
/// Channels, blocks and heads of the released vision tower, and of how many blocks one sees the whole picture.
const VISION: [usize; 4] = [1280, 32, 16, 8];

/// The configuration of the text encoder with these tensors, by canonical name.
///
/// # Errors
/// A tensor is missing, or the vision tower is not the released one and `notes` do not tell its heads.
pub(super) fn qwen_config(recipes: &BTreeMap<String, Recipe>, notes: &Notes) -> Result<Value> {
    let [vocabulary, hidden] = matrix(recipes, EMBEDDINGS)?;
    let [q, _] = matrix(recipes, "model.layers.0.self_attn.q_proj.weight")?;
    let [k, _] = matrix(recipes, "model.layers.0.self_attn.k_proj.weight")?;
    let [mlp, _] = matrix(recipes, "model.layers.0.mlp.gate_proj.weight")?;
    let [vision_hidden, _] = matrix(recipes, "visual.patch_embed.proj.weight")?;
    let [vision_mlp, _] = matrix(recipes, "visual.blocks.0.mlp.gate_proj.weight")?;
    let [out, _] = matrix(recipes, "visual.merger.mlp.2.weight")?;
    let count = |name: fn(usize) -> String| (0..).take_while(|i| recipes.contains_key(&name(*i))).count();
    let depth = count(|i| format!("visual.blocks.{i}.norm1.weight"));
    let note = |name: &str| notes.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let (heads, pattern) = match (note("clip.vision.attention.head_count"), note("clip.vision.n_wa_pattern")) {
        (Some(heads), Some(pattern @ 1..)) => (heads, pattern),
        _ if [vision_hidden, depth] == VISION[..2] => (VISION[2], VISION[3]),
        _ => {
            return Err(ModelError::new(format!(
                "its vision tower has {vision_hidden} channels and {depth} blocks, where Qwen2.5-VL has {} and {}, and no file says \
                 how many heads that are; put config.json of the model beside it",
                VISION[0], VISION[1]
            )));
        }
    };
    let sections = match notes.get("qwen2vl.rope.dimension_sections").and_then(Value::as_array) {
        Some(sections) => sections.iter().take(3).cloned().collect(),
        None => json!([16, 24, 24]),
    };
    Ok(json!({
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": count(|i| format!("model.layers.{i}.input_layernorm.weight")),
        "num_attention_heads": q / HEAD, "num_key_value_heads": k / HEAD,
        "rope_theta": notes.get("qwen2vl.rope.freq_base").cloned().unwrap_or(json!(1e6)),
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
        "vision_config": {
            "depth": depth, "hidden_size": vision_hidden, "num_heads": heads, "intermediate_size": vision_mlp, "out_hidden_size": out,
            "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112,
            "fullatt_block_indexes": (0..depth).filter(|i| (i + 1) % pattern == 0).collect::<Vec<_>>(),
        },
    }))
}

/// Rows of a tensor, and elements of a row.
fn matrix(recipes: &BTreeMap<String, Recipe>, name: &str) -> Result<[usize; 2]> {
    let shape = recipes.get(name).map(|recipe| &recipe.spec().shape);
    let rows = shape.and_then(|shape| Some([*shape.0.first()?, row_elements(shape)]));
    rows.ok_or_else(|| {
        ModelError::new(format!("the text encoder lacks {}; fetch its file again, or put config.json beside it", shown(name)))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{AXES, Config, Version};
    use crate::tensor::{Component, Shape};
    use crate::weights::file::WeightFile;
    use crate::weights::recipe::Stored;

    /// Recipes with the shapes of a text encoder, in a sparse file.
    fn recipes(config: &Config) -> BTreeMap<String, Recipe> {
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (_, name, _, shape) in config.checkpoint().into_iter().filter(|(of, ..)| *of == Component::Qwen) {
            let bytes = 2 * shape.elements();
            header.insert(name, json!({"dtype": "BF16", "shape": shape.0, "data_offsets": [end, end + bytes]}));
            end += bytes;
        }
        let header = Value::Object(header).to_string();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len((8 + header.len() + end) as u64).unwrap();
        let file = Arc::new(WeightFile::open(&path).unwrap());
        file.tensors().map(|(name, _)| (name.to_string(), Recipe::Stored(Stored::new(&file, name).unwrap()))).collect()
    }

    fn inferred(config: &Config, notes: Value) -> Result<Config> {
        let json = qwen_config(&recipes(config), notes.as_object().unwrap())?;
        let manifest = config.manifest();
        let shape_of = |component, name: &str| -> Option<Shape> {
            manifest.iter().find(|(of, own, _)| *of == component && own == name).map(|(_, _, shape)| shape.clone())
        };
        Ok(Config::infer(&shape_of, &json, AXES).unwrap())
    }

    #[test]
    fn the_released_text_encoder_needs_no_configuration() {
        let full = Config::full(Version::V1_1);
        assert_eq!(inferred(&full, json!({})).unwrap(), full);
    }

    #[test]
    fn another_one_needs_it_or_the_notes_of_its_file() {
        let tiny = Config::tiny(Version::V1_1);
        let text = inferred(&tiny, json!({})).unwrap_err().to_string();
        assert!(text.contains("160 channels and 4 blocks, where Qwen2.5-VL has 1280 and 32"), "{text}");
        assert!(text.contains("put config.json of the model beside it"), "{text}");
        let notes = json!({
            "clip.vision.attention.head_count": 2, "clip.vision.n_wa_pattern": 2, "qwen2vl.rope.freq_base": 5e5,
            "qwen2vl.rope.dimension_sections": [8, 28, 28, 0],
        });
        let mut wanted = tiny.clone();
        (wanted.text.rope_theta, wanted.text.mrope) = (5e5, [8, 28, 28]);
        assert_eq!(inferred(&tiny, notes).unwrap(), wanted);
        let text = qwen_config(&BTreeMap::new(), &Notes::new()).unwrap_err().to_string();
        assert!(text.contains("the text encoder lacks model.embed_tokens.weight"), "{text}");
    }
}
