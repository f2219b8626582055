//! The `gedit` command: edits of GEdit-Bench in the folders that both official scorers read, and a table of what they say.

mod arrow;
mod dataset;
mod parquet;
mod summary;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use self::dataset::{Dataset, Row};
pub use self::summary::summary;
use super::batch::{self, BatchJob, Ears, Input, Item, Own, Source};
use crate::error::usage;
use crate::pipeline::Progress;

/// Names of the benchmark's tasks, as it writes them.
pub const TASKS: [&str; 11] = [
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
];

/// Edits of the benchmark.
#[derive(Clone, Debug)]
pub struct GeditJob {
    /// The dataset: a folder of Arrow streams or Parquet files, or one such file.
    pub data: PathBuf,
    /// What the scorers call the model.
    pub name: String,
    /// The language of the instructions; none: all.
    pub language: Option<String>,
    /// Tasks; none: all.
    pub tasks: Vec<String>,
    /// Put a copy of the scorer's source beside each result.
    pub source_copies: bool,
    /// How edits are made, and below which folder they are put; its input is not looked at.
    pub batch: BatchJob,
}

/// Makes the benchmark's edits and gives the exit code.
///
/// # Errors
/// A [`crate::error::UsageError`]: a dataset that cannot be read, or as for [`batch::run`].
pub fn run(job: &GeditJob, ears: &Ears, progress: &mut dyn Progress) -> Result<u8> {
    check_part("the model's name", &job.name).map_err(usage)?;
    let shown = job.data.display();
    let dataset = Dataset::open(&job.data).with_context(|| format!("cannot read the dataset {shown}")).map_err(usage)?;
    dataset.notes.iter().for_each(|note| progress.notice(note));
    let items = job.items(dataset).map_err(usage)?;
    let digested: String = items.iter().map(|item| format!("{:?} {:?}\n", item.output, item.prompt)).collect();
    let batch = BatchJob {
        input: Input::Items(job.name.clone(), digested.into_bytes(), items),
        output: job.batch.output.join(&job.name),
        ..job.batch.clone()
    };
    batch::run(&batch, ears, progress)
}

impl GeditJob {
    /// The rows that are asked for, as items.
    fn items(&self, dataset: Dataset) -> Result<Vec<Item>> {
        let Dataset { rows, pictures, .. } = dataset;
        let mut seen: Vec<&str> = rows.iter().map(|row| row.task.as_str()).collect();
        seen.sort_unstable();
        seen.dedup();
        if let Some(unknown) = self.tasks.iter().find(|task| !seen.contains(&task.as_str())) {
            return Err(anyhow!("the dataset has no task {unknown:?}; it has {}", seen.join(", ")));
        }
        let pictures: Arc<dyn batch::Pictures> = Arc::new(pictures);
        let mut items = Vec::new();
        for (number, row) in rows.iter().enumerate() {
            let fits = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
            if fits(&self.language, &row.language) && (self.tasks.is_empty() || self.tasks.contains(&row.task)) {
                let source = Source::Row(pictures.clone(), number);
                items.push(self.item(row, source).with_context(|| format!("row {number} of the dataset"))?);
            }
        }
        ensure!(!items.is_empty(), "no row of the dataset is of this language and these tasks");
        Ok(items)
    }

    fn item(&self, row: &Row, source: Source) -> Result<Item> {
        let Row { task, key, instruction, language, intersection } = row;
        for (what, part) in [("the task", task), ("the key", key), ("the language", language)] {
            check_part(what, part)?;
        }
        let place = format!("fullset/{task}/{language}/{key}");
        let extra = [
            ("task_type", json!(task)),
            ("key", json!(key)),
            ("instruction_language", json!(language)),
            ("Intersection_exist", json!(intersection)),
        ]
        .map(|(name, value)| (name.to_string(), value));
        Ok(Item {
            place: place.clone(),
            id: Some(format!("{task}/{language}/{key}")),
            source,
            image: format!("{key} of {task}, {language}"),
            prompt: instruction.clone(),
            output: Some(format!("{place}.png")),
            source_copy: self.source_copies.then(|| format!("{place}_SRCIMG.png")),
            seeds: None,
            own: Own::default(),
            extra: extra.into_iter().collect(),
        })
    }
}

/// Refuses what cannot be one part of a path.
fn check_part(what: &str, part: &str) -> Result<()> {
    let plain = !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\\', '\0']);
    ensure!(plain, "{what} is {part:?}, which cannot be the name of a folder or a file");
    Ok(())
}

/// Bytes of a file from a place on.
fn read_range(file: &File, at: u64, length: usize) -> Result<Vec<u8>> {
    let found = file.metadata()?.len();
    ensure!(at.checked_add(length as u64).is_some_and(|end| end <= found), "it ends early");
    let mut bytes = vec![0; length];
    #[cfg(unix)]
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, at)?;
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = file.try_clone()?;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes)?;
    }
    Ok(bytes)
}
