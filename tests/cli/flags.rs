//! Faults of the command line itself.

use serde_json::json;

use super::support::*;

fn refused(args: &[&str], code: i32, words: &[&str]) {
    let place = Place::new();
    place.edit_refused(args, code, words);
}

#[test]
fn unknown_and_missing_flags_are_named() {
    refused(&["--strength", "0.5"], 2, &["--strength", "Usage"]);
    let place = Place::new();
    place.run(&["edit", "-m", "model", "-o", "out.png"]).refused(2, &["--prompt"]);
    place.run(&["edit", "-p", "red", "-o", "out.png"]).refused(2, &["demo model", "-i", "-m"]);
    place.run(&["edit", "-p", "red", "-m", "model"]).refused(2, &["--output"]);
    place.run(&["paint"]).refused(2, &["paint"]);
    assert!(place.names().is_empty());
}

#[test]
fn values_out_of_range_are_named_with_the_range() {
    refused(&["--steps", "0"], 2, &["--steps", "1..=1000"]);
    refused(&["--size-level", "8"], 2, &["--size-level", "64..=4096"]);
    refused(&["--width", "100"], 2, &["--width 100", "multiple of 16"]);
    refused(&["--height", "8192"], 2, &["--height 8192", "4096"]);
    refused(&["--width", "wide"], 2, &["--width"]);
    for scale in ["nan", "inf", "-inf", "1e30", "-101", "high"] {
        refused(&["--cfg-scale", scale], 2, &["--cfg-scale", "from -100 to 100"]);
    }
    for limit in ["nan", "-0.1", "1.1", "inf"] {
        refused(&["--guidance-limit", limit], 2, &["--guidance-limit", "from 0 to 1"]);
    }
    refused(&["--rng", "xpu"], 2, &["--rng", "cpu, cuda"]);
    refused(&["--precision", "fp4"], 2, &["f32", "bf16"]);
    Place::new().run(&["inspect", "--preset", "full", "--size", "big"]).refused(2, &["WIDTHxHEIGHT"]);
}

#[test]
fn devices() {
    // Without a driver, or with too few devices.
    refused(&["--device", "cuda:999"], 4, &["--device cpu"]);
    refused(&["--device", "cuda", "--precision", "f32"], 2, &["--precision f32", "--device cpu"]);
    refused(&["--device", "tpu"], 2, &["--device <DEVICE>", "auto, cpu, cuda or cuda:N"]);
}

#[test]
fn measuring_commands_say_what_they_lack() {
    let place = Place::new();
    place.run(&["verify", "-m", "nowhere", "--golden", "no-such-folder"]).refused(3, &["full_512_inputs.safetensors"]);
    place.run(&["bench", "-m", "nowhere", "--device", "cpu"]).refused(2, &["bench needs a GPU"]);
    place.run(&["compare", "-m", "nowhere", "--device", "cpu"]).refused(2, &["compare needs a GPU"]);
    place.run(&["bench", "-m", "nowhere", "--device", "cuda:999"]).refused(4, &["driver"]);
    place.run(&["profile", "-m", "nowhere", "--device", "cpu"]).refused(2, &["profile needs a GPU"]);
    place.write("trace.json", "mine");
    let trace = ["profile", "-m", "nowhere", "--device", "cpu", "--trace", "trace.json"];
    place.run(&trace).refused(2, &["trace.json exists", "--force"]);
    place.run(&[&trace[..], &["--force"]].concat()).refused(2, &["profile needs a GPU"]);
    assert_eq!(place.read("trace.json"), b"mine");
}

#[test]
fn a_size_belongs_to_text_alone() {
    refused(&["-i", &fixture("grey.png"), "--width", "64"], 2, &["--width", "--image"]);
}

#[test]
fn tokens_that_stand_for_pictures_are_refused_in_prompts() {
    refused(&["-p", "a <|image_pad|> b", "--width", "64", "--height", "64"], 2, &["<|image_pad|>", "leave it out"]);
    refused(&["-n", "<|video_pad|>", "--width", "64", "--height", "64"], 2, &["<|video_pad|>"]);
}

#[test]
fn official_names_and_underscores_are_accepted() {
    let place = Place::new();
    let args = ["edit", "--model_path", model().to_str().unwrap(), "--prompt", "a_b", "--negative_prompt=blurry_c"];
    let more = ["--cfg_guidance", "4.5", "--size_level=64", "--num_steps", "3", "--output", "o_o.png", "--json"];
    let picture = fixture("grey.png");
    let answer = place.run(&[&args[..], &more[..], &["--image", &picture]].concat());
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let json = answer.json();
    assert_eq!((&json["cfg_scale"], &json["steps"]), (&json!(4.5), &json!(3)));
    assert_eq!((&json["prompt"], &json["negative_prompt"]), (&json!("a_b"), &json!("blurry_c")));
    assert_eq!(place.names(), ["o_o.png"]);
}

#[test]
fn help_goes_to_stdout_and_tells_the_exit_codes() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    assert!(help.stdout.contains("130 interrupted"), "{}", help.stdout);
    let bare = place.run(&[]);
    assert_eq!((bare.code, bare.stdout.as_str()), (Some(2), ""));
    assert!(bare.stderr.contains("edit") && bare.stderr.contains("inspect"), "{}", bare.stderr);
}
