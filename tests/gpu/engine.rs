//! One engine, many edits on a device, with the demo model.

use step1x_edit::image::Rgb;
use step1x_edit::pipeline::{DeviceChoice, EditParameters, Engine, Model, Place, PlaceChoice, Silent};

use crate::support::{Gpu, gpu};

fn engine(gpu: &Gpu, max_vram: Option<usize>) -> Engine {
    let choice = PlaceChoice { device: DeviceChoice::Cuda(0), max_vram, setup: gpu.setup.clone(), ..PlaceChoice::default() };
    Engine::open(Model::demo().unwrap(), Place::open(&choice).unwrap()).unwrap()
}

fn picture(width: usize, height: usize) -> Rgb {
    Rgb { width, height, data: (0..width * height * 3).map(|i| (i * i / 7 + i / 3) as u8).collect() }
}

fn edit(prompt: &str, seed: u64) -> EditParameters {
    EditParameters { steps: 4, seed, size_level: Some(128), ..EditParameters::new(prompt) }
}

#[test]
fn a_second_edit_makes_nothing_and_gives_what_it_would_give_alone() {
    let Some(gpu) = gpu() else { return };
    let (source, mut one) = (picture(128, 128), engine(&gpu, None));
    let first = edit("make the circle blue", 1);
    let other = EditParameters { cfg_scale: 3.0, ..edit("make the square pink", 2) };
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
    // What one program needs; with the weights phased, less.
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
