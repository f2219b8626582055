//! The matrix products of an edit of the released networks, each by every algorithm that cuBLASLt suggests for it: what an edit
//! would gain if another than the favourite computed.
//!
//! `products WIDTHxHEIGHT[:PROMPT] ...`; needs a GPU with 6 GB free, but no model. Prints each product, with how often the edit runs
//! it, and below it the suggestions, by their numbers, with the microseconds of each round; then the edit's milliseconds of all
//! products by the first suggestion and by the fastest of all rounds.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use step1x_edit::cli;
use step1x_edit::commands::inspect::{PlanJob, plan_edit};
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::cuda::{Device, Gemm, ROUNDS, Trial, Trials};
use step1x_edit::exec::products;
use step1x_edit::graph::BodyId;
use step1x_edit::model::edit::Savings;
use step1x_edit::model::{Preset, Version};
use step1x_edit::plan::{Plan, Precision};

const PROMPT: &str = "Change the sofa to vintage leather.";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.is_empty() {
        println!("products: give sizes, such as 1024x1024");
        return Ok(());
    }
    let device = Device::open(0)?;
    let model = PresetModel::new(Preset::Full, Version::V1_1)?;
    let mut trials = Trials::new(&device, &cli::setup())?;
    println!("{}, cuBLASLt {}", device.name, trials.version());
    for word in &words {
        let (size, prompt) = word.split_once(':').unwrap_or((word, PROMPT));
        let (width, height) = size.split_once('x').context("WIDTHxHEIGHT")?;
        let size: (usize, usize) = (width.parse()?, height.parse()?);
        let size_level = ((size.0 * size.1) as f64).sqrt().round() as usize;
        let (prompt, savings) = (prompt.to_string(), Savings::ALL);
        let job = PlanJob { prompt, size, size_level, steps: 28, precision: Precision::Bf16, savings };
        let program = plan_edit(&model.config, &model.settings, &model.tokenizer, &job)?;
        let (height, width) = (8 * program.spec.latent.0, 8 * program.spec.latent.1);
        println!("\n{width}x{height}, {} rows a step", program.spec.step_rows().total());
        measure(&program.plan, &mut trials)?;
    }
    Ok(())
}

fn measure(plan: &Plan, trials: &mut Trials) -> Result<()> {
    // Those of one type together: operands are filled anew when it changes.
    let mut runs: BTreeMap<(String, String), (usize, Gemm)> = BTreeMap::new();
    for body in (0..plan.graph.bodies.len()).map(BodyId) {
        for gemm in products(plan, body) {
            let key = (gemm.x.dtype.to_string(), gemm.to_string());
            runs.entry(key).or_insert((0, gemm)).0 += plan.itinerary.runs_of(body);
        }
    }
    let (mut first, mut fastest) = (0.0, 0.0);
    for ((_, text), (runs, gemm)) in &runs {
        let tried = trials.time(gemm)?;
        let time = |trial: &Trial| trial.milliseconds.iter().sum::<f64>() / ROUNDS as f64 * *runs as f64;
        let times: Vec<f64> = tried.iter().map(time).collect();
        first += times.first().context("no algorithm")?;
        fastest += times.iter().copied().fold(f64::INFINITY, f64::min);
        println!("{runs} x {text}");
        for Trial { configuration, milliseconds } in &tried {
            let rounds: Vec<String> = milliseconds.iter().map(|ms| format!("{:.1}", 1e3 * ms)).collect();
            println!("  {configuration}: {} µs", rounds.join(" "));
        }
    }
    println!("{} products: first {first:.1} ms, fastest {fastest:.1} ms an edit", runs.len());
    Ok(())
}
