//! Manifests as people have them.

use std::io::Write;
use std::process::Stdio;

use serde_json::json;

use super::support::*;

/// The official script's examples, as they are, with pictures of the same names.
#[test]
fn the_official_prompt_files_run_unchanged() {
    let place = Place::new();
    for (number, name) in ["0000.jpg", "0001.png", "0002.jpg", "0003.png", "0004.jpg"].iter().enumerate() {
        place.picture(&format!("examples/{name}"), number);
    }
    for (language, prompt) in [("en", "Let her cry."), ("cn", "让她哭。")] {
        let manifest = data(&format!("batch/prompt_{language}.json"));
        place.batch(&[&manifest, "--input_dir", "examples", "-o", language]).ended(0, &["5 made"]);
        let names: Vec<String> = place.pictures(language).into_keys().collect();
        assert_eq!(names, ["0000.png", "0001.png", "0002.png", "0003.png", "0004.png"]);
        let lines = place.lines(language);
        assert_eq!((lines.len(), count(&lines, "ok")), (5, 5));
        assert!(
            lines.iter().any(|line| line["prompt"] == prompt && line["image"] == "0001.png" && line["item"] == 1),
            "{lines:?}"
        );
    }
    place
        .batch(&[&data("batch/prompt_cn.json"), "--input-dir", "examples", "-o", "en", "--resume"])
        .ended(2, &["has the results of the manifest prompt_en.json, and this one is prompt_cn.json", "another output folder"]);
}

/// One item in every form gives one picture, the one that `edit` makes.
#[test]
fn every_form_makes_the_picture_that_edit_makes() {
    let place = Place::new();
    place.picture("in/a.png", 5);
    let edit = ["edit", "-i", "in/a.png", "-p", "make it blue", "-o", "edit.png", "-s", "7"];
    place.run(&[&edit[..], &QUICK].concat()).ended(0, &[]);
    let wanted = std::fs::read(place.path("edit.png")).unwrap();
    place.write("official.json", r#"{"a.png": "make it blue"}"#);
    place.write("list.json", r#"[{"input": "a.png", "instruction": "make it blue", "output": "a"}]"#);
    place.write("training.json", r#"{"x/a.png": {"ref_image_path": "a.png", "caption": "make it blue"}}"#);
    place.write("mapped.jsonl", "{\"key\": \"a\", \"picture\": \"a.png\", \"text\": \"make it blue\", \"caption\": \"?\"}\n");
    place.write("seed.jsonl", "{\"image\": \"a.png\", \"prompt\": \"make it blue\", \"seed\": 7, \"steps\": 1}\n");
    place.write("hub/metadata.jsonl", "{\"file_name\": \"../in/a.png\", \"instruction\": \"make it blue\", \"id\": \"a\"}\n");
    for (number, (manifest, more)) in [
        ("official.json", &["--input-dir", "in"][..]),
        ("list.json", &["--input-dir", "in"]),
        ("training.json", &["--input-dir", "in"]),
        ("mapped.jsonl", &["--input-dir", "in", "--map", "id=key,image=picture,prompt=text"]),
        ("seed.jsonl", &["--input-dir", "in", "-s", "9"]),
        ("hub", &[]),
        ("in", &["-p", "make it blue"]),
    ]
    .into_iter()
    .enumerate()
    {
        let output = format!("out{number}");
        let seed = if manifest == "seed.jsonl" { &[][..] } else { &["-s", "7"] };
        place.batch(&[&[manifest, "-o", &output], more, seed].concat()).ended(0, &["1 made"]);
        let pictures = place.pictures(&output);
        assert_eq!(pictures.keys().collect::<Vec<_>>(), ["a.png"], "{manifest}");
        assert!(pictures["a.png"] == wanted, "{manifest}: another picture than edit's");
    }
}

/// It starts before the input has ended, and a wrong line is one failure.
#[test]
fn standard_input_is_edited_line_by_line() {
    let place = Place::new();
    place.picture("a.png", 1);
    let args = [&["batch", "-", "-o", "out", "--json"], &QUICK[..]].concat();
    let mut child = place.command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let line = |id: &str| json!({"id": id, "image": "a.png", "prompt": "make it blue"}).to_string() + "\n";
    input.write_all(line("first").as_bytes()).unwrap();
    input.flush().unwrap();
    let begun = std::time::Instant::now();
    while !place.path("out/first.png").exists() {
        assert!(begun.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none(), "nothing is made while the input is open");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    input.write_all(format!("no json\n{}{}", line("first"), line("second")).as_bytes()).unwrap();
    drop(input);
    let answer = Answer::from(child.wait_with_output().unwrap());
    answer.ended(1, &["line 2: it is no JSON", "line 1 and line 3 both write \"first.png\"", "2 made, 2 failed"]);
    let printed: Vec<serde_json::Value> = answer.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed.iter().filter(|line| line["status"] == "ok").count(), 2, "{}", answer.stdout);
    assert!(printed.last().unwrap()["summary"]["an_hour"].is_number());
    assert_eq!(count(&place.lines("out"), "error"), 2);
}

/// Seeds of an item share what the encoders made of it, and shards share a folder.
#[test]
fn seeds_shards_and_orders_give_the_same_bytes() {
    let place = Place::new();
    place.items(5);
    place.batch(&["items.jsonl", "-o", "whole", "-n", "3", "-s", "5"]).ended(0, &["15 made"]);
    for part in 0..2 {
        let shard = format!("{part}/2");
        place.batch(&["items.jsonl", "-o", "parts", "-n", "3", "-s", "5", "--shard", &shard, "--keep-order"]).ended(0, &[]);
    }
    let (whole, parts) = (place.pictures("whole"), place.pictures("parts"));
    assert_eq!(whole.len(), 15);
    assert!(whole.contains_key("3_7.png"));
    assert!(whole == parts, "shards and orders differ");
    assert_ne!(whole["3_6.png"], whole["3_7.png"]);
    for seed in ["5", "6", "7"] {
        let output = format!("edit{seed}.png");
        let edit = ["edit", "-i", "in/2.png", "-p", "把它变成红色", "-o", &output, "-s", seed];
        place.run(&[&edit[..], &QUICK].concat()).ended(0, &[]);
        assert!(std::fs::read(place.path(&output)).unwrap() == whole[&format!("2_{seed}.png")], "seed {seed}");
    }
    place.run(&["batch", "--merge", "parts"]).ended(0, &[]);
    let merged = place.lines("parts");
    let order: Vec<(u64, u64)> =
        merged.iter().map(|line| (line["item"].as_u64().unwrap(), line["seed"].as_u64().unwrap())).collect();
    assert!(order.len() == 15 && order.is_sorted(), "{order:?}");
    assert_eq!(merged[0]["extra"], json!({"task": "t0"}), "what the manifest carries comes with the result");
    place.run(&["batch", "--merge", "parts"]).ended(1, &["exists", "--force"]);
    std::fs::remove_file(place.path("parts/results.1.jsonl")).unwrap();
    place.run(&["batch", "--merge", "parts", "--force"]).ended(1, &["shard 1/2 is missing"]);
}
