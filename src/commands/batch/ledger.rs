//! The results of a batch: one JSON object a line, appended as they come, and what of them a later run need not make again.
//!
//! The first line says of which manifest they are. While a batch writes the file it holds its lock, so that two batches never
//! write the same one. A last line that a crash cut off is left out.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::key::sha256;
use super::task::Shard;

/// Prints a text on standard output.
pub type Print = dyn Fn(&str) -> Result<()> + Send + Sync;

/// What a batch says of itself in its first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The manifest's name, without its folder.
    pub manifest: String,
    /// Digest of what it says; none on standard input.
    pub sha256: Option<String>,
    /// Its items, all shards together; none on standard input.
    pub items: Option<usize>,
    /// Which part it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<[usize; 2]>,
}

/// How an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its result is there.
    Ok,
    /// It has none, and would have none again.
    Error,
    /// It was left out.
    Skipped,
    /// It was stopped, and the next run makes it.
    Cancelled,
}

/// What a later run knows of one result.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Known {
    /// The item.
    pub id: String,
    /// How it ended.
    pub status: Status,
    /// Which of the manifest's items it is.
    pub item: usize,
    /// Where the result is, or would be.
    pub output: String,
    /// What it depends on; none if that could not be found out.
    pub key: Option<String>,
    /// Length of the result's file.
    pub bytes: Option<u64>,
    /// Its digest.
    pub sha256: Option<String>,
    /// Digests of the source's pixels, exact and near, if duplicates were looked for.
    pub pixels: Option<String>,
    /// See `pixels`.
    pub near: Option<String>,
    /// The whole line.
    #[serde(skip)]
    pub line: Value,
}

/// The file of results, open and locked.
pub struct Ledger {
    file: File,
    path: PathBuf,
    print: Option<Box<Print>>,
    /// The last line of each result, when the file was opened.
    known: HashMap<String, Known>,
    /// Whether the file held no result, and whether its folder was made for it.
    fresh: [bool; 2],
}

impl Head {
    /// For a manifest, or for standard input.
    pub fn new(name: &str, bytes: Option<&[u8]>, items: Option<usize>, shard: Option<Shard>) -> Head {
        let shard = shard.map(|Shard { part, of }| [part, of]);
        Head { manifest: name.into(), sha256: bytes.map(sha256), items, shard }
    }

    /// Refuses to go on with the results of another manifest.
    fn check(&self, there: &Head, path: &Path) -> Result<()> {
        let shown = path.display();
        let same = there.manifest == self.manifest || there.sha256.is_some() && there.sha256 == self.sha256;
        ensure!(
            same,
            "{shown} has the results of the manifest {}, and this one is {}; name another output folder",
            there.manifest,
            self.manifest
        );
        ensure!(
            there.shard == self.shard,
            "{shown} has the results of another shard; give the same --shard, or another output folder"
        );
        Ok(())
    }
}

/// The name of the file of results.
pub fn file_name(shard: Option<Shard>) -> String {
    shard.map_or("results.jsonl".into(), |Shard { part, .. }| format!("results.{part}.jsonl"))
}

impl Ledger {
    /// Opens the results in a folder, which is made if it is not there. `resume`: go on with those that are there.
    ///
    /// # Errors
    /// Results are there and `resume` is not, they are of another manifest, another batch writes them, or no file can be written.
    pub fn open(folder: &Path, head: &Head, shard: Option<Shard>, resume: bool, print: Option<Box<Print>>) -> Result<Ledger> {
        let path = folder.join(file_name(shard));
        let shown = path.display();
        let made = !folder.exists();
        fs::create_dir_all(folder).with_context(|| format!("cannot create the output folder {}", folder.display()))?;
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = file.with_context(|| format!("cannot write {shown}"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(anyhow!("another batch is writing {shown}; wait for its end, or name another output folder"));
            }
            // A file system without locks cannot tell.
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (there, known) = parse(&bytes[..whole]);
        ensure!(whole == 0 || there.is_some(), "{shown} is no file of results of a batch; name another output folder");
        let begun = there.filter(|_| !known.is_empty());
        if let Some(there) = &begun {
            ensure!(resume, "{shown} has results already; pass --resume to go on with them, or name another output folder");
            head.check(there, &path)?;
        }
        // Of a run that made nothing, nothing stays.
        let kept = if begun.is_some() { whole } else { 0 };
        if kept < bytes.len() {
            file.set_len(kept as u64).with_context(|| format!("cannot write {shown}"))?;
            file.seek(SeekFrom::End(0))?;
        }
        let fresh = [known.is_empty(), made];
        let mut ledger = Ledger { file, path, print, known, fresh };
        if begun.is_none() {
            ledger.append(&json!({ "batch": head }))?;
        }
        Ok(ledger)
    }

    /// The last line of each result, when the file was opened; gives them away.
    pub fn take_known(&mut self) -> HashMap<String, Known> {
        std::mem::take(&mut self.known)
    }

    /// Leaves nothing of a batch that cannot begin; results that were there stay.
    pub fn give_up(self) {
        let [fresh, made] = self.fresh;
        if fresh {
            let _ = fs::remove_file(&self.path);
        }
        if fresh && made {
            let _ = self.path.parent().map_or(Ok(()), fs::remove_dir);
        }
    }

    /// The last line of each result as the file is now, in the manifest's order.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn all(&self) -> Result<Vec<Known>> {
        let (_, known) = super::read_results(&self.path)?;
        Ok(super::in_order(known.into_values().collect()))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// It cannot be written, or not be printed.
    pub fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let text = format!("{}\n", serde_json::to_string(line)?);
        let before = self.file.metadata().map(|found| found.len());
        let written = self.file.write_all(text.as_bytes());
        if let (Err(_), Ok(before)) = (&written, before) {
            let _ = self.file.set_len(before);
        }
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.print.as_ref().map_or(Ok(()), |print| print(&text))
    }
}

/// What a file of results says: its head, and the last line of each result. Lines that are none are left out.
pub fn parse(bytes: &[u8]) -> (Option<Head>, HashMap<String, Known>) {
    #[derive(Deserialize)]
    struct First {
        batch: Head,
    }
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let head = lines.next().and_then(|line| serde_json::from_slice::<First>(line).ok()).map(|first| first.batch);
    let known = lines.filter_map(|line| {
        let value: Value = serde_json::from_slice(line).ok()?;
        let known = Known::deserialize(&value).ok()?;
        Some((known.output.clone(), Known { line: value, ..known }))
    });
    (head, known.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(name: &str) -> Head {
        Head::new(name, Some(name.as_bytes()), Some(2), None)
    }

    fn open(folder: &Path, name: &str, resume: bool) -> Result<Ledger> {
        Ledger::open(folder, &head(name), None, resume, None)
    }

    fn line(output: &str, status: &str) -> Value {
        json!({"id": output, "status": status, "item": 0, "output": output, "key": "k", "bytes": 3})
    }

    #[test]
    fn the_last_line_of_a_result_counts_and_a_cut_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/folder");
        let mut ledger = open(&folder, "a.json", false).unwrap();
        for (output, status) in [("0.png", "error"), ("1.png", "ok"), ("0.png", "ok")] {
            ledger.append(&line(output, status)).unwrap();
        }
        ledger.append(&json!({"summary": {"ok": 2}})).unwrap();
        drop(ledger);
        let path = folder.join("results.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{\"id\": \"1.png\", \"status\": \"err")).unwrap();
        let mut ledger = open(&folder, "a.json", true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "the cut line is gone");
        let mut known: Vec<_> = ledger.take_known().into_iter().map(|(output, known)| (output, known.status)).collect();
        known.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(known, [("0.png".to_string(), Status::Ok), ("1.png".to_string(), Status::Ok)]);
        ledger.append(&line("2.png", "ok")).unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("\"status\":\"ok\"}\n"));
    }

    #[test]
    fn results_of_others_are_not_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |name: &str, resume: bool| format!("{:#}", open(dir.path(), name, resume).map(drop).unwrap_err());
        drop(open(dir.path(), "b.json", false).unwrap());
        let mut first = open(dir.path(), "a.json", false).expect("a batch that made nothing leaves nothing");
        first.append(&line("0.png", "ok")).unwrap();
        assert!(refused("a.json", true).contains("another batch is writing"));
        drop(first);
        assert!(refused("a.json", false).contains("--resume"));
        assert!(refused("b.json", true).contains("results of the manifest a.json"));
        let again = Head { sha256: head("a.json").sha256, ..head("renamed.json") };
        Ledger::open(dir.path(), &again, None, true, None).unwrap();
        let changed = Head { sha256: None, ..head("a.json") };
        Ledger::open(dir.path(), &changed, None, true, None).unwrap();
        let other = Shard { part: 1, of: 2 };
        Ledger::open(dir.path(), &Head { shard: Some([1, 2]), ..head("a.json") }, Some(other), true, None).unwrap();
        fs::write(dir.path().join("results.jsonl"), "no results\n").unwrap();
        assert!(refused("a.json", true).contains("is no file of results"));
    }
}
