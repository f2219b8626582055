//! Prompts as people send them: what files, shells and forms add is left out, and a prompt that says nothing is refused.

use anyhow::{Result, anyhow};

use super::{EditParameters, Progress};
use crate::error::usage;

/// Characters that are there and cannot be seen, beside white space: of zero width, and the byte order mark.
const UNSEEN: [char; 5] = ['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}', BYTE_ORDER_MARK];

/// What some editors put in front of a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Whether a prompt says nothing.
pub fn is_blank(prompt: &str) -> bool {
    prompt.chars().all(|c| c.is_whitespace() || c.is_control() || UNSEEN.contains(&c))
}

/// A prompt without a byte order mark in front, carriage returns, and white space around it; and what of these it had.
pub fn tidy(prompt: &str) -> (String, Vec<&'static str>) {
    let mut had = Vec::new();
    let rest = prompt.trim_start_matches(BYTE_ORDER_MARK);
    if rest.len() < prompt.len() {
        had.push("a byte order mark");
    }
    let mut text = rest.to_string();
    if rest.contains('\r') {
        had.push("carriage returns");
        text.retain(|c| c != '\r');
    }
    if text.trim().len() < text.len() {
        had.push("white space around it");
    }
    (text.trim().to_string(), had)
}

impl EditParameters {
    /// The same with tidy prompts; `progress` hears what was left out.
    ///
    /// # Errors
    /// A usage error: a prompt that says nothing. A negative prompt may.
    pub fn tidied(&self, progress: &mut dyn Progress) -> Result<EditParameters> {
        if is_blank(&self.prompt) {
            return Err(usage(anyhow!("the prompt is empty; say what to change")));
        }
        let mut clean = |name: &str, prompt: &str| {
            let (text, had) = tidy(prompt);
            if !had.is_empty() {
                progress.notice(&format!("the {name} is used without {}", had.join(", ")));
            }
            text
        };
        let (prompt, negative_prompt) = (clean("prompt", &self.prompt), clean("negative prompt", &self.negative_prompt));
        Ok(EditParameters { prompt, negative_prompt, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Silent;

    #[test]
    fn what_is_around_a_prompt_is_left_out_and_named() {
        for (prompt, text, had) in [
            ("make it red", "make it red", &[][..]),
            ("\u{feff}make it red", "make it red", &["a byte order mark"]),
            ("make it red\r\n", "make it red", &["carriage returns", "white space around it"]),
            ("one\r\ntwo", "one\ntwo", &["carriage returns"]),
            ("\u{feff} \t改成红色\u{3000}\n", "改成红色", &["a byte order mark", "white space around it"]),
            ("inner  \u{feff} space stays", "inner  \u{feff} space stays", &[]),
            ("", "", &[]),
        ] {
            assert_eq!(tidy(prompt), (text.to_string(), had.to_vec()), "{prompt:?}");
        }
    }

    #[test]
    fn a_prompt_that_says_nothing_is_refused_and_a_negative_one_is_not() {
        for blank in ["", " ", "\n\t\r", "\u{feff}", "\u{200b}\u{200d}", "\u{3000}\u{a0}", "\0"] {
            let edit = EditParameters { negative_prompt: blank.into(), ..EditParameters::new("red") };
            assert!(edit.tidied(&mut Silent).is_ok(), "{blank:?}");
            let refused = EditParameters::new(blank).tidied(&mut Silent).unwrap_err();
            assert!(refused.to_string().contains("the prompt is empty"), "{blank:?}");
        }
        assert!(!is_blank("!") && !is_blank("红"));
    }
}
