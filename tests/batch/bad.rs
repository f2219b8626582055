//! What is wrong is told before anything runs where that can be, and else is the failure of one item.

use super::support::*;

#[test]
fn manifests_that_are_none_are_refused_with_their_line() {
    let place = Place::new();
    place.picture("a.png", 1);
    place.picture("b/a.png", 2);
    place.write("empty/notes.txt", "x");
    let line = r#"{"image": "a.png", "prompt": "x"}"#;
    for (manifest, text, words) in [
        ("none.json", None, &["there is no manifest none.json"][..]),
        ("empty.json", Some(b"".to_vec()), &["cannot read the manifest empty.json", "it is empty"]),
        ("no-items.json", Some(b"{}".to_vec()), &["holds no items"]),
        ("no-lines.jsonl", Some(b"\n\n".to_vec()), &["it is empty"]),
        ("broken.jsonl", Some(format!("{line}\n{{\"image\": \n").into_bytes()), &["line 2", "it is no JSON"]),
        ("broken.json", Some(b"{\"a.png\": \"x\",".to_vec()), &["it is no JSON"]),
        ("table.csv", Some(b"image,prompt\na.png,x\n".to_vec()), &["CSV"]),
        ("latin.jsonl", Some(b"{\"image\": \"a.png\", \"prompt\": \"caf\xe9\"}\n".to_vec()), &["line 1 is not UTF-8"]),
        ("twice.json", Some(b"{\"a.png\": \"x\", \"a.png\": \"y\"}".to_vec()), &["\"a.png\" is there twice"]),
        (
            "same.json",
            Some(b"{\"a.png\": \"x\", \"b/a.png\": \"y\"}".to_vec()),
            &["both write \"a.png\"", "\"id\" or \"output\""],
        ),
        ("outside.jsonl", Some(br#"{"image": "a.png", "prompt": "x", "output": "../a.png"}"#.to_vec()), &["--allow-outside"]),
        ("steps.jsonl", Some(br#"{"image": "a.png", "prompt": "x", "steps": 0}"#.to_vec()), &["line 1", "from 1 to 1000"]),
        ("lora.jsonl", Some(br#"{"image": "a.png", "prompt": "x", "lora": "l"}"#.to_vec()), &["--lora"]),
        ("gif.jsonl", Some(br#"{"image": "a.png", "prompt": "x", "output": "a.gif"}"#.to_vec()), &[".gif"]),
        ("member.jsonl", Some(br#"{"picture": "a.png", "prompt": "x"}"#.to_vec()), &["no \"image\"", "it has picture", "--map"]),
        ("empty", None, &["is a folder without metadata.jsonl", "-p"]),
    ] {
        if let Some(text) = text {
            place.write(manifest, text);
        }
        place.batch(&[manifest, "-o", "out"]).ended(2, words);
        assert!(!place.path("out").exists(), "{manifest}: nothing is made");
    }
    place.batch(&["empty", "-p", "x", "-o", "out"]).ended(2, &["holds no pictures"]);
    place.write("good.jsonl", line);
    place.batch(&["good.jsonl", "-p", "x", "-o", "out"]).ended(2, &["-p is for a folder"]);
    place.batch(&["good.jsonl", "-o", "out", "--shard", "2/2"]).ended(2, &["0/2 to 1/2"]);
    place.batch(&["good.jsonl", "-o", "out", "--resume", "--force"]).ended(2, &["leave one out"]);
    place.batch(&["good.jsonl"]).ended(2, &["--output"]);
    place.batch(&["good.jsonl", "-o", "a.png"]).ended(2, &["a.png"]);
    place.batch(&["good.jsonl", "-o", "out", "-m", "none"]).ended(3, &["none"]);
    assert!(!place.path("out").exists(), "what cannot begin leaves nothing");
}

/// Unknown members are no fault: they come with the result.
#[test]
fn a_failed_item_stops_nothing() {
    let place = Place::new();
    place.picture("good.png", 1);
    place.write("text.png", "no picture");
    place.write("cut.png", &std::fs::read(place.path("good.png")).unwrap()[..60]);
    let items = [
        r#"{"image": "missing.png", "prompt": "x", "note": [1, {"a": null}]}"#,
        r#"{"image": "text.png", "prompt": "x"}"#,
        r#"{"image": "cut.png", "prompt": "x"}"#,
        r#"{"image": "good.png", "prompt": " ", "id": "blank"}"#,
        r#"{"image": "good.png", "prompt": "<|image_pad|>", "id": "pad", "n": 2}"#,
        r#"{"image": "good.png", "prompt": "make it blue", "unknown_member": 3}"#,
        r#"{"image": ".", "prompt": "x", "id": "folder"}"#,
    ];
    place.write("items.jsonl", items.join("\n"));
    let words = ["missing: failed", "text: failed", "the prompt is empty", "1 made, 7 failed", "it is a folder"];
    place.batch(&["items.jsonl", "-o", "out", "--keep-order"]).ended(1, &words);
    assert_eq!(place.pictures("out").keys().collect::<Vec<_>>(), ["good.png"]);
    let lines = place.lines("out");
    let codes: Vec<&str> = lines.iter().filter_map(|line| line["error"]["code"].as_str()).collect();
    let item = "invalid_item";
    assert_eq!(codes, ["missing_picture", "invalid_picture", "invalid_picture", item, item, item, "invalid_picture"]);
    assert_eq!(lines[0]["extra"]["note"][1]["a"], serde_json::Value::Null);
    let good = lines.iter().find(|line| line["status"] == "ok").unwrap();
    assert_eq!(good["extra"]["unknown_member"], 3);

    // What would fail again is not tried again, unless that is asked for or the picture is another; what was missing is.
    place.batch(&["items.jsonl", "-o", "out", "--resume"]).ended(1, &["0 made, 1 there already", "failed before"]);
    place.picture("text.png", 2);
    place.picture("missing.png", 3);
    place.batch(&["items.jsonl", "-o", "out", "--resume"]).ended(1, &["2 made, 1 there already, 1 failed, 4 failed before"]);
    place.batch(&["items.jsonl", "-o", "out", "--resume", "--retry-errors"]).ended(1, &["0 made, 3 there already, 5 failed"]);
    place.batch(&["items.jsonl", "-o", "few", "--max-errors", "2", "--keep-order"]).ended(1, &["failed"]);
    assert!(count(&place.lines("few"), "error") < 7, "two failures are enough");
}

#[test]
fn results_of_others_and_of_two_at_once_are_kept() {
    let place = Place::new();
    place.items(3);
    place.write("out/1.png", "mine");
    place.batch(&["items.jsonl", "-o", "out"]).ended(2, &["out/1.png exists", "--resume", "--force"]);
    place.batch(&["items.jsonl", "-o", "out", "--resume"]).ended(1, &["is none of this batch's results", "2 made, 1 failed"]);
    assert_eq!(std::fs::read(place.path("out/1.png")).unwrap(), b"mine");
    std::fs::remove_file(place.path("out/1.png")).unwrap();
    place.batch(&["items.jsonl", "-o", "out", "--resume", "--retry-errors"]).ended(0, &["1 made, 2 there already"]);
    let before = place.pictures("out");
    std::fs::rename(place.path("out/results.jsonl"), place.path("kept.jsonl")).unwrap();
    place.batch(&["items.jsonl", "-o", "out"]).ended(2, &["out/0.png and 2 other results exist"]);
    place.batch(&["items.jsonl", "-o", "out", "--force", "-s", "9"]).ended(0, &["3 made"]);
    assert!(place.pictures("out").iter().all(|(name, bytes)| before[name] != *bytes), "another seed, another picture");

    // A changed prompt makes its result anew, and only that.
    let changed = std::fs::read_to_string(place.path("items.jsonl")).unwrap().replacen("make it blue", "make it green", 1);
    place.write("items.jsonl", changed);
    place.batch(&["items.jsonl", "-o", "out", "--resume", "-s", "9"]).ended(0, &["1 made, 2 there already"]);
    std::fs::write(place.path("out/2.png"), "damaged").unwrap();
    place.batch(&["items.jsonl", "-o", "out", "--resume", "-s", "9"]).ended(1, &["none of this batch's results"]);
    std::fs::remove_file(place.path("out/2.png")).unwrap();
    place
        .batch(&["items.jsonl", "-o", "out", "--resume", "-s", "9", "--verify", "--retry-errors"])
        .ended(0, &["1 made, 2 there already"]);

    // Two at once in one folder: the second is refused.
    let args = [&["batch", "-", "-o", "busy"], &QUICK[..]].concat();
    let mut child = place.command(&args).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let begun = std::time::Instant::now();
    while !place.path("busy/results.jsonl").exists() {
        assert!(begun.elapsed().as_secs() < 60, "it has not begun");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    place.batch(&["items.jsonl", "-o", "busy"]).ended(2, &["another batch is writing busy/results.jsonl"]);
    drop(child.stdin.take());
    Answer::from(child.wait_with_output().unwrap()).ended(0, &["0 made"]);
    place.batch(&["items.jsonl", "-o", "busy"]).ended(0, &["3 made"]);
}
