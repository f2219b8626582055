//! Large pictures pass the decoder's widest block in strips: the picture is, to the bit, the one that is decoded whole.

use std::sync::Arc;

use step1x_edit::exec::{Executor, Reference, unwatched};
use step1x_edit::graph::Graph;
use step1x_edit::model::VaeConfig;
use step1x_edit::model::vae::{self, Strips};
use step1x_edit::ops::{Arch, HostValues, Values};
use step1x_edit::plan::{Itinerary, Plan, Precision, Target};
use step1x_edit::tensor::Component;

use crate::common::SyntheticWeights;
use crate::support::{Gpu, gpu};

const WHOLE: Strips = Strips { whole: usize::MAX, pixels: 1 };

/// What the decoder makes of made-up latents, and in how many strips the finest level's channels halve. Without a device the
/// reference runs the plan for sm_90.
fn decoded(gpu: Option<&Gpu>, channels: [usize; 3], (height, width): (usize, usize), strips: Strips) -> (Vec<f32>, usize) {
    let config = VaeConfig { channels: channels.into(), blocks: 1, latent: 16 };
    let mut graph = Graph::new();
    let (body, [latents, picture]) = graph.body("decode", |g| {
        let latents = g.input("latents", vae::LATENTS, [height, width, config.latent]);
        let picture = g.with_weights(Component::Vae, |g| vae::decoder_in_strips(g, &config, latents, strips));
        g.output(picture);
        [latents, picture]
    });
    let weights = Arc::new(SyntheticWeights::new(&graph, 5));
    let (itinerary, target) = (Itinerary::of_all(&graph), gpu.map_or(Target::Cuda(Arch(90)), |gpu| gpu.target()));
    let plan = Arc::new(Plan::new(graph, itinerary, Precision::Bf16, target).unwrap());
    assert_eq!(plan.overlaps(), []);
    let exec: &mut dyn Executor = match gpu {
        Some(gpu) => &mut gpu.executor(&plan, weights),
        None => &mut Reference::new(plan.clone(), weights).unwrap(),
    };
    let values: Vec<f32> = (0..height * width * config.latent).map(|i| (i * 7919 % 257) as f32 / 64.0 - 2.0).collect();
    exec.write(latents, Values::F32(&values)).unwrap();
    exec.begin(&plan.itinerary).unwrap();
    exec.run(body, &mut unwatched).unwrap();
    exec.finish(&mut unwatched).unwrap();
    let HostValues::F32(values) = exec.read(picture).unwrap() else { panic!("a picture of floats") };
    let strips = plan.graph.nodes.iter().filter(|node| node.name.starts_with("decoder.up.0.block.0.conv1."));
    (values, strips.count())
}

fn strips_are_the_whole(gpu: Option<&Gpu>) {
    // Channels for the wide kernels and for the portable one; odd heights of strips, of the last also one row. The CPU's library
    // sums products of up to 64 rows and columns in an order of their own, which no large picture has: nor has a row of these.
    for (channels, (height, width)) in [([128, 256, 512], (5, 7)), ([32, 64, 128], (4, 37))] {
        let (whole, strips) = decoded(gpu, channels, (height, width), WHOLE);
        assert!(strips == 0 && whole.iter().all(|v| v.is_finite()) && whole.iter().any(|v| *v != whole[0]), "a picture");
        for rows in [2, 3, 7, 9, 16] {
            let (values, strips) = decoded(gpu, channels, (height, width), Strips { whole: 0, pixels: rows * 4 * width });
            assert_eq!(strips, (4 * height).div_ceil(rows), "strips of {rows} rows");
            let differing = values.iter().zip(&whole).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(differing, 0, "of {} values, in strips of {rows} rows", whole.len());
        }
    }
}

#[test]
fn a_picture_decoded_in_strips_has_the_same_bits() {
    if let Some(gpu) = gpu() {
        strips_are_the_whole(Some(&gpu));
    }
}

#[test]
fn the_reference_decodes_the_same_bits_in_strips() {
    strips_are_the_whole(None);
}
