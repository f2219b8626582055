//! What `edit` says of an edit: the parameters that make the picture again, which the picture carries too, and what it took.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::memory::peak_resident_bytes;
use super::{EditJob, EditParameters, Edited, Model, Place, Rng, Rules};
use crate::weights::Lora;

/// What it takes to make the picture again.
#[derive(Clone, Debug, Serialize)]
pub struct Parameters {
    program: &'static str,
    model: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    loras: Vec<UsedLora>,
    task: &'static str,
    prompt: String,
    negative_prompt: String,
    seed: u64,
    rng: Generator,
    rules: Rules,
    posterior: &'static str,
    steps: usize,
    cfg_scale: f32,
    guidance_limit: f64,
    precision: String,
    /// Width and height.
    working_size: [usize; 2],
    output_size: [usize; 2],
}

/// A LoRA file that was merged.
#[derive(Clone, Debug, Serialize)]
struct UsedLora {
    /// Its name, without its folder.
    file: String,
    sha256: String,
    scale: f32,
}

#[derive(Clone, Debug, Serialize)]
struct Generator {
    generator: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    grid_threads: Option<usize>,
}

/// An edit from files to file, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    parameters: Parameters,
    /// Where a byte of its name is no text, a replacement character stands.
    output: String,
    /// Width and height; null in text-to-image.
    input_size: Option<[usize; 2]>,
    device: String,
    /// load, prepare, each stage, and total.
    seconds: BTreeMap<&'static str, f64>,
    seconds_since_start: SinceStart,
    peak_bytes: PeakBytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    residency: Option<String>,
}

/// Seconds since the command line had been read.
#[derive(Clone, Copy, Debug, Serialize)]
struct SinceStart {
    planned: f64,
    ready: f64,
    first_step: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PeakBytes {
    arena: usize,
    /// Of the process, in host memory.
    resident: Option<u64>,
    /// Of the device, in use by everyone.
    device: Option<usize>,
    /// The weights' region.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    planned: Option<usize>,
}

impl Parameters {
    /// Those of an edit that was made, of a picture or from text alone; `output`: width and height of the result.
    ///
    /// # Errors
    /// A LoRA file that cannot be read any more.
    pub fn new(
        edit: &EditParameters,
        of_picture: bool,
        model: &Model,
        edited: &Edited,
        output: (usize, usize),
    ) -> Result<Parameters> {
        let chosen = edit.with(model)?;
        let used = |lora: Arc<Lora>| {
            let file = lora.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(UsedLora { file, sha256: lora.sha256()?, scale: lora.scale })
        };
        Ok(Parameters {
            loras: model.folder.loras().into_iter().map(used).collect::<Result<_>>()?,
            program: concat!("step1x-edit ", env!("CARGO_PKG_VERSION")),
            model: format!("{}{}", model.config.version, if model.is_demo { " (demo model)" } else { "" }),
            task: if of_picture { "edit" } else { "text-to-image" },
            prompt: edit.prompt.clone(),
            negative_prompt: edit.negative_prompt.clone(),
            seed: edit.seed,
            rng: match edit.rng {
                Rng::Cuda { grid_threads } => Generator { generator: "cuda", grid_threads: Some(grid_threads) },
                Rng::Cpu => Generator { generator: "cpu", grid_threads: None },
            },
            rules: chosen.rules,
            posterior: if chosen.sample_posterior { "sample" } else { "mean" },
            steps: edit.steps,
            cfg_scale: chosen.cfg_scale,
            guidance_limit: chosen.guidance_limit,
            precision: edited.plan.precision.to_string(),
            working_size: [edited.picture.width, edited.picture.height],
            output_size: [output.0, output.1],
        })
    }
}

impl Parameters {
    /// The model's version.
    pub fn model(&self) -> &str {
        &self.model
    }
}

impl fmt::Display for Parameters {
    /// As one JSON object, keys in order.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", json!(self))
    }
}

impl fmt::Display for Report {
    /// As one JSON object, keys in order.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", json!(self))
    }
}

impl Report {
    /// The sizes, as people read them.
    pub fn sizes(&self) -> String {
        let Parameters { output_size: [width, height], working_size: [wide, high], .. } = self.parameters;
        format!("{width}x{height}, worked on at {wide}x{high}")
    }

    /// `begun`: seconds from the job's start to the edit's.
    pub(super) fn new(
        job: &EditJob,
        parameters: Parameters,
        edited: &Edited,
        place: &Place,
        begun: f64,
        original: Option<(usize, usize)>,
    ) -> Report {
        let (plan, took) = (&edited.plan, &edited.seconds);
        let planned = begun + took.plan;
        let ready = planned + took.prepare;
        let mut seconds = BTreeMap::from([("load", planned), ("prepare", took.prepare)]);
        seconds.extend(took.stages.iter().copied());
        seconds.insert("total", job.started.elapsed().as_secs_f64());
        let on_gpu = place.device().is_some();
        Report {
            parameters,
            output: job.output.to_string(),
            input_size: original.map(|(width, height)| [width, height]),
            device: place.name(),
            seconds,
            seconds_since_start: SinceStart { planned, ready, first_step: ready + took.until_step },
            peak_bytes: PeakBytes {
                arena: plan.arena_bytes,
                resident: peak_resident_bytes(),
                device: edited.device_bytes,
                weights: on_gpu.then_some(plan.weights.bytes),
                planned: on_gpu.then(|| plan.peak_bytes()),
            },
            residency: on_gpu.then(|| plan.weights.policy.to_string()),
        }
    }
}
