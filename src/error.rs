//! Faults that have an exit code of their own; those of model files are `ModelError` of the weights.

use std::borrow::Cow;
use std::fmt;

/// A request that cannot be met as asked; the message says what would help.
#[derive(Debug)]
pub struct UsageError(pub String);

/// A device or memory that was asked for and cannot be had.
#[derive(Debug)]
pub struct ResourceError(pub String);

/// The user stopped the run.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(INTERRUPTED)
    }
}

impl std::error::Error for UsageError {}
impl std::error::Error for ResourceError {}
impl std::error::Error for Interrupted {}

/// What is said of a run that was stopped.
pub const INTERRUPTED: &str = "interrupted; nothing was written";

/// What is said of a run that was stopped and whose files stay, since the next one goes on from them.
pub const INTERRUPTED_AND_KEPT: &str = "interrupted; what was fetched stays, and the same command goes on from there";

/// A text as a terminal may have it: control characters but for the end of a line, and those that turn the direction of
/// writing, which names of files and tensors may hold and terminals obey, are written as in JSON.
pub fn printable(text: &str) -> Cow<'_, str> {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let obeyed = |c: char| c.is_control() && c != '\n' || turns(c);
    if !text.contains(obeyed) {
        return text.into();
    }
    let each = text.chars().map(|c| if obeyed(c) { format!("\\u{:04x}", u32::from(c)) } else { c.into() });
    each.collect()
}

/// A thread that cannot be started.
pub fn no_thread(error: impl fmt::Display) -> ResourceError {
    ResourceError(format!("the system starts no further thread ({error}); allow more processes (ulimit -u) or more memory"))
}

/// A fault of how something was asked for.
pub fn usage(error: anyhow::Error) -> anyhow::Error {
    UsageError(format!("{error:#}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        for (text, shown) in [
            ("a name, 名前\nanother line", "a name, 名前\nanother line"),
            ("\x1b[31mred\x07\t\r", "\\u001b[31mred\\u0007\\u0009\\u000d"),
            ("\u{9b}31m \x7f", "\\u009b31m \\u007f"),
            ("a\u{202e}gpj.b", "a\\u202egpj.b"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }
}
