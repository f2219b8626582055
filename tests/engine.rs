//! One engine, many edits: what a second edit finds, what makes room, what a stopped edit leaves. On the CPU, with the demo
//! model; `gpu` holds the same for a device.

use anyhow::{Result, bail};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use step1x_edit::image::Rgb;
use step1x_edit::pipeline::{
    DeviceChoice, EditParameters, Encoded, Engine, LoraChoice, Material, Model, Place, PlaceChoice, Progress, Silent,
};
use step1x_edit::tensor::{Component, Shape};
use step1x_edit::weights::{Lora, WeightSource};

fn engine() -> Engine {
    let choice = PlaceChoice { device: DeviceChoice::Cpu, ..PlaceChoice::default() };
    Engine::open(Model::demo().unwrap(), Place::open(&choice).unwrap()).unwrap()
}

fn picture(width: usize, height: usize) -> Rgb {
    Rgb { width, height, data: (0..width * height * 3).map(|i| (i * i / 7 + i / 3) as u8).collect() }
}

fn edit(prompt: &str, seed: u64) -> EditParameters {
    EditParameters { steps: 2, seed, size_level: Some(64), cfg_scale: Some(6.0), ..EditParameters::new(prompt) }
}

#[test]
fn a_second_edit_of_the_same_shape_plans_nothing_and_gives_what_it_would_give_alone() {
    let (source, mut engine) = (picture(64, 64), engine());
    let first = edit("make the circle blue", 1);
    let other = EditParameters { cfg_scale: Some(3.0), ..edit("make the square pink", 2) };
    let made = engine.edit(&first, Some(&source), &mut Silent).unwrap().picture;
    let before = engine.made();
    let second = engine.edit(&other, Some(&source), &mut Silent).unwrap().picture;
    assert_eq!((before.programs, engine.made()), (1, before), "another prompt of as many tokens, another seed and scale");
    assert!(made != second);
    assert!(second == self::engine().edit(&other, Some(&source), &mut Silent).unwrap().picture);
    assert!(made == engine.edit(&first, Some(&source), &mut Silent).unwrap().picture, "nothing is left of the second");
}

#[test]
fn programs_are_kept_by_the_shape_of_the_edit() {
    let mut engine = engine();
    for (round, (width, height)) in [(64, 64), (96, 48), (64, 64), (96, 48)].into_iter().enumerate() {
        engine.edit(&edit("make the circle blue", 1), Some(&picture(width, height)), &mut Silent).unwrap();
        assert_eq!((engine.kept(), engine.made().programs), ((round + 1).min(2), (round + 1).min(2)));
    }
    let unguided = EditParameters { cfg_scale: Some(1.0), ..edit("make the circle blue", 1) };
    engine.edit(&unguided, Some(&picture(64, 64)), &mut Silent).unwrap();
    assert_eq!(engine.made().programs, 3, "one branch is another program");
}

#[test]
fn no_more_programs_are_kept_than_is_asked_for() {
    let mut engine = engine();
    engine.keep_at_most(2);
    for (round, (width, height)) in [(64, 64), (96, 48), (48, 96), (96, 48), (64, 64)].into_iter().enumerate() {
        engine.edit(&edit("make the circle blue", 1), Some(&picture(width, height)), &mut Silent).unwrap();
        assert_eq!((engine.kept(), engine.made().programs), ((round + 1).min(2), [1, 2, 3, 3, 4][round]));
    }
}

/// Later seeds start from what the encoders made for the first. A posterior that the seed draws is encoded anew.
#[test]
fn seeds_share_what_the_encoders_made_and_every_byte_is_as_without() {
    let (source, mut one, mut other) = (picture(64, 64), engine(), engine());
    for (drawn, branches) in [(false, 6.0), (true, 6.0), (false, 1.0)] {
        let mut encoded = Encoded::default();
        for seed in 1..4 {
            let wanted =
                EditParameters { sample_posterior: Some(drawn), cfg_scale: Some(branches), ..edit("make it blue", seed) };
            let material = Material::new(&wanted, &one.model, Some(&source), &mut Silent).unwrap();
            let shared = one.make_again(&material, &mut encoded, &mut Silent).unwrap();
            let alone = other.make(&material, &mut Silent).unwrap();
            assert!(shared.picture == alone.picture, "seed {seed}, drawn {drawn}, guidance {branches}");
            let stages: Vec<&str> = shared.seconds.stages.iter().map(|(name, _)| *name).collect();
            let again = if drawn {
                &["vae_encode", "conditioning", "step", "vae_decode"][..]
            } else {
                &["conditioning", "step", "vae_decode"]
            };
            let all = ["vae_encode", "vision", "text", "conditioning", "step", "vae_decode"];
            assert_eq!(stages, if seed == 1 { &all[..] } else { again });
        }
    }
}

/// A LoRA of two modules of the demo model's first double block.
fn lora(dir: &std::path::Path, name: &str, module: &str, scale: f32) -> std::sync::Arc<Lora> {
    let shape = |model: &Model| model.folder.spec(Component::Dit, &format!("{module}.weight")).unwrap().shape;
    let Shape(extents) = shape(&Model::demo().unwrap());
    let [down, up] = [2 * extents[1], 2 * extents[0]]
        .map(|n| (0..n).flat_map(|i| ((i * 7919 % 101) as f32 / 500.0 - 0.1).to_le_bytes()).collect::<Vec<u8>>());
    let path = dir.join(name);
    let views = [
        (format!("{module}.lora_down.weight"), TensorView::new(Dtype::F32, vec![2, extents[1]], &down).unwrap()),
        (format!("{module}.lora_up.weight"), TensorView::new(Dtype::F32, vec![extents[0], 2], &up).unwrap()),
    ];
    safetensors::serialize_to_file(views, None, &path).unwrap();
    Lora::open(&LoraChoice { path, scale }).unwrap()
}

#[test]
fn lora_files_are_changed_between_edits_and_leave_nothing_behind() {
    let (dir, source, mut engine) = (tempfile::tempdir().unwrap(), picture(64, 64), engine());
    let one = lora(dir.path(), "one.safetensors", "double_blocks.0.img_attn.qkv", 1.0);
    let other = lora(dir.path(), "other.safetensors", "single_blocks.0.linear1", 1.0);
    let wanted = edit("make the circle blue", 1);
    let made = |engine: &mut Engine| engine.edit(&wanted, Some(&source), &mut Silent).unwrap().picture;
    let plain = made(&mut engine);
    assert_eq!(engine.adapt(vec![one.clone()]).unwrap(), 1);
    let with_one = made(&mut engine);
    assert!(with_one != plain);
    assert_eq!(engine.adapt(vec![other]).unwrap(), 2, "one goes, the other comes");
    assert!(![&plain, &with_one].contains(&&made(&mut engine)));
    let mut fresh = self::engine();
    fresh.adapt(vec![one.clone()]).unwrap();
    assert!(made(&mut fresh) == with_one, "as on an engine of its own");
    assert_eq!(engine.adapt(vec![one.clone()]).unwrap(), 2);
    assert!(made(&mut engine) == with_one);
    assert_eq!((engine.adapt(vec![one]).unwrap(), engine.adapt(vec![]).unwrap(), engine.adapt(vec![]).unwrap()), (0, 1, 0));
    assert!(made(&mut engine) == plain);
    assert_eq!(engine.made().programs, 1, "no program is made again");
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

#[test]
fn an_edit_after_one_that_was_stopped_is_as_good_as_any() {
    let (source, mut engine) = (picture(64, 64), engine());
    let wanted = edit("make the circle blue", 1);
    let alone = self::engine().edit(&wanted, Some(&source), &mut Silent).unwrap().picture;
    for nodes in [0, 10, 100, 200] {
        let stopped = engine.edit(&wanted, Some(&source), &mut Stop(nodes)).err().expect("it was stopped");
        assert!(stopped.to_string().contains("enough"), "{stopped:#}");
        assert!(engine.edit(&wanted, Some(&source), &mut Silent).unwrap().picture == alone, "after {nodes} nodes");
    }
    assert_eq!(engine.made().programs, 1);
}

#[test]
fn what_cannot_be_edited_leaves_the_engine_usable() {
    let mut engine = engine();
    let (wanted, tiny) = (edit("make the circle blue", 1), picture(1, 4000));
    assert!(engine.edit(&wanted, Some(&tiny), &mut Silent).is_err());
    assert!(engine.edit(&edit("<|image_pad|>", 1), Some(&picture(64, 64)), &mut Silent).is_err());
    assert_eq!(engine.kept(), 0);
    engine.edit(&wanted, Some(&picture(64, 64)), &mut Silent).unwrap();
}
