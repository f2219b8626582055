//! What messages say of names and texts that files hold: not more than a person reads, and nothing that a terminal obeys.

use std::fmt::Display;

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

/// The first characters of a text, escaped, and how many bytes it has if that is not all.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => printable(text),
        Some((end, _)) => format!("{}… ({} bytes)", printable(&text[..end]), text.len()),
    }
}

/// The text with those characters escaped that control a terminal, end a line or turn the direction of writing.
pub fn printable(text: &str) -> String {
    escaped(text, |_| false)
}

/// A message of bounded length that a terminal shows as it is; it may have several lines.
pub(super) fn tame(message: &str) -> String {
    let end = (0..=MESSAGE.min(message.len())).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
    escaped(&message[..end], |c| c == '\n') + if end < message.len() { "…" } else { "" }
}

fn escaped(text: &str, allowed: impl Fn(char) -> bool) -> String {
    let obeyed =
        |c: char| c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match obeyed(c) && !allowed(c) {
            true => plain.extend(c.escape_default()),
            false => plain.push(c),
        }
    }
    plain
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
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(shown("\u{1b}[2J\u{1b}]0;owned\u{7}x"), r"\u{1b}[2J\u{1b}]0;owned\u{7}x");
        assert_eq!(shown("a\nb\u{202e}c"), r"a\nb\u{202e}c");
        assert_eq!(shown("model.layers.0 \"é\" e\u{301}模型"), "model.layers.0 \"é\" e\u{301}模型");
        assert_eq!(tame("one\ntwo\u{9b}2J"), "one\ntwo\\u{9b}2J");
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(shown(&"é".repeat(120)), "é".repeat(120));
        assert_eq!(shown(&"é".repeat(121)), "é".repeat(120) + "… (242 bytes)");
        let message = "é".repeat(MESSAGE);
        assert_eq!(tame(&message), "é".repeat(MESSAGE / 2) + "…");
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
