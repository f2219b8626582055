//! The autoencoder in both directions, with the outputs of its named submodules.

use std::collections::HashMap;

use step1x_edit::exec::Executor;
use step1x_edit::graph::{BodyId, Graph, Node, TensorId};
use step1x_edit::model::vae::{self, Strips};
use step1x_edit::model::{Config, VaeConfig};
use step1x_edit::ops::{LATENT_SCALE, LATENT_SHIFT, Posterior, Unpack, Values};
use step1x_edit::plan::Precision;
use step1x_edit::tensor::Component;
use step1x_edit::tensor::DType::{BF16, F32};

use crate::common::{Golden, assert_close, executor, number, planned, tiny_config};

/// float32 in another summation order through some thirty convolutions and group norms.
const BOUND: f32 = 2e-4;

fn config(golden: &Golden) -> Config {
    let json = golden.metadata_json("config_vae");
    let multipliers: Vec<usize> = serde_json::from_value(json["ch_mult"].clone()).expect("ch_mult");
    let channels = multipliers.iter().map(|m| m * number(&json, "ch")).collect();
    for (key, constant) in [("scale_factor", LATENT_SCALE), ("shift_factor", LATENT_SHIFT)] {
        assert_eq!(json[key].as_f64().map(|v| v as f32), Some(constant), "{key}");
    }
    let vae = VaeConfig { channels, blocks: number(&json, "num_res_blocks"), latent: number(&json, "z_channels") };
    Config { vae, ..tiny_config() }
}

/// Runs the one stage of a graph with these inputs; the output of every node by its name.
fn outputs(graph: Graph, seed: u64, inputs: &[(TensorId, Vec<f32>)]) -> HashMap<String, Vec<f32>> {
    let plan = planned(graph, Precision::F32);
    let mut run = executor(&plan, seed);
    inputs.iter().for_each(|(id, values)| run.write(*id, Values::F32(values)).unwrap());
    let mut found = HashMap::new();
    let mut observe = |node: Option<&Node>, run: &dyn Executor| {
        let Some(node) = node else { return Ok(()) };
        found.insert(node.name.clone(), run.read_f32(node.outputs[0])?);
        Ok(())
    };
    run.run(BodyId(0), &mut observe).unwrap();
    found
}

/// Compares the submodules of `side` that the file holds; a module's output is that of its last node.
fn compare_modules(golden: &Golden, side: &str, outputs: &HashMap<String, Vec<f32>>) {
    let names: Vec<&str> = golden.names().into_iter().filter(|n| n.starts_with(side)).collect();
    assert!(!names.is_empty(), "submodules of the {side}");
    for name in names {
        let last = ["residual", "conv"].map(|node| format!("{name}.{node}"));
        let node = last.iter().find(|node| outputs.contains_key(*node)).map_or(name, String::as_str);
        let got = outputs.get(node).unwrap_or_else(|| panic!("no node gives {name}"));
        println!("{name}: {:.1e}", assert_close(name, got, &golden.f32(name).channels_last(), BOUND));
    }
}

#[test]
fn encode() {
    let golden = Golden::open("vae.safetensors");
    let config = config(&golden);
    let (image, noise) = (golden.f32("in.image"), golden.f32("in.posterior_noise"));
    let mut graph = Graph::new();
    let (_, inputs) = graph.body("vae", |g| {
        let picture = g.input("picture", BF16, [image.shape[2], image.shape[3], image.shape[1]]);
        let epsilon = g.input("epsilon", F32, [noise.shape[2], noise.shape[3], noise.shape[1]]);
        let moments = g.with_weights(Component::Vae, |g| vae::encoder(g, &config.vae, picture));
        g.op("encoded", Posterior { bounded: false }, &[moments, epsilon]);
        [picture, epsilon]
    });
    let values = [image.channels_last(), noise.channels_last()];
    let outputs = outputs(graph, golden.seed(), &inputs.into_iter().zip(values).collect::<Vec<_>>());
    compare_modules(&golden, "encoder.", &outputs);

    let latent = config.vae.latent;
    let moments: Vec<(&[f32], &[f32])> =
        outputs["encoder.conv_out"].chunks_exact(2 * latent).map(|pixel| pixel.split_at(latent)).collect();
    let got = [
        ("out.mean", moments.iter().flat_map(|m| m.0).copied().collect()),
        ("out.logvar", moments.iter().flat_map(|m| m.1).copied().collect()),
        ("out.encoded", outputs["encoded"].clone()),
    ];
    for (name, got) in got {
        println!("{name}: {:.1e}", assert_close(name, &got, &golden.f32(name).channels_last(), BOUND));
    }
}

#[test]
fn decode() {
    decode_in(Strips::USUAL);
}

/// As large pictures are decoded.
#[test]
fn decode_in_strips() {
    decode_in(Strips { whole: 0, pixels: 128 });
}

fn decode_in(strips: Strips) {
    let golden = Golden::open("vae.safetensors");
    let config = config(&golden);
    let latent = golden.f32("in.latent");
    let [1, c, h, w] = latent.shape[..] else { panic!("{:?} is not one latent", latent.shape) };
    // Tokens hold 2x2 squares; latents of odd sides, which no edit has, are scaled here.
    let packs = h % 2 == 0 && w % 2 == 0;
    let values =
        if packs { latent.packed() } else { latent.channels_last().iter().map(|z| z / LATENT_SCALE + LATENT_SHIFT).collect() };
    let mut graph = Graph::new();
    let (_, input) = graph.body("vae", |g| {
        let input = if packs { g.input("tokens", F32, [h / 2 * (w / 2), 4 * c]) } else { g.input("latent", F32, [h, w, c]) };
        let unpack = Unpack { size: (h, w), divisor: LATENT_SCALE, shift: LATENT_SHIFT };
        let z = if packs { g.op("z", unpack, &[input]) } else { input };
        g.with_weights(Component::Vae, |g| vae::decoder_in_strips(g, &config.vae, z, strips));
        input
    });
    let outputs = outputs(graph, golden.seed(), &[(input, values)]);
    compare_modules(&golden, "decoder.", &outputs);
    let decoded = golden.f32("out.decoded").channels_last();
    println!("out.decoded: {:.1e}", assert_close("out.decoded", &outputs["decoder.conv_out"], &decoded, BOUND));
}
