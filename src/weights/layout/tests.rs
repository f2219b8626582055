use super::weights::Index;
use super::*;
use proptest::prelude::*;
use std::fs;

/// Empty files and the folders they need.
fn touch(dir: &Path, names: &[&str]) {
    for name in names {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
}

const INDEX: &str = "model.safetensors.index.json";

const QWEN_FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

fn qwen_at(dir: &Path) {
    touch(dir, &QWEN_FILES);
}

fn find(path: &Path) -> Result<Layout> {
    Layout::find(&path.into())
}

fn fault(path: &Path) -> String {
    find(path).unwrap_err().to_string()
}

#[test]
fn all_that_is_missing_is_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let text = fault(dir.path());
    for name in [DIT_V1_0, DIT_V1_1, VAE, QWEN_CONFIG, QWEN_TOKENIZER, INDEX, "model.safetensors"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    assert!(text.contains("missing (5)") && text.contains("stepfun-ai/Step1X-Edit"), "{text}");
    assert!(text.contains("Qwen/Qwen2.5-VL-7B-Instruct"), "{text}");
    assert!(fault(&dir.path().join("absent")).contains("no such folder"));
}

#[test]
fn absent_shards_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &[DIT_V1_1, VAE]);
    let qwen = dir.path().join(QWEN);
    touch(&qwen, &["config.json", "tokenizer.json", "one"]);
    let index = r#"{"weight_map":{"a":"one","b":"two"}}"#;
    fs::write(qwen.join(INDEX), index).unwrap();
    let text = fault(dir.path());
    assert!(text.contains("missing (1):\n  Qwen2.5-VL-7B-Instruct/two"), "{text}");
}

#[test]
fn the_dit_file_is_chosen_or_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &[VAE, "step1x-edit-i1258-FP8.safetensors"]);
    qwen_at(&dir.path().join(QWEN));
    let community = find(dir.path()).unwrap();
    assert!(community.dit.path().ends_with("step1x-edit-i1258-FP8.safetensors"));
    touch(dir.path(), &["step1x-edit-other.safetensors"]);
    assert!(fault(dir.path()).contains("the folder holds several models"));
    touch(dir.path(), &[DIT_V1_0]);
    assert!(find(dir.path()).unwrap().dit.path().ends_with(DIT_V1_0));
    touch(dir.path(), &[DIT_V1_1]);
    let text = fault(dir.path());
    assert!(text.contains(DIT_V1_0) && text.contains(DIT_V1_1), "{text}");
    let chosen = find(&dir.path().join(DIT_V1_1)).unwrap();
    assert!(chosen.dit.path().ends_with(DIT_V1_1));
    assert_eq!(chosen.dir, dir.path());
}

#[test]
fn a_hugging_face_cache_is_resolved() {
    let hub = tempfile::tempdir().unwrap();
    let model = hub.path().join("models--stepfun-ai--Step1X-Edit");
    touch(&model.join("snapshots/abc"), &[DIT_V1_1, VAE]);
    let qwen = hub.path().join("models--Qwen--Qwen2.5-VL-7B-Instruct");
    qwen_at(&qwen.join("snapshots/def"));
    let only = find(&model).unwrap();
    assert_eq!(only.dir, model.join("snapshots/abc"));
    assert_eq!(only.qwen_config, Some(qwen.join("snapshots/def/config.json")));
    assert!(find(&model.join("snapshots/abc")).is_ok());

    fs::create_dir_all(model.join("snapshots/older")).unwrap();
    assert!(fault(&model).contains("refs/main names none of its 2 snapshots"));
    touch(&model, &["refs/main"]);
    fs::write(model.join("refs/main"), "abc\n").unwrap();
    assert_eq!(find(&model).unwrap().dir, model.join("snapshots/abc"));
    fs::write(model.join("refs/main"), format!("{:1000}", "abc")).unwrap();
    assert!(find(&model).is_ok());
    for wrong in ["../..".to_string(), format!("{:1001}", "abc")] {
        fs::write(model.join("refs/main"), wrong).unwrap();
        assert!(fault(&model).contains("refs/main"));
    }
}

#[test]
fn files_in_a_models_place_are_looked_at_up_to_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    for count in [49, 50, 51] {
        fs::write(dir.path().join(format!("{count}.gguf")), "GGUF").unwrap();
        if count == 49 {
            (1..49).for_each(|i| fs::write(dir.path().join(format!("{i}.gguf")), "GGUF").unwrap());
        }
        let text = fault(dir.path());
        assert!(text.contains(&format!("there instead ({})", count.min(50))), "{count}: {text}");
    }
}

#[test]
fn a_modelscope_cache_is_resolved() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("stepfun-ai/Step1X-Edit");
    touch(&model, &[DIT_V1_1, VAE]);
    let qwen = root.path().join("Qwen/Qwen2___5-VL-7B-Instruct");
    qwen_at(&qwen);
    assert_eq!(find(&model).unwrap().qwen.path(), qwen.join("model.safetensors"));

    let newer = root.path().join("models/stepfun-ai--Step1X-Edit");
    touch(&newer.join("snapshots/master"), &[DIT_V1_1, VAE]);
    fs::create_dir_all(newer.join("snapshots/other")).unwrap();
    let qwen = root.path().join("models/Qwen--Qwen2.5-VL-7B-Instruct/snapshots/master");
    qwen_at(&qwen);
    assert_eq!(find(&newer).unwrap().qwen.path(), qwen.join("model.safetensors"));
}

fn index_of(text: &[u8]) -> Result<Index> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(INDEX);
    fs::write(&path, text).unwrap();
    Index::read(&path)
}

#[test]
fn faults_of_the_index_are_told() {
    let fault = |text: &str| index_of(text.as_bytes()).unwrap_err().to_string();
    assert!(fault("{}").contains("missing field `weight_map`"));
    assert!(fault(r#"{"weight_map":{}}"#).contains("lists no tensors"));
    assert!(fault(r#"{"weight_map":{"a":"x","a":"y"}}"#).contains("appears twice"));
    for shard in ["../x", "/x", "a/b", "", ".", "..", "a/"] {
        let text = fault(&format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#));
        assert!(text.contains("not the name of a file"), "{shard}: {text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]
    #[test]
    fn mutated_indexes_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
        cut in 0..60usize,
    ) {
        let mut text = br#"{"metadata":{"total_size":8},"weight_map":{"a":"m-1","b":"m-2"}}"#.to_vec();
        for (place, byte) in edits {
            let place = place.index(text.len());
            text[place] = byte;
        }
        text.truncate(text.len() - cut);
        if let Ok(index) = index_of(&text) {
            prop_assert!(index.shards.iter().all(|shard| is_plain_name(shard)));
        }
    }
}
