//! Brings the results of a batch's shards together.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::ledger::{Head, Known, Status, file_name};
use super::triplets::{Triplets, write_whole};
use super::{in_order, read_results};

/// Results to bring together.
#[derive(Clone, Debug)]
pub struct Merge {
    /// The output folder that the shards share.
    pub folder: PathBuf,
    /// Replace the results of an earlier merge.
    pub force: bool,
    /// What training data to make of them.
    pub triplets: Option<Triplets>,
}

/// Writes the results of all shards as one file, in the manifest's order. Gives what it found, and whether every item has its results.
///
/// # Errors
/// Shards that are missing, twice, or of different manifests; or what cannot be read or written.
pub fn merge(job: &Merge) -> Result<(String, bool)> {
    let shown = job.folder.display();
    let shards = shards(&job.folder)?;
    let first = shards.first().map(|(head, _)| head.clone());
    let first = first.with_context(|| format!("{shown} has no results of shards (results.0.jsonl and so on)"))?;
    let of = first.shard.map_or(0, |[_, of]| of);
    let like = |head: &Head| Head { shard: first.shard, ..head.clone() } == first && head.shard.is_some_and(|[_, n]| n == of);
    ensure!(
        shards.iter().all(|(head, _)| like(head)),
        "the shards in {shown} are of different manifests, or of different numbers of shards"
    );
    let there: BTreeSet<usize> = shards.iter().filter_map(|(head, _)| Some(head.shard?[0])).collect();
    if let Some(missing) = (0..of).find(|part| !there.contains(part)) {
        bail!("{shown} has results of {} of {of} shards; shard {missing}/{of} is missing", there.len());
    }
    let target = job.folder.join(file_name(None));
    ensure!(job.force || !target.exists(), "{} exists; pass --force to replace it", target.display());

    let lines = in_order(shards.into_iter().flat_map(|(_, lines)| lines).collect());
    let items: BTreeSet<usize> = lines.iter().map(|line| line.item).collect();
    let expected = first.items.unwrap_or(items.last().map_or(0, |last| last + 1));
    let missing: Vec<String> = (0..expected).filter(|item| !items.contains(item)).map(|item| item.to_string()).collect();
    let count = |status| lines.iter().filter(|line| line.status == status).count();
    let (ok, failed, skipped) = (count(Status::Ok), count(Status::Error) + count(Status::Cancelled), count(Status::Skipped));
    let gone = lines.iter().filter(|line| line.status == Status::Ok && !is_there(&job.folder, line)).count();

    let mut text = format!("{}\n", json!({ "batch": Head { shard: None, ..first } }));
    lines.iter().for_each(|line| text += &format!("{}\n", line.line));
    write_whole(&job.folder, &file_name(None), text.as_bytes())?;
    let mut words = format!("{ok} results of {expected} items in {of} shards, {failed} failed, {skipped} skipped");
    if !missing.is_empty() {
        let shown = missing.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        words += &format!("; {} items have no result yet: {shown}", missing.len());
    }
    if gone > 0 {
        words += &format!("; {gone} results are not there any more as they were made");
    }
    if let Some(triplets) = &job.triplets {
        words += &format!("\n{}", triplets.write(&job.folder, &lines)?);
    }
    Ok((words, missing.is_empty() && failed == 0 && gone == 0))
}

/// Heads and lines of all shards in a folder.
fn shards(folder: &Path) -> Result<Vec<(Head, Vec<Known>)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    let mut shards = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let part = name.strip_prefix("results.").and_then(|rest| rest.strip_suffix(".jsonl"));
        if part.is_some_and(|part| part.parse::<usize>().is_ok()) {
            let (head, lines) = read_results(&path)?;
            let head = head.with_context(|| format!("{} is no file of results of a batch", path.display()))?;
            shards.push((head, lines.into_values().collect()));
        }
    }
    Ok(shards)
}

fn is_there(folder: &Path, line: &Known) -> bool {
    let length = folder.join(&line.output).metadata().ok().map(|found| found.len());
    length.is_some() && length == line.bytes
}
