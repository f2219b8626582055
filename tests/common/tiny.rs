//! An edit of the tiny preset that tests run on an executor of their own.

use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::exec::{Executor, Watch, unwatched};
use step1x_edit::image::Rgb;
use step1x_edit::model::Preset;
use step1x_edit::model::Version;
use step1x_edit::model::edit::{NoiseSource, Savings};
use step1x_edit::ops::{H100_GRID_THREADS, HostValues, WeightOrder};
use step1x_edit::pipeline::{EditInputs, HostInputs, LoraChoice, Model, Program, Request, Rules};
use step1x_edit::plan::{Plan, Precision, Target};
use step1x_edit::prompt::{self, Patches};
use step1x_edit::tensor::{Component, DType, Shape};
use step1x_edit::weights::{Lora, ModelFolder, WeightForm, WeightKey, WeightSource};

use super::SyntheticWeights;

pub const STEPS: usize = 4;
const SIZE: (usize, usize) = (80, 48);
const SEED: u64 = 11;

/// A plan with weights resident, and streamed in as little as it takes, and in more and more.
pub fn residencies(plan: &Plan) -> Vec<Arc<Plan>> {
    let (least, most) = (plan.least_bytes(), plan.clone().resident().device_bytes());
    let streamed = [0, 2, 10, 30, 60, 95].map(|percent| {
        let bytes = least + (most - least) / 100 * percent;
        plan.clone().streamed(bytes, 55.0).unwrap_or_else(|least| panic!("{least} bytes are the least, not {bytes}"))
    });
    [vec![plan.clone().resident()], streamed.to_vec()].concat().into_iter().map(Arc::new).collect()
}

/// An edit of the tiny preset.
pub struct TinyEdit {
    pub program: Program,
    inputs: EditInputs,
    picture: Rgb,
    patches: Patches,
    embeddings: Vec<f32>,
    rules: Rules,
}

impl TinyEdit {
    /// The plan with weights resident, and streamed in as little as it takes, and in more and more.
    pub fn residencies(&self) -> Vec<Arc<Plan>> {
        residencies(self.plan())
    }

    /// In bf16, for a device.
    pub fn new(target: Target, version: Version, savings: Savings) -> TinyEdit {
        TinyEdit::planned(Precision::Bf16, target, version, savings)
    }

    pub fn planned(precision: Precision, target: Target, version: Version, savings: Savings) -> TinyEdit {
        TinyEdit::by(Rules::Official, precision, target, version, savings)
    }

    /// By a set of rules.
    pub fn by(rules: Rules, precision: Precision, target: Target, version: Version, savings: Savings) -> TinyEdit {
        let model = PresetModel::new(Preset::Tiny, version).unwrap();
        let data = (0..SIZE.0 * SIZE.1 * 3).map(|i| (i * i / 7 + i / 3) as u8).collect();
        let picture = Rgb { width: SIZE.0, height: SIZE.1, data };
        let settings = rules.prompt(&model.settings);
        let patches = prompt::patches(&picture, &settings).unwrap();
        // A lone `!` is hidden from all others.
        let tokens =
            ["Make it snow!", "blurry"].map(|p| model.tokenizer.encode_prompt(p, patches.image_tokens(), &settings).unwrap());
        let request = Request {
            size: SIZE,
            reference: true,
            grid: patches.grid,
            tokens: &tokens,
            steps: STEPS,
            noise: NoiseSource::Philox { grid_threads: H100_GRID_THREADS },
            sample_posterior: rules.samples_posterior(),
            savings,
            conventions: rules.conventions(),
        };
        let inputs = EditInputs::new(&model.config, &settings, &request).unwrap_or_else(|e| panic!("{e:#}"));
        let program = Program::new(&model.config, inputs.spec.clone(), precision, target).unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(program.plan.overlaps(), []);
        let embeddings = inputs.embeddings(&SyntheticWeights::embeddings(&model.config.text, 0)).unwrap();
        TinyEdit { program, inputs, picture, patches, embeddings, rules }
    }

    pub fn plan(&self) -> &Arc<Plan> {
        &self.program.plan
    }

    /// Times above it are limited: with the rules of diffusers, all.
    fn limit(&self) -> f64 {
        match self.rules {
            Rules::Official => 0.93,
            Rules::Diffusers => 0.0,
        }
    }

    pub fn weights(&self) -> SyntheticWeights {
        SyntheticWeights::new(&self.plan().graph, 0)
    }

    pub fn write_inputs(&self, exec: &mut dyn Executor) -> anyhow::Result<()> {
        let host = HostInputs {
            working: Some(&self.picture),
            patches: &self.patches,
            embeddings: &self.embeddings,
            seed: SEED,
            cfg_scale: 6.0,
            guidance_limit: self.limit(),
            clock: self.rules.clock(),
        };
        let values = self.inputs.values(&self.program, &host);
        values.iter().try_for_each(|(id, values)| exec.write(*id, values.values()))
    }

    /// Runs it along the executor's itinerary; gives what each stage, and each step, leaves.
    pub fn run(&self, exec: &mut dyn Executor) -> anyhow::Result<Vec<(String, HostValues)>> {
        self.run_watched(exec, &mut unwatched)
    }

    /// The same, which `watch` can stop.
    pub fn run_watched(&self, exec: &mut dyn Executor, watch: &mut Watch) -> anyhow::Result<Vec<(String, HostValues)>> {
        let (t, itinerary) = (&self.program.tensors, exec.plan().itinerary.clone());
        self.write_inputs(exec)?;
        exec.begin(&itinerary)?;
        let mut results = Vec::new();
        for (turn, body) in itinerary.visits().into_iter().enumerate() {
            exec.run(body, watch)?;
            let left = match body {
                _ if Some(body) == t.bodies.vae_encode => vec![("reference latent", t.reference_latent.expect("a reference"))],
                _ if body == t.bodies.vision => vec![("picture tokens", t.vision.merged)],
                _ if body == t.bodies.text => vec![("embedding", t.embedding)],
                _ if body == t.bodies.conditioning => vec![("noise", t.denoised.latents)],
                _ if body == t.bodies.step => vec![
                    ("velocity", t.denoised.velocity),
                    ("latents", t.denoised.latents),
                    ("counter", t.denoised.counter),
                    ("fault", t.denoised.fault),
                ],
                _ => vec![("pixels", t.pixels), ("pixel faults", t.pixel_faults)],
            };
            for (name, id) in left {
                results.push((format!("{name} {turn}"), exec.read(id)?));
            }
        }
        Ok(results)
    }
}

/// A LoRA of rank 2 of a module of the demo model's transformer, in a folder.
pub fn lora(dir: &Path, module: &str, scale: f32) -> Arc<Lora> {
    lora_of_rank(dir, module, 2, scale)
}

/// The same of any rank.
pub fn lora_of_rank(dir: &Path, module: &str, rank: usize, scale: f32) -> Arc<Lora> {
    let folder = &Model::demo().unwrap().folder;
    let Shape(extents) = folder.spec(Component::Dit, &format!("{module}.weight")).unwrap().shape;
    let factor = |n: usize| (0..n).flat_map(|i| ((i * 7919 % 101) as f32 / 500.0 - 0.1).to_le_bytes()).collect::<Vec<u8>>();
    let (down, up) = (factor(rank * extents[1]), factor(rank * extents[0]));
    let path = dir.join(format!("{module}-{rank}.safetensors"));
    let views = [
        (format!("{module}.lora_down.weight"), TensorView::new(Dtype::F32, vec![rank, extents[1]], &down).unwrap()),
        (format!("{module}.lora_up.weight"), TensorView::new(Dtype::F32, vec![extents[0], rank], &up).unwrap()),
    ];
    safetensors::serialize_to_file(views, None, &path).unwrap();
    Lora::open(&LoraChoice { path, scale }).unwrap()
}

/// A weight of the transformer as a device has it in bf16, and its bytes as the host merges it with LoRA files.
pub fn merged_by_host(folder: &ModelFolder, module: &str) -> (WeightKey, Vec<u8>) {
    let form = WeightForm { dtype: DType::BF16, order: WeightOrder::AsStored };
    let key = WeightKey { component: Component::Dit, name: format!("{module}.weight").into(), form };
    let mut bytes = vec![0; 2 * folder.spec(Component::Dit, &key.name).unwrap().shape.elements()];
    key.fill(folder, 0, &mut bytes).unwrap();
    (key, bytes)
}
