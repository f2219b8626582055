use super::*;
use crate::model::Version;
use crate::tensor::Component;
use crate::weights::{
    Expected, LayoutKind, ModelFolder, SETTINGS, WeightFile, WeightSource, check, decode_f32, fill, parse_header,
};
use std::cell::RefCell;

fn planned(name: &str, dtype: DType, shape: &[usize]) -> PlannedTensor {
    PlannedTensor::new(name, Spec { dtype, shape: Shape(shape.to_vec()) })
}

/// Writes one file of synthetic tensors, with the checks of a whole model.
pub fn write_safetensors(path: &Path, tensors: &[PlannedTensor], metadata: &[(&str, &str)], seed: u64) -> anyhow::Result<()> {
    let file = FilePlan::new(path.to_path_buf(), tensors.iter().collect(), metadata)?;
    check_room(&parent(path), file.bytes())?;
    file.write(seed, BUFFER_BYTES, &mut |_| true)
}

fn mixed() -> Vec<PlannedTensor> {
    vec![
        planned("z.weight", DType::F32, &[5, 7]),
        planned("a.weight", DType::F8E4M3, &[3]),
        planned("m.bias", DType::BF16, &[11]),
        planned("empty", DType::F32, &[0, 4]),
        planned("h.weight", DType::F16, &[2, 3, 2]),
    ]
}

fn assert_synthetic(spec: &Spec, bytes: &[u8], name: &str, seed: u64) {
    let mut want = vec![0; spec.bytes()];
    fill(name, &spec.shape, spec.dtype, seed, &mut want);
    assert_eq!(bytes, want, "{name}");
}

#[test]
fn files_hold_the_recipe_at_any_buffer_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mixed.safetensors");
    let tensors = mixed();
    for buffer in [4, 7, 16, 61, BUFFER_BYTES] {
        let file = FilePlan::new(path.clone(), tensors.iter().collect(), &[]).unwrap();
        let mut told = 0;
        file.write(9, buffer, &mut |bytes| {
            told += bytes;
            true
        })
        .unwrap();
        assert_eq!(told, file.data_bytes);
        let opened = WeightFile::open(&path).unwrap();
        assert_eq!(opened.tensor_count(), tensors.len());
        for PlannedTensor { name, .. } in &tensors {
            assert_synthetic(opened.spec(name).unwrap(), &opened.read(name).unwrap(), name, 9);
        }
        let data_start = opened.tensors().map(|(_, e)| e.range.start).min();
        assert_eq!(data_start.unwrap() % ALIGNMENT, 0);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
}

#[test]
fn what_is_written_decodes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.safetensors");
    let tensors = [planned("connector.scale_factor", DType::F8E4M3, &[1])];
    write_safetensors(&path, &tensors, &[("format", "pt")], 0).unwrap();
    let file = WeightFile::open(&path).unwrap();
    let mut value = [0.0];
    decode_f32(DType::F8E4M3, &file.read("connector.scale_factor").unwrap(), &mut value);
    assert_eq!(value, [-0.9375]);
}

#[test]
fn rows_of_another_tensor_are_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part.safetensors");
    let shape = Shape::from([6, 3]);
    let mut whole = vec![0; 6 * 3 * 4];
    fill("official.weight", &shape, DType::F32, 5, &mut whole);
    for (rows, bytes) in [(vec![2..4], whole[24..48].to_vec()), (vec![3..6, 0..3], [&whole[36..], &whole[..36]].concat())] {
        let spec = Spec::new(DType::F32, [bytes.len() / 12, 3]);
        let of = Some(Excerpt { name: "official.weight".into(), shape: shape.clone(), rows });
        for buffer in [4, 20, BUFFER_BYTES] {
            let tensor = PlannedTensor { name: "moved".into(), spec: spec.clone(), of: of.clone() };
            FilePlan::new(path.clone(), vec![&tensor], &[]).unwrap().write(5, buffer, &mut |_| true).unwrap();
            assert_eq!(WeightFile::open(&path).unwrap().read("moved").unwrap(), bytes, "a buffer of {buffer}");
        }
    }
}

#[test]
fn impossible_plans_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let twice = [planned("a", DType::F32, &[1]), planned("a", DType::F32, &[1])];
    let ints = [planned("a", DType::I32, &[1])];
    let huge = [planned("a", DType::F32, &[1 << 58])];
    let cases: [(&[PlannedTensor], &str); 3] =
        [(&twice, "the name is taken"), (&ints, "is not of a float type"), (&huge, "are free")];
    for (tensors, want) in cases {
        let text = write_safetensors(&path, tensors, &[], 0).unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
    }
    let lost = dir.path().join("absent/x.safetensors");
    assert!(write_safetensors(&lost, &ints[..0], &[], 0).is_err());
    fs::create_dir(&path).unwrap();
    assert!(write_safetensors(&path, &ints[..0], &[], 0).is_err(), "a folder has that name");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// DiT, VAE and Qwen of a toy model.
fn toy() -> [Vec<PlannedTensor>; 3] {
    [
        vec![planned("connector.scale_factor", DType::BF16, &[1]), planned("img_in.weight", DType::BF16, &[8, 4])],
        vec![planned("decoder.conv_in.weight", DType::F32, &[4, 2, 3, 3])],
        vec![
            planned("lm_head.weight", DType::BF16, &[16, 8]),
            planned("model.embed_tokens.weight", DType::BF16, &[16, 8]),
            planned("model.norm.weight", DType::BF16, &[8]),
            planned("visual.merger.ln_q.weight", DType::BF16, &[8]),
        ],
    ]
}

fn write_toy(dir: &Path, shard_bytes: Option<u64>, progress: &dyn Fn(u64, u64) -> bool) -> anyhow::Result<()> {
    let components = [Component::Dit, Component::Vae, Component::Qwen];
    let file = |(component, tensors)| PlannedFile {
        stem: LayoutKind::Official.stem(component, Version::V1_0),
        tensors,
        shard_bytes: shard_bytes.filter(|_| component == Component::Qwen),
    };
    let files: Vec<_> = components.into_iter().zip(toy()).map(file).collect();
    let [config, tokenizer] = LayoutKind::Official.qwen_files();
    let small = [(config, r#"{"hidden_size": 8}"#), (tokenizer, "{}"), (SETTINGS, r#"{"prefix": 3}"#)];
    write_model(dir, &files, &small.map(|(path, text)| (path, text.into())), 3, progress)
}

#[test]
fn a_model_goes_round() {
    let scratch = tempfile::tempdir().unwrap();
    for (shard_bytes, files) in [(None, 3), (Some(290), 4), (Some(1), 6)] {
        let dir = scratch.path().join(format!("model{files}"));
        let told = RefCell::new(Vec::new());
        write_toy(&dir, shard_bytes, &|done, total| {
            told.borrow_mut().push((done, total));
            true
        })
        .unwrap();
        let (done, total) = *told.borrow().last().unwrap();
        assert_eq!(done, total);
        let folder = ModelFolder::open(&dir).unwrap();
        assert_eq!(folder.version, Version::V1_0);
        assert_eq!(folder.files().count(), files);
        assert_eq!(folder.qwen_config["hidden_size"], 8);
        assert_eq!(folder.settings.as_ref().unwrap()["prefix"], 3);
        assert_eq!(folder.tokenizer, b"{}");
        let components = [Component::Dit, Component::Vae, Component::Qwen];
        let toy = toy();
        let mut expected = Vec::new();
        for (component, tensors) in components.into_iter().zip(&toy) {
            for PlannedTensor { name, spec, .. } in tensors {
                assert_eq!(folder.spec(component, name).as_ref(), Some(spec));
                let mut bytes = vec![0; spec.bytes()];
                folder.read_at(component, name, 0, &mut bytes).unwrap();
                assert_synthetic(spec, &bytes, name, 3);
                expected.push(Expected { component, name, shape: &spec.shape });
            }
        }
        check(&folder, &expected, &[]).unwrap();
    }
}

#[test]
fn a_model_is_not_written_over_anything() {
    let scratch = tempfile::tempdir().unwrap();
    let taken = scratch.path().join("taken");
    fs::create_dir(&taken).unwrap();
    write_toy(&taken, None, &|_, _| true).unwrap();
    let text = write_toy(&taken, None, &|_, _| true).unwrap_err().to_string();
    assert!(text.contains("not empty"), "{text}");
    let lost = scratch.path().join("no/such");
    let text = write_toy(&lost, None, &|_, _| true).unwrap_err().to_string();
    assert!(text.contains("create that first"), "{text}");
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(write_toy(&file, None, &|_, _| true).is_err());
    assert!(file.is_file());
}

#[test]
fn a_failed_model_is_taken_back() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("model");
    let text = write_toy(&dir, None, &|_, _| false).unwrap_err().to_string();
    assert!(text.contains("stopped"), "{text}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

/// The tensors of a released checkpoint, as its manifest lists them.
fn manifest(text: &str) -> Vec<PlannedTensor> {
    let Ok(Value::Object(entries)) = serde_json::from_str(text) else {
        panic!("a manifest is an object");
    };
    let plan = |(name, entry): (&String, &Value)| {
        let dtype = match entry["dtype"].as_str().unwrap() {
            "BF16" => DType::BF16,
            "F32" => DType::F32,
            other => panic!("{name} is {other}"),
        };
        let dims = entry["shape"].as_array().unwrap().iter();
        let shape: Vec<usize> = dims.map(|d| d.as_u64().unwrap() as usize).collect();
        planned(name, dtype, &shape)
    };
    entries.iter().map(plan).collect()
}

#[test]
fn headers_of_the_released_checkpoints_parse() {
    let manifests = [
        (include_str!("../../../tests/data/manifests/step1x-edit-i1258.json"), 817),
        (include_str!("../../../tests/data/manifests/step1x-edit-v1p1-official.json"), 816),
        (include_str!("../../../tests/data/manifests/vae.json"), 244),
        (include_str!("../../../tests/data/manifests/qwen2.5-vl-7b-instruct.json"), 729),
    ];
    for (text, count) in manifests {
        let tensors = manifest(text);
        let file = FilePlan::new("x".into(), tensors.iter().collect(), &[("a", "b")]).unwrap();
        let entries = parse_header(&file.header, file.bytes()).unwrap();
        assert_eq!(entries.len(), count);
        assert!(tensors.iter().all(|t| entries[&t.name].spec == t.spec));
    }
    let qwen = manifest(manifests[3].0);
    let planned = PlannedFile { stem: "q/model", tensors: qwen, shard_bytes: Some(4 << 30) };
    let (shards, index) = plan_file(Path::new("m"), &planned, 0).unwrap();
    let (path, index) = index.unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(path, Path::new("m/q/model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"], 16_584_333_312u64);
    assert_eq!(shards.len(), 4);
    assert!(shards[3].path.ends_with("m/q/model-00004-of-00004.safetensors"));
}
