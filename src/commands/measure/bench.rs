//! The `bench` command: seconds, memory and energy of a whole edit, cold and warm, and milliseconds of each stage while its
//! weights are on the device.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::gpu;
use super::meter::{Meter, Taken};
use super::sample::Sample;
use crate::commands::PlaceChoice;
use crate::cuda::{Ceilings, Device};
use crate::exec::{Cuda, Executor};
use crate::pipeline::{Engine, Model, Program, Progress, run_stages};

/// Edits to time.
#[derive(Clone, Debug)]
pub struct BenchJob {
    /// The model's folder or transformer file.
    pub model: PathBuf,
    /// Working widths and heights.
    pub sizes: Vec<(usize, usize)>,
    /// What to do.
    pub prompt: String,
    /// Denoising steps of the edit.
    pub steps: usize,
    /// Timed runs of each stage.
    pub runs: usize,
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
    let (engine, device, precision) = gpu("bench", &job.place)?;
    let opening = Instant::now();
    let model = Model::open(&job.model)?;
    let open = opening.elapsed().as_secs_f64();
    for &size in &job.sizes {
        let edit = Sample::new(&model, &engine, precision, size, &job.prompt, job.steps, job.place.max_vram)?;
        let report = Bench { job, engine: &engine, device: &device, edit }.report(open, progress)?;
        print(&if job.json { format!("{}\n", json!(report)) } else { report.to_string() })?;
    }
    Ok(())
}

/// Seconds by stage, and of the whole as "edit".
type Seconds = BTreeMap<&'static str, f64>;

struct Bench<'a> {
    job: &'a BenchJob,
    engine: &'a Engine,
    device: &'a Arc<Device>,
    edit: Sample<'a>,
}

impl Bench<'_> {
    /// Two whole edits: the first makes its executor and all weights come from the model's files; the second finds the
    /// executor, its captured step, and the weights that no later stage displaced. Then each stage by itself.
    fn report(&self, open: f64, progress: &mut dyn Progress) -> Result<Report> {
        let before = self.engine.device_bytes_in_use();
        let meter = Meter::new(self.device);
        let planning = Instant::now();
        let program = self.edit.program()?;
        let (exec, prepared) = meter.watch(|| self.engine.executor(&program.plan, self.edit.model, &self.job.place.setup));
        let mut exec = exec?;
        let prepare = Seconds::from([("prepare", planning.elapsed().as_secs_f64())]);
        let (cold, first) = meter.watch(|| self.edit(&mut *exec, &program, prepare, progress));
        let cold = cold?;
        let (warm, second) = meter.watch(|| self.edit(&mut *exec, &program, Seconds::new(), progress));
        let warm = warm?;
        drop(exec);
        let peak = [&prepared, &first, &second].map(|taken| taken.peak_bytes).into_iter().max();
        let of_both = |a: &Taken, b: &Taken| Some(a.joules? + b.joules?);
        Ok(Report {
            device: self.engine.name(),
            size: self.edit.size(),
            steps: self.job.steps,
            rows: program.spec.step_rows().total(),
            seconds: EditSeconds { open, cold, warm },
            joules: Joules { cold: of_both(&prepared, &first), warm: second.joules },
            device_bytes: DeviceBytes { planned: program.plan.peak_bytes(), before, peak },
            stages: self.stages()?,
            copy_gb_per_s: Ceilings::new(self.device, &self.job.place.setup)?.copy_gb_per_s()?,
        })
    }

    /// Runs an edit; gives its seconds by stage beside those it is given, and as "edit" their sum.
    fn edit(
        &self,
        exec: &mut dyn Executor,
        program: &Program,
        mut seconds: Seconds,
        progress: &mut dyn Progress,
    ) -> Result<Seconds> {
        let earlier: f64 = seconds.values().sum();
        let running = Instant::now();
        self.edit.write_inputs(exec, program)?;
        run_stages(exec, program, progress, &mut seconds, &[])?;
        seconds.insert("edit", earlier + running.elapsed().as_secs_f64());
        Ok(seconds)
    }

    /// Each stage, run again and again while its weights are on the device.
    fn stages(&self) -> Result<BTreeMap<&'static str, StageTimes>> {
        let program = self.edit.repeatable()?;
        let mut exec = Cuda::new(&program.plan, self.edit.model.folder.clone(), self.device, &self.job.place.setup)?;
        self.edit.write_inputs(&mut exec, &program)?;
        let names: Vec<&str> = program.plan.graph.stages.iter().map(|s| s.name).collect();
        exec.begin(&names)?;
        let mut stages = BTreeMap::new();
        for name in names {
            // The step's counter stays within its schedule.
            let most = if name == "step" { self.job.steps.saturating_sub(2).max(1) } else { usize::MAX };
            stages.insert(name, StageTimes::of(exec.time_runs(name, self.job.runs.min(most))?));
        }
        Ok(stages)
    }
}

/// What was measured at one size. It prints as a table and serializes as one JSON object.
#[derive(Serialize)]
struct Report {
    device: String,
    /// Width and height.
    size: [usize; 2],
    steps: usize,
    /// Rows of the transformer in a step.
    rows: usize,
    seconds: EditSeconds,
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
        writeln!(f, "{} {width}x{height}, {} steps, {} rows a step", self.device, self.steps, self.rows)?;
        writeln!(f, "device memory: {planned:.2} GB planned, peak {peak:.2} GB in use, {before:.2} GB before")?;
        match (self.joules.cold, self.joules.warm) {
            (Some(cold), Some(warm)) => writeln!(f, "energy of an edit: {cold:.0} J cold, {warm:.0} J warm")?,
            _ => writeln!(f, "energy of an edit: not known, NVML (libnvidia-ml.so.1) has no meter of this device")?,
        }
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
            rows: 12,
            seconds: EditSeconds {
                open: 0.5,
                cold: BTreeMap::from([("edit", 5.0), ("prepare", 1.0), ("step", 4.0)]),
                warm: BTreeMap::from([("edit", 3.5), ("step", 3.25)]),
            },
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
        assert!(table.contains("peak 27.50 GB") && table.contains("energy of an edit: not known"), "{table}");
        assert!(report(Some(9000.4), Some(8000.6)).to_string().contains("9000 J cold, 8001 J warm"));
    }

    #[test]
    fn the_object_has_the_same_numbers() {
        let expected = json!({
            "device": "cuda:0 Made-up", "size": [64, 48], "steps": 4, "rows": 12, "copy_gb_per_s": 3000.0,
            "seconds": {"open": 0.5, "cold": {"edit": 5.0, "prepare": 1.0, "step": 4.0}, "warm": {"edit": 3.5, "step": 3.25}},
            "joules": {"cold": null, "warm": null},
            "device_bytes": {"planned": 27_000_000_000_u64, "before": 500_000_000, "peak": 27_500_000_000_u64},
            "stages": {"step": {"runs": 3, "min_ms": 630.0, "median_ms": 641.0, "max_ms": 650.0}},
        });
        assert_eq!(json!(report(None, None)), expected);
    }
}
