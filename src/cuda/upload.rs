//! Weights to the device while it computes: threads fill page-locked buffers, a copy stream each empties them. What is in the host's
//! store already ([`super::Store`]) needs no thread and no buffer: one more stream copies it from there.
//!
//! Pieces go up in their order. A piece behind a *gate* waits until the gate is opened with an event: what lay at its
//! destination before is then done. Whoever needs a piece lets its own stream wait for it. Locking memory takes longer than
//! filling it, so a thread starts with one buffer, and buffers are kept for the next upload. While the next gate is closed, threads
//! fill what of the store is locked by then, for the next time.
//!
//! Once an upload has been stopped no copy begins. A thread whose file does not answer cannot be waited for: it is left behind
//! with its buffers, and with the memory that the upload was for, and ends when the file answers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::device::{Device, Event, Memory, Pinned, Stream};
use super::store::Slot;
use super::wait::KeepOn;
use crate::error::ResourceError;

/// Largest piece, in bytes; a multiple of every element's size.
pub const PIECE: usize = 32 << 20;
/// Threads that fill buffers, each with two of them, so that one is copied while the other is filled.
const THREADS: usize = 6;
/// Most of them that fill the store meanwhile, so that the others send as soon as a gate opens.
const SPARE: usize = THREADS / 2;
/// How often whoever waits for a piece asks whether to go on.
const ASKED: Duration = Duration::from_millis(10);
/// How long an upload that is dropped waits for its threads: longer than a piece takes, less than a person notices.
const PATIENCE: Duration = Duration::from_millis(300);

/// A run of bytes for one place on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the memory it goes.
    pub offset: usize,
    /// Its length.
    pub bytes: usize,
    /// Of these the last ones, so many, go elsewhere.
    pub tail: usize,
    /// Where they go.
    pub tail_offset: usize,
    /// What goes up beside it, at most, for a [`Finish`]; with its own length at most [`PIECE`].
    pub beside: usize,
    /// The gate it waits for.
    pub gate: usize,
}

/// A copy that was timed.
#[derive(Clone, Debug)]
pub struct TimedCopy {
    /// The number of its piece.
    pub piece: usize,
    /// How long it is.
    pub bytes: usize,
    /// Comes when it begins.
    pub begins: Arc<Event>,
    /// Comes when it has ended.
    pub ends: Arc<Event>,
}

/// Fills the bytes of the piece of a number, and the bytes beside it, if there is more to be done on the device.
pub type Fill<'a> = dyn Fn(usize, &mut [u8], &mut [u8]) -> Result<Option<Finish>> + Send + Sync + 'a;

/// Makes of a piece that goes up what it is to be, in the order of a stream: of the bytes beside it, which stay page-locked and as
/// they are as long as the piece's own, and of its address.
pub type Finish = Box<dyn FnOnce(&[u8], u64, &Stream) -> Result<()> + Send>;

/// Page-locked buffers that one upload leaves to the next.
#[derive(Debug)]
pub struct Staging {
    device: Arc<Device>,
    free: Mutex<Vec<Pinned>>,
}

impl Staging {
    /// No buffers yet.
    pub fn new(device: &Arc<Device>) -> Arc<Staging> {
        Arc::new(Staging { device: device.clone(), free: Mutex::default() })
    }

    /// A buffer of at least so many bytes.
    pub(super) fn take(&self, bytes: usize) -> Result<Pinned> {
        let kept = self.free().pop();
        kept.filter(|buffer| buffer.bytes >= bytes).map_or_else(|| Pinned::new(&self.device, bytes), Ok)
    }

    /// Gives a buffer back that nothing reads any more.
    pub(super) fn give(&self, buffer: Pinned) {
        self.free().push(buffer);
    }

    fn free(&self) -> MutexGuard<'_, Vec<Pinned>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An upload under way; dropping it stops it.
pub struct Upload {
    shared: Arc<Shared>,
}

struct Shared {
    staging: Arc<Staging>,
    /// Where pieces go; it stays as long as a copy to it may be under way.
    memory: Arc<Memory>,
    pieces: Vec<Piece>,
    /// Where in the host's store each piece has a place.
    slots: Vec<Option<Arc<Slot>>>,
    /// Copies from the store.
    stored: Stream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads that have not ended.
    threads: usize,
    /// First piece that no thread has taken.
    next: usize,
    /// Pieces whose places in the store were empty at first, each place once.
    empty: VecDeque<usize>,
    /// Threads that fill such a place.
    spare: usize,
    /// The event that comes when the piece is on the device, for each that is on its way.
    sent: Vec<Option<Arc<Event>>>,
    /// The event of each stream's newest copy, by stream.
    newest: HashMap<usize, Arc<Event>>,
    /// The event that each open gate waits for; none: it waits for nothing.
    gates: Vec<Option<Option<Arc<Event>>>>,
    /// The copies since they are timed.
    timed: Option<Vec<TimedCopy>>,
    failed: Option<anyhow::Error>,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece whose place in the store is locked and still empty, unless enough threads fill such places.
    fn to_store(&self, state: &mut State) -> Option<usize> {
        if state.spare >= SPARE.min(state.threads.saturating_sub(1)) {
            return None;
        }
        while let Some(&number) = state.empty.front() {
            let slot = self.slots[number].as_ref()?;
            if slot.filled().is_none() && !slot.is_locked() {
                return None; // places are locked in this order: none is yet
            }
            state.empty.pop_front();
            if slot.filled().is_none() {
                return Some(number);
            }
        }
        None
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, most: Duration) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Begins the copy of a piece from page-locked bytes, in the order of a stream, after an event, with what is left to do of those
    /// beside it; gives the event that comes when it is done. The upload must not have been stopped.
    fn copy(
        &self,
        state: &mut State,
        number: usize,
        after: Option<Arc<Event>>,
        bytes: &[u8],
        finish: Option<(&[u8], Finish)>,
        stream: &Stream,
    ) -> Result<Arc<Event>> {
        let event = Arc::new(Event::new(&self.staging.device, state.timed.is_some())?);
        if let Some(after) = after {
            stream.wait(&after)?;
        }
        if let Some(timed) = &mut state.timed {
            let begins = Arc::new(Event::new(&self.staging.device, true)?);
            begins.record(stream)?;
            timed.push(TimedCopy { piece: number, bytes: bytes.len(), begins, ends: event.clone() });
        }
        let address = self.memory.address + self.pieces[number].offset as u64;
        let piece = self.pieces[number];
        let (head, tail) = bytes.split_at(bytes.len() - piece.tail);
        // SAFETY: the bytes are a buffer that is filled again only after the event, or a slot of the store, which stays as it is
        // while an upload from it is under way. The place is within the memory, which lives as long as self, and free since its
        // gate is open; whoever uses it for something else ends the upload first.
        unsafe { stream.upload(address, head) }?;
        if !tail.is_empty() {
            // SAFETY: as above.
            unsafe { stream.upload(self.memory.address + piece.tail_offset as u64, tail) }?;
        }
        if let Some((beside, finish)) = finish {
            finish(beside, address, stream)?;
        }
        event.record(stream)?;
        state.sent[number] = Some(event.clone());
        state.newest.insert(stream.number(), event.clone());
        self.changed.notify_all();
        Ok(event)
    }
}

impl Drop for Shared {
    /// Copies from the store end before anything of it goes; of a device that is broken nobody knows what it reads.
    fn drop(&mut self) {
        let _ = self.staging.device.make_current();
        if self.stored.synchronize().is_err() {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

impl Upload {
    /// Starts to send pieces in order. `slots`: where in the host's store each has a place, if it has one, of its length. `gates`:
    /// how many there are; all are closed.
    ///
    /// # Errors
    /// A [`ResourceError`]: the system starts no more threads.
    pub fn start(
        staging: &Arc<Staging>,
        memory: &Arc<Memory>,
        pieces: Vec<Piece>,
        slots: Vec<Option<Arc<Slot>>>,
        gates: usize,
        fill: Arc<Fill<'static>>,
    ) -> Result<Upload> {
        let within = |offset: usize, bytes: usize| offset + bytes <= memory.bytes;
        let placed = |p: &Piece| p.tail <= p.bytes && within(p.offset, p.bytes - p.tail) && within(p.tail_offset, p.tail);
        let fits = |p: &Piece| p.bytes + p.beside <= PIECE && placed(p) && p.gate < gates;
        ensure!(pieces.iter().all(fits), "a piece is too large or has no gate");
        let same = |(slot, piece): (&Option<Arc<Slot>>, &Piece)| slot.as_ref().is_none_or(|slot| slot.bytes() == piece.bytes);
        ensure!(slots.len() == pieces.len() && slots.iter().zip(&pieces).all(same), "a piece is not as long as its slot");
        let count = THREADS.min(pieces.len());
        let mut seen = HashSet::new();
        let mut is_empty = |slot: &Arc<Slot>| seen.insert(Arc::as_ptr(slot)) && slot.filled().is_none();
        let empty = (0..slots.len()).filter(|&at| slots[at].as_ref().is_some_and(&mut is_empty)).collect();
        let state = State { sent: vec![None; pieces.len()], empty, gates: vec![None; gates], ..State::default() };
        let state = Mutex::new(state);
        let (staging, memory, stored) = (staging.clone(), memory.clone(), Stream::new(&staging.device)?);
        let shared = Shared { staging, memory, pieces, slots, stored, state, changed: Condvar::new() };
        let upload = Upload { shared: Arc::new(shared) };
        for number in 0..count {
            let (shared, fill) = (upload.shared.clone(), fill.clone());
            let work = move || {
                // Whoever waits for a piece must hear of any end.
                let sent = catch_unwind(AssertUnwindSafe(|| Sender::new(&shared)?.send(&*fill)));
                let mut state = shared.lock();
                if let Err(e) = sent.unwrap_or_else(|_| Err(anyhow!("an upload thread panicked"))) {
                    state.failed.get_or_insert(e);
                }
                state.threads -= 1;
                shared.changed.notify_all();
            };
            upload.shared.lock().threads += 1;
            if let Err(e) = std::thread::Builder::new().name(format!("upload {number}")).spawn(work) {
                upload.shared.lock().threads -= 1;
                return Err(ResourceError(format!("the system does not start a thread that reads weights: {e}")).into());
            }
        }
        Ok(upload)
    }

    /// Opens a gate: its pieces go up once `after` has come, or at once.
    pub fn open(&self, gate: usize, after: Option<Arc<Event>>) {
        self.shared.lock().gates[gate] = Some(after);
        self.shared.changed.notify_all();
    }

    /// Times the copies that begin from now on.
    pub fn time_copies(&self) {
        self.shared.lock().timed = Some(vec![]);
    }

    /// The copies that are timed, those under way among them.
    pub fn timed_copies(&self) -> Vec<TimedCopy> {
        self.shared.lock().timed.clone().unwrap_or_default()
    }

    /// Lets a stream wait until a piece is on the device; waits itself until the piece is on its way, or `keep_on` no more.
    ///
    /// # Errors
    /// The upload has failed, or what `keep_on` returns.
    pub fn wait_for(&self, piece: usize, stream: &Stream, keep_on: &mut KeepOn) -> Result<()> {
        let mut state = self.shared.lock();
        loop {
            if let Some(e) = state.failed.take() {
                state.failed = Some(anyhow!("{e:#}")); // the first who waits hears of it as it is, others in words
                return Err(e);
            }
            if let Some(event) = &state.sent[piece] {
                return stream.wait(event);
            }
            drop(self.shared.wait(state, ASKED));
            keep_on()?;
            state = self.shared.lock();
        }
    }

    /// Stops it, and waits until its places can be used for something else: the copies that began have ended.
    ///
    /// # Errors
    /// A fault of the device.
    pub fn end(self) -> Result<()> {
        self.stop();
        let begun: Vec<Arc<Event>> = self.shared.lock().newest.values().cloned().collect();
        begun.iter().try_for_each(|event| event.synchronize())
    }

    /// Stops it: its threads end, and no copy begins any more.
    pub fn stop(&self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Upload {
    /// Leaves it a moment in which threads give back their buffers.
    fn drop(&mut self) {
        self.stop();
        let (mut state, begun) = (self.shared.lock(), Instant::now());
        while state.threads > 0 && begun.elapsed() < PATIENCE {
            state = self.shared.wait(state, PATIENCE);
        }
    }
}

/// What a thread does next.
enum Task {
    /// Fills the piece of a number, and sends it after an event.
    Send { number: usize, after: Option<Arc<Event>> },
    /// Fills its place in the store alone.
    Store { number: usize },
    /// Nothing: all pieces are taken, or nobody wants them.
    End,
}

/// A thread with its stream, and two buffers each with what still reads it.
struct Sender<'s> {
    shared: &'s Shared,
    stream: Stream,
    slots: [Option<(Pinned, Option<Arc<Event>>)>; 2],
}

impl<'s> Sender<'s> {
    fn new(shared: &'s Shared) -> Result<Sender<'s>> {
        shared.staging.device.make_current()?;
        Ok(Sender { shared, stream: Stream::new(&shared.staging.device)?, slots: [None, None] })
    }

    /// Takes piece after piece.
    fn send(&mut self, fill: &Fill) -> Result<()> {
        let largest = self.shared.pieces.iter().map(|p| p.bytes + p.beside).max().unwrap_or(0);
        for turn in 0.. {
            let (number, after) = match self.take()? {
                Task::Send { number, after } => (number, after),
                Task::Store { number } => {
                    self.store(number, fill);
                    continue;
                }
                Task::End => return Ok(()),
            };
            let piece = self.shared.pieces[number];
            if let Some(slot) = &self.shared.slots[number]
                && let Some(mut filling) = slot.fill()
            {
                ensure!(fill(number, filling.bytes(), &mut [])?.is_none(), "what the host keeps is whole");
                let mut state = self.shared.lock();
                // Once the upload has been stopped the weight may be another: what was read does not count.
                if state.stopped {
                    return Ok(());
                }
                filling.done();
                self.shared.copy(&mut state, number, after, slot.filled().unwrap_or_default(), None, &self.stream)?;
                continue;
            }
            let slot = &mut self.slots[turn % 2];
            let (buffer, busy) = match slot {
                Some(used) => used,
                None => slot.insert((self.shared.staging.take(largest)?, None)),
            };
            if let Some(event) = busy.take() {
                event.synchronize()?;
            }
            let (bytes, beside) = buffer.bytes()[..piece.bytes + piece.beside].split_at_mut(piece.bytes);
            let finish = fill(number, bytes, beside)?;
            // No copy may begin once the upload has been stopped.
            let mut state = self.shared.lock();
            if state.stopped {
                return Ok(());
            }
            *busy = Some(self.shared.copy(
                &mut state,
                number,
                after,
                bytes,
                finish.map(|finish| (&*beside, finish)),
                &self.stream,
            )?);
        }
        Ok(())
    }

    /// Fills a piece's place in the store, for later. If it cannot be read, whoever sends it will say so.
    fn store(&self, number: usize, fill: &Fill) {
        let filling = self.shared.slots[number].as_ref().and_then(|slot| slot.fill());
        let read = filling.map(|mut filling| fill(number, filling.bytes(), &mut []).map(|_| filling));
        let mut state = self.shared.lock();
        state.spare -= 1;
        match read {
            // Once the upload has been stopped the weight may be another: what was read does not count.
            Some(Ok(filling)) if !state.stopped => filling.done(),
            Some(Err(_)) => state.empty.clear(),
            _ => {}
        }
    }

    /// The next thing that a thread has to do. What the store has already is sent on the way.
    fn take(&self) -> Result<Task> {
        let shared = self.shared;
        let mut state = shared.lock();
        loop {
            if state.stopped || state.failed.is_some() || state.next == shared.pieces.len() {
                return Ok(Task::End);
            }
            let number = state.next;
            let Some(after) = state.gates[shared.pieces[number].gate].clone() else {
                if let Some(number) = shared.to_store(&mut state) {
                    state.spare += 1;
                    return Ok(Task::Store { number });
                }
                state = shared.wait(state, Duration::MAX);
                continue;
            };
            state.next += 1;
            match shared.slots[number].as_ref().and_then(|slot| slot.filled()) {
                Some(bytes) => drop(shared.copy(&mut state, number, after, bytes, None, &shared.stored)?),
                None => return Ok(Task::Send { number, after }),
            }
        }
    }
}

impl Drop for Sender<'_> {
    /// Also when filling a buffer panics: buffers go back only when nothing reads them any more.
    fn drop(&mut self) {
        let buffers = self.slots.iter_mut().filter_map(Option::take).map(|(buffer, _)| buffer);
        match self.stream.synchronize() {
            Ok(()) => self.shared.staging.free().extend(buffers),
            Err(e) => {
                buffers.for_each(std::mem::forget); // of a device that is broken nobody knows what it reads
                self.shared.lock().failed.get_or_insert(e);
            }
        }
    }
}
