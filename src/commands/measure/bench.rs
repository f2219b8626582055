//! The `bench` command: seconds, memory and energy of a whole edit, cold and warm, and milliseconds of each stage while its
//! weights are on the device.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::meter::Meter;
use super::{cuda, gpu, sample};
use crate::cuda::{Ceilings, Device};
use crate::exec::{Executor, check_resident};
use crate::graph::BodyId;
use crate::pipeline::{
    Edited, Engine, LoraChoice, Made, Material, Model, ModelPath, Place, PlaceChoice, Progress, Purpose, Rules,
};
use crate::plan::Itinerary;

/// Edits to time.
#[derive(Clone, Debug)]
pub struct BenchJob {
    /// The model's folder or transformer file.
    pub model: ModelPath,
    /// LoRA files to merge into the model.
    pub loras: Vec<LoraChoice>,
    /// Working widths and heights.
    pub sizes: Vec<(usize, usize)>,
    /// What to do.
    pub prompt: String,
    /// The rules that the edit follows; none: the model's.
    pub rules: Option<Rules>,
    /// Denoising steps of the edit.
    pub steps: usize,
    /// Timed runs of each stage.
    pub runs: usize,
    /// Amounts of GPU memory to compare; none: one edit with all that is free, and each stage of it.
    pub budgets: Vec<usize>,
    /// The GPU.
    pub place: PlaceChoice,
    /// Report as one JSON object a size.
    pub json: bool,
}

/// Times an edit at each size and hands a report of each to `print`.
///
/// # Errors
/// No device, or whatever stops an edit.
pub fn run(job: &BenchJob, progress: &mut dyn Progress, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let (place, device) = gpu("bench", &job.place)?;
    for &size in &job.sizes {
        let report = Bench { job, place: &place, device: &device, size }.report(progress)?;
        print(&if job.json { format!("{}\n", json!(report)) } else { report.to_string() })?;
    }
    Ok(())
}

/// Seconds by stage, and of the whole as "edit".
type Seconds = BTreeMap<&'static str, f64>;

struct Bench<'a> {
    job: &'a BenchJob,
    place: &'a Place,
    device: &'a Arc<Device>,
    size: (usize, usize),
}

impl Bench<'_> {
    /// Two whole edits on one engine: for the first, everything is made and all weights come from the model's files; the
    /// second finds the program, its captured step, and the weights that no later stage displaced. Then each stage by itself.
    fn report(&self, progress: &mut dyn Progress) -> Result<Report> {
        let opening = Instant::now();
        let model = Model::open_parts(&self.job.model)?;
        model.adapt(&self.job.loras, progress)?;
        let open = opening.elapsed().as_secs_f64();
        let edit = sample(&model, self.size, &self.job.prompt, self.job.steps, self.job.rules, 0)?;
        let before = self.place.device_bytes_in_use();
        let mut engine = Engine::open(model, self.place.clone())?;
        let meter = Meter::new(self.device);
        let (cold, first) = meter.watch(|| engine.make(&edit, progress));
        let (cold, made) = (cold?, engine.made());
        check_resident(&cold.plan)?;
        let warming = Instant::now();
        let edit = sample(&engine.model, self.size, &self.job.prompt, self.job.steps, self.job.rules, 0)?;
        let inputs = warming.elapsed().as_secs_f64();
        let (warm, second) = meter.watch(|| engine.make(&edit, progress));
        let warm = warm?;
        let again = Again::new(made, engine.made());
        let rows = edit.spec().step_rows().total();
        let stages = self.stages(&mut engine, &edit)?;
        let warm = Seconds::from_iter(seconds(&warm).into_iter().chain([("inputs", inputs)]));
        let host_ms = host_ms(&warm, &stages);
        drop(engine); // the ceilings need its memory
        Ok(Report {
            device: self.place.measured_name(),
            size: [self.size.0, self.size.1],
            steps: self.job.steps,
            rules: edit.chosen().rules,
            rows,
            seconds: EditSeconds { open, cold: seconds(&cold), warm },
            again,
            host_ms,
            joules: Joules { cold: first.joules, warm: second.joules },
            device_bytes: DeviceBytes {
                planned: cold.plan.peak_bytes(),
                before,
                peak: [first.peak_bytes, second.peak_bytes].into_iter().max(),
            },
            stages,
            copy_gb_per_s: Ceilings::new(self.device, &self.job.place.setup)?.copy_gb_per_s()?,
        })
    }

    /// Each stage, run again and again while its weights are on the device.
    fn stages(&self, engine: &mut Engine, edit: &Material) -> Result<BTreeMap<&'static str, StageTimes>> {
        let (program, exec) = cuda(engine.ready(edit, Purpose::Measure)?)?;
        let bodies = &program.plan.graph.bodies;
        exec.begin(&Itinerary::of_all(&program.plan.graph))?;
        let mut stages = BTreeMap::new();
        for body in (0..bodies.len()).map(BodyId) {
            // The step's counter stays within its schedule.
            let is_step = body == program.tensors.bodies.step;
            let most = if is_step { self.job.steps.saturating_sub(2).max(1) } else { usize::MAX };
            stages.insert(bodies[body.0].name, StageTimes::of(exec.time_runs(body, self.job.runs.min(most))?));
        }
        Ok(stages)
    }
}

fn seconds(edited: &Edited) -> Seconds {
    let took = &edited.seconds;
    let whole = [("edit", took.total()), ("prepare", took.plan + took.prepare), ("until_step", took.until_step)];
    took.stages.iter().copied().chain(whole).collect()
}

/// Milliseconds of a warm edit in which the device had nothing to do: its whole time, picture and prompts brought into the
/// model's form included, less the steps, which follow each other without a gap, and the device's own time for other stages.
fn host_ms(warm: &Seconds, stages: &BTreeMap<&'static str, StageTimes>) -> f64 {
    let device: f64 = stages.iter().filter(|(name, _)| **name != "step").map(|(_, times)| times.median_ms).sum();
    1e3 * (warm["edit"] + warm["inputs"] - warm["step"]) - device
}

/// What was measured at one size. It prints as a table and serializes as one JSON object.
#[derive(Serialize)]
struct Report {
    device: String,
    /// Width and height.
    size: [usize; 2],
    steps: usize,
    rules: Rules,
    /// Rows of the transformer in a step.
    rows: usize,
    seconds: EditSeconds,
    again: Again,
    /// Of the warm edit, beyond the device's own time.
    host_ms: f64,
    joules: Joules,
    device_bytes: DeviceBytes,
    stages: BTreeMap<&'static str, StageTimes>,
    /// Read and written.
    copy_gb_per_s: f64,
}

#[derive(Serialize)]
struct EditSeconds {
    /// The model's files, opened and checked.
    open: f64,
    cold: Seconds,
    warm: Seconds,
}

/// What the warm edit made that the cold one had made already; all zero if the engine kept it.
#[derive(Serialize)]
struct Again {
    programs: usize,
    modules: usize,
    launches: usize,
    captures: usize,
    uploaded_bytes: u64,
}

impl Again {
    fn new(before: Made, after: Made) -> Again {
        let (device, earlier) = (after.on_device, before.on_device);
        Again {
            programs: after.programs - before.programs,
            modules: device.modules - earlier.modules,
            launches: device.launches - earlier.launches,
            captures: device.captures - earlier.captures,
            uploaded_bytes: device.uploaded_bytes - earlier.uploaded_bytes,
        }
    }
}

/// Energy of an edit; none without a meter.
#[derive(Serialize)]
struct Joules {
    cold: Option<f64>,
    warm: Option<f64>,
}

/// Of the device's memory; what is in use is in use by everyone.
#[derive(Serialize)]
struct DeviceBytes {
    planned: usize,
    before: Option<usize>,
    peak: Option<usize>,
}

/// Runs of a stage.
#[derive(Serialize)]
struct StageTimes {
    runs: usize,
    min_ms: f64,
    median_ms: f64,
    max_ms: f64,
}

impl StageTimes {
    fn of(mut times: Vec<f32>) -> StageTimes {
        times.sort_by(f32::total_cmp);
        let [min_ms, median_ms, max_ms] = [0, times.len() / 2, times.len() - 1].map(|at| f64::from(times[at]));
        StageTimes { runs: times.len(), min_ms, median_ms, max_ms }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ([width, height], bytes) = (self.size, &self.device_bytes);
        let gb = |bytes: usize| bytes as f64 / 1e9;
        let (planned, peak, before) = (gb(bytes.planned), gb(bytes.peak.unwrap_or(0)), gb(bytes.before.unwrap_or(0)));
        writeln!(f, "{} {width}x{height}, {} steps, {} rules, {} rows a step", self.device, self.steps, self.rules, self.rows)?;
        writeln!(f, "device memory: {planned:.2} GB planned, peak {peak:.2} GB in use, {before:.2} GB before")?;
        match (self.joules.cold, self.joules.warm) {
            (Some(cold), Some(warm)) => writeln!(f, "energy of an edit: {cold:.0} J cold, {warm:.0} J warm")?,
            _ => writeln!(f, "energy of an edit: not known, NVML (libnvidia-ml.so.1) has no meter of this device")?,
        }
        let Again { programs, modules, launches, captures, uploaded_bytes } = &self.again;
        writeln!(
            f,
            "the warm edit: {:.1} ms beyond the device's own time; made again: {programs} programs, {modules} kernels, {launches} \
             launches, {captures} captures, {:.2} GB of weights",
            self.host_ms,
            *uploaded_bytes as f64 / 1e9
        )?;
        writeln!(f, "copy bandwidth, read and written: {:.0} GB/s", self.copy_gb_per_s)?;
        writeln!(f, "model's files opened and checked: {:.3} s", self.seconds.open)?;
        writeln!(f, "{:<14}{:>10}{:>10}{:>14}{:>10}{:>10}", "stage", "cold s", "warm s", "median ms", "min", "max")?;
        for (name, cold) in &self.seconds.cold {
            let warm = self.seconds.warm.get(name).map_or_else(|| "-".to_string(), |warm| format!("{warm:.3}"));
            write!(f, "{name:<14}{cold:>10.3}{warm:>10}")?;
            if let Some(StageTimes { min_ms, median_ms, max_ms, .. }) = self.stages.get(name) {
                write!(f, "{median_ms:>14.2}{min_ms:>10.2}{max_ms:>10.2}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cold: Option<f64>, warm: Option<f64>) -> Report {
        Report {
            device: "cuda:0 Made-up".into(),
            size: [64, 48],
            steps: 4,
            rules: Rules::Official,
            rows: 12,
            seconds: EditSeconds {
                open: 0.5,
                cold: BTreeMap::from([("edit", 5.0), ("prepare", 1.0), ("step", 4.0)]),
                warm: BTreeMap::from([("edit", 3.5), ("step", 3.25)]),
            },
            again: Again::new(Made::default(), Made { programs: 1, ..Made::default() }),
            host_ms: 12.34,
            joules: Joules { cold, warm },
            device_bytes: DeviceBytes { planned: 27_000_000_000, before: Some(500_000_000), peak: Some(27_500_000_000) },
            stages: BTreeMap::from([("step", StageTimes::of(vec![641.0, 650.0, 630.0]))]),
            copy_gb_per_s: 3000.0,
        }
    }

    #[test]
    fn the_table_has_both_edits_and_says_what_is_not_known() {
        let table = report(None, None).to_string();
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.contains(&vec!["step", "4.000", "3.250", "641.00", "630.00", "650.00"]), "{table}");
        assert!(lines.contains(&vec!["prepare", "1.000", "-"]), "{table}");
        assert!(table.contains("12.3 ms beyond the device's own time; made again: 1 programs, 0 kernels"), "{table}");
        assert!(table.contains("peak 27.50 GB") && table.contains("energy of an edit: not known"), "{table}");
        assert!(report(Some(9000.4), Some(8000.6)).to_string().contains("9000 J cold, 8001 J warm"));
    }

    #[test]
    fn the_hosts_share_is_what_the_device_does_not_take() {
        let warm = BTreeMap::from([("edit", 3.55), ("inputs", 0.02), ("step", 3.25)]);
        let times = |ms| StageTimes::of(vec![ms; 3]);
        let stages = BTreeMap::from([("step", times(800.0)), ("text", times(300.0))]);
        assert!((host_ms(&warm, &stages) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn the_object_has_the_same_numbers() {
        let expected = json!({
            "device": "cuda:0 Made-up", "size": [64, 48], "steps": 4, "rules": "official", "rows": 12, "copy_gb_per_s": 3000.0,
            "seconds": {"open": 0.5, "cold": {"edit": 5.0, "prepare": 1.0, "step": 4.0}, "warm": {"edit": 3.5, "step": 3.25}},
            "again": {"programs": 1, "modules": 0, "launches": 0, "captures": 0, "uploaded_bytes": 0}, "host_ms": 12.34,
            "joules": {"cold": null, "warm": null},
            "device_bytes": {"planned": 27_000_000_000_u64, "before": 500_000_000, "peak": 27_500_000_000_u64},
            "stages": {"step": {"runs": 3, "min_ms": 630.0, "median_ms": 641.0, "max_ms": 650.0}},
        });
        assert_eq!(json!(report(None, None)), expected);
    }
}
