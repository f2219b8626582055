//! A device to test on, and the tiny edit that tests run.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use step1x_edit::cli;
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::cuda::{Device, Setup};
use step1x_edit::error::ResourceError;
use step1x_edit::exec::{Cuda, Executor};
use step1x_edit::image::Rgb;
use step1x_edit::model::Preset;
use step1x_edit::model::Version;
use step1x_edit::model::edit::{NoiseSource, Savings};
use step1x_edit::ops::{Arch, H100_GRID_THREADS, HostValues};
use step1x_edit::pipeline::{HostInputs, Program, Request};
use step1x_edit::plan::{Plan, Precision, Target};
use step1x_edit::prompt::{self, Patches};
use step1x_edit::weights::WeightSource;

use crate::common::SyntheticWeights;

/// A device, held by one test at a time, and its libraries.
pub struct Gpu {
    pub device: Arc<Device>,
    pub setup: Setup,
    _alone: MutexGuard<'static, ()>,
}

/// The first device; none, with a line that says so, where there is none.
pub fn gpu() -> Option<Gpu> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match Device::open(0) {
        Ok(device) => Some(Gpu { device, setup: cli::setup(), _alone: alone }),
        Err(error) => {
            assert!(error.downcast_ref::<ResourceError>().is_some(), "{error:#}");
            let test = std::thread::current().name().unwrap_or_default().to_string();
            // Past the harness, which hides what a passing test prints.
            std::io::stderr().write_all(format!("SKIPPED {test}: {error:#}\n").as_bytes()).unwrap();
            None
        }
    }
}

impl Gpu {
    pub fn target(&self) -> Target {
        Target::Cuda(Arch(self.device.capability))
    }

    pub fn executor<'p>(&self, plan: &'p Plan, weights: Arc<dyn WeightSource + Send + Sync>) -> Cuda<'p> {
        Cuda::new(plan, weights, &self.device, &self.setup).unwrap_or_else(|e| panic!("{e:#}"))
    }
}

pub const STEPS: usize = 4;
const SIZE: (usize, usize) = (80, 48);
const SEED: u64 = 11;

/// An edit of the tiny preset.
pub struct TinyEdit {
    pub model: PresetModel,
    pub program: Program,
    picture: Rgb,
    patches: Patches,
}

impl TinyEdit {
    /// In bf16, for a device.
    pub fn new(target: Target, version: Version, savings: Savings) -> TinyEdit {
        TinyEdit::planned(Precision::Bf16, target, version, savings)
    }

    pub fn planned(precision: Precision, target: Target, version: Version, savings: Savings) -> TinyEdit {
        let model = PresetModel::new(Preset::Tiny, version).unwrap();
        let data = (0..SIZE.0 * SIZE.1 * 3).map(|i| (i * i / 7 + i / 3) as u8).collect();
        let picture = Rgb { width: SIZE.0, height: SIZE.1, data };
        let patches = prompt::patches(&picture, &model.settings).unwrap();
        // A lone `!` is hidden from all others.
        let tokens = ["Make it snow!", "blurry"].map(|p| model.tokenizer.encode_prompt(p, patches.image_tokens()).unwrap());
        let request = Request {
            size: SIZE,
            reference: true,
            grid: patches.grid,
            tokens: &tokens,
            steps: STEPS,
            cfg_scale: 6.0,
            noise: NoiseSource::Philox { seed: SEED, grid_threads: H100_GRID_THREADS },
            sample_posterior: false,
            savings,
        };
        let program = Program::new(&model.config, &model.settings, &request, precision, target);
        let program = program.unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(program.plan.overlaps(), []);
        TinyEdit { model, program, picture, patches }
    }

    pub fn plan(&self) -> &Plan {
        &self.program.plan
    }

    pub fn weights(&self) -> SyntheticWeights {
        SyntheticWeights::new(&self.plan().graph, 0)
    }

    pub fn stages(&self) -> Vec<&'static str> {
        self.plan().graph.stages.iter().map(|stage| stage.name).collect()
    }

    pub fn write_inputs(&self, exec: &mut dyn Executor) -> anyhow::Result<()> {
        let host = HostInputs { working: Some(&self.picture), patches: &self.patches, seed: SEED, guidance_limit: 0.93 };
        self.program.inputs(&self.model.config, &host).iter().try_for_each(|(id, values)| exec.write(*id, values.values()))
    }

    /// Runs it; gives what each stage, and each step, leaves.
    pub fn run(&self, exec: &mut dyn Executor) -> anyhow::Result<Vec<(String, HostValues)>> {
        let t = &self.program.tensors;
        self.write_inputs(exec)?;
        exec.begin(&self.stages())?;
        let mut results = Vec::new();
        for stage in &self.plan().graph.stages {
            for run in 0..stage.repeat {
                exec.run(stage.name, &mut |_| Ok(()))?;
                let left = match stage.name {
                    "vae_encode" => vec![("reference latent", t.reference_latent.expect("there is a reference"))],
                    "vision" => vec![("picture tokens", t.vision.merged)],
                    "text" => vec![("embedding", t.embedding)],
                    "conditioning" => vec![("noise", t.denoised.latents)],
                    "step" => vec![
                        ("velocity", t.denoised.velocity),
                        ("latents", t.denoised.latents),
                        ("counter", t.denoised.counter),
                        ("fault", t.denoised.fault),
                    ],
                    "vae_decode" => vec![("pixels", t.pixels), ("pixel faults", t.pixel_faults)],
                    other => panic!("the stage {other} is not known here"),
                };
                for (name, id) in left {
                    results.push((format!("{name} {run}"), exec.read(id)?));
                }
            }
        }
        Ok(results)
    }
}
