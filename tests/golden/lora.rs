//! LoRA files of several trainers on the tiny transformer: merged weights, and the velocity with them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use step1x_edit::commands::synth::{self, SynthJob};
use step1x_edit::model::edit::Savings;
use step1x_edit::model::{Preset, Version};
use step1x_edit::pipeline::{LoraChoice, Model, Silent};
use step1x_edit::stop::Stop;
use step1x_edit::tensor::{Component, DType};
use step1x_edit::weights::{LayoutKind, Lora, WeightSource};
use tempfile::TempDir;

use crate::common::Golden;
use crate::dit::{Given, forward_on};

const DIT: &str = "step1x-edit-v1p1-official.safetensors";

/// The tiny model of the golden files, and a folder for LoRA files.
struct Tiny {
    dir: TempDir,
    golden: Golden,
}

impl Tiny {
    /// With the transformer as it is released, or the same values in float32.
    fn new(golden: &str, dtype: DType) -> Tiny {
        let (dir, golden) = (tempfile::tempdir().unwrap(), Golden::open(golden));
        let output = dir.path().join("model");
        let job = SynthJob {
            output: output.clone(),
            preset: Preset::Tiny,
            version: Version::V1_1,
            seed: golden.seed(),
            layout: LayoutKind::Official,
        };
        synth::run(&job, &Stop::new(), &ProgressBar::hidden()).unwrap();
        if dtype == DType::F32 {
            widen(&output.join(DIT));
        }
        Tiny { dir, golden }
    }

    fn model(&self) -> Model {
        let model = Model::open(&self.dir.path().join("model")).unwrap();
        assert_eq!(format!("{:?}", model.config.dit), format!("{:?}", self.golden.config(Version::V1_1).dit));
        model
    }

    /// Writes the tensors whose names begin with a prefix, but for some, as a LoRA file.
    fn file(&self, name: &str, prefix: &str, without: &str, metadata: Option<HashMap<String, String>>) -> PathBuf {
        let names = self.golden.names().into_iter().filter_map(|name| name.strip_prefix(prefix));
        let names = names.filter(|name| without.is_empty() || !name.contains(without));
        let view = |name: &str| {
            let (dtype, shape, bytes) = self.golden.raw(&format!("{prefix}{name}"));
            (name.to_string(), TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
        };
        let path = self.dir.path().join(format!("{name}.safetensors"));
        safetensors::serialize_to_file(names.map(view), metadata, &path).unwrap();
        path
    }

    /// The velocity's largest distance from the golden one, with LoRA files.
    fn distance(&self, model: &Model, files: &[(&Path, f32)], expected: &str) -> f32 {
        let choices: Vec<LoraChoice> =
            files.iter().map(|(path, scale)| LoraChoice { path: path.to_path_buf(), scale: *scale }).collect();
        model.adapt(&choices, &mut Silent).unwrap_or_else(|e| panic!("{e:#}"));
        let ids = self.golden.f32("in.img_ids");
        let tokens: Vec<&[f32]> = ids.entry(0).chunks_exact(3).collect();
        // Reference tokens of v1.1 have 1 on the first axis.
        let noisy: Vec<&[f32]> = tokens.iter().copied().take_while(|id| id[0] == 0.0).collect();
        let extent = |axis: usize| noisy.iter().map(|id| id[axis] as usize + 1).max().expect("a noisy token");
        let given = Given::read(&self.golden, (extent(1), extent(2)));
        let forward = forward_on(&given, &model.config, Savings::ALL, Some(model.folder.clone()));
        let expected = self.golden.f32(expected);
        (0..2).map(|b| forward.compare_branch("velocity", &expected, b, true)).fold(0.0, f32::max)
    }
}

/// Rewrites a file of bf16 tensors in float32.
fn widen(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let wide: Vec<(String, Vec<usize>, Vec<u8>)> = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            assert_eq!(view.dtype(), Dtype::BF16);
            let wide = view.data().chunks_exact(2).flat_map(|bf16| [0, 0, bf16[0], bf16[1]]);
            (name, view.shape().to_vec(), wide.collect())
        })
        .collect();
    let views =
        wide.iter().map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Merged as the official code does it: rounded to bf16 once.
#[test]
fn merged_weights_are_the_official_ones_bit_for_bit() {
    let tiny = Tiny::new("lora.safetensors", DType::BF16);
    let model = tiny.model();
    // The official loader leaves out the final layer.
    let file = tiny.file("official", "lora/", "final_layer", None);
    let without = tiny.distance(&model, &[], "out.velocity_without");
    let merged = tiny.distance(&model, &[(&file, 1.0)], "out.velocity_merged");
    println!("velocity without the LoRA {without:.1e}, merged {merged:.1e}");
    let mut compared = 0;
    for name in tiny.golden.names().into_iter().filter_map(|name| name.strip_prefix("merged.")) {
        let (dtype, _, expected) = tiny.golden.raw(&format!("merged.{name}"));
        assert_eq!(dtype, Dtype::BF16);
        let mut bytes = vec![0; expected.len()];
        model.folder.read_at(Component::Dit, name, 0, &mut bytes).unwrap();
        let differ = bytes.chunks_exact(2).zip(expected.chunks_exact(2)).filter(|(got, wanted)| got != wanted).count();
        assert_eq!(differ, 0, "{name}: {differ} of {} elements", bytes.len() / 2);
        compared += 1;
    }
    assert!(compared > 1, "{compared} weights");
    let whole = Lora::open(&LoraChoice { path: tiny.file("whole", "lora/", "", None), scale: 1.0 }).unwrap();
    let changed = model.folder.adapt(vec![whole], &mut |_| Ok(())).unwrap();
    assert!(changed.contains("final_layer.linear.weight"), "here the final layer is changed too: {changed:?}");
}

/// Names of kohya, PEFT, ComfyUI and LyCORIS; alpha from tensors, from metadata and from nowhere; LoHa, LoKr and DoRA.
#[test]
fn files_of_all_trainers_alone_and_together() {
    let tiny = Tiny::new("lora_multi.safetensors", DType::F32);
    let model = tiny.model();
    let metadata: HashMap<String, String> =
        serde_json::from_str(tiny.golden.metadata("file_b_metadata")).expect("metadata of file b");
    let [a, c, d] = ["a", "c", "d"].map(|name| tiny.file(name, &format!("file.{name}/"), "", None));
    let b = tiny.file("b", "file.b/", "", Some(metadata));
    let bare = tiny.file("bare", "file.b/", "", None);
    for (files, expected) in [
        (&[][..], "out.none"),
        (&[(&*a, 1.0)], "out.a"),
        (&[(&*b, 0.75)], "out.b"),
        (&[(&*c, 1.0)], "out.c"),
        (&[(&*a, 0.6), (&*b, -0.4), (&*c, 0.9)], "out.abc"),
        (&[(&*d, 1.0)], "out.d"),
        (&[(&*d, 0.5)], "out.d_half"),
        (&[], "out.none"),
    ] {
        println!("{expected}: {:.1e}", tiny.distance(&model, files, expected));
    }
    println!("out.b_without_metadata: {:.1e}", tiny.distance(&model, &[(&bare, 1.0)], "out.b_without_metadata"));
}

/// Two files of one module each: a file in place of another changes only what either changes.
#[test]
fn another_file_changes_only_what_it_touches() {
    let tiny = Tiny::new("lora_multi.safetensors", DType::BF16);
    let model = tiny.model();
    let open = |path: PathBuf, scale| Lora::open(&LoraChoice { path, scale }).unwrap();
    let (all, linear2) = (tiny.file("all", "file.c/", "", None), tiny.file("some", "file.c/", "double", None));
    let (all, some) = (open(all, 1.0), open(linear2, 1.0));
    let adapt = |loras: &[&Arc<Lora>]| model.folder.adapt(loras.iter().map(|l| (*l).clone()).collect(), &mut |_| Ok(())).unwrap();
    let whole = adapt(&[&all]).len();
    assert!(adapt(&[&all]).is_empty(), "the same again");
    let added = adapt(&[&all, &some]);
    assert!(added.iter().all(|name| name.starts_with("single_blocks.")) && added.len() < whole, "{added:?}");
    assert_eq!(adapt(&[&some]).len(), whole);
    assert_eq!(adapt(&[]), added);
    assert!(adapt(&[]).is_empty());
    let refused = model.folder.adapt(vec![all], &mut |_| anyhow::bail!("not now")).unwrap_err();
    assert_eq!((refused.to_string().as_str(), model.folder.loras().len()), ("not now", 0));
}
