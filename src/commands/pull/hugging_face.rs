//! The Hugging Face hub: what a repository holds at a commit, and where the cache that its Python client shares has a file.
//!
//! ```text
//! <cache>/models--ORG--NAME/blobs/DIGEST           the bytes; DIGEST.incomplete before they are whole
//!                           snapshots/COMMIT/PATH  links to blobs
//!                           refs/REVISION          the commit
//! <cache>/.locks/models--ORG--NAME/DIGEST.lock     held while a blob is written
//! ```

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, quoted};
use super::place::Place;
use super::remote::{Remote, Repository};
use crate::weights::{ModelError, shown};

/// What the hub says of a repository at a revision.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
    #[serde(rename = "cardData", default)]
    card: Value,
}

#[derive(Deserialize)]
struct Sibling {
    #[serde(rename = "rfilename")]
    path: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    git: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// The files of a repository at a revision, `main` unless one is named.
///
/// # Errors
/// See [`Client::json`]; an answer that makes no sense.
pub(super) fn list(client: &Client, hub: &str, cache: &Path, id: &str, revision: Option<&str>) -> Result<Repository> {
    let revision = revision.unwrap_or("main");
    let url = format!("{hub}/api/models/{id}/revision/{}?blobs=true", quoted(revision, ""));
    let info: Info = client.json(&url, &format!("{id} at {revision}"))?;
    let is_commit = info.sha.len() == 40 && info.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_commit {
        return Err(ModelError::new(format!("{id}: the hub names the commit \"{}\", which is none", shown(&info.sha))).into());
    }
    let is_pinned = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_pinned && !revision.eq_ignore_ascii_case(&info.sha) {
        return Err(ModelError::new(format!("{id}: the commit {revision} was asked for, and the hub names {}", info.sha)).into());
    }
    let name = format!("models--{}", id.replace('/', "--"));
    let (home, locks) = (cache.join(&name), cache.join(".locks").join(&name));
    let file = |sibling: Sibling| {
        let (bytes, digest) = match sibling.lfs {
            Some(lfs) => (Some(lfs.size), Some(lfs.sha256)),
            None => (sibling.size, sibling.git),
        };
        let bytes = bytes.ok_or_else(|| ModelError::new(format!("{id}: the hub tells no size of {}", shown(&sibling.path))))?;
        Remote::new(id, sibling.path, bytes, digest, |path, digest| {
            let url = format!("{hub}/{id}/resolve/{}/{}", info.sha, quoted(path, "/"));
            let ups = 2 + path.matches('/').count();
            let target: PathBuf = std::iter::repeat_n("..", ups).chain(["blobs", digest]).collect();
            let place = Place {
                whole: home.join("blobs").join(digest),
                part: home.join("blobs").join(format!("{digest}.incomplete")),
                lock: locks.join(format!("{digest}.lock")),
                link: Some((home.join("snapshots").join(&info.sha).join(path), target)),
            };
            (url, place)
        })
    };
    Ok(Repository {
        id: id.into(),
        revision: revision.into(),
        licence: licence(&info.card),
        folder: home.join("snapshots").join(&info.sha),
        reference: (revision != info.sha).then(|| home.join("refs").join(revision)),
        files: info.siblings.into_iter().map(file).collect::<Result<_>>()?,
        commit: Some(info.sha),
    })
}

/// The licence that a model's page names; that of another kind by its own name.
fn licence(card: &Value) -> Option<String> {
    let text = |key: &str| match &card[key] {
        Value::Array(several) => Some(several.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")),
        one => one.as_str().map(String::from),
    };
    let named = text("license").filter(|licence| licence == "other").and_then(|_| text("license_name"));
    named.or_else(|| text("license")).filter(|licence| !licence.is_empty()).map(|licence| shown(&licence))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn licences_are_read() {
        for (card, expected) in [
            (json!({"license": "apache-2.0"}), Some("apache-2.0")),
            (json!({"license": ["mit", "apache-2.0"]}), Some("mit, apache-2.0")),
            (json!({"license": "other", "license_name": "qwen-research"}), Some("qwen-research")),
            (json!({"license": "other"}), Some("other")),
            (json!({"license": 3}), None),
            (Value::Null, None),
        ] {
            assert_eq!(licence(&card).as_deref(), expected, "{card}");
        }
    }
}
