//! Whole denoising runs, latents after every step: both versions, both guidance rules, text-to-image.

use std::sync::Arc;

use step1x_edit::exec::{Executor, unwatched};
use step1x_edit::graph::Graph;
use step1x_edit::model::edit::{self, Conventions, EditSpec, NoiseSource, Savings};
use step1x_edit::model::text::TextRows;
use step1x_edit::model::{Config, PromptRows, Version};
use step1x_edit::ops::Values;
use step1x_edit::plan::{Itinerary, Precision};
use step1x_edit::sampling::{Clock, step_table};
use step1x_edit::tensor::DType::BF16;
use step1x_edit::weights::WeightSource;

use crate::common::{Floats, Golden, ONE_ROW, SyntheticWeights, assert_close, executor_on, planned_for, relative_l2};

/// float32 in another summation order; an independent implementation is within 7e-6.
pub const BOUND: f32 = 5e-5;

/// Upper end of what the official casts cost where t is float32, as it is in this program: 0.5 to 1.8 % over known runs.
const BF16_BOUND: f64 = 0.018;

/// One recorded run: `<version>.steps<K>.<rule>` or `<version>.t2i`.
pub struct Run {
    pub name: String,
    pub version: Version,
    pub times: Vec<f32>,
    /// Times above it use the norm-limited rule.
    pub limit: f64,
    pub reference: bool,
    pub clock: Clock,
    pub conventions: Conventions,
}

/// All runs of the file. TeaCache's are left out: steps are not skipped yet.
fn runs(golden: &Golden) -> Vec<Run> {
    let mut runs = Vec::new();
    for (prefix, version) in golden.versions() {
        for name in golden.names() {
            let Some(run) = name.strip_suffix(".final").filter(|n| n.starts_with(prefix)) else { continue };
            let parts: Vec<&str> = run.split('.').collect();
            let (times, limit, reference) = match parts[1..] {
                ["teacache", _] => {
                    println!("skipped {run}: TeaCache is not there yet");
                    continue;
                }
                ["t2i"] => (format!("{run}.timesteps"), 0.93, false),
                [steps, "limited"] => (steps.replace("steps", "timesteps."), 0.93, true),
                [steps, "plain"] => (steps.replace("steps", "timesteps."), 1.0, true),
                _ => panic!("{run} is a run of an unknown kind"),
            };
            let times = golden.f32(&times).values;
            let (clock, conventions) = (Clock::Official, Conventions::OFFICIAL);
            runs.push(Run { name: run.to_string(), version, times, limit, reference, clock, conventions });
        }
    }
    assert!(!runs.is_empty(), "the file has runs");
    runs
}

/// What all runs start from.
pub struct Given {
    pub noise: Floats,
    pub reference: Floats,
    pub embedding: Floats,
    pub valid: Vec<usize>,
    pub cfg_scale: f32,
    pub seed: u64,
    /// None: the recipe's, by official names.
    pub weights: Option<Arc<dyn WeightSource + Send + Sync>>,
}

impl Given {
    fn read(golden: &Golden) -> Given {
        Given {
            noise: golden.f32("in.noise"),
            reference: golden.f32("in.reference_latent"),
            embedding: golden.f32("in.llm_embedding"),
            valid: golden.valid_rows(),
            cfg_scale: golden.metadata("cfg").parse().expect("a guidance scale"),
            seed: golden.seed(),
            weights: None,
        }
    }

    fn spec(&self, run: &Run, savings: Savings) -> EditSpec {
        EditSpec {
            latent: (self.noise.shape[2], self.noise.shape[3]),
            reference: run.reference,
            patches: 0,
            windows: vec![],
            text: TextRows { prefix: 0, tails: vec![], pictures: vec![], hidden_keys: false },
            prompt: PromptRows::new(&self.valid, self.embedding.shape[1], savings.collapse_padding),
            steps: run.times.len() - 1,
            noise: NoiseSource::Host,
            sample_posterior: false,
            savings,
            conventions: run.conventions,
        }
    }
}

/// What a step leaves.
pub struct Step {
    velocity: Vec<f32>,
    /// Packed latents.
    pub latents: Vec<f32>,
}

/// Packed latents after each step.
pub fn denoise(given: &Given, config: &Config, run: &Run, savings: Savings, precision: Precision) -> Vec<Vec<f32>> {
    steps(given, config, run, savings, precision, &[]).into_iter().map(|step| step.latents).collect()
}

/// All steps; those that `starts` has latents for begin with them.
fn steps(given: &Given, config: &Config, run: &Run, savings: Savings, precision: Precision, starts: &[Vec<f32>]) -> Vec<Step> {
    let told = run.times.iter().map(|&time| run.clock.told(time, precision.dtype())).collect();
    steps_told(given, config, run, savings, precision, starts, told)
}

/// All steps, of which the model is told these times.
pub fn steps_told(
    given: &Given,
    config: &Config,
    run: &Run,
    savings: Savings,
    precision: Precision,
    starts: &[Vec<f32>],
    told: Vec<f32>,
) -> Vec<Step> {
    let spec = given.spec(run, savings);
    let (rows, tokens) = (spec.step_rows(), spec.latent.0 / 2 * (spec.latent.1 / 2));
    let mut graph = Graph::new();
    let embedding = graph.input("embedding", BF16, [spec.prompt.total(), config.dit.context]);
    let reference = run.reference.then(|| graph.input("reference", BF16, [tokens, config.dit.in_channels]));
    let denoised = edit::denoise(&mut graph, config, &spec, None, embedding, reference);

    let itinerary = Itinerary::once([denoised.conditioning]).then_times(denoised.step, spec.steps);
    let plan = planned_for(graph, itinerary, precision);
    let own = given.weights.clone();
    let mut executor = executor_on(&plan, own.unwrap_or_else(|| Arc::new(SyntheticWeights::new(&plan.graph, given.seed))));
    let mut write = |id, values: &[f32]| executor.write(id, Values::F32(values)).unwrap();
    let kept = |b| given.embedding.rows(b, 0..spec.prompt.branch(b).len());
    write(embedding, &(0..rows.branches()).map(kept).collect::<Vec<_>>().concat());
    if let Some(reference) = reference {
        write(reference, &given.reference.packed());
    }
    write(denoised.host_noise.expect("noise of the host"), &given.noise.packed());
    write(denoised.times, &told[..spec.steps].iter().flat_map(|&t| vec![t; rows.branches()]).collect::<Vec<_>>());
    write(denoised.schedule, &step_table(&run.times, run.limit, given.cfg_scale));
    write(denoised.rope, &rows.rope_table(config));
    if let Some(key_bias) = denoised.key_bias {
        write(key_bias, &rows.prompt.key_bias());
    }
    executor.write(denoised.counter, Values::I32(&[0])).unwrap();
    executor.write(denoised.fault, Values::I32(&[0])).unwrap();

    executor.run(denoised.conditioning, &mut unwatched).unwrap();
    let mut step = |at: usize| {
        if let Some(latents) = starts.get(at) {
            executor.write(denoised.latents, Values::F32(latents)).unwrap();
        }
        executor.run(denoised.step, &mut unwatched).unwrap();
        let [velocity, latents] = [denoised.velocity, denoised.latents].map(|id| executor.read_f32(id).unwrap());
        Step { velocity, latents }
    };
    let steps: Vec<Step> = (0..spec.steps).map(&mut step).collect();
    let state = [denoised.counter, denoised.fault].map(|id| executor.read(id).unwrap());
    assert_eq!(state, [vec![spec.steps as i32], vec![0]].map(step1x_edit::ops::HostValues::I32), "counter and fault");
    steps
}

/// Holds the latents of a run against the file's; the largest difference.
fn compare(golden: &Golden, run: &Run, what: &str, got: &[Vec<f32>]) -> f32 {
    let last = got.last().expect("a step");
    let mut worst = assert_close(what, last, &golden.f32(&format!("{}.final", run.name)).packed(), BOUND);
    let latents = format!("{}.latents", run.name);
    if golden.has(&latents) {
        let expected = golden.f32(&latents);
        assert_eq!(expected.shape[0], got.len(), "{what}: steps");
        for (step, got) in got.iter().enumerate() {
            worst = worst.max(assert_close(&format!("{what}, step {step}"), got, expected.entry(step), BOUND));
        }
    }
    worst
}

#[test]
fn latents_after_every_step() {
    let golden = Golden::open("sampler.safetensors");
    let given = Given::read(&golden);
    for run in runs(&golden) {
        let config = golden.config(run.version);
        let [once, each_step] = [true, false].map(|condition_once| {
            let savings = Savings { condition_once, ..Savings::ALL };
            let got = denoise(&given, &config, &run, savings, Precision::F32);
            let what = format!("{}, conditioned {}", run.name, if condition_once { "once" } else { "each step" });
            println!("{what}: {:.1e}", compare(&golden, &run, &what, &got));
            got.concat()
        });
        assert_close(&format!("{}, conditioned once and each step", run.name), &once, &each_step, 1e-5);
    }
}

/// One branch takes each step from the same latents with the conditional velocity of two, and moves by exactly that.
#[test]
fn one_branch_follows_the_conditional_velocity() {
    let golden = Golden::open("sampler.safetensors");
    let given = Given::read(&golden);
    let alone = Given { valid: vec![given.valid[0]], ..Given::read(&golden) };
    for run in runs(&golden) {
        let config = golden.config(run.version);
        for condition_once in [true, false] {
            let savings = Savings { condition_once, ..Savings::ALL };
            let two = steps(&given, &config, &run, savings, Precision::F32, &[]);
            let starts: Vec<_> = [given.noise.packed()].into_iter().chain(two.iter().map(|step| step.latents.clone())).collect();
            let one = steps(&alone, &config, &run, savings, Precision::F32, &starts);
            let table = step_table(&run.times, run.limit, given.cfg_scale);
            let mut worst = 0.0f32;
            for (at, (one, two)) in one.iter().zip(&two).enumerate() {
                let what = format!("{}, step {at}", run.name);
                worst = worst.max(assert_close(&what, &one.velocity, &two.velocity[..one.velocity.len()], ONE_ROW));
                let moved = starts[at].iter().zip(&one.velocity).map(|(x, v)| x + table[3 * at] * v);
                assert!(moved.eq(one.latents.iter().copied()), "{what}: the velocity is not used as it is");
            }
            println!("{}, one branch: {worst:.1e}", run.name);
        }
    }
}

/// The program's own bf16 run. It keeps times and latents in f32, so it is held to the float32 latents.
#[test]
fn final_latents_in_bf16() {
    let (golden, official) = (Golden::open("sampler.safetensors"), Golden::open("sampler_bf16.safetensors"));
    let given = Given::read(&golden);
    let names = official.names();
    let (runs, left): (Vec<Run>, Vec<Run>) =
        runs(&golden).into_iter().partition(|run| names.contains(&&format!("{}.final", run.name)[..]));
    assert_eq!(runs.len(), names.len(), "every run of the bf16 file is one of the float32 file");
    left.iter().for_each(|run| println!("{} has no official bf16 run", run.name));
    for run in runs {
        let got = denoise(&given, &golden.config(run.version), &run, Savings::ALL, Precision::Bf16);
        let name = format!("{}.final", run.name);
        let expected = golden.f32(&name).packed();
        let error = relative_l2(got.last().expect("a step"), &expected);
        let official = relative_l2(&official.f32(&name).packed(), &expected);
        println!("{} in bf16: {:.3} % (official casts {:.3} %)", run.name, 100.0 * error, 100.0 * official);
        // In limited runs the official casts keep t in float32 too; where they err by more, so may this program.
        let bound = if run.name.ends_with("limited") { BF16_BOUND.max(official) } else { BF16_BOUND };
        assert!(error <= bound, "{}: relative error {error}, bound {bound}", run.name);
    }
}
