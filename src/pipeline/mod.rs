//! The whole journey of one edit.

mod engine;
mod model;
mod program;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

pub use self::engine::{DeviceChoice, Engine, OLDEST};
pub use self::model::Model;
pub use self::program::{HostInputs, Program, Request};
use crate::cuda::Setup;
use crate::error::usage;
use crate::exec::{Executor, read_f32};
use crate::graph::TensorId;
use crate::image::{self, Filter, Format, Output, Rgb};
use crate::model::Version;
use crate::model::edit::{NoiseSource, Savings};
use crate::ops::{H100_GRID_THREADS, HostValues};
use crate::plan::{Plan, Precision};
use crate::prompt::{self, Patches, PromptTokens};

/// Which generator draws the starting noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rng {
    /// As `torch.randn` on a CUDA device whose largest grid has so many threads.
    Cuda {
        /// Threads of the grid.
        grid_threads: usize,
    },
    /// As `torch.randn` on the CPU.
    Cpu,
}

/// What is asked of the model beside a picture.
#[derive(Clone, Debug)]
pub struct EditParameters {
    /// What to do.
    pub prompt: String,
    /// What guidance leads away from.
    pub negative_prompt: String,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Times above it use the norm-limited rule.
    pub guidance_limit: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of the square whose area the working size has, in pixels; none: the model's.
    pub size_level: Option<usize>,
    /// Width and height of text-to-image.
    pub size: (usize, usize),
    /// Filter that brings the picture to the working size.
    pub filter: Filter,
    /// Generator of the noise.
    pub rng: Rng,
    /// Sample the reference's posterior instead of taking its mean.
    pub sample_posterior: bool,
    /// Savings in use.
    pub savings: Savings,
}

impl EditParameters {
    /// An edit of a picture as `edit` makes it when nothing but the prompt is given.
    pub fn new(prompt: &str) -> EditParameters {
        EditParameters {
            prompt: prompt.to_string(),
            negative_prompt: String::new(),
            steps: 28,
            cfg_scale: 6.0,
            guidance_limit: 0.93,
            seed: 42,
            size_level: None,
            size: (1024, 1024),
            filter: Filter::Lanczos,
            rng: Rng::Cuda { grid_threads: H100_GRID_THREADS },
            sample_posterior: false,
            savings: Savings::ALL,
        }
    }
}

/// One edit from files to file, every choice made.
#[derive(Clone, Debug)]
pub struct EditJob {
    /// When the command line had been read; the report counts from here.
    pub started: Instant,
    /// The model's folder or transformer file; none: the demo model.
    pub model: Option<PathBuf>,
    /// The picture to edit; none: text-to-image.
    pub image: Option<PathBuf>,
    /// What to make of it.
    pub edit: EditParameters,
    /// Where the result goes; the extension says the format.
    pub output: PathBuf,
    /// Replace a file that is there.
    pub force: bool,
    /// Leave the result at the working size.
    pub keep_working_size: bool,
    /// Where to run.
    pub device: DeviceChoice,
    /// Most bytes of the device's memory to take; none: what is free.
    pub max_vram: Option<usize>,
    /// Where the device's libraries and its cache lie.
    pub setup: Setup,
    /// Element type of activations; none: what suits the device.
    pub precision: Option<Precision>,
}

/// What the caller hears while an edit runs; an error stops it.
pub trait Progress {
    /// Where the edit runs, and why if that was not asked for.
    fn device(&mut self, engine: &Engine);
    /// A stage begins (again): its name and which of how many runs.
    fn stage(&mut self, name: &str, run: usize, runs: usize) -> Result<()>;
    /// A node is done.
    fn node(&mut self) -> Result<()>;
    /// Something worth knowing that is no error.
    fn notice(&mut self, text: &str);
    /// What a watched tensor holds after its stage.
    fn result(&mut self, _stage: &'static str, _values: Vec<f32>) {}
}

/// Runs one edit from files to file; gives parameters, sizes, seconds by stage and peak bytes as one JSON object.
///
/// # Errors
/// One of [`crate::error`], a [`ModelError`], or a fault of picture, arithmetic or disk. Nothing is written then.
pub fn run_edit(job: &EditJob, progress: &mut dyn Progress) -> Result<Value> {
    let since_start = || job.started.elapsed().as_secs_f64();
    let output = Output::reserve(&job.output, job.force).map_err(usage)?;
    let format = Format::of(&job.output).map_err(usage)?;
    // A device takes as long to wake as the files to be read.
    let (engine, files) = std::thread::scope(|scope| {
        let engine = scope.spawn(|| Engine::choose(job.device, job.precision, &job.setup));
        let files = open(job, progress);
        (engine.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), files)
    });
    let ((engine, precision), (original, model, material)) = (engine?, files?);
    let last = match &original {
        Some(picture) if !job.keep_working_size => (picture.width, picture.height),
        _ => material.size,
    };
    format.check_size(last.0, last.1).map_err(usage)?;
    progress.device(&engine);
    let request = material.request(&job.edit);
    let mut program = Program::new(&model.config, &model.settings, &request, precision, engine.target())?;
    engine.fit(&mut program.plan, job.max_vram)?;
    let planned = since_start();
    let mut exec = engine.executor(&program.plan, &model, &job.setup)?;
    material.write_inputs(&job.edit, &model, &program, &mut *exec)?;
    let ready = since_start();
    let mut seconds = BTreeMap::from([("load", planned), ("prepare", ready - planned)]);
    let pixels = run_stages(&mut *exec, &program, progress, &mut seconds, &[])?;
    let in_use = engine.device_bytes_in_use();
    drop(exec);

    let edited = Rgb { width: material.size.0, height: material.size.1, data: pixels };
    let edited = image::resize(&edited, last.0, last.1, Filter::Bicubic);
    let parameters = parameters(job, &model, &program.plan, material.size, last);
    output.commit(&image::encode(&edited, format, &parameters.to_string())?)?;
    seconds.insert("total", since_start());
    let first_step = seconds.remove(UNTIL_STEP).map(|waited| ready + waited);
    let mut report = report(job, parameters, &program.plan, &seconds, original.as_ref());
    report["device"] = json!(engine.name());
    report["seconds_since_start"] = json!({"planned": planned, "ready": ready, "first_step": first_step});
    report["peak_bytes"]["device"] = json!(in_use);
    if let Engine::Cuda(_) = engine {
        report["residency"] = json!(program.plan.weights.policy.to_string());
        report["peak_bytes"]["weights"] = json!(program.plan.weights.bytes);
        report["peak_bytes"]["planned"] = json!(program.plan.peak_bytes());
    }
    Ok(report)
}

/// Edits a picture in memory, as [`run_edit`] does between files; gives it at its own size.
///
/// # Errors
/// As for [`run_edit`].
pub fn edit_picture(
    edit: &EditParameters,
    picture: &Rgb,
    model: &Model,
    (engine, precision, max_vram): (&Engine, Precision, Option<usize>),
    setup: &Setup,
    progress: &mut dyn Progress,
) -> Result<Rgb> {
    let material = Material::new(edit, model, Some(picture), progress)?;
    let request = material.request(edit);
    let mut program = Program::new(&model.config, &model.settings, &request, precision, engine.target())?;
    engine.fit(&mut program.plan, max_vram)?;
    let mut exec = engine.executor(&program.plan, model, setup)?;
    material.write_inputs(edit, model, &program, &mut *exec)?;
    let data = run_stages(&mut *exec, &program, progress, &mut BTreeMap::new(), &[])?;
    let edited = Rgb { width: material.size.0, height: material.size.1, data };
    Ok(image::resize(&edited, picture.width, picture.height, Filter::Bicubic))
}

/// The picture, if there is one, the model, and what the model takes of picture and prompts.
fn open(job: &EditJob, progress: &mut dyn Progress) -> Result<(Option<Rgb>, Model, Material)> {
    let original = job.image.as_deref().map(image::decode).transpose()?;
    let model = Model::open_or_demo(job.model.as_deref(), progress)?;
    let material = Material::new(&job.edit, &model, original.as_ref(), progress)?;
    Ok((original, model, material))
}

/// An edit's picture and prompts as the model takes them.
struct Material {
    /// Working width and height.
    size: (usize, usize),
    /// The picture at that size; none in text-to-image.
    working: Option<Rgb>,
    /// The picture as the encoder sees it.
    patches: Patches,
    /// Tokens of prompt and negative prompt.
    tokens: Vec<PromptTokens>,
}

impl Material {
    fn new(edit: &EditParameters, model: &Model, original: Option<&Rgb>, progress: &mut dyn Progress) -> Result<Material> {
        let (size, working, patches) = match original {
            Some(picture) => {
                let size_level = edit.size_level.unwrap_or(model.size_level);
                let size = image::working_size(picture.width, picture.height, size_level)?;
                let working = image::resize(picture, size.0, size.1, edit.filter);
                let patches = prompt::patches(&working, &model.settings).with_context(|| {
                    format!("a {}x{} picture cannot be edited at size level {size_level}", picture.width, picture.height)
                })?;
                (size, Some(working), patches)
            }
            None => {
                if model.config.version == Version::V1_0 {
                    progress.notice("v1.0 was trained to edit pictures only; use v1.1 to make one from text");
                }
                // Text-to-image shows the encoder a black square.
                let black = Rgb { width: 1024, height: 1024, data: vec![0; 3 << 20] };
                (edit.size, None, prompt::patches(&black, &model.settings)?)
            }
        };
        let tokens = tokenize(model, edit, patches.image_tokens(), progress)?;
        Ok(Material { size, working, patches, tokens })
    }

    fn write_inputs(&self, edit: &EditParameters, model: &Model, program: &Program, exec: &mut dyn Executor) -> Result<()> {
        let (working, patches) = (self.working.as_ref(), &self.patches);
        let host = HostInputs { working, patches, seed: edit.seed, guidance_limit: edit.guidance_limit };
        program.inputs(&model.config, &host).into_iter().try_for_each(|(id, values)| exec.write(id, values.values()))
    }

    fn request(&self, edit: &EditParameters) -> Request<'_> {
        Request {
            size: self.size,
            reference: self.working.is_some(),
            grid: self.patches.grid,
            tokens: &self.tokens,
            steps: edit.steps,
            cfg_scale: edit.cfg_scale,
            noise: match edit.rng {
                Rng::Cuda { grid_threads } => NoiseSource::Philox { seed: edit.seed, grid_threads },
                Rng::Cpu => NoiseSource::Host,
            },
            sample_posterior: edit.sample_posterior,
            savings: edit.savings,
        }
    }
}

/// Ids of prompt and negative prompt; a tail that does not fit is reported.
fn tokenize(model: &Model, edit: &EditParameters, image_tokens: usize, progress: &mut dyn Progress) -> Result<Vec<PromptTokens>> {
    let mut both = Vec::new();
    for (name, text) in [("prompt", &edit.prompt), ("negative prompt", &edit.negative_prompt)] {
        let tokens = model.tokenizer.encode_prompt(text, image_tokens).map_err(usage)?;
        let lost = tokens.lost(&model.settings);
        if lost > 0 {
            let most = model.settings.max_text;
            progress.notice(&format!(
                "the {name} is too long: its last {lost} tokens are cut, since the model reads {most} with the picture's"
            ));
        }
        both.push(tokens);
    }
    Ok(both)
}

/// What [`run_stages`] calls the seconds until the first step began.
pub const UNTIL_STEP: &str = "until_step";

/// Runs all stages and gives the pixels at the working size; adds each stage's seconds, and [`UNTIL_STEP`]. Each `watched` tensor is handed to
/// `progress` after its stage.
///
/// # Errors
/// What `progress` returns, values that are not finite, or what the executor reports.
pub fn run_stages(
    exec: &mut dyn Executor,
    program: &Program,
    progress: &mut dyn Progress,
    seconds: &mut BTreeMap<&'static str, f64>,
    watched: &[(&str, TensorId)],
) -> Result<Vec<u8>> {
    let t = &program.tensors;
    let stages = &program.plan.graph.stages;
    let begun = Instant::now();
    exec.begin(&stages.iter().map(|s| s.name).collect::<Vec<_>>())?;
    for stage in stages {
        let start = Instant::now();
        if stage.name == "step" {
            seconds.insert(UNTIL_STEP, begun.elapsed().as_secs_f64());
        }
        for run in 0..stage.repeat {
            progress.stage(stage.name, run, stage.repeat)?;
            exec.run(stage.name, &mut |_| progress.node())?;
            if stage.name == "step" && (exec.waits() || run + 1 == stage.repeat) {
                check_fault(exec, t.denoised.fault, stage.repeat)?;
            }
        }
        exec.finish()?;
        match stage.name {
            "vae_encode" => check_finite(exec, stage.name, t.reference_latent)?,
            "text" => check_finite(exec, stage.name, Some(t.embedding))?,
            _ => {}
        }
        seconds.insert(stage.name, start.elapsed().as_secs_f64());
        for (_, id) in watched.iter().filter(|(name, _)| *name == stage.name) {
            progress.result(stage.name, read_f32(exec, *id)?);
        }
    }
    let faults = index(exec, t.pixel_faults)?;
    ensure!(faults == 0, "{faults} values of the picture are not finite after the stage vae_decode; nothing was written");
    match exec.read(t.pixels)? {
        HostValues::U8(pixels) => Ok(pixels),
        _ => bail!("the picture is not made of pixels"),
    }
}

fn check_finite(exec: &mut dyn Executor, stage: &str, id: Option<TensorId>) -> Result<()> {
    let Some(id) = id else { return Ok(()) };
    let bad = read_f32(exec, id)?.iter().filter(|v| !v.is_finite()).count();
    ensure!(bad == 0, "{bad} values are not finite after the stage {stage}; are its weights damaged? Nothing was written");
    Ok(())
}

fn check_fault(exec: &mut dyn Executor, fault: TensorId, steps: usize) -> Result<()> {
    let step = index(exec, fault)?;
    ensure!(step == 0, "the latents are not finite after step {step} of {steps} (stage step); nothing was written");
    Ok(())
}

fn index(exec: &mut dyn Executor, id: TensorId) -> Result<i32> {
    match exec.read(id)? {
        HostValues::I32(v) => Ok(v[0]),
        _ => bail!("not an index tensor"),
    }
}

/// What it takes to make the picture again.
fn parameters(job: &EditJob, model: &Model, plan: &Plan, working: (usize, usize), output: (usize, usize)) -> Value {
    let edit = &job.edit;
    let rng = match edit.rng {
        Rng::Cuda { grid_threads } => json!({"generator": "cuda", "grid_threads": grid_threads}),
        Rng::Cpu => json!({"generator": "cpu"}),
    };
    json!({
        "program": concat!("step1x-edit ", env!("CARGO_PKG_VERSION")), "model": model_name(model),
        "task": if job.image.is_some() { "edit" } else { "text-to-image" },
        "prompt": edit.prompt, "negative_prompt": edit.negative_prompt, "seed": edit.seed, "rng": rng,
        "posterior": if edit.sample_posterior { "sample" } else { "mean" },
        "steps": edit.steps, "cfg_scale": edit.cfg_scale, "guidance_limit": edit.guidance_limit,
        "precision": plan.precision.to_string(), "working_size": [working.0, working.1], "output_size": [output.0, output.1],
    })
}

fn model_name(model: &Model) -> String {
    format!("{}{}", model.config.version, if model.is_demo { " (demo model)" } else { "" })
}

fn report(job: &EditJob, mut json: Value, plan: &Plan, seconds: &BTreeMap<&str, f64>, original: Option<&Rgb>) -> Value {
    json["output"] = json!(job.output);
    json["input_size"] = json!(original.map(|picture| [picture.width, picture.height]));
    json["seconds"] = json!(seconds);
    json["peak_bytes"] = json!({"arena": plan.arena_bytes, "resident": peak_resident_bytes()});
    json
}

/// The process's largest resident size so far; none where the kernel keeps no such books.
fn peak_resident_bytes() -> Option<u64> {
    proc_kib("/proc/self/status", "VmHWM:")
}

/// A line of one of the kernel's tables of sizes, in bytes.
fn proc_kib(table: &str, name: &str) -> Option<u64> {
    let table = std::fs::read_to_string(table).ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
