//! Where a file of a hub lies, in a cache: its bytes, those that are there before it is whole, and the link by which it is found.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::aside::Aside;

/// The paths of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file when it is whole.
    pub whole: PathBuf,
    /// What is there of it before.
    pub part: PathBuf,
    /// Who holds the lock of this file writes the other two.
    pub lock: PathBuf,
    /// The name by which it is found, and what it says, if the file itself has another.
    pub link: Option<(PathBuf, PathBuf)>,
}

impl Place {
    /// Bytes that are there; all of them: it is whole.
    pub fn has(&self, bytes: u64) -> u64 {
        let length = |path: &Path| fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|file| file.len());
        match length(&self.whole) {
            Some(length) if length == bytes => bytes,
            // One byte less than all at most: a part must still be compared with its digest.
            _ => length(&self.part).filter(|length| *length <= bytes).unwrap_or(0).min(bytes.saturating_sub(1)),
        }
    }

    /// Whether the whole file is there.
    pub fn is_whole(&self, bytes: u64) -> bool {
        fs::metadata(&self.whole).is_ok_and(|file| file.is_file() && file.len() == bytes)
    }

    /// Waits until nobody else writes the file; `waits` is called if that takes time.
    pub fn lock(&self, waits: impl FnOnce()) -> Result<File> {
        for path in [&self.lock, &self.whole, &self.part] {
            make_folder(path)?;
        }
        let file = File::options().create(true).truncate(false).write(true).open(&self.lock);
        let file = file.with_context(|| format!("cannot open {}", self.lock.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => waits(),
            Err(fs::TryLockError::Error(error)) => return Err(error).with_context(|| self.no_lock()),
        }
        file.lock().with_context(|| self.no_lock())?;
        Ok(file)
    }

    fn no_lock(&self) -> String {
        format!("cannot lock {}; keep the cache on a file system that has locks", self.lock.display())
    }

    /// Makes the link, in place of one that leads elsewhere.
    pub fn link(&self) -> Result<()> {
        let Some((name, target)) = &self.link else { return Ok(()) };
        if fs::read_link(name).is_ok_and(|leads| leads == *target) {
            return Ok(());
        }
        make_folder(name)?;
        let made = match symlink(target, name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(name).and_then(|()| symlink(target, name))
            }
            made => made,
        };
        made.with_context(|| format!("cannot link {}; keep the cache on a file system that has links", name.display()))
    }
}

/// The folder of a path.
fn make_folder(path: &Path) -> Result<()> {
    let folder = path.parent().ok_or_else(|| anyhow!("{} has no folder", path.display()))?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Writes a small file whole or not at all.
pub(super) fn write_small(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    make_folder(path)?;
    let write = || {
        let mut aside = Aside::create(path.parent().unwrap_or(Path::new(".")))?;
        aside.file().write_all(text.as_bytes())?;
        aside.file().sync_all()?;
        aside.rename(path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Bytes that a folder's disk has free, be the folder there or not yet.
#[cfg(unix)]
pub(super) fn free_bytes(folder: &Path) -> Result<Option<u64>> {
    let there = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let disk = rustix::fs::statvfs(there).with_context(|| format!("cannot ask for the free space of {}", there.display()))?;
    Ok(Some(disk.f_bavail.saturating_mul(disk.f_frsize)))
}

#[cfg(not(unix))]
pub(super) fn free_bytes(_: &Path) -> Result<Option<u64>> {
    Ok(None)
}

#[cfg(unix)]
fn symlink(target: &Path, name: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, name)
}

#[cfg(not(unix))]
fn symlink(target: &Path, name: &Path) -> io::Result<()> {
    fs::hard_link(name.parent().unwrap_or(Path::new(".")).join(target), name)
}
