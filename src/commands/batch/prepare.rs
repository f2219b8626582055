//! The first lane of a batch: reads and decodes pictures ahead of the edits, and finds what need not be made.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Error, Result};

use super::alike::{Digests, Seen};
use super::key::{Common, sha256};
use super::ledger::{Known, Status};
use super::line::Line;
use super::task::Task;
use crate::error::ResourceError;
use crate::image::{self, Filter, Format, Reading, Rgb};

/// Bytes of a file in which its picture's size is looked for.
const HEADER_BYTES: u64 = 256 << 10;

/// What becomes of pictures that are there twice with one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedup {
    /// Their results say so.
    Report,
    /// They are left out.
    Skip,
}

/// How tasks are prepared; shared by all.
pub struct Prepare {
    /// How pictures are read.
    pub reading: Reading,
    /// How they are brought to the working size.
    pub filter: Filter,
    /// Side of the square whose area the working size has, where an item has none.
    pub size_level: usize,
    /// What keys are made of.
    pub common: Common,
    /// Where results lie.
    pub folder: PathBuf,
    /// What earlier runs have made.
    pub known: HashMap<String, Known>,
    /// Look at the digests of results that are there.
    pub verify: bool,
    /// Make again what has failed.
    pub retry: bool,
    /// Replace whatever is in the way.
    pub force: bool,
    /// What becomes of duplicates.
    pub dedup: Option<Dedup>,
    /// Tasks among which those of one size are put together.
    pub window: usize,
}

/// A task whose picture is there.
pub struct Prepared {
    /// The task.
    pub task: Task,
    /// The results to make.
    pub wanted: Vec<Wanted>,
    /// The picture.
    pub original: Rgb,
    /// Opacity of each pixel, if it is kept.
    pub alpha: Option<Vec<u8>>,
    /// The bytes that a scorer compares the result with.
    pub source_copy: Option<Vec<u8>>,
    /// Digests of its pixels, if duplicates are looked for.
    pub digests: Option<Digests>,
    /// What a person should know of the picture.
    pub notes: Vec<String>,
    /// Seconds that reading it took.
    pub seconds: f64,
}

/// One result to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which of the task's results.
    pub at: usize,
    /// What it depends on.
    pub key: String,
    /// A file that has its name may be replaced.
    pub replace: bool,
}

/// What the first lane gives to the second.
pub enum Ready {
    /// A picture to edit, with itself at the working size.
    Edit(Box<Prepared>, Rgb),
    /// Results that will not be made, with lines of their own.
    Lines(Vec<Line>),
    /// Results that earlier runs have made, or failed to make.
    There {
        /// Results that are there.
        done: usize,
        /// Results that have failed and would again.
        failed: usize,
    },
}

impl Prepare {
    /// The order in which a window's tasks are made: those of one shape together, since a shape takes plans and captures.
    pub fn sort(&self, tasks: &mut VecDeque<Task>) {
        let size = |task: &Task| {
            let level = task.edit.size_level.unwrap_or(self.size_level);
            let claimed = self.claimed_size(task)?;
            image::working_size(claimed.0, claimed.1, level).ok()
        };
        tasks.make_contiguous().sort_by_cached_key(|task| (task.edit.steps, size(task), task.edit.prompt.len()));
    }

    fn claimed_size(&self, task: &Task) -> Option<(usize, usize)> {
        let bytes = match &task.source {
            super::item::Source::File(path) => {
                let file = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|found| found.is_file()))?;
                let mut bytes = Vec::new();
                file.take(HEADER_BYTES).read_to_end(&mut bytes).ok()?;
                bytes
            }
            source => source.bytes(&self.reading).ok()?,
        };
        image::claimed_size(&bytes)
    }

    /// Reads a task's picture and finds out what there is to make.
    pub fn ready(&self, task: Task, seen: &mut Seen) -> Ready {
        let begun = Instant::now();
        let bytes = match task.source.bytes(&self.reading) {
            Ok(bytes) => bytes,
            Err(error) => return all_failed(&task, None, &error),
        };
        let digest = sha256(&bytes);
        let (mut done, mut failed, mut wanted) = (0, 0, Vec::new());
        for (at, (seed, output)) in task.results.iter().enumerate() {
            let format = match Format::of(output.as_ref()) {
                Ok(format) => format,
                Err(error) => return all_failed(&task, None, &error),
            };
            let key = self.common.key(&digest, &task.edit, *seed, format);
            let known = self.known.get(output);
            let same = known.filter(|known| known.key.as_deref() == Some(&key));
            match same.map(|known| known.status) {
                Some(Status::Ok) if same.is_some_and(|known| self.is_there(known)) => done += 1,
                Some(Status::Skipped) if self.dedup == Some(Dedup::Skip) => done += 1,
                Some(Status::Error) if !self.retry => failed += 1,
                _ => wanted.push(Wanted { at, key, replace: self.force || known.is_some_and(|known| self.is_ours(known)) }),
            }
        }
        if wanted.is_empty() {
            return Ready::There { done, failed };
        }
        self.decode(task, wanted, &bytes, seen, begun)
    }

    fn decode(&self, task: Task, wanted: Vec<Wanted>, bytes: &[u8], seen: &mut Seen, begun: Instant) -> Ready {
        let level = task.edit.size_level.unwrap_or(self.size_level);
        let made = || {
            let decoded = image::decode_bytes(bytes, &self.reading)?;
            let size = image::working_size(decoded.picture.width, decoded.picture.height, level)?;
            let working = image::resize(&decoded.picture, size.0, size.1, self.filter);
            let digests = self.dedup.map(|_| Digests::of(&decoded.picture));
            anyhow::Ok((decoded, working, digests, self.source_copy(&task)?))
        };
        let (decoded, working, digests, source_copy) = match made() {
            Ok(made) => made,
            Err(error) => {
                let error = error.context(format!("cannot edit the picture {}", task.image));
                return all_failed(&task, Some(&wanted), &error);
            }
        };
        let mut notes = decoded.notes;
        let duplicate = digests.as_ref().and_then(|digests| seen.duplicate_of(&task.id, &task.edit.prompt, digests));
        if let Some((other, exact)) = duplicate {
            if self.dedup == Some(Dedup::Skip) {
                let line = |wanted: &Wanted| Line {
                    duplicate_of: Some(other.clone()),
                    ..Line::new(&task, Status::Skipped, wanted.at, Some(&wanted.key))
                };
                return Ready::Lines(wanted.iter().map(line).collect());
            }
            let alike = if exact { "the same as" } else { "nearly the same as" };
            notes.push(format!("the picture is {alike} that of {other}, with the same prompt"));
        }
        let seconds = begun.elapsed().as_secs_f64();
        let (original, alpha) = (decoded.picture, decoded.alpha);
        let prepared = Prepared { task, wanted, original, alpha, source_copy, digests, notes, seconds };
        Ready::Edit(Box::new(prepared), working)
    }

    /// The scorer's source as a PNG.
    fn source_copy(&self, task: &Task) -> Result<Option<Vec<u8>>> {
        let (Some(_), super::item::Source::Row(pictures, row)) = (&task.source_copy, &task.source) else { return Ok(None) };
        let bytes = pictures.source_copy(*row)?;
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            return Ok(Some(bytes));
        }
        let decoded = image::decode_bytes(&bytes, &self.reading).context("the scorer's source")?;
        image::encode(&decoded.picture, None, Format::Png, "").map(Some)
    }

    /// Whether a result that was made is still there as it was.
    fn is_there(&self, known: &Known) -> bool {
        let path = self.folder.join(&known.output);
        let length = path.metadata().ok().filter(|found| found.is_file()).map(|found| found.len());
        length.is_some() && length == known.bytes && (!self.verify || self.is_ours(known))
    }

    /// Whether the file of a result's name is the one that was made.
    fn is_ours(&self, known: &Known) -> bool {
        let bytes = std::fs::read(self.folder.join(&known.output));
        known.sha256.is_some() && bytes.ok().map(|bytes| sha256(&bytes)) == known.sha256
    }
}

/// Lines of a task none of whose results can be made: those that are wanted, or all.
fn all_failed(task: &Task, wanted: Option<&[Wanted]>, error: &Error) -> Ready {
    let missing = error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound));
    let code = match error {
        _ if missing => "missing_picture",
        error if error.downcast_ref::<ResourceError>().is_some() => "out_of_memory",
        _ => "invalid_picture",
    };
    let failed = |at: usize, key: Option<&str>| Line::failed(task, at, key, code, error);
    Ready::Lines(match wanted {
        Some(wanted) => wanted.iter().map(|wanted| failed(wanted.at, Some(&wanted.key))).collect(),
        None => (0..task.results.len()).map(|at| failed(at, None)).collect(),
    })
}

/// A task, or the line of an item that is none.
pub type Given = Result<Box<Task>, Box<Line>>;

/// Tasks in the order in which they are made: a window of them at a time.
pub struct Windows<I> {
    tasks: I,
    prepare: Arc<Prepare>,
    window: VecDeque<Task>,
}

impl<I: Iterator<Item = Task>> Windows<I> {
    /// In windows of the size that is asked for.
    pub fn new(tasks: I, prepare: Arc<Prepare>) -> Windows<I> {
        Windows { tasks, prepare, window: VecDeque::new() }
    }
}

impl<I: Iterator<Item = Task>> Iterator for Windows<I> {
    type Item = Given;

    fn next(&mut self) -> Option<Given> {
        if self.window.is_empty() {
            self.window = self.tasks.by_ref().take(self.prepare.window).collect();
            if self.prepare.window > 1 {
                self.prepare.sort(&mut self.window);
            }
        }
        Some(Ok(Box::new(self.window.pop_front()?)))
    }
}
