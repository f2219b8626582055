//! The `inspect` command: what a model consists of, and the plan of an edit with it.

mod checked;
mod loras;

use std::fmt::Write;

use anyhow::Result;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use self::checked::Checked;
use self::loras::Looked;
use super::synth::PresetModel;
use crate::error::usage;
use crate::image;
use crate::model::edit::{NoiseSource, Savings};
use crate::model::{Config, Preset, Version};
use crate::ops::{Arch, H100_GRID_THREADS};
use crate::pipeline::{EditInputs, LoraChoice, Model, ModelPath, Program, Request, Rules};
use crate::plan::{BodyMemory, Budget, CONTEXT_BYTES, LINK_GB_PER_S, Plan, Precision, Target, format_bytes};
use crate::prompt::{self, PromptSettings, Tokenizer};
use crate::tensor::{Component, DType, Shape, Spec};
use crate::weights::shown;

/// A model to look at, and an edit to plan with it.
#[derive(Clone, Debug)]
pub struct InspectJob {
    /// What to look at.
    pub networks: Networks,
    /// LoRA files to look at.
    pub loras: Vec<LoraChoice>,
    /// The edit to plan.
    pub plan: PlanJob,
    /// Bytes of a device's memory that the plan must do with; none: any.
    pub max_vram: Option<usize>,
    /// Compare the files' digests with those that were published.
    pub verify: bool,
    /// List every tensor.
    pub tensors: bool,
    /// Print the recorded graph.
    pub graph: bool,
    /// Report as one JSON object.
    pub json: bool,
}

/// Networks with or without weights.
#[derive(Clone, Debug)]
pub enum Networks {
    /// A model's folder or transformer file.
    Folder(ModelPath),
    /// Networks known without a checkpoint.
    Preset(Preset, Version),
    /// None but LoRA files, which are compared with the released model.
    None,
}

/// An edit to plan.
#[derive(Clone, Debug)]
pub struct PlanJob {
    /// What to do.
    pub prompt: String,
    /// The rules that it follows; none: the model's.
    pub rules: Option<Rules>,
    /// Width and height of the picture.
    pub size: (usize, usize),
    /// Its working area's side.
    pub size_level: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Activations and products; bf16 plans for a GPU, all others for the CPU.
    pub precision: Precision,
    /// Savings in use.
    pub savings: Savings,
}

/// What is inspected.
struct Subject {
    config: Config,
    settings: PromptSettings,
    /// Unless the user names others.
    rules: Rules,
    tokenizer: Tokenizer,
    /// Path, bytes, tensors of each file; none for a preset.
    files: Vec<(String, u64, usize)>,
    tensors: Vec<(Component, String, Spec)>,
}

/// The text, or the JSON object, that `inspect` prints, and an error if a file is not as it was published: then nothing more
/// is said of the model. `bar` shows the bytes whose digests are taken.
///
/// # Errors
/// Other faults of the model's files, or sizes that cannot be planned.
pub fn run(job: &InspectJob, bar: &ProgressBar) -> Result<(String, Result<()>)> {
    if let Networks::None = job.networks {
        return only_loras(job);
    }
    let checked = match &job.networks {
        Networks::Folder(path) if job.verify => Some(Checked::new(path, bar)?),
        _ => None,
    };
    let mut held = checked.as_ref().map_or(Ok(()), Checked::held);
    let planned = if held.is_ok() { Some(Planned::new(job)?) } else { None };
    if job.json {
        let mut object = planned.as_ref().map_or(json!({}), |planned| planned.subject.json(planned.rules, &planned.program.plan));
        if let Some(planned) = planned.filter(|_| !job.loras.is_empty()) {
            let looked = planned.subject.look_at(&job.loras)?;
            object["loras"] = looked.iter().map(Looked::json).collect();
            held = looked.into_iter().try_for_each(Looked::held);
        }
        if let Some(checked) = checked {
            object["verified"] = checked.json();
        }
        return Ok((format!("{object:#}\n"), held));
    }
    let mut text = checked.map_or(String::new(), |checked| checked.text());
    if let Some(planned) = planned {
        text += &planned.text(job)?;
        let looked = planned.subject.look_at(&job.loras)?;
        text.extend(looked.iter().map(|looked| format!("\n{}", looked.text("this model"))));
        held = looked.into_iter().try_for_each(Looked::held);
    }
    Ok((text, held))
}

/// What LoRA files are, whether they fit the released model, and an error if one does not.
fn only_loras(job: &InspectJob) -> Result<(String, Result<()>)> {
    let looked = Subject::of_preset(Preset::Full, Version::V1_1)?.look_at(&job.loras)?;
    let text = match job.json {
        true => format!("{:#}\n", json!({"loras": looked.iter().map(Looked::json).collect::<Vec<_>>()})),
        false => looked.iter().map(|looked| looked.text("the released Step1X-Edit")).collect::<Vec<_>>().join("\n"),
    };
    Ok((text, looked.into_iter().try_for_each(Looked::held)))
}

/// A model, with an edit planned.
struct Planned {
    subject: Subject,
    rules: Rules,
    program: Program,
}

impl Planned {
    fn new(job: &InspectJob) -> Result<Planned> {
        let subject = Subject::new(&job.networks)?;
        let rules = job.plan.rules.unwrap_or(subject.rules);
        let plan = PlanJob { rules: Some(rules), ..job.plan.clone() };
        let mut program = plan_edit(&subject.config, &subject.settings, &subject.tokenizer, &plan)?;
        if let Some(allowed) = job.max_vram {
            program = program.fit(Budget::Allowed(allowed), CONTEXT_BYTES, LINK_GB_PER_S, None)?;
        }
        Ok(Planned { subject, rules, program })
    }

    fn text(&self, job: &InspectJob) -> Result<String> {
        let Planned { subject, rules: named, program } = self;
        let mut text = subject.text(job.tensors)?;
        let (height, width) = (8 * program.spec.latent.0, 8 * program.spec.latent.1);
        let (tokens, rows) = (&program.spec.prompt.valid, program.spec.step_rows().total());
        writeln!(
            text,
            "\nplan of an edit at {width}x{height}, {} steps, {named} rules, prompts of {tokens:?} rows, {rows} rows a step",
            job.plan.steps
        )?;
        write!(text, "{}", program.plan)?;
        if job.graph {
            write!(text, "\n{}", program.plan.graph)?;
        }
        Ok(text)
    }
}

impl Subject {
    fn new(networks: &Networks) -> Result<Subject> {
        match networks {
            Networks::Folder(path) => Subject::of_folder(path),
            Networks::Preset(preset, version) => Subject::of_preset(*preset, *version),
            Networks::None => Subject::of_preset(Preset::Full, Version::V1_1),
        }
    }

    fn of_preset(preset: Preset, version: Version) -> Result<Subject> {
        let PresetModel { config, settings, tokenizer, .. } = PresetModel::new(preset, version)?;
        let spec = |(component, name, dtype, shape): (Component, String, DType, Shape)| (component, name, Spec { dtype, shape });
        let tensors = config.checkpoint().into_iter().map(spec).collect();
        Ok(Subject { config, settings, rules: Rules::Official, tokenizer, files: vec![], tensors })
    }

    fn of_folder(path: &ModelPath) -> Result<Subject> {
        let Model { folder, config, settings, rules, tokenizer, .. } = Model::open_parts(path)?;
        let files = folder.files().map(|(path, bytes, tensors)| (path.display().to_string(), bytes, tensors)).collect();
        let components = [Component::Dit, Component::Vae, Component::Qwen];
        let of = |component| folder.tensors(component).map(move |(name, spec)| (component, name.to_string(), spec.clone()));
        let tensors = components.into_iter().flat_map(of).collect();
        Ok(Subject { config, settings, rules, tokenizer, files, tensors })
    }

    /// Looks at LoRA files, and whether they fit the transformer.
    fn look_at(&self, loras: &[LoraChoice]) -> Result<Vec<Looked>> {
        let own = self.tensors.iter().filter(|(component, ..)| *component == Component::Dit);
        let tensors = own.map(|(_, name, spec)| (name.as_str(), &spec.shape));
        loras.iter().map(|choice| Looked::new(choice, tensors.clone())).collect()
    }

    /// Number of tensors, parameters and bytes of a component.
    fn totals(&self, component: Component) -> (usize, usize, usize) {
        let own = || self.tensors.iter().filter(|(c, ..)| *c == component).map(|(_, _, spec)| spec);
        (own().count(), own().map(|s| s.shape.elements()).sum(), own().map(Spec::bytes).sum())
    }

    fn text(&self, all_tensors: bool) -> Result<String> {
        let mut text = format!("Step1X-Edit {}\n", self.config.version);
        for (path, bytes, tensors) in &self.files {
            writeln!(text, "  {path}: {}, {tensors} tensors", format_bytes(*bytes as usize))?;
        }
        for component in [Component::Dit, Component::Vae, Component::Qwen] {
            let (tensors, parameters, bytes) = self.totals(component);
            writeln!(text, "{component:<13} {tensors:>5} tensors {parameters:>15} parameters {:>10}", format_bytes(bytes))?;
        }
        if all_tensors {
            for (component, name, spec) in &self.tensors {
                writeln!(text, "  {component}: {} {spec}", shown(name))?;
            }
        }
        Ok(text)
    }

    fn json(&self, rules: Rules, plan: &Plan) -> Value {
        let component = |c: Component| {
            let (tensors, parameters, bytes) = self.totals(c);
            json!({"name": c.to_string(), "tensors": tensors, "parameters": parameters, "bytes": bytes})
        };
        let components = [Component::Dit, Component::Vae, Component::Qwen].map(component);
        let stages = plan.bodies.iter().map(|s| {
            json!({"name": s.name, "nodes": s.nodes, "runs": s.runs, "weight_bytes": s.weight_bytes,
                   "live_bytes": s.live_bytes, "flops": s.flops})
        });
        let files = self.files.iter().map(|(path, bytes, tensors)| json!({"path": path, "bytes": bytes, "tensors": tensors}));
        json!({
            "model": self.config.version.to_string(), "files": files.collect::<Vec<_>>(),
            "components": components,
            "plan": {"rules": rules.to_string(), "precision": plan.precision.to_string(), "itinerary": plan.itinerary.named(&plan.graph).to_string(), "arena_bytes": plan.arena_bytes, "weight_bytes": plan.weight_bytes(),
                     "device": device(plan), "stages": stages.collect::<Vec<_>>()},
        })
    }
}

/// What a plan takes of a device's memory; null for the CPU's.
fn device(plan: &Plan) -> Value {
    if plan.target == Target::Cpu {
        return Value::Null;
    }
    let stages = plan.bodies.iter().zip(plan.memory()).zip(plan.passages(LINK_GB_PER_S)).map(|((stage, memory), passage)| {
        let BodyMemory { kept, streamed, ring } = memory;
        json!({"name": stage.name, "kept_bytes": kept, "streamed_bytes": streamed, "ring_bytes": ring,
               "seconds": passage.seconds, "stall_seconds": passage.stalls})
    });
    json!({"residency": plan.weights.policy.to_string(), "peak_bytes": plan.peak_bytes(), "region_bytes": plan.weights.bytes,
           "least_bytes": plan.least_peak_bytes(),
           "link_gb_per_s": LINK_GB_PER_S, "stages": stages.collect::<Vec<_>>()})
}

/// The program of an edit of a picture of this size, without the picture. In bf16 kernels are chosen for sm_90; f32 is
/// the CPU's.
///
/// # Errors
/// Sizes, prompts or dimensions that cannot be planned.
pub fn plan_edit(config: &Config, settings: &PromptSettings, tokenizer: &Tokenizer, job: &PlanJob) -> Result<Program> {
    let rules = job.rules.unwrap_or_default();
    rules.check(config.version)?;
    let settings = &rules.prompt(settings);
    let size = image::working_size(job.size.0, job.size.1, job.size_level).map_err(usage)?;
    let [_, (height, width)] = prompt::fit(size.1, size.0, settings).map_err(usage)?;
    let grid = (height / 14, width / 14);
    let encode = |text| tokenizer.encode_prompt(text, grid.0 * grid.1 / 4, settings).map_err(usage);
    let request = Request {
        size,
        reference: true,
        grid,
        tokens: &[encode(&job.prompt)?, encode("")?],
        steps: job.steps,
        noise: NoiseSource::Philox { grid_threads: H100_GRID_THREADS },
        sample_posterior: rules.samples_posterior(),
        savings: job.savings,
        conventions: rules.conventions(),
    };
    let target = if job.precision.runs_on_cuda() { Target::Cuda(Arch(90)) } else { Target::Cpu };
    Program::new(config, EditInputs::new(config, settings, &request)?.spec, job.precision, target)
}
