//! The `verify` command: a recorded edit of the official code, computed again.
//!
//! Three files hold an edit: its inputs, what the official bf16 code made of them, and what the same modules give in
//! float32 arithmetic from the same inputs (the truth). A result is good if it is no farther from the truth than the
//! official code itself is. The whole edit has no truth; its picture must be close to
//! the official one. Two bf16 text encoders that round at the same places differ by more than either from the truth, and
//! the picture follows: edits from the recorded embeddings, and from the true ones, show what that contributes.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::cli::{self, VerifyArgs};
use crate::exec::{Executor, read_f32};
use crate::graph::TensorId;
use crate::image::Rgb;
use crate::model::edit::{NoiseSource, Savings};
use crate::ops::{HostValues, Values};
use crate::pipeline::{Engine, HostInputs, Model, Program, Progress, Request, run_stages};
use crate::prompt;
use crate::sampling::{pack_noise, schedule};
use crate::tensor::DType;
use crate::weights::ModelError;

/// Largest distance to the truth, in distances of the official code.
const FARTHER: f64 = 1.05;
/// Least peak signal-to-noise ratio against the official picture, in dB.
const PICTURE_DB: f64 = 42.0;

/// Runs the edit; gives the table, and an error if a distance is too large.
///
/// # Errors
/// Files that are missing or do not fit each other or the model, or whatever stops an edit.
pub fn run(args: &VerifyArgs, progress: &mut dyn Progress) -> Result<(String, Result<()>)> {
    args.memory.check(args.device)?;
    let golden = Golden::open(&args.golden, &args.name)?;
    let setup = cli::setup();
    let (engine, precision) = Engine::choose(args.device, None, &setup)?;
    let model = Model::open(&args.model)?;
    let recorded = Recorded::new(&golden, &model)?;
    let mut program = Program::new(&model.config, &model.settings, &recorded.request(), precision, engine.target())?;
    engine.fit(&mut program.plan, args.memory.max_vram)?;
    let mut exec = engine.executor(&program.plan, &model, &setup)?;
    let mut table = Table { rows: vec![] };
    let tokens = recorded.whole(&mut *exec, &model, &program, progress, &mut table)?;
    recorded.with_other_embeddings(&mut *exec, &model, &program, &tokens, &mut table)?;
    recorded.steps(&mut *exec, &model, &program, &mut table)?;
    let held = match table.failures() {
        names if names.is_empty() => Ok(()),
        names => Err(anyhow::anyhow!("{} of {} results are too far off: {}", names.len(), table.rows.len(), names.join(", "))),
    };
    let title = format!("{} on {}, {precision}", args.name, engine.name());
    let text = if args.json { format!("{:#}\n", table.json(&title)) } else { table.text(&title)? };
    Ok((text, held))
}

/// The recorded files.
struct Golden {
    inputs: Tensors,
    official: Tensors,
    truth: Tensors,
}

/// A safetensors file, read whole.
struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl Golden {
    fn open(folder: &Path, name: &str) -> Result<Golden> {
        let open = |suffix: &str| Tensors::open(folder.join(format!("{name}{suffix}.safetensors")));
        Ok(Golden { inputs: open("_inputs")?, official: open("")?, truth: open("_truth")? })
    }
}

impl Tensors {
    fn open(path: PathBuf) -> Result<Tensors> {
        let bytes = std::fs::read(&path).map_err(|e| ModelError::new(format!("{}: cannot read it: {e}", path.display())))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| ModelError::new(format!("{}: no safetensors file: {e}", path.display())))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Tensors { path, bytes, metadata })
    }

    fn raw(&self, name: &str) -> Result<(Dtype, Vec<usize>, &[u8])> {
        let all = SafeTensors::deserialize(&self.bytes)?;
        let view = all.tensor(name).with_context(|| format!("{} lacks {name}", self.path.display()))?;
        Ok((view.dtype(), view.shape().to_vec(), view.data()))
    }

    fn has(&self, name: &str) -> bool {
        self.raw(name).is_ok()
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let (dtype, _, bytes) = self.raw(name)?;
        Ok(match dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            other => bail!("{}: {name} is {other:?}, not a float tensor", self.path.display()),
        })
    }

    fn integers(&self, name: &str) -> Result<Vec<i32>> {
        let (dtype, _, bytes) = self.raw(name)?;
        ensure!(dtype == Dtype::I32, "{}: {name} is {dtype:?}, not I32", self.path.display());
        Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
    }

    fn picture(&self, name: &str) -> Result<Rgb> {
        let (dtype, shape, bytes) = self.raw(name)?;
        let [height, width, 3] = shape[..] else { bail!("{}: {name} is no picture", self.path.display()) };
        ensure!(dtype == Dtype::U8, "{}: {name} is {dtype:?}, not U8", self.path.display());
        Ok(Rgb { width, height, data: bytes.to_vec() })
    }

    fn text(&self, key: &str) -> Result<&str> {
        let found = self.metadata.get(key).map(String::as_str);
        found.with_context(|| format!("{}: the header lacks {key}", self.path.display()))
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<T> {
        let text = self.text(key)?;
        text.parse().ok().with_context(|| format!("{}: the header's {key} is {text}", self.path.display()))
    }
}

/// The edit that was recorded.
struct Recorded<'a> {
    golden: &'a Golden,
    working: Rgb,
    patches: prompt::Patches,
    tokens: Vec<prompt::PromptTokens>,
    steps: usize,
    cfg_scale: f32,
    seed: u64,
}

/// Names of the branches in the files.
const BRANCHES: [&str; 2] = ["cond", "uncond"];

impl<'a> Recorded<'a> {
    fn new(golden: &'a Golden, model: &Model) -> Result<Recorded<'a>> {
        let (inputs, official) = (&golden.inputs, &golden.official);
        let working = inputs.picture("rgb")?;
        let patches = prompt::patches(&working, &model.settings)?;
        let mut tokens = Vec::new();
        for (branch, text) in BRANCHES.iter().zip([official.text("prompt")?, ""]) {
            let ours = model.tokenizer.encode_prompt(text, patches.image_tokens())?;
            let recorded = inputs.integers(&format!("{branch}.input_ids"))?;
            let same = ours.ids.len() == recorded.len() && ours.ids.iter().zip(&recorded).all(|(a, b)| *a as i64 == *b as i64);
            ensure!(same, "the model's tokenizer gives other {branch} tokens than were recorded; take the recorded release");
            tokens.push(ours);
        }
        let pixels = inputs.floats("pixel_values")?;
        ensure!(pixels.len() == patches.pixel_values.len(), "the picture has other patches than were recorded");
        let (steps, cfg_scale, seed) = (official.number("steps")?, official.number("cfg")?, official.number("seed")?);
        Ok(Recorded { golden, working, patches, tokens, steps, cfg_scale, seed })
    }

    fn request(&self) -> Request<'_> {
        Request {
            size: (self.working.width, self.working.height),
            reference: true,
            grid: self.patches.grid,
            tokens: &self.tokens,
            steps: self.steps,
            cfg_scale: self.cfg_scale,
            noise: NoiseSource::Host,
            sample_posterior: false,
            savings: Savings::ALL,
        }
    }

    /// Writes every input; the noise is the recorded one.
    fn write_inputs(&self, exec: &mut dyn Executor, model: &Model, program: &Program) -> Result<()> {
        let (working, patches) = (Some(&self.working), &self.patches);
        let host = HostInputs { working, patches, seed: self.seed, guidance_limit: 0.93 };
        for (id, values) in program.inputs(&model.config, &host) {
            exec.write(id, values.values())?;
        }
        let (h, w) = program.spec.latent;
        let noise = pack_noise(&self.golden.official.floats("noise")?, h, w, DType::BF16);
        exec.write(program.tensors.denoised.latents, Values::F32(&noise))
    }

    /// The whole edit from the recorded noise; gives our reference as tokens.
    fn whole(
        &self,
        exec: &mut dyn Executor,
        model: &Model,
        program: &Program,
        progress: &mut dyn Progress,
        table: &mut Table,
    ) -> Result<Vec<f32>> {
        let (official, truth, t) = (&self.golden.official, &self.golden.truth, &program.tensors);
        let times = schedule(self.steps, program.spec.step_rows().tokens());
        let same = times.iter().zip(official.floats("timesteps")?).all(|(a, b)| (a - b).abs() < 1e-6);
        ensure!(same, "the recorded times are not those of {} steps", self.steps);

        self.write_inputs(exec, model, program)?;
        let mut caught = Caught { ours: HashMap::new(), progress };
        let reference = t.reference_latent.context("an edit has a reference")?;
        let watched = [("vae_encode", reference), ("text", t.embedding), ("step", t.denoised.latents)];
        let pixels = run_stages(exec, program, &mut caught, &mut Default::default(), &watched)?;
        let Caught { mut ours, .. } = caught;
        let mut take = |name: &str| ours.remove(name).with_context(|| format!("nothing came of {name}"));

        let (h, w) = program.spec.latent;
        let latent = channels_first(&take("vae_encode")?, h * w);
        table.add("ref_latent", &latent, official.floats("ref_latent")?, Some(truth.floats("ref_latent")?))?;
        let embedding = take("text")?;
        let width = model.config.text.hidden;
        for (b, branch) in BRANCHES.iter().enumerate() {
            let name = format!("{branch}.llm_embedding");
            let rows = program.spec.prompt.branch(b).start..program.spec.prompt.branch(b).start + program.spec.prompt.valid[b];
            let ours = &embedding[rows.start * width..rows.end * width];
            table.add(&name, ours, official.floats(&name)?, Some(truth.floats(&name)?))?;
        }
        table.add("final_packed", &take("step")?, official.floats("final_packed")?, None)?;
        table.add_picture("image", &pixels, &official.picture("image")?.data, Some(PICTURE_DB))?;
        Ok(pack_noise(&latent, h, w, DType::BF16))
    }

    /// The edit from other embeddings than ours, and the picture of the recorded latents: what the text encoder and what the
    /// decoder contribute to the picture's distance.
    fn with_other_embeddings(
        &self,
        exec: &mut dyn Executor,
        model: &Model,
        program: &Program,
        tokens: &[f32],
        table: &mut Table,
    ) -> Result<()> {
        let (official, t) = (&self.golden.official, &program.tensors);
        let picture = official.picture("image")?.data;
        for (what, tensors, least) in
            [("true embeddings", &self.golden.truth, None), ("recorded embeddings", official, Some(PICTURE_DB))]
        {
            self.write_inputs(exec, model, program)?;
            exec.write(t.embedding, Values::F32(&self.embedding(tensors, model, program)?))?;
            exec.write(t.reference_tokens.context("an edit has a reference")?, Values::F32(tokens))?;
            exec.begin(&["conditioning", "step", "vae_decode"])?;
            exec.run("conditioning", &mut |_| Ok(()))?;
            (0..self.steps).try_for_each(|_| exec.run("step", &mut |_| Ok(())))?;
            let latents = read_f32(exec, t.denoised.latents)?;
            table.add(&format!("final_packed, {what}"), &latents, official.floats("final_packed")?, None)?;
            exec.run("vae_decode", &mut |_| Ok(()))?;
            table.add_picture(&format!("image, {what}"), &pixels(exec, t.pixels)?, &picture, least)?;
        }
        exec.write(t.denoised.latents, Values::F32(&official.floats("final_packed")?))?;
        exec.begin(&["vae_decode"])?;
        exec.run("vae_decode", &mut |_| Ok(()))?;
        table.add_picture("image, recorded latents", &pixels(exec, t.pixels)?, &picture, Some(PICTURE_DB))
    }

    /// A file's embeddings, as the transformer's stages take them.
    fn embedding(&self, tensors: &Tensors, model: &Model, program: &Program) -> Result<Vec<f32>> {
        let mut embedding = Vec::new();
        for (b, branch) in BRANCHES.iter().enumerate() {
            embedding.extend(tensors.floats(&format!("{branch}.llm_embedding"))?);
            embedding.resize(program.spec.prompt.branch(b).end * model.config.text.hidden, 0.0);
        }
        Ok(embedding)
    }

    /// The recorded reference as tokens.
    fn reference(&self, program: &Program) -> Result<Vec<f32>> {
        let (h, w) = program.spec.latent;
        Ok(pack_noise(&self.golden.official.floats("ref_latent")?, h, w, DType::BF16))
    }

    /// Each recorded step from its recorded latents, embeddings and reference.
    fn steps(&self, exec: &mut dyn Executor, model: &Model, program: &Program, table: &mut Table) -> Result<()> {
        let (official, truth, t) = (&self.golden.official, &self.golden.truth, &program.tensors);
        self.write_inputs(exec, model, program)?;
        exec.write(t.embedding, Values::F32(&self.embedding(official, model, program)?))?;
        exec.write(t.reference_tokens.context("an edit has a reference")?, Values::F32(&self.reference(program)?))?;
        exec.begin(&["conditioning", "step"])?;
        exec.run("conditioning", &mut |_| Ok(()))?;
        for step in (0..self.steps).filter(|step| official.has(&format!("step{step}.x"))) {
            exec.write(t.denoised.latents, Values::F32(&official.floats(&format!("step{step}.x"))?))?;
            exec.write(t.denoised.counter, Values::I32(&[step as i32]))?;
            exec.run("step", &mut |_| Ok(()))?;
            let velocity = read_f32(exec, t.denoised.velocity)?;
            for (branch, ours) in BRANCHES.iter().zip(velocity.chunks(velocity.len() / 2)) {
                let name = format!("step{step}.{branch}");
                table.add(&name, ours, official.floats(&name)?, Some(truth.floats(&name)?))?;
            }
        }
        Ok(())
    }
}

/// Keeps tensors that stages leave, for a caller that otherwise only watches.
struct Caught<'p> {
    ours: HashMap<&'static str, Vec<f32>>,
    progress: &'p mut dyn Progress,
}

impl Progress for Caught<'_> {
    fn device(&mut self, engine: &Engine) {
        self.progress.device(engine);
    }

    fn stage(&mut self, name: &str, run: usize, runs: usize) -> Result<()> {
        self.progress.stage(name, run, runs)
    }

    fn node(&mut self) -> Result<()> {
        self.progress.node()
    }

    fn notice(&mut self, text: &str) {
        self.progress.notice(text);
    }

    fn result(&mut self, stage: &'static str, values: Vec<f32>) {
        self.ours.insert(stage, values);
    }
}

fn pixels(exec: &mut dyn Executor, id: TensorId) -> Result<Vec<u8>> {
    match exec.read(id)? {
        HostValues::U8(values) => Ok(values),
        _ => bail!("not a picture"),
    }
}

/// [pixels, C] to [C, pixels].
fn channels_first(values: &[f32], pixels: usize) -> Vec<f32> {
    let channels = values.len() / pixels;
    (0..values.len()).map(|i| values[i % pixels * channels + i / pixels]).collect()
}

/// Distances of one result.
struct Row {
    name: String,
    /// Relative L2 of ours and of the official result to the truth.
    truth: Option<(f64, f64)>,
    /// Relative L2 of ours to the official result.
    official: f64,
    /// Peak signal-to-noise ratio of a picture, and the least that will do.
    decibels: Option<(f64, Option<f64>)>,
}

struct Table {
    rows: Vec<Row>,
}

/// ‖a − b‖ / ‖b‖ in f64.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square((a - b) as f64)).sum();
    (apart / b.iter().map(|b| square(*b as f64)).sum::<f64>()).sqrt()
}

impl Table {
    fn add(&mut self, name: &str, ours: &[f32], official: Vec<f32>, truth: Option<Vec<f32>>) -> Result<()> {
        let fits = ours.len() == official.len() && truth.as_ref().is_none_or(|t| t.len() == ours.len());
        ensure!(fits, "{name}: {} values, {} are recorded", ours.len(), official.len());
        let truth = truth.map(|t| (distance(ours, &t), distance(&official, &t)));
        self.rows.push(Row { name: name.into(), truth, official: distance(ours, &official), decibels: None });
        Ok(())
    }

    fn add_picture(&mut self, name: &str, ours: &[u8], official: &[u8], least: Option<f64>) -> Result<()> {
        ensure!(ours.len() == official.len(), "{name}: {} values, {} are recorded", ours.len(), official.len());
        let wide = |p: &[u8]| p.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let (a, b) = (wide(ours), wide(official));
        let square: f64 = a.iter().zip(&b).map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>() / a.len() as f64;
        let decibels = Some((10.0 * (255.0 * 255.0 / square).log10(), least));
        self.rows.push(Row { name: name.into(), truth: None, official: distance(&a, &b), decibels });
        Ok(())
    }

    /// Results that are too far off, or not numbers.
    fn failures(&self) -> Vec<&str> {
        let enough = |&(db, least): &(f64, Option<f64>)| least.is_none_or(|least| db >= least);
        let near = |&(ours, official): &(f64, f64)| ours <= FARTHER * official;
        let good = |row: &&Row| {
            row.truth.as_ref().is_none_or(near) && row.decibels.as_ref().is_none_or(enough) && row.official.is_finite()
        };
        self.rows.iter().filter(|row| !good(row)).map(|row| row.name.as_str()).collect()
    }

    fn text(&self, title: &str) -> Result<String> {
        let mut text =
            format!("{title}\nrelative L2 distance                ours-truth  official-truth   ratio  ours-official\n");
        for row in &self.rows {
            write!(text, "{:<34}", row.name)?;
            match row.truth {
                Some((ours, official)) => write!(text, "{ours:>12.3e}{official:>16.3e}{:>8.3}", ours / official)?,
                None => write!(text, "{:>36}", "")?,
            }
            write!(text, "{:>15.3e}", row.official)?;
            row.decibels.map_or(Ok(()), |(db, _)| write!(text, "  {db:.1} dB"))?;
            writeln!(text)?;
        }
        Ok(text)
    }

    fn json(&self, title: &str) -> Value {
        let row = |row: &Row| {
            let (ours, official) = row.truth.unzip();
            json!({"name": row.name, "ours_truth": ours, "official_truth": official, "ours_official": row.official, "psnr_db": row.decibels.map(|(db, _)| db)})
        };
        json!({"run": title, "rows": self.rows.iter().map(row).collect::<Vec<_>>(), "too_far": self.failures()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_and_their_bounds() {
        assert_eq!(distance(&[3.0, 4.0], &[0.0, 5.0]), (10f64).sqrt() / 5.0);
        let mut table = Table { rows: vec![] };
        table.add("close", &[1.01], vec![1.0], Some(vec![1.02])).unwrap();
        table.add("far", &[1.1], vec![1.0], Some(vec![1.02])).unwrap();
        table.add("nan", &[f32::NAN], vec![1.0], None).unwrap();
        table.add_picture("dark", &[0; 3], &[255; 3], Some(42.0)).unwrap();
        table.add_picture("equal", &[7; 3], &[7; 3], Some(42.0)).unwrap();
        table.add_picture("shown", &[0; 3], &[255; 3], None).unwrap();
        assert_eq!(table.failures(), ["far", "nan", "dark"]);
        assert!(table.add("short", &[1.0], vec![], None).is_err());
        assert!(table.text("t").unwrap().contains("close") && table.json("t")["too_far"][0] == "far");
    }

    #[test]
    fn channels_come_first() {
        assert_eq!(channels_first(&[1.0, 10.0, 2.0, 20.0, 3.0, 30.0], 3), [1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
    }
}
