//! Reading a `tokenizer.json` of Qwen's kind: byte-level BPE after NFC, split by the pattern of Qwen2.5.
//!
//! The tokenizers crate could read the file itself, but it panics on some malformed ones, numbers added
//! tokens anew instead of keeping their ids, and parses the 7 MB vocabulary twice to find out what it is. It would also
//! run any pattern that a file holds, and some patterns never end or panic: so only the one of Qwen2.5 is taken.

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

/// Text to ids. Neither the post-processor, which adds nothing in this family, nor the decoder is set.
pub(super) type Bpe = TokenizerImpl<BPE, NFC, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// How Qwen2.5 cuts text into the pieces that are merged on their own. Its `\s*[\r\n]+` steps back once for each space of a
/// run, and onig panics after ten million steps: callers bound the text.
const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Most bytes of a token; the longest of Qwen2.5 is a run of so many spaces.
pub(super) const LONGEST: usize = 128;

/// Most ids; each is below this, as rows of the text model's embedding are.
const IDS: u32 = 1 << 20;

/// Most added tokens; Qwen2.5 has 22. The crate compares each with all.
const ADDED: usize = 1024;

/// The fields that decide ids; padding and truncation are ignored, a sequence is exactly its tokens.
#[derive(Deserialize)]
struct File {
    added_tokens: Vec<Added>,
    normalizer: Option<Normalizer>,
    pre_tokenizer: Step,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

impl Added {
    fn token(self) -> AddedToken {
        let Added { content, single_word, lstrip, rstrip, normalized, special, .. } = self;
        AddedToken { content, single_word, lstrip, rstrip, normalized, special }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Normalizer {
    #[serde(rename = "NFC")]
    Nfc,
}

/// One way to cut text, or several in turn. Fields that no step of Qwen2.5 has are ignored.
#[derive(Deserialize)]
struct Step {
    r#type: String,
    #[serde(default)]
    pretokenizers: Vec<Step>,
    pattern: Option<Pattern>,
    behavior: Option<String>,
    #[serde(default)]
    invert: bool,
    #[serde(default)]
    add_prefix_space: bool,
    #[serde(default)]
    use_regex: bool,
}

#[derive(Deserialize)]
struct Pattern {
    #[serde(rename = "Regex")]
    regex: Option<String>,
}

impl Step {
    /// Whether it is a split by the one pattern, then bytes.
    fn is_qwens(&self) -> bool {
        let [split, bytes] = &self.pretokenizers[..] else { return false };
        let pattern = split.pattern.as_ref().and_then(|pattern| pattern.regex.as_deref());
        self.r#type == "Sequence"
            && (split.r#type == "Split" && pattern == Some(PATTERN) && split.behavior.as_deref() == Some("Isolated"))
            && (bytes.r#type == "ByteLevel" && !split.invert && !bytes.add_prefix_space && !bytes.use_regex)
    }
}

/// A split by the pattern, then bytes.
fn pre_tokenizer() -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(PATTERN.to_string());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(|e| anyhow!("the pattern: {e}"))?;
    Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]).into())
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

/// A tokenizer, with what its file says of its size.
pub(super) struct Parsed {
    pub bpe: Bpe,
    pub highest_id: u32,
    /// Bytes of its longest token.
    pub longest: usize,
}

/// The tokenizer that the text of a `tokenizer.json` describes.
pub(super) fn parse(json: &[u8]) -> Result<Parsed> {
    let file: File = serde_json::from_slice(json).context("this is not a byte-pair tokenizer.json; use the one of Qwen2.5-VL")?;
    ensure!(
        file.pre_tokenizer.is_qwens(),
        "the pre_tokenizer is not that of Qwen2.5, a split by its pattern and then into bytes; use the tokenizer.json of \
         Qwen2.5-VL"
    );
    check_added(&file.added_tokens)?;
    let added = || file.added_tokens.iter();
    let (ordinary, vocabulary) = (file.model.vocab.values().copied(), file.model.vocab.keys());
    let highest_id = ordinary.chain(added().map(|token| token.id)).max().unwrap_or(0);
    ensure!(highest_id < IDS, "a token has id {highest_id}; ids must be below {IDS}, and those of Qwen2.5 are below 151665");
    // A character of the vocabulary's alphabet stands for a byte.
    let longest = vocabulary.map(|token| token.chars().count()).chain(added().map(|token| token.content.len())).max();
    let longest = longest.unwrap_or(0);
    ensure!(longest <= LONGEST, "a token has {longest} bytes; the longest of Qwen2.5 has {LONGEST}");
    let mut bpe = Bpe::new(file.model.build()?);
    bpe.with_normalizer(file.normalizer.map(|Normalizer::Nfc| NFC));
    bpe.with_pre_tokenizer(Some(pre_tokenizer()?));
    let (ids, tokens): (Vec<u32>, Vec<AddedToken>) = file.added_tokens.into_iter().map(|added| (added.id, added.token())).unzip();
    bpe.add_tokens(&tokens);
    for (id, token) in ids.into_iter().zip(&tokens) {
        let found = bpe.token_to_id(&token.content);
        // Ids are given in sequence from the vocabulary's size on, whatever the file says.
        ensure!(
            found == Some(id),
            "added token {:?} has id {id} in the file but would get {found:?}; let ids follow \
             the vocabulary's in order without gaps, or put the token in the vocabulary too",
            token.content
        );
    }
    Ok(Parsed { bpe, highest_id, longest })
}

/// Added tokens must stand for themselves alone, wherever they are.
fn check_added(tokens: &[Added]) -> Result<()> {
    ensure!(tokens.len() <= ADDED, "there are {} added tokens; at most {ADDED} are read, and Qwen2.5 has 22", tokens.len());
    for token in tokens {
        let flags = [
            ("single_word", token.single_word),
            ("lstrip", token.lstrip),
            ("rstrip", token.rstrip),
            ("normalized", token.normalized),
        ];
        if let Some((flag, _)) = flags.iter().find(|(_, on)| *on) {
            anyhow::bail!(
                "added token {} sets {flag}, which none of Qwen2.5 does; use the tokenizer.json of Qwen2.5-VL",
                token.id
            );
        }
    }
    Ok(())
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
    use serde_json::{Value, json};

    /// A vocabulary of three tokens with one added, and `model` inside the model.
    fn file(model: &str, id: u32) -> Value {
        let model: Value = serde_json::from_str(&format!("{{{model}}}")).unwrap();
        let mut file = json!({
            "added_tokens": [{"id": id, "content": "<x>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
            "model": {"vocab": {"a": 0, "b": 1, "ab": 2}},
        });
        file["model"].as_object_mut().unwrap().extend(model.as_object().unwrap().clone());
        file
    }

    fn fault(file: &Value) -> String {
        format!("{:#}", parse(file.to_string().as_bytes()).err().expect("a tokenizer that is refused"))
    }

    const MERGES: &str = r#""merges": ["a b"]"#;

    #[test]
    fn merges_are_lines_or_pairs() {
        for merges in [MERGES, r#""merges": [["a", "b"]]"#] {
            let Parsed { bpe, highest_id, longest } = parse(file(merges, 3).to_string().as_bytes()).unwrap();
            assert_eq!((highest_id, longest), (3, 3));
            assert_eq!(bpe.encode_fast("ab<x>a", false).unwrap().get_ids(), [2, 3, 0]);
        }
    }

    #[test]
    fn files_that_would_give_other_ids_are_refused() {
        let message = |model: &str, id| fault(&file(model, id));
        assert!(message(r#""merges": []"#, 7).contains("id 7"));
        assert!(message(r#""merges": ["ab"]"#, 3).contains("two tokens"));
        assert!(message(r#""merges": ["a c"]"#, 3).contains("vocabulary"));
        let prefix = r#""merges": ["a b"], "continuing_subword_prefix": "long""#;
        assert!(message(prefix, 3).contains("continuing_subword_prefix"));
    }

    #[test]
    fn only_the_pre_tokenizer_of_qwen_is_taken() {
        let sound = file(MERGES, 3);
        let changed = |pointer: &str, value: Value| {
            let mut changed = sound.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            fault(&changed)
        };
        let (split, bytes) = ("/pre_tokenizer/pretokenizers/0", "/pre_tokenizer/pretokenizers/1");
        for (pointer, value) in [
            ("/pre_tokenizer".to_string(), json!({"type": "FixedLength", "length": 0})),
            ("/pre_tokenizer".to_string(), sound.pointer(bytes).unwrap().clone()),
            ("/pre_tokenizer".to_string(), sound.pointer(split).unwrap().clone()),
            (format!("{split}/pattern"), json!({"Regex": "(a|aa)+$|(.|..)+\u{1}"})),
            (format!("{split}/pattern"), json!({"String": " "})),
            (format!("{split}/behavior"), json!("Removed")),
            (format!("{split}/invert"), json!(true)),
            (format!("{bytes}/use_regex"), json!(true)),
            (format!("{bytes}/add_prefix_space"), json!(true)),
            (format!("{bytes}/type"), json!("Whitespace")),
        ] {
            let text = changed(&pointer, value);
            assert!(text.contains("pre_tokenizer is not that of Qwen2.5"), "{pointer}: {text}");
        }
    }

    #[test]
    fn what_would_take_long_or_much_is_refused() {
        let sound = file(MERGES, 3);
        for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
            let mut changed = sound.clone();
            changed["added_tokens"][0][flag] = json!(true);
            assert!(fault(&changed).contains(flag));
        }
        let is_taken = |file: &Value| parse(file.to_string().as_bytes()).is_ok();
        let added = |count: usize| {
            let mut many = sound.clone();
            many["added_tokens"] = (0..count).map(|i| json!({"id": i + 3, "content": format!("<{i}>")})).collect();
            many
        };
        assert!(is_taken(&added(1024)) && fault(&added(1025)).contains("1025 added tokens"));
        // In a vocabulary, ids need not be without gaps.
        let with = |token: String, id: u32| {
            let mut changed = sound.clone();
            changed["added_tokens"] = json!([]);
            changed["model"]["vocab"][token] = json!(id);
            changed
        };
        assert!(is_taken(&with("c".repeat(128), 3)) && fault(&with("c".repeat(129), 3)).contains("129 bytes"));
        assert!(is_taken(&with("c".into(), (1 << 20) - 1)) && fault(&with("c".into(), 1 << 20)).contains("id 1048576"));
        assert!(fault(&with("c".into(), u32::MAX)).contains("id 4294967295"));
    }
}
