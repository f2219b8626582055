//! The `bench` command: seconds, memory and energy of a whole edit, cold and warm, and milliseconds of each stage while its
//! weights are on the device.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use super::gpu;
use super::meter::Meter;
use super::sample::Sample;
use crate::cli::{self, BenchArgs};
use crate::cuda::{Ceilings, Device, Setup};
use crate::exec::{Cuda, Executor};
use crate::pipeline::{Engine, Model, Program, Progress, run_stages};

/// Times an edit at each size and hands a report of each to `print`.
///
/// # Errors
/// No device, or whatever stops an edit.
pub fn run(args: &BenchArgs, progress: &mut dyn Progress, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let setup = cli::setup();
    let (engine, device, precision) = gpu("bench times", args.device, &setup)?;
    let opening = Instant::now();
    let model = Model::open(&args.model)?;
    let open = opening.elapsed().as_secs_f64();
    for &size in &args.size {
        let edit = Sample::new(&model, &engine, precision, size, &args.prompt, args.steps as usize, args.memory.max_vram)?;
        let bench = Bench { args, setup: &setup, engine: &engine, device: &device, edit };
        let mut report = bench.edits(progress)?;
        report["seconds"]["open"] = json!(open);
        report["stages"] = json!(bench.stages()?);
        report["copy_gb_per_s"] = json!(Ceilings::new(&device, &setup)?.copy_gb_per_s()?);
        print(&if args.json { format!("{report}\n") } else { text(&report)? })?;
    }
    Ok(())
}

struct Bench<'a> {
    args: &'a BenchArgs,
    setup: &'a Setup,
    engine: &'a Engine,
    device: &'a Arc<Device>,
    edit: Sample<'a>,
}

impl Bench<'_> {
    /// Two whole edits: the first makes its executor and all weights come from the model's files; the second finds the
    /// executor, its captured step, and the weights that no later stage displaced.
    fn edits(&self, progress: &mut dyn Progress) -> Result<Value> {
        let before = self.engine.device_bytes_in_use();
        let meter = Meter::new(self.device);
        let mut seconds = BTreeMap::new();
        let planning = Instant::now();
        let program = self.edit.program()?;
        let (exec, prepared) = meter.watch(|| self.engine.executor(&program.plan, self.edit.model, self.setup));
        let mut exec = exec?;
        seconds.insert("prepare", planning.elapsed().as_secs_f64());
        let (cold, first) = meter.watch(|| self.edit(&mut *exec, &program, seconds, progress));
        let cold = cold?;
        let (warm, second) = meter.watch(|| self.edit(&mut *exec, &program, BTreeMap::new(), progress));
        let peak = [&prepared, &first, &second].map(|taken| taken.peak_bytes).into_iter().max();
        let cold_joules = prepared.joules.zip(first.joules).map(|(prepare, edit)| prepare + edit);
        Ok(json!({
            "device": self.engine.name(), "size": self.edit.size(), "steps": self.args.steps,
            "rows": program.spec.step_rows().total(),
            "seconds": {"cold": cold, "warm": warm?},
            "joules": {"cold": cold_joules, "warm": second.joules},
            "device_bytes": {"planned": program.plan.peak_bytes(), "before": before, "peak": peak},
        }))
    }

    /// Runs an edit; gives its seconds by stage beside those it is given, and as "edit" their sum.
    fn edit(
        &self,
        exec: &mut dyn Executor,
        program: &Program,
        mut seconds: BTreeMap<&'static str, f64>,
        progress: &mut dyn Progress,
    ) -> Result<BTreeMap<&'static str, f64>> {
        let earlier: f64 = seconds.values().sum();
        let running = Instant::now();
        self.edit.write_inputs(exec, program)?;
        run_stages(exec, program, progress, &mut seconds, &[])?;
        seconds.insert("edit", earlier + running.elapsed().as_secs_f64());
        Ok(seconds)
    }

    /// Milliseconds of each stage, run again and again while its weights are on the device.
    fn stages(&self) -> Result<BTreeMap<&'static str, Value>> {
        let program = self.edit.repeatable()?;
        let mut exec = Cuda::new(&program.plan, self.edit.model.folder.clone(), self.device, self.setup)?;
        self.edit.write_inputs(&mut exec, &program)?;
        let names: Vec<&str> = program.plan.graph.stages.iter().map(|s| s.name).collect();
        exec.begin(&names)?;
        let mut stages = BTreeMap::new();
        for name in names {
            // The step's counter stays within its schedule.
            let most = if name == "step" { (self.args.steps as usize).saturating_sub(2).max(1) } else { usize::MAX };
            let mut times = exec.time_runs(name, (self.args.runs as usize).min(most))?;
            times.sort_by(f32::total_cmp);
            let (first, last) = (times[0], times[times.len() - 1]);
            stages
                .insert(name, json!({"runs": times.len(), "min_ms": first, "median_ms": times[times.len() / 2], "max_ms": last}));
        }
        Ok(stages)
    }
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
        "device memory: {:.2} GB planned, peak {:.2} GB in use, {:.2} GB before",
        gb("planned"),
        gb("peak"),
        gb("before")
    )?;
    let energy = &report["joules"];
    match (energy["cold"].as_f64(), energy["warm"].as_f64()) {
        (Some(cold), Some(warm)) => writeln!(text, "energy of an edit: {cold:.0} J cold, {warm:.0} J warm")?,
        _ => writeln!(text, "energy of an edit: not known, NVML (libnvidia-ml.so.1) has no meter of this device")?,
    }
    writeln!(text, "copy bandwidth, read and written: {:.0} GB/s", number(&report["copy_gb_per_s"]))?;
    writeln!(text, "model's files opened and checked: {:.3} s", number(&report["seconds"]["open"]))?;
    writeln!(text, "{:<14}{:>10}{:>10}{:>14}{:>10}{:>10}", "stage", "cold s", "warm s", "median ms", "min", "max")?;
    let seconds = &report["seconds"];
    for (name, cold) in seconds["cold"].as_object().into_iter().flatten() {
        let warm = seconds["warm"][name].as_f64().map_or_else(|| "-".to_string(), |warm| format!("{warm:.3}"));
        write!(text, "{name:<14}{:>10.3}{warm:>10}", number(cold))?;
        if let Some(stage) = report["stages"].get(name) {
            let [median, min, max] = ["median_ms", "min_ms", "max_ms"].map(|key| number(&stage[key]));
            write!(text, "{median:>14.2}{min:>10.2}{max:>10.2}")?;
        }
        writeln!(text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_both_edits_and_says_what_is_not_known() {
        let mut report = json!({
            "device": "cuda:0 Made-up", "size": [64, 48], "steps": 4, "rows": 12, "copy_gb_per_s": 3000.0,
            "seconds": {"open": 0.5, "cold": {"edit": 5.0, "prepare": 1.0, "step": 4.0}, "warm": {"edit": 3.5, "step": 3.25}},
            "joules": {"cold": null, "warm": null},
            "device_bytes": {"planned": 27_000_000_000_u64, "before": 500_000_000, "peak": 27_500_000_000_u64},
            "stages": {"step": {"runs": 10, "min_ms": 630.0, "median_ms": 641.0, "max_ms": 650.0}},
        });
        let table = text(&report).unwrap();
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.contains(&vec!["step", "4.000", "3.250", "641.00", "630.00", "650.00"]), "{table}");
        assert!(lines.contains(&vec!["prepare", "1.000", "-"]), "{table}");
        assert!(table.contains("peak 27.50 GB") && table.contains("energy of an edit: not known"), "{table}");
        report["joules"] = json!({"cold": 9000.4, "warm": 8000.6});
        assert!(text(&report).unwrap().contains("9000 J cold, 8001 J warm"));
    }
}
