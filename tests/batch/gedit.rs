//! The benchmark: eleven rows of its layout, one of each task, from Arrow streams and from Parquet.

use std::collections::BTreeMap;

use serde_json::Value;

use super::support::*;

/// The rows, as their author says them.
fn expected() -> Vec<Value> {
    let text = std::fs::read_to_string(data("gedit_mini/expected.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// `TASK/LANGUAGE/KEY` of each row.
fn parts() -> Vec<String> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_string();
    expected().iter().map(|row| ["task_type", "instruction_language", "key"].map(|name| text(row, name)).join("/")).collect()
}

fn gedit(place: &Place, args: &[&str]) -> Answer {
    place.run(&[&["gedit"], args, &QUICK].concat())
}

#[test]
fn both_scorers_find_their_files_and_both_forms_give_the_same_bytes() {
    let place = Place::new();
    let (arrow, parquet) = (data("gedit_mini"), data("gedit_mini/train.parquet"));
    gedit(&place, &[&arrow, "-o", "arrow", "--model-name", "ours", "--source-copies"]).ended(0, &["11 made"]);
    gedit(&place, &[&parquet, "-o", "parquet", "--model-name", "ours", "--source-copies"]).ended(0, &["11 made"]);
    let (files, others) = (place.pictures("arrow"), place.pictures("parquet"));
    assert!(files == others, "Arrow and Parquet give other bytes");

    // Edited pictures are PNGs at the raw picture's size; beside each lies the smaller one that a scorer reads.
    let result = |part: &String| format!("ours/fullset/{part}.png");
    let wanted: Vec<String> = parts().iter().flat_map(|part| [result(part), format!("ours/fullset/{part}_SRCIMG.png")]).collect();
    let found: Vec<&String> = files.keys().collect();
    assert_eq!(found, wanted.iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    assert_eq!(wanted.len(), 22);
    let lines = lines(&place.path("arrow/ours/results.jsonl"));
    for (row, part) in expected().iter().zip(parts()) {
        let line = lines.iter().find(|line| line["id"] == *part).unwrap_or_else(|| panic!("no line of {part}"));
        assert_eq!((&line["prompt"], &line["extra"]["Intersection_exist"]), (&row["instruction"], &row["Intersection_exist"]));
        let picture = image::load_from_memory(&files[&result(&part)]).unwrap();
        assert_eq!(line["size"], serde_json::json!([picture.width(), picture.height()]));
        // `{key}.*` of the newer scorer must find one file.
        let key = row["key"].as_str().unwrap();
        let hits = files.keys().filter(|name| name.rsplit('/').next().is_some_and(|name| name.starts_with(&format!("{key}."))));
        assert_eq!(hits.count(), 1, "{key}");
    }
}

#[test]
fn languages_tasks_and_shards_choose_rows() {
    let place = Place::new();
    let arrow = data("gedit_mini");
    let of = |language: &str| parts().iter().filter(|part| part.contains(&format!("/{language}/"))).count();
    assert_eq!(of("en") + of("cn"), 11);
    gedit(&place, &[&arrow, "-o", "out", "--model-name", "cn", "--language", "cn"]).ended(0, &[&format!("{} made", of("cn"))]);
    gedit(&place, &[&arrow, "-o", "out", "--model-name", "t", "--task", "color_alter,subject-add"]).ended(0, &["2 made"]);
    gedit(&place, &[&arrow, "-o", "out", "--model-name", "t2", "--task", "colour"])
        .ended(2, &["no task \"colour\"", "color_alter"]);
    for part in ["0/2", "1/2"] {
        gedit(&place, &[&arrow, "-o", "out", "--model-name", "parts", "--shard", part]).ended(0, &[]);
    }
    assert_eq!(place.pictures("out/parts").len(), 11);
    place.run(&["batch", "--merge", "out/parts"]).ended(0, &[]);
    gedit(&place, &[&arrow, "-o", "out", "--model-name", "a/b"]).ended(2, &["the model's name is \"a/b\""]);
    gedit(&place, &["none", "-o", "out", "--model-name", "x"]).ended(2, &["cannot read the dataset none"]);
    place.write("text.arrow", "no stream of rows");
    gedit(&place, &["text.arrow", "-o", "out", "--model-name", "x"]).ended(2, &["text.arrow", "it is no Arrow stream"]);
    gedit(&place, &[&arrow, "-o", "out"]).ended(2, &["--model-name"]);
}

#[cfg(unix)]
#[test]
fn a_run_that_was_killed_goes_on() {
    let place = Place::new();
    let arrow = data("gedit_mini");
    gedit(&place, &[&arrow, "-o", "plain", "--model-name", "ours"]).ended(0, &[]);
    let args = ["gedit", &arrow, "-o", "killed", "--model-name", "ours", "--resume"];
    let mut runs = 0;
    for wanted in [3, 7] {
        let mut child = place.command(&[&args[..], &QUICK].concat()).spawn().unwrap();
        let results = place.path("killed/ours/results.jsonl");
        let done = || std::fs::read_to_string(&results).map_or(0, |text| text.matches("\"status\":\"ok\"").count());
        while done() < wanted && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let _ = child.kill();
        child.wait().unwrap();
        runs += 1;
    }
    place.run(&[&args[..], &QUICK].concat()).ended(0, &[]);
    assert_eq!(runs, 2);
    assert!(place.pictures("plain") == place.pictures("killed"));
    let mut made = BTreeMap::<String, usize>::new();
    for line in lines(&place.path("killed/ours/results.jsonl")).iter().filter(|line| line["status"] == "ok") {
        *made.entry(line["output"].to_string()).or_default() += 1;
    }
    assert!(made.len() == 11 && made.values().all(|times| *times == 1), "{made:?}");
}

#[test]
fn the_table_is_printed() {
    let place = Place::new();
    place.run(&["gedit", "--summary", "."]).ended(1, &["run one of the official scorers first"]);
    let head = "key,edited_image,instruction,sementics_score,quality_score,intersection_exist,instruction_language\n";
    place.write("s/m/gpt4o/m_ps_human_en_vie_score.csv", format!("{head}1,e/1.png,\"x, y\",9,4,True,en\n"));
    let answer = place.run(&["gedit", "--summary", "s"]);
    answer.ended(0, &[]);
    assert!(answer.stdout.contains("ps_human") && answer.stdout.contains("6.000"), "{}", answer.stdout);
    let json: Value = serde_json::from_str(&place.run(&["gedit", "--summary", "s", "--json"]).stdout).unwrap();
    assert_eq!(json["groups"][0]["mean"]["all"]["O"], 6.0);
}
