//! The whole program against its parts: the other files hold each part against the official code, this one shows that an
//! edit joins them right. Pictures, rows, noise and times are put together here anew, without the program's savings.

use std::ops::Range;

use step1x_edit::commands::synth::PresetModel;
use step1x_edit::exec::{Executor, unwatched};
use step1x_edit::graph::{BodyId, Graph, TensorId};
use step1x_edit::image::Rgb;
use step1x_edit::inputs::PictureInputs;
use step1x_edit::model::Preset;
use step1x_edit::model::edit::{self, Conventions, EditSpec, NoiseSource, Savings};
use step1x_edit::model::text::{self, EMBEDDINGS, TextRows};
use step1x_edit::model::{PromptRows, Version, vae, vision};
use step1x_edit::ops::{H100_GRID_THREADS, HostValues, LATENT_SCALE, LATENT_SHIFT, philox_normal};
use step1x_edit::pipeline::{EditInputs, HostInputs, Program, Request};
use step1x_edit::plan::{Itinerary, Precision, Target};
use step1x_edit::prompt::{self, Patches, PromptTokens};
use step1x_edit::sampling::{Clock, pack_noise, schedule, step_table};
use step1x_edit::tensor::Component;
use step1x_edit::tensor::DType::{self, BF16, F32};
use step1x_edit::weights::read_rows;

use crate::common::{SyntheticWeights, assert_close, executor, planned, planned_for};

/// float32 in another summation order, through all stages.
const BOUND: f32 = 1e-4;
const SEED: u64 = 11;
const STEPS: usize = 3;
const SIZE: (usize, usize) = (80, 48);

/// What an edit leaves at its stages' ends.
#[derive(PartialEq)]
struct Edit {
    reference: Vec<f32>,
    embedding: Vec<f32>,
    latents: Vec<f32>,
    pixels: Vec<u8>,
}

struct Setup {
    model: PresetModel,
    picture: Rgb,
    patches: Patches,
    tokens: Vec<PromptTokens>,
}

fn setup() -> Setup {
    let model = PresetModel::new(Preset::Tiny, Version::V1_1).unwrap();
    let data = (0..SIZE.0 * SIZE.1 * 3).map(|i| (i * i / 7 + i / 3) as u8).collect();
    let picture = Rgb { width: SIZE.0, height: SIZE.1, data };
    let patches = prompt::patches(&picture, &model.settings).unwrap();
    // A lone `!` is hidden from all others.
    let tokens =
        ["Make it snow!", "blurry"].map(|p| model.tokenizer.encode_prompt(p, patches.image_tokens(), &model.settings).unwrap());
    assert!(!tokens[0].masked.is_empty() && tokens[0].ids.len() != tokens[1].ids.len());
    Setup { model, picture, patches, tokens: tokens.to_vec() }
}

/// A request as the program takes it.
fn inputs(s: &Setup, savings: Savings) -> EditInputs {
    let request = Request {
        size: SIZE,
        reference: true,
        grid: s.patches.grid,
        tokens: &s.tokens,
        steps: STEPS,
        noise: NoiseSource::Philox { grid_threads: H100_GRID_THREADS },
        sample_posterior: false,
        savings,
        conventions: Conventions::OFFICIAL,
    };
    EditInputs::new(&s.model.config, &s.model.settings, &request).unwrap()
}

/// The program as `edit` runs it.
fn by_program(s: &Setup, savings: Savings) -> Edit {
    let inputs = inputs(s, savings);
    let program = Program::new(&s.model.config, inputs.spec.clone(), Precision::F32, Target::Cpu).unwrap();
    run(&mut executor(&program.plan, 0), s, &program, &inputs, (SEED, 6.0))
}

fn run(run: &mut dyn Executor, s: &Setup, program: &Program, inputs: &EditInputs, (seed, cfg_scale): (u64, f32)) -> Edit {
    let (working, patches) = (Some(&s.picture), &s.patches);
    let embeddings = &inputs.embeddings(&SyntheticWeights::embeddings(&s.model.config.text, 0)).unwrap();
    let host = HostInputs { working, patches, embeddings, seed, cfg_scale, guidance_limit: 0.93, clock: Clock::Official };
    for (id, values) in inputs.values(program, &host) {
        run.write(id, values.values()).unwrap();
    }
    let t = &program.tensors;
    let mut after = |body: BodyId, id: TensorId| {
        run.run(body, &mut unwatched).unwrap();
        run.read(id).unwrap()
    };
    let float = |buffer| match buffer {
        HostValues::F32(v) => v,
        other => panic!("{other:?} are no floats"),
    };
    let reference = float(after(t.bodies.vae_encode.unwrap(), t.reference_latent.unwrap()));
    after(t.bodies.vision, t.vision.merged);
    let embedding = float(after(t.bodies.text, t.embedding));
    after(t.bodies.conditioning, t.denoised.latents);
    let steps: Vec<_> = (0..STEPS).map(|_| after(t.bodies.step, t.denoised.latents)).collect();
    let latents = float(steps[STEPS - 1].clone());
    let HostValues::U8(pixels) = after(t.bodies.vae_decode, t.pixels) else { panic!("pixels") };
    Edit { reference, embedding, latents, pixels }
}

/// Runs one stage recorded by `record`, which gives inputs with their values and the tensor to read.
fn stage(record: impl FnOnce(&mut Graph) -> (Vec<(TensorId, HostValues)>, TensorId)) -> Vec<f32> {
    let mut graph = Graph::new();
    let (body, (inputs, result)) = graph.body("part", record);
    let plan = planned(graph, Precision::F32);
    let mut run = executor(&plan, 0);
    inputs.iter().for_each(|(id, values)| run.write(*id, values.values()).unwrap());
    run.run(body, &mut unwatched).unwrap();
    run.read_f32(result).unwrap()
}

/// The mean of the posterior, scaled [h, w, 16].
fn reference(s: &Setup) -> Vec<f32> {
    let picture = s.picture.data.iter().map(|&p| p as f32 / 255.0 * 2.0 - 1.0).collect();
    let config = &s.model.config.vae;
    let moments = stage(|g| {
        let x = g.input("picture", BF16, [SIZE.1, SIZE.0, 3]);
        (vec![(x, HostValues::F32(picture))], g.with_weights(Component::Vae, |g| vae::encoder(g, config, x)))
    });
    let means = moments.chunks_exact(2 * config.latent).flat_map(|pixel| &pixel[..config.latent]);
    means.map(|mean| LATENT_SCALE * (mean - LATENT_SHIFT)).collect()
}

/// A prompt on its own: the last hidden state of every token.
fn hidden(s: &Setup, tokens: &PromptTokens) -> Vec<f32> {
    let (config, picture) = (&s.model.config, PictureInputs::new(s.patches.grid, &s.model.config));
    let image = tokens.image_start..tokens.image_start + tokens.image_tokens;
    let rows = TextRows { prefix: 0, tails: vec![tokens.ids.len()], pictures: vec![image.clone()], hidden_keys: true };
    let axes = tokens.positions(s.patches.merged()).unwrap();
    let positions: Vec<[usize; 3]> = (0..tokens.ids.len()).map(|i| [0, 1, 2].map(|axis| axes[axis][i] as usize)).collect();
    let ids: Vec<usize> = (0..tokens.ids.len()).filter(|i| !image.contains(i)).map(|i| tokens.ids[i] as usize).collect();
    let embeddings = read_rows(&SyntheticWeights::embeddings(&config.text, 0), Component::Qwen, EMBEDDINGS, &ids).unwrap();
    let bias = |i| if tokens.masked.contains(&i) { f32::NEG_INFINITY } else { 0.0 };
    let all: Range<usize> = 0..tokens.ids.len();
    stage(|g| {
        g.with_weights(Component::Qwen, |g| {
            let tower = vision::record(g, &config.vision, picture.window_rows.len(), &picture.windows);
            let model = text::record(g, &config.text, &rows, tower.merged);
            let inputs = vec![
                (tower.pixel_values, HostValues::F32(s.patches.pixel_values.clone())),
                (tower.window_rows, HostValues::I32(picture.window_rows.clone())),
                (tower.rope, HostValues::F32(picture.rope.clone())),
                (model.tokens, HostValues::F32(embeddings)),
                (model.places, HostValues::I32(picture.places.clone())),
                (model.rope, HostValues::F32(text::rope_table(&positions, &config.text))),
                (model.key_bias.unwrap(), HostValues::F32(all.map(bias).collect())),
            ];
            (inputs, model.hidden)
        })
    })
}

/// Latents after all steps, from padded embeddings and a reference latent [h, w, 16].
fn latents(s: &Setup, embedding: Vec<f32>, valid: &[usize], reference: &[f32]) -> Vec<f32> {
    let (h, w) = (SIZE.1 / 8, SIZE.0 / 8);
    let tokens = h / 2 * w / 2;
    let spec = EditSpec {
        latent: (h, w),
        reference: true,
        patches: 0,
        windows: vec![],
        text: TextRows { prefix: 0, tails: vec![], pictures: vec![], hidden_keys: false },
        prompt: PromptRows::new(valid, s.model.settings.max_text, false),
        steps: STEPS,
        noise: NoiseSource::Host,
        sample_posterior: false,
        savings: Savings::NONE,
        conventions: Conventions::OFFICIAL,
    };
    let mut graph = Graph::new();
    let text = graph.input("embedding", BF16, [spec.prompt.total(), s.model.config.dit.context]);
    let image = graph.input("reference", BF16, [tokens, 64]);
    let d = edit::denoise(&mut graph, &s.model.config, &spec, None, text, Some(image));
    let itinerary = Itinerary::once([d.conditioning]).then_times(d.step, STEPS);
    let mut run = executor(&planned_for(graph, itinerary, Precision::F32), 0);

    let channels_first: Vec<f32> = (0..16 * h * w).map(|i| reference[i % (h * w) * 16 + i / (h * w)]).collect();
    let noise: Vec<f32> = (0..64 * tokens).map(|e| philox_normal(SEED, 0, 64 * tokens, H100_GRID_THREADS, e)).collect();
    let times = schedule(STEPS, tokens);
    for (id, values) in [
        (text, HostValues::F32(embedding)),
        (image, HostValues::F32(pack_noise(&channels_first, h, w, F32))),
        (d.host_noise.unwrap(), HostValues::F32(pack_noise(&noise, h, w, DType::BF16))),
        (d.times, HostValues::F32(times[..STEPS].iter().flat_map(|&t| [t, t]).collect())),
        (d.schedule, HostValues::F32(step_table(&times, 0.93, 6.0))),
        (d.rope, HostValues::F32(spec.step_rows().rope_table(&s.model.config))),
        (d.counter, HostValues::I32(vec![0])),
        (d.fault, HostValues::I32(vec![0])),
    ] {
        run.write(id, values.values()).unwrap();
    }
    run.run(d.conditioning, &mut unwatched).unwrap();
    (0..STEPS).for_each(|_| run.run(d.step, &mut unwatched).unwrap());
    run.read_f32(d.latents).unwrap()
}

/// 8-bit pixels of packed latents.
fn pixels(s: &Setup, packed: &[f32]) -> Vec<u8> {
    let (h, w) = (SIZE.1 / 8, SIZE.0 / 8);
    let place = |i: usize| {
        let (pixel, c) = (i / 16, i % 16);
        let (row, col) = (pixel / w, pixel % w);
        packed[(row / 2 * (w / 2) + col / 2) * 64 + c * 4 + row % 2 * 2 + col % 2]
    };
    let z = (0..16 * h * w).map(|i| place(i) / LATENT_SCALE + LATENT_SHIFT).collect();
    let picture = stage(|g| {
        let x = g.input("z", F32, [h, w, 16]);
        (vec![(x, HostValues::F32(z))], g.with_weights(Component::Vae, |g| vae::decoder(g, &s.model.config.vae, x)))
    });
    picture.iter().map(|v| ((v.clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0) as u8).collect()
}

#[test]
fn an_edit_joins_its_stages_right() {
    let s = setup();
    let reference = reference(&s);
    let valid: Vec<usize> = s.tokens.iter().map(|t| t.kept(&s.model.settings)).collect();
    let hidden: Vec<Vec<f32>> = s.tokens.iter().map(|t| hidden(&s, t)).collect();
    let width = s.model.config.dit.context;
    let kept: Vec<&[f32]> = hidden.iter().map(|h| &h[s.model.settings.cut * width..]).collect();
    let padded = |rows: usize| {
        let branch = |h: &&[f32]| [h.to_vec(), vec![0.0; rows * width - h.len()]].concat();
        kept.iter().flat_map(branch).collect::<Vec<f32>>()
    };
    let latents = latents(&s, padded(s.model.settings.max_text), &valid, &reference);
    let pixels = pixels(&s, &latents);

    for savings in [Savings::ALL, Savings::NONE] {
        let edit = by_program(&s, savings);
        assert_close("reference latent", &edit.reference, &reference, BOUND);
        let rows = PromptRows::new(&valid, s.model.settings.max_text, savings.collapse_padding);
        for (b, h) in kept.iter().enumerate() {
            let branch = &edit.embedding[rows.branch(b).start * width..rows.branch(b).end * width];
            assert_close("embedding", &branch[..h.len()], h, BOUND);
            assert!(branch.len() > h.len() && branch[h.len()..].iter().all(|v| *v == 0.0), "padding is zero");
        }
        println!("latents: {:.1e}", assert_close("latents", &edit.latents, &latents, BOUND));
        let worst = edit.pixels.iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(
            worst <= Some(1) && edit.pixels.len() == pixels.len(),
            "pixels differ by {worst:?}, at most 1 where a value is truncated"
        );
        assert!(pixels.iter().min() != pixels.iter().max(), "a picture of one value shows nothing");
    }
}

/// Seed, guidance scale and the words of the prompts are values: a program that has run serves the next request of its spec as
/// a new one would.
#[test]
fn one_program_serves_every_request_of_its_spec() {
    // Digits are tokens of their own, so that both prompts are of one length.
    let [first, second] = ["Make 2 of it", "Make 3 of it"].map(|prompt| {
        let s = setup();
        let encode = |p| s.model.tokenizer.encode_prompt(p, s.patches.image_tokens(), &s.model.settings).unwrap();
        Setup { tokens: vec![encode(prompt), encode("blurry")], ..s }
    });
    let [a, b] = [&first, &second].map(|s| inputs(s, Savings::ALL));
    assert!(a.spec == b.spec && first.tokens[0].ids != second.tokens[0].ids);

    let program = Program::new(&first.model.config, a.spec.clone(), Precision::F32, Target::Cpu).unwrap();
    let mut used = executor(&program.plan, 0);
    let before = run(&mut used, &first, &program, &a, (SEED, 6.0));
    let mut differing = vec![before];
    for host in [(1 << 40 | 7, 6.0), (SEED, 1.5)] {
        let again = run(&mut used, &second, &program, &b, host);
        let fresh = run(&mut executor(&program.plan, 0), &second, &program, &b, host);
        assert!(again == fresh, "{host:?}: what ran before shows");
        assert!(differing.iter().all(|other| other.latents != again.latents), "{host:?}: an input has no effect");
        differing.push(again);
    }
}
