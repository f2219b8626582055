//! A repository of a hub, and its files: sizes, digests, addresses, and the places that they get.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::place::Place;
use crate::plan::format_bytes;
use crate::weights::{ModelError, RunningDigest, shown};

/// Most bytes of a file's path in its repository, and of each name in it: what file systems take, with an ending.
const PATH_BYTES_MAX: usize = 1000;
const NAME_BYTES_MAX: usize = 240;

/// A repository at one commit.
pub(super) struct Repository {
    /// `org/name`.
    pub id: String,
    /// What was asked for: a branch, a tag or a commit.
    pub revision: String,
    /// What that is now, on a hub that has commits.
    pub commit: Option<String>,
    /// As the hub names it.
    pub licence: Option<String>,
    /// Where its files are found.
    pub folder: PathBuf,
    /// The file that says which commit the revision is, written when all others are there.
    pub reference: Option<PathBuf>,
    /// What is fetched of it.
    pub files: Vec<Remote>,
}

/// A file of a repository.
pub(super) struct Remote {
    /// In the repository, with slashes.
    pub path: String,
    pub bytes: u64,
    /// SHA-256, or that of Git, in lower-case digits.
    pub digest: String,
    pub url: String,
    pub place: Place,
    /// Bytes that were there when the plan was made.
    pub there: u64,
}

impl Repository {
    /// # Errors
    /// Two files that have one place, or one that lies in another or in its unfinished part.
    pub fn check_apart(&self) -> Result<()> {
        let mut digests = BTreeMap::new();
        let of: BTreeMap<&Path, &Remote> = self.files.iter().map(|file| (file.place.whole.as_path(), file)).collect();
        for file in &self.files {
            let fault = |other: &str| {
                let (file, other) = (shown(&file.path), shown(other));
                Err(ModelError::new(format!("{}: the hub lists {file} and {other}, which cannot both be there", self.id)).into())
            };
            if digests.insert(file.path.as_str(), &file.digest).is_some_and(|other| *other != file.digest) {
                return fault(&file.path);
            }
            if let Some(other) = of.get(file.place.part.as_path()) {
                return fault(&other.path);
            }
        }
        for path in digests.keys() {
            let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
            if let Some(folder) = folders.into_iter().find(|folder| digests.contains_key(folder)) {
                let fault = format!("{} below {}, which is a file", shown(path), shown(folder));
                return Err(ModelError::new(format!("{}: the hub lists {fault}", self.id)).into());
            }
        }
        Ok(())
    }
}

impl Remote {
    /// # Errors
    /// A path that leads out of its repository or is too long, or a digest that is none.
    pub fn new(
        id: &str,
        path: String,
        bytes: u64,
        digest: Option<String>,
        at: impl FnOnce(&str, &str) -> (String, Place),
    ) -> Result<Remote> {
        let fault = |what: &str| ModelError::new(format!("{id}: the hub lists {}, {what}", shown(&path)));
        let plain = |part: &str| !["", ".", ".."].contains(&part) && !part.contains(|c: char| c == '\\' || c.is_control());
        if !path.split('/').all(plain) {
            return Err(fault("which is no path of a file").into());
        }
        if path.len() > PATH_BYTES_MAX || path.split('/').any(|name| name.len() > NAME_BYTES_MAX) {
            let most = format!("which is longer than {PATH_BYTES_MAX} bytes, or has a name longer than {NAME_BYTES_MAX}");
            return Err(fault(&most).into());
        }
        let digest = digest.map(|text| text.to_ascii_lowercase()).filter(|text| RunningDigest::like(text, bytes).is_some());
        let digest = digest.ok_or_else(|| fault("but no digest that it could be compared with"))?;
        let (url, place) = at(&path, &digest);
        let there = place.has(bytes);
        Ok(Remote { path, bytes, digest, url, place, there })
    }
}

/// Bytes, for a person.
pub(super) fn size(bytes: u64) -> String {
    format_bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
}
