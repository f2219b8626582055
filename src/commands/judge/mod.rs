//! The `judge` command: edits of a folder of cases with known results, and the share of right ones.
//!
//! `cases.json` lists the cases; `ID.source.png` is what is edited and `ID.target.png` what should come out.

mod rule;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::{Value, json};

use self::rule::Measures;
use crate::error::usage;
use crate::image::{self, Format, Output, Reading, Rgb};
use crate::pipeline::{EditParameters, Engine, Model, Place, PlaceChoice, Progress, is_blank};

/// A folder of cases to edit and judge.
#[derive(Clone, Debug)]
pub struct JudgeJob {
    /// The model's folder or transformer file; none: the demo model.
    pub model: Option<PathBuf>,
    /// Folder of the cases.
    pub cases: PathBuf,
    /// New or empty folder for the edited pictures; none: they are not kept.
    pub output: Option<PathBuf>,
    /// Most cases, from the first on; none: all.
    pub limit: Option<usize>,
    /// Every case's edit but for its instruction. Without a size level a picture keeps its own area.
    pub edit: EditParameters,
    /// Where to run.
    pub place: PlaceChoice,
    /// Report as one JSON object, with every case's measures.
    pub json: bool,
}

impl JudgeJob {
    /// The edit of a case whose picture has this width and height.
    fn edit(&self, instruction: &str, (width, height): (usize, usize)) -> EditParameters {
        let own = ((width * height) as f64).sqrt().round() as usize;
        let size_level = Some(self.edit.size_level.unwrap_or(own));
        EditParameters { prompt: instruction.to_string(), size_level, ..self.edit.clone() }
    }
}

/// An edit with a known result.
#[derive(Clone, Debug, Deserialize)]
struct Case {
    id: String,
    kind: String,
    language: String,
    /// Its wording was kept from training.
    held_out: bool,
    instruction: String,
}

/// What a case's edit came to.
struct Judged {
    case: Case,
    measures: Measures,
}

/// Edits every case and gives the report.
///
/// # Errors
/// A [`crate::error::UsageError`]: cases that cannot be read, or an output folder that is not empty; or whatever stops an edit.
pub fn run(job: &JudgeJob, progress: &mut dyn Progress, bar: &ProgressBar) -> Result<String> {
    let mut cases = read_cases(&job.cases).map_err(usage)?;
    cases.truncate(job.limit.unwrap_or(usize::MAX));
    // All are read before the first is edited: a fault shows at once.
    let pictures: Vec<_> = cases.iter().map(|case| pictures(&job.cases, case).map_err(usage)).collect::<Result<_>>()?;
    if let Some(folder) = &job.output {
        check_new_or_empty(folder).map_err(usage)?;
    }
    let place = Place::open(&job.place)?;
    let mut engine = Engine::open(Model::open_or_demo(job.model.as_deref(), progress)?, place)?;
    progress.place(&engine.place);
    if let Some(folder) = &job.output {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    bar.set_length(cases.len() as u64);
    let mut judged = Vec::new();
    for (case, (source, target)) in cases.into_iter().zip(pictures) {
        let edit = job.edit(&case.instruction, (source.width, source.height));
        let edit = edit.tidied(progress).with_context(|| format!("case {}", case.id))?;
        let edited = engine.edit(&edit, Some(&source), progress).with_context(|| format!("case {}", case.id))?.at(&source);
        if let Some(folder) = &job.output {
            let output = Output::reserve(&folder.join(format!("{}.png", case.id)), false)?;
            output.commit(&image::encode(&edited, None, Format::Png, &json!({"prompt": case.instruction}).to_string())?)?;
        }
        judged.push(Judged { measures: Measures::of(&source, &target, &edited), case });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (place, guidance) = (&engine.place, job.edit.cfg_scale_with(&engine.model));
    let title = format!("{}, {}, {} steps, guidance {guidance}", place.name(), place.precision, job.edit.steps);
    Ok(if job.json { format!("{}\n", report(&title, &judged)) } else { table(&title, &judged) })
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

fn read_cases(folder: &Path) -> Result<Vec<Case>> {
    let file = folder.join("cases.json");
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let cases: Vec<Case> = serde_json::from_slice(&text).with_context(|| format!("{} is not a list of cases", file.display()))?;
    ensure!(!cases.is_empty(), "{} lists no cases; add one", file.display());
    let plain = |id: &str| !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if let Some(case) = cases.iter().find(|case| !plain(&case.id)) {
        bail!("{}: the id {:?} has other characters than letters, digits, - and _; rename the case", file.display(), case.id);
    }
    if let Some(case) = cases.iter().find(|case| is_blank(&case.instruction)) {
        bail!("{}: the instruction of the case {} is empty; say what to change", file.display(), case.id);
    }
    let mut seen = HashSet::new();
    if let Some(case) = cases.iter().find(|case| !seen.insert(case.id.as_str())) {
        bail!("{} lists the case {} twice; give each its own id", file.display(), case.id);
    }
    Ok(cases)
}

/// Source and target of a case.
fn pictures(folder: &Path, case: &Case) -> Result<(Rgb, Rgb)> {
    let read = |what: &str| {
        let file = folder.join(format!("{}.{what}.png", case.id));
        image::decode(&file, &Reading::default()).map(|decoded| decoded.picture)
    };
    let (source, target) = (read("source")?, read("target")?);
    let size = |picture: &Rgb| format!("{}x{}", picture.width, picture.height);
    ensure!(
        size(&source) == size(&target),
        "case {}: the source is {}, the target {}; both must have one size",
        case.id,
        size(&source),
        size(&target)
    );
    ensure!(source != target, "case {}: source and target are equal, so no edit can be seen; give another target", case.id);
    Ok((source, target))
}

/// The group that a case belongs to.
type Group = fn(&Case) -> &str;

/// What cases are counted by.
const GROUPS: [(&str, Group); 3] = [
    ("kind", |case| &case.kind),
    ("language", |case| &case.language),
    ("wording", |case| if case.held_out { "unseen" } else { "seen" }),
];

/// The right ones and all of each group, in the order in which groups appear.
fn counts(judged: &[Judged], group: Group) -> Vec<(&str, usize, usize)> {
    let mut counts: Vec<(&str, usize, usize)> = Vec::new();
    for Judged { case, measures } in judged {
        let name = group(case);
        let at = counts.iter().position(|(known, ..)| *known == name).unwrap_or_else(|| {
            counts.push((name, 0, 0));
            counts.len() - 1
        });
        counts[at].1 += measures.right() as usize;
        counts[at].2 += 1;
    }
    counts
}

fn table(title: &str, judged: &[Judged]) -> String {
    let line = |name: &str, right: usize, all: usize| {
        format!("{name:<22}{right:>5} of {all:<5}{:>6.1} %\n", 100.0 * right as f64 / all as f64)
    };
    let right = judged.iter().filter(|j| j.measures.right()).count();
    let mut text = format!("{title}\n{}", line("all", right, judged.len()));
    for (group, of) in GROUPS {
        for (name, right, all) in counts(judged, of) {
            text += &line(&format!("{group} {name}"), right, all);
        }
    }
    text
}

fn report(title: &str, judged: &[Judged]) -> Value {
    let each = judged.iter().map(|Judged { case, measures: m }| {
        json!({
            "id": case.id, "kind": case.kind, "language": case.language, "held_out": case.held_out, "right": m.right(),
            "changed": m.changed, "picture": m.picture, "outside": m.outside, "mean": m.mean,
        })
    });
    let mut report = json!({
        "run": title, "cases": judged.len(), "right": judged.iter().filter(|j| j.measures.right()).count(),
        "each": each.collect::<Vec<_>>(),
    });
    for (group, of) in GROUPS {
        let shares =
            counts(judged, of).into_iter().map(|(name, right, all)| (name.to_string(), json!({"right": right, "cases": all})));
        report[group] = Value::Object(shares.collect());
    }
    report
}
