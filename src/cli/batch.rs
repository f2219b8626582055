//! Flags of `batch`.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};

use super::edits::{self, EditsArgs};
use super::values::{self, FormatArg};
use crate::commands::batch::{BatchJob, Dedup, Form, Input, Merge, Reader, Triplets};
use crate::error::usage;
use crate::image::Stream;

/// Flags of `batch`.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// JSON or JSONL file, or folder of pictures; - reads JSONL from standard input
    #[arg(value_name = "MANIFEST", required_unless_present = "merge")]
    manifest: Option<PathBuf>,
    /// Folder for results and results.jsonl
    #[arg(short, long, value_name = "DIR", required_unless_present = "merge")]
    output: Option<PathBuf>,
    /// What to do with every picture of a folder
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Folder that the pictures' paths are relative to [default: the manifest's]
    #[arg(long, value_name = "DIR")]
    input_dir: Option<PathBuf>,
    /// What the manifest calls its members, such as prompt=text,id=key
    #[arg(long, value_name = "OWN=THEIRS", value_delimiter = ',', value_parser = pair, hide_short_help = true)]
    map: Vec<(String, String)>,
    /// Seeds of each item, counted up from its first
    #[arg(short = 'n', long, default_value_t = 1, value_parser = edits::seeds, allow_negative_numbers = true, value_name = "SEEDS")]
    candidates: usize,
    /// Format of results whose names say none
    #[arg(long, value_enum, hide_short_help = true)]
    format: Option<FormatArg>,
    /// Let results lie outside the output folder
    #[arg(long, hide_short_help = true)]
    allow_outside: bool,
    /// Bring the results of all shards in a folder together
    #[arg(long, value_name = "DIR", conflicts_with_all = ["manifest", "output"])]
    pub merge: Option<PathBuf>,
    /// Pictures that are there twice with one prompt: say so, or leave the second out
    #[arg(long, value_enum, help_heading = "Training data", hide_short_help = true)]
    dedup: Option<DedupArg>,
    /// Write source, instruction and target of all results for trainers
    #[arg(long, value_enum, help_heading = "Training data", hide_short_help = true)]
    triplets: Option<FormArg>,
    /// Least share of changed pixels of a result that becomes training data, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share, requires = "triplets", help_heading = "Training data", hide_short_help = true)]
    changed_min: f64,
    /// Largest share of changed pixels of a result that becomes training data, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share, requires = "triplets", help_heading = "Training data", hide_short_help = true)]
    changed_max: f64,
    /// Most samples of a WebDataset archive
    #[arg(long, value_name = "SAMPLES", default_value_t = 10_000, value_parser = values::count, help_heading = "Training data", hide_short_help = true)]
    shard_items: usize,
    /// Bytes after which a WebDataset archive takes no further sample
    #[arg(long, value_name = "BYTES", default_value = "1GB", value_parser = values::bytes, help_heading = "Training data", hide_short_help = true)]
    shard_size: usize,
    /// Program that reads each result as a line of JSON and answers with a line of scores
    #[arg(long, value_name = "COMMAND", help_heading = "Training data", hide_short_help = true)]
    judge_cmd: Option<String>,
    #[command(flatten)]
    edits: EditsArgs,
}

/// What becomes of duplicates.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DedupArg {
    /// Results say so.
    Report,
    /// They are left out.
    Skip,
}

/// Forms of training data.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormArg {
    /// One JSON object a line.
    Jsonl,
    /// The metadata file of the official trainer.
    Metadata,
    /// Archives of WebDataset.
    Webdataset,
}

impl BatchArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error: flags that do not fit each other.
    pub fn job(&self) -> Result<BatchJob> {
        let missing = || usage(anyhow!("give a manifest and an output folder (-o)"));
        let (manifest, output) = self.manifest.clone().zip(self.output.clone()).ok_or_else(missing)?;
        let reader = Reader { input_dir: self.input_dir.clone(), map: self.map.clone(), prompt: self.prompt.clone() };
        let input = Input::Manifest(Stream::from(manifest), reader);
        let own = edits::Own { seeds: self.candidates, format: self.format };
        Ok(BatchJob {
            dedup: self.dedup.map(|dedup| match dedup {
                DedupArg::Report => Dedup::Report,
                DedupArg::Skip => Dedup::Skip,
            }),
            triplets: self.triplets(),
            judge: self.judge_cmd.clone(),
            allow_outside: self.allow_outside,
            ..self.edits.job(input, output, own)?
        })
    }

    /// The job of `--merge`, if that is asked for.
    pub fn merge(&self) -> Option<Merge> {
        let folder = self.merge.clone()?;
        Some(Merge { folder, force: self.edits.force, triplets: self.triplets() })
    }

    /// Say nothing but what has failed.
    pub fn quiet(&self) -> bool {
        self.edits.quiet
    }

    /// CPU threads.
    pub fn threads(&self) -> Option<usize> {
        self.edits.place.threads
    }

    fn triplets(&self) -> Option<Triplets> {
        let form = match self.triplets? {
            FormArg::Jsonl => Form::Jsonl,
            FormArg::Metadata => Form::Metadata,
            FormArg::Webdataset => Form::WebDataset,
        };
        let changed = (self.changed_min, self.changed_max);
        Some(Triplets { form, changed, shard_items: self.shard_items, shard_bytes: self.shard_size as u64 })
    }
}

/// A pair of names.
fn pair(text: &str) -> Result<(String, String)> {
    const OWN: [&str; 10] =
        ["id", "image", "prompt", "output", "negative_prompt", "seed", "steps", "cfg_scale", "size_level", "n"];
    let (own, theirs) = text.split_once('=').context("give OWN=THEIRS, such as prompt=text")?;
    ensure!(OWN.contains(&own), "{own:?} is no member of an item; those are {}", OWN.join(", "));
    ensure!(!theirs.is_empty(), "say what the manifest calls {own:?}");
    Ok((own.into(), theirs.into()))
}

fn share(text: &str) -> Result<f64> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).context("give a share from 0 to 1")
}
