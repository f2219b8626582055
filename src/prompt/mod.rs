//! From a prompt and a picture to what the encoder reads: token ids, rotary positions, patch rows.
//!
//! The two sides meet in one number: the picture becomes `grid_h * grid_w / 4` merged tokens, and the text
//! holds `<|image_pad|>` that many times. The steps are those of Step1X-Edit v1.0 and v1.1, whose
//! prefix and picture come before the prompt. Knows nothing of devices or of the model's weights.

mod patches;
mod positions;
mod tokenizer_file;
mod tokens;

use anyhow::{Result, ensure};
use serde::Deserialize;

use patches::FIRST_MAX_PIXELS;
pub use patches::{PATCH_VALUES, Patches, Processor, fit, patches, resized, window_order};
pub use positions::PromptTokens;
pub use tokens::Tokenizer;

/// System turn and user turn up to the picture.
const PREFIX: &str = concat!(
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "Given a user prompt, generate an \"Enhanced prompt\" that provides detailed visual descriptions ",
    "suitable for image generation. Evaluate the level of detail in the user prompt:\n",
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and ",
    "spatial relationships to create vivid and concrete scenes.\n",
    "- If the prompt is already detailed, refine and enhance the existing details slightly without ",
    "overcomplicating.\n\n",
    "Here are examples of how to transform or refine prompts:\n",
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, ",
    "sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.\n",
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring ",
    "glowing street lamps, a diverse crowd of people in colorful clothing, and a double-decker bus ",
    "passing by towering glass skyscrapers.\n\n",
    "Please generate only the enhanced description for the prompt below and avoid including any ",
    "additional commentary or evaluations:\nUser Prompt:"
);

/// What the template of newer releases of transformers puts before a picture.
const LABEL: &str = "Picture 1: ";

/// The picture's place in the text, before `<|image_pad|>` is repeated.
const PICTURE: &str = "<|vision_start|><|image_pad|><|vision_end|>";

/// What follows the prompt.
const SUFFIX: &str = "<|im_end|>\n<|im_start|>assistant\n";

/// Largest `max_text`, so that a settings file cannot ask for any amount of memory.
const MAX_TEXT_MOST: usize = 1 << 14;

/// What no tensor tells about the encoder's input. The defaults are those of Step1X-Edit v1.0 and v1.1; an
/// optional `step1x.json` beside a model's files may set any of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptSettings {
    /// Rows of the encoder's output dropped from the front: index of the first kept token. 217 is the
    /// colon before the picture, not the picture's first token (219).
    pub cut: usize,
    /// Most rows kept; the connector's fixed sequence length.
    pub max_text: usize,
    /// The picture is enlarged until it has at least this many pixels.
    pub min_pixels: usize,
    /// The picture is shrunk until it has at most this many pixels, up to the rounding to 28.
    pub max_pixels: usize,
    /// `Picture 1: ` stands before the picture. Not a file's to say: it follows from the rules of the edit, as does the next.
    #[serde(skip)]
    pub labelled: bool,
    /// Which processor the picture goes through.
    #[serde(skip)]
    pub processor: Processor,
}

impl Default for PromptSettings {
    fn default() -> Self {
        PromptSettings {
            cut: 217,
            max_text: 640,
            min_pixels: 256 * 28 * 28,
            max_pixels: 324 * 28 * 28,
            labelled: false,
            processor: Processor::Pillow,
        }
    }
}

impl PromptSettings {
    /// Whether the settings can hold for this tokenizer; the error names the setting and its range.
    pub fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        let picture = tokenizer.image_start(self.labelled);
        // Kept rows before the picture come from the prefix that all requests share.
        ensure!(
            self.cut <= picture,
            "`cut` is {}, but with this tokenizer the picture's tokens begin at {picture} and the first \
             token worth keeping is {}; set `cut` to that, or use the tokenizer.json of the encoder",
            self.cut,
            tokenizer.cut()
        );
        let possible = picture - self.cut + 1..=MAX_TEXT_MOST;
        ensure!(
            possible.contains(&self.max_text),
            "`max_text` is {}; set {} (so that a token of the picture is kept) to {MAX_TEXT_MOST}; the models use 640",
            self.max_text,
            possible.start()
        );
        ensure!(
            self.min_pixels <= self.max_pixels && self.max_pixels <= FIRST_MAX_PIXELS,
            "`min_pixels` is {} and `max_pixels` is {}; set min_pixels <= max_pixels <= {FIRST_MAX_PIXELS}",
            self.min_pixels,
            self.max_pixels
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_default_to_v1_1_and_refuse_unknown_names() {
        let read = |text| serde_json::from_str::<PromptSettings>(text);
        assert_eq!(read("{}").unwrap(), PromptSettings::default());
        assert_eq!(read(r#"{"cut": 90}"#).unwrap().cut, 90);
        assert!(read(r#"{"cutt": 90}"#).unwrap_err().to_string().contains("cutt"));
    }

    #[test]
    fn settings_are_checked_against_the_tokenizer() {
        let tokenizer = tokens::tests::real();
        let default = PromptSettings::default();
        default.check(tokenizer).unwrap();
        assert_eq!(tokenizer.cut(), default.cut);
        let message = |settings: PromptSettings| settings.check(tokenizer).unwrap_err().to_string();
        assert!(message(PromptSettings { cut: 220, ..default.clone() }).contains("217"));
        assert!(message(PromptSettings { max_text: 0, ..default.clone() }).contains("max_text"));
        assert!(message(PromptSettings { min_pixels: 300_000, ..default.clone() }).contains("min_pixels"));
        let texts = |max_text| PromptSettings { max_text, ..default.clone() };
        texts(16_384).check(tokenizer).unwrap();
        assert!(message(texts(16_385)).contains("to 16384"));
        let pixels = |max_pixels| PromptSettings { max_pixels, ..default.clone() };
        pixels(12_845_056).check(tokenizer).unwrap();
        assert!(message(pixels(12_845_057)).contains("max_pixels <= 12845056"));
    }
}
