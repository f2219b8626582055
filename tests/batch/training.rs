//! What becomes training data.

use serde_json::{Value, json};

use super::support::*;

#[test]
fn triplets_come_in_every_form_and_only_what_is_kept() {
    let place = Place::new();
    place.items(4);
    place.batch(&["items.jsonl", "-o", "out", "-n", "2", "--triplets", "jsonl"]).ended(0, &["kept 8 of 8 results"]);
    let text = std::fs::read_to_string(place.path("out/triplets.jsonl")).unwrap();
    let triplets: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(triplets.len(), 8);
    let first = &triplets[0];
    assert_eq!((&first["id"], &first["instruction"], &first["task"]), (&json!("0"), &json!("make it blue"), &json!("t0")));
    assert!(place.path(first["source"].as_str().unwrap()).exists() && place.path(first["target"].as_str().unwrap()).exists());
    let shares: Vec<f64> = triplets.iter().map(|one| one["scores"]["changed"].as_f64().unwrap()).collect();
    let (least, most) = shares.iter().fold((1.0f64, 0.0f64), |(least, most), share| (least.min(*share), most.max(*share)));
    assert!(least < most, "{shares:?}");
    let limit = format!("{most}");
    let few = shares.iter().filter(|share| **share >= most).count();
    place
        .batch(&["items.jsonl", "-o", "out", "-n", "2", "--resume", "--triplets", "metadata", "--changed-min", &limit])
        .ended(0, &[&format!("kept {few} of 8 results"), "8 there already"]);
    let metadata: Value = serde_json::from_slice(&std::fs::read(place.path("out/metadata.json")).unwrap()).unwrap();
    let entries = metadata.as_object().unwrap();
    assert!(
        entries.len() == few && entries.iter().all(|(target, entry)| place.path(target).exists() && entry["caption"].is_string())
    );
}

#[test]
fn archives_are_the_same_bytes_in_every_run() {
    let place = Place::new();
    place.items(5);
    let args = ["items.jsonl", "-o", "out", "--triplets", "webdataset", "--shard-items", "2"];
    place.batch(&args).ended(0, &["kept 5 of 5 results: 3 archives"]);
    let archives = |place: &Place| place.files("out").into_iter().filter(|(name, _)| name.ends_with(".tar")).collect::<Vec<_>>();
    let first = archives(&place);
    assert_eq!(
        first.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["triplets-000000.tar", "triplets-000001.tar", "triplets-000002.tar"]
    );
    let names: Vec<String> = first[0]
        .1
        .chunks(512)
        .filter(|block| &block[257..262.min(block.len())] == b"ustar")
        .map(|block| String::from_utf8(block[..100].iter().copied().take_while(|byte| *byte != 0).collect()).unwrap())
        .collect();
    let key = "00000000-42";
    assert_eq!(names[..3], [format!("{key}.source.png"), format!("{key}.target.png"), format!("{key}.json")]);
    std::fs::write(place.path("out/triplets-000001.tar"), "damaged").unwrap();
    place.batch(&[&args[..], &["--resume"]].concat()).ended(0, &["3 archives"]);
    assert!(archives(&place) == first);
    place.batch(&["items.jsonl", "-o", "out", "--triplets", "webdataset", "--resume"]).ended(0, &["1 archives"]);
    assert_eq!(archives(&place).len(), 1, "archives that are none any more are gone");
}

#[test]
fn duplicates_are_told_or_left_out() {
    let place = Place::new();
    place.items(2);
    std::fs::copy(place.path("in/0.png"), place.path("in/same.png")).unwrap();
    let more = [
        "{\"image\": \"in/same.png\", \"prompt\": \"make it blue\"}",
        "{\"image\": \"in/same.png\", \"prompt\": \"another\", \"id\": \"other\"}",
    ];
    let text = std::fs::read_to_string(place.path("items.jsonl")).unwrap() + &more.join("\n");
    place.write("items.jsonl", text);
    place.batch(&["items.jsonl", "-o", "told", "--dedup", "report", "--keep-order"]).ended(0, &["4 made"]);
    let told = place.lines("told");
    assert_eq!(told[2]["warnings"], json!(["the picture is the same as that of 0, with the same prompt"]));
    assert!(told[3].get("warnings").is_none_or(|warnings| !warnings.to_string().contains("same as")));
    place.batch(&["items.jsonl", "-o", "out", "--dedup", "skip", "--keep-order"]).ended(0, &["3 made, 1 skipped"]);
    let lines = place.lines("out");
    assert_eq!((&lines[2]["status"], &lines[2]["duplicate_of"]), (&json!("skipped"), &json!("0")));
    std::fs::remove_file(place.path("out/other.png")).unwrap();
    place.batch(&["items.jsonl", "-o", "out", "--dedup", "skip", "--resume"]).ended(0, &["1 made, 3 there already"]);
    place.batch(&["items.jsonl", "-o", "out", "--resume"]).ended(0, &["1 made, 3 there already"]);
}

#[cfg(unix)]
#[test]
fn a_judge_hears_of_each_result_and_its_scores_are_kept() {
    let place = Place::new();
    place.items(3);
    let judge = "while read -r line; do printf '%s\\n' \"$line\" >> asked; echo '{\"SC\": 7, \"PQ\": 8}'; done";
    place.batch(&["items.jsonl", "-o", "out", "--judge-cmd", judge]).ended(0, &["3 made"]);
    let asked = std::fs::read_to_string(place.path("asked")).unwrap();
    for line in asked.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(place.path(line["source"].as_str().unwrap()).exists() && place.path(line["target"].as_str().unwrap()).exists());
        assert!(line["instruction"].is_string());
    }
    assert_eq!(asked.lines().count(), 3);
    assert!(place.lines("out").iter().all(|line| line["judged"] == json!({"SC": 7, "PQ": 8})));
    place.batch(&["items.jsonl", "-o", "broken", "--judge-cmd", "exit 3"]).ended(0, &["3 made"]);
    let warned = |line: &Value| line["warnings"].to_string().contains("the judge gave no scores");
    assert!(place.lines("broken").iter().all(warned), "{:?}", place.lines("broken"));
}
