//! The lanes of a batch: pictures are read ahead, edited one after another, and written behind.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Error, Result};

use super::alike::Seen;
use super::ledger::{Ledger, Status};
use super::line::{Line, code_of};
use super::prepare::{Given, Prepare, Prepared, Ready, Wanted};
use super::store::{Done, Finished, Store, Tally};
use crate::error::{Interrupted, no_thread};
use crate::image::{Format, Rgb};
use crate::pipeline::{EditParameters, Encoded, Engine, Material, Parameters, Place, Progress};
use crate::stop::Stop;
use crate::weights::ModelError;

/// Pictures that wait to be edited, and results that wait to be written: so many of each.
const AHEAD: usize = 2;

/// Between two looks at whether to stop.
const PAUSE: Duration = Duration::from_millis(20);

/// What the second lane works with.
pub struct Edits<'a> {
    /// The model on its place.
    pub engine: &'a mut Engine,
    /// Whether results keep the working size.
    pub keep_working_size: bool,
    /// Failures after which no more is tried; none: any number.
    pub max_errors: Option<usize>,
    /// What is counted.
    pub tally: &'a Tally,
    /// What signals ask.
    pub stop: &'a Stop,
}

/// Makes every edit, and gives the results back when all lines are written.
///
/// # Errors
/// What ends the whole batch: the model, the device or the disk. Lines of all results before it are written.
pub fn run(
    mut edits: Edits,
    tasks: Box<dyn Iterator<Item = Given> + Send>,
    prepare: Arc<Prepare>,
    store: Store,
    progress: &mut dyn Progress,
) -> Result<Ledger> {
    let (give, ready) = sync_channel(AHEAD);
    let (done, stored) = sync_channel(AHEAD);
    // It may wait for a file that does not answer, so nobody waits for it.
    let reader = thread::Builder::new().spawn(move || read(tasks, &prepare, &give)).map_err(no_thread)?;
    let writer = thread::Builder::new().spawn(move || store.run(&stored)).map_err(no_thread)?;
    let ended = edits.run(&ready, &done, progress);
    drop((ready, done));
    let ledger = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    if reader.is_finished() {
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    ended.map(|()| ledger)
}

/// The first lane.
fn read(tasks: impl Iterator<Item = Given>, prepare: &Prepare, ready: &SyncSender<Ready>) {
    let mut seen = Seen::of(prepare.known.values());
    for task in tasks {
        let next = match task {
            Ok(task) => prepare.ready(*task, &mut seen),
            Err(line) => Ready::Lines(vec![*line]),
        };
        if ready.send(next).is_err() {
            return;
        }
    }
}

impl Edits<'_> {
    /// The second lane.
    fn run(&mut self, ready: &Receiver<Ready>, done: &SyncSender<Done>, progress: &mut dyn Progress) -> Result<()> {
        while !self.stop.asked() && self.max_errors.is_none_or(|most| self.tally.failures() < most) {
            let next = match ready.recv_timeout(PAUSE) {
                Ok(Ready::Edit(prepared, working)) => self.edit(Arc::new(*prepared), &working, done, progress)?,
                Ok(Ready::Lines(lines)) => done.send(Done::Lines(lines)).is_ok(),
                Ok(Ready::There { done, failed }) => {
                    self.tally.there.fetch_add(done, SeqCst);
                    self.tally.failed_before.fetch_add(failed, SeqCst);
                    true
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            if !next {
                return Ok(()); // the last lane has an error to tell
            }
        }
        Ok(())
    }

    /// Makes a task's results; false: nobody takes them any more.
    fn edit(
        &mut self,
        prepared: Arc<Prepared>,
        working: &Rgb,
        done: &SyncSender<Done>,
        progress: &mut dyn Progress,
    ) -> Result<bool> {
        let (mut encoded, mut material) = (Encoded::default(), None);
        for (turn, wanted) in prepared.wanted.iter().enumerate() {
            let mut ears = Ears { inner: progress, notes: vec![] };
            let made = self.engine_edit(&prepared, wanted, working, (&mut material, &mut encoded), &mut ears);
            let notes = ears.notes;
            let result = match made {
                Ok(finished) => Done::Edit(Box::new(Finished { notes, ..finished })),
                Err(error) if error.downcast_ref::<Interrupted>().is_some() => {
                    let cancelled = |wanted: &Wanted| Line::new(&prepared.task, Status::Cancelled, wanted.at, Some(&wanted.key));
                    return Ok(done.send(Done::Lines(prepared.wanted[turn..].iter().map(cancelled).collect())).is_ok());
                }
                Err(error) if self.ends_all(&error) => return Err(error),
                Err(error) => {
                    let line = Line::failed(&prepared.task, wanted.at, Some(&wanted.key), code_of(&error), &error);
                    Done::Lines(vec![Line { warnings: notes, ..line }])
                }
            };
            if done.send(result).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Edits<'_> {
    /// `shared`: what the first seed makes of the picture, and later ones take over.
    fn engine_edit(
        &mut self,
        prepared: &Arc<Prepared>,
        wanted: &Wanted,
        working: &Rgb,
        (shared, encoded): (&mut Option<Material>, &mut Encoded),
        ears: &mut Ears,
    ) -> Result<Finished> {
        let (seed, output) = &prepared.task.results[wanted.at];
        let edit = EditParameters { seed: *seed, ..prepared.task.edit.clone() }.tidied(ears)?;
        let material = match shared.take() {
            Some(material) => material.with_seed(*seed),
            None => Material::of_working_size(&edit, &self.engine.model, working.clone(), ears)?,
        };
        let original = (prepared.original.width, prepared.original.height);
        let size = if self.keep_working_size { material.size } else { original };
        Format::of(output.as_ref())?.check_size(size.0, size.1)?;
        let edited = match prepared.wanted.len() {
            1 => self.engine.make(&material, ears)?,
            _ => self.engine.make_again(&material, encoded, ears)?,
        };
        *shared = Some(material);
        let parameters = Parameters::new(&edit, true, &self.engine.model, &edited, size)?;
        Ok(Finished { prepared: prepared.clone(), wanted: wanted.clone(), edited, size, parameters, notes: vec![] })
    }

    /// Whether later edits would fail by the same error.
    fn ends_all(&self, error: &Error) -> bool {
        let place = &self.engine.place;
        // A device that has failed tells nothing any more.
        let failed = place.device().is_some() && place.device_bytes_in_use().is_none();
        failed || error.downcast_ref::<ModelError>().is_some()
    }
}

/// Keeps what is said of one edit; the rest goes on.
struct Ears<'a> {
    inner: &'a mut dyn Progress,
    notes: Vec<String>,
}

impl Progress for Ears<'_> {
    fn place(&mut self, place: &Place) {
        self.inner.place(place);
    }

    fn stage(&mut self, name: &str, run: usize, runs: usize) -> Result<()> {
        self.inner.stage(name, run, runs)
    }

    fn node(&mut self) -> Result<()> {
        self.inner.node()
    }

    fn notice(&mut self, text: &str) {
        self.notes.push(text.into());
    }
}
