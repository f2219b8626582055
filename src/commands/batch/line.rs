//! The line of one result, as it is written to the results and printed.

use std::collections::BTreeMap;

use anyhow::Error;
use serde::Serialize;
use serde_json::{Map, Value};

use super::ledger::Status;
use super::scores::Scores;
use super::task::Task;
use crate::error::{ResourceError, UsageError};

/// One result of an item.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The item.
    pub id: String,
    /// How it ended.
    pub status: Status,
    /// Which of the manifest's items it is, from 0.
    pub item: usize,
    /// Where the result is, or would be, below the output folder.
    pub output: String,
    /// What the result depends on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The picture as the manifest names it.
    pub image: String,
    /// The picture's file, if it has one of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What to do.
    pub prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// What is known of a result that was made.
    #[serde(flatten)]
    pub made: Option<Made>,
    /// Why there is no result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Fault>,
    /// The item of which this one is a duplicate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate_of: Option<String>,
    /// Digest of the source's pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels: Option<String>,
    /// Digest that similar pictures share but for some bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near: Option<String>,
    /// What a person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What the manifest's item carries.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
}

/// A result that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Length of the file.
    pub bytes: u64,
    /// Digest of the file.
    pub sha256: String,
    /// Width and height of the result.
    pub size: [usize; 2],
    /// Width and height at which it was made.
    pub working_size: [usize; 2],
    /// The model's version.
    pub model: String,
    /// How far it is from its source.
    pub scores: Scores,
    /// What a judge said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judged: Option<Value>,
    /// Reading, planning, each stage, saving.
    pub seconds: BTreeMap<&'static str, f64>,
}

/// Why there is no result.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Line {
    /// The line of a task's result that says nothing yet but what it is.
    pub fn new(task: &Task, status: Status, at: usize, key: Option<&str>) -> Line {
        let (seed, output) = &task.results[at];
        Line {
            id: task.id.clone(),
            status,
            item: task.number,
            output: output.clone(),
            key: key.map(str::to_string),
            image: task.image.clone(),
            source: task.source.path().map(|path| path.display().to_string()),
            prompt: task.edit.prompt.clone(),
            seed: *seed,
            made: None,
            error: None,
            duplicate_of: None,
            pixels: None,
            near: None,
            warnings: vec![],
            extra: task.extra.clone(),
        }
    }

    /// The line of a result that there is none of.
    pub fn failed(task: &Task, at: usize, key: Option<&str>, code: &'static str, error: &Error) -> Line {
        let error = Some(Fault { code, message: format!("{error:#}") });
        Line { error, ..Line::new(task, Status::Error, at, key) }
    }
}

/// The code of an edit that failed.
pub fn code_of(error: &Error) -> &'static str {
    if error.downcast_ref::<UsageError>().is_some() {
        "invalid_item"
    } else if error.downcast_ref::<ResourceError>().is_some() {
        "out_of_memory"
    } else {
        "failed"
    }
}
