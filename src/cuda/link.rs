//! The link between host and device, measured: what copies from page-locked memory carry, and what locking memory costs.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use rayon::prelude::*;

use super::device::{Device, Event, Locked, Memory, Stream};
use super::store::huge;
use super::upload::{PIECE, Staging};

/// Bytes of host memory that are locked and copied, and of device memory.
const BYTES: usize = 1 << 30;
/// A thread touches so many of them at a time.
const TOUCHED: usize = 16 << 20;
/// Bytes that are copied for one rate: half a second's worth where the link is fast.
const COPIED: usize = 24 << 30;

/// Measures the link of a device, with memory of its own on both sides.
pub struct Link {
    device: Arc<Device>,
    stream: Stream,
    memory: Memory,
    host: Locked,
    /// Seconds for each gigabyte of host memory to be there: mapped in huge pages and touched by all threads.
    pub touch_s_per_gb: f64,
    /// Seconds for each gigabyte of it to be locked.
    pub lock_s_per_gb: f64,
}

impl Link {
    /// Takes a gibibyte on both sides, and locks the host's.
    ///
    /// # Errors
    /// A [`ResourceError`]: not so much is free, or the system locks no memory.
    pub fn new(device: &Arc<Device>) -> Result<Link> {
        device.make_current()?;
        let (stream, memory) = (Stream::new(device)?, Memory::new(device, BYTES)?);
        let begun = Instant::now();
        let mut map = huge(BYTES)?;
        map.par_chunks_mut(TOUCHED).for_each(|part| part.fill(1));
        let touched = Instant::now();
        let host = Locked::new(device, map)?;
        let per_gb = |seconds: f64| seconds * 1e9 / BYTES as f64;
        let (touch, lock) = ((touched - begun).as_secs_f64(), touched.elapsed().as_secs_f64());
        let (touch_s_per_gb, lock_s_per_gb) = (per_gb(touch), per_gb(lock));
        Ok(Link { device: device.clone(), stream, memory, host, touch_s_per_gb, lock_s_per_gb })
    }

    /// Gigabytes a second of copies to the device, one after another, of so many bytes each (a divisor of a gibibyte).
    pub fn upload_gb_per_s(&self, piece: usize) -> Result<f64> {
        let [begin, end] = [Event::new(&self.device, true)?, Event::new(&self.device, true)?];
        let piece = piece.min(BYTES);
        // The host is not ahead by more than it takes to copy all of the memory once.
        let mut milliseconds = 0.0;
        for pass in 0..=COPIED / BYTES {
            begin.record(&self.stream)?;
            for at in (0..BYTES).step_by(piece) {
                // SAFETY: both ranges are this link's, which waits below; nothing else uses them.
                unsafe { self.stream.upload(self.memory.address + at as u64, &self.host.bytes()[at..(at + piece).min(BYTES)]) }?;
            }
            end.record(&self.stream)?;
            end.synchronize()?;
            // The first pass wakes the link.
            milliseconds += if pass == 0 { 0.0 } else { f64::from(end.milliseconds_since(&begin)?) };
        }
        Ok(COPIED as f64 / milliseconds / 1e6)
    }
}

impl Drop for Link {
    /// Copies that a fault has left under way end before their memory goes.
    fn drop(&mut self) {
        let _ = self.stream.synchronize();
    }
}

/// GB/s of some copies to the device: 10 ms of them, from a buffer that stays with `staging`; none if there is no room for it.
///
/// # Errors
/// What the driver reports.
pub fn copies_gb_per_s(device: &Arc<Device>, staging: &Staging) -> Result<Option<f64>> {
    const COPIES: usize = 16;
    device.make_current()?;
    let (Ok(memory), Ok(mut buffer)) = (Memory::new(device, PIECE), staging.take(PIECE)) else { return Ok(None) };
    let (stream, [begin, end]) = (Stream::new(device)?, [Event::new(device, true)?, Event::new(device, true)?]);
    let copy = |bytes: &[u8]| {
        // SAFETY: both ranges are this function's, which waits below; nothing else uses them.
        unsafe { stream.upload(memory.address, bytes) }
    };
    let bytes = &buffer.bytes()[..PIECE];
    let asked = copy(bytes).and_then(|()| begin.record(&stream)).and_then(|()| (0..COPIES).try_for_each(|_| copy(bytes)));
    let recorded = asked.and_then(|()| end.record(&stream));
    stream.synchronize()?;
    recorded?;
    staging.give(buffer);
    Ok(Some((COPIES * PIECE) as f64 / f64::from(end.milliseconds_since(&begin)?) / 1e6))
}
