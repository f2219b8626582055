//! `judge`: cases are edited and counted; what is wrong with a folder of cases is said.

use std::fs;

use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::support::{Answer, Place, SETTINGS, model, parameters, pixels};

/// Two cases of pictures of 64×64: a square that should change its colour.
fn cases(place: &Place) -> Value {
    fs::create_dir(place.path("cases")).unwrap();
    let square = |colour: [u8; 3], name: &str| {
        let paint = |x, y| Rgb(if (20..40).contains(&x) && (20..40).contains(&y) { colour } else { [230, 230, 220] });
        RgbImage::from_fn(64, 64, paint).save(place.path(&format!("cases/{name}.png"))).unwrap();
    };
    for id in ["000", "001"] {
        square([200, 30, 30], &format!("{id}.source"));
        square([30, 60, 200], &format!("{id}.target"));
    }
    let list = json!([
        {"id": "000", "kind": "recolour", "language": "en", "held_out": false, "instruction": "make the square blue", "size": "20"},
        {"id": "001", "kind": "recolour", "language": "zh", "held_out": true, "instruction": "把正方形变成蓝色", "size": "20"},
    ]);
    place.write("cases/cases.json", list.to_string());
    list
}

fn judge(place: &Place, args: &[&str]) -> Answer {
    let level: &[&str] = if args.contains(&"--size-level") { &[] } else { &["--size-level", "64"] };
    let common = ["judge", "-m", model().to_str().unwrap(), "--cases", "cases", "--steps", "1", "--device", "cpu"];
    place.run(&[&common, level, args].concat())
}

#[test]
fn cases_are_edited_and_counted() {
    let place = Place::new();
    let list = cases(&place);
    let answer = judge(&place, &["-o", "edited", "--json"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let report = answer.json();
    // Synthetic weights edit nothing right.
    assert_eq!((&report["cases"], &report["right"]), (&json!(2), &json!(0)));
    assert_eq!(report["kind"], json!({"recolour": {"right": 0, "cases": 2}}));
    assert_eq!(report["language"], json!({"en": {"right": 0, "cases": 1}, "zh": {"right": 0, "cases": 1}}));
    assert_eq!(report["wording"], json!({"seen": {"right": 0, "cases": 1}, "unseen": {"right": 0, "cases": 1}}));
    assert_eq!((&report["size"], &report["each"][0]["size"]), (&json!({"20": {"right": 0, "cases": 2}}), &json!("20")));
    assert!(report["each"][1]["changed"].as_f64().unwrap() > 0.1, "{report}");

    // As `edit` does it, with the same noise.
    place.edited(&[
        "-i",
        "cases/000.source.png",
        "-p",
        "make the square blue",
        "--steps",
        "1",
        "-o",
        "one.png",
        "--device",
        "cpu",
    ]);
    let edited = place.read("edited/000.png");
    assert_eq!(pixels(&edited), pixels(&place.read("one.png")));
    assert_eq!(parameters(&edited)["prompt"], "make the square blue");
    assert!(place.path("edited/001.png").exists());

    // The model's own scale and size level.
    let folder = place.linked_model("own", &[SETTINGS]);
    let shared = fs::read_to_string(model().join(SETTINGS)).unwrap();
    fs::write(folder.join(SETTINGS), shared.replacen('{', "{\"cfg_scale\": 2.5, \"size_level\": 80, ", 1)).unwrap();
    let own =
        place.run(&["judge", "-m", "own", "--cases", "cases", "--steps", "1", "--device", "cpu", "--limit", "1", "-o", "by-own"]);
    assert!(own.stdout.contains("1 steps, guidance 2.5\n"), "{}{}", own.stdout, own.stderr);
    let at_80 = judge(&place, &["--cfg-scale", "2.5", "--size-level", "80", "--limit", "1", "-o", "by-flags"]);
    assert_eq!(at_80.code, Some(0), "{}", at_80.stderr);
    assert_eq!(pixels(&place.read("by-own/000.png")), pixels(&place.read("by-flags/000.png")));
    assert_ne!(pixels(&place.read("by-own/000.png")), pixels(&edited));

    // Counted by size only if every case has one.
    place.write("cases/cases.json", list.to_string().replacen("\"size\":\"20\"", "\"size\":null", 1));
    let answer = judge(&place, &[]);
    assert!(answer.code == Some(0) && !answer.stdout.contains("size"), "{}{}", answer.stdout, answer.stderr);

    let answer = judge(&place, &["--limit", "1"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let lines: Vec<Vec<&str>> = answer.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines.contains(&vec!["all", "0", "of", "1", "0.0", "%"]), "{}", answer.stdout);
    assert!(lines.contains(&vec!["kind", "recolour", "0", "of", "1", "0.0", "%"]), "{}", answer.stdout);
    assert!(answer.stdout.starts_with("cpu") && answer.stdout.contains("1 steps, guidance 6\n"), "{}", answer.stdout);
}

#[test]
fn faulty_cases_are_named() {
    let place = Place::new();
    judge(&place, &[]).refused(2, &["cannot read", "cases.json"]);
    let list = cases(&place);
    for (text, words) in [
        ("[]", &["lists no case"][..]),
        ("[{\"id\": 7}]", &["not a list of cases"]),
        ("[", &["not a list of cases"]),
        (&list.to_string().replace("000", "../x"), &["../x", "letters"]),
        (&list.to_string().replace("001", "000"), &["case 000 twice"]),
        (&list.to_string().replace("make the square blue", " \u{feff}"), &["case 000 is empty"]),
        (&list.to_string().replace("000", "007"), &["007.source.png"]),
    ] {
        place.write("cases/cases.json", text);
        judge(&place, &[]).refused(2, words);
    }
    // More than a list of cases can have, and something that never ends.
    place.write("cases/cases.json", list.to_string() + &" ".repeat(16_000_000));
    judge(&place, &[]).refused(2, &["cases.json", "more than 16 MB"]);
    fs::remove_file(place.path("cases/cases.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", place.path("cases/cases.json")).unwrap();
    judge(&place, &[]).refused(2, &["cases.json", "not a regular file", "16 MB"]);
    fs::remove_file(place.path("cases/cases.json")).unwrap();
    place.write("cases/cases.json", list.to_string());
    judge(&place, &["--limit", "0"]).refused(2, &["--limit"]);
    judge(&place, &["--cfg-scale", "nan"]).refused(2, &["--cfg-scale"]);
    judge(&place, &["--max-vram", "1GB"]).refused(2, &["--max-vram"]);
    judge(&place, &["-o", "cases"]).refused(2, &["not empty"]);
    // The last case counts before the first is edited, and a change that is too faint to count is none.
    fs::copy(place.path("cases/001.source.png"), place.path("cases/001.target.png")).unwrap();
    judge(&place, &["-o", "edited"]).refused(2, &["case 001", "equal", "64x64"]);
    let faint = RgbImage::from_fn(64, 64, |x, y| Rgb(if x < 9 && y < 9 { [222, 222, 212] } else { [230, 230, 220] }));
    faint.save(place.path("cases/001.target.png")).unwrap();
    RgbImage::from_pixel(64, 64, Rgb([230, 230, 220])).save(place.path("cases/001.source.png")).unwrap();
    judge(&place, &["-o", "edited"]).refused(2, &["case 001", "equal"]);
    assert!(!place.path("edited").exists());
    for what in ["source", "target"] {
        RgbImage::from_fn(1000, 10, |x, _| Rgb([x as u8, what.len() as u8, 0]))
            .save(place.path(&format!("cases/001.{what}.png")))
            .unwrap();
    }
    judge(&place, &[]).refused(2, &["case 001", "1000x10", "too narrow"]);
    RgbImage::new(32, 64).save(place.path("cases/000.target.png")).unwrap();
    judge(&place, &[]).refused(2, &["case 000", "64x64", "32x64"]);
}
