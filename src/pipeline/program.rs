//! From a model and a request to a planned program, and to the values of its inputs. Pure: nothing runs here.
//!
//! What shapes a program is its [`EditSpec`]; whatever else a request holds are values, so that one program serves every
//! request of the same spec.

use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::graph::TensorId;
use crate::image::Rgb;
use crate::inputs::{PictureInputs, PromptInputs};
use crate::model::Config;
use crate::model::edit::{self, Conventions, EditBodies, EditSpec, EditTensors, NoiseSource, Savings};
use crate::model::text::EMBEDDINGS;
use crate::ops::{HostValues, Noise};
use crate::plan::{Budget, Itinerary, Plan, Precision, Target};
use crate::prompt::{Patches, PromptSettings, PromptTokens};
use crate::sampling::{self, Clock};
use crate::tensor::{Component, DType};
use crate::weights::{ModelError, WeightSource, read_rows};

/// A planned edit.
pub struct Program {
    /// Decisions made.
    pub plan: Arc<Plan>,
    /// Tensors that the host meets.
    pub tensors: EditTensors,
    /// The shape of the edit.
    pub spec: EditSpec,
    /// Rotary table of the transformer's rows: a million sines, the same for every edit of this shape.
    rope: Vec<f32>,
}

impl Program {
    /// Records and plans an edit.
    ///
    /// # Errors
    /// What the planner refuses.
    pub fn new(config: &Config, spec: EditSpec, precision: Precision, target: Target) -> Result<Program> {
        let (graph, tensors) = edit::record(config, &spec);
        let plan = Plan::new(graph, itinerary(&tensors.bodies, spec.steps), precision, target)?;
        let rope = spec.step_rows().rope_table(config);
        Ok(Program { plan: Arc::new(plan), tensors, spec, rope })
    }

    /// The program with bodies that can run again and again: each keeps what it starts from.
    ///
    /// # Errors
    /// What the planner refuses.
    pub fn repeatable(self) -> Result<Program> {
        let itinerary = self.plan.itinerary.clone().repeatable();
        self.along(itinerary)
    }

    /// The program planned for another journey over the same bodies.
    pub(super) fn along(self, itinerary: Itinerary) -> Result<Program> {
        let Plan { graph, precision, target, .. } = Arc::unwrap_or_clone(self.plan);
        let plan = Plan::new(graph, itinerary, precision, target)?;
        Ok(Program { plan: Arc::new(plan), ..self })
    }

    /// The program with weights resident or streamed, as it fits beside a context of so many bytes; the rest as for [`Plan::fit`].
    ///
    /// # Errors
    /// As for [`Plan::fit`].
    pub fn fit(self, budget: Budget, context_bytes: usize, link: f64, like: Option<usize>) -> Result<Program> {
        let plan = Plan { context_bytes, ..Arc::unwrap_or_clone(self.plan) };
        Ok(Program { plan: Arc::new(plan.fit(budget, link, like)?), ..self })
    }
}

/// An edit's journey: every stage once, the step as often as is asked.
fn itinerary(bodies: &EditBodies, steps: usize) -> Itinerary {
    Itinerary::once(bodies.vae_encode)
        .then_once([bodies.vision, bodies.text, bodies.conditioning])
        .then_times(bodies.step, steps)
        .then_once([bodies.vae_decode])
}

/// What is asked of the model, but for pixels and numbers.
pub struct Request<'a> {
    /// Working width and height.
    pub size: (usize, usize),
    /// Whether there is a picture to edit.
    pub reference: bool,
    /// Height and width in patches of the picture that the encoder sees.
    pub grid: (usize, usize),
    /// Tokens of the prompt and, for guidance by two branches, of the negative prompt.
    pub tokens: &'a [PromptTokens],
    /// Denoising steps.
    pub steps: usize,
    /// Starting noise.
    pub noise: NoiseSource,
    /// Sample the posterior.
    pub sample_posterior: bool,
    /// Savings in use.
    pub savings: Savings,
    /// What the rules record in their own way.
    pub conventions: Conventions,
}

/// A request as a program takes it: the spec, and what picture and prompts put into the inputs.
pub struct EditInputs {
    /// The shape of the edit.
    pub spec: EditSpec,
    picture: PictureInputs,
    prompts: PromptInputs,
}

impl EditInputs {
    /// Lays out picture and prompts.
    ///
    /// # Errors
    /// Tokens that do not fit the model, or another number of prompts than one or two.
    pub fn new(config: &Config, settings: &PromptSettings, request: &Request) -> Result<EditInputs> {
        let (branches, savings) = (request.tokens.len(), request.savings);
        ensure!((1..=2).contains(&branches), "{branches} prompts were given; guidance takes one or two");
        let picture = PictureInputs::new(request.grid, config);
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
            noise: request.noise,
            sample_posterior: request.sample_posterior,
            savings,
            conventions: request.conventions,
        };
        Ok(EditInputs { spec, picture, prompts })
    }
}

/// What the host brings besides the laid out request.
pub struct HostInputs<'a> {
    /// The picture at the working size; none in text-to-image.
    pub working: Option<&'a Rgb>,
    /// The picture as the encoder sees it.
    pub patches: &'a Patches,
    /// As [`EditInputs::embeddings`] gives them.
    pub embeddings: &'a [f32],
    /// Seed of the noise.
    pub seed: u64,
    /// Guidance scale; not read where there is one branch.
    pub cfg_scale: f32,
    /// Times above it use the norm-limited rule.
    pub guidance_limit: f64,
    /// What makes the times.
    pub clock: Clock,
}

impl EditInputs {
    /// The embeddings of the prompts' tokens [tokens, hidden], read from the table: a few hundred rows of its gigabyte.
    ///
    /// # Errors
    /// As for [`read_rows`].
    pub fn embeddings(&self, weights: &dyn WeightSource) -> Result<Vec<f32>, ModelError> {
        let rows: Vec<usize> = self.prompts.tokens.iter().map(|&id| id as usize).collect();
        read_rows(weights, Component::Qwen, EMBEDDINGS, &rows)
    }

    /// The values of every input of a program of this spec.
    pub fn values(&self, program: &Program, host: &HostInputs) -> Vec<(TensorId, HostValues)> {
        let (picture, prompts, t) = (&self.picture, &self.prompts, &program.tensors);
        let mut inputs = vec![
            (t.vision.pixel_values, HostValues::F32(host.patches.pixel_values.clone())),
            (t.vision.window_rows, HostValues::I32(picture.window_rows.clone())),
            (t.vision.rope, HostValues::F32(picture.rope.clone())),
            (t.text.tokens, HostValues::F32(host.embeddings.to_vec())),
            (t.text.places, HostValues::I32(prompts.places.clone())),
            (t.text.rope, HostValues::F32(prompts.rope.clone())),
            (t.embedding_rows, HostValues::I32(prompts.embedding_rows.clone())),
        ];
        inputs.extend(t.rgb.zip(host.working).map(|(id, picture)| (id, HostValues::U8(picture.data.clone()))));
        inputs.extend(t.text.key_bias.map(|id| (id, HostValues::F32(prompts.key_bias.clone()))));
        self.denoising(program, host, &mut inputs);
        self.noise(t, host.seed, &mut inputs);
        inputs
    }

    /// Times, schedule, positions and the state that a run of the steps begins with.
    fn denoising(&self, program: &Program, host: &HostInputs, inputs: &mut Vec<(TensorId, HostValues)>) {
        let (rows, d) = (self.spec.step_rows(), &program.tensors.denoised);
        let schedule = host.clock.times(self.spec.steps, rows.tokens());
        let dtype = program.plan.precision.dtype();
        let told = |time: &f32| vec![host.clock.told(*time, dtype); rows.branches()];
        let times = schedule[..self.spec.steps].iter().flat_map(told).collect();
        let table = sampling::step_table(&schedule, host.guidance_limit, host.cfg_scale);
        inputs.extend([
            (d.times, HostValues::F32(times)),
            (d.schedule, HostValues::F32(table)),
            (d.rope, HostValues::F32(program.rope.clone())),
            (d.counter, HostValues::I32(vec![0])),
            (d.fault, HostValues::I32(vec![0])),
        ]);
        inputs.extend(d.key_bias.map(|id| (id, HostValues::F32(rows.prompt.key_bias()))));
    }

    /// The seed, or what the CPU generator makes of it, draw after draw.
    fn noise(&self, t: &EditTensors, seed: u64, inputs: &mut Vec<(TensorId, HostValues)>) {
        inputs.extend(t.seed.map(|id| (id, HostValues::I32(Noise::words(seed).to_vec()))));
        let (h, w) = self.spec.latent;
        let n = 16 * h * w;
        let draws = self.spec.draws();
        for (draw, id) in [(draws.noise, t.denoised.host_noise), (draws.posterior, t.host_posterior_noise)] {
            inputs.extend(id.map(|id| {
                let draw = draw as usize;
                let noise = sampling::torch_cpu_normal(seed, (draw + 1) * n);
                (id, HostValues::F32(sampling::pack_noise(&noise[draw * n..], h, w, DType::BF16)))
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::synth::PresetModel;
    use crate::model::{Preset, Version};

    fn inputs(model: &PresetModel, prompts: &[&str], savings: Savings) -> Result<EditInputs> {
        let tokens: Result<Vec<_>> = prompts.iter().map(|p| model.tokenizer.encode_prompt(p, 16, &model.settings)).collect();
        let request = Request {
            size: (256, 256),
            reference: true,
            grid: (8, 8),
            tokens: &tokens?,
            steps: 4,
            noise: NoiseSource::Philox { grid_threads: 256 },
            sample_posterior: true,
            savings,
            conventions: Conventions::OFFICIAL,
        };
        EditInputs::new(&model.config, &model.settings, &request)
    }

    #[test]
    fn one_branch_halves_the_step() {
        for (version, savings) in [(Version::V1_0, Savings::ALL), (Version::V1_1, Savings::NONE)] {
            let model = PresetModel::new(Preset::Tiny, version).unwrap();
            let prompts = ["Make it snow", "Make it snow"];
            let [one, two] = [1, 2].map(|branches| {
                let spec = inputs(&model, &prompts[..branches], savings).unwrap().spec;
                Program::new(&model.config, spec, Precision::F32, Target::Cpu).unwrap()
            });
            assert_eq!(one.plan.overlaps(), []);
            let flops = |program: &Program| program.plan.bodies.iter().find(|s| s.name == "step").unwrap().flops as f64;
            let share = flops(&one) / flops(&two);
            assert!((share - 0.5).abs() < 0.02, "{version}: one branch takes {share} of two branches' operations");
            let (printed, tokens) = (one.plan.graph.to_string(), one.spec.step_rows().tokens());
            let update = format!("update: guidance_euler final_layer.linear f32[{tokens}, 64], ");
            assert!(printed.contains(&update), "{printed}");
        }
    }

    /// With a generator on the host, what is drawn first is what the rules draw first.
    #[test]
    fn draws_come_in_the_order_of_the_rules() {
        let model = PresetModel::new(Preset::Tiny, Version::V1_1).unwrap();
        let made = inputs(&model, &["a", ""], Savings::ALL).unwrap();
        let n = 16 * 32 * 32;
        let drawn = sampling::torch_cpu_normal(7, 2 * n);
        let packed = |at: usize| sampling::pack_noise(&drawn[at * n..][..n], 32, 32, DType::BF16);
        for (posterior_first, sample_posterior, noise, posterior) in
            [(false, true, 0, Some(1)), (true, true, 1, Some(0)), (true, false, 0, None), (false, false, 0, None)]
        {
            let conventions = Conventions { posterior_first, ..Conventions::OFFICIAL };
            let spec = EditSpec { conventions, sample_posterior, noise: NoiseSource::Host, ..made.spec.clone() };
            let own = EditInputs { spec: spec.clone(), picture: made.picture.clone(), prompts: made.prompts.clone() };
            let program = Program::new(&model.config, spec, Precision::F32, Target::Cpu).unwrap();
            let mut values = vec![];
            own.noise(&program.tensors, 7, &mut values);
            let of = |id: Option<TensorId>| id.map(|id| values.iter().find(|(own, _)| *own == id).unwrap().1.clone());
            assert_eq!(of(program.tensors.denoised.host_noise), Some(HostValues::F32(packed(noise))));
            assert_eq!(of(program.tensors.host_posterior_noise), posterior.map(|at| HostValues::F32(packed(at))));
        }
    }

    #[test]
    fn programs_are_known_by_what_shapes_them() {
        let model = PresetModel::new(Preset::Tiny, Version::V1_1).unwrap();
        let spec = |prompts: &[&str]| inputs(&model, prompts, Savings::ALL).unwrap().spec;
        let mut known = std::collections::HashSet::from([spec(&["a red cat", ""])]);
        assert!(known.contains(&spec(&["a red dog", ""])), "prompts of equal length share a program");
        assert!(known.insert(spec(&["a red cat"])) && known.insert(spec(&["a red cat on a mat", ""])));
        for prompts in [&[][..], &["a", "b", "c"]] {
            let refused = inputs(&model, prompts, Savings::ALL).err().unwrap().to_string();
            assert!(refused.contains("guidance takes one or two"), "{refused}");
        }
    }
}
