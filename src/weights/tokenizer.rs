//! The tokenizer files that go with synthetic weights.
//!
//! Qwen2.5's own `tokenizer.json` is embedded (7 MB, 1.9 MB compressed), so that a full-size synthetic model reads
//! prompts as the released one does; a tiny model gets the front of the same vocabulary.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Added tokens of the tiny model: content and id.
pub const TINY_ADDED: [(&str, u32); 8] = [
    ("<|image_pad|>", 1001),
    ("<|vision_start|>", 1002),
    ("<|vision_end|>", 1003),
    ("<|video_pad|>", 1004),
    ("<|vision_pad|>", 1005),
    ("<|endoftext|>", 1006),
    ("<|im_start|>", 1007),
    ("<|im_end|>", 1008),
];

/// Ids below this are single bytes; merge k makes id `BYTES + k`.
const BYTES: usize = 256;

/// The `tokenizer.json` of Qwen2.5, 151,665 tokens.
pub fn full_tokenizer_json() -> Result<Vec<u8>> {
    let packed = include_bytes!("../../assets/tokenizer.json.gz");
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_end(&mut json)
        .context("unpacking the embedded tokenizer.json; the build is damaged")?;
    Ok(json)
}

/// A `tokenizer.json` whose ordinary tokens are those of Qwen2.5 below the lowest id in `added` (content,
/// id), with the same merges among them, normaliser and splitting. At least the 256 bytes must fit below.
pub fn tiny_tokenizer_json(added: &[(&str, u32)]) -> Result<Vec<u8>> {
    let mut json: Value =
        serde_json::from_slice(&full_tokenizer_json()?).context("reading the embedded tokenizer.json; the build is damaged")?;
    let lowest = added.iter().map(|(_, id)| *id as usize).min().unwrap_or(0);
    let vocabulary = json["model"]["vocab"].as_object_mut();
    let vocabulary = vocabulary.context("the embedded tokenizer.json has no vocabulary")?;
    ensure!(
        (BYTES..=vocabulary.len()).contains(&lowest),
        "a tiny tokenizer with added tokens from id {lowest} on; wanted {BYTES} to {}",
        vocabulary.len()
    );
    vocabulary.retain(|_, id| id.as_u64().is_some_and(|id| id < lowest as u64));
    // A reader numbers added tokens in sequence from the vocabulary's size and ignores the ids in the file, unless
    // the vocabulary names them too. No merge makes these entries.
    vocabulary.extend(added.iter().map(|(content, id)| (content.to_string(), json!(id))));
    let merges = json["model"]["merges"].as_array_mut();
    merges.context("the embedded tokenizer.json has no merges")?.truncate(lowest - BYTES);
    let entry = |(content, id): &(&str, u32)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json["added_tokens"] = added.iter().map(entry).collect();
    Ok(serde_json::to_vec(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_vocabularies_are_dense_and_closed() {
        let json: Value = serde_json::from_slice(&tiny_tokenizer_json(&TINY_ADDED).unwrap()).unwrap();
        let vocabulary = json["model"]["vocab"].as_object().unwrap();
        let mut ids: Vec<u64> = vocabulary.values().map(|id| id.as_u64().unwrap()).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..1009));
        let merges = json["model"]["merges"].as_array().unwrap();
        assert_eq!(merges.len(), 1001 - BYTES);
        for (k, merge) in merges.iter().enumerate() {
            let token = merge.as_str().unwrap().replace(' ', "");
            assert_eq!(vocabulary[&token], json!(BYTES + k));
        }
    }

    #[test]
    fn added_ids_must_leave_room_for_the_bytes() {
        let error = tiny_tokenizer_json(&[("<|image_pad|>", 255)]).unwrap_err().to_string();
        assert!(error.contains("255"), "{error}");
        assert!(tiny_tokenizer_json(&[]).is_err());
    }
}
