//! From a prompt to token ids.
//!
//! Quoted text is spelled letter by letter, so that the encoder sees the letters to be drawn. The reference does
//! this with two tokenisations, and its side effects (apostrophes count as quotes, some letters keep
//! their wrapping) are part of what the model was trained on; they are kept bit for bit.

use anyhow::{Result, anyhow, bail, ensure};

use super::tokenizer_file::{Bpe, Parsed, parse};
use super::{LABEL, MAX_TEXT_MOST, PICTURE, PREFIX, PromptSettings, PromptTokens, SUFFIX};

const IMAGE_PAD: &str = "<|image_pad|>";
const VIDEO_PAD: &str = "<|video_pad|>";
const VISION_START: &str = "<|vision_start|>";
const VISION_END: &str = "<|vision_end|>";

/// Added tokens that the template needs.
const NEEDED: [&str; 5] = ["<|im_start|>", "<|im_end|>", VISION_START, VISION_END, IMAGE_PAD];

/// Most bytes of text that NFC makes one byte of: 7 bytes can become 2 (U+1FBE, U+0308, U+0301 become U+0390).
const NFC_SHRINKS: usize = 4;

/// Most tokens that are looked at beyond those that can be kept. Where a text is cut its last tokens change; so far away from
/// the kept ones that these do not.
const BEYOND: usize = 1024;

/// A `tokenizer.json` of Qwen's kind (byte-level BPE), with the template already tokenised.
pub struct Tokenizer {
    bpe: Bpe,
    highest_id: u32,
    /// Bytes of the longest token.
    longest: usize,
    /// Ids of the template through `<|vision_start|>`.
    prefix: Vec<u32>,
    /// The same with a label before the picture.
    labelled: Vec<u32>,
    image_pad: u32,
    /// Ids of `“` alone and of `”` alone; one each in the released vocabulary (2073, 854).
    wrap: [Vec<u32>; 2],
}

impl Tokenizer {
    /// The tokenizer in the text of a `tokenizer.json`. Special tokens are found by their content; their ids
    /// and the vocabulary may be any.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        let Parsed { bpe, highest_id, longest } = parse(json)?;
        let added = bpe.get_added_vocabulary().get_vocab();
        let missing: Vec<&str> = NEEDED.into_iter().filter(|t| !added.contains_key(*t)).collect();
        ensure!(
            missing.is_empty(),
            "the tokenizer has no added token {}; use the tokenizer.json of Qwen2.5-VL",
            missing.join(", ")
        );
        let [image_pad, vision_start, vision_end] = [IMAGE_PAD, VISION_START, VISION_END].map(|token| added[token]);
        let through_start = |text: &str| {
            let mut ids = encode(&bpe, &format!("{text}{PICTURE}"))?;
            ensure!(
                ids.len() > 3 && ids.ends_with(&[vision_start, image_pad, vision_end]),
                "the tokenizer does not keep {PICTURE} apart from the text before it; use the \
                 tokenizer.json of Qwen2.5-VL"
            );
            ids.truncate(ids.len() - 2);
            anyhow::Ok(ids)
        };
        let (prefix, labelled) = (through_start(PREFIX)?, through_start(&format!("{PREFIX}{LABEL}"))?);
        let wrap = [encode(&bpe, "“")?, encode(&bpe, "”")?];
        ensure!(
            wrap.iter().all(|ids| !ids.is_empty()),
            "the tokenizer has no tokens for the quotes “ and ”; use a byte-level vocabulary"
        );
        Ok(Tokenizer { bpe, highest_id, longest, prefix, labelled, image_pad, wrap })
    }

    /// Highest id + 1: how many rows the embedding must have.
    pub fn vocabulary_size(&self) -> usize {
        self.highest_id as usize + 1
    }

    /// Id of a token by its content, for comparison with the ids in the model's configuration.
    pub fn token_id(&self, content: &str) -> Option<u32> {
        self.bpe.token_to_id(content)
    }

    /// Position of the picture's first token, the same for every prompt.
    pub fn image_start(&self, labelled: bool) -> usize {
        self.template(labelled).len()
    }

    fn template(&self, labelled: bool) -> &[u32] {
        if labelled { &self.labelled } else { &self.prefix }
    }

    /// Position of the token before `<|vision_start|>` (the colon of `User Prompt:`), where the kept
    /// rows of v1.0 and v1.1 begin.
    pub fn cut(&self) -> usize {
        self.prefix.len() - 2
    }

    /// The whole text for `prompt` and a picture of `image_tokens` merged tokens, as ids. Of a prompt that is longer than
    /// any that `settings` would keep whole, only the front is looked at.
    ///
    /// # Errors
    /// The prompt holds a token that stands for a picture or a video, or the picture has no tokens.
    pub fn encode_prompt(&self, prompt: &str, image_tokens: usize, settings: &PromptSettings) -> Result<PromptTokens> {
        ensure!(image_tokens > 0, "the picture has 0 tokens; the encoder needs at least 1");
        for token in [IMAGE_PAD, VIDEO_PAD] {
            if prompt.contains(token) {
                bail!(
                    "the prompt contains {token}, which would stand for a second picture or a video; \
                     leave it out of the prompt"
                );
            }
        }
        let read = self.front(prompt, settings.max_text);
        let mut ids = self.template(settings.labelled).to_vec();
        let image_start = ids.len();
        ids.resize(image_start + image_tokens, self.image_pad);
        for piece in pieces(read) {
            let piece = encode(&self.bpe, &piece)?;
            ids.extend_from_slice(self.unwrapped(&piece));
        }
        let masked = (0..ids.len()).filter(|i| ids[*i] == 0).collect();
        Ok(PromptTokens { ids, masked, image_start, image_tokens, unread: prompt.len() - read.len() })
    }

    /// The part of a prompt that is looked at: all of it, if `most` tokens could be kept and hold it, since no token stands
    /// for more bytes than the longest does.
    fn front<'a>(&self, prompt: &'a str, most: usize) -> &'a str {
        let bytes = NFC_SHRINKS * self.longest.max(1) * most.min(MAX_TEXT_MOST).saturating_add(BEYOND);
        let end = (0..=bytes.min(prompt.len())).rev().find(|&at| prompt.is_char_boundary(at));
        &prompt[..end.unwrap_or(0)]
    }

    /// Ids of a piece without the quotes around it, if they are tokens of their own. A letter that the
    /// vocabulary merges with one of them (`“A`, `.”`, 14 in the released one) keeps both.
    fn unwrapped<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        let [open, close] = &self.wrap;
        if ids.len() > open.len() + close.len() && ids.starts_with(open) && ids.ends_with(close) {
            &ids[open.len()..ids.len() - close.len()]
        } else {
            ids
        }
    }
}

/// Ids of a text: no special token is added, those in the text are recognised.
fn encode(bpe: &Bpe, text: &str) -> Result<Vec<u32>> {
    let encoding = bpe.encode_fast(text, false);
    let encoding = encoding.map_err(|e| anyhow!("cannot split {text:?} into tokens: {e}"))?;
    Ok(encoding.get_ids().to_vec())
}

/// `<|vision_end|>`, the prompt and the end of the template, in the pieces that are tokenised one by one.
///
/// The reference walks the whole text and takes the tokens from `<|vision_end|>` on. That is this walk:
/// an added token separates what is before it from what is after it, and the only quotes before it are two
/// which the reference skips.
fn pieces(prompt: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut outside = String::from(VISION_END);
    let mut inside = false;
    // By character, not byte; and through the end of the template, which an unclosed quote spells out too.
    for c in prompt.chars().chain(SUFFIX.chars()) {
        match c {
            // Kinds are not matched with each other, and an apostrophe is a quote.
            '\'' | '"' | '“' | '”' => {
                outside.push('"');
                if !inside {
                    pieces.push(std::mem::take(&mut outside));
                }
                inside = !inside;
            }
            c if inside => pieces.push(format!("“{c}”")),
            c => outside.push(c),
        }
    }
    if !outside.is_empty() {
        pieces.push(outside);
    }
    pieces
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::weights::tokenizer::{TINY_ADDED, full_tokenizer_json, tiny_tokenizer_json};
    use proptest::prelude::*;
    use std::sync::OnceLock;

    /// The released vocabulary.
    pub fn real() -> &'static Tokenizer {
        static REAL: OnceLock<Tokenizer> = OnceLock::new();
        REAL.get_or_init(|| Tokenizer::from_bytes(&full_tokenizer_json().unwrap()).unwrap())
    }

    fn tiny_json() -> &'static [u8] {
        static JSON: OnceLock<Vec<u8>> = OnceLock::new();
        JSON.get_or_init(|| tiny_tokenizer_json(&TINY_ADDED).unwrap())
    }

    fn tiny() -> &'static Tokenizer {
        static TINY: OnceLock<Tokenizer> = OnceLock::new();
        TINY.get_or_init(|| Tokenizer::from_bytes(tiny_json()).unwrap())
    }

    /// Ids after `<|vision_end|>`.
    fn tail(tokenizer: &Tokenizer, prompt: &str) -> Vec<u32> {
        let tokens = tokenizer.encode_prompt(prompt, 4, &PromptSettings::default()).unwrap();
        tokens.ids[tokens.shared_prefix()..].to_vec()
    }

    /// The reference's rule word for word: the whole text, walked with its indices, joined at the first
    /// `<|vision_end|>` of both tokenisations.
    fn by_the_letter(tokenizer: &Tokenizer, prompt: &str) -> Vec<u32> {
        let text = format!("{PREFIX}{PICTURE}{prompt}{SUFFIX}");
        let (mut pieces, mut buffer, mut inside) = (Vec::new(), String::new(), false);
        for (i, c) in text.chars().enumerate() {
            let c = if "'“”".contains(c) { '"' } else { c };
            if c == '"' && i > 155 {
                buffer.push(c);
                if !inside {
                    pieces.push(std::mem::take(&mut buffer));
                }
                inside = !inside;
            } else if inside {
                pieces.push(format!("“{c}”"));
            } else {
                buffer.push(c);
            }
        }
        pieces.push(buffer);
        let end = tokenizer.token_id(VISION_END).unwrap();
        let mut ids = encode(&tokenizer.bpe, &text).unwrap();
        ids.truncate(ids.iter().position(|id| *id == end).unwrap());
        let [open, close] = &tokenizer.wrap;
        let mut spelled = Vec::new();
        for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
            let mut piece = encode(&tokenizer.bpe, &piece).unwrap();
            if piece.starts_with(open) && piece.ends_with(close) {
                piece.drain(..open.len());
                piece.truncate(piece.len() - close.len());
            }
            spelled.extend(piece);
        }
        let from = spelled.iter().position(|id| *id == end).unwrap();
        ids.extend_from_slice(&spelled[from..]);
        ids
    }

    #[test]
    fn fourteen_characters_keep_their_quotes() {
        assert_eq!(real().wrap, [[2073], [854]]);
        let kept: [(char, [u32; 2]); 14] = [
            ('A', [47249, 854]),
            ('I', [10168, 854]),
            ('(', [70170, 854]),
            ('!', [2073, 17839]),
            (')', [2073, 98282]),
            (',', [2073, 2419]),
            ('.', [2073, 1987]),
            ('=', [2073, 44121]),
            ('?', [2073, 12390]),
            (' ', [2073, 18987]),
            ('。', [2073, 32945]),
            ('！', [2073, 75758]),
            ('？', [2073, 81264]),
            ('…', [2073, 50179]),
        ];
        let spelled = |c: char| {
            let ids = tail(real(), &format!("\"{c}\""));
            ids[1..ids.len() - 6].to_vec()
        };
        for (c, ids) in kept {
            assert_eq!(spelled(c), ids, "{c:?}");
        }
        for c in (0x20..0x3000).filter_map(char::from_u32) {
            if !kept.iter().any(|(k, _)| *k == c) && !"'\"“”".contains(c) {
                assert_eq!(spelled(c), encode(&real().bpe, &c.to_string()).unwrap(), "{c:?}");
            }
        }
    }

    #[test]
    fn worked_examples() {
        let end = [151645, 198, 151644, 77091, 198];
        let ends = |ids: &[u32]| [ids, &end].concat();
        let train = [23107, 330, 51, 49, 47249, 854, 10168, 854, 45, 1, 448, 330, 47, 43, 47249, 854, 45, 36, 1];
        let chinese = [
            44063, 108704, 330, 51, 49, 47249, 854, 10168, 854, 45, 1, 65456, 123, 71134, 17714, 330, 47, 43, 47249, 854, 45, 36,
            1,
        ];
        assert_eq!(tail(real(), "Replace 'TRAIN' with 'PLANE'"), ends(&train));
        assert_eq!(tail(real(), "将文本 'TRAIN' 替换为 'PLANE'"), ends(&chinese));
        assert_eq!(tail(real(), ""), end);
    }

    #[test]
    fn an_apostrophe_spells_out_the_rest_of_the_template() {
        let ids = tail(real(), "Add pendant with a ruby around this girl's neck.");
        let expected = [
            3743, 1, 82, 2073, 18987, 77, 68, 66, 74, 2073, 1987, 27, 91, 72, 76, 62, 68, 77, 67, 91, 29, 198, 27, 91, 72, 76,
            62, 82, 83, 64, 81, 83, 91, 29, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198,
        ];
        assert!(ids.ends_with(&expected), "{ids:?}");
        assert!(!ids.contains(&151645));
    }

    #[test]
    fn added_tokens_in_a_prompt() {
        assert!(tail(real(), "a<|im_end|>b").starts_with(&[64, 151645, 65]));
        for token in [IMAGE_PAD, VIDEO_PAD] {
            // Inside quotes too: the reference counts pictures before it spells.
            let error = real().encode_prompt(&format!("draw '{token}'"), 4, &PromptSettings::default()).unwrap_err();
            assert!(error.to_string().contains(token), "{error}");
        }
        assert!(real().encode_prompt("draw", 0, &PromptSettings::default()).is_err());
    }

    #[test]
    fn missing_special_tokens_are_named() {
        let added: Vec<_> = TINY_ADDED.into_iter().filter(|(t, _)| *t != VISION_END).collect();
        let json = tiny_tokenizer_json(&added).unwrap();
        let error = Tokenizer::from_bytes(&json).err().unwrap().to_string();
        assert!(error.contains(VISION_END) && !error.contains(IMAGE_PAD), "{error}");
        let error = Tokenizer::from_bytes(b"{}").err().unwrap().to_string();
        assert!(error.contains("Qwen2.5-VL"), "{error}");
    }

    #[test]
    fn tiny_vocabulary_reads_the_template() {
        let tokenizer = tiny();
        assert_eq!(tokenizer.vocabulary_size(), 1009);
        assert_eq!(real().vocabulary_size(), 151_665);
        for (token, id) in TINY_ADDED {
            assert_eq!(tokenizer.token_id(token), Some(id));
        }
        let colon = tokenizer.token_id(":").unwrap();
        assert_eq!(tokenizer.prefix[tokenizer.cut()], colon);
        assert_eq!(real().prefix[real().cut()], 25);
        // Two tokens for “, one for ”: still the rule of the released vocabulary.
        assert!(tail(tokenizer, "'b'").starts_with(&encode(&tokenizer.bpe, "\"b\"").unwrap()));
    }

    /// A prompt's ids, however long it is.
    fn uncut(tokenizer: &Tokenizer, prompt: &str) -> Vec<u32> {
        let mut ids = tokenizer.prefix.clone();
        ids.push(tokenizer.image_pad);
        for piece in pieces(prompt) {
            ids.extend_from_slice(tokenizer.unwrapped(&encode(&tokenizer.bpe, &piece).unwrap()));
        }
        ids
    }

    #[test]
    fn long_prompts_are_cut_far_behind_what_is_kept() {
        let settings = PromptSettings::default();
        let few = [" ", "a", " \n", "一", "the cat sat on the mat. ", "'a "];
        let more =
            ["\n", "\t ", "ab", "-", "=\r\n", "\u{301}", "1", "\u{1fbe}\u{308}\u{301}", "\u{212a}", "<|im_end|>", "<|im", "   a"];
        // The released vocabulary's longest tokens make its texts the longest ones.
        for (tokenizer, longest, units) in [(real(), 128, &few[..]), (tiny(), 32, &few), (tiny(), 32, &more)] {
            assert_eq!(tokenizer.longest, longest);
            let most = NFC_SHRINKS * longest * (settings.max_text + BEYOND);
            for unit in units {
                let prompt = unit.repeat(most / unit.len() + 300);
                let tokens = tokenizer.encode_prompt(&prompt, 1, &settings).unwrap();
                let kept = settings.cut.min(tokenizer.cut()) + settings.max_text;
                assert!((1..4).contains(&(tokens.unread + most - prompt.len() + 1)), "{unit:?}: {}", tokens.unread);
                assert!(tokens.lost(&settings) > 0, "{unit:?}");
                assert_eq!(tokens.ids[..kept], uncut(tokenizer, &prompt)[..kept], "{unit:?}");
            }
        }
    }

    /// Of ten million spaces and more, the pattern alone would make a panic.
    #[test]
    fn a_hundred_million_bytes_are_no_fault() {
        let most = PromptSettings { max_text: MAX_TEXT_MOST, ..PromptSettings::default() };
        let usual = PromptSettings::default();
        for (unit, tokenizer, settings) in [
            (" ", real(), &most),
            (" ", real(), &usual),
            (" ", tiny(), &most),
            ("' ", tiny(), &usual),
            ("\u{301}", tiny(), &usual),
        ] {
            let prompt = unit.repeat(100_000_000 / unit.len());
            let tokens = tokenizer.encode_prompt(&prompt, 1, settings).unwrap();
            assert!(tokens.unread > 90_000_000 && tokens.lost(settings) > 0, "{unit:?}");
        }
    }

    proptest! {
        /// A prompt of which all tokens are kept is looked at as a whole.
        #[test]
        fn what_fits_is_read(unit in "\\PC{1,4}|[ \n\t]{1,4}", n in 1..700usize) {
            let settings = PromptSettings::default();
            for tokenizer in [real(), tiny()] {
                let prompt = unit.repeat(n);
                let all = uncut(tokenizer, &prompt);
                let Ok(tokens) = tokenizer.encode_prompt(&prompt, 1, &settings) else { continue };
                prop_assert!(tokens.ids == all || all.len() > settings.cut + settings.max_text);
            }
        }

        #[test]
        fn any_prompt_shares_the_prefix(prompt in any::<String>(), image_tokens in 1usize..9) {
            let settings = PromptSettings::default();
            for tokenizer in [real(), tiny()] {
                let empty = tokenizer.encode_prompt("", image_tokens, &settings).unwrap();
                let tokens = tokenizer.encode_prompt(&prompt, image_tokens, &settings).unwrap();
                let shared = empty.shared_prefix();
                prop_assert_eq!(tokens.shared_prefix(), shared);
                prop_assert_eq!(&tokens.ids[..shared], &empty.ids[..shared]);
                let highest = tokens.ids.iter().max().copied().unwrap_or(0) as usize;
                prop_assert!(highest < tokenizer.vocabulary_size());
                tokens.positions((1, image_tokens)).unwrap();
            }
        }

        #[test]
        fn the_walk_is_the_reference_walk(prompt in "([ab!A.? \n]|['\"“”]|é|e\u{301}|。|🦄|<\\|im_end\\|>|<\\|vision_end\\|>){0,24}") {
            for tokenizer in [real(), tiny()] {
                let tokens = tokenizer.encode_prompt(&prompt, 1, &PromptSettings::default()).unwrap();
                prop_assert_eq!(tokens.ids, by_the_letter(tokenizer, &prompt));
            }
        }

        #[test]
        fn mutated_tokenizer_files_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut json = tiny_json().to_vec();
            let at = at.index(json.len());
            json[at] = byte;
            if let Ok(tokenizer) = Tokenizer::from_bytes(&json) {
                let _ = tokenizer.encode_prompt("Replace 'A' with café!", 2, &PromptSettings::default());
            }
        }
    }
}
