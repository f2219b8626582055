//! Memory that another program takes between the look at it and the taking.

use anyhow::Result;
use step1x_edit::cuda::OutOfMemory;
use step1x_edit::error::ResourceError;
use step1x_edit::image::Rgb;
use step1x_edit::pipeline::{DeviceChoice, EditParameters, Edited, Engine, Model, Place, PlaceChoice, Progress};
use step1x_edit::plan::{KERNEL_BYTES, Policy};
use step1x_edit::tensor::Component;
use step1x_edit::weights::WeightSource;

use crate::common::tiny::lora;
use crate::support::{OUT_OF_MEMORY, StandIn, stand_in};

/// Remembers notices.
#[derive(Default)]
pub struct Heard(pub Vec<String>);

impl Progress for Heard {
    fn place(&mut self, _: &Place) {}

    fn stage(&mut self, _: &str, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn node(&mut self) -> Result<()> {
        Ok(())
    }

    fn last_look(&mut self) -> Result<()> {
        Ok(())
    }

    fn notice(&mut self, text: &str) {
        self.0.push(text.into());
    }
}

pub fn engine(stand_in: &StandIn) -> Engine {
    let choice = PlaceChoice { device: DeviceChoice::Cuda(0), setup: stand_in.setup.clone(), ..PlaceChoice::default() };
    Engine::open(Model::demo().unwrap(), Place::open(&choice).unwrap()).unwrap()
}

fn edit(engine: &mut Engine, heard: &mut Heard) -> Result<Edited> {
    edit_of(engine, 64, heard)
}

/// Edits a picture of a width.
pub fn edit_of(engine: &mut Engine, width: usize, heard: &mut Heard) -> Result<Edited> {
    let picture = Rgb { width, height: 64, data: vec![100; width * 64 * 3] };
    let wanted =
        EditParameters { steps: 3, size_level: Some(64), cfg_scale: Some(6.0), ..EditParameters::new("make the circle blue") };
    engine.edit(&wanted, Some(&picture), heard)
}

/// Another LoRA file brings the weights that either touches, and no others; nothing else is made again.
#[test]
fn another_lora_brings_only_what_it_touches() {
    let Some(stand_in) = stand_in() else { return };
    let (dir, mut engine, heard) = (tempfile::tempdir().unwrap(), engine(&stand_in), &mut Heard::default());
    let bytes_of = |module: &str| {
        let folder = Model::demo().unwrap().folder;
        2 * folder.spec(Component::Dit, &format!("{module}.weight")).unwrap().shape.elements() as u64
    };
    let (qkv, linear1) = ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1");
    let [one, other] = [qkv, linear1].map(|module| lora(dir.path(), module, 1.0));
    edit(&mut engine, heard).unwrap();
    let mut made = engine.made();
    for (loras, names, bytes, merged) in [
        (vec![one.clone()], 1, bytes_of(qkv), bytes_of(qkv)),
        (vec![one.clone()], 0, 0, 0),
        (vec![other.clone()], 2, bytes_of(qkv) + bytes_of(linear1), bytes_of(linear1)),
        (vec![other, one], 1, bytes_of(qkv), bytes_of(qkv)),
        (vec![], 2, bytes_of(qkv) + bytes_of(linear1), 0),
    ] {
        assert_eq!(engine.adapt(loras).unwrap(), names);
        edit(&mut engine, heard).unwrap();
        let now = engine.made();
        assert_eq!(now.on_device.uploaded_bytes - made.on_device.uploaded_bytes, bytes);
        assert_eq!(now.on_device.merged_bytes - made.on_device.merged_bytes, merged, "on the device");
        made.on_device.uploaded_bytes = now.on_device.uploaded_bytes;
        made.on_device.merged_bytes = now.on_device.merged_bytes;
        assert_eq!(now, made, "no program, kernel, launch or capture");
    }
}

/// Arena, region and tables are taken in this order: whichever is refused, the edit is planned again, each time slower.
#[test]
fn what_does_not_fit_any_more_is_planned_again() {
    let Some(stand_in) = stand_in() else { return };
    let alone = edit(&mut engine(&stand_in), &mut Heard::default()).unwrap();
    assert_eq!(alone.plan.weights.policy, Policy::Resident);
    for (skip, times) in [(0, 1), (1, 1), (2, 1), (0, 2), (0, 3)] {
        let (mut engine, mut heard) = (engine(&stand_in), Heard::default());
        stand_in.fault("cuMemAlloc_v2", OUT_OF_MEMORY, skip, Some(times));
        let edited = edit(&mut engine, &mut heard).unwrap_or_else(|e| panic!("{skip} {times}: {e:#}"));
        let least = alone.plan.least_bytes();
        let taken = edited.plan.device_bytes();
        let streamed = edited.plan.weights.policy == Policy::Streamed { bytes: taken };
        assert!(
            streamed && taken < alone.plan.device_bytes() && taken >= least,
            "refused {times} times after {skip}: {taken}, {least} are the least, {:?}",
            edited.plan.weights.policy
        );
        assert!(edited.picture == alone.picture);
        // The link is measured in memory of its own, and taken as known where there is none.
        let told = (times as usize - 1).max(1);
        assert_eq!(heard.0.len(), told, "{:?}", heard.0);
        assert!(
            heard.0.iter().all(|text| text.contains("more weights stream") && text.contains("are free now")),
            "{:?}",
            heard.0
        );
        // Nothing is told or planned again.
        assert_eq!(edit(&mut engine, &mut heard).unwrap().plan.device_bytes(), taken);
        assert_eq!((engine.made().programs, heard.0.len()), (1, told));
    }
    assert_eq!(stand_in.mistakes(), 0);
}

#[test]
fn if_the_least_does_not_fit_both_numbers_are_said() {
    let Some(stand_in) = stand_in() else { return };
    let least = edit(&mut engine(&stand_in), &mut Heard::default()).unwrap().plan;
    let (mut engine, mut heard) = (engine(&stand_in), Heard::default());
    stand_in.fault("cuMemAlloc_v2", OUT_OF_MEMORY, 0, None);
    let error = edit(&mut engine, &mut heard).err().expect("no memory at all");
    assert!(error.is::<ResourceError>() && OutOfMemory::is_in(&error), "{error:#}");
    assert_eq!(heard.0.len(), 3, "a try with less each time");

    // A device on which by now there is no room for any.
    stand_in.mend();
    stand_in.memory(least.arena_bytes);
    let text = format!("{:#}", edit(&mut engine, &mut heard).err().expect("too little memory"));
    assert!(text.contains("needs at least") && text.contains("are free"), "{text}");
    stand_in.memory(least.device_bytes() + 2 * KERNEL_BYTES);
    edit(&mut engine, &mut heard).expect("the engine is as good as new");
}
