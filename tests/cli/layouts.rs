//! The same model stored otherwise: other element types, newer names, shards. What is the same gives the same picture.

use std::fs;
use std::path::Path;

use half::f16;
use serde_json::{Map, Value, json};
use step1x_edit::tensor::Shape;
use step1x_edit::weights::f32_to_e4m3;

use super::support::*;
use super::tensors::*;

/// Shards of these tensors and the index that lists them.
fn shards(folder: &Path, stem: &str, parts: &[Vec<Stored>]) {
    let mut map = Map::new();
    for (i, tensors) in parts.iter().enumerate() {
        let name = format!("{stem}-{:05}-of-{:05}.safetensors", i + 1, parts.len());
        write(&folder.join(&name), tensors);
        map.extend(tensors.iter().map(|t| (t.name.clone(), name.as_str().into())));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(folder.join(format!("{stem}.safetensors.index.json")), index.to_string()).unwrap();
}

/// The picture that the shared model makes of the fixture, and the one of the model in `model`.
fn pictures(place: &Place) -> [Vec<u8>; 2] {
    let picture = fixture("grey.png");
    place.edited(&["-i", &picture, "-o", "shared.png"]);
    place.edited(&["-m", "model", "--rules", "official", "-i", &picture, "-o", "own.png"]);
    [place.read("shared.png"), place.read("own.png")]
}

#[test]
fn a_transformer_in_f32_makes_the_same_picture() {
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    write(&dir.join(DIT), &stored(DIT, "F32", |v| v.to_le_bytes().to_vec()));
    let [shared, own] = pictures(&place);
    assert_eq!(shared, own);
}

/// What F16 holds exactly makes one picture, whatever it is stored as, and in whatever mixture.
#[test]
fn exact_values_make_the_same_picture_in_every_type() {
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    let path = dir.join(DIT);
    // Eight bits of mantissa, none of them subnormal in F16.
    let exact = |value: f32| half::bf16::from_f32(if value.abs() < 1e-4 { 0.0 } else { value }).to_f32();
    let f16s = |v: f32| f16::from_f32(exact(v)).to_le_bytes().to_vec();
    let f32s = |v: f32| exact(v).to_le_bytes().to_vec();
    let forms = [stored(DIT, "F16", f16s), stored(DIT, "F32", f32s), stored(DIT, "BF16", |v| bf16(exact(v)))];
    let mut pictures = vec![];
    for form in &forms {
        write(&path, form);
        place.edited(&["-m", "model", "-i", &fixture("grey.png"), "-o", "form.png", "-f"]);
        pictures.push(place.read("form.png"));
    }
    let mixed: Vec<&Stored> = (0..forms[0].len()).map(|i| &forms[i % 3][i]).collect();
    write_all(&path, &mixed);
    place.edited(&["-m", "model", "-i", &fixture("grey.png"), "-o", "form.png", "-f"]);
    pictures.push(place.read("form.png"));
    assert!(pictures.iter().all(|picture| *picture == pictures[0]));
}

#[cfg(unix)]
#[test]
fn a_cache_with_links_in_a_folder_of_any_name_makes_the_same_picture() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    diffusers(&place);
    let cache = place.path("模型 cache é/models--stepfun-ai--Step1X-Edit-v1p1-diffusers");
    let snapshot = cache.join("snapshots/abc");
    fs::create_dir_all(cache.join("blobs")).unwrap();
    for (i, name) in place.names().iter().filter(|name| name.starts_with("model/")).enumerate() {
        let (from, to) = (place.path(name), snapshot.join(name.strip_prefix("model/").unwrap()));
        if from.is_file() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let blob = cache.join("blobs").join(i.to_string());
            fs::rename(&from, &blob).unwrap();
            symlink(&blob, &to).unwrap();
        }
    }
    place.edited(&["-i", &fixture("grey.png"), "-o", "shared.png"]);
    place.edited(&["-m", cache.to_str().unwrap(), "--rules", "official", "-i", &fixture("grey.png"), "-o", "own.png"]);
    assert_eq!(place.read("shared.png"), place.read("own.png"));
}

#[test]
fn f16_and_fp8_transformers_run() {
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    // A community file: its name is its own, its weights are e4m3 without scales.
    let fp8 = dir.join("step1x-edit-v1p1-FP8.safetensors");
    write(&fp8, &stored(DIT, "F8_E4M3", |v| vec![f32_to_e4m3(v)]));
    let [shared, own] = pictures(&place);
    assert_ne!(shared, own, "three bits of mantissa change a picture");
    fs::remove_file(fp8).unwrap();
    write(&dir.join(DIT), &stored(DIT, "F16", |v| f16::from_f32(v).to_le_bytes().to_vec()));
    place.edited(&["-m", "model", "-i", &fixture("grey.png"), "-o", "f16.png"]);
    let worst = difference(&shared, &place.read("f16.png"));
    assert!(worst <= 2, "f16 holds all but the smallest bf16 values, the picture differs by {worst}");
}

#[test]
fn newer_names_and_shards_make_the_same_picture() {
    let place = Place::new();
    let dir = place.linked_model("model", &[TEXT]);
    let mut tensors = stored(TEXT, "BF16", bf16);
    for t in &mut tensors {
        t.name = match t.name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None if t.name.starts_with("visual.") => format!("model.{}", t.name),
            None => t.name.clone(),
        };
    }
    let second = tensors.split_off(tensors.len() / 2);
    shards(dir.join(TEXT).parent().unwrap(), "model", &[tensors, second]);
    let [shared, own] = pictures(&place);
    assert_eq!(shared, own);
}

/// A model in the layout of diffusers, with the numbers of the shared one.
fn diffusers(place: &Place) {
    let made = place.run(&["synth", "--preset", "tiny", "--layout", "diffusers", "-o", "model"]);
    assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""));
}

const MOVED_DIT: &str = "model/transformer/diffusion_pytorch_model.safetensors";

#[test]
fn the_layout_of_diffusers_makes_the_same_picture() {
    let place = Place::new();
    diffusers(&place);
    let [shared, own] = pictures(&place);
    assert_eq!(shared, own);
    let inspected = place.run(&["inspect", "-m", "model"]);
    assert_eq!(inspected.code, Some(0), "{}", inspected.stderr);
    for words in ["Step1X-Edit v1.1", MOVED_DIT, "model/vae/diffusion_pytorch_model.safetensors", "model/text_encoder/model"] {
        assert!(inspected.stdout.contains(words), "{words}: {}", inspected.stdout);
    }

    // A tokenizer in its older place, and shards.
    fs::rename(place.path("model/processor"), place.path("model/tokenizer")).unwrap();
    let mut tensors = stored_at(&place.path(MOVED_DIT), "BF16", bf16);
    let second = tensors.split_off(tensors.len() / 2);
    fs::remove_file(place.path(MOVED_DIT)).unwrap();
    shards(&place.path("model/transformer"), "diffusion_pytorch_model", &[tensors, second]);
    place.edited(&["-m", "model", "--rules", "official", "-i", &fixture("grey.png"), "-o", "shards.png"]);
    assert_eq!(shared, place.read("shards.png"));
}

#[test]
fn configuration_files_that_contradict_the_tensors_are_refused() {
    let place = Place::new();
    diffusers(&place);
    let transformer = "model/transformer/config.json";
    for (path, key, wrong, words) in [
        (transformer, "num_layers", json!(3), "num_layers is 3, but the tensors have 2 (the last of transformer_blocks.*)"),
        (transformer, "attention_head_dim", json!(64), "but the tensors have 128 (transformer_blocks.0.attn.norm_q.weight)"),
        (transformer, "guidance_embeds", json!(true), "guidance_embeds is true, but Step1X-Edit has false"),
        (transformer, "axes_dims_rope", json!([1, 2, 3]), "the rotary axes are [1, 2, 3]"),
        ("model/vae/config.json", "latent_channels", json!(4), "but the tensors have 16 (decoder.conv_in.weight)"),
    ] {
        let whole = place.read(path);
        let mut config: Value = serde_json::from_slice(&whole).unwrap();
        config[key] = wrong;
        place.write(path, config.to_string());
        place.edit_refused(&["-m", "model"], 3, &[if key == "axes_dims_rope" { "model" } else { path }, words]);
        place.write(path, whole);
    }
    place.write("model/vae/config.json", "{");
    place.edit_refused(&["-m", "model"], 3, &["model/vae/config.json: this is not the JSON expected"]);
}

/// What is wrong with tensors is said in the names that their file has.
#[test]
fn faults_of_moved_tensors_have_the_names_of_their_file() {
    let place = Place::new();
    diffusers(&place);
    let (path, tensors) = (place.path(MOVED_DIT), || stored_at(&place.path(MOVED_DIT), "BF16", bf16));
    let all = tensors();
    let without = |name: &str| {
        let rest: Vec<&Stored> = all.iter().filter(|t| !t.name.starts_with(name)).collect();
        write_all(&path, &rest);
    };
    without("transformer_blocks.1.attn.to_v.weight");
    place.edit_refused(&["-m", "model"], 3, &[MOVED_DIT, "missing (1):\n  transformer_blocks.1.attn.to_v.weight"]);
    without("transformer_blocks.1.attn.norm_added_q");
    place.edit_refused(
        &["-m", "model"],
        3,
        &["missing (1):\n  transformer: transformer_blocks.1.attn.norm_added_q.weight [128]"],
    );
    without("x_embedder.weight");
    place.edit_refused(&["-m", "model"], 3, &["lacks the tensor x_embedder.weight"]);
    let more = Stored { name: "text_token_mapping.weight".into(), dtype: "BF16", shape: Shape::from([1]), bytes: vec![0; 2] };
    write_all(&path, &all.iter().chain([&more]).collect::<Vec<_>>());
    place.edit_refused(&["-m", "model"], 3, &[MOVED_DIT, "this is the transformer of Step1X-Edit 1.2, which is not read yet"]);
}

/// The transformer alone in a folder, and its parts in others.
#[test]
fn parts_elsewhere_are_taken_where_they_are_named() {
    let place = Place::new();
    diffusers(&place);
    place.edited(&["-i", &fixture("grey.png"), "-o", "shared.png"]);
    fs::create_dir(place.path("alone")).unwrap();
    fs::hard_link(model().join(DIT), place.path("alone/my model.safetensors")).unwrap();
    fs::hard_link(model().join(SETTINGS), place.path("alone/step1x.json")).unwrap();
    fs::hard_link(model().join(VAE), place.path("ae.safetensors")).unwrap();
    let qwen = model().join(TEXT).parent().unwrap().display().to_string();
    let file = model().join(TEXT).display().to_string();
    for (i, (vae, text)) in [
        ("ae.safetensors", qwen.as_str()),
        ("model/vae", "model/text_encoder"),
        ("model/vae/diffusion_pytorch_model.safetensors", file.as_str()),
        ("model", "model"),
    ]
    .into_iter()
    .enumerate()
    {
        let output = format!("{i}.png");
        let model = ["-m", "alone/my model.safetensors", "--vae", vae, "--text-encoder", text];
        place.edited(&[&model[..], &["-i", &fixture("grey.png"), "-o", &output]].concat());
        assert_eq!(place.read("shared.png"), place.read(&output), "{vae} and {text}");
    }
    let alone = ["-m", "alone/my model.safetensors"];
    place.edit_refused(&alone, 3, &["alone: not a complete model folder", "missing (4)", "vae.safetensors", "config.json"]);
    let with = |more: &[&'static str], words: &[&str]| place.edit_refused(&[&alone[..], more].concat(), 3, words);
    with(&["--vae", "none.safetensors"], &["none.safetensors: there is no such file or folder; give the autoencoder's"]);
    with(&["--vae", "alone"], &["alone: this is no complete autoencoder", "vae.safetensors"]);
    with(&["--vae", "alone/my model.safetensors"], &["my model.safetensors: this is Step1X-Edit's transformer"]);
    with(&["--vae", "model/vae", "--text-encoder", "alone"], &["alone: this is no complete text encoder", "missing (3)"]);
    with(&["--text-encoder", "ae.safetensors"], &["ae.safetensors: this is FLUX's autoencoder"]);
    place.run(&["edit", "-i", &fixture("grey.png"), "-p", "x", "-o", "x.png", "--vae", "model/vae"]).refused(2, &["--model"]);
}

/// Parts by the names of their repositories, in the cache of a hub.
#[test]
fn parts_are_named_as_models_are() {
    let place = Place::new();
    place.edited(&["-i", &fixture("grey.png"), "-o", "shared.png"]);
    fs::create_dir(place.path("alone")).unwrap();
    fs::hard_link(model().join(DIT), place.path("alone/dit.safetensors")).unwrap();
    fs::hard_link(model().join(SETTINGS), place.path("alone/step1x.json")).unwrap();
    let edit = |vae: &str, text: &str, output: &str| -> Answer {
        let picture = fixture("grey.png");
        let args = ["-m", "alone/dit.safetensors", "--vae", vae, "--text-encoder", text, "-i", &picture, "-o", output];
        place.command(&place.edit_args(&args)).env("HF_HUB_CACHE", place.path("hub")).output().unwrap().into()
    };
    edit("v1.1", "v1.1", "out.png")
        .refused(3, &["no cache of a hub has it", "`step1x-edit pull v1.1` gets it with its model: 42 GB"]);
    let commit = |repository: &str| {
        let folder = place.path("hub").join(repository);
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::create_dir_all(folder.join("snapshots/abc")).unwrap();
        fs::write(folder.join("refs/main"), "abc").unwrap();
        folder.join("snapshots/abc")
    };
    fs::hard_link(model().join(VAE), commit("models--stepfun-ai--Step1X-Edit").join(VAE)).unwrap();
    edit("v1.1", "v1.1", "out.png").refused(3, &["`step1x-edit pull Qwen/Qwen2.5-VL-7B-Instruct` gets it: 17 GB"]);
    let qwen = commit("models--Qwen--Qwen2.5-VL-7B-Instruct");
    for file in [CONFIG, TOKENIZER, TEXT] {
        fs::hard_link(model().join(file), qwen.join(Path::new(file).file_name().unwrap())).unwrap();
    }
    for (i, (vae, text)) in [
        ("v1.1", "v1.1"),
        ("stepfun-ai/Step1X-Edit@abc", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("v1.0@main", "Qwen/Qwen2.5-VL-7B-Instruct@abc"),
    ]
    .into_iter()
    .enumerate()
    {
        let output = format!("{i}.png");
        let answer = edit(vae, text, &output);
        assert_eq!(answer.code, Some(0), "{vae} and {text}: {}", answer.stderr);
        assert_eq!(place.read("shared.png"), place.read(&output), "{vae} and {text}");
    }
    edit("v1.1@def", "v1.1", "out.png").refused(3, &["it has main, abc"]);
    edit("org/other", "v1.1", "out.png").refused(3, &["models--org--other", "`step1x-edit pull org/other --all`"]);
    edit("Qwen/Qwen2.5-VL-7B-Instruct", "v1.1", "out.png").refused(3, &["this is no complete autoencoder"]);
    assert!(!place.path("out.png").exists());
}

/// In a folder of diffusers, the transformer's folder, its file and any of its shards stand for the model.
#[test]
fn a_transformer_of_diffusers_finds_the_rest_around_it() {
    let place = Place::new();
    diffusers(&place);
    place.edited(&["-i", &fixture("grey.png"), "-o", "shared.png"]);
    place.edited(&["-m", MOVED_DIT, "--rules", "official", "-i", &fixture("grey.png"), "-o", "file.png"]);
    let mut tensors = stored_at(&place.path(MOVED_DIT), "BF16", bf16);
    let second = tensors.split_off(tensors.len() / 2);
    fs::remove_file(place.path(MOVED_DIT)).unwrap();
    shards(&place.path("model/transformer"), "diffusion_pytorch_model", &[tensors, second]);
    let shard = "model/transformer/diffusion_pytorch_model-00002-of-00002.safetensors";
    for (model, output) in [("model/transformer", "folder.png"), (shard, "shard.png")] {
        place.edited(&["-m", model, "--rules", "official", "-i", &fixture("grey.png"), "-o", output]);
        assert_eq!(place.read("shared.png"), place.read(output), "{model}");
    }
    assert_eq!(place.read("shared.png"), place.read("file.png"));
}

/// One file of a text encoder, as ComfyUI's folders have them: what is not beside it is the model's own.
#[test]
fn a_text_encoder_in_one_file_needs_nothing_beside_it() {
    let place = Place::new();
    let dir = place.linked_model("model", &[TEXT]);
    fs::create_dir(place.path("encoders")).unwrap();
    fs::hard_link(model().join(TEXT), place.path("encoders/qwen_2.5_vl.safetensors")).unwrap();
    let args = ["-m", "model", "--text-encoder", "encoders/qwen_2.5_vl.safetensors"];
    place.edited(&["-i", &fixture("grey.png"), "-o", "shared.png"]);
    place.edited(&[&args[..], &["-i", &fixture("grey.png"), "-o", "file.png"]].concat());
    assert_eq!(place.read("shared.png"), place.read("file.png"));
    // Dimensions that no tensor tells are those of the released model, which this is not.
    fs::remove_file(dir.join(CONFIG)).unwrap();
    place.edit_refused(
        &args,
        3,
        &["qwen_2.5_vl.safetensors: its vision tower has 160 channels and 4 blocks", "put config.json of the model beside it"],
    );
    fs::hard_link(model().join(CONFIG), place.path("encoders/config.json")).unwrap();
    place.edited(&[&args[..], &["-i", &fixture("grey.png"), "-o", "beside.png"]].concat());
    assert_eq!(place.read("shared.png"), place.read("beside.png"));
    fs::remove_file(dir.join(TOKENIZER)).unwrap();
    place.edit_refused(&args, 3, &["this is no complete text encoder", "missing (1)", "tokenizer.json beside it"]);
}

/// The tensors of one of the shared model's files, with something before each name.
fn behind(head: &str, file: &str) -> Vec<Stored> {
    let mut tensors = match file {
        VAE => stored(file, "F32", |v| v.to_le_bytes().to_vec()),
        _ => stored(file, "BF16", bf16),
    };
    tensors.iter_mut().for_each(|t| t.name = format!("{head}{}", t.name));
    tensors
}

/// All parts in one file, as ComfyUI writes it, make the same picture; what it lacks is beside it, or named.
#[test]
fn a_checkpoint_of_all_parts_makes_the_same_picture() {
    let place = Place::new();
    place.edited(&["-i", &fixture("grey.png"), "-o", "shared.png"]);
    let dir = place.path("all");
    fs::create_dir(&dir).unwrap();
    for file in [SETTINGS, CONFIG, TOKENIZER] {
        fs::hard_link(model().join(file), dir.join(Path::new(file).file_name().unwrap())).unwrap();
    }
    let (path, in_dit) = (dir.join("step1x_all_in_one.safetensors"), "model.diffusion_model.");
    let of_comfyui = "text_encoders.qwen25_7b.transformer.";
    let scale = Stored {
        name: "text_encoders.qwen25_7b.logit_scale".into(),
        dtype: "F32",
        shape: Shape(vec![]),
        bytes: 4.6055f32.to_le_bytes().to_vec(),
    };
    let file = "all/step1x_all_in_one.safetensors";
    for (i, (vae, text)) in [("vae.", of_comfyui), ("first_stage_model.", "cond_stage_model.")].into_iter().enumerate() {
        let mut tensors = [behind(in_dit, DIT), behind(vae, VAE), behind(text, TEXT)].concat();
        tensors.push(scale.clone());
        write(&path, &tensors);
        let output = format!("{i}.png");
        place.edited(&["-m", file, "-i", &fixture("grey.png"), "-o", &output]);
        assert_eq!(place.read("shared.png"), place.read(&output), "{vae} and {text}");
    }
    let inspected = place.run(&["inspect", "-m", file]);
    assert_eq!(inspected.code, Some(0), "{}", inspected.stderr);
    assert_eq!(inspected.stdout.matches(file).count(), 1, "{}", inspected.stdout);

    // Its parts serve another transformer, and a part that it lacks is asked for, and taken from where it is named.
    fs::create_dir(place.path("alone")).unwrap();
    fs::hard_link(model().join(DIT), place.path("alone/dit.safetensors")).unwrap();
    fs::hard_link(model().join(SETTINGS), place.path("alone/step1x.json")).unwrap();
    place.edited(&[
        "-m",
        "alone/dit.safetensors",
        "--vae",
        file,
        "--text-encoder",
        file,
        "-i",
        &fixture("grey.png"),
        "-o",
        "parts.png",
    ]);
    assert_eq!(place.read("shared.png"), place.read("parts.png"));
    write(&path, &[behind(in_dit, DIT), behind(of_comfyui, TEXT)].concat());
    place.edit_refused(&["-m", file], 3, &["all: not a complete model folder", "missing (1):\n  vae.safetensors"]);
    let vae = model().join(VAE).display().to_string();
    place.edited(&["-m", file, "--vae", &vae, "-i", &fixture("grey.png"), "-o", "vae.png"]);
    assert_eq!(place.read("shared.png"), place.read("vae.png"));
    place.edit_refused(
        &["-m", "alone/dit.safetensors", "--vae", file],
        3,
        &["step1x_all_in_one.safetensors: this is Step1X-Edit's transformer"],
    );

    // Faults are told in the file's own names; a tokenizer is in no file of tensors.
    let mut tensors = [behind(in_dit, DIT), behind("vae.", VAE), behind(of_comfyui, TEXT)].concat();
    tensors.retain(|t| t.name != "vae.decoder.conv_out.bias" && !t.name.ends_with("visual.merger.ln_q.weight"));
    write(&path, &tensors);
    let names = [
        "autoencoder: vae.decoder.conv_out.bias [3]",
        "text encoder: text_encoders.qwen25_7b.transformer.visual.merger.ln_q.weight",
    ];
    place.edit_refused(&["-m", file], 3, &names);
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    place.edit_refused(&["-m", file], 3, &["this is no complete text encoder", "tokenizer.json beside it"]);
}
