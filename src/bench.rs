//! The `bench` command: seconds of a whole edit by stage, and milliseconds of each stage while its weights are on the
//! device. And `compare`: the same edit, node by node against the reference.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cli::{self, BenchArgs, CompareArgs, MemoryArgs};
use crate::cuda::{Device, Setup};
use crate::error::usage;
use crate::exec::{self, Cuda, Executor};
use crate::image::Rgb;
use crate::model::edit::{NoiseSource, Savings};
use crate::ops::{H100_GRID_THREADS, Values};
use crate::pipeline::{Engine, HostInputs, Model, Program, Progress, Request, run_stages};
use crate::plan::{Plan, Precision};
use crate::prompt::{self, Patches};

const SEED: u64 = 42;

/// Times an edit at each size and hands a report of each to `print`.
///
/// # Errors
/// No device, or whatever stops an edit.
pub fn run(args: &BenchArgs, progress: &mut dyn Progress, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let setup = cli::setup();
    let (engine, precision) = Engine::choose(args.device, Some(Precision::Bf16), &setup)?;
    let Engine::Cuda(device) = &engine else { bail!(usage(anyhow::anyhow!("bench times a GPU: say --device cuda"))) };
    let model = Model::open(&args.model)?;
    for &size in &args.size {
        let edit = Synthetic::new(&model, &engine, precision, size, &args.prompt, args.steps as usize, args.memory)?;
        let bench = Bench { args, setup: &setup, device, edit };
        let report = bench.report(progress)?;
        print(&if args.json { format!("{report}\n") } else { text(&report)? })?;
    }
    Ok(())
}

/// Compares an edit's stages node by node and prints, for each, the farthest output of every kernel.
///
/// # Errors
/// No device, nodes that differ, or whatever stops an edit.
pub fn compare(args: &CompareArgs, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let setup = cli::setup();
    let (engine, precision) = Engine::choose(args.device, Some(Precision::Bf16), &setup)?;
    let Engine::Cuda(device) = &engine else { bail!(usage(anyhow::anyhow!("compare needs a GPU: say --device cuda"))) };
    let model = Model::open(&args.model)?;
    let edit = Synthetic::new(&model, &engine, precision, args.size, &args.prompt, 3, args.memory)?;
    let program = edit.program()?;
    let names: Vec<&str> = program.plan.graph.stages.iter().map(|s| s.name).collect();
    if let Some(unknown) = args.stage.iter().find(|stage| !names.contains(&stage.as_str())) {
        return Err(usage(anyhow::anyhow!("--stage {unknown}: the stages are {}", names.join(", "))));
    }
    let mut exec = Cuda::new(&program.plan, model.folder.clone(), device, &setup)?;
    edit.write_inputs(&mut exec, &program)?;
    exec.begin(&names)?;
    let mut differing = Vec::new();
    for name in names {
        if !(args.stage.is_empty() || args.stage.iter().any(|stage| stage == name)) {
            exec.run(name, &mut |_| Ok(()))?;
            continue;
        }
        let report = exec::compare(&mut exec, name, args.go_on)?;
        print(&format!("{name}\n{report}"))?;
        differing.extend(report.differing);
        if !(args.go_on || differing.is_empty()) {
            break;
        }
    }
    match differing.first() {
        Some(first) => bail!("{} outputs differ; the first: {first}", differing.len()),
        None => Ok(()),
    }
}

/// An edit of a made-up picture.
struct Synthetic<'a> {
    model: &'a Model,
    engine: &'a Engine,
    precision: Precision,
    picture: Rgb,
    patches: Patches,
    prompt: &'a str,
    steps: usize,
    memory: MemoryArgs,
}

impl<'a> Synthetic<'a> {
    fn new(
        model: &'a Model,
        engine: &'a Engine,
        precision: Precision,
        (width, height): (usize, usize),
        prompt: &'a str,
        steps: usize,
        memory: MemoryArgs,
    ) -> Result<Synthetic<'a>> {
        let fits = |side: usize| side.is_multiple_of(16) && (16..=4096).contains(&side);
        if !(fits(width) && fits(height)) {
            return Err(usage(anyhow::anyhow!("--size {width}x{height}: sides are multiples of 16 up to 4096")));
        }
        let picture = Rgb { width, height, data: (0..width * height * 3).map(|i| (i / 3 * 7 + i / width) as u8).collect() };
        let patches = prompt::patches(&picture, &model.settings).map_err(usage)?;
        Ok(Synthetic { model, engine, precision, picture, patches, prompt, steps, memory })
    }

    fn program(&self) -> Result<Program> {
        let encode = |text| self.model.tokenizer.encode_prompt(text, self.patches.image_tokens()).map_err(usage);
        let request = Request {
            size: (self.picture.width, self.picture.height),
            reference: true,
            grid: self.patches.grid,
            tokens: &[encode(self.prompt)?, encode("")?],
            steps: self.steps,
            cfg_scale: 6.0,
            noise: NoiseSource::Philox { seed: SEED, grid_threads: H100_GRID_THREADS },
            sample_posterior: false,
            savings: Savings::ALL,
        };
        let (config, settings) = (&self.model.config, &self.model.settings);
        let mut program = Program::new(config, settings, &request, self.precision, self.engine.target())?;
        self.engine.fit(&mut program.plan, self.memory.max_vram)?;
        Ok(program)
    }

    fn write_inputs(&self, exec: &mut dyn Executor, program: &Program) -> Result<()> {
        let (working, patches) = (Some(&self.picture), &self.patches);
        let host = HostInputs { working, patches, seed: SEED, guidance_limit: 0.93 };
        let inputs = program.inputs(&self.model.config, &host);
        inputs.into_iter().try_for_each(|(id, values)| exec.write(id, values.values()))
    }
}

/// What was timed while the weights were on the device.
struct Warm {
    /// Milliseconds by stage.
    stages: BTreeMap<String, Value>,
    /// Sums by stage and kind of op.
    ops: BTreeMap<String, Value>,
    /// The device's own copy, in GB/s read and written.
    copy: f64,
}

struct Bench<'a> {
    args: &'a BenchArgs,
    setup: &'a Setup,
    device: &'a Arc<Device>,
    edit: Synthetic<'a>,
}

impl Bench<'_> {
    fn report(&self, progress: &mut dyn Progress) -> Result<Value> {
        let (edit, program) = (&self.edit, self.edit.program()?);
        let (model, engine) = (edit.model, edit.engine);
        // A real edit: weights come from the model's files and leave with their stage.
        let before = engine.device_bytes_in_use();
        let mut seconds = BTreeMap::new();
        let preparing = Instant::now();
        let mut exec = engine.executor(&program.plan, model, self.setup)?;
        edit.write_inputs(&mut *exec, &program)?;
        seconds.insert("prepare", preparing.elapsed().as_secs_f64());
        let running = Instant::now();
        run_stages(&mut *exec, model, &program, progress, &mut seconds, &[])?;
        seconds.insert("edit", running.elapsed().as_secs_f64());
        let in_use = engine.device_bytes_in_use();
        drop(exec);

        let mut report = json!({
            "device": engine.name(), "size": [edit.picture.width, edit.picture.height], "steps": self.args.steps, "rows": program.spec.step_rows().total(),
            "residency": program.plan.weights.policy.to_string(), "seconds": seconds,
            "device_bytes": {"planned": program.plan.peak_bytes(), "before": before, "during": in_use},
        });
        let Warm { stages, ops, copy } = self.stages()?;
        report["copy_gb_per_s"] = json!(copy);
        report["stages"] = json!(stages);
        if self.args.ops {
            report["ops"] = json!(ops);
        }
        Ok(report)
    }

    /// Runs each stage again and again while its weights are on the device.
    fn stages(&self) -> Result<Warm> {
        let (edit, mut program) = (&self.edit, self.edit.program()?);
        // Stages that repeat keep what they start from, so that they can be run again and again.
        program.plan.graph.stages.iter_mut().for_each(|stage| stage.repeat = stage.repeat.max(2));
        program.plan = Plan::new(program.plan.graph, edit.precision, edit.engine.target())?;
        edit.engine.fit(&mut program.plan, None)?; // more is kept than an edit needs
        let mut exec = Cuda::new(&program.plan, edit.model.folder.clone(), self.device, self.setup)?;
        edit.write_inputs(&mut exec, &program)?;
        let names: Vec<&str> = program.plan.graph.stages.iter().map(|s| s.name).collect();
        exec.begin(&names)?;
        let (mut stages, mut ops) = (BTreeMap::new(), BTreeMap::new());
        for name in names {
            // The step's counter stays within its schedule.
            let most = if name == "step" { (self.args.steps as usize).saturating_sub(2).max(1) } else { usize::MAX };
            let mut times = exec.time_runs(name, (self.args.runs as usize).min(most))?;
            if self.args.ops {
                exec.write(program.tensors.denoised.counter, Values::I32(&[0]))?;
                ops.insert(name.to_string(), by_op(&program.plan, name, &exec.time_nodes(name)?));
            }
            times.sort_by(f32::total_cmp);
            let (first, last) = (times[0], times[times.len() - 1]);
            stages.insert(
                name.to_string(),
                json!({"runs": times.len(), "min_ms": first, "median_ms": times[times.len() / 2], "max_ms": last}),
            );
        }
        let copy = exec.copy_bandwidth()?;
        Ok(Warm { stages, ops, copy })
    }
}

/// Sums of a stage's nodes by kernel and shape: number, milliseconds, achieved TFLOP/s and GB/s.
fn by_op(plan: &Plan, stage: &str, times: &[f32]) -> Value {
    let mut sums: BTreeMap<String, (usize, f64, u64, u64)> = BTreeMap::new();
    let nodes = plan.graph.stage_named(stage).map_or(0..0, |s| s.nodes.clone());
    for (at, &ms) in nodes.zip(times) {
        let node = &plan.graph.nodes[at];
        let (inputs, outputs) = plan.graph.specs(node);
        let cost = node.op.cost(&inputs, &outputs);
        let what = match node.op.kind() {
            "linear" | "conv2d" => format!("{} {} {}", node.op.kind(), inputs[0], inputs[1]),
            _ => format!("{} {}", plan.kernels[at], inputs.first().unwrap_or(&outputs[0])),
        };
        let sum = sums.entry(what).or_default();
        *sum = (sum.0 + 1, sum.1 + ms as f64, sum.2 + cost.flops, sum.3 + cost.bytes);
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let row = |(what, (count, ms, flops, bytes)): (String, (usize, f64, u64, u64))| json!({"op": what, "count": count, "ms": ms, "tflops": flops as f64 / ms / 1e9, "gb_per_s": bytes as f64 / ms / 1e6});
    rows.into_iter().map(row).collect()
}

fn text(report: &Value) -> Result<String> {
    let number = |v: &Value| v.as_f64().unwrap_or(0.0);
    let mut text = format!(
        "{} {}x{}, {} steps, {} rows a step\n",
        report["device"].as_str().unwrap_or_default(),
        report["size"][0],
        report["size"][1],
        report["steps"],
        report["rows"]
    );
    let gb = |key: &str| number(&report["device_bytes"][key]) / 1e9;
    writeln!(
        text,
        "device memory: {:.2} GB planned, {:.2} GB in use during the edit, {:.2} GB before",
        gb("planned"),
        gb("during"),
        gb("before")
    )?;
    writeln!(text, "copy bandwidth, read and written: {:.0} GB/s", number(&report["copy_gb_per_s"]))?;
    writeln!(text, "{:<14}{:>10}{:>14}{:>10}{:>10}", "stage", "edit s", "warm ms", "min", "max")?;
    for (name, seconds) in report["seconds"].as_object().into_iter().flatten() {
        write!(text, "{name:<14}{:>10.3}", number(seconds))?;
        if let Some(stage) = report["stages"].get(name) {
            let [median, min, max] = ["median_ms", "min_ms", "max_ms"].map(|key| number(&stage[key]));
            write!(text, "{median:>14.2}{min:>10.2}{max:>10.2}")?;
        }
        writeln!(text)?;
    }
    for (stage, rows) in report["ops"].as_object().into_iter().flatten() {
        writeln!(text, "\n{stage:<90}{:>6}{:>10}{:>10}{:>10}", "count", "ms", "TFLOP/s", "GB/s")?;
        for row in rows.as_array().into_iter().flatten() {
            let [ms, tflops, gb] = ["ms", "tflops", "gb_per_s"].map(|key| number(&row[key]));
            writeln!(
                text,
                "{:<120}{:>6}{ms:>10.3}{tflops:>10.1}{gb:>10.0}",
                row["op"].as_str().unwrap_or_default(),
                row["count"]
            )?;
        }
    }
    Ok(text)
}
