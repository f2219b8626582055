//! ModelScope: what a repository holds, and where the cache that its Python client looks into has a file: `<cache>/ORG/NAME/PATH`,
//! with three underscores for each dot of the name.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use super::client::{Client, quoted};
use super::place::Place;
use super::remote::{Remote, Repository};
use crate::weights::shown;

/// The branch that ModelScope takes where none is named.
const BRANCH: &str = "master";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    files: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: String,
    #[serde(default)]
    size: u64,
    sha256: Option<String>,
    #[serde(rename = "Type")]
    kind: String,
}

/// What ModelScope says of a model.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Page {
    data: About,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct About {
    license: Option<String>,
}

/// Files that ModelScope's own client writes into a model's folder and reads back as pickles, which can run code: a repository's own of
/// these names are not for this cache.
const OF_THE_CLIENT: [&str; 3] = [".msc", ".mdl", ".mv"];

/// The files of a repository, but for [`OF_THE_CLIENT`].
///
/// # Errors
/// See [`Client::json`]; an answer that makes no sense.
pub(super) fn list(client: &Client, hub: &str, cache: &Path, id: &str) -> Result<Repository> {
    let url = format!("{hub}/api/v1/models/{id}/repo/files?Revision={BRANCH}&Recursive=true");
    let answer: Answer = client.json(&url, id)?;
    let (org, name) = id.split_once('/').unwrap_or_default();
    let folder = cache.join(org).join(name.replace('.', "___"));
    let locks = cache.join(".locks").join(format!("models--{org}--{name}"));
    let file = |entry: Entry| {
        Remote::new(id, entry.path, entry.size, entry.sha256, |path, _| {
            let url = format!("{hub}/api/v1/models/{id}/repo?Revision={BRANCH}&FilePath={}", quoted(path, ""));
            let whole = folder.join(path);
            let part = folder.join(format!("{path}.incomplete"));
            (url, Place { whole, part, lock: locks.join(format!("{path}.lock")), link: None })
        })
    };
    let is_file = |entry: &Entry| entry.kind == "blob" && !OF_THE_CLIENT.contains(&&*entry.path.to_ascii_lowercase());
    let files = answer.data.files.into_iter().filter(is_file).map(file).collect::<Result<_>>()?;
    // It is shown only, so a page that cannot be read does not keep from the files.
    let page: Option<Page> = client.json(&format!("{hub}/api/v1/models/{id}"), &format!("the page of {id}")).ok();
    let licence = page.and_then(|page| page.data.license).filter(|licence| !licence.is_empty()).map(|licence| shown(&licence));
    Ok(Repository { id: id.into(), revision: BRANCH.into(), commit: None, licence, folder, reference: None, files })
}
