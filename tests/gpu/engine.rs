//! One engine, many edits on a device, with the demo model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use step1x_edit::image::Rgb;
use step1x_edit::pipeline::{
    DeviceChoice, EditParameters, Encoded, Engine, LoraChoice, Material, Model, Place, PlaceChoice, Progress, Silent,
};
use step1x_edit::weights::Lora;

use crate::common::tiny::{lora, merged_by_host};
use crate::support::{Gpu, gpu};

fn engine(gpu: &Gpu, max_vram: Option<usize>) -> Engine {
    let choice = PlaceChoice { device: DeviceChoice::Cuda(0), max_vram, setup: gpu.setup.clone(), ..PlaceChoice::default() };
    Engine::open(Model::demo().unwrap(), Place::open(&choice).unwrap()).unwrap()
}

fn picture(width: usize, height: usize) -> Rgb {
    Rgb { width, height, data: (0..width * height * 3).map(|i| (i * i / 7 + i / 3) as u8).collect() }
}

fn edit(prompt: &str, seed: u64) -> EditParameters {
    EditParameters { steps: 4, seed, size_level: Some(128), cfg_scale: Some(6.0), ..EditParameters::new(prompt) }
}

#[test]
fn a_second_edit_makes_nothing_and_gives_what_it_would_give_alone() {
    let Some(gpu) = gpu() else { return };
    let (source, mut one) = (picture(128, 128), engine(&gpu, None));
    let first = edit("make the circle blue", 1);
    let other = EditParameters { cfg_scale: Some(3.0), ..edit("make the square pink", 2) };
    let made = one.edit(&first, Some(&source), &mut Silent).unwrap().picture;
    let before = one.made();
    assert!(before.programs == 1 && before.on_device.modules > 10 && before.on_device.launches > 100, "{before:?}");
    assert!(before.on_device.captures == 1 && before.on_device.uploaded_bytes > 20_000_000, "{before:?}");
    let second = one.edit(&other, Some(&source), &mut Silent).unwrap().picture;
    assert_eq!(one.made(), before, "planned, compiled, captured or uploaded again");
    assert!(second != made);
    assert!(second == engine(&gpu, None).edit(&other, Some(&source), &mut Silent).unwrap().picture);
    assert!(made == one.edit(&first, Some(&source), &mut Silent).unwrap().picture);

    // Another shape needs another program, but neither its weights again nor most of its kernels.
    one.edit(&first, Some(&picture(192, 96)), &mut Silent).unwrap();
    let after = one.made();
    assert_eq!((after.programs, after.on_device.uploaded_bytes), (2, before.on_device.uploaded_bytes));
}

#[test]
fn programs_make_room_for_others() {
    let Some(gpu) = gpu() else { return };
    let sizes = [(128, 128), (192, 96), (96, 192)];
    let wanted = edit("make the circle blue", 1);
    let mut free = engine(&gpu, None);
    let alone = sizes.map(|(w, h)| free.edit(&wanted, Some(&picture(w, h)), &mut Silent).unwrap());
    assert_eq!(free.kept(), 3);
    let largest = alone.iter().map(|edited| edited.plan.peak_bytes()).max().unwrap();
    // What one program needs; where weights stream, less.
    for allowed in [largest, largest - alone[0].plan.weights.bytes / 4] {
        let mut tight = engine(&gpu, Some(allowed));
        for _ in 0..2 {
            for ((w, h), alone) in sizes.into_iter().zip(&alone) {
                let edited = tight.edit(&wanted, Some(&picture(w, h)), &mut Silent).unwrap();
                assert!(edited.picture == alone.picture, "{w}x{h} in {allowed} bytes, weights {}", edited.plan.weights.policy);
                assert!(edited.plan.peak_bytes() <= allowed);
                assert_eq!(tight.kept(), 1, "{allowed} bytes have room for one program");
            }
        }
        assert!(tight.made().programs > 3, "what made room is planned again");
    }
}

/// Stops an edit after so many nodes.
struct Stop(usize);

impl Progress for Stop {
    fn place(&mut self, _: &Place) {}

    fn stage(&mut self, _: &str, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn node(&mut self) -> Result<()> {
        self.0 = match self.0.checked_sub(1) {
            Some(left) => left,
            None => bail!("enough"),
        };
        Ok(())
    }

    fn notice(&mut self, _: &str) {}
}

/// An upload that was cut off leaves weights of which nobody knows: they come again.
#[test]
fn an_edit_after_one_that_was_stopped_is_as_good_as_any() {
    let Some(gpu) = gpu() else { return };
    let (source, wanted) = (picture(128, 128), edit("make the circle blue", 1));
    let alone = engine(&gpu, None).edit(&wanted, Some(&source), &mut Silent).unwrap();
    for allowed in [None, Some(alone.plan.peak_bytes() - alone.plan.weights.bytes / 4)] {
        let mut engine = engine(&gpu, allowed);
        for nodes in [0, 1, 30, 100, 200] {
            let stopped = engine.edit(&wanted, Some(&source), &mut Stop(nodes)).err().expect("it was stopped");
            assert!(stopped.to_string().contains("enough"), "{stopped:#}");
            let edited = engine.edit(&wanted, Some(&source), &mut Silent).unwrap();
            assert!(edited.picture == alone.picture, "after {nodes} nodes, weights {}", edited.plan.weights.policy);
        }
        assert_eq!(engine.made().programs, 1);
    }
}

/// Text-to-image lacks the encoder's weights, so that others lie elsewhere: programs of both kinds take turns on one region.
#[test]
fn edits_and_pictures_from_text_take_turns() {
    let Some(gpu) = gpu() else { return };
    let (source, wanted) = (picture(128, 128), EditParameters { size: (128, 128), ..edit("a blue circle", 1) });
    let one = |picture: Option<&Rgb>| engine(&gpu, None).edit(&wanted, picture, &mut Silent).unwrap();
    let (edited, made) = (one(Some(&source)), one(None));
    let peak = edited.plan.peak_bytes().max(made.plan.peak_bytes());
    for allowed in [None, Some(peak - edited.plan.weights.bytes / 4)] {
        let mut engine = engine(&gpu, allowed);
        for _ in 0..2 {
            assert!(engine.edit(&wanted, Some(&source), &mut Silent).unwrap().picture == edited.picture, "{allowed:?}");
            assert!(engine.edit(&wanted, None, &mut Silent).unwrap().picture == made.picture, "{allowed:?}");
        }
    }
}

/// A LoRA file is merged as on the CPU, and changed on a warm engine: then only the weights that it touches come again, and the
/// picture is that of an engine of its own. With too little memory for all weights at once it is the same.
#[test]
fn lora_files_change_between_edits() {
    let Some(gpu) = gpu() else { return };
    let (dir, source, wanted) = (tempfile::tempdir().unwrap(), picture(128, 128), edit("make the circle blue", 1));
    let modules = ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"];
    let [one, other] = modules.map(|module| lora(dir.path(), module, 1.0));
    let alone = |loras: &[&Arc<Lora>]| {
        let mut engine = engine(&gpu, None);
        engine.adapt(loras.iter().map(|lora| (*lora).clone()).collect()).unwrap();
        engine.edit(&wanted, Some(&source), &mut Silent).unwrap()
    };
    let plain = alone(&[]);
    let little = plain.plan.peak_bytes() - plain.plan.weights.bytes / 4;
    for allowed in [None, Some(little)] {
        let mut engine = engine(&gpu, allowed);
        engine.edit(&wanted, Some(&source), &mut Silent).unwrap();
        let before = engine.made();
        for loras in [&[&one][..], &[&one, &other], &[&other], &[]] {
            engine.adapt(loras.iter().map(|lora| (*lora).clone()).collect()).unwrap();
            let picture = engine.edit(&wanted, Some(&source), &mut Silent).unwrap().picture;
            assert!(picture == alone(loras).picture, "{} files, {allowed:?}", loras.len());
            assert_eq!(picture == plain.picture, loras.is_empty());
            for module in modules.iter().filter(|_| allowed.is_none()) {
                let (key, bytes) = merged_by_host(&engine.model.folder, module);
                assert!(engine.resident_bytes(&key).unwrap().unwrap() == bytes, "{module} with {} files", loras.len());
            }
        }
        let made = engine.made();
        assert_eq!((made.programs, made.on_device.captures), (before.programs, before.on_device.captures));
        if allowed.is_none() {
            let again = made.on_device.uploaded_bytes - before.on_device.uploaded_bytes;
            assert!(again > 0 && 10 * again < before.on_device.uploaded_bytes, "{again} bytes came again");
            assert!(made.on_device.merged_bytes > 0, "the host has merged them");
        }
    }
}

/// A file of rank 64 of all 304 modules of the released model's blocks, as the official trainer writes it.
fn full_lora(dir: &Path) -> Arc<Lora> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/manifests/lora-example.json");
    let manifest: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    let shapes =
        manifest.into_iter().map(|(name, entry)| (name, serde_json::from_value::<Vec<usize>>(entry["shape"].clone()).unwrap()));
    let shapes: Vec<_> = shapes.collect();
    let largest = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap();
    // 2^-8 and its negative in turns, in bf16.
    let values: Vec<u8> = (0..largest).flat_map(|i| [0x80, if i % 3 == 0 { 0xbb } else { 0x3b }]).collect();
    let views = shapes.iter().map(|(name, shape)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), &values[..2 * shape.iter().product::<usize>()]).unwrap())
    });
    let path = dir.join("full.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    Lora::open(&LoraChoice { path, scale: 1.0 }).unwrap()
}

/// Run by hand, with the folder of a model of the released size in `STEP1X_MODEL`: what a LoRA file costs a cold and a warm engine, and
/// a step; and whether the device merges as the host does.
#[test]
#[ignore = "needs a model of the released size in STEP1X_MODEL"]
fn a_lora_of_the_released_size_costs_little_time() {
    let Some(gpu) = gpu() else { return };
    let folder = std::env::var_os("STEP1X_MODEL").expect("STEP1X_MODEL names a model's folder");
    let (dir, source) = (tempfile::tempdir().unwrap(), picture(512, 512));
    let lora = full_lora(dir.path());
    let open = || {
        let choice = PlaceChoice { device: DeviceChoice::Cuda(0), setup: gpu.setup.clone(), ..PlaceChoice::default() };
        Engine::open(Model::open(folder.as_ref()).unwrap(), Place::open(&choice).unwrap()).unwrap()
    };
    // Seconds of all, and of the steps.
    let edit = |engine: &mut Engine, loras: Option<Vec<Arc<Lora>>>, steps| {
        let wanted = EditParameters { steps, size_level: Some(512), ..EditParameters::new("make it snow") };
        let begun = Instant::now();
        loras.map(|loras| engine.adapt(loras).unwrap());
        let edited = engine.edit(&wanted, Some(&source), &mut Silent).unwrap();
        let in_steps = edited.seconds.stages.iter().filter(|(name, _)| *name == "step").map(|(_, seconds)| seconds).sum::<f64>();
        (begun.elapsed().as_secs_f64(), in_steps)
    };
    edit(&mut open(), None, 1); // brings the files into the system's cache
    let (mut plain, mut adapted) = (open(), None);
    let (cold, warm) = (edit(&mut plain, None, 1).0, edit(&mut plain, None, 1).0);
    drop(plain);
    let cold_with = edit(adapted.insert(open()), Some(vec![lora.clone()]), 1).0;
    let engine = adapted.as_mut().unwrap();
    let merged = engine.made().on_device.merged_bytes as f64 / 1e9;
    let (away, back) = (edit(engine, Some(vec![]), 1).0, edit(engine, Some(vec![lora.clone()]), 1).0);
    println!("cold {cold:.2} s, with a LoRA {cold_with:.2} s; warm {warm:.2} s, LoRA away {away:.2} s, back {back:.2} s");
    println!("{merged:.2} GB were merged on the device");
    for module in
        ["double_blocks.0.img_attn.qkv", "double_blocks.18.txt_mlp.2", "single_blocks.0.linear1", "single_blocks.37.linear2"]
    {
        let (key, bytes) = merged_by_host(&engine.model.folder, module);
        assert!(engine.resident_bytes(&key).unwrap().unwrap() == bytes, "{module} is not what the host merges");
    }

    // Steps in turns, each after an edit that brings the weights.
    let mut seconds = [vec![], vec![]];
    for _ in 0..3 {
        for (with, loras) in [vec![], vec![lora.clone()]].into_iter().enumerate() {
            edit(engine, Some(loras), STEPS);
            seconds[with].push(edit(engine, None, STEPS).1);
        }
    }
    let [without, with] = seconds.map(|mut turns: Vec<f64>| {
        turns.sort_by(f64::total_cmp);
        turns[1]
    });
    println!("{STEPS} steps {without:.3} s, with a LoRA {with:.3} s");
    assert!(without >= 2.0, "too short to tell");
    assert!(merged > 10.0 && cold_with - cold <= 1.0 && back - warm <= 2.5 && (with / without - 1.0).abs() <= 0.005);
}

/// Steps that take two seconds and more.
const STEPS: usize = 28;

/// Later seeds start from what the encoders made for the first, also where weights stream and the stages left out bring none.
#[test]
fn seeds_share_what_the_encoders_made_and_every_byte_is_as_without() {
    let Some(gpu) = gpu() else { return };
    let source = picture(128, 128);
    let plan = engine(&gpu, None).edit(&edit("make the circle blue", 1), Some(&source), &mut Silent).unwrap().plan;
    for max_vram in [None, Some(plan.peak_bytes() - plan.weights.bytes / 4)] {
        let (mut one, mut other) = (engine(&gpu, max_vram), engine(&gpu, max_vram));
        let mut encoded = Encoded::default();
        for seed in 1..4 {
            let wanted = edit("make the circle blue", seed);
            let material = Material::new(&wanted, &one.model, Some(&source), &mut Silent).unwrap();
            let shared = one.make_again(&material, &mut encoded, &mut Silent).unwrap();
            let stages: Vec<&str> = shared.seconds.stages.iter().map(|(name, _)| *name).collect();
            assert_eq!(stages.contains(&"text"), seed == 1, "{stages:?}");
            assert!(shared.picture == other.make(&material, &mut Silent).unwrap().picture, "seed {seed}, {max_vram:?}");
        }
    }
}
