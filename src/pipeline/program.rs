//! From a model and a request to a planned program, and to the values of its inputs. Pure: nothing runs here.

use std::sync::Arc;

use anyhow::Result;

use crate::graph::TensorId;
use crate::image::Rgb;
use crate::inputs::{PictureInputs, PromptInputs};
use crate::model::Config;
use crate::model::edit::{self, EditBodies, EditSpec, EditTensors, NoiseSource, Savings};
use crate::ops::HostValues;
use crate::plan::{Budget, Itinerary, Plan, Policy, Precision, Target};
use crate::prompt::{Patches, PromptSettings, PromptTokens};
use crate::sampling;
use crate::tensor::DType;

/// An edit's program.
pub struct Program {
    /// Decisions made.
    pub plan: Arc<Plan>,
    /// Tensors that the host meets.
    pub tensors: EditTensors,
    /// The shape of the edit.
    pub spec: EditSpec,
}

/// What an edit's inputs are filled with, but for what the host brings, and the shape of its program.
pub struct EditInputs {
    /// The shape of the program that takes them.
    pub spec: EditSpec,
    picture: PictureInputs,
    prompts: PromptInputs,
}

/// Everything that shapes a program besides the model.
pub struct Request<'a> {
    /// Working width and height.
    pub size: (usize, usize),
    /// Whether there is a picture to edit.
    pub reference: bool,
    /// Height and width in patches of the picture that the encoder sees.
    pub grid: (usize, usize),
    /// Tokens of prompt and negative prompt.
    pub tokens: &'a [PromptTokens],
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Starting noise.
    pub noise: NoiseSource,
    /// Sample the posterior.
    pub sample_posterior: bool,
    /// Savings in use.
    pub savings: Savings,
}

impl EditInputs {
    /// Works out what a request's inputs are.
    ///
    /// # Errors
    /// Tokens that do not fit the model.
    pub fn new(config: &Config, settings: &PromptSettings, request: &Request) -> Result<EditInputs> {
        let picture = PictureInputs::new(request.grid, config);
        let savings = request.savings;
        let prompts =
            PromptInputs::new(request.tokens, &picture, settings, config, savings.share_prefix, savings.collapse_padding)?;
        let spec = EditSpec {
            latent: (request.size.1 / 8, request.size.0 / 8),
            reference: request.reference,
            patches: picture.window_rows.len(),
            windows: picture.windows.clone(),
            text: prompts.text.clone(),
            prompt: prompts.prompt.clone(),
            steps: request.steps,
            cfg_scale: request.cfg_scale,
            noise: request.noise,
            sample_posterior: request.sample_posterior,
            savings,
        };
        Ok(EditInputs { spec, picture, prompts })
    }
}

impl Program {
    /// Records and plans an edit.
    ///
    /// # Errors
    /// What the planner refuses.
    pub fn new(config: &Config, spec: &EditSpec, precision: Precision, target: Target) -> Result<Program> {
        let (graph, tensors) = edit::record(config, spec);
        let plan = Plan::new(graph, itinerary(&tensors.bodies, spec.steps), precision, target)?;
        Ok(Program { plan: Arc::new(plan), tensors, spec: spec.clone() })
    }

    /// The program with bodies that can run again and again: each keeps what it starts from.
    ///
    /// # Errors
    /// What the planner refuses.
    pub fn repeatable(self) -> Result<Program> {
        let Plan { graph, itinerary, precision, target, .. } = Arc::unwrap_or_clone(self.plan);
        let plan = Plan::new(graph, itinerary.repeatable(), precision, target)?;
        Ok(Program { plan: Arc::new(plan), ..self })
    }

    /// The program with the fastest residency that fits.
    ///
    /// # Errors
    /// As for [`Plan::fit`].
    pub fn fit(self, budget: Budget, fastest: Policy) -> Result<Program> {
        Ok(Program { plan: Arc::new(Arc::unwrap_or_clone(self.plan).fit(budget, fastest)?), ..self })
    }
}

/// An edit's journey: every stage once, the step as often as is asked.
fn itinerary(bodies: &EditBodies, steps: usize) -> Itinerary {
    Itinerary::once(bodies.vae_encode)
        .then_once([bodies.vision, bodies.text, bodies.conditioning])
        .then_times(bodies.step, steps)
        .then_once([bodies.vae_decode])
}

/// What the host brings to a program.
pub struct HostInputs<'a> {
    /// The picture at the working size; none in text-to-image.
    pub working: Option<&'a Rgb>,
    /// The picture as the encoder sees it.
    pub patches: &'a Patches,
    /// Seed of the noise.
    pub seed: u64,
    /// Times above it use the norm-limited rule.
    pub guidance_limit: f64,
}

impl EditInputs {
    /// The values of every input of a program of this shape.
    pub fn values(&self, t: &EditTensors, config: &Config, host: &HostInputs) -> Vec<(TensorId, HostValues)> {
        let rows = self.spec.step_rows();
        let schedule = sampling::schedule(self.spec.steps, rows.tokens());
        let times = schedule[..self.spec.steps].iter().flat_map(|&time| [time, time]).collect();
        let mut inputs = vec![
            (t.vision.pixel_values, HostValues::F32(host.patches.pixel_values.clone())),
            (t.vision.window_rows, HostValues::I32(self.picture.window_rows.clone())),
            (t.vision.rope, HostValues::F32(self.picture.rope.clone())),
            (t.text.index, HostValues::I32(self.prompts.index.clone())),
            (t.text.rope, HostValues::F32(self.prompts.rope.clone())),
            (t.embedding_rows, HostValues::I32(self.prompts.embedding_rows.clone())),
            (t.denoised.times, HostValues::F32(times)),
            (t.denoised.schedule, HostValues::F32(sampling::step_table(&schedule, host.guidance_limit))),
            (t.denoised.rope, HostValues::F32(rows.rope_table(config))),
            (t.denoised.counter, HostValues::I32(vec![0])),
            (t.denoised.fault, HostValues::I32(vec![0])),
        ];
        inputs.extend(t.rgb.zip(host.working).map(|(id, picture)| (id, HostValues::U8(picture.data.clone()))));
        inputs.extend(t.text.key_bias.map(|id| (id, HostValues::F32(self.prompts.key_bias.clone()))));
        inputs.extend(t.denoised.key_bias.map(|id| (id, HostValues::F32(rows.prompt.key_bias()))));
        // The CPU generator's first draw is the noise, its second the posterior's.
        let (n, (h, w)) = (64 * rows.tokens(), self.spec.latent);
        for (draw, id) in [t.denoised.host_noise, t.host_posterior_noise].into_iter().enumerate() {
            inputs.extend(id.map(|id| {
                let noise = sampling::torch_cpu_normal(host.seed, (draw + 1) * n);
                (id, HostValues::F32(sampling::pack_noise(&noise[draw * n..], h, w, DType::BF16)))
            }));
        }
        inputs
    }
}
