//! Whether a model's files are those that were published: their digests against the ones that came with them.
//!
//! A Hugging Face cache names each file's content by its digest; a folder that the hub's client filled has a note of it for
//! each file; any folder may have a list, `SHA256SUMS`. Files kept by LFS have their SHA-256, small ones the digest that Git
//! knows them by.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::json::read;
use super::layout::{Layout, ModelPath};
use super::{ModelError, Result};

/// A list of digests, as `sha256sum` writes and reads it.
const LIST: &str = "SHA256SUMS";

/// Where the hub's client keeps its notes, in the folder that it filled.
const NOTES: &str = ".cache/huggingface/download";

/// Most bytes of a list or a note.
const MOST: u64 = 1 << 20;

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// A file of a model, and the digest that it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// What it must be, if that is known.
    pub known: Option<Known>,
}

/// A digest, and what says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    digest: String,
    /// Where it was found, in words.
    pub by: &'static str,
}

/// The files of the model at a path: transformer, autoencoder, settings, and those of the text encoder.
///
/// # Errors
/// There is no model: see [`ModelFolder::open`](super::ModelFolder::open). Nothing but names and lists is read.
pub fn published_files(at: &ModelPath) -> Result<Vec<Published>> {
    let layout = Layout::find(at)?;
    layout.files().into_iter().map(|path| Published::new(path, &layout.dir)).collect()
}

impl Published {
    /// `dir`: the model's folder, whose list may name files below it.
    fn new(path: PathBuf, dir: &Path) -> Result<Published> {
        let bytes = std::fs::metadata(&path).map_err(|e| ModelError::io("look at it", &path, &e))?.len();
        let known = in_cache(&path).or_else(|| in_note(&path)).or_else(|| in_list(&path, dir));
        Ok(Published { path, bytes, known })
    }

    /// Whether the file has the digest that is known; none if no digest is. `read` is told of every piece.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn is_as_published(&self, read: &(dyn Fn(u64) + Sync)) -> Result<Option<bool>> {
        let Some(Known { digest, .. }) = &self.known else { return Ok(None) };
        let io = |e: std::io::Error| ModelError::io("read it", &self.path, &e);
        let Some(mut running) = RunningDigest::like(digest, self.bytes) else { return Ok(None) };
        let mut file = File::open(&self.path).map_err(io)?;
        let mut piece = vec![0; PIECE];
        loop {
            let got = file.read(&mut piece).map_err(io)?;
            if got == 0 {
                return Ok(Some(running.end() == *digest));
            }
            running.update(&piece[..got]);
            read(got as u64);
        }
    }
}

/// The digest of a file whose bytes come one after another.
#[derive(Clone, Debug)]
pub enum RunningDigest {
    /// That of files kept by LFS.
    Sha256(Sha256),
    /// That by which Git knows a file.
    Git(Sha1),
}

impl RunningDigest {
    /// One to compare with another, of a file of so many bytes; none if that is no digest in lower case.
    pub fn like(digest: &str, bytes: u64) -> Option<RunningDigest> {
        let plain = digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match digest.len() {
            SHA256 if plain => Some(RunningDigest::Sha256(Sha256::new())),
            SHA1 if plain => Some(RunningDigest::Git(Sha1::new_with_prefix(format!("blob {bytes}\0")))),
            _ => None,
        }
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            RunningDigest::Sha256(state) => state.update(bytes),
            RunningDigest::Git(state) => state.update(bytes),
        }
    }

    /// In hexadecimal digits, in lower case.
    pub fn end(self) -> String {
        let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            RunningDigest::Sha256(state) => digits(&state.finalize()),
            RunningDigest::Git(state) => digits(&state.finalize()),
        }
    }
}

/// Digits of a SHA-256, and of the SHA-1 by which Git knows a file.
const SHA256: usize = 64;
const SHA1: usize = 40;

fn known(digest: &str, by: &'static str) -> Option<Known> {
    let digest = digest.trim().to_ascii_lowercase();
    let is_digest = [SHA256, SHA1].contains(&digest.len()) && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then_some(Known { digest, by })
}

/// In a cache, a file is a link to `blobs/DIGEST`.
fn in_cache(path: &Path) -> Option<Known> {
    let blob = std::fs::read_link(path).ok()?;
    let in_blobs = blob.parent()?.ends_with("blobs");
    known(blob.file_name()?.to_str()?, "the hub's cache").filter(|_| in_blobs)
}

/// A note has three lines: revision, digest, time.
fn in_note(path: &Path) -> Option<Known> {
    let name = format!("{}.metadata", path.file_name()?.to_str()?);
    let note = read_text(&path.parent()?.join(NOTES).join(name))?;
    known(note.lines().nth(1)?, "the note of the hub's client")
}

/// A list has a line `DIGEST  PATH` for each file, `DIGEST *PATH` from some programs; paths count from its own folder.
fn in_list(path: &Path, dir: &Path) -> Option<Known> {
    [path.parent()?, dir].into_iter().find_map(|folder| {
        let name = path.strip_prefix(folder).ok()?;
        let of = |line: &str| {
            let (digest, listed) = line.split_once(char::is_whitespace)?;
            let listed = listed.trim().trim_start_matches('*').trim_start_matches("./");
            (digest.len() == SHA256 && Path::new(listed) == name).then(|| known(digest, LIST))?
        };
        read_text(&folder.join(LIST))?.lines().find_map(of)
    })
}

fn read_text(path: &Path) -> Option<String> {
    String::from_utf8(read(path, MOST).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn verdict(path: &Path, dir: &Path) -> (Option<&'static str>, Option<bool>) {
        let file = Published::new(path.to_path_buf(), dir).unwrap();
        (file.known.as_ref().map(|known| known.by), file.is_as_published(&|_| {}).unwrap())
    }

    /// Digests of "abc" as the standards print them, and as `git hash-object` gives it.
    const SHA256_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const GIT_ABC: &str = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";

    #[test]
    #[cfg(unix)]
    fn a_cache_names_its_files_by_their_digests() {
        let dir = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("snapshots/x"));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        for (digest, content, sound) in [(SHA256_ABC, "abc", true), (GIT_ABC, "abc", true), (GIT_ABC, "abd", false)] {
            let link = snapshot.join(format!("{digest}-{content}"));
            fs::write(blobs.join(digest), content).unwrap();
            std::os::unix::fs::symlink(Path::new("../../blobs").join(digest), &link).unwrap();
            assert_eq!(verdict(&link, &snapshot), (Some("the hub's cache"), Some(sound)));
        }
        let other = snapshot.join("other");
        fs::write(dir.path().join(SHA256_ABC), "abc").unwrap();
        std::os::unix::fs::symlink(dir.path().join(SHA256_ABC), &other).unwrap();
        assert_eq!(verdict(&other, &snapshot), (None, None), "a link that leads elsewhere says nothing");
    }

    #[test]
    fn notes_and_lists_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (below, file) = (dir.path().join("below"), dir.path().join("below/f"));
        fs::create_dir_all(below.join(NOTES)).unwrap();
        fs::write(&file, "abc").unwrap();
        assert_eq!(verdict(&file, dir.path()), (None, None));
        let zeros = "0".repeat(64);
        for (line, sound) in [
            (format!("{SHA256_ABC}  below/f"), true),
            (format!("{} *./below/f", SHA256_ABC.to_uppercase()), true),
            (format!("{zeros}  below/f"), false),
        ] {
            fs::write(dir.path().join(LIST), format!("{zeros}  f\nnonsense\n{line}\n")).unwrap();
            assert_eq!(verdict(&file, dir.path()), (Some(LIST), Some(sound)), "{line}");
        }
        for (bytes, by) in [(1 << 20, Some(LIST)), ((1 << 20) + 1, None)] {
            let line = format!("{SHA256_ABC}  below/f\n");
            fs::write(dir.path().join(LIST), line.clone() + &"\n".repeat(bytes - line.len())).unwrap();
            assert_eq!(verdict(&file, dir.path()).0, by, "a list of {bytes} bytes");
        }
        fs::write(below.join(LIST), format!("{SHA256_ABC}  f\n")).unwrap();
        assert_eq!(verdict(&file, dir.path()), (Some(LIST), Some(true)), "the nearer list counts");
        for (digest, sound) in [(SHA256_ABC, true), (GIT_ABC, true), (&zeros, false)] {
            fs::write(below.join(NOTES).join("f.metadata"), format!("revision\n{digest}\n1730000000.5\n")).unwrap();
            assert_eq!(verdict(&file, dir.path()), (Some("the note of the hub's client"), Some(sound)));
        }
    }
}
