//! `--rules`: which set an edit follows, that each set makes one picture from either layout, and where there is none.

use std::fs;

use serde_json::{Value, json};

use super::support::*;

/// The shared model's numbers in the layout of diffusers.
fn diffusers(place: &Place) {
    let made = place.run(&["synth", "--preset", "tiny", "--layout", "diffusers", "-o", "diffusers"]);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""));
}

/// What an edit says of itself, on standard output and in the picture.
fn edited(place: &Place, output: &str, flags: &[&str]) -> Value {
    let picture = fixture("grey.png");
    let said = place.edited(&[&["-i", &picture, "-o", output, "--json"], flags].concat()).json();
    let kept = parameters(&place.read(output));
    for key in ["rules", "posterior", "guidance_limit"] {
        assert_eq!(said[key], kept[key], "{key}");
    }
    json!([kept["rules"], kept["posterior"], kept["guidance_limit"]])
}

#[test]
fn the_layout_decides_and_each_set_makes_one_picture_from_either() {
    let place = Place::new();
    diffusers(&place);
    let (official, pipeline) = (json!(["official", "mean", 0.93]), json!(["diffusers", "sample", 0.00093]));
    assert_eq!(edited(&place, "a.png", &[]), official);
    assert_eq!(edited(&place, "b.png", &["-m", "diffusers"]), pipeline);
    assert_eq!(edited(&place, "c.png", &["-m", "diffusers", "--rules", "official"]), official);
    assert_eq!(edited(&place, "d.png", &["--rules", "diffusers"]), pipeline);
    let [a, b, c, d] = ["a.png", "b.png", "c.png", "d.png"].map(|name| place.read(name));
    assert!(a == c && b == d);
    assert!(difference(&a, &b) > 0, "the sets make different pictures");
    // In bf16 too, where latents and times are rounded.
    let bf16 = ["--precision", "bf16", "--device", "cpu"];
    edited(&place, "e.png", &[&bf16[..], &["-m", "diffusers"]].concat());
    edited(&place, "f.png", &[&bf16[..], &["--rules", "diffusers"]].concat());
    assert_eq!(place.read("e.png"), place.read("f.png"));
    assert!(difference(&b, &place.read("e.png")) > 0);
}

/// What a set chooses, the user may choose otherwise. (The velocities of the tiny model's prompts are too near each other for a
/// norm to be limited, so that this choice is seen in what is said alone.)
#[test]
fn flags_have_the_last_word() {
    let place = Place::new();
    let rules = ["--rules", "diffusers"];
    edited(&place, "own.png", &rules);
    for (i, (flags, said)) in [
        (&["--posterior", "mean"][..], json!(["diffusers", "mean", 0.00093])),
        (&["--guidance-limit", "0.93"], json!(["diffusers", "sample", 0.93])),
        (&["--rng", "cpu"], json!(["diffusers", "sample", 0.00093])),
    ]
    .into_iter()
    .enumerate()
    {
        let output = format!("{i}.png");
        assert_eq!(edited(&place, &output, &[&rules[..], flags].concat()), said);
        let is_seen = difference(&place.read("own.png"), &place.read(&output)) > 0;
        assert_eq!(is_seen, flags[0] != "--guidance-limit", "{flags:?}");
    }
    // At a scale of 1 and below, the pipeline runs the prompt's branch alone.
    let half = [&rules[..], &["--cfg-scale", "0.5", "--negative-prompt", "blue", "-o", "half.png"]].concat();
    assert!(place.edited(&half).stderr.contains("no effect at a guidance scale of 0.5"));
    // Without a picture, nothing is sampled.
    let made = place.edited(&["--rules", "diffusers", "--width", "64", "--height", "64", "-o", "text.png"]);
    assert_eq!(made.stderr.matches("error").count(), 0, "{}", made.stderr);
}

#[test]
fn a_model_may_name_its_rules() {
    let place = Place::new();
    let dir = place.linked_model("model", &[SETTINGS]);
    let shared = fs::read_to_string(model().join(SETTINGS)).unwrap();
    let named = |rules: &str| fs::write(dir.join(SETTINGS), shared.replacen('{', &format!("{{\"rules\": {rules}, "), 1)).unwrap();
    named("\"diffusers\"");
    assert_eq!(edited(&place, "own.png", &["-m", "model"])[0], "diffusers");
    assert_eq!(edited(&place, "flag.png", &["-m", "model", "--rules", "official"])[0], "official");
    named("\"comfy\"");
    place.edit_refused(&["-m", "model"], 3, &["step1x.json: rules must be \"official\" or \"diffusers\""]);
}

/// Five rows for `Picture 1: `; the tiny vocabulary has as many tokens as bytes there.
#[test]
fn inspect_plans_by_the_rules() {
    let place = Place::new();
    diffusers(&place);
    let planned = |flags: &[&str]| {
        let flags = [&["inspect", "--size", "64x64", "--size-level", "64"], flags].concat();
        let answer = place.run(&[&flags[..], &["--json"]].concat());
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
        let text = place.run(&flags).stdout;
        let plan = text.lines().find(|line| line.starts_with("plan of an edit")).unwrap().to_string();
        (answer.json()["plan"]["rules"].as_str().unwrap().to_string(), plan)
    };
    for (flags, rules) in [
        (&["--preset", "tiny"][..], "official"),
        (&["--preset", "tiny", "--rules", "diffusers"], "diffusers"),
        (&["-m", "diffusers"], "diffusers"),
        (&["-m", "diffusers", "--rules", "official"], "official"),
    ] {
        let (said, plan) = planned(flags);
        assert_eq!(said, rules, "{flags:?}");
        assert!(plan.contains(&format!("{rules} rules")), "{plan}");
    }
    let official = planned(&["--preset", "full"]).1;
    let pipeline = planned(&["--preset", "full", "--rules", "diffusers"]).1;
    let rows = |plan: &str| -> usize { plan.split('[').nth(1).unwrap().split(',').next().unwrap().parse().unwrap() };
    assert_eq!(rows(&pipeline), rows(&official) + 5, "{official}\n{pipeline}");
}

#[test]
fn version_1_0_has_the_official_rules_alone() {
    let place = Place::new();
    let made = place.run(&["synth", "--preset", "tiny", "--version", "v1.0", "-o", "old"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let words = ["the model is version 1.0", "diffusers has a pipeline for version 1.1 alone", "use the rules official"];
    place.edit_refused(&["-m", "old", "-i", &fixture("grey.png"), "--rules", "diffusers"], 2, &words);
    place.run(&["inspect", "-m", "old", "--rules", "diffusers"]).refused(2, &words);
    place.run(&["inspect", "--preset", "tiny", "--version", "v1.0", "--rules", "diffusers"]).refused(2, &words);
    place.edited(&["-m", "old", "-i", &fixture("grey.png"), "--rules", "official", "-o", "old.png"]);
    place.edit_refused(&["--rules", "comfy"], 2, &["--rules", "comfy", "official, diffusers"]);
    let settings = fs::read_to_string(place.path("old/step1x.json")).unwrap();
    place.write("old/step1x.json", settings.replacen('{', "{\"rules\": \"diffusers\", ", 1));
    place.edit_refused(&["-m", "old"], 3, &["old", "step1x.json: rules", words[0]]);
}

/// Settings that hold without the label before the picture need not hold with it.
#[test]
fn settings_must_leave_room_for_the_label() {
    let place = Place::new();
    let dir = place.linked_model("model", &[SETTINGS]);
    let mut settings: Value = serde_json::from_slice(&fs::read(model().join(SETTINGS)).unwrap()).unwrap();
    settings["max_text"] = json!(4);
    fs::write(dir.join(SETTINGS), settings.to_string()).unwrap();
    place.edited(&["-m", "model", "-i", &fixture("grey.png"), "-o", "official.png"]);
    place.edit_refused(&["-m", "model", "-i", &fixture("grey.png"), "--rules", "diffusers"], 3, &["`max_text` is 4"]);
}
