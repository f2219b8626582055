//! `verify`: what is wrong with a recorded run is told at once, whatever its files hold.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, TensorView};
use step1x_edit::image::Rgb;
use step1x_edit::pipeline::Model;
use step1x_edit::prompt::patches;

use super::support::*;

/// A tensor of a recorded run.
#[derive(Clone)]
struct Recorded {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn tensor<const N: usize>(name: &'static str, dtype: Dtype, shape: &[usize], element: [u8; N]) -> Recorded {
    Recorded { name, dtype, shape: shape.to_vec(), bytes: element.repeat(shape.iter().product()) }
}

fn write(place: &Place, file: &str, tensors: &[Recorded], metadata: &[(&str, &str)]) {
    let views = tensors.iter().map(|t| (t.name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    let metadata: HashMap<String, String> = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    place.write(file, safetensors::serialize(views, Some(metadata)).unwrap());
}

const METADATA: [(&str, &str); 4] = [("prompt", "make it red"), ("steps", "1"), ("cfg", "6.0"), ("seed", "42")];

/// The inputs of an edit of a grey picture of 64x64 with the shared model.
fn inputs() -> Vec<Recorded> {
    let model = Model::open(model()).unwrap();
    let picture = Rgb { width: 64, height: 64, data: vec![128; 3 * 64 * 64] };
    let patches = patches(&picture, &model.settings).unwrap();
    let tokens = [("cond.input_ids", "make it red"), ("uncond.input_ids", "")].map(|(name, text)| {
        let ids = model.tokenizer.encode_prompt(text, patches.image_tokens(), &model.settings).unwrap().ids;
        let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Recorded { name, dtype: Dtype::I32, shape: vec![ids.len()], bytes }
    });
    let pixels = tensor("pixel_values", Dtype::F32, &[patches.pixel_values.len()], [0; 4]);
    [vec![tensor("rgb", Dtype::U8, &[64, 64, 3], [128]), pixels], tokens.to_vec()].concat()
}

fn official() -> Vec<Recorded> {
    vec![tensor("noise", Dtype::BF16, &[1, 16, 8, 8], [0; 2]), tensor("timesteps", Dtype::F64, &[2], [0; 8])]
}

fn verify(place: &Place) -> Answer {
    place.run(&["verify", "-m", model().to_str().unwrap(), "--golden", ".", "--name", "g", "--device", "cpu"])
}

#[test]
fn the_header_of_a_recorded_run_does_not_say_how_long_it_takes() {
    let place = Place::new();
    for file in ["g.safetensors", "g_inputs.safetensors", "g_truth.safetensors"] {
        fs::copy(report("golden_steps_299999999999.safetensors"), place.path(file)).unwrap();
    }
    let since = Instant::now();
    verify(&place).refused(3, &["g.safetensors", r#"steps as "299999999999""#, "from 1 to 1000"]);
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[test]
fn what_is_no_recorded_run_is_refused() {
    let place = Place::new();
    verify(&place).refused(3, &["g_inputs.safetensors", "cannot read the recorded run"]);
    let nothing = [tensor("x", Dtype::U8, &[1], [0])];
    write(&place, "g_inputs.safetensors", &nothing, &[]);
    place.write("g.safetensors", "nonsense");
    verify(&place).refused(3, &["g.safetensors", "not a safetensors file"]);
    #[cfg(unix)]
    {
        fs::remove_file(place.path("g.safetensors")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place.path("g.safetensors")).unwrap();
        verify(&place).refused(3, &["g.safetensors", "a recorded run is a file of at most 1073741824 bytes"]);
    }
}

#[test]
fn tensors_that_do_not_fit_the_edit_are_named() {
    let place = Place::new();
    let refused = |inputs: &[Recorded], official: &[Recorded], words: &[&str]| {
        write(&place, "g_inputs.safetensors", inputs, &[]);
        write(&place, "g.safetensors", official, &METADATA);
        write(&place, "g_truth.safetensors", &[tensor("x", Dtype::U8, &[1], [0])], &[]);
        verify(&place).refused(3, words);
    };
    let changed = |tensors: &[Recorded], with: Recorded| -> Vec<Recorded> {
        tensors.iter().map(|old| if old.name == with.name { with.clone() } else { old.clone() }).collect()
    };
    let (inputs, official) = (inputs(), official());
    // What is not recorded here is what a sound run is asked for next.
    refused(&inputs, &official, &["g.safetensors", "the recorded times are not those of 1 steps"]);
    for (with, words) in [
        (tensor("rgb", Dtype::U8, &[64, 64, 4], [0]), "rgb is no picture of [height, width, 3]"),
        (tensor("rgb", Dtype::U8, &[60, 64, 3], [0]), "rgb is no picture of [height, width, 3]"),
        (tensor("rgb", Dtype::F32, &[64, 64, 3], [0; 4]), "rgb has type F32; it must be U8"),
        (tensor("cond.input_ids", Dtype::I32, &[7], [0; 4]), "other cond tokens than were recorded"),
        (tensor("uncond.input_ids", Dtype::I64, &[7], [0; 8]), "uncond.input_ids has type I64; it must be I32"),
        (tensor("pixel_values", Dtype::F32, &[7], [0; 4]), "pixel_values has 7 values, but the edit has"),
    ] {
        refused(&changed(&inputs, with), &official, &["g_inputs.safetensors", words]);
    }
    for (with, words) in [
        (tensor("noise", Dtype::BF16, &[10], [0; 2]), "noise has 10 values, but the edit has 1024"),
        (tensor("noise", Dtype::U8, &[1024], [0]), "noise has type U8; it must be F32, BF16 or F64"),
        (tensor("timesteps", Dtype::F64, &[1], [0; 8]), "timesteps has 1 values, but the edit has 2"),
    ] {
        refused(&inputs, &changed(&official, with), &["g.safetensors", words]);
    }
    refused(&inputs, &official[1..], &["g.safetensors", "there is no tensor noise"]);
}

/// A recorded run follows the rules that its header names, unless the user names others: other rules make other tokens.
#[test]
fn a_recorded_run_names_its_rules() {
    let place = Place::new();
    write(&place, "g_inputs.safetensors", &inputs(), &[]);
    write(&place, "g_truth.safetensors", &[tensor("x", Dtype::U8, &[1], [0])], &[]);
    let tokens = ["other cond tokens than were recorded"];
    let times = ["the recorded times are not those of 1 steps"];
    for (named, flags, words) in [
        (None, &[][..], times),
        (None, &["--rules", "diffusers"], tokens),
        (Some("diffusers"), &[], tokens),
        (Some("diffusers"), &["--rules", "official"], times),
        (Some("comfy"), &[], ["rules as \"comfy\"; it must be official or diffusers"]),
    ] {
        let metadata: Vec<_> = METADATA.into_iter().chain(named.map(|name| ("rules", name))).collect();
        write(&place, "g.safetensors", &official(), &metadata);
        let model = model().to_str().unwrap();
        let args = ["verify", "-m", model, "--golden", ".", "--name", "g", "--device", "cpu"];
        place.run(&[&args[..], flags].concat()).refused(3, &words);
    }
    let half = METADATA.map(|(key, value)| if key == "cfg" { (key, "0.5") } else { (key, value) });
    write(&place, "g.safetensors", &official(), &half);
    let args = ["verify", "-m", model().to_str().unwrap(), "--golden", ".", "--name", "g", "--device", "cpu"];
    place.run(&args).refused(3, &times);
    let one = ["with diffusers rules one branch runs at the recorded guidance scale"];
    place.run(&[&args[..], &["--rules", "diffusers"]].concat()).refused(3, &one);
}
