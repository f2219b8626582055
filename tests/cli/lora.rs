//! LoRA files: what they change, what a result says of them, what is refused.

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::support::{Place, fixture, model, parameters, report};

/// Writes a file of a rank-4 change of each module [out, row], all elements 1/16, and of other tensors of one element.
fn write(place: &Place, name: &str, modules: &[(&str, usize, usize)], others: &[&str]) {
    write_for("Step1X-Edit", place, name, modules, others);
}

/// The same, trained on a model of this name.
fn write_for(base: &str, place: &Place, name: &str, modules: &[(&str, usize, usize)], others: &[&str]) {
    let tensor = |elements: usize| 0.0625f32.to_le_bytes().repeat(elements);
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vec![];
    for &(module, out, row) in modules {
        tensors.push((format!("{module}.lora_down.weight"), vec![4, row], tensor(4 * row)));
        tensors.push((format!("{module}.lora_up.weight"), vec![out, 4], tensor(4 * out)));
        tensors.push((format!("{module}.alpha"), vec![], 2.0f32.to_le_bytes().to_vec()));
    }
    tensors.extend(others.iter().map(|name| (name.to_string(), vec![1], tensor(1))));
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let said = [("ss_base_model_version".to_string(), base.to_string())];
    safetensors::serialize_to_file(views, Some(said.into()), &place.path(name)).unwrap();
}

const QKV: (&str, usize, usize) = ("lora_unet_double_blocks_0_img_attn_qkv", 768, 256);
const TO_K: (&str, usize, usize) = ("transformer.single_transformer_blocks.0.attn.to_k", 256, 256);

#[test]
fn a_lora_changes_the_picture_as_its_scale_says_and_is_named_in_it() {
    let place = Place::new();
    write(&place, "a.safetensors", &[QKV, TO_K], &["lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"]);
    let picture = fixture("grey.png");
    let edited = |name: &str, loras: &[&str]| {
        let mut args = vec!["-i", &picture, "-o", name, "--device", "cpu", "--json"];
        args.extend(loras.iter().flat_map(|lora| ["--lora", lora]));
        let answer = place.edited(&args);
        (place.read(name), answer)
    };
    let pixels = |png: &[u8]| crate::support::pixels(png);
    let (plain, _) = edited("plain.png", &[]);
    assert_eq!(parameters(&plain).get("loras"), None);
    let (whole, answer) = edited("whole.png", &["a.safetensors"]);
    assert!(pixels(&whole) != pixels(&plain));
    assert!(answer.stderr.contains("1 tensors change a text encoder and are not used"), "{}", answer.stderr);
    let loras = &parameters(&whole)["loras"];
    let shell = std::process::Command::new("sha256sum").arg(place.path("a.safetensors")).output().unwrap();
    let sha256 = String::from_utf8(shell.stdout).unwrap()[..64].to_string();
    assert_eq!(*loras, json!([{"file": "a.safetensors", "sha256": sha256, "scale": 1.0}]));
    assert_eq!(answer.json()["loras"], *loras);
    let (nothing, _) = edited("nothing.png", &["a.safetensors:0"]);
    assert!(pixels(&nothing) == pixels(&plain), "at scale 0 nothing changes");
    let (back, _) = edited("back.png", &["a.safetensors:1.5", "a.safetensors:-0.5"]);
    assert_eq!(parameters(&back)["loras"][1]["scale"], json!(-0.5));
    assert!(crate::support::difference(&back, &whole) <= 1, "scales add up");
}

#[test]
fn files_that_do_not_fit_end_with_3_and_write_nothing() {
    let place = Place::new();
    write_for("flux1", &place, "flux.safetensors", &[("lora_unet_double_blocks_18_img_attn_qkv", 9216, 3072)], &[]);
    write(&place, "part.safetensors", &[QKV], &["guidance_in.lora_A.weight"]);
    write(&place, "te.safetensors", &[], &["lora_te1_text_model.alpha"]);
    place.write("picture.png", [0x89, b'P', b'N', b'G', 13, 10, 26, 10, 0]);
    for (lora, words) in [
        ("absent.safetensors", &["absent.safetensors: cannot open it"][..]),
        ("flux.safetensors", &["flux.safetensors: nothing of this file changes this model", "seems to be for FLUX"]),
        ("part.safetensors", &["1 modules fit", "not in this model (1):\n  guidance_in.lora_A.weight"]),
        ("te.safetensors", &["changes only a text encoder (1 tensors)"]),
        ("picture.png", &["this is a picture; a LoRA is given as a .safetensors file"]),
    ] {
        place.edit_refused(&["-i", &fixture("grey.png"), "--lora", lora], 3, words);
    }
    place.edit_refused(&["-i", &fixture("grey.png"), "--lora", &report("quantised.gguf")], 3, &["this is a GGUF file"]);
    place.edit_refused(&["--lora", "a.safetensors:1000"], 2, &["give a scale from -100 to 100"]);
    place.edit_refused(&["--lora", "a.safetensors:nan"], 2, &["give a scale from -100 to 100"]);
    place.edit_refused(&["--lora", ":1"], 2, &["give the file before the colon"]);
}

#[test]
fn inspect_says_what_a_file_is_and_whether_it_fits() {
    let place = Place::new();
    write(&place, "a.safetensors", &[QKV, TO_K], &["lora_te1_x.alpha"]);
    let model = model().to_str().unwrap();
    let answer = place.run(&["inspect", "-m", model, "--size-level", "64", "--size", "64x64", "--lora", "a.safetensors"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    for words in [
        "base model  Step1X-Edit",
        "modules     2 LoRA",
        "rank        4\n",
        "alpha       2\n",
        "fits        2 modules",
        "not used    1",
    ] {
        assert!(answer.stdout.contains(words), "no {words:?} in: {}", answer.stdout);
    }
    // The released model has other widths.
    let answer = place.run(&["inspect", "--lora", "a.safetensors"]);
    assert_eq!(answer.code, Some(3), "{}", answer.stderr);
    assert!(answer.stdout.contains("no, not the released Step1X-Edit") && answer.stderr.contains("not of its shapes (2)"));
    write(&place, "full.safetensors", &[("lora_unet_double_blocks_18_img_attn_proj", 3072, 3072)], &[]);
    let answer = place.run(&["inspect", "--lora", "full.safetensors", "--json"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let looked = &answer.json()["loras"][0];
    assert_eq!((&looked["fits"], &looked["ranks"], &looked["alphas"]), (&json!(true), &json!({"4": 1}), &json!([2.0, 2.0])));
}

/// Cases are edited as `edit` does it with the same file.
#[test]
fn judge_edits_with_a_lora() {
    let place = Place::new();
    write(&place, "a.safetensors", &[QKV, TO_K], &[]);
    let data = format!("{}/tests/data/demo_cases", env!("CARGO_MANIFEST_DIR"));
    let judged = |output: &str, loras: &[&str]| {
        let common = ["judge", "-m", model().to_str().unwrap(), "--cases", &data, "--limit", "1", "--steps", "1", "-o", output];
        place.run(&[&common[..], &["--size-level", "64", "--device", "cpu"], loras].concat())
    };
    for (output, loras) in [("plain", &[][..]), ("with", &["--lora", "a.safetensors:1"])] {
        let answer = judged(output, loras);
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    }
    let pixels = |name: &str| crate::support::pixels(&place.read(name));
    assert_ne!(pixels("with/000.png"), pixels("plain/000.png"));
    let list: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(format!("{data}/cases.json")).unwrap()).unwrap();
    let (source, instruction) = (format!("{data}/000.source.png"), list[0]["instruction"].as_str().unwrap());
    let args = ["-i", &source, "-p", instruction, "--steps", "1", "--lora", "a.safetensors", "-o", "one.png", "--device", "cpu"];
    place.edited(&args);
    assert_eq!(pixels("with/000.png"), pixels("one.png"));
    write(&place, "part.safetensors", &[QKV], &["guidance_in.lora_A.weight"]);
    judged("none", &["--lora", "part.safetensors"]).refused(3, &["1 modules fit", "guidance_in.lora_A.weight"]);
    judged("none", &["--lora", "a.safetensors:101"]).refused(2, &["give a scale from -100 to 100"]);
    assert!(!place.path("none").exists());
}

/// `bench` and `profile` take a file, and need a GPU for what they do with it.
#[test]
fn measuring_commands_take_a_lora_and_say_what_is_wrong_with_it() {
    let place = Place::new();
    write(&place, "a.safetensors", &[QKV], &[]);
    let model = model().to_str().unwrap();
    for command in ["bench", "profile"] {
        let run = |lora: &str| place.run(&[command, "-m", model, "--device", "cpu", "--lora", lora]);
        run("a.safetensors:0.5").refused(2, &[&format!("{command} needs a GPU")]);
        run("a.safetensors:1000").refused(2, &["give a scale from -100 to 100"]);
        run(":1").refused(2, &["give the file before the colon"]);
    }
}

/// What checks the program itself, and what has no model of the user's, takes none.
#[test]
fn where_a_lora_has_no_meaning_it_is_refused() {
    let place = Place::new();
    let model = model().to_str().unwrap();
    for args in [
        &["compare", "-m", model][..],
        &["verify", "-m", model, "--golden", "."],
        &["demo", "-o", "out.png"],
        &["synth", "--preset", "tiny", "-o", "out"],
        &["pull", "v1.1"],
        &["op", "linear"],
        &["doctor"],
    ] {
        place.run(&[args, &["--lora", "a.safetensors"]].concat()).refused(2, &["unexpected argument '--lora'"]);
    }
    assert!(place.names().is_empty(), "{:?}", place.names());
}
