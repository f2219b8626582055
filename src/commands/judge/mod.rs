//! The `judge` command: edits of a folder of cases with known results, and the share of right ones.
//!
//! Every picture is read twice, first to check it, so that a fault shows before the first edit and one case at a time is held.

mod cases;
mod report;
mod rule;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde_json::json;

use self::cases::{Case, Pictures};
use self::report::Judged;
use crate::error::usage;
use crate::image::{self, Format, Output, Rgb};
use crate::pipeline::{Chosen, EditParameters, Engine, LoraChoice, Model, ModelPath, Place, PlaceChoice, Progress};

/// A folder of cases to edit and judge.
#[derive(Clone, Debug)]
pub struct JudgeJob {
    /// The model's folder or transformer file; none: the demo model.
    pub model: Option<ModelPath>,
    /// LoRA files to merge into the model.
    pub loras: Vec<LoraChoice>,
    /// Folder of the cases.
    pub cases: PathBuf,
    /// New or empty folder for the edited pictures; none: they are not kept.
    pub output: Option<PathBuf>,
    /// Most cases, from the first on; none: all.
    pub limit: Option<usize>,
    /// Every case's edit but for its instruction.
    pub edit: EditParameters,
    /// Where to run.
    pub place: PlaceChoice,
    /// Report as one JSON object, with every case's measures.
    pub json: bool,
}

/// Edits every case and gives the report.
///
/// # Errors
/// A [`crate::error::UsageError`]: cases that cannot be read, or an output folder that is not empty; or whatever stops an edit.
pub fn run(job: &JudgeJob, progress: &mut dyn Progress, bar: &ProgressBar) -> Result<String> {
    let mut cases = cases::read(&job.cases).map_err(usage)?;
    cases.truncate(job.limit.unwrap_or(usize::MAX));
    if let Some(folder) = &job.output {
        check_new_or_empty(folder).map_err(usage)?;
    }
    let model = Model::open_or_demo(job.model.as_ref(), progress)?;
    model.adapt(&job.loras, progress)?;
    let chosen = job.edit.with(&model)?;
    let size_level = chosen.size_level;
    for case in &cases {
        Pictures::read(&job.cases, case, size_level).map_err(usage)?;
    }
    let mut engine = Engine::open(model, Place::open(&job.place)?)?;
    progress.place(&engine.place);
    if let Some(folder) = &job.output {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    bar.set_length(cases.len() as u64);
    let mut judged = Vec::new();
    for case in cases {
        let pictures = Pictures::read(&job.cases, &case, size_level)?;
        let edited = edit(job, &case, &pictures.source, &mut engine, progress).with_context(|| format!("case {}", case.id))?;
        judged.push(Judged { measures: pictures.measures(&edited), case });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (place, Chosen { rules, cfg_scale, .. }) = (&engine.place, chosen);
    let title = format!("{}, {}, {rules} rules, {} steps, guidance {cfg_scale}", place.name(), place.precision, job.edit.steps);
    Ok(if job.json { format!("{}\n", report::report(&title, &judged)) } else { report::table(&title, &judged) })
}

/// The edited picture at the source's size; it is kept if it has a place.
fn edit(job: &JudgeJob, case: &Case, source: &Rgb, engine: &mut Engine, progress: &mut dyn Progress) -> Result<Rgb> {
    let edit = EditParameters { prompt: case.instruction.clone(), ..job.edit.clone() }.tidied(progress)?;
    let edited = engine.edit(&edit, Some(source), progress)?.at(source);
    if let Some(folder) = &job.output {
        let output = Output::reserve(&folder.join(format!("{}.png", case.id)), false)?;
        output.commit(&image::encode(&edited, None, Format::Png, &json!({"prompt": case.instruction}).to_string())?)?;
    }
    Ok(edited)
}

/// Nothing that is there may be mistaken for a result.
fn check_new_or_empty(folder: &Path) -> Result<()> {
    let shown = folder.display();
    match std::fs::read_dir(folder) {
        Ok(mut entries) => ensure!(entries.next().is_none(), "{shown} is not empty; name a new folder"),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot use {shown} as the output folder")),
    }
    Ok(())
}
