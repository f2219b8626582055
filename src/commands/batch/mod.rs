//! The `batch` command: a manifest's edits, one line for each result, on one loaded model.
//!
//! Three lanes: [`prepare`] reads pictures ahead, [`work`] edits, [`store`] writes behind. [`ledger`] is what a later run goes on
//! from, [`key`] says when a result is still the one that is asked for.

mod alike;
mod item;
mod judge;
mod key;
mod ledger;
mod line;
mod manifest;
mod merge;
mod prepare;
mod scores;
mod standard;
mod store;
mod tar;
mod task;
mod triplets;
mod work;

use std::collections::HashMap;
use std::io::{BufReader, IsTerminal, stdin};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use indicatif::ProgressBar;
use serde_json::{Value, json};

pub use self::item::{Item, Own, Pictures, SEEDS_MOST, Source};
use self::judge::Judge;
use self::key::Common;
pub use self::key::sha256;
use self::ledger::{Head, Ledger};
use self::line::Line;
pub use self::manifest::{Manifest, Reader};
pub use self::merge::{Merge, merge};
pub use self::prepare::Dedup;
use self::prepare::{Given, Prepare, Windows};
use self::standard::Lines;
use self::store::{Store, Tally};
pub use self::task::Shard;
use self::task::{Naming, Task};
pub use self::triplets::{Form, Triplets};
use crate::cuda::{EnergyMeter, Nvml};
use crate::error::usage;
use crate::image::{Format, Reading, Stream};
use crate::pipeline::{EditParameters, Engine, LoraChoice, Model, ModelPath, Place, PlaceChoice, Progress, peak_resident_bytes};
use crate::stop::Stop;

/// Tasks among which those of one shape are put together.
const WINDOW: usize = 64;

/// Programs that are kept: those of the last shapes.
const PROGRAMS: usize = 4;

/// Where the items come from.
#[derive(Clone, Debug)]
pub enum Input {
    /// A file or a folder, or standard input.
    Manifest(Stream, Reader),
    /// Items that are known, under a name and with bytes that their digest is taken of.
    Items(String, Vec<u8>, Vec<Item>),
}

/// A manifest's edits.
#[derive(Clone, Debug)]
pub struct BatchJob {
    /// The items.
    pub input: Input,
    /// Where results go.
    pub output: PathBuf,
    /// The model; none: the demo model.
    pub model: Option<ModelPath>,
    /// LoRA files to merge into the model.
    pub loras: Vec<LoraChoice>,
    /// Every item's edit but for what is its own.
    pub edit: EditParameters,
    /// Seeds of each item.
    pub seeds: usize,
    /// How pictures are read.
    pub reading: Reading,
    /// Format of results whose names say none.
    pub format: Format,
    /// Leave results at the working size.
    pub keep_working_size: bool,
    /// Where to run.
    pub place: PlaceChoice,
    /// Go on with the results that are there.
    pub resume: Resume,
    /// Replace files that are in the way.
    pub force: bool,
    /// Only a part of the items.
    pub shard: Option<Shard>,
    /// Most items.
    pub limit: Option<usize>,
    /// Failures after which no more is tried.
    pub max_errors: Option<usize>,
    /// Make items in the manifest's order.
    pub keep_order: bool,
    /// What becomes of pictures that are there twice.
    pub dedup: Option<Dedup>,
    /// What training data to make of the results.
    pub triplets: Option<Triplets>,
    /// A program that judges each result.
    pub judge: Option<String>,
    /// Let results lie outside the output folder.
    pub allow_outside: bool,
    /// Print each line.
    pub json: bool,
}

/// How to go on with results that are there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resume {
    /// Go on at all.
    pub go_on: bool,
    /// Compare digests of the files that are there.
    pub verify: bool,
    /// Make again what has failed.
    pub retry: bool,
}

/// Who hears of a batch.
#[derive(Clone)]
pub struct Ears {
    /// What signals ask.
    pub stop: &'static Stop,
    /// Results so far.
    pub bar: ProgressBar,
    /// Says a line on standard error.
    pub say: fn(&str),
    /// Prints a text on standard output.
    pub print: fn(&str) -> Result<()>,
    /// Say nothing but what has failed.
    pub quiet: bool,
}

/// Makes a manifest's edits and gives the exit code.
///
/// # Errors
/// A [`crate::error::UsageError`]: a manifest or an output folder that cannot be used; or what ends all edits. Results that were made
/// before stay.
pub fn run(job: &BatchJob, ears: &Ears, progress: &mut dyn Progress) -> Result<u8> {
    let begun = Instant::now();
    let naming = Naming { edit: job.edit.clone(), seeds: job.seeds, format: job.format, allow_outside: job.allow_outside };
    job.format.check_alpha(job.reading.alpha).map_err(usage)?;
    let (head, tasks) = job.tasks(&naming).map_err(usage)?;
    let results = tasks.as_ref().map(|tasks| tasks.iter().map(|task| task.results.len()).sum::<usize>());
    if let (Some(tasks), false) = (&tasks, job.resume.go_on || job.force) {
        job.check_free(tasks).map_err(usage)?;
    }
    let print: Option<Box<ledger::Print>> = job.json.then(|| Box::new(ears.print) as _);
    let mut ledger = Ledger::open(&job.output, &head, job.shard, job.resume.go_on, print).map_err(usage)?;
    let (mut engine, prepare) = match job.open(ledger.take_known(), tasks.is_some(), progress) {
        Ok(opened) => opened,
        Err(error) => {
            ledger.give_up();
            return Err(error);
        }
    };
    progress.place(&engine.place);
    ears.bar.set_length(results.unwrap_or(0) as u64);

    let tally = Arc::new(Tally::default());
    let store = Store {
        folder: job.output.clone(),
        ledger,
        tally: tally.clone(),
        judge: job.judge.as_ref().map(|command| Judge::new(command, Box::new(|| ears_stop(ears.stop)))),
        heard: heard(ears),
    };
    let given = job.given(tasks, naming, prepare.clone());
    let meter = meter(&engine.place);
    let joules = || meter.as_ref().and_then(EnergyMeter::millijoules);
    let before = joules();
    ears.stop.begin();
    let edits = work::Edits {
        engine: &mut engine,
        keep_working_size: job.keep_working_size,
        max_errors: job.max_errors,
        tally: &tally,
        stop: ears.stop,
    };
    let mut ledger = work::run(edits, given, prepare, store, progress)?;
    let joules = before.zip(joules()).map(|(before, after)| after.saturating_sub(before) as f64 / 1e3);
    let summary = summary(&tally, begun.elapsed().as_secs_f64(), &engine, joules, ears.stop.asked());
    ledger.append(&json!({ "summary": summary }))?;
    ears.bar.finish_and_clear();
    if let (Some(triplets), false) = (&job.triplets, ears.stop.asked()) {
        let made = triplets.write(&job.output, &ledger.all()?)?;
        ears.tell(&made);
    }
    ears.tell(&words(&summary));
    Ok(match (ears.stop.asked(), tally.failures()) {
        (true, _) => ears.stop.exit_code(),
        (false, 0) => 0,
        (false, _) => 1,
    })
}

impl BatchJob {
    /// What the manifest is called, and its tasks of this shard; none: they come from standard input.
    fn tasks(&self, naming: &Naming) -> Result<(Head, Option<Vec<Task>>)> {
        let (name, bytes, items) = match &self.input {
            Input::Items(name, bytes, items) => (name.clone(), bytes.clone(), items.clone()),
            Input::Manifest(Stream::File(path), reader) => {
                let Manifest { name, bytes, items } = reader.read(path)?;
                (name, bytes, items)
            }
            Input::Manifest(Stream::Standard, reader) => {
                ensure!(!stdin().is_terminal(), "standard input is a terminal; give it lines of JSON, or name a manifest");
                ensure!(
                    reader.prompt.is_none(),
                    "-p is for a folder of pictures; lines of standard input say themselves what to do"
                );
                return Ok((Head::new("-", None, None, self.shard), None));
            }
        };
        let head = Head::new(&name, Some(&bytes), Some(items.len()), self.shard);
        let all = naming.tasks(items)?.into_iter().filter(|task| self.shard.is_none_or(|shard| shard.has(task.number)));
        Ok((head, Some(all.take(self.limit.unwrap_or(usize::MAX)).collect())))
    }

    /// Refuses to begin where results would find files in their way.
    fn check_free(&self, tasks: &[Task]) -> Result<()> {
        let outputs = tasks.iter().flat_map(|task| &task.results).map(|(_, output)| self.output.join(output));
        let there: Vec<PathBuf> = outputs.filter(|path| path.symlink_metadata().is_ok()).collect();
        let Some(first) = there.first() else { return Ok(()) };
        let count = if there.len() == 1 { String::new() } else { format!(" and {} other results exist", there.len() - 1) };
        let exist = if there.len() == 1 { " exists" } else { "" };
        Err(anyhow!(
            "{}{exist}{count}; name another output folder, pass --resume to go on with a batch, or --force to replace them",
            first.display()
        ))
    }

    /// The model on its place, and what tasks are prepared with.
    fn open(
        &self,
        mut known: HashMap<String, ledger::Known>,
        sort: bool,
        progress: &mut dyn Progress,
    ) -> Result<(Engine, Arc<Prepare>)> {
        let model = Model::open_or_demo(self.model.as_ref(), progress)?;
        model.adapt(&self.loras, progress)?;
        let size_level = self.edit.with(&model)?.size_level;
        let mut engine = Engine::open(model, Place::open(&self.place)?)?;
        engine.keep_at_most(PROGRAMS);
        if self.dedup.is_none() {
            // Of a million results nobody needs the whole lines.
            known.values_mut().for_each(|known| known.line = Value::Null);
        }
        let common = Common::new(&engine.model, engine.place.precision, &self.reading, self.keep_working_size)?;
        let prepare = Prepare {
            reading: self.reading,
            filter: self.edit.filter,
            size_level,
            common,
            folder: self.output.clone(),
            known,
            verify: self.resume.verify,
            retry: self.resume.retry,
            force: self.force,
            dedup: self.dedup,
            window: if sort && !self.keep_order { WINDOW } else { 1 },
        };
        Ok((engine, Arc::new(prepare)))
    }

    fn given(&self, tasks: Option<Vec<Task>>, naming: Naming, prepare: Arc<Prepare>) -> Box<dyn Iterator<Item = Given> + Send> {
        match (tasks, &self.input) {
            (Some(tasks), _) => Box::new(Windows::new(tasks.into_iter(), prepare)),
            (None, Input::Manifest(_, reader)) => {
                Box::new(Lines::new(BufReader::new(stdin()), reader.clone(), naming, self.shard, self.limit))
            }
            (None, Input::Items(..)) => Box::new(std::iter::empty()),
        }
    }
}

fn ears_stop(stop: &Stop) -> bool {
    stop.asked()
}

impl Ears {
    /// Says a line beside the bar, unless nothing is to be said.
    pub fn tell(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| (self.say)(text));
        }
    }
}

/// What is said of each line: what has failed, always; all lines where no bar shows them.
fn heard(ears: &Ears) -> Box<dyn Fn(&Line) + Send> {
    let ears = ears.clone();
    Box::new(move |line| {
        ears.bar.inc(1);
        match (&line.error, &line.made) {
            (Some(error), _) => ears.bar.suspend(|| (ears.say)(&format!("{}: failed: {}", line.id, error.message))),
            (None, Some(made)) if ears.bar.is_hidden() => {
                let seconds: f64 = made.seconds.values().sum();
                ears.tell(&format!("{}: wrote {} in {seconds:.2} s", line.id, line.output));
            }
            _ => {}
        }
    })
}

fn meter(place: &Place) -> Option<EnergyMeter> {
    Nvml::open().and_then(|nvml| nvml.energy_meter(&place.device()?.bus().ok()?))
}

/// What a run did, as its last line says it.
fn summary(tally: &Tally, seconds: f64, engine: &Engine, joules: Option<f64>, stopped: bool) -> Value {
    let made = tally.made.load(SeqCst);
    let rounded = |value: f64| (value * 1e3).round() / 1e3;
    json!({
        "made": made,
        "there": tally.there.load(SeqCst),
        "failed": tally.failed.load(SeqCst),
        "failed_before": tally.failed_before.load(SeqCst),
        "skipped": tally.skipped.load(SeqCst),
        "cancelled": tally.cancelled.load(SeqCst),
        "stopped": stopped,
        "seconds": rounded(seconds),
        "an_hour": rounded(made as f64 * 3600.0 / seconds.max(1e-9)),
        "device": engine.place.name(),
        "peak_bytes": {"resident": peak_resident_bytes(), "device": engine.place.device_bytes_in_use()},
        "joules": joules.map(rounded),
    })
}

/// The same for people.
fn words(summary: &Value) -> String {
    let number = |name: &str| summary[name].as_u64().unwrap_or(0);
    let mut parts = vec![format!("{} made", number("made"))];
    for (name, text) in
        [("there", "there already"), ("failed", "failed"), ("failed_before", "failed before"), ("skipped", "skipped")]
    {
        if number(name) > 0 {
            parts.push(format!("{} {text}", number(name)));
        }
    }
    let rest = if summary["stopped"] == json!(true) { "; interrupted, --resume goes on" } else { "" };
    format!("{} in {:.1} s{rest}", parts.join(", "), summary["seconds"].as_f64().unwrap_or(0.0))
}

/// Reads back all lines of a folder's results, in the manifest's order.
fn in_order(mut lines: Vec<ledger::Known>) -> Vec<ledger::Known> {
    lines.sort_by_key(|line| (line.item, line.line["seed"].as_u64().unwrap_or(0), line.output.clone()));
    lines
}

/// A folder's file of results, read whole.
fn read_results(path: &std::path::Path) -> Result<(Option<Head>, HashMap<String, ledger::Known>)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(ledger::parse(&bytes))
}
