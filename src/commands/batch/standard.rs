//! A manifest that comes from standard input, line by line: what is wrong with a line is that item's failure.

use std::io::{BufRead, Read};

use anyhow::{Context, Error, Result, ensure};
use serde_json::Map;

use super::ledger::Status;
use super::line::{Fault, Line};
use super::manifest::Reader;
use super::prepare::Given;
use super::task::{Names, Naming, Shard, Task};

/// Most bytes of a line.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// Items as they come.
pub struct Lines<R> {
    input: R,
    reader: Reader,
    naming: Naming,
    shard: Option<Shard>,
    names: Names,
    /// Lines and items so far.
    lines: usize,
    items: usize,
    /// Most items that may still be given.
    left: usize,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// At most `limit` items of a shard.
    pub fn new(input: R, reader: Reader, naming: Naming, shard: Option<Shard>, limit: Option<usize>) -> Lines<R> {
        let left = limit.unwrap_or(usize::MAX);
        Lines { input, reader, naming, shard, names: Names::default(), lines: 0, items: 0, left, ended: false }
    }

    /// The next line's task; none: the line is blank.
    fn task(&mut self, line: &[u8]) -> Result<Option<Task>> {
        ensure!(line.len() as u64 <= LINE_BYTES_MAX, "line {} has more than {LINE_BYTES_MAX} bytes", self.lines);
        let text = std::str::from_utf8(line).with_context(|| format!("line {} is not UTF-8", self.lines))?;
        let text = if self.lines == 1 { text.trim_start_matches('\u{feff}') } else { text };
        let Some(item) = self.reader.line(self.lines, text, "".as_ref())? else { return Ok(None) };
        let place = item.place.clone();
        let task = self.naming.task(self.items, item)?;
        self.names.take(&task, &place)?;
        Ok(Some(task))
    }

    /// The line of an item that cannot be understood.
    fn refused(&self, error: &Error) -> Line {
        Line {
            id: format!("line {}", self.lines),
            status: Status::Error,
            item: self.items,
            output: String::new(),
            key: None,
            image: String::new(),
            source: None,
            prompt: String::new(),
            seed: 0,
            made: None,
            error: Some(Fault { code: "invalid_item", message: format!("{error:#}") }),
            duplicate_of: None,
            pixels: None,
            near: None,
            warnings: vec![],
            extra: Map::new(),
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Given;

    fn next(&mut self) -> Option<Given> {
        while !self.ended && self.left > 0 {
            let mut line = Vec::new();
            let read = self.input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
            self.lines += 1;
            let length = line.len() as u64;
            // What cannot be read any more, or has no end, ends the manifest.
            self.ended = !matches!(read, Ok(1..)) || length > LINE_BYTES_MAX;
            let task = match read.context("cannot read standard input") {
                Ok(0) => return None,
                Ok(_) => self.task(&line),
                Err(error) => Err(error),
            };
            let number = self.items;
            let given = match task {
                Ok(None) => continue,
                Ok(Some(task)) => Ok(Box::new(task)),
                Err(error) => Err(Box::new(self.refused(&error))),
            };
            self.items += 1;
            if self.shard.is_none_or(|shard| shard.has(number)) {
                self.left -= 1;
                return Some(given);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Format;
    use crate::pipeline::EditParameters;

    fn given(text: &[u8], shard: Option<Shard>, limit: Option<usize>) -> Vec<Result<String, String>> {
        let naming = Naming { edit: EditParameters::new(""), seeds: 1, format: Format::Png, allow_outside: false };
        let lines = Lines::new(text, Reader::default(), naming, shard, limit);
        let each = |given: Given| match given {
            Ok(task) => Ok(task.id),
            Err(line) => Err(line.error.unwrap().message),
        };
        lines.map(each).collect()
    }

    fn line(id: &str) -> String {
        format!("{{\"image\": \"a.png\", \"prompt\": \"x\", \"id\": \"{id}\"}}\n")
    }

    #[test]
    fn a_wrong_line_is_one_failure_and_the_rest_goes_on() {
        let text =
            [line("a").as_bytes(), b"\n{\"image\": 3}\n", b"{\"id\": \"\xff\"}\n", line("a").as_bytes(), line("b").as_bytes()]
                .concat();
        let found = given(&text, None, None);
        assert_eq!((found.len(), &found[0], &found[4]), (5, &Ok("a".into()), &Ok("b".into())));
        for (at, words) in [(1, "line 3: "), (2, "line 4 is not UTF-8"), (3, "line 1 and line 5 both write \"a.png\"")] {
            assert!(found[at].as_ref().unwrap_err().contains(words), "{:?}", found[at]);
        }
        let unended = given(line("z").trim_end().as_bytes(), None, None);
        assert_eq!(unended, [Ok("z".into())], "the last line needs no end");
    }

    #[test]
    fn shards_and_limits_count_items() {
        let text: String = ["a", "b", "c", "d", "e"].map(line).concat();
        assert_eq!(given(text.as_bytes(), Some(Shard { part: 1, of: 2 }), None), [Ok("b".into()), Ok("d".into())]);
        assert_eq!(given(text.as_bytes(), Some(Shard { part: 0, of: 2 }), Some(2)), [Ok("a".into()), Ok("c".into())]);
    }

    #[test]
    fn a_line_has_at_most_so_many_bytes() {
        let most = LINE_BYTES_MAX as usize;
        let mut text = vec![b' '; most - 1];
        text.push(b'\n');
        text.extend(line("a").as_bytes());
        assert_eq!(given(&text, None, None), [Ok("a".into())]);
        text.insert(0, b' ');
        let found = given(&text, None, None);
        assert!(found.len() == 1 && found[0].as_ref().unwrap_err().contains("bytes"), "{found:?}");
    }
}
