//! What is said of a plan: the files with their sizes, the licences, the sums.

use std::fmt::Write;

use serde_json::{Value, json};

use super::plan::Plan;
use super::remote::{Remote, size};
use super::{PullJob, Source};
use crate::weights::shown;

/// The files with their sizes, for a person.
pub(super) fn list(plan: &Plan) -> String {
    let mut text = String::new();
    for repository in &plan.repositories {
        let commit = repository.commit.as_deref().map_or(String::new(), |commit| format!(", commit {}", &commit[..8]));
        let licence = match &repository.licence {
            Some(licence) => format!("licence {licence}"),
            None => "see its page for the licence".into(),
        };
        let _ = writeln!(text, "{} at {}{commit}; {licence}", repository.id, repository.revision);
        for file in &repository.files {
            let _ = writeln!(text, "{:>12}  {}{}", size(file.bytes), shown(&file.path), state(file));
        }
    }
    let free = plan.free.map_or(String::new(), |free| format!(", {} are free", size(free)));
    let _ = writeln!(text, "{:>12}  in all, {} to fetch{free}", size(plan.bytes()), size(plan.lacking()));
    for repository in &plan.repositories {
        let _ = writeln!(text, "into {}", repository.folder.display());
    }
    text
}

fn state(file: &Remote) -> String {
    match file.there {
        0 => String::new(),
        there if there == file.bytes => ", is there".into(),
        there => format!(", {} of it are there", size(there)),
    }
}

/// What can be done with what is there now.
pub(super) fn end(plan: &Plan, job: &PullJob) -> String {
    match job.all {
        true => format!("all files are in {}\n", plan.repositories[0].folder.display()),
        false => format!("it is there: -m {} finds it\n", job.name),
    }
}

/// The same as JSON.
pub(super) fn json(plan: &Plan, job: &PullJob) -> Value {
    let file = |file: &Remote| json!({"path": file.path, "bytes": file.bytes, "there_bytes": file.there, "digest": file.digest});
    let repositories: Vec<Value> = plan
        .repositories
        .iter()
        .map(|of| {
            json!({
                "id": of.id, "revision": of.revision, "commit": of.commit, "licence": of.licence,
                "folder": of.folder.to_string_lossy(), "files": of.files.iter().map(file).collect::<Vec<_>>(),
            })
        })
        .collect();
    let source = match job.source {
        Source::HuggingFace => "hf",
        Source::ModelScope => "modelscope",
    };
    let fetched = if job.dry_run { 0 } else { plan.lacking() };
    json!({
        "name": job.name, "source": source, "dry_run": job.dry_run, "repositories": repositories, "bytes": plan.bytes(),
        "lacking_bytes": plan.lacking(), "fetched_bytes": fetched, "free_bytes": plan.free,
    })
}
