//! `bench --max-vram A,B,C`: what it costs that weights stream, for several amounts of GPU memory beside each other.
//!
//! Each budget has an engine of its own and three edits, each of another picture and another prompt of the same size. The third is
//! warm: the program, its captured step and the host's store are there by then. A card slows down as it warms up, so where all
//! weights fit beside them, an engine that has them resident takes turns: the third edit is held against one of its just before.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::bench::BenchJob;
use super::meter::Meter;
use super::{gpu, sample};
use crate::cuda::Device;
use crate::image::Rgb;
use crate::pipeline::{Edited, Engine, Model, Place, Progress, anonymous_bytes};
use crate::plan::format_bytes;

/// Edits of each budget.
const EDITS: usize = 3;

/// Edits with each budget, beside those with all weights resident (or streamed in all that is free, where they do not fit).
///
/// # Errors
/// No device, a budget in which no edit can run, or whatever stops an edit.
pub(super) fn run(job: &BenchJob, progress: &mut dyn Progress, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let (place, device) = gpu("bench --max-vram", &job.place)?;
    for &size in &job.sizes {
        let mut table =
            Table { device: place.measured_name(), size: [size.0, size.1], steps: job.steps, link_gb_per_s: 0.0, rows: vec![] };
        let empty = place.device_bytes_in_use().unwrap_or(0);
        let mut first = Lane::new(job, place.clone(), size, progress)?;
        table.rows.push(first.row(None, &device, 0, progress)?);
        // It stays for its turns where the largest budget fits beside it.
        let beside = device.memory()?.0 >= job.budgets.iter().copied().max().unwrap_or(0);
        let mut resident = Some(first).filter(|_| beside);
        let others = place.device_bytes_in_use().unwrap_or(0).saturating_sub(empty);
        for &budget in &job.budgets {
            let mut place = place.clone();
            place.max_vram = Some(budget);
            let row = Lane::new(job, place, size, progress)?.row(resident.as_mut(), &device, others, progress)?;
            if !job.json {
                progress.notice(&row.to_string());
            }
            table.rows.push(row);
        }
        table.link_gb_per_s = table.rows.iter().map(|row| row.link_gb_per_s).fold(0.0, f64::max);
        let first = table.rows[0].pictures.clone();
        table.rows.iter_mut().for_each(|row| row.equal = row.pictures == first);
        print(&if job.json { format!("{}\n", json!(table)) } else { table.to_string() })?;
        ensure!(table.rows.iter().all(|row| row.equal), "the pictures of different budgets are not the same to the byte");
    }
    Ok(())
}

/// An engine with its edits.
struct Lane<'a> {
    job: &'a BenchJob,
    engine: Engine,
    budget: Option<usize>,
    size: (usize, usize),
}

impl Lane<'_> {
    fn new<'a>(job: &'a BenchJob, place: Place, size: (usize, usize), progress: &mut dyn Progress) -> Result<Lane<'a>> {
        let (budget, model) = (place.max_vram, Model::open_parts(&job.model)?);
        model.adapt(&job.loras, progress)?;
        Ok(Lane { job, engine: Engine::open(model, place)?, budget, size })
    }

    /// The edit of a number: each has another picture and another prompt of the same size.
    fn edit(&mut self, number: usize, progress: &mut dyn Progress) -> Result<Edited> {
        let job = self.job;
        let prompt = format!("{} {number}", job.prompt); // one digit is one token
        let material = sample(&self.engine.model, self.size, &prompt, job.steps, job.rules, number)?;
        self.engine.make(&material, progress)
    }

    /// Makes the edits; the last one in turns with another engine's. `others`: bytes of the device's memory that are not this
    /// engine's.
    fn row(
        &mut self,
        mut other: Option<&mut Lane>,
        device: &Arc<Device>,
        others: usize,
        progress: &mut dyn Progress,
    ) -> Result<Row> {
        let meter = Meter::new(device);
        let (mut seconds, mut pictures, mut beside, mut peak, mut turns_ms) = (vec![], vec![], None, 0, vec![]);
        let mut last = None;
        for number in 0..EDITS {
            let warm = number + 1 == EDITS;
            if let Some(other) = other.as_mut().filter(|_| warm) {
                beside = Some(other.edit(number, progress)?.seconds.total());
            }
            let before = self.engine.made().on_device.uploaded_bytes;
            let mut turns = Turns::new(progress);
            let (edited, taken) = match warm {
                true => meter.weigh(|| self.edit(number, &mut turns)),
                false => meter.watch(|| self.edit(number, &mut turns)),
            };
            let edited = edited?;
            turns_ms = turns.ms();
            seconds.push(edited.seconds.total());
            pictures.push(edited.picture.clone());
            peak = peak.max(taken.peak_bytes);
            last = Some((edited, taken.joules, self.engine.made().on_device.uploaded_bytes - before));
        }
        let (edited, joules, uploaded_bytes) = last.expect("three edits were made");
        let steps = self.job.steps as f64;
        let ms = |stage: &str| edited.seconds.stages.iter().filter(|(name, _)| *name == stage).map(|(_, s)| 1e3 * s).sum::<f64>();
        let (plan, link) = (&edited.plan, self.engine.link_gb_per_s()?);
        let (passages, memory) = (plan.passages(link), plan.memory());
        let step = plan.graph.body_named("step").map_or(0, |body| body.0);
        Ok(Row {
            budget: self.budget,
            residency: plan.weights.policy.to_string(),
            planned_bytes: plan.peak_bytes(),
            peak_bytes: peak.saturating_sub(others),
            kept_bytes: memory.iter().map(|m| m.kept).sum(),
            streamed_bytes: memory.iter().map(|m| m.streamed).sum(),
            host_bytes: anonymous_bytes(),
            store_bytes: self.engine.stored_bytes(),
            link_gb_per_s: link,
            step_ms: ms("step") / steps,
            text_ms: ms("text"),
            turns_ms,
            stage_ms: edited.seconds.stages.iter().map(|(name, seconds)| (*name, 1e3 * seconds)).collect(),
            predicted_seconds: passages.iter().map(|passage| passage.seconds).sum(),
            predicted_step_ms: 1e3 * passages[step].seconds / steps,
            seconds,
            beside,
            uploaded_bytes,
            joules,
            equal: true,
            pictures,
        })
    }
}

/// When steps begin.
struct Turns<'p> {
    progress: &'p mut dyn Progress,
    begun: Vec<Instant>,
}

impl Turns<'_> {
    fn new(progress: &mut dyn Progress) -> Turns<'_> {
        Turns { progress, begun: vec![] }
    }

    fn ms(&self) -> Vec<f64> {
        self.begun.windows(2).map(|pair| 1e3 * (pair[1] - pair[0]).as_secs_f64()).collect()
    }
}

impl Progress for Turns<'_> {
    fn place(&mut self, place: &Place) {
        self.progress.place(place);
    }

    fn stage(&mut self, name: &str, run: usize, runs: usize) -> Result<()> {
        if name == "step" {
            self.begun.push(Instant::now());
        }
        self.progress.stage(name, run, runs)
    }

    fn node(&mut self) -> Result<()> {
        self.progress.node()
    }

    fn notice(&mut self, text: &str) {
        self.progress.notice(text);
    }
}

/// What was measured at one size. It prints as a table and serializes as one JSON object.
#[derive(Serialize)]
struct Table {
    device: String,
    size: [usize; 2],
    steps: usize,
    link_gb_per_s: f64,
    rows: Vec<Row>,
}

/// Edits with one budget.
#[derive(Serialize)]
struct Row {
    /// Most bytes that were allowed; none: all that is free.
    budget: Option<usize>,
    residency: String,
    planned_bytes: usize,
    /// In use by everyone but the other engine while the edits ran.
    peak_bytes: usize,
    kept_bytes: usize,
    streamed_bytes: usize,
    /// Anonymous memory of the process after the last edit, the store included.
    host_bytes: Option<u64>,
    store_bytes: usize,
    link_gb_per_s: f64,
    /// Of each edit.
    seconds: Vec<f64>,
    /// Of the edit with all weights resident before the last one.
    beside: Option<f64>,
    /// Of the last edit.
    step_ms: f64,
    text_ms: f64,
    /// From the beginning of each of its steps to the next one's, as the host sees them, which runs ahead of the device by a step.
    turns_ms: Vec<f64>,
    /// Each stage of it, in order.
    stage_ms: Vec<(&'static str, f64)>,
    /// As the plan predicts the last edit, and a step of it.
    predicted_seconds: f64,
    predicted_step_ms: f64,
    /// Of the last edit.
    uploaded_bytes: u64,
    joules: Option<f64>,
    /// Whether the pictures are those of the first row to the byte.
    equal: bool,
    #[serde(skip)]
    pictures: Vec<Rgb>,
}

impl Row {
    /// The last edit's time, as a part of what it takes with all weights resident; none if nobody took turns.
    fn ratio(&self) -> Option<f64> {
        Some(self.seconds[EDITS - 1] / self.beside?)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let budget = self.budget.map_or_else(|| "all".into(), format_bytes);
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!(", {ratio:.3} of resident"));
        let [planned, peak] = [self.planned_bytes, self.peak_bytes].map(format_bytes);
        write!(f, "{budget}: third edit {:.3} s{ratio}, {peak} in use, {planned} planned", self.seconds[EDITS - 1])
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [width, height] = self.size;
        writeln!(f, "{} {width}x{height}, {} steps, link {:.1} GB/s", self.device, self.steps, self.link_gb_per_s)?;
        writeln!(
            f,
            "{:>10}{:>10}{:>10}{:>10}{:>9}{:>9}{:>9}{:>8}{:>9}{:>11}{:>11}{:>9}  pictures",
            "allowed", "peak", "stays", "host", "first s", "second", "third", "ratio", "step ms", "predicted", "text ms", "J"
        )?;
        for row in &self.rows {
            let allowed = row.budget.map_or_else(|| "all".into(), format_bytes);
            let [peak, stays] = [row.peak_bytes, row.kept_bytes].map(format_bytes);
            let host = row.host_bytes.map_or_else(|| "-".into(), |bytes| format_bytes(bytes as usize));
            write!(f, "{allowed:>10}{peak:>10}{stays:>10}{host:>10}")?;
            row.seconds.iter().try_for_each(|seconds| write!(f, "{seconds:>9.3}"))?;
            let ratio = row.ratio().map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}"));
            let same = if row.equal { "equal" } else { "DIFFERENT" };
            let joules = row.joules.map_or_else(|| "-".into(), |joules| format!("{joules:.0}"));
            writeln!(f, "{ratio:>8}{:>9.1}{:>11.1}{:>11.1}{joules:>9}  {same}", row.step_ms, row.predicted_step_ms, row.text_ms)?;
        }
        Ok(())
    }
}
