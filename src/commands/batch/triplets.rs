//! Training data: source, instruction and target of the results that are kept, in the forms that trainers read.
//!
//! It follows from the results and from nothing else, so it is written anew whenever a batch has ended, in the manifest's order.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::key::sha256;
use super::ledger::{Known, Status};
use super::tar::Tar;
use crate::aside::Aside;

/// How training data is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `triplets.jsonl`: one object a line, with scores.
    Jsonl,
    /// `metadata.json`: the official trainer's metadata file.
    Metadata,
    /// `triplets-000000.tar` and so on, and `shards.jsonl`, which lists them.
    WebDataset,
}

/// What training data to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Triplets {
    /// How it is written.
    pub form: Form,
    /// Least and largest share of changed pixels of what is kept.
    pub changed: (f64, f64),
    /// Most samples of an archive.
    pub shard_items: usize,
    /// Bytes after which an archive takes no further sample.
    pub shard_bytes: u64,
}

/// The list of archives.
const SHARDS: &str = "shards.jsonl";

/// One sample.
struct Sample<'a> {
    known: &'a Known,
    source: &'a str,
    target: String,
    prompt: &'a str,
    seed: u64,
}

impl Triplets {
    /// Writes what is kept of the results of a folder; says what.
    ///
    /// # Errors
    /// A picture that cannot be read, or what cannot be written.
    pub fn write(&self, folder: &Path, results: &[Known]) -> Result<String> {
        let made: Vec<&Known> = results.iter().filter(|known| known.status == Status::Ok).collect();
        let kept: Vec<Sample> =
            made.iter().filter(|known| self.keeps(known)).filter_map(|known| Sample::of(known, folder)).collect();
        let name = match self.form {
            Form::Jsonl => {
                let text: String = kept.iter().map(|sample| format!("{}\n", sample.json())).collect();
                write_whole(folder, "triplets.jsonl", text.as_bytes())?;
                "triplets.jsonl".to_string()
            }
            Form::Metadata => {
                let entry =
                    |sample: &Sample| (sample.target.clone(), json!({"ref_image_path": sample.source, "caption": sample.prompt}));
                let text = serde_json::to_string_pretty(&kept.iter().map(entry).collect::<Map<String, Value>>())?;
                write_whole(folder, "metadata.json", format!("{text}\n").as_bytes())?;
                "metadata.json".to_string()
            }
            Form::WebDataset => format!("{} archives, listed in {SHARDS}", self.archives(folder, &kept)?),
        };
        Ok(format!("kept {} of {} results: {name}", kept.len(), made.len()))
    }

    fn keeps(&self, known: &Known) -> bool {
        let changed = known.line["scores"]["changed"].as_f64().unwrap_or(0.0);
        (self.changed.0..=self.changed.1).contains(&changed)
    }

    /// Writes archives, but for those that are there with the same bytes; gives their number. The list comes last, so that a crash
    /// costs no archive that it names.
    fn archives(&self, folder: &Path, samples: &[Sample]) -> Result<usize> {
        let before = fs::read_to_string(folder.join(SHARDS)).unwrap_or_default();
        let (mut left, mut list, mut number) = (samples, String::new(), 0);
        while !left.is_empty() {
            let name = format!("triplets-{number:06}.tar");
            let mut tar = Tar::new(Vec::new());
            let mut taken = 0;
            while taken < left.len() && taken < self.shard_items && (taken == 0 || tar.bytes < self.shard_bytes) {
                left[taken].add(&mut tar)?;
                taken += 1;
            }
            left = &left[taken..];
            let bytes = tar.end()?;
            let digest = sha256(&bytes);
            let line = json!({"file": name, "items": taken, "bytes": bytes.len(), "sha256": digest});
            let is_there = fs::read(folder.join(&name)).is_ok_and(|there| there == bytes);
            if !is_there {
                write_whole(folder, &name, &bytes)?;
            }
            list += &format!("{line}\n");
            number += 1;
        }
        write_whole(folder, SHARDS, list.as_bytes())?;
        // Archives of an earlier run that are none any more.
        for line in before.lines().skip(number) {
            let file = serde_json::from_str::<Value>(line).ok().and_then(|line| Some(line["file"].as_str()?.to_string()));
            if let Some(file) = file.filter(|file| file.starts_with("triplets-") && !file.contains('/')) {
                let _ = fs::remove_file(folder.join(file));
            }
        }
        Ok(number)
    }
}

impl<'a> Sample<'a> {
    /// A result's, if its picture is a file.
    fn of(known: &'a Known, folder: &Path) -> Option<Sample<'a>> {
        let text = |name: &str| known.line.get(name).and_then(Value::as_str);
        let target = folder.join(&known.output).display().to_string();
        Some(Sample { known, source: text("source")?, target, prompt: text("prompt")?, seed: known.line["seed"].as_u64()? })
    }

    fn json(&self) -> Value {
        let line = &self.known.line;
        let extra = &line["extra"];
        let task = ["task", "task_type", "category", "edit_type"].iter().find_map(|name| extra.get(*name));
        let mut json = json!({
            "id": self.known.id, "source": self.source, "target": self.target, "instruction": self.prompt, "task": task,
            "seed": self.seed, "model": line["model"], "scores": line["scores"],
        });
        for name in ["judged", "extra"] {
            if let Some(value) = line.get(name) {
                json[name] = value.clone();
            }
        }
        json
    }

    /// Adds its members, whose names are equal up to the first dot.
    fn add(&self, tar: &mut Tar<Vec<u8>>) -> Result<()> {
        let key = format!("{:08}-{}", self.known.item, self.seed);
        for (what, path) in [("source", self.source), ("target", &self.target)] {
            let ending = Path::new(path).extension().map_or("png".into(), |ending| ending.to_string_lossy().to_ascii_lowercase());
            let bytes = fs::read(path).with_context(|| format!("cannot read {path} for the training data"))?;
            tar.add(&format!("{key}.{what}.{ending}"), &bytes)?;
        }
        let mut json = self.json();
        // Names of the machine's own folders are nobody else's business.
        json.as_object_mut().into_iter().for_each(|json| json.retain(|name, _| name != "source" && name != "target"));
        tar.add(&format!("{key}.json"), json.to_string().as_bytes())
    }
}

/// Writes a file that others see whole or not at all.
pub(super) fn write_whole(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut aside = Aside::create(folder)?;
        let mut out = BufWriter::new(aside.file() as &mut File);
        out.write_all(bytes)?;
        out.flush()?;
        drop(out);
        aside.file().sync_all()?;
        aside.rename(&folder.join(name))
    };
    write().with_context(|| format!("cannot write {}", folder.join(name).display()))
}
