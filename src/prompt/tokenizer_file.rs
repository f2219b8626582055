//! Reading a `tokenizer.json` of Qwen's kind: byte-level BPE after NFC, split by a pattern.
//!
//! The tokenizers crate could read the file itself, but it panics on some malformed ones, numbers added
//! tokens anew instead of keeping their ids, and parses the 7 MB vocabulary twice to find out what it is.

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

/// Text to ids. Neither the post-processor, which adds nothing in this family, nor the decoder is set.
pub(super) type Bpe = TokenizerImpl<BPE, NFC, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The fields that decide ids; padding and truncation are ignored, a sequence is exactly its tokens.
#[derive(Deserialize)]
struct File {
    added_tokens: Vec<Added>,
    normalizer: Option<Normalizer>,
    pre_tokenizer: PreTokenizerWrapper,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    #[serde(rename = "NFC")]
    Nfc,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
    merges: Vec<Merge>,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// Older files write a merge as one string, newer ones as a pair.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

impl Merge {
    fn pair(self) -> Result<(String, String)> {
        match self {
            Merge::Pair(a, b) => Ok((a, b)),
            Merge::Line(line) => {
                let pair = line.split_once(' ');
                let (a, b) = pair.with_context(|| format!("the merge {line:?} does not name two tokens"))?;
                Ok((a.to_string(), b.to_string()))
            }
        }
    }
}

/// The tokenizer that the text of a `tokenizer.json` describes, and its highest id.
pub(super) fn parse(json: &[u8]) -> Result<(Bpe, u32)> {
    let file: File = serde_json::from_slice(json).context("this is not a byte-pair tokenizer.json; use the one of Qwen2.5-VL")?;
    let ordinary = file.model.vocab.values().copied();
    let highest = ordinary.chain(file.added_tokens.iter().map(|added| added.id)).max().unwrap_or(0);
    let mut bpe = Bpe::new(file.model.build()?);
    bpe.with_normalizer(file.normalizer.map(|Normalizer::Nfc| NFC));
    bpe.with_pre_tokenizer(Some(file.pre_tokenizer));
    let (ids, tokens): (Vec<u32>, Vec<AddedToken>) = file.added_tokens.into_iter().map(|added| (added.id, added.token)).unzip();
    bpe.add_tokens(&tokens);
    for (id, token) in ids.into_iter().zip(&tokens) {
        let found = bpe.token_to_id(&token.content);
        // Ids are given in sequence from the vocabulary's size on, whatever the file says.
        ensure!(
            found == Some(id),
            "added token {} has id {id} in the file but would get {found:?}; let ids follow \
             the vocabulary's in order without gaps, or put the token in the vocabulary too",
            token.content
        );
    }
    Ok((bpe, highest))
}

impl Model {
    fn build(self) -> Result<BPE> {
        let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let unused = [
            ("dropout", self.dropout.is_some()),
            ("unk_token", self.unk_token.is_some()),
            ("continuing_subword_prefix", some(&self.continuing_subword_prefix)),
            ("end_of_word_suffix", some(&self.end_of_word_suffix)),
            ("byte_fallback", self.byte_fallback),
            ("ignore_merges", self.ignore_merges),
        ];
        let set: Vec<&str> = unused.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        ensure!(
            set.is_empty(),
            "the tokenizer sets {}, which no vocabulary of Qwen2.5 does; use the tokenizer.json of \
             Qwen2.5-VL",
            set.join(", ")
        );
        let merges = self.merges.into_iter().map(Merge::pair).collect::<Result<_>>()?;
        let bpe = BPE::builder().vocab_and_merges(self.vocab, merges).build();
        bpe.map_err(|e| anyhow!("the tokenizer's merges do not fit its vocabulary: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of three tokens with one added, and `model` inside the model.
    fn file(model: &str, id: u32) -> String {
        format!(
            r#"{{"added_tokens": [{{"id": {id}, "content": "<x>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}}], "normalizer": {{"type": "NFC"}},
            "pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": false}}, "model": {{"vocab": {{"a": 0, "b": 1, "ab": 2}}, {model}}}}}"#
        )
    }

    #[test]
    fn merges_are_lines_or_pairs() {
        for merges in [r#""merges": ["a b"]"#, r#""merges": [["a", "b"]]"#] {
            let (bpe, highest) = parse(file(merges, 3).as_bytes()).unwrap();
            assert_eq!(highest, 3);
            assert_eq!(bpe.encode_fast("ab<x>a", false).unwrap().get_ids(), [2, 3, 0]);
        }
    }

    #[test]
    fn files_that_would_give_other_ids_are_refused() {
        let message = |model: &str, id| format!("{:#}", parse(file(model, id).as_bytes()).err().unwrap());
        assert!(message(r#""merges": []"#, 7).contains("id 7"));
        assert!(message(r#""merges": ["ab"]"#, 3).contains("two tokens"));
        assert!(message(r#""merges": ["a c"]"#, 3).contains("vocabulary"));
        let prefix = r#""merges": ["a b"], "continuing_subword_prefix": "long""#;
        assert!(message(prefix, 3).contains("continuing_subword_prefix"));
    }
}
