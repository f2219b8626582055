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
        {"id": "000", "kind": "recolour", "language": "en", "held_out": false, "instruction": "make the square blue"},
        {"id": "001", "kind": "recolour", "language": "zh", "held_out": true, "instruction": "把正方形变成蓝色"},
    ]);
    place.write("cases/cases.json", list.to_string());
    list
}

fn judge(place: &Place, args: &[&str]) -> Answer {
    place
        .run(&[&["judge", "-m", model().to_str().unwrap(), "--cases", "cases", "--steps", "1", "--device", "cpu"], args].concat())
}

#[test]
fn cases_are_edited_and_counted() {
    let place = Place::new();
    cases(&place);
    let answer = judge(&place, &["-o", "edited", "--json"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let report = answer.json();
    // Synthetic weights edit nothing right.
    assert_eq!((&report["cases"], &report["right"]), (&json!(2), &json!(0)));
    assert_eq!(report["kind"], json!({"recolour": {"right": 0, "cases": 2}}));
    assert_eq!(report["language"], json!({"en": {"right": 0, "cases": 1}, "zh": {"right": 0, "cases": 1}}));
    assert_eq!(report["wording"], json!({"seen": {"right": 0, "cases": 1}, "unseen": {"right": 0, "cases": 1}}));
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

    // The model's own scale.
    let folder = place.linked_model("own", &[SETTINGS]);
    let shared = fs::read_to_string(model().join(SETTINGS)).unwrap();
    fs::write(folder.join(SETTINGS), shared.replacen('{', "{\"cfg_scale\": 2.5, ", 1)).unwrap();
    let own = place.run(&["judge", "-m", "own", "--cases", "cases", "--steps", "1", "--device", "cpu", "--limit", "1"]);
    assert!(own.stdout.contains("1 steps, guidance 2.5\n"), "{}{}", own.stdout, own.stderr);

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
    place.write("cases/cases.json", list.to_string());
    judge(&place, &["--limit", "0"]).refused(2, &["--limit"]);
    judge(&place, &["--cfg-scale", "nan"]).refused(2, &["--cfg-scale"]);
    judge(&place, &["--max-vram", "1GB"]).refused(2, &["--max-vram"]);
    judge(&place, &["-o", "cases"]).refused(2, &["not empty"]);
    fs::copy(place.path("cases/000.source.png"), place.path("cases/000.target.png")).unwrap();
    judge(&place, &[]).refused(2, &["case 000", "equal"]);
    RgbImage::new(32, 64).save(place.path("cases/000.target.png")).unwrap();
    judge(&place, &[]).refused(2, &["case 000", "64x64", "32x64"]);
}
