//! Fetching: a few files at once, each from where it was left, compared with its digest before it has its name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::{Builder, scope};

use anyhow::{Context, Error, Result, anyhow};
use indicatif::ProgressBar;

use super::Ears;
use super::client::{Client, Failure, PIECE, broken, header};
use super::place::write_small;
use super::plan::Plan;
use super::ranges;
use super::remote::{Remote, size};
use crate::error::{ResourceError, no_thread};
use crate::weights::{ModelError, RunningDigest, shown};

/// Files that are fetched at once, large ones over several connections each.
const FILES_AT_ONCE: usize = 2;

/// Counts bytes that are there: on a bar, or a line for each tenth where there is none.
struct Count<'a> {
    bar: &'a ProgressBar,
    say: Option<&'a (dyn Fn(&str) + Sync)>,
    tenths: AtomicU64,
}

impl Count<'_> {
    fn more(&self, bytes: u64) {
        self.bar.inc(bytes);
        let (position, all) = (self.bar.position(), self.bar.length().unwrap_or(0).max(1));
        let tenths = (u128::from(position) * 10 / u128::from(all)) as u64;
        if let Some(say) = self.say.filter(|_| tenths > self.tenths.fetch_max(tenths, Relaxed)) {
            say(&format!("{} % of {}", tenths * 10, size(all)));
        }
    }

    fn less(&self, bytes: u64) {
        self.bar.dec(bytes);
    }
}

/// Fetches all files, links them, and then says which commits they are of; the model's own last, since it is what finds it.
///
/// # Errors
/// The first file's that fails for good; the others stop then, and keep what they have.
pub(super) fn all(plan: &Plan, client: &Client, ears: &Ears, connections: usize, quiet: bool) -> Result<()> {
    let mut seen = BTreeSet::new(); // equal files have one place
    let files: Vec<&Remote> = plan.files().filter(|file| seen.insert(&file.place.whole)).collect();
    ears.bar.set_length(files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes)));
    let say = (ears.bar.is_hidden() && !quiet).then_some(ears.say);
    let count = Count { bar: ears.bar, say, tenths: AtomicU64::new(0) };
    let (next, fault) = (AtomicUsize::new(0), Mutex::new(None::<Error>));
    let fail = |error: Error| {
        fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
        client.stopped.store(true, Relaxed); // not before: another's word that it stopped would be the first
    };
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Relaxed)).filter(|_| !client.stopped.load(Relaxed)) {
            if let Err(error) = fetch(file, client, connections, &count) {
                fail(error);
            }
        }
    };
    scope(|threads| {
        for _ in 1..FILES_AT_ONCE.min(files.len()) {
            if let Err(error) = Builder::new().spawn_scoped(threads, work) {
                return fail(no_thread(error).into());
            }
        }
        work();
    });
    ears.bar.finish_and_clear();
    if let Some(error) = fault.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        return Err(error);
    }
    plan.files().try_for_each(|file| file.place.link())?;
    for repository in plan.repositories.iter().rev() {
        if let (Some(path), Some(commit)) = (&repository.reference, &repository.commit) {
            write_small(path, commit)?;
        }
    }
    Ok(())
}

/// Brings one file to its place.
fn fetch(file: &Remote, client: &Client, connections: usize, count: &Count) -> Result<()> {
    let name = shown(&file.path);
    let _lock = file.place.lock(|| client.say(&format!("{name}: another program fetches it; waiting for that")))?;
    if file.place.is_whole(file.bytes) {
        if is_as_listed(file, count)? {
            return Ok(());
        }
        client.say(&format!("{name}: the one that is there is not the hub's; fetching that"));
    }
    let mut part = Part::open(file, count)?;
    ranges::fetch(file, client, part.have, connections, &mut |bytes| part.write(bytes))?;
    client.patiently(&name, || part.go_on(client))?;
    part.end()
}

/// Whether a whole file is the one that the hub lists: one that is named by its digest is; of another, the bytes are compared.
fn is_as_listed(file: &Remote, count: &Count) -> Result<bool> {
    if file.place.link.is_some() {
        count.more(file.bytes);
        return Ok(true);
    }
    let path = &file.place.whole;
    let read = || read_through(&mut File::open(path)?, file, count);
    let (digest, have) = read().with_context(|| format!("cannot read {}", path.display()))?;
    let same = digest.end() == file.digest;
    if !same {
        count.less(have);
    }
    Ok(same)
}

/// The digest of what a file holds, from where it stands on, and how many bytes that is; they count as there.
fn read_through(from: &mut File, remote: &Remote, count: &Count) -> std::io::Result<(RunningDigest, u64)> {
    let (mut digest, mut have, mut piece) = (digest_of(remote), 0, vec![0; PIECE]);
    loop {
        let got = from.read(&mut piece)?;
        if got == 0 {
            return Ok((digest, have));
        }
        digest.update(&piece[..got]);
        have += got as u64;
        count.more(got as u64);
    }
}

/// What is there of a file.
struct Part<'a> {
    remote: &'a Remote,
    count: &'a Count<'a>,
    file: File,
    have: u64,
    /// Of what is there.
    digest: RunningDigest,
}

impl<'a> Part<'a> {
    /// Opens it, and reads what an earlier run has left.
    fn open(remote: &'a Remote, count: &'a Count) -> Result<Part<'a>> {
        let path = &remote.place.part;
        // A link would have another file written, a pipe waited for.
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(anyhow!("{} is no regular file, where what is fetched is kept; delete it", path.display()));
        }
        let open = || {
            let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
            if file.metadata()?.len() > remote.bytes {
                file.set_len(0)?;
            }
            let (digest, have) = read_through(&mut file, remote, count)?;
            Ok::<_, std::io::Error>((file, digest, have))
        };
        let (file, digest, have) = open().with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Part { remote, count, file, have, digest })
    }

    /// Forgets what is there.
    fn restart(&mut self) -> Result<()> {
        let again = self.file.set_len(0).and_then(|()| self.file.rewind());
        again.with_context(|| format!("cannot write {}", self.remote.place.part.display()))?;
        self.count.less(self.have);
        (self.have, self.digest) = (0, digest_of(self.remote));
        Ok(())
    }

    /// Asks for the rest and writes what comes.
    fn go_on(&mut self, client: &Client) -> Result<(), Failure> {
        let Remote { bytes, path, url, .. } = self.remote;
        let path = &shown(path);
        if self.have == *bytes {
            return Ok(());
        }
        let (response, _) = client.get(url, path, (self.have > 0).then_some((self.have, None)))?;
        let (status, headers) = (response.status().as_u16(), response.headers());
        let range = header(headers, "content-range").and_then(|text| text.strip_prefix("bytes "));
        let (first, total) = match status {
            206 => {
                let range = range.and_then(|range| range.split_once('/'));
                let first = range.and_then(|(range, _)| range.split('-').next()?.parse().ok());
                (first, range.and_then(|(_, total)| total.parse().ok()))
            }
            200 => (Some(0), header(headers, "content-length").and_then(|text| text.parse::<u64>().ok())),
            _ => (None, range.and_then(|range| range.strip_prefix("*/")?.parse().ok())),
        };
        if let Some(total) = total.filter(|total| total != bytes) {
            return Err(ModelError::new(format!("{path}: the hub lists {bytes} bytes, and sends {total}")).into());
        }
        match first {
            Some(first) if first == self.have => {}
            Some(0) => self.restart()?, // a server without ranges sends all of it
            _ if self.have == 0 => return Err(Failure::passing("the answer has another range than was asked for")),
            _ => {
                self.restart()?;
                return Err(Failure::passing("the server does not go on from here; it starts again"));
            }
        }
        let before = self.have;
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        while self.have < *bytes {
            let most = usize::try_from(bytes - self.have).unwrap_or(PIECE).min(PIECE);
            let got = match body.read(&mut piece[..most]) {
                Ok(0) => return Err(broken(&ErrorKind::UnexpectedEof.into(), self.have > before)),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(&error, self.have > before)),
                Ok(got) => got,
            };
            self.write(&piece[..got])?;
            if client.stopped.load(Relaxed) {
                return Err(Failure::Final(anyhow!("{path}: another file could not be fetched")));
            }
        }
        Ok(())
    }

    /// Writes what comes next.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| self.unwritten(&error))?;
        self.digest.update(bytes);
        self.have += bytes.len() as u64;
        self.count.more(bytes.len() as u64);
        Ok(())
    }

    fn unwritten(&self, error: &std::io::Error) -> Error {
        let Remote { bytes, place, .. } = self.remote;
        let path = place.part.display();
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ResourceError(format!(
                "{path}: the disk is full ({error}) with {} of {bytes} bytes; make room, and the same command goes on from there",
                self.have
            ))
            .into(),
            _ => anyhow!("cannot write {path}: {error}"),
        }
    }

    /// Gives the file its name, if it is what the hub has listed.
    fn end(mut self) -> Result<()> {
        let Remote { place, path, digest, .. } = self.remote;
        let path = shown(path);
        let found = std::mem::replace(&mut self.digest, digest_of(self.remote)).end();
        if found != *digest {
            let gone = fs::remove_file(&place.part);
            let left = gone.map_or_else(
                |error| format!("{} cannot be deleted ({error})", place.part.display()),
                |()| "it was deleted".into(),
            );
            return Err(ModelError::new(format!(
                "{path}: what came has the digest {found}, and the hub lists {}; {left}; fetch it again, and over another way if it \
                 happens twice",
                shown(digest)
            ))
            .into());
        }
        let named = self.file.sync_all().and_then(|()| fs::rename(&place.part, &place.whole));
        named.with_context(|| format!("cannot give {} its name", place.whole.display()))
    }
}

fn digest_of(remote: &Remote) -> RunningDigest {
    RunningDigest::like(&remote.digest, remote.bytes).expect("a plan's digests are digests")
}
