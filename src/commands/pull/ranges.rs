//! A large file over several connections: each fetches a range into memory, and the ranges are written in their order.
//!
//! So what is on the disk is always the file's beginning, as any client goes on from, and its digest is taken as it is written. A
//! server that sends no ranges is left to whoever asks for the rest over one connection. Where the hub leads is asked for once, as
//! long as that answers: its addresses are good for an hour.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, scope};

use anyhow::{Error, Result, anyhow};

use super::client::{Client, Failure, PIECE, broken, header};
use super::remote::Remote;
use crate::error::no_thread;
use crate::weights::{ModelError, shown};

/// Bytes of a range. As many for each connection wait in memory at most.
const RANGE: u64 = 16 << 20;

/// Ranges of a file that is fetched over several connections, at least: fewer are soon there over one.
const LARGE: u64 = 3;

/// The rest of a file, in ranges.
pub(super) struct Ranges<'a> {
    remote: &'a Remote,
    client: &'a Client<'a>,
    /// Where the first begins.
    from: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The first range that nobody has taken.
    next: u64,
    /// The first that is not written.
    written: u64,
    /// Those that came before their turn.
    whole: BTreeMap<u64, Vec<u8>>,
    /// Where the hub leads.
    address: Option<String>,
    /// Whether the server sends ranges, once that is known.
    ranged: Option<bool>,
    failed: Option<Error>,
    /// Nobody wants more.
    ended: bool,
}

/// Fetches the rest of a file from a byte on over so many connections, and hands it out piece by piece in order. Does nothing with a
/// file that is small, and stops where the server sends no ranges.
///
/// # Errors
/// A range that fails for good, or what `write` returns.
pub(super) fn fetch(
    remote: &Remote,
    client: &Client,
    from: u64,
    connections: usize,
    write: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    if connections < 2 || remote.bytes.saturating_sub(from) < LARGE * RANGE {
        return Ok(());
    }
    let ranges = Ranges { remote, client, from, state: Mutex::default(), changed: Condvar::new() };
    scope(|threads| {
        for _ in 0..connections {
            if let Err(error) = Builder::new().spawn_scoped(threads, || ranges.work(connections as u64)) {
                ranges.end(Some(no_thread(error).into()));
            }
        }
        let written = ranges.write(write);
        ranges.end(written.err());
    });
    match ranges.state.into_inner().unwrap_or_else(PoisonError::into_inner).failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl Ranges<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody needs to go on; the first error counts.
    fn end(&self, error: Option<Error>) {
        let mut state = self.lock();
        state.ended = true;
        if let Some(error) = error {
            state.failed.get_or_insert(error);
        }
        self.changed.notify_all();
    }

    fn count(&self) -> u64 {
        (self.remote.bytes - self.from).div_ceil(RANGE)
    }

    fn bytes_of(&self, number: u64) -> Range<u64> {
        let start = self.from + number * RANGE;
        start..self.remote.bytes.min(start + RANGE)
    }

    /// Hands out the ranges in their order.
    fn write(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for number in 0..self.count() {
            let mut state = self.lock();
            let bytes = loop {
                if let Some(bytes) = state.whole.remove(&number) {
                    break bytes;
                }
                if state.ended {
                    return Ok(());
                }
                state = self.wait(state);
            };
            drop(state);
            write(&bytes)?;
            self.lock().written = number + 1;
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Fetches range after range.
    fn work(&self, connections: u64) {
        while let Some(number) = self.take(connections) {
            let (range, mut bytes) = (self.bytes_of(number), Vec::new());
            let what = shown(&self.remote.path);
            match self.client.patiently(&what, || self.bring(&range, &mut bytes)) {
                Ok(true) => drop(self.lock().whole.insert(number, bytes)),
                Ok(false) => self.end(None),
                Err(error) => self.end(Some(error)),
            }
            self.changed.notify_all();
        }
    }

    /// The next range, once there is room for it in memory. Until it is known that the server sends ranges, only the first is asked
    /// for.
    fn take(&self, connections: u64) -> Option<u64> {
        let mut state = self.lock();
        loop {
            if state.ended || state.next == self.count() {
                return None;
            }
            let probes = state.ranged.is_none() && state.next > 0;
            if state.next < state.written + connections && !probes {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.wait(state);
        }
    }

    /// Asks for what a range lacks, and reads it; false: the server sends no ranges.
    fn bring(&self, range: &Range<u64>, bytes: &mut Vec<u8>) -> Result<bool, Failure> {
        let Remote { path, url, .. } = self.remote;
        let path = &shown(path);
        let (from, mut state) = (range.start + bytes.len() as u64, self.lock());
        if state.ended {
            return Ok(false);
        }
        let known = state.address.clone();
        drop(state);
        let get = |address: &str| self.client.get(address, path, Some((from, Some(range.end - 1))));
        let asked = match &known {
            // An address that was good once may not be any more; the hub knows another.
            Some(known) => match get(known) {
                Err(Failure::Final(_)) => get(url),
                other => other,
            },
            None => get(url),
        };
        let (response, address) = asked?;
        let (status, headers) = (response.status().as_u16(), response.headers());
        let said = header(headers, "content-range").and_then(|text| text.strip_prefix("bytes ")?.split_once('/'));
        if status == 200 {
            self.end_unranged();
            return Ok(false);
        }
        let first = said.and_then(|(range, _)| range.split('-').next()?.parse().ok());
        if let Some(total) = said.and_then(|(_, total)| total.parse::<u64>().ok()).filter(|total| *total != self.remote.bytes) {
            let fault = format!("{path}: the hub lists {} bytes, and sends {total}", self.remote.bytes);
            return Err(ModelError::new(fault).into());
        }
        if status != 206 || first != Some(from) {
            return Err(Failure::passing("the answer has another range than was asked for"));
        }
        state = self.lock();
        (state.ranged, state.address) = (Some(true), Some(address));
        drop(state);
        self.changed.notify_all();
        self.read(range, bytes, &mut response.into_body().into_reader(), path)
    }

    /// The server sends the whole file, whatever is asked for.
    fn end_unranged(&self) {
        self.lock().ranged = Some(false);
        self.end(None);
    }

    fn read(&self, range: &Range<u64>, bytes: &mut Vec<u8>, body: &mut dyn Read, path: &str) -> Result<bool, Failure> {
        let (all, before) = ((range.end - range.start) as usize, bytes.len());
        bytes.reserve_exact(all - before);
        let mut piece = vec![0; PIECE];
        while bytes.len() < all {
            let most = (all - bytes.len()).min(piece.len());
            match body.read(&mut piece[..most]) {
                Ok(0) => return Err(broken(&ErrorKind::UnexpectedEof.into(), bytes.len() > before)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error, bytes.len() > before)),
                Ok(got) => bytes.extend(&piece[..got]),
            }
            if self.client.stopped.load(Relaxed) {
                return Err(Failure::Final(anyhow!("{path}: another file could not be fetched")));
            }
            if self.lock().ended {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
