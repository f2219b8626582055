//! Functions stay readable.

use std::fs;
use std::path::Path;

use crate::{ROOT, sources};

/// The name of the function that begins on a line.
fn name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let qualifier = |word| ["pub", "pub(super)", "pub(crate)", "const", "unsafe", "extern", "\"C\""].contains(&word);
    before.split_whitespace().all(qualifier).then(|| after.split(['(', '<']).next().unwrap_or_default())
}

/// Every function's name and number of lines: up to the first line of the same indent that ends something, as rustfmt
/// indents them.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let length = |start: usize| {
        let indent = &lines[start][..lines[start].len() - lines[start].trim_start().len()];
        let ends = |line: &&str| line.strip_prefix(indent).is_some_and(|l| !l.starts_with(' ') && l.ends_with(['}', ';']));
        lines[start..].iter().position(ends).map_or(lines.len() - start, |end| end + 1)
    };
    (0..lines.len()).filter_map(|start| Some((name(lines[start])?, length(start)))).collect()
}

#[test]
fn functions_have_fewer_than_70_lines() {
    for folder in ["src", "tests", "benches", "examples"] {
        for path in sources(&Path::new(ROOT).join(folder)) {
            for (name, lines) in functions(&fs::read_to_string(&path).unwrap()) {
                assert!(lines < 70, "{}: {name} has {lines} lines; which part has a name of its own?", path.display());
            }
        }
    }
}

#[test]
fn functions_are_measured() {
    let text = "\
trait A {
    fn declared(
        &self,
    ) -> u8;
    fn short(&self) {}
}
pub(super) unsafe fn long<T>(a: T) -> T
where
    T: Copy,
{
    // fn no function
    fn inner() {
        \"}\";
    }
    a
}
";
    assert_eq!(functions(text), [("declared", 3), ("short", 1), ("long", 10), ("inner", 3)]);
}
