//! Files that others see whole or not at all: written without a name, or under a hidden one, then given theirs.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Seek};
use std::path::{Path, PathBuf};

/// A new file. Where the file system can, it has no name until it is finished, so that the kernel removes it if the process
/// ends, even when it is killed. Elsewhere it has a hidden random name, which dropping removes.
#[derive(Debug)]
pub struct Aside {
    file: File,
    folder: PathBuf,
    /// None: it has no name, or another's care is the one it has.
    name: Option<PathBuf>,
}

impl Aside {
    /// Creates it in a folder.
    ///
    /// # Errors
    /// The folder is missing or no file can be created in it.
    pub fn create(folder: &Path) -> io::Result<Aside> {
        match unnamed(folder) {
            Some(file) => Ok(Aside { file, folder: folder.to_path_buf(), name: None }),
            None => Aside::named(folder),
        }
    }

    /// Creates it under a hidden name. The target's name is no part of it: near the length limit there is no room to add to
    /// that. It is random since a process id is not enough: two containers that share a folder may count alike.
    fn named(folder: &Path) -> io::Result<Aside> {
        loop {
            let name = hidden_name(folder);
            match OpenOptions::new().read(true).write(true).create_new(true).open(&name) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                result => return result.map(|file| Aside { file, folder: folder.to_path_buf(), name: Some(name) }),
            }
        }
    }

    /// What is written to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it a name in its folder, in one step, replacing a file that has it.
    ///
    /// # Errors
    /// What the system reports; the file is then gone.
    pub fn rename(mut self, target: &Path) -> io::Result<()> {
        // A link replaces nothing, but needs no name before.
        if self.name.is_none() && self.link(target).is_ok() {
            return Ok(());
        }
        self.take_name()?;
        self.move_to(target)
    }

    /// Gives it a name in its folder that nothing has. A link is made because a rename would replace; a file system without
    /// links gets a rename after a last look.
    ///
    /// # Errors
    /// Something has the name, or the system refuses; the file is then gone.
    pub fn rename_to_free(mut self, target: &Path) -> io::Result<()> {
        match self.link(target) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => Err(error),
            Err(_) if fs::symlink_metadata(target).is_ok() => Err(ErrorKind::AlreadyExists.into()),
            Err(_) => {
                self.take_name()?;
                self.move_to(target)
            }
        }
    }

    /// Links the file to a free name; a hidden one goes.
    fn link(&mut self, target: &Path) -> io::Result<()> {
        match &self.name {
            None => link_unnamed(&self.file, target),
            Some(name) => fs::hard_link(name, target), // dropping removes the other name, which is this file's alone
        }
    }

    /// Gives a file without a name a hidden one: by a link, else by a copy.
    fn take_name(&mut self) -> io::Result<()> {
        if self.name.is_some() {
            return Ok(());
        }
        let name = hidden_name(&self.folder);
        if link_unnamed(&self.file, &name).is_ok() {
            self.name = Some(name);
            return Ok(());
        }
        let mut copy = Aside::named(&self.folder)?;
        self.file.rewind()?;
        io::copy(&mut self.file, &mut copy.file)?;
        copy.file.set_permissions(self.file.metadata()?.permissions())?;
        copy.file.sync_all()?;
        *self = copy;
        Ok(())
    }

    /// Moves the file from its hidden name to another.
    fn move_to(mut self, target: &Path) -> io::Result<()> {
        if let Some(name) = &self.name {
            fs::rename(name, target)?;
        }
        self.name = None; // the name is free, and another may take it
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

fn hidden_name(folder: &Path) -> PathBuf {
    folder.join(format!(".step1x-edit-{:016x}.part", RandomState::new().build_hasher().finish()))
}

/// A file without a name, if the file system has such and it can be given one later.
#[cfg(target_os = "linux")]
fn unnamed(folder: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::TMPFILE.bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(folder).ok()?;
    fs::metadata(way_to(&file)).is_ok().then_some(file)
}

/// Gives a file without a name one that nothing has.
#[cfg(target_os = "linux")]
fn link_unnamed(file: &File, target: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    Ok(linkat(CWD, way_to(file), CWD, target, AtFlags::SYMLINK_FOLLOW)?)
}

/// A path that leads to an open file as long as it is open.
#[cfg(target_os = "linux")]
fn way_to(file: &File) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path) -> Option<File> {
    None
}

#[cfg(not(target_os = "linux"))]
fn link_unnamed(_: &File, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// With and without a name while it is written.
    const WAYS: [fn(&Path) -> io::Result<Aside>; 2] = [Aside::create, Aside::named];

    fn count(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn nothing_stays_aside() {
        for create in WAYS {
            let dir = tempfile::tempdir().unwrap();
            let aside = |text: &str| {
                let mut aside = create(dir.path()).unwrap();
                aside.file().write_all(text.as_bytes()).unwrap();
                aside
            };
            let (first, second) = (dir.path().join("first"), dir.path().join("second"));
            drop(aside("dropped"));
            assert_eq!(count(dir.path()), 0);
            let (a, b) = (aside("a"), aside("b")); // two at once do not meet
            a.rename(&first).unwrap();
            b.rename_to_free(&second).unwrap();
            aside("c").rename(&first).unwrap();
            assert_eq!(aside("d").rename_to_free(&second).unwrap_err().kind(), ErrorKind::AlreadyExists);
            aside("e").rename(&first.join("below a file")).unwrap_err();
            fs::create_dir(dir.path().join("folder")).unwrap();
            aside("f").rename(&dir.path().join("folder")).unwrap_err();
            assert_eq!([&first, &second].map(|path| fs::read_to_string(path).unwrap()), ["c", "b"]);
            assert_eq!(count(dir.path()), 3);
        }
    }

    /// A file system may make files without a name and then refuse to link them.
    #[test]
    fn a_file_that_cannot_be_linked_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let mut aside = Aside::named(dir.path()).unwrap();
        aside.file().write_all(b"whole").unwrap();
        fs::remove_file(aside.name.take().unwrap()).unwrap(); // a link of it is refused now
        let target = dir.path().join("target");
        aside.rename_to_free(&target).unwrap_err(); // as if its folder were gone
        assert_eq!(count(dir.path()), 0);

        let mut aside = Aside::named(dir.path()).unwrap();
        aside.file().write_all(b"whole").unwrap();
        fs::remove_file(aside.name.take().unwrap()).unwrap();
        aside.take_name().unwrap();
        aside.move_to(&target).unwrap();
        assert_eq!((fs::read(&target).unwrap(), count(dir.path())), (b"whole".to_vec(), 1));
    }

    /// What is published is no longer the aside's: whoever takes its old name keeps it.
    #[test]
    fn another_may_take_the_hidden_name_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        for free in [false, true] {
            let aside = Aside::named(dir.path()).unwrap();
            let name = aside.name.clone().unwrap();
            match free {
                true => aside.rename_to_free(&dir.path().join("free")).unwrap(),
                false => aside.rename(&target).unwrap(),
            }
            assert!(!name.exists(), "the name is gone when the file has its own");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn no_name_is_seen_where_files_can_be_without() {
        let dir = tempfile::tempdir().unwrap();
        let aside = Aside::create(dir.path()).unwrap();
        match &aside.name {
            None => assert_eq!(count(dir.path()), 0),
            Some(_) => eprintln!("skipped: this file system has no files without a name"),
        }
    }
}
