//! What one run leaves for the next: compiled kernels, a file each.
//!
//! A file's first line says everything that the rest depends on; a file with another first line is no entry. Processes can
//! share the folder, for an entry appears whole. A cache that cannot be read or written costs time, nothing else.
//!
//! What lies there runs on the GPU in this process. So nothing is read that somebody else could have written: not from a
//! folder that another user owns or may write to, and no file of another user. Root may do as it likes, here as elsewhere.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::aside::Aside;
use crate::hash::fnv1a64;

/// The place of one entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// None: nothing is kept.
    file: Option<PathBuf>,
    /// The first line.
    identity: String,
}

impl Entry {
    /// `<stem>-<hash of the identity>.<extension>` in the cache's folder, if there is one that can be trusted.
    pub(super) fn new(folder: Option<&Path>, stem: &str, extension: &str, identity: String) -> Entry {
        let name = format!("{stem}-{:016x}.{extension}", fnv1a64(identity.as_bytes()));
        let folder = folder.filter(|folder| refusal(folder).is_none());
        Entry { file: folder.map(|folder| folder.join(name)), identity }
    }

    /// What an earlier run put there.
    pub(super) fn read(&self) -> Option<Vec<u8>> {
        let mut file = File::open(self.file.as_ref()?).ok()?;
        let about = file.metadata().ok()?;
        if !about.is_file() || others_access(&about).is_some() {
            return None;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let contents = bytes.strip_prefix(self.identity.as_bytes())?.strip_prefix(b"\n")?;
        Some(contents.to_vec())
    }

    /// Puts it there, in place of what was.
    pub(super) fn write(&self, contents: &[u8]) {
        if let Some(file) = &self.file {
            let _ = write_whole(file, &[self.identity.as_bytes(), b"\n", contents].concat());
        }
    }
}

/// Why the folder of a cache is not used, with a remedy; none if it is, or if it can be made.
pub fn refusal(folder: &Path) -> Option<String> {
    let access = others_access(&fs::metadata(folder).ok()?)?;
    Some(format!(
        "the cache folder {} is not used: {access}, and what lies there runs on the GPU; make it yours alone (chmod 700), or set \
         STEP1X_CACHE to another folder",
        folder.display()
    ))
}

/// Makes the folder if there is none, and a file in it, which goes again.
///
/// # Errors
/// What the system refuses.
pub fn probe(folder: &Path) -> io::Result<()> {
    make_own(folder)?;
    Aside::create(folder).map(drop)
}

fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    make_own(folder)?;
    let mut aside = Aside::create(folder)?;
    keep_own(aside.file())?;
    aside.file().write_all(bytes)?;
    aside.rename(file)
}

/// How somebody else can write to a file or folder; none if nobody can.
#[cfg(unix)]
fn others_access(about: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let (owner, us, mode) = (about.uid(), rustix::process::geteuid().as_raw(), about.mode());
    match (owner == us || owner == 0, mode & 0o022) {
        (false, _) => Some(format!("it belongs to another user (number {owner})")),
        (true, 0) => None,
        (true, _) => Some(format!("others may write to it (mode {:o})", mode & 0o7777)),
    }
}

#[cfg(unix)]
fn make_own(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(unix)]
fn keep_own(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

#[cfg(not(unix))]
fn others_access(_: &Metadata) -> Option<String> {
    None
}

#[cfg(not(unix))]
fn make_own(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

#[cfg(not(unix))]
fn keep_own(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_was_written_under_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/cache");
        let entry = |identity: &str| Entry::new(Some(&folder), "cast", "cubin", identity.into());
        let (one, other) = (entry("one"), entry("other"));
        assert_eq!(one.read(), None);
        one.write(b"first");
        one.write(b"a\n\xff");
        assert_eq!(one.read().unwrap(), b"a\n\xff");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left aside");
        entry("foobar").write(b"y");
        assert_eq!(fs::read(folder.join("cast-85944171f73967e8.cubin")).unwrap(), b"foobar\ny", "as in every version");
        assert_eq!(other.read(), None);
        fs::rename(one.file.as_ref().unwrap(), other.file.as_ref().unwrap()).unwrap();
        assert_eq!(other.read(), None, "another's contents");
    }

    #[test]
    fn a_cache_that_cannot_be_used_is_passed_over() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for folder in [None, Some(file.path())] {
            let entry = Entry::new(folder, "cast", "cubin", "one".into());
            entry.write(b"x");
            assert_eq!(entry.read(), None);
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_somebody_else_could_have_written_is_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/cache");
        let entry = || Entry::new(Some(&folder), "cast", "cubin", "one".into());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let change = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(refusal(&folder), None, "it can be made");
        entry().write(b"x");
        let file = entry().file.unwrap();
        assert_eq!((mode(&folder), mode(&file)), (0o700, 0o600));

        for open in [0o777, 0o770, 0o1777, 0o720, 0o702] {
            change(&folder, open);
            let why = refusal(&folder).unwrap();
            assert!(why.contains(&format!("(mode {open:o})")) && why.contains("chmod 700"), "{why}");
            assert!(entry().read().is_none() && entry().file.is_none());
        }
        change(&folder, 0o755); // others may read
        assert!(entry().read().is_some());
        change(&file, 0o660);
        assert_eq!(entry().read(), None, "of a file too");
        entry().write(b"y");
        assert_eq!((entry().read().unwrap().as_slice(), mode(&file)), (&b"y"[..], 0o600), "it is put right");

        // Only root can give files away.
        let give = |path: &Path, user| std::os::unix::fs::chown(path, Some(user), None);
        if give(&file, 4711).is_ok() {
            assert_eq!(entry().read(), None, "another user's file");
            give(&file, 0).unwrap();
            give(&folder, 4711).unwrap();
            assert!(refusal(&folder).unwrap().contains("another user (number 4711)"));
            assert!(entry().read().is_none() && entry().file.is_none());
        }
    }
}
