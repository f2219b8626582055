//! The whole journey of one edit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::error::{ResourceError, usage};
use crate::exec::Reference;
use crate::graph::TensorId;
use crate::image::{self, Filter, Format, Output, Rgb};
use crate::inputs::{PictureInputs, PromptInputs};
use crate::model::edit::{self, EditSpec, EditTensors, NoiseSource, Savings};
use crate::model::{AXES, Config, LM_HEAD, Version};
use crate::ops::Buffer;
use crate::plan::{Plan, Precision, Target, format_bytes};
use crate::prompt::{self, Patches, PromptSettings, PromptTokens, Tokenizer};
use crate::sampling;
use crate::tensor::{Component, DType};
use crate::weights::{Expected, ModelError, ModelFolder, check};

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

/// One edit, every choice made.
#[derive(Clone, Debug)]
pub struct EditJob {
    /// The model's folder or transformer file.
    pub model: PathBuf,
    /// The picture to edit; none: text-to-image.
    pub image: Option<PathBuf>,
    /// What to do.
    pub prompt: String,
    /// What guidance leads away from.
    pub negative_prompt: String,
    /// Where the result goes; the extension says the format.
    pub output: PathBuf,
    /// Replace a file that is there.
    pub force: bool,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub cfg_scale: f32,
    /// Times above it use the norm-limited rule.
    pub guidance_limit: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Side of the square whose area the working size has, in pixels.
    pub size_level: usize,
    /// Width and height of text-to-image.
    pub size: (usize, usize),
    /// Filter that brings the picture to the working size.
    pub filter: Filter,
    /// Generator of the noise.
    pub rng: Rng,
    /// Sample the reference's posterior instead of taking its mean.
    pub sample_posterior: bool,
    /// Leave the result at the working size.
    pub keep_working_size: bool,
    /// Element type of activations.
    pub precision: Precision,
    /// Savings in use.
    pub savings: Savings,
}

/// What the caller hears while an edit runs; an error stops it.
pub trait Progress {
    /// A stage begins (again): its name and which of how many runs.
    fn stage(&mut self, name: &str, run: usize, runs: usize) -> Result<()>;
    /// A node is done.
    fn node(&mut self) -> Result<()>;
    /// Something worth knowing that is no error.
    fn notice(&mut self, text: &str);
}

/// A model folder, opened and checked.
pub struct Model {
    /// Mapped weights.
    pub folder: ModelFolder,
    /// Dimensions of the networks.
    pub config: Config,
    /// What no tensor tells.
    pub settings: PromptSettings,
    /// Text to ids.
    pub tokenizer: Tokenizer,
}

impl Model {
    /// Opens a folder: files, dimensions, settings, tensors, tokenizer.
    ///
    /// # Errors
    /// A [`ModelError`] that lists what is missing or wrong.
    pub fn open(path: &Path) -> Result<Model> {
        let folder = ModelFolder::open(path)?;
        let model_error = |e: anyhow::Error| ModelError::new(format!("{}: {e:#}", folder.dir.display()));
        let (settings, axes) = parse_settings(folder.settings.as_ref()).map_err(model_error)?;
        let shape_of = |component, name: &str| folder.get(component, name).map(|(spec, _)| spec.shape.clone());
        let config = Config::infer(&shape_of, &folder.qwen_config, axes).map_err(model_error)?;
        let manifest = config.manifest();
        let expected: Vec<_> =
            manifest.iter().map(|(component, name, shape)| Expected { component: *component, name, shape }).collect();
        check(&folder, &expected, &[(Component::Qwen, LM_HEAD)])?;
        let tokenizer = Tokenizer::load(&folder.tokenizer_path).map_err(model_error)?;
        let (ids, rows) = (tokenizer.vocabulary_size(), config.text.vocabulary);
        if ids > rows {
            let fault = format!("tokenizer.json gives ids up to {}, the text model has {rows} embeddings", ids - 1);
            return Err(ModelError::new(format!("{}: {fault}; take both from one release", folder.dir.display())).into());
        }
        settings.check(&tokenizer).map_err(model_error)?;
        let (declared, found) =
            (folder.qwen_config.get("image_token_id").and_then(Value::as_u64), tokenizer.token_id("<|image_pad|>"));
        if declared.is_some_and(|id| found.map(u64::from) != Some(id)) {
            let fault =
                format!("config.json says image_token_id {declared:?}, tokenizer.json has {found:?}; take both from one release");
            return Err(ModelError::new(fault).into());
        }
        Ok(Model { folder, config, settings, tokenizer })
    }
}

/// `step1x.json`: the prompt's settings and the rotary axes.
fn parse_settings(json: Option<&Value>) -> Result<(PromptSettings, [usize; 3])> {
    let mut json = json.cloned().unwrap_or_else(|| json!({}));
    let axes = json.as_object_mut().context("step1x.json is not a JSON object")?.remove("axes");
    let axes = axes.map_or(Ok(AXES), serde_json::from_value).context("step1x.json: axes are three numbers")?;
    Ok((serde_json::from_value(json).context("step1x.json")?, axes))
}

/// An edit's program and what its inputs are filled with.
pub struct Program {
    /// Decisions made.
    pub plan: Plan,
    /// Tensors that the host meets.
    pub tensors: EditTensors,
    /// The shape of the edit.
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

impl Program {
    /// Records and plans an edit.
    ///
    /// # Errors
    /// Tokens that do not fit the model, or what the planner refuses.
    pub fn new(
        config: &Config,
        settings: &PromptSettings,
        request: &Request,
        precision: Precision,
        target: Target,
    ) -> Result<Program> {
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
        let (graph, tensors) = edit::record(config, &spec);
        Ok(Program { plan: Plan::new(graph, precision, target)?, tensors, spec, picture, prompts })
    }
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

impl Program {
    /// The values of every input.
    pub fn inputs(&self, config: &Config, host: &HostInputs) -> Vec<(TensorId, Buffer)> {
        let (t, rows) = (&self.tensors, self.spec.step_rows());
        let schedule = sampling::schedule(self.spec.steps, rows.tokens());
        let times = schedule[..self.spec.steps].iter().flat_map(|&time| [time, time]).collect();
        let mut inputs = vec![
            (t.vision.pixel_values, Buffer::F32(host.patches.pixel_values.clone())),
            (t.vision.window_rows, Buffer::I32(self.picture.window_rows.clone())),
            (t.vision.rope, Buffer::F32(self.picture.rope.clone())),
            (t.text.index, Buffer::I32(self.prompts.index.clone())),
            (t.text.rope, Buffer::F32(self.prompts.rope.clone())),
            (t.embedding_rows, Buffer::I32(self.prompts.embedding_rows.clone())),
            (t.denoised.times, Buffer::F32(times)),
            (t.denoised.schedule, Buffer::F32(sampling::step_table(&schedule, host.guidance_limit))),
            (t.denoised.rope, Buffer::F32(rows.rope_table(config))),
            (t.denoised.counter, Buffer::I32(vec![0])),
            (t.denoised.fault, Buffer::I32(vec![0])),
        ];
        inputs.extend(t.rgb.zip(host.working).map(|(id, picture)| (id, Buffer::U8(picture.data.clone()))));
        inputs.extend(t.text.key_bias.map(|id| (id, Buffer::F32(self.prompts.key_bias.clone()))));
        inputs.extend(t.denoised.key_bias.map(|id| (id, Buffer::F32(rows.key_bias()))));
        // The CPU generator's first draw is the noise, its second the posterior's.
        let (n, (h, w)) = (64 * rows.tokens(), self.spec.latent);
        for (draw, id) in [t.denoised.host_noise, t.host_posterior_noise].into_iter().enumerate() {
            inputs.extend(id.map(|id| {
                let noise = sampling::torch_cpu_normal(host.seed, (draw + 1) * n);
                (id, Buffer::F32(sampling::pack_noise(&noise[draw * n..], h, w, DType::BF16)))
            }));
        }
        inputs
    }
}

/// Runs one edit from files to file; gives parameters, sizes, seconds by stage and peak bytes as one JSON object.
///
/// # Errors
/// One of [`crate::error`], a [`ModelError`], or a fault of picture, arithmetic or disk. Nothing is written then.
pub fn run_edit(job: &EditJob, progress: &mut dyn Progress) -> Result<Value> {
    let start = Instant::now();
    let output = Output::reserve(&job.output, job.force).map_err(usage)?;
    let format = Format::of(&job.output).map_err(usage)?;
    let original = job.image.as_deref().map(image::decode).transpose()?;
    let model = Model::open(&job.model)?;
    let material = Material::new(job, &model, original.as_ref(), progress)?;
    let last = match &original {
        Some(picture) if !job.keep_working_size => (picture.width, picture.height),
        _ => material.size,
    };
    format.check_size(last.0, last.1).map_err(usage)?;
    let program = Program::new(&model.config, &model.settings, &material.request(job), job.precision, Target::Cpu)?;
    check_memory(&program.plan)?;
    let mut seconds = BTreeMap::from([("load", start.elapsed().as_secs_f64())]);

    let mut exec = Reference::new(&program.plan, &model.folder)?;
    let (working, patches) = (material.working.as_ref(), &material.patches);
    let host = HostInputs { working, patches, seed: job.seed, guidance_limit: job.guidance_limit };
    for (id, values) in program.inputs(&model.config, &host) {
        exec.write(id, values.values())?;
    }
    let pixels = run_stages(&mut exec, &program, progress, &mut seconds)?;

    let edited = Rgb { width: material.size.0, height: material.size.1, data: pixels };
    let edited = image::resize(&edited, last.0, last.1, Filter::Bicubic);
    let parameters = parameters(job, &model, material.size, last);
    output.commit(&image::encode(&edited, format, &parameters.to_string())?)?;
    seconds.insert("total", start.elapsed().as_secs_f64());
    Ok(report(job, parameters, &program.plan, &seconds, original.as_ref()))
}

/// A job's picture and prompts as the model takes them.
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
    fn new(job: &EditJob, model: &Model, original: Option<&Rgb>, progress: &mut dyn Progress) -> Result<Material> {
        let (size, working, patches) = match original {
            Some(picture) => {
                let size = image::working_size(picture.width, picture.height, job.size_level)?;
                let working = image::resize(picture, size.0, size.1, job.filter);
                let patches = prompt::patches(&working, &model.settings).with_context(|| {
                    format!("a {}x{} picture cannot be edited at size level {}", picture.width, picture.height, job.size_level)
                })?;
                (size, Some(working), patches)
            }
            None => {
                if model.config.version == Version::V1_0 {
                    progress.notice("v1.0 was trained to edit pictures only; use v1.1 to make one from text");
                }
                // Text-to-image shows the encoder a black square.
                let black = Rgb { width: 1024, height: 1024, data: vec![0; 3 << 20] };
                (job.size, None, prompt::patches(&black, &model.settings)?)
            }
        };
        let tokens = tokenize(model, job, patches.image_tokens(), progress)?;
        Ok(Material { size, working, patches, tokens })
    }

    fn request(&self, job: &EditJob) -> Request<'_> {
        Request {
            size: self.size,
            reference: self.working.is_some(),
            grid: self.patches.grid,
            tokens: &self.tokens,
            steps: job.steps,
            cfg_scale: job.cfg_scale,
            noise: match job.rng {
                Rng::Cuda { grid_threads } => NoiseSource::Philox { seed: job.seed, grid_threads },
                Rng::Cpu => NoiseSource::Host,
            },
            sample_posterior: job.sample_posterior,
            savings: job.savings,
        }
    }
}

/// Refuses a plan whose arena is larger than the memory that the system could give.
fn check_memory(plan: &Plan) -> Result<()> {
    let available = proc_kib("/proc/meminfo", "MemAvailable:");
    if let Some(available) = available.filter(|&a| a < plan.arena_bytes as u64) {
        let (needed, available) = (format_bytes(plan.arena_bytes), format_bytes(available as usize));
        let text = format!(
            "the edit needs {needed} of memory for activations, {available} are available; a smaller --size-level needs less"
        );
        return Err(ResourceError(text).into());
    }
    Ok(())
}

/// Ids of prompt and negative prompt; a tail that does not fit is reported.
fn tokenize(model: &Model, job: &EditJob, image_tokens: usize, progress: &mut dyn Progress) -> Result<Vec<PromptTokens>> {
    let mut both = Vec::new();
    for (name, text) in [("prompt", &job.prompt), ("negative prompt", &job.negative_prompt)] {
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

/// Runs all stages and gives the pixels at the working size; adds each stage's seconds.
fn run_stages(
    exec: &mut Reference,
    program: &Program,
    progress: &mut dyn Progress,
    seconds: &mut BTreeMap<&'static str, f64>,
) -> Result<Vec<u8>> {
    let t = &program.tensors;
    for stage in &program.plan.graph.stages {
        let start = Instant::now();
        for run in 0..stage.repeat {
            progress.stage(stage.name, run, stage.repeat)?;
            exec.run(stage.name, &mut |_, _| progress.node())?;
            match stage.name {
                "vae_encode" => check_finite(exec, stage.name, t.reference_latent)?,
                "text" => check_finite(exec, stage.name, Some(t.embedding))?,
                "step" => check_fault(exec, t.denoised.fault, stage.repeat)?,
                _ => {}
            }
        }
        seconds.insert(stage.name, start.elapsed().as_secs_f64());
    }
    let faults = index(exec, t.pixel_faults)?;
    ensure!(faults == 0, "{faults} values of the picture are not finite after the stage vae_decode; nothing was written");
    match exec.read(t.pixels)? {
        Buffer::U8(pixels) => Ok(pixels),
        _ => bail!("the picture is not made of pixels"),
    }
}

fn check_finite(exec: &Reference, stage: &str, id: Option<TensorId>) -> Result<()> {
    let Some(id) = id else { return Ok(()) };
    let bad = exec.read_f32(id)?.iter().filter(|v| !v.is_finite()).count();
    ensure!(bad == 0, "{bad} values are not finite after the stage {stage}; are its weights damaged? Nothing was written");
    Ok(())
}

fn check_fault(exec: &Reference, fault: TensorId, steps: usize) -> Result<()> {
    let step = index(exec, fault)?;
    ensure!(step == 0, "the latents are not finite after step {step} of {steps} (stage step); nothing was written");
    Ok(())
}

fn index(exec: &Reference, id: TensorId) -> Result<i32> {
    match exec.read(id)? {
        Buffer::I32(v) => Ok(v[0]),
        _ => bail!("not an index tensor"),
    }
}

/// What it takes to make the picture again.
fn parameters(job: &EditJob, model: &Model, working: (usize, usize), output: (usize, usize)) -> Value {
    let rng = match job.rng {
        Rng::Cuda { grid_threads } => json!({"generator": "cuda", "grid_threads": grid_threads}),
        Rng::Cpu => json!({"generator": "cpu"}),
    };
    json!({
        "program": concat!("step1x-edit ", env!("CARGO_PKG_VERSION")), "model": model.config.version.to_string(),
        "task": if job.image.is_some() { "edit" } else { "text-to-image" },
        "prompt": job.prompt, "negative_prompt": job.negative_prompt, "seed": job.seed, "rng": rng,
        "posterior": if job.sample_posterior { "sample" } else { "mean" },
        "steps": job.steps, "cfg_scale": job.cfg_scale, "guidance_limit": job.guidance_limit,
        "precision": job.precision.to_string(), "working_size": [working.0, working.1], "output_size": [output.0, output.1],
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;
    use crate::ops::PixelsIn;

    #[test]
    fn an_arena_beyond_the_memory_is_refused_with_both_numbers() {
        let plan_of = |pixels: usize| {
            let mut g = Graph::new();
            g.stage("vae_encode", 1, |g| {
                let x = g.input("rgb", DType::U8, [1, pixels, 3]);
                g.op("pixels_in", PixelsIn(DType::F32), &[x])
            });
            Plan::new(g, Precision::F32, Target::Cpu).unwrap()
        };
        check_memory(&plan_of(100)).unwrap();
        let error = check_memory(&plan_of(1 << 40)).unwrap_err();
        let text = error.downcast_ref::<ResourceError>().unwrap().0.clone();
        assert!(text.contains("needs 16492.67 GB") && text.contains("are available"), "{text}");
    }

    #[test]
    fn settings_keep_defaults_and_take_axes() {
        let json = json!({"cut": 100, "axes": [32, 48, 48]});
        let (settings, axes) = parse_settings(Some(&json)).unwrap();
        assert_eq!((settings.cut, settings.max_text, axes), (100, 640, [32, 48, 48]));
        assert_eq!(parse_settings(None).unwrap(), (PromptSettings::default(), AXES));
        for wrong in [json!([]), json!({"axes": 3}), json!({"cuts": 1})] {
            assert!(parse_settings(Some(&wrong)).is_err(), "{wrong}");
        }
    }
}
