//! Weights to the device while it computes: threads fill page-locked buffers, a copy stream each empties them.
//!
//! Pieces go up in their order. A piece behind a *gate* waits until the gate is opened with an event: what lay at its
//! destination before is then done. Whoever needs a piece lets its own stream wait for it. Locking memory takes longer than
//! filling it, so a thread starts with one buffer, and buffers are kept for the next upload.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow, ensure};

use super::device::{Device, Event, Pinned, Stream};

/// Largest piece, in bytes; a multiple of every element's size.
pub const PIECE: usize = 32 << 20;
/// Threads that fill buffers, each with two of them, so that one is copied while the other is filled.
const THREADS: usize = 6;

/// A run of bytes for one place on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it goes.
    pub address: u64,
    /// Its length, at most [`PIECE`].
    pub bytes: usize,
    /// The gate it waits for.
    pub gate: usize,
}

/// Fills the bytes of the piece of a number.
pub type Fill<'a> = dyn Fn(usize, &mut [u8]) -> Result<()> + Send + Sync + 'a;

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
    fn take(&self, bytes: usize) -> Result<Pinned> {
        let kept = self.free().pop();
        kept.filter(|buffer| buffer.bytes >= bytes).map_or_else(|| Pinned::new(&self.device, bytes), Ok)
    }

    fn free(&self) -> MutexGuard<'_, Vec<Pinned>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer and what still reads it.
type Slot = Option<(Pinned, Option<Arc<Event>>)>;

/// An upload under way; dropping it stops it.
pub struct Upload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    staging: Arc<Staging>,
    pieces: Vec<Piece>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// First piece that no thread has taken.
    next: usize,
    /// The event that comes when the piece is on the device, for each that is on its way.
    sent: Vec<Option<Arc<Event>>>,
    /// The event that each open gate waits for; none: it waits for nothing.
    gates: Vec<Option<Option<Arc<Event>>>>,
    failed: Option<anyhow::Error>,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upload {
    /// Starts to send pieces in order. `gates`: how many there are; all are closed.
    ///
    /// # Errors
    /// No memory or threads for it.
    pub fn start(staging: &Arc<Staging>, pieces: Vec<Piece>, gates: usize, fill: Arc<Fill<'static>>) -> Result<Upload> {
        ensure!(pieces.iter().all(|p| p.bytes <= PIECE && p.gate < gates), "a piece is too large or has no gate");
        let largest = pieces.iter().map(|p| p.bytes).max().unwrap_or(0);
        let count = THREADS.min(pieces.len());
        let state = State { sent: vec![None; pieces.len()], gates: vec![None; gates], ..State::default() };
        let shared = Arc::new(Shared { staging: staging.clone(), pieces, state: Mutex::new(state), changed: Condvar::new() });
        let mut upload = Upload { shared, threads: vec![] };
        for number in 0..count {
            let (shared, fill) = (upload.shared.clone(), fill.clone());
            let work = move || {
                // Whoever waits for a piece must hear of any end.
                let sent = catch_unwind(AssertUnwindSafe(|| send(&shared, &*fill, largest)));
                if let Err(e) = sent.unwrap_or_else(|_| Err(anyhow!("an upload thread panicked"))) {
                    shared.lock().failed.get_or_insert(e);
                    shared.changed.notify_all();
                }
            };
            upload.threads.push(std::thread::Builder::new().name(format!("upload {number}")).spawn(work)?);
        }
        Ok(upload)
    }

    /// Opens a gate: its pieces go up once `after` has come, or at once.
    pub fn open(&self, gate: usize, after: Option<Arc<Event>>) {
        self.shared.lock().gates[gate] = Some(after);
        self.shared.changed.notify_all();
    }

    /// Lets a stream wait until a piece is on the device.
    ///
    /// # Errors
    /// The upload has failed.
    pub fn wait_for(&self, piece: usize, stream: &Stream) -> Result<()> {
        let mut state = self.shared.lock();
        loop {
            if let Some(e) = state.failed.take() {
                state.failed = Some(anyhow!("{e:#}")); // the first who waits hears of it as it is, others in words
                return Err(e);
            }
            if let Some(event) = &state.sent[piece] {
                return stream.wait(event);
            }
            state = self.shared.wait(state);
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// A thread's work: takes piece after piece.
fn send(shared: &Shared, fill: &Fill, largest: usize) -> Result<()> {
    shared.staging.device.make_current()?;
    let stream = Stream::new(&shared.staging.device)?;
    let mut slots: [Slot; 2] = [None, None];
    let sent_all = pieces(shared, fill, &stream, &mut slots, largest);
    // The buffers may go only when nothing reads them any more.
    let done = stream.synchronize();
    shared.staging.free().extend(slots.into_iter().flatten().map(|(buffer, _)| buffer));
    sent_all.and(done)
}

fn pieces(shared: &Shared, fill: &Fill, stream: &Stream, slots: &mut [Slot; 2], largest: usize) -> Result<()> {
    for turn in 0.. {
        let Some((number, after)) = take(shared) else { return Ok(()) };
        let piece = shared.pieces[number];
        let slot = &mut slots[turn % 2];
        let (buffer, busy) = match slot {
            Some(used) => used,
            None => slot.insert((shared.staging.take(largest)?, None)),
        };
        if let Some(event) = busy.take() {
            event.synchronize()?;
        }
        let bytes = &mut buffer.bytes()[..piece.bytes];
        fill(number, bytes)?;
        if let Some(event) = after {
            stream.wait(&event)?;
        }
        let event = Arc::new(Event::new(&shared.staging.device, false)?);
        // SAFETY: the buffer is filled again only after the event; the destination is free since its gate is open.
        unsafe { stream.upload(piece.address, bytes) }?;
        event.record(stream)?;
        *busy = Some(event.clone());
        shared.lock().sent[number] = Some(event);
        shared.changed.notify_all();
    }
    Ok(())
}

/// The next piece, once its gate is open, and what its copy must wait for; none when all are taken or nobody wants them.
fn take(shared: &Shared) -> Option<(usize, Option<Arc<Event>>)> {
    let mut state = shared.lock();
    loop {
        if state.stopped || state.failed.is_some() || state.next == shared.pieces.len() {
            return None;
        }
        let number = state.next;
        if let Some(after) = state.gates[shared.pieces[number].gate].clone() {
            state.next += 1;
            return Some((number, after));
        }
        state = shared.wait(state);
    }
}
