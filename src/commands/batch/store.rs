//! The last lane of a batch: encodes results, writes them and their lines, behind the edits.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use anyhow::{Context, Error, Result, ensure};
use serde_json::json;

use super::judge::Judge;
use super::key::sha256;
use super::ledger::{Ledger, Status};
use super::line::{Line, Made};
use super::prepare::{Prepared, Wanted};
use super::scores::Scores;
use crate::image::{self, Filter, Format, Output};
use crate::pipeline::{Edited, Parameters};

/// An edit that was made.
pub struct Finished {
    /// The task and its picture.
    pub prepared: Arc<Prepared>,
    /// Which of its results.
    pub wanted: Wanted,
    /// The picture at the working size, and what it took.
    pub edited: Edited,
    /// Width and height of the result.
    pub size: (usize, usize),
    /// How it was made.
    pub parameters: Parameters,
    /// What was said meanwhile.
    pub notes: Vec<String>,
}

/// What the last lane is given.
pub enum Done {
    /// A result to write.
    Edit(Box<Finished>),
    /// Lines of results that there are none of.
    Lines(Vec<Line>),
}

/// How many results ended in which way; lanes look at it while others count.
#[derive(Debug, Default)]
pub struct Tally {
    /// Made in this run.
    pub made: AtomicUsize,
    /// Failed in this run.
    pub failed: AtomicUsize,
    /// Left out in this run.
    pub skipped: AtomicUsize,
    /// Made by earlier runs.
    pub there: AtomicUsize,
    /// Failed in earlier runs.
    pub failed_before: AtomicUsize,
    /// Stopped.
    pub cancelled: AtomicUsize,
}

impl Tally {
    /// Results that are none.
    pub fn failures(&self) -> usize {
        self.failed.load(SeqCst) + self.failed_before.load(SeqCst)
    }
}

/// What the last lane works with.
pub struct Store {
    /// Where results lie.
    pub folder: PathBuf,
    /// Where their lines go.
    pub ledger: Ledger,
    /// What is counted.
    pub tally: Arc<Tally>,
    /// Who judges results.
    pub judge: Option<Judge>,
    /// Called with each line that is written.
    pub heard: Box<dyn Fn(&Line) + Send>,
}

impl Store {
    /// Writes what comes until nothing comes any more, and gives the results back.
    ///
    /// # Errors
    /// The disk is full or cannot be written to: no later result could be kept either.
    pub fn run(mut self, done: &Receiver<Done>) -> Result<Ledger> {
        for done in done {
            match done {
                Done::Edit(finished) => {
                    let line = self.finish(&finished)?;
                    self.write(&line)?;
                }
                Done::Lines(lines) => lines.iter().try_for_each(|line| self.write(line))?,
            }
        }
        Ok(self.ledger)
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        self.ledger.append(line)?;
        let count = match line.status {
            Status::Ok => &self.tally.made,
            Status::Error => &self.tally.failed,
            Status::Skipped => &self.tally.skipped,
            Status::Cancelled => &self.tally.cancelled,
        };
        count.fetch_add(1, SeqCst);
        (self.heard)(line);
        Ok(())
    }

    /// The line of a result, which is then on the disk unless the line says why not.
    fn finish(&mut self, finished: &Finished) -> Result<Line> {
        let Finished { prepared, wanted, notes, .. } = finished;
        let (task, key) = (&prepared.task, Some(wanted.key.as_str()));
        let mut line = match self.save(finished) {
            Ok(made) => Line { made: Some(made), ..Line::new(task, Status::Ok, wanted.at, key) },
            Err(error) if is_of_the_disk(&error) => return Err(error),
            Err(error) => Line::failed(task, wanted.at, key, "not_written", &error),
        };
        if line.made.is_some() {
            line.pixels = prepared.digests.as_ref().map(|digests| digests.exact.clone());
            line.near = prepared.digests.as_ref().map(|digests| format!("{:016x}", digests.near));
        }
        line.warnings = prepared.notes.iter().chain(notes).cloned().collect();
        if let (Some(judge), Some(made)) = (&mut self.judge, &mut line.made) {
            let source = task.source.path().map(|path| path.display().to_string());
            let target = self.folder.join(&line.output).display().to_string();
            let asked = json!({
                "id": task.id, "source": source, "target": target, "instruction": task.edit.prompt, "seed": line.seed,
                "extra": task.extra,
            });
            match judge.ask(&asked) {
                Ok(judged) => made.judged = Some(judged),
                Err(error) => line.warnings.push(format!("{error:#}")),
            }
        }
        Ok(line)
    }

    fn save(&self, finished: &Finished) -> Result<Made> {
        let Finished { prepared, wanted, edited, size, parameters, .. } = finished;
        let begun = Instant::now();
        let (task, original) = (&prepared.task, &prepared.original);
        let path = self.folder.join(&task.results[wanted.at].1);
        let format = Format::of(&path)?;
        let picture = image::resize(&edited.picture, size.0, size.1, Filter::Bicubic);
        let alpha = prepared.alpha.clone().map(|alpha| image::resize_alpha(alpha, (original.width, original.height), *size));
        let bytes = image::encode(&picture, alpha.as_deref(), format, &parameters.to_string())?;
        let scores = match (original.width, original.height) == *size {
            true => Scores::of(original, &picture),
            false => Scores::of(&image::resize(original, size.0, size.1, Filter::Bicubic), &picture),
        };
        if let (Some(name), Some(copy)) = (&task.source_copy, &prepared.source_copy) {
            keep(&self.folder.join(name), copy, wanted.replace)?;
        }
        keep(&path, &bytes, wanted.replace)?;
        let took = &edited.seconds;
        let mut seconds = BTreeMap::from([("read", prepared.seconds), ("plan", took.plan), ("prepare", took.prepare)]);
        seconds.extend(took.stages.iter().copied());
        seconds.insert("save", begun.elapsed().as_secs_f64());
        seconds.values_mut().for_each(|seconds| *seconds = (*seconds * 1e6).round() / 1e6);
        let (width, height) = *size;
        Ok(Made {
            bytes: bytes.len() as u64,
            sha256: sha256(&bytes),
            size: [width, height],
            working_size: [edited.picture.width, edited.picture.height],
            model: parameters.model().into(),
            scores,
            judged: None,
            seconds,
        })
    }
}

/// Writes a file, unless it is there already, byte for byte: a run may have ended between a result and its line.
fn keep(path: &Path, bytes: &[u8], replace: bool) -> Result<()> {
    if let Ok(there) = fs::read(path)
        && !replace
    {
        ensure!(
            there == bytes,
            "{} exists and is none of this batch's results; remove it, or pass --force to replace it",
            path.display()
        );
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    Output::reserve(path, replace)?.commit(bytes)
}

/// Whether an error is one of the disk, so that other results fare alike.
fn is_of_the_disk(error: &Error) -> bool {
    let of_the_disk = |error: &io::Error| {
        matches!(
            error.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem | ErrorKind::FileTooLarge
        )
    };
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(of_the_disk))
}
