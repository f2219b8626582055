//! The table of what a judge gave: from the files that both official scorers write, and those of a server's benchmark.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::TASKS;

/// Endings of the scorers' files, of which the first one also writes one of all tasks together.
const ENDINGS: [&str; 2] = ["_gpt_score.csv", "_vie_score.csv"];
const COMBINED: &str = "_combined_gpt_score.csv";

/// Most bytes of such a file.
const CSV_BYTES_MAX: u64 = 64 << 20;

/// One item's scores.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scored {
    semantics: f64,
    quality: f64,
    intersection: bool,
}

/// Model, language and task.
type Part = (String, String, String);

/// A task's name, and its means over all items and over those of the intersection.
type Task<'a> = (&'a str, [Means; 2]);

/// Means over items.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Means {
    items: usize,
    semantics: f64,
    quality: f64,
    overall: f64,
}

/// Reads all scores below a folder; gives them as a table or as JSON.
///
/// # Errors
/// No files of scorers are there, or one is damaged; the message names it and the line.
pub fn summary(folder: &Path, as_json: bool) -> Result<String> {
    let mut files = Vec::new();
    find(folder, &mut files).with_context(|| format!("cannot read the folder {}", folder.display()))?;
    files.sort();
    ensure!(
        !files.is_empty(),
        "{} has no scores: files that end in {}; run one of the official scorers first",
        folder.display(),
        ENDINGS.join(" or ")
    );
    let mut scores: BTreeMap<Part, BTreeMap<String, Scored>> = BTreeMap::new();
    let mut without = 0;
    for path in &files {
        without += read(path, &mut scores).with_context(|| format!("cannot read the scores {}", path.display()))?;
    }
    let parts: BTreeMap<Part, [Means; 2]> = scores.into_iter().map(|(part, items)| (part, both(&items))).collect();
    Ok(if as_json { format!("{}\n", to_json(&parts, without)) } else { table(&parts, without) })
}

/// The files of scores below a folder.
fn find(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if ENDINGS.iter().any(|ending| name.ends_with(ending)) && !name.ends_with(COMBINED) {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Adds a file's scores; gives how many rows have none.
fn read(path: &Path, scores: &mut BTreeMap<Part, BTreeMap<String, Scored>>) -> Result<usize> {
    let length = path.metadata()?.len();
    ensure!(length <= CSV_BYTES_MAX, "it has {length} bytes; at most {CSV_BYTES_MAX} can be read");
    let bytes = fs::read(path)?;
    let text = std::str::from_utf8(&bytes).context("it is not UTF-8")?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let named = TASKS.iter().find_map(|task| Some((name.split_once(&format!("_{task}_"))?.0, *task)));
    let mut rows = records(text).into_iter();
    let head = rows.next().context("it is empty")?;
    let column = |names: &[&str]| head.iter().position(|column| names.contains(&column.as_str()));
    let needed = |names: &[&str]| column(names).with_context(|| format!("it has no column {}", names[0]));
    // One of the scorers writes "sementics".
    let [semantics, quality] = [needed(&["sementics_score", "semantics_score"])?, needed(&["quality_score"])?];
    let [item, language] = [needed(&["edited_image", "key"])?, needed(&["instruction_language"])?];
    let (intersection, task) = (column(&["intersection_exist", "Intersection_exist"]), column(&["task_type"]));
    let mut without = 0;
    for (number, row) in (2..).zip(rows) {
        ensure!(row.len() == head.len(), "row {number} has {} values of {}", row.len(), head.len());
        let task = match (task, named) {
            (Some(column), _) => row[column].clone(),
            (None, Some((_, task))) => task.to_string(),
            (None, None) => bail!("neither its name nor a column says the task"),
        };
        let model = match named {
            Some((model, _)) => model.to_string(),
            None => name.split("_all_").next().unwrap_or(&name).to_string(),
        };
        let score = |column: usize| row[column].trim().parse::<f64>().ok().filter(|score| (0.0..=10.0).contains(score));
        let (Some(semantics), Some(quality)) = (score(semantics), score(quality)) else {
            without += 1;
            continue;
        };
        let intersection = intersection.is_some_and(|column| matches!(row[column].trim(), "True" | "true" | "1" | "1.0"));
        let scored = Scored { semantics, quality, intersection };
        scores.entry((model, row[language].clone(), task)).or_default().insert(row[item].clone(), scored);
    }
    Ok(without)
}

/// The means of all items, and of those in the intersection.
fn both(items: &BTreeMap<String, Scored>) -> [Means; 2] {
    [false, true].map(|only| means(items.values().filter(|scored| scored.intersection || !only)))
}

fn means<'a>(items: impl Iterator<Item = &'a Scored>) -> Means {
    let mut sums = Means::default();
    for scored in items {
        sums.items += 1;
        sums.semantics += scored.semantics;
        sums.quality += scored.quality;
        sums.overall += (scored.semantics * scored.quality).sqrt();
    }
    let n = sums.items.max(1) as f64;
    Means { items: sums.items, semantics: sums.semantics / n, quality: sums.quality / n, overall: sums.overall / n }
}

/// The mean over tasks, each of the same weight; tasks without items have none.
fn over_tasks(tasks: &[Means]) -> Means {
    let there: Vec<&Means> = tasks.iter().filter(|means| means.items > 0).collect();
    let n = there.len().max(1) as f64;
    let mean = |of: fn(&Means) -> f64| there.iter().map(|means| of(means)).sum::<f64>() / n;
    Means {
        items: there.iter().map(|means| means.items).sum(),
        semantics: mean(|means| means.semantics),
        quality: mean(|means| means.quality),
        overall: mean(|means| means.overall),
    }
}

/// Models with their languages, each with its tasks and both their means.
fn grouped(parts: &BTreeMap<Part, [Means; 2]>) -> BTreeMap<(&str, &str), Vec<Task<'_>>> {
    let mut groups: BTreeMap<(&str, &str), Vec<Task>> = BTreeMap::new();
    for ((model, language, task), means) in parts {
        groups.entry((model, language)).or_default().push((task, *means));
    }
    groups
}

fn table(parts: &BTreeMap<Part, [Means; 2]>, without: usize) -> String {
    let mut text = String::new();
    for ((model, language), tasks) in grouped(parts) {
        text += &format!("{model}, {language}: all items, and those of the intersection\n");
        text += &format!(
            "{:<20}{:>6}{:>7}{:>7}{:>7}   {:>6}{:>7}{:>7}{:>7}\n",
            "task", "items", "SC", "PQ", "O", "items", "SC", "PQ", "O"
        );
        let total = [0, 1].map(|at| over_tasks(&tasks.iter().map(|(_, means)| means[at]).collect::<Vec<_>>()));
        let rows = tasks.iter().map(|(task, means)| (*task, *means)).chain([("mean over tasks", total)]);
        for (task, [all, some]) in rows {
            let cells = |m: Means| match m.items {
                0 => format!("{:>6}{:>7}{:>7}{:>7}", 0, "-", "-", "-"),
                n => format!("{n:>6}{:>7.3}{:>7.3}{:>7.3}", m.semantics, m.quality, m.overall),
            };
            text += &format!("{task:<20}{}   {}\n", cells(all), cells(some));
        }
        let absent: Vec<&str> = TASKS.into_iter().filter(|task| !tasks.iter().any(|(there, _)| there == task)).collect();
        if !absent.is_empty() {
            text += &format!("not the benchmark's mean: {} tasks are missing: {}\n", absent.len(), absent.join(", "));
        }
        text += "\n";
    }
    if without > 0 {
        text += &format!("{without} rows have no scores from 0 to 10 and are left out\n");
    }
    text
}

fn to_json(parts: &BTreeMap<Part, [Means; 2]>, without: usize) -> Value {
    let of = |means: &Means| json!({"items": means.items, "SC": means.semantics, "PQ": means.quality, "O": means.overall});
    let groups = grouped(parts).into_iter().map(|((model, language), tasks)| {
        let total = [0, 1].map(|at| over_tasks(&tasks.iter().map(|(_, means)| means[at]).collect::<Vec<_>>()));
        let each: BTreeMap<&str, Value> = tasks.iter().map(|(task, [all, some])| (*task, json!({"all": of(all), "intersection": of(some)}))).collect();
        json!({"model": model, "language": language, "tasks": each, "mean": {"all": of(&total[0]), "intersection": of(&total[1])}})
    });
    json!({"groups": groups.collect::<Vec<_>>(), "rows_without_scores": without})
}

/// The rows of comma-separated values; a quoted one may hold commas, quotes and ends of lines.
fn records(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut value, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.trim_start_matches('\u{feff}').chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                value.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut value)),
            '\r' if !quoted && characters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut value));
                rows.push(std::mem::take(&mut row));
            }
            c => value.push(c),
        }
    }
    if !value.is_empty() || !row.is_empty() {
        row.push(value);
        rows.push(row);
    }
    rows.retain(|row| row.len() > 1 || !row[0].is_empty());
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_values_may_hold_anything() {
        let text = "a,b\r\n\"x, \"\"y\"\"\",\"two\nlines\"\n\n1,\n";
        assert_eq!(records(text), [["a", "b"], ["x, \"y\"", "two\nlines"], ["1", ""]]);
    }

    /// The numbers are computed by hand: means over items, then over tasks.
    #[test]
    fn files_of_both_scorers_give_the_same_means() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let old = "source_image,edited_image,instruction,sementics_score,quality_score,intersection_exist,instruction_language\n";
        write(
            "m/gpt/m_color_alter_gpt_score.csv",
            &format!("{old}s/1.png,e/1.png,\"make, it\",4,9,True,en\ns/2.png,e/2.png,x,1,4,False,en\n"),
        );
        write("m/gpt/m_combined_gpt_score.csv", &format!("{old}s/1.png,e/1.png,x,0,0,True,en\n"));
        let new = "key,edited_image,instruction,sementics_score,quality_score,intersection_exist,instruction_language\n";
        write(
            "m/gpt/m_subject-add_en_vie_score.csv",
            &format!("{new}1,e/3.png,x,10.0,10.0,False,en\n2,e/4.png,x,nan,3,True,en\n"),
        );
        let json: Value = serde_json::from_str(&summary(dir.path(), true).unwrap()).unwrap();
        let group = &json["groups"][0];
        assert_eq!((&group["model"], &group["language"], &json["rows_without_scores"]), (&json!("m"), &json!("en"), &json!(1)));
        assert_eq!(group["tasks"]["color_alter"]["all"], json!({"items": 2, "SC": 2.5, "PQ": 6.5, "O": 4.0}));
        assert_eq!(group["tasks"]["color_alter"]["intersection"], json!({"items": 1, "SC": 4.0, "PQ": 9.0, "O": 6.0}));
        assert_eq!(group["mean"]["all"], json!({"items": 3, "SC": 6.25, "PQ": 8.25, "O": 7.0}));
        assert_eq!(group["mean"]["intersection"]["O"], json!(6.0));
        let text = summary(dir.path(), false).unwrap();
        assert!(text.contains("mean over tasks          3  6.250  8.250  7.000"), "{text}");
        assert!(text.contains("9 tasks are missing") && text.contains("1 rows have no scores"), "{text}");

        write(
            "server_all_all_vie_score.csv",
            "key,task_type,edited_image,semantics_score,quality_score,instruction_language\n1,ps_human,e,4,4,cn\n",
        );
        let json: Value = serde_json::from_str(&summary(dir.path(), true).unwrap()).unwrap();
        assert_eq!(
            (&json["groups"][1]["model"], &json["groups"][1]["tasks"]["ps_human"]["all"]["O"]),
            (&json!("server"), &json!(4.0))
        );
    }

    #[test]
    fn what_is_no_file_of_scores_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = || format!("{:#}", summary(dir.path(), false).unwrap_err());
        assert!(error().contains("run one of the official scorers first"));
        let path = dir.path().join("m_ps_human_gpt_score.csv");
        for (text, words) in [
            ("", "it is empty"),
            ("a,b\n1,2\n", "no column"),
            ("edited_image,sementics_score,quality_score,instruction_language\n1,2\n", "row 2 has 2 values of 4"),
        ] {
            fs::write(&path, text).unwrap();
            assert!(error().contains(words), "{}", error());
        }
        let file = fs::File::create(&path).unwrap();
        for (length, limit) in [(CSV_BYTES_MAX, false), (CSV_BYTES_MAX + 1, true)] {
            file.set_len(length).unwrap();
            assert_eq!(error().contains("at most"), limit, "{}", error());
        }
    }
}
