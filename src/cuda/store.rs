//! Weights in page-locked memory of the host, from which the device copies by itself, again and again.
//!
//! Memory is taken in chunks of huge pages, and locked chunk by chunk by a thread of its own, while weights still come by way of
//! buffers ([`super::Staging`]). A *slot* is a run of bytes of a chunk. Whoever first sends its bytes once the chunk is locked fills
//! it; from then on copies need no thread. What the system does not lock stays with the buffers: slower, with the same bytes. Once
//! it has refused, the store grows no more.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};

use anyhow::Result;
use memmap2::MmapMut;

use super::device::{Device, Locked};
use super::numa;
use crate::error::ResourceError;

/// Bytes of a chunk, at least.
const CHUNK: usize = 256 << 20;
/// Threads that touch a chunk's pages, near the device.
const TOUCHING: usize = 4;

/// Page-locked memory that grows by slots and is kept.
#[derive(Debug)]
pub struct Store {
    device: Arc<Device>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Chunks that are to be locked, in order.
    waiting: std::collections::VecDeque<Weak<Chunk>>,
    /// Whether a thread locks them.
    working: bool,
    /// Bytes of chunks that are locked, or are to be.
    bytes: usize,
    /// Whether the system has refused to lock a chunk.
    closed: bool,
    /// Why, until it has been told.
    refused: Option<String>,
}

/// Memory that is locked in one piece.
#[derive(Debug)]
struct Chunk {
    bytes: usize,
    locked: OnceLock<LockedBytes>,
}

#[derive(Debug)]
struct LockedBytes(UnsafeCell<Locked>);

// SAFETY: slots of a chunk do not overlap, and each is written by whoever has its `Filling`, of which there is one at a time; nothing
// else reads or writes it.
unsafe impl Sync for LockedBytes {}

/// A run of bytes of the store.
#[derive(Debug)]
pub struct Slot {
    chunk: Arc<Chunk>,
    offset: usize,
    bytes: usize,
    filled: AtomicBool,
    filling: Mutex<()>,
}

/// The right to fill a slot, which is nobody else's meanwhile.
pub struct Filling<'s> {
    slot: &'s Slot,
    _alone: MutexGuard<'s, ()>,
}

impl Store {
    /// Nothing is taken yet.
    pub fn new(device: &Arc<Device>) -> Store {
        Store { device: device.clone(), state: Arc::default() }
    }

    /// Bytes that are locked, or are to be.
    pub fn bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    /// How many bytes of so many may still be asked for.
    pub fn room(&self, most: usize) -> usize {
        let state = lock(&self.state);
        if state.closed { 0 } else { most.saturating_sub(state.bytes) }
    }

    /// Why the system has not locked what it was asked for; told once.
    pub fn refused(&self) -> Option<String> {
        lock(&self.state).refused.take()
    }

    /// Slots of these sizes, one after another. Their memory is taken and locked from now on, in their order.
    pub fn slots(&self, sizes: &[usize]) -> Vec<Arc<Slot>> {
        let mut slots = Vec::with_capacity(sizes.len());
        let mut rest = sizes;
        while !rest.is_empty() {
            let before = rest.iter().scan(0, |sum, size| Some(std::mem::replace(sum, *sum + size)));
            let count = before.take_while(|bytes| *bytes < CHUNK).count();
            let (own, others) = rest.split_at(count);
            let chunk = Arc::new(Chunk { bytes: own.iter().sum(), locked: OnceLock::new() });
            let mut offset = 0;
            for &bytes in own {
                let (filled, filling) = (AtomicBool::new(false), Mutex::new(()));
                slots.push(Arc::new(Slot { chunk: chunk.clone(), offset, bytes, filled, filling }));
                offset += bytes;
            }
            let mut state = lock(&self.state);
            state.waiting.push_back(Arc::downgrade(&chunk));
            state.bytes += chunk.bytes;
            rest = others;
        }
        self.work();
        slots
    }

    /// Has a thread lock the chunks that wait, if none does.
    fn work(&self) {
        let mut state = lock(&self.state);
        if state.working || state.waiting.is_empty() {
            return;
        }
        let (device, shared) = (self.device.clone(), Arc::downgrade(&self.state));
        let spawned = std::thread::Builder::new().name("lock memory".into()).spawn(move || lock_chunks(&device, &shared));
        match spawned {
            Ok(_) => state.working = true,
            Err(e) => state.close(format!("the system does not start a thread that locks memory: {e}"), 0),
        }
    }
}

impl State {
    /// No more is asked of the system, which has refused so many bytes.
    fn close(&mut self, why: String, bytes: usize) {
        let waiting: usize = self.waiting.drain(..).filter_map(|chunk| chunk.upgrade()).map(|chunk| chunk.bytes).sum();
        self.bytes = self.bytes.saturating_sub(bytes + waiting);
        (self.closed, self.working, self.refused) = (true, false, Some(why));
    }
}

/// Locks chunk after chunk, until none waits or nobody wants them.
fn lock_chunks(device: &Arc<Device>, shared: &Weak<Mutex<State>>) {
    device.bus().iter().for_each(|bus| numa::stay_near(bus));
    loop {
        let Some(state) = shared.upgrade() else { return };
        let next = {
            let mut state = lock(&state);
            let next = state.waiting.pop_front();
            state.working = next.is_some();
            next
        };
        let Some(next) = next else { return };
        let Some(chunk) = next.upgrade() else { continue };
        match chunk.take(device) {
            Ok(locked) => drop(chunk.locked.set(LockedBytes(UnsafeCell::new(locked)))),
            Err(e) => return lock(&state).close(format!("{e:#}"), chunk.bytes),
        }
    }
}

impl Chunk {
    fn take(&self, device: &Arc<Device>) -> Result<Locked> {
        device.make_current()?;
        let mut map: MmapMut = huge(self.bytes.max(1))?;
        touch(&mut map);
        Locked::new(device, map)
    }
}

impl Slot {
    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether its memory is there and locked.
    pub fn is_locked(&self) -> bool {
        self.chunk.locked.get().is_some()
    }

    /// Its bytes, once they are filled.
    pub fn filled(&self) -> Option<&[u8]> {
        self.filled.load(Ordering::Acquire).then(|| {
            let locked = self.chunk.locked.get().expect("a slot is filled after its chunk is locked");
            // SAFETY: the range is this slot's, and nobody writes to it while it counts as filled (`forget`).
            unsafe { &(&*locked.0.get()).bytes()[self.offset..self.offset + self.bytes] }
        })
    }

    /// The right to fill it; none if its memory is not locked, it is filled, or somebody else fills it now. Nobody waits for
    /// whoever does: the file that is read may not answer.
    pub fn fill(&self) -> Option<Filling<'_>> {
        let alone = match self.filling.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(e)) => e.into_inner(), // it was not filled
            Err(TryLockError::WouldBlock) => return None,
        };
        let fills = self.is_locked() && !self.filled.load(Ordering::Acquire);
        fills.then_some(Filling { slot: self, _alone: alone })
    }

    /// Its bytes are others' from now on, and are filled again when they are needed. No copy from it may be under way, nor an upload
    /// that has not been stopped.
    pub fn forget(&self) {
        self.filled.store(false, Ordering::Release);
    }
}

impl Filling<'_> {
    /// The slot's bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        let locked = self.slot.chunk.locked.get().expect("only a slot that is locked is filled");
        // SAFETY: the range is this slot's; nobody else writes to it while this is held, and nobody reads it before it counts as
        // filled.
        unsafe { std::slice::from_raw_parts_mut((*locked.0.get()).pointer().add(self.slot.offset), self.slot.bytes) }
    }

    /// All of them are there.
    pub fn done(self) {
        self.slot.filled.store(true, Ordering::Release);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Anonymous memory in huge pages, where the system has them; nothing is there until it is touched.
pub(super) fn huge(bytes: usize) -> Result<MmapMut> {
    let map = MmapMut::map_anon(bytes);
    let map = map.map_err(|e| ResourceError(format!("the system does not give {} MB of memory: {e}", bytes / 1_000_000)))?;
    // A system without huge pages refuses, and gives small ones.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Has every page be there, in the node of the calling thread.
fn touch(map: &mut [u8]) {
    let part = map.len().div_ceil(TOUCHING).max(1);
    std::thread::scope(|scope| {
        for part in map.chunks_mut(part) {
            let touch = move || part.fill(0);
            // Where no thread starts, the driver touches what it locks.
            let _ = std::thread::Builder::new().spawn_scoped(scope, touch);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_huge_pages_is_memory() {
        const BYTES: usize = (24 << 20) + 1;
        let mut map = huge(BYTES).unwrap();
        map.fill(7);
        assert!(map.len() == BYTES && map.iter().all(|&byte| byte == 7));
        touch(&mut map);
        assert!(map.iter().all(|&byte| byte == 0));
        touch(&mut []);
        assert!(huge(usize::MAX / 4).unwrap_err().is::<ResourceError>());
    }
}
