//! What messages say of names and texts that files hold: not more than a person reads, and nothing that a terminal obeys.

use std::fmt::Display;

use crate::error::printable;

/// Most characters of a name; the longest of a released tensor has 77.
const NAME: usize = 120;
/// Most characters of what another library says of a file.
const REMARK: usize = 300;
/// Most bytes of a whole message: more than the longest lists of tensors take.
const MESSAGE: usize = 16 << 10;

/// A name as messages show it.
pub fn shown(name: &str) -> String {
    cut(name, NAME)
}

/// What another library says of a file; it may repeat what the file holds.
pub(super) fn remark(error: impl Display) -> String {
    cut(&error.to_string(), REMARK)
}

/// The first characters of a text in one line, and how many bytes it has if that is not all.
fn cut(text: &str, most: usize) -> String {
    let line = |text: &str| printable(text).replace('\n', "\\u000a");
    match text.char_indices().nth(most) {
        None => line(text),
        Some((end, _)) => format!("{}… ({} bytes)", line(&text[..end]), text.len()),
    }
}

/// A message, or the front of one that is too long.
pub(super) fn bounded(message: &str) -> String {
    let end = (0..=MESSAGE.min(message.len())).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    let more = if end < message.len() { "…" } else { "" };
    format!("{}{more}", printable(&message[..end]))
}

/// The first ten of `items`, a line each under a heading that counts them; empty when there are none.
pub(super) fn listed(heading: &str, items: &[String]) -> String {
    const SHOWN: usize = 10;
    if items.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{heading} ({}):", items.len());
    for item in items.iter().take(SHOWN) {
        text.push_str("\n  ");
        text.push_str(item);
    }
    if items.len() > SHOWN {
        text.push_str(&format!("\n  and {} more", items.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_plain_line() {
        assert_eq!(shown("\u{1b}[2J\u{1b}]0;owned\u{7}x"), r"\u001b[2J\u001b]0;owned\u0007x");
        assert_eq!(shown("a\nb"), r"a\u000ab");
        assert_eq!(shown("model.layers.0 \"é\" e\u{301}模型"), "model.layers.0 \"é\" e\u{301}模型");
        assert_eq!(bounded("one\ntwo\u{9b}2J"), "one\ntwo\\u009b2J");
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(shown(&"é".repeat(120)), "é".repeat(120));
        assert_eq!(shown(&"é".repeat(121)), "é".repeat(120) + "… (242 bytes)");
        assert_eq!(bounded(&"é".repeat(MESSAGE)), "é".repeat(MESSAGE / 2) + "…");
        assert_eq!(remark("x".repeat(1 << 20)).len(), REMARK + "… (1048576 bytes)".len());
    }

    #[test]
    fn lists_show_ten_and_count_the_rest() {
        let items: Vec<String> = (0..13).map(|i| format!("tensor{i}")).collect();
        let text = listed("missing", &items);
        assert!(text.starts_with("\nmissing (13):\n  tensor0\n"), "{text}");
        assert!(text.contains("tensor9") && !text.contains("tensor10"));
        assert!(text.ends_with("and 3 more"));
        assert_eq!(listed("missing", &[]), "");
    }
}
