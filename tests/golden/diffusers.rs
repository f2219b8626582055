//! The rules of the pipeline in diffusers: whole denoising runs of the pipeline of v1.1, the scheduler's times, the picture
//! processor's values, and what the pipeline of v1.2 shares with it: draws, posterior, levels of the picture.
//!
//! The files key weights by the names that diffusers has for them, so a file of these names is written and read.

use std::path::Path;
use std::sync::Arc;

use step1x_edit::exec::{Executor, unwatched};
use step1x_edit::graph::Graph;
use step1x_edit::image::Rgb;
use step1x_edit::model::edit::Savings;
use step1x_edit::model::{Config, DitConfig, HEAD_WIDTH, Version};
use step1x_edit::ops::{HostValues, Levels, Pack, PixelsOut, Posterior, Values};
use step1x_edit::pipeline::Rules;
use step1x_edit::plan::Precision;
use step1x_edit::prompt::{PATCH_VALUES, Processor, PromptSettings, patches};
use step1x_edit::sampling::{Clock, torch_cpu_normal};
use step1x_edit::tensor::DType::{self, BF16, F32};
use step1x_edit::tensor::{Component, Spec};
use step1x_edit::weights::{ModelFolder, ModelPath, PlannedFile, PlannedTensor, to_diffusers, write_model};

use crate::common::{Floats, Golden, assert_close, executor, number as json_number, planned, relative_l2, tiny_config};
use crate::sampler::{BOUND, Given, Run, denoise, steps_told};

/// What the rounding of a bf16 run costs beyond the rounded times: the upper end of 0.9 to 1.7 % over known runs.
const BF16_BOUND: f64 = 0.017;

/// The transformer of `config_transformer`, beside the tiny encoder.
fn config(golden: &Golden) -> Config {
    let own = golden.metadata_json("config_transformer");
    let number = |key| json_number(&own, key);
    assert_eq!(number("attention_head_dim"), HEAD_WIDTH);
    let (hidden, connector) = (HEAD_WIDTH * number("num_attention_heads"), number("connector_hidden_size"));
    let dit = DitConfig {
        in_channels: number("in_channels"),
        hidden,
        mlp: 4 * hidden,
        depth: number("num_layers"),
        depth_single: number("num_single_layers"),
        axes: serde_json::from_value(own["axes_dims_rope"].clone()).expect("three axes"),
        vec_in: number("vector_in_dim"),
        context: number("connector_in_channels"),
        connector_hidden: connector,
        connector_mlp: 4 * connector,
        connector_depth: number("connector_depth"),
    };
    Config { version: Version::V1_1, dit, ..tiny_config() }
}

/// The transformer's weights by the recipe, keyed by the names of diffusers, read as a model is read. Its other parts are there
/// because a model has them.
fn weights(config: &Config, seed: u64) -> ModelFolder {
    let own = config.manifest().into_iter().filter(|(component, ..)| *component == Component::Dit);
    let official: Vec<_> = own.map(|(_, name, shape)| PlannedTensor::new(name, Spec { dtype: DType::BF16, shape })).collect();
    let moved = to_diffusers(Component::Dit, &official, config.dit.hidden);
    // By their own names and extents, not excerpts of official tensors.
    let tensors = moved.into_iter().map(|tensor| PlannedTensor { of: None, ..tensor }).collect();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    let file = PlannedFile { stem: "transformer", tensors, shard_bytes: None };
    write_model(&folder, &[file], &[], seed, &|_, _| true).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model");
    let path = ModelPath {
        model: folder.join("transformer.safetensors"),
        vae: Some(demo.join("vae.safetensors")),
        text_encoder: Some(demo.join("Qwen2.5-VL-7B-Instruct")),
        mmproj: None,
    };
    ModelFolder::open_parts(&path).unwrap() // open files outlive their folder
}

fn batched(floats: Floats) -> Floats {
    Floats { shape: [&[1], &floats.shape[..]].concat(), ..floats }
}

/// What the runs of v1.1 start from: embeddings padded with zeros to the file's number of rows.
fn given(golden: &Golden, config: &Config) -> Given {
    let details = &golden.metadata_json("details")["v1p1"];
    let rows = json_number(details, "text_rows");
    let embeddings = ["cond", "uncond"].map(|branch| golden.f32(&format!("{branch}.in.embedding")));
    let valid: Vec<usize> = embeddings.iter().map(|e| e.shape[0]).collect();
    assert_eq!(details["valid"], serde_json::json!(valid));
    let padded = embeddings.map(|mut e| {
        e.values.resize(rows * e.shape[1], 0.0);
        e.values
    });
    Given {
        noise: batched(golden.f32("in.noise")),
        reference: batched(golden.f32("in.reference_latent")),
        embedding: Floats { shape: vec![2, rows, config.dit.context], values: padded.concat() },
        valid,
        cfg_scale: golden.metadata("cfg").parse().expect("a guidance scale"),
        seed: golden.seed(),
        weights: Some(Arc::new(weights(config, golden.seed()))),
    }
}

fn runs(golden: &Golden) -> Vec<Run> {
    let names = golden.names();
    let named = names.iter().filter_map(|name| name.strip_prefix("v1p1.")?.strip_suffix(".every.final"));
    let runs = named.map(|steps| Run {
        name: format!("v1p1.{steps}.every"),
        version: Version::V1_1,
        times: golden.f32(&steps.replace("steps", "sigmas.")).values,
        limit: 0.93 / 1000.0,
        reference: true,
        clock: Clock::Scheduler,
        conventions: Rules::Diffusers.conventions(),
    });
    let runs: Vec<Run> = runs.collect();
    assert!(!runs.is_empty(), "the file has runs of v1.1");
    runs
}

#[test]
fn latents_after_every_step() {
    let golden = Golden::open("v1p2_sampler.safetensors");
    let config = config(&golden);
    let given = given(&golden, &config);
    for run in runs(&golden) {
        let got = denoise(&given, &config, &run, Savings::ALL, Precision::F32);
        let batched = |name: &str| batched(golden.f32(name)).packed();
        let last = assert_close(&run.name, got.last().unwrap(), &batched(&format!("{}.final", run.name)), BOUND);
        let every = golden.f32(&format!("{}.latents", run.name));
        assert_eq!(every.shape[0], got.len(), "{}: steps", run.name);
        for (step, got) in got.iter().enumerate() {
            assert_close(&format!("{}, step {step}", run.name), got, every.entry(step), BOUND);
        }
        println!("{}: {last:.1e}", run.name);
    }
}

/// A bf16 run tells the model rounded times, and they move its result most. Beside float32 that is told the same, the rest is
/// within what is known of the pipeline.
#[test]
fn final_latents_in_bf16() {
    let golden = Golden::open("v1p2_sampler.safetensors");
    let config = config(&golden);
    let given = given(&golden, &config);
    for run in runs(&golden) {
        let is_bf16 = |latents: &[f32]| latents.iter().all(|x| half::bf16::from_f32(*x).to_f32() == *x);
        let ours = denoise(&given, &config, &run, Savings::ALL, Precision::Bf16);
        assert!(ours.iter().all(|latents| is_bf16(latents)), "{}: latents are bf16 after every step", run.name);
        let same_times = told_as_bf16(&given, &config, &run);
        assert!(!is_bf16(&same_times));
        let error = relative_l2(ours.last().unwrap(), &same_times);
        let whole = relative_l2(ours.last().unwrap(), &batched(golden.f32(&format!("{}.final", run.name))).packed());
        println!("{} in bf16: {:.2} % beside rounded times, {:.2} % in all", run.name, 100.0 * error, 100.0 * whole);
        assert!(error <= BF16_BOUND, "{}: relative error {error}, bound {BF16_BOUND}", run.name);
    }
}

/// Final latents in float32 with the times that a bf16 run tells the model.
fn told_as_bf16(given: &Given, config: &Config, run: &Run) -> Vec<f32> {
    let told = run.times.iter().map(|&time| run.clock.told(time, BF16)).collect();
    let steps = steps_told(given, config, run, Savings::ALL, Precision::F32, &[], told);
    steps.into_iter().next_back().expect("a step").latents
}

#[test]
fn the_schedulers_times() {
    let golden = Golden::open("v1p2_sampler.safetensors");
    let names = golden.names();
    let schedules: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".bf16_embedded")).collect();
    assert!(schedules.len() >= 4);
    for schedule in schedules {
        let of = |what: &str| golden.f32(&format!("{schedule}.{what}")).values;
        let parts: Vec<usize> = schedule.split('.').skip(1).map(|n| n.parse().unwrap()).collect();
        let times = Clock::Scheduler.times(parts[0], parts[1]);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&times), bits(&of("sigmas")), "{schedule}");
        let timesteps: Vec<f32> = times[..parts[0]].iter().map(|t| t * 1000.0).collect();
        assert_eq!(bits(&timesteps), bits(&of("timesteps")), "{schedule}");
        for (dtype, what) in [(F32, "f32_embedded"), (BF16, "bf16_embedded")] {
            for (time, expected) in times.iter().zip(of(what)) {
                // Where a thousandth of the value is no float, its thousandfold is a last bit off.
                let embedded = 1000.0 * Clock::Scheduler.told(*time, dtype);
                let off = (embedded.to_bits() as i64 - expected.to_bits() as i64).abs();
                assert!(off <= i64::from(dtype == BF16), "{schedule}, {what}: {embedded} and {expected}");
            }
        }
    }
}

/// What the processor makes of a level, by channel: the patches of a picture of this level alone.
fn normalised(level: u8, processor: Processor) -> [u32; 3] {
    let unit = 28 * 28;
    let settings = PromptSettings { min_pixels: unit, max_pixels: unit, processor, ..PromptSettings::default() };
    let picture = Rgb { width: 28, height: 28, data: vec![level; 3 * unit] };
    let values = patches(&picture, &settings).unwrap().pixel_values;
    [0, 1, 2].map(|channel| values[channel * PATCH_VALUES / 3].to_bits())
}

/// Every value of the recorded patches is that of a level; the other processor has other last bits.
#[test]
fn values_of_the_fast_processor() {
    let golden = Golden::open("v1p2_resize.safetensors");
    let tables =
        [Processor::Torchvision, Processor::Pillow].map(|p| (0..=255).map(|level| normalised(level, p)).collect::<Vec<_>>());
    let names = golden.names();
    let recorded: Vec<&str> = names.into_iter().filter(|name| name.ends_with(".pixel_values")).collect();
    assert!(recorded.len() >= 5);
    let [fast, slow] = tables.map(|table| {
        let known = |channel: usize, value: &u32| table.iter().any(|level| level[channel] == *value);
        let strange = |name: &&str| {
            let bits = golden.bits(name);
            let channels = bits.chunks(PATCH_VALUES / 3).enumerate();
            channels.flat_map(|(i, values)| values.iter().filter(move |v| !known(i % 3, v)).collect::<Vec<_>>()).count()
        };
        recorded.iter().map(strange).sum::<usize>()
    });
    assert!(fast == 0 && slow > 0, "{fast} values are of no level, {slow} are none of the other processor");
}

/// The generator's first draw is the posterior's noise; the latent that it makes; the levels of the decoded picture.
#[test]
fn draws_posterior_and_levels_of_a_pipeline() {
    let golden = Golden::open("v1p2_pipeline.safetensors");
    let channels_last = |name: &str| batched(golden.f32(name)).channels_last();
    let [posterior_noise, noise] = ["posterior_noise", "noise"].map(|name| golden.f32(name).values);
    let drawn = torch_cpu_normal(golden.metadata("gen").parse().unwrap(), 2 * noise.len());
    let (first, second) = drawn.split_at(noise.len());
    assert!(first == posterior_noise && second == noise, "the posterior's noise, then the starting noise");

    let [channels, h, w] = golden.shape("noise")[..] else { panic!("latents") };
    let moments: Vec<f32> = {
        let (mean, logvar) = (channels_last("reference_mean"), channels_last("reference_logvar"));
        mean.chunks(channels).zip(logvar.chunks(channels)).flat_map(|(mean, logvar)| [mean, logvar].concat()).collect()
    };
    let mut graph = Graph::new();
    let (body, (inputs, latent)) = graph.body("posterior", |g| {
        let (m, e) = (g.input("moments", F32, [h, w, 2 * channels]), g.input("noise", F32, [h, w, channels]));
        let latent = g.op("latent", Posterior { bounded: true }, &[m, e]);
        let latent = g.op("packed", Pack, &[latent]);
        g.output(latent);
        ([(m, moments), (e, channels_last("posterior_noise"))], latent)
    });
    let mut run = executor(&planned(graph, Precision::F32), 0);
    inputs.iter().for_each(|(id, values)| run.write(*id, Values::F32(values)).unwrap());
    run.run(body, &mut unwatched).unwrap();
    assert_close("reference", &run.read_f32(latent).unwrap(), &golden.f32("reference_packed").values, BOUND);

    let picture = golden.picture("out.working_rgb");
    let mut graph = Graph::new();
    let (body, (decoded, pixels)) = graph.body("pixels", |g| {
        let decoded = g.input("decoded", F32, [picture.height, picture.width, 3]);
        let (pixels, faults) =
            (g.buffer("pixels", DType::U8, [picture.height, picture.width, 3]), g.buffer("faults", DType::I32, [1]));
        g.op_into("pixels_out", PixelsOut(Levels::Nearest), &[decoded], &[pixels, faults]);
        g.output(pixels);
        (decoded, pixels)
    });
    let mut run = executor(&planned(graph, Precision::F32), 0);
    run.write(decoded, Values::F32(&channels_last("decoded"))).unwrap();
    run.run(body, &mut unwatched).unwrap();
    let HostValues::U8(levels) = run.read(pixels).unwrap() else { panic!("pixels") };
    assert!(levels == picture.data, "every level of the picture");
}
