//! One edit as a program of bodies, which it calls its stages:
//!
//! ```text
//! vae_encode -> vision -> text -> conditioning -> step × K -> vae_decode
//! ```
//!
//! Text-to-image has no `vae_encode`. What a stage leaves for a later one is an ordinary buffer; the planner sees all
//! stages in one timeline.

use std::ops::Range;

use super::config::Config;
use super::connector::PromptRows;
use super::dit::{self, Conditioned, StepInputs, StepRows};
use super::text::{self, Text, TextRows};
use super::vae;
use super::vision::{self, Vision};
use crate::graph::{BodyId, Graph, TensorId};
use crate::ops::{
    Cast, CountFaults, Gather, GuidanceEuler, LATENT_SCALE, LATENT_SHIFT, Levels, Noise, Pack, PixelsIn, PixelsOut, Posterior,
    Rounding, StepSlice, Unpack,
};
use crate::tensor::Component;
use crate::tensor::DType::{BF16, F32, I32, U8};

/// Savings that do not change the result; each can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Savings {
    /// All padding rows of a prompt become one that counts n times as a key.
    pub collapse_padding: bool,
    /// The last block computes only what the final layer reads.
    pub trim_last_block: bool,
    /// Template and picture go through the text model once for all prompts.
    pub share_prefix: bool,
    /// What depends on time and prompts alone is computed for all steps before the first.
    pub condition_once: bool,
}

impl Savings {
    /// Every saving on.
    pub const ALL: Savings = Savings { collapse_padding: true, trim_last_block: true, share_prefix: true, condition_once: true };
    /// Every saving off: the official code's order of work.
    pub const NONE: Savings =
        Savings { collapse_padding: false, trim_last_block: false, share_prefix: false, condition_once: false };
}

/// Where starting noise comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoiseSource {
    /// Made by the program from a seed, as a CUDA device with a grid of so many threads would.
    Philox {
        /// Threads of the device's largest grid.
        grid_threads: usize,
    },
    /// Given by the host.
    Host,
}

/// What a rule set records in its own way; which set has which is the pipeline's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conventions {
    /// Where guidance and the Euler update round.
    pub update: Rounding,
    /// How the picture becomes 8-bit.
    pub levels: Levels,
    /// The noise of the reference's posterior is drawn before the starting noise, else after it.
    pub posterior_first: bool,
    /// The posterior's variance is bounded.
    pub bounded_posterior: bool,
}

impl Conventions {
    /// Those of the official script.
    pub const OFFICIAL: Conventions =
        Conventions { update: Rounding::Autocast, levels: Levels::Truncated, posterior_first: false, bounded_posterior: false };
}

/// What distinguishes one edit's program from another's. Seed, guidance scale and the words of the prompts are inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EditSpec {
    /// Latent height and width; both even.
    pub latent: (usize, usize),
    /// Whether a reference picture is edited; else text-to-image.
    pub reference: bool,
    /// Patch rows of the picture as the encoder sees it.
    pub patches: usize,
    /// Windows of the vision tower, as ranges of patch rows in window order.
    pub windows: Vec<Range<usize>>,
    /// Rows of the text model.
    pub text: TextRows,
    /// Rows of the connector; as many branches as the steps have.
    pub prompt: PromptRows,
    /// Denoising steps.
    pub steps: usize,
    /// Starting noise.
    pub noise: NoiseSource,
    /// Sample the reference's latent from its posterior, else take the mean.
    pub sample_posterior: bool,
    /// Savings in use.
    pub savings: Savings,
    /// What the rules of the edit record in their own way.
    pub conventions: Conventions,
}

impl EditSpec {
    /// Which draws of the generator the starting noise and the posterior's noise are.
    pub fn draws(&self) -> Draws {
        let first = self.conventions.posterior_first && self.sample_posterior && self.reference;
        if first { Draws { noise: 1, posterior: 0 } } else { Draws { noise: 0, posterior: 1 } }
    }

    /// Rows of the transformer.
    pub fn step_rows(&self) -> StepRows {
        StepRows { prompt: self.prompt.clone(), grid: (self.latent.0 / 2, self.latent.1 / 2), reference: self.reference }
    }
}

/// Numbers of the generator's draws, each of as many values as the latents have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    /// The starting noise.
    pub noise: u64,
    /// The noise of the reference's posterior.
    pub posterior: u64,
}

/// The program's tensors that host and tests meet.
#[derive(Clone, Copy, Debug)]
pub struct EditTensors {
    /// Input: pixels of the reference [H, W, 3]; none in text-to-image.
    pub rgb: Option<TensorId>,
    /// Input: low and high word of the noise's seed [2]; none if the host gives the noise.
    pub seed: Option<TensorId>,
    /// The reference's latent [H/8, W/8, 16].
    pub reference_latent: Option<TensorId>,
    /// The reference's tokens as the transformer takes them [n, 64].
    pub reference_tokens: Option<TensorId>,
    /// Output: values of the reference's latent that were not finite [1].
    pub reference_faults: Option<TensorId>,
    /// Input: packed noise of the posterior [n, 64], if the host gives it.
    pub host_posterior_noise: Option<TensorId>,
    /// The bodies, which run in this order.
    pub bodies: EditBodies,
    /// Inputs and result of the vision tower.
    pub vision: Vision,
    /// Inputs and result of the text model.
    pub text: Text,
    /// Input: the rows of the text model that make up the embedding, −1 for zeros [T].
    pub embedding_rows: TensorId,
    /// The text encoder's result [T, context].
    pub embedding: TensorId,
    /// Output: values of the embedding that were not finite [1].
    pub embedding_faults: TensorId,
    /// Inputs and state of the denoising stages.
    pub denoised: Denoised,
    /// Output: the picture [H, W, 3].
    pub pixels: TensorId,
    /// Output: values of the picture that were not finite [1].
    pub pixel_faults: TensorId,
}

/// The bodies of an edit.
#[derive(Clone, Copy, Debug)]
pub struct EditBodies {
    /// The reference to tokens; none in text-to-image.
    pub vae_encode: Option<BodyId>,
    /// The picture to tokens of the text model.
    pub vision: BodyId,
    /// Prompts and picture to the embedding.
    pub text: BodyId,
    /// What all steps share, and the starting noise.
    pub conditioning: BodyId,
    /// One denoising step.
    pub step: BodyId,
    /// Latents to pixels.
    pub vae_decode: BodyId,
}

/// Records the program.
pub fn record(config: &Config, spec: &EditSpec) -> (Graph, EditTensors) {
    let mut graph = Graph::new();
    let g = &mut graph;
    let (h, w) = spec.latent;
    let seed = (spec.noise != NoiseSource::Host).then(|| g.input("seed", I32, [2]));
    let rgb = spec.reference.then(|| g.input("rgb", U8, [8 * h, 8 * w, 3]));
    let encoded = rgb.map(|rgb| g.body("vae_encode", |g| g.with_weights(Component::Vae, |g| encode(g, config, spec, rgb, seed))));
    let (vae_encode, reference) = encoded.unzip();
    let (vision_body, vision) =
        g.body("vision", |g| g.with_weights(Component::Qwen, |g| vision::record(g, &config.vision, spec.patches, &spec.windows)));
    let (text_body, (text, embedding_rows, embedding, embedding_faults)) = g.body("text", |g| {
        let text = g.with_weights(Component::Qwen, |g| text::record(g, &config.text, &spec.text, vision.merged));
        let rows = g.input("embedding_rows", I32, [spec.prompt.total()]);
        let embedding = g.op("llm_embedding", Gather, &[text.hidden, rows]);
        (text, rows, embedding, count_faults(g, "embedding_faults", embedding))
    });
    let denoised = denoise(g, config, spec, seed, embedding, reference.as_ref().map(|r| r.tokens));
    let (vae_decode, (pixels, pixel_faults)) =
        g.body("vae_decode", |g| g.with_weights(Component::Vae, |g| decode(g, config, spec, denoised.latents)));
    let tensors = EditTensors {
        rgb,
        seed,
        reference_latent: reference.as_ref().map(|r| r.latent),
        reference_tokens: reference.as_ref().map(|r| r.tokens),
        reference_faults: reference.as_ref().map(|r| r.faults),
        host_posterior_noise: reference.as_ref().and_then(|r| r.host_noise),
        bodies: EditBodies {
            vae_encode,
            vision: vision_body,
            text: text_body,
            conditioning: denoised.conditioning,
            step: denoised.step,
            vae_decode,
        },
        vision,
        text,
        embedding_rows,
        embedding,
        embedding_faults,
        denoised,
        pixels,
        pixel_faults,
    };
    (graph, tensors)
}

/// The encoded reference.
struct Encoded {
    latent: TensorId,
    tokens: TensorId,
    faults: TensorId,
    host_noise: Option<TensorId>,
}

fn encode(g: &mut Graph, config: &Config, spec: &EditSpec, rgb: TensorId, seed: Option<TensorId>) -> Encoded {
    let picture = g.op("pixels_in", PixelsIn(BF16), &[rgb]);
    let moments = vae::encoder(g, &config.vae, picture);
    let drawn = spec.sample_posterior.then(|| draw(g, spec, seed, "posterior_noise", spec.draws().posterior));
    let unpack = Unpack { size: spec.latent, divisor: 1.0, shift: 0.0 };
    let noise = drawn.map(|(noise, _)| g.op("posterior_noise.unpack", unpack, &[noise]));
    let operands: Vec<TensorId> = [moments].into_iter().chain(noise).collect();
    let latent = g.op("ref_latent", Posterior { bounded: spec.conventions.bounded_posterior }, &operands);
    let packed = g.op("ref_latent.pack", Pack, &[latent]);
    let tokens = g.op("ref_latent.cast", Cast(BF16), &[packed]);
    let faults = count_faults(g, "reference_faults", latent);
    Encoded { latent, tokens, faults, host_noise: drawn.and_then(|(_, host)| host) }
}

/// What a stage's result holds that is not finite, counted for the host.
fn count_faults(g: &mut Graph, name: &str, result: TensorId) -> TensorId {
    let faults = g.op(name, CountFaults, &[result]);
    g.output(faults);
    faults
}

fn decode(g: &mut Graph, config: &Config, spec: &EditSpec, latents: TensorId) -> (TensorId, TensorId) {
    let (h, w) = spec.latent;
    let unpack = Unpack { size: (h, w), divisor: LATENT_SCALE, shift: LATENT_SHIFT };
    let z = g.op_as(vae::LATENTS, "latents", unpack, &[latents]);
    let picture = vae::decoder(g, &config.vae, z);
    let pixels = g.buffer("pixels", U8, [8 * h, 8 * w, 3]);
    let faults = g.buffer("pixel_faults", I32, [1]);
    g.op_into("pixels_out", PixelsOut(spec.conventions.levels), &[picture], &[pixels, faults]);
    g.output(pixels);
    g.output(faults);
    (pixels, faults)
}

/// The bodies of denoising and their tensors.
#[derive(Clone, Copy, Debug)]
pub struct Denoised {
    /// What all steps share, and the starting noise.
    pub conditioning: BodyId,
    /// One step.
    pub step: BodyId,
    /// Input: time of each step, once a branch [K · B, 1].
    pub times: TensorId,
    /// Input: Δt, rule and guidance scale of each step [K, 3].
    pub schedule: TensorId,
    /// Input: rotary table [rows, 128].
    pub rope: TensorId,
    /// Input: logarithmic weight of each key [rows]; none if every padding row is computed.
    pub key_bias: Option<TensorId>,
    /// Input 0, then state: number of the step [1].
    pub counter: TensorId,
    /// Input 0, then state: 1 + the first step after which latents were not finite [1].
    pub fault: TensorId,
    /// Input: starting noise [n, 64], if the host gives it.
    pub host_noise: Option<TensorId>,
    /// State: latents [n, 64] f32, at first the noise.
    pub latents: TensorId,
    /// A step's velocities of the noisy tokens [B·n, 64], branch 0, then branch 1.
    pub velocity: TensorId,
}

/// Records `conditioning` and `step` for a `seed` [2] if the program draws its noise, an `embedding` [T, context] and
/// reference tokens [n, 64].
pub fn denoise(
    g: &mut Graph,
    config: &Config,
    spec: &EditSpec,
    seed: Option<TensorId>,
    embedding: TensorId,
    reference: Option<TensorId>,
) -> Denoised {
    let rows = spec.step_rows();
    let branches = rows.branches();
    let once = spec.savings.condition_once;
    let times = g.input("times", F32, [branches * spec.steps, 1]);
    let (conditioning, (latents, host_noise, prepared)) = g.body("conditioning", |g| {
        let (latents, host_noise) = draw(g, spec, seed, "noise", spec.draws().noise);
        let prepared = once.then(|| {
            let t = g.reshape(times, [branches * spec.steps]);
            g.with_weights(Component::Dit, |g| dit::condition(g, config, &spec.prompt, embedding, t))
        });
        (latents, host_noise, prepared)
    });
    let schedule = g.input("schedule", F32, [spec.steps, 3]);
    let (counter, fault) = (g.input("counter", I32, [1]), g.input("fault", I32, [1]));
    let (rope, key_bias) = dit::step_tables(g, &rows);
    let (step, velocity) = g.body("step", |g| {
        g.with_weights(Component::Dit, |g| {
            let x = g.buffer("x", BF16, [rows.total(), config.dit.hidden]);
            let text_part = g.rows(x, 0..rows.prompt.total());
            let modulation = match prepared {
                Some(Conditioned { text, modulation }) => {
                    g.op_into("txt", StepSlice { rows: rows.prompt.total() }, &[text, counter], &[text_part]);
                    g.op("modulation.step", StepSlice { rows: branches }, &[modulation, counter])
                }
                None => {
                    let t = g.op("time", StepSlice { rows: branches }, &[times, counter]);
                    let t = g.reshape(t, [branches]);
                    let Conditioned { text, modulation } = dit::condition(g, config, &spec.prompt, embedding, t);
                    g.op_into("txt", Cast(BF16), &[text], &[text_part]);
                    modulation
                }
            };
            let noisy = g.op("latents.cast", Cast(BF16), &[latents]);
            (0..branches).for_each(|branch| dit::image_in(g, &rows, x, branch, noisy, reference));
            let inputs = StepInputs { x, modulation, rope, key_bias };
            let velocity = dit::blocks(g, &config.dit, &rows, inputs, spec.savings.trim_last_block);
            let state = [latents, counter, fault];
            let update = GuidanceEuler(spec.conventions.update);
            g.op_into("update", update, &[velocity, latents, schedule, counter, fault], &state);
            velocity
        })
    });
    Denoised { conditioning, step, times, schedule, rope, key_bias, counter, fault, host_noise, latents, velocity }
}

/// Noise of the generator's draw number `at`, packed [n, 64], and the host's input if it gives the noise.
fn draw(g: &mut Graph, spec: &EditSpec, seed: Option<TensorId>, name: &str, at: u64) -> (TensorId, Option<TensorId>) {
    let elements = 16 * spec.latent.0 * spec.latent.1;
    match spec.noise {
        NoiseSource::Philox { grid_threads } => {
            let offset = at * Noise::next_offset(0, elements, grid_threads);
            let seed = seed.expect("noise is drawn from a seed");
            (g.op(name, Noise { offset, grid_threads, size: spec.latent }, &[seed]), None)
        }
        NoiseSource::Host => {
            let noise = g.input(name, F32, [elements / 64, 64]);
            (noise, Some(noise))
        }
    }
}
