//! The matrix products of an edit of the released networks, each by every algorithm that cuBLASLt suggests for it, and what
//! `src/cuda/algorithms.rs` is to prefer.
//!
//! `products WIDTHxHEIGHT[:PROMPT] ... FILE ...`. For each size it prints the products that take a millisecond of the edit or more,
//! how often the edit runs them, and below them the suggestions (`*`: what the program takes), with the microseconds of each round;
//! then an edit's milliseconds by the favourite, by the program's choice and by the fastest. That needs a GPU with 6 GB free, but
//! no model. A file holds what it printed before, such as `benches/results/*-products-*.txt`. At the end it prints the preferences that
//! all sizes and files together ask for, as `algorithms.rs` takes them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use step1x_edit::cli;
use step1x_edit::commands::inspect::{PlanJob, plan_edit};
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::cuda::{Device, Gemm, Measured, Trials, preferences};
use step1x_edit::exec::products;
use step1x_edit::graph::BodyId;
use step1x_edit::model::edit::Savings;
use step1x_edit::model::{Preset, Version};
use step1x_edit::plan::{Plan, Precision};

const PROMPT: &str = "Change the sofa to vintage leather.";
/// Milliseconds of an edit that a product takes at least, to be looked at.
const LEAST: f64 = 1.0;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.is_empty() {
        println!("products: give sizes, such as 1024x1024, or files with what was printed for them");
        return Ok(());
    }
    let (files, sizes): (Vec<String>, Vec<String>) = words.into_iter().partition(|word| Path::new(word).is_file());
    let mut measured = Vec::new();
    for file in &files {
        let read = Measured::read(&std::fs::read_to_string(file)?);
        ensure!(!read.is_empty(), "{file} holds no product");
        measured.extend(read);
    }
    if !sizes.is_empty() {
        measured.extend(measure_all(&sizes)?);
    }
    println!("\npreferences:");
    for ((device, version), preferred) in preferences(&measured) {
        println!("{device}, {version}");
        preferred.iter().for_each(|preference| println!("        {preference:?},"));
    }
    Ok(())
}

fn measure_all(sizes: &[String]) -> Result<Vec<Measured>> {
    let device = Device::open(0)?;
    let model = PresetModel::new(Preset::Full, Version::V1_1)?;
    let mut trials = Trials::new(&device, &cli::setup())?;
    println!("{}, cuBLASLt {}", device.name, trials.version());
    let mut measured = Vec::new();
    for word in sizes {
        let (size, prompt) = word.split_once(':').unwrap_or((word, PROMPT));
        let (width, height) = size.split_once('x').with_context(|| format!("{word} is neither WIDTHxHEIGHT nor a file"))?;
        let size: (usize, usize) = (width.parse()?, height.parse()?);
        let size_level = ((size.0 * size.1) as f64).sqrt().round() as usize;
        let (prompt, savings) = (prompt.to_string(), Savings::ALL);
        let job = PlanJob { prompt, rules: None, size, size_level, steps: 28, precision: Precision::Bf16, savings };
        let program = plan_edit(&model.config, &model.settings, &model.tokenizer, &job)?;
        let (height, width) = (8 * program.spec.latent.0, 8 * program.spec.latent.1);
        println!("\n{width}x{height}, {} rows a step", program.spec.step_rows().total());
        measured.extend(measure(&program.plan, &device.name, &mut trials)?);
    }
    Ok(measured)
}

fn measure(plan: &Plan, device: &str, trials: &mut Trials) -> Result<Vec<Measured>> {
    // Those of one type together: operands are filled anew when it changes.
    let mut runs: BTreeMap<(String, String), (usize, Gemm)> = BTreeMap::new();
    for body in (0..plan.graph.bodies.len()).map(BodyId) {
        for gemm in products(plan, body) {
            let key = (gemm.x.dtype.to_string(), gemm.to_string());
            runs.entry(key).or_insert((0, gemm)).0 += plan.itinerary.runs_of(body);
        }
    }
    let (mut all, mut sums) = (Vec::new(), [0.0; 3]);
    for (runs, gemm) in runs.into_values() {
        if runs as f64 * trials.favourite(&gemm)? < LEAST {
            continue;
        }
        let product = Measured::new(device, trials.version(), runs, &gemm, trials.time(&gemm)?);
        println!("{product}");
        let times: Vec<f64> = product.trials.iter().map(|trial| product.milliseconds(trial)).collect();
        let chosen = product.trials.iter().position(|trial| trial.chosen).context("one is chosen")?;
        sums[0] += times[0];
        sums[1] += times[chosen];
        sums[2] += times.iter().copied().fold(f64::INFINITY, f64::min);
        all.push(product);
    }
    println!("{} products: favourite {:.1} ms, chosen {:.1} ms, fastest {:.1} ms", all.len(), sums[0], sums[1], sums[2]);
    Ok(all)
}
