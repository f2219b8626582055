use super::*;
use crate::tensor::{DType, Shape};
use crate::weights::write::tests::write_safetensors;
use crate::weights::{Expected, PlannedTensor, check};
use std::fs;

fn planned(names: &[&str], dtype: DType) -> Vec<PlannedTensor> {
    let spec = Spec::new(dtype, [4]);
    let plan = |name: &&str| PlannedTensor { name: name.to_string(), spec: spec.clone() };
    names.iter().map(plan).collect()
}

fn write(path: &Path, names: &[&str]) {
    write_safetensors(path, &planned(names, DType::BF16), &[], 0).unwrap();
}

const DIT: &str = "step1x-edit-v1p1-official.safetensors";

/// A model of one tensor a file; Qwen's in two shards unless `qwen` names those of a single file.
fn model(dir: &Path, qwen: Option<&[&str]>) {
    let qwen_dir = dir.join("Qwen2.5-VL-7B-Instruct");
    fs::create_dir_all(&qwen_dir).unwrap();
    write(&dir.join(DIT), &["img_in.weight"]);
    write(&dir.join("vae.safetensors"), &["decoder.conv_in.weight"]);
    fs::write(qwen_dir.join("config.json"), "{}").unwrap();
    fs::write(qwen_dir.join("tokenizer.json"), "{}").unwrap();
    match qwen {
        Some(names) => write(&qwen_dir.join("model.safetensors"), names),
        None => {
            write(&qwen_dir.join("s1.safetensors"), &["model.norm.weight"]);
            write(&qwen_dir.join("s2.safetensors"), &["visual.w"]);
            index(dir, r#"{"model.norm.weight":"s1.safetensors","visual.w":"s2.safetensors"}"#);
        }
    }
}

fn index(dir: &Path, weight_map: &str) {
    let path = dir.join("Qwen2.5-VL-7B-Instruct/model.safetensors.index.json");
    let text = format!(r#"{{"metadata":{{"total_size":16}},"weight_map":{weight_map}}}"#);
    fs::write(path, text).unwrap();
}

fn fault(dir: &Path) -> String {
    ModelFolder::open(dir).unwrap_err().to_string()
}

fn qwen_names(folder: &ModelFolder) -> Vec<&str> {
    folder.tensors(Component::Qwen).map(|(name, _)| name).collect()
}

#[test]
fn newer_qwen_names_become_the_released_ones() {
    let dir = tempfile::tempdir().unwrap();
    let newer = ["model.visual.w", "model.language_model.norm.weight", "lm_head.weight"];
    model(dir.path(), Some(&newer));
    let folder = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(qwen_names(&folder), ["lm_head.weight", "model.norm.weight", "visual.w"]);
    assert!(folder.recipe(Component::Qwen, "visual.w").is_some());
    assert!(folder.recipe(Component::Qwen, "model.visual.w").is_none());
    assert_eq!(folder.settings, None);

    let both = tempfile::tempdir().unwrap();
    model(both.path(), Some(&["model.visual.w", "visual.w"]));
    assert!(fault(both.path()).contains("two names of one tensor"));
}

#[test]
fn the_version_is_that_of_the_tensors() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), None);
    assert_eq!(ModelFolder::open(dir.path()).unwrap().version, Version::V1_1);
    write(&dir.path().join(DIT), &["connector.scale_factor"]);
    assert_eq!(ModelFolder::open(dir.path()).unwrap().version, Version::V1_0);
}

#[test]
fn shards_must_hold_what_the_index_says() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), None);
    let folder = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(qwen_names(&folder), ["model.norm.weight", "visual.w"]);

    index(dir.path(), r#"{"model.norm.weight":"s2.safetensors","visual.w":"s2.safetensors"}"#);
    let text = fault(dir.path());
    assert!(text.contains("model.norm.weight, which should be in s2.safetensors"), "{text}");
    index(dir.path(), r#"{"visual.w":"s2.safetensors"}"#);
    assert!(ModelFolder::open(dir.path()).is_ok(), "a shard that no tensor needs is not looked at");
    index(dir.path(), r#"{"visual.w":"s2.safetensors","visual.v":"s1.safetensors"}"#);
    let text = fault(dir.path());
    assert!(text.contains("there but not listed (1):\n  model.norm.weight in s1"), "{text}");
}

#[test]
fn truncated_and_malformed_parts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), None);
    let shard = dir.path().join("Qwen2.5-VL-7B-Instruct/s2.safetensors");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 3]).unwrap();
    let text = fault(dir.path());
    assert!(text.contains("s2.safetensors: 3 bytes are missing"), "{text}");
    fs::write(&shard, whole).unwrap();
    let config = dir.path().join("Qwen2.5-VL-7B-Instruct/config.json");
    fs::write(&config, "{").unwrap();
    assert!(fault(dir.path()).contains("config.json: not the JSON expected"));
    fs::write(&config, "{}").unwrap();
    fs::write(dir.path().join("step1x.json"), "nonsense").unwrap();
    assert!(fault(dir.path()).contains("step1x.json: not the JSON expected"));
}

#[test]
fn check_lists_every_kind_of_fault() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), Some(&["lm_head.weight", "model.norm.weight"]));
    let folder = ModelFolder::open(dir.path()).unwrap();
    let (four, eight) = (Shape::from([4]), Shape::from([8]));
    let expect = |component, name, shape| Expected { component, name, shape };
    let sound = [
        expect(Component::Dit, "img_in.weight", &four),
        expect(Component::Vae, "decoder.conv_in.weight", &four),
        expect(Component::Qwen, "model.norm.weight", &four),
    ];
    check(&folder, &sound, &[(Component::Qwen, "lm_head.weight")]).unwrap();
    let text = check(&folder, &sound, &[]).unwrap_err().to_string();
    assert!(text.contains("unexpected (1):\n  text encoder: lm_head.weight bf16[4]"), "{text}");

    let names: Vec<String> = (0..12).map(|i| format!("gone{i}")).collect();
    let mut wrong = vec![expect(Component::Dit, "img_in.weight", &eight)];
    wrong.extend(names.iter().map(|name| expect(Component::Vae, name, &four)));
    let text = check(&folder, &wrong, &[]).unwrap_err().to_string();
    assert!(text.contains("missing (12):\n  autoencoder: gone0 [4]"), "{text}");
    assert!(text.contains("and 2 more"), "{text}");
    assert!(text.contains("transformer: img_in.weight is [4], not [8]"), "{text}");
}

#[test]
fn check_takes_floats_only() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), None);
    let header = r#"{"img_in.weight":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    let bytes = [&length[..], header.as_bytes(), &[0; 4]].concat();
    fs::write(dir.path().join(DIT), bytes).unwrap();
    let folder = ModelFolder::open(dir.path()).unwrap();
    let shape = Shape::from([1]);
    let expected = [Expected { component: Component::Dit, name: "img_in.weight", shape: &shape }];
    let text = check(&folder, &expected, &[]).unwrap_err().to_string();
    assert!(text.contains("not of a float dtype (1):\n  transformer: img_in.weight is i32"), "{text}");
}

#[test]
fn the_demo_model_is_read_in_parts_as_in_whole() {
    let folder = ModelFolder::demo().unwrap();
    for component in [Component::Dit, Component::Vae, Component::Qwen] {
        let (name, spec) = folder.tensors(component).next().unwrap();
        let mut all = vec![0; spec.bytes()];
        folder.read_at(component, name, 0, &mut all).unwrap();
        let mut part = vec![0; all.len() - 2];
        folder.read_at(component, name, 2, &mut part).unwrap();
        assert!(part == all[2..], "{name}");
        let error = folder.read_at(component, name, 3, &mut part).unwrap_err().to_string();
        assert!(error.contains("beyond the end") && error.contains("demo model"), "{error}");
    }
}
