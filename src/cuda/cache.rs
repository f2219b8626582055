//! What one run leaves for the next: compiled kernels and chosen algorithms, a file each.
//!
//! A file's first line says everything that the rest depends on; a file with another first line is no entry. Processes can
//! share the folder, for an entry appears whole. A cache that cannot be read or written costs time, nothing else.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::aside::Aside;
use crate::hash::fnv1a64;

/// The place of one entry.
#[derive(Debug)]
pub struct Entry {
    /// None: nothing is kept.
    file: Option<PathBuf>,
    /// The first line.
    identity: String,
}

impl Entry {
    /// `<stem>-<hash of the identity>.<extension>` in the cache's folder, if there is one.
    pub fn new(folder: Option<&Path>, stem: &str, extension: &str, identity: String) -> Entry {
        let name = format!("{stem}-{:016x}.{extension}", fnv1a64(identity.as_bytes()));
        Entry { file: folder.map(|folder| folder.join(name)), identity }
    }

    /// What an earlier run put there.
    pub fn read(&self) -> Option<Vec<u8>> {
        let bytes = fs::read(self.file.as_ref()?).ok()?;
        let contents = bytes.strip_prefix(self.identity.as_bytes())?.strip_prefix(b"\n")?;
        Some(contents.to_vec())
    }

    /// Puts it there, in place of what was.
    pub fn write(&self, contents: &[u8]) {
        if let Some(file) = &self.file {
            let _ = write_whole(file, &[self.identity.as_bytes(), b"\n", contents].concat());
        }
    }
}

fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut aside = Aside::create(folder)?;
    aside.file().write_all(bytes)?;
    aside.rename(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_was_written_under_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/cache");
        let entry = |identity: &str| Entry::new(Some(&folder), "gemm", "txt", identity.into());
        let (one, other) = (entry("one"), entry("other"));
        assert_eq!(one.read(), None);
        one.write(b"first");
        one.write(b"a\n\xff");
        assert_eq!(one.read().unwrap(), b"a\n\xff");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing is left aside");
        entry("foobar").write(b"y");
        assert_eq!(fs::read(folder.join("gemm-85944171f73967e8.txt")).unwrap(), b"foobar\ny", "as in every version");
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
}
