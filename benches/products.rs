//! The matrix products of an edit of the released networks, each by every algorithm that cuBLASLt suggests for it: what
//! `src/cuda/algorithms.rs` was made from.
//!
//! `products WIDTHxHEIGHT[:PROMPT] ...`; needs a GPU with 6 GB free, but no model. For each size it prints the products that take a
//! millisecond of the edit or more, how often the edit runs them, and below them the suggestions (`*`: what the program takes), with the
//! microseconds of each round; then an edit's milliseconds by the favourite, by the program's choice and by the fastest. At the
//! end it prints the preferences that all sizes together ask for, as `algorithms.rs` takes them; its tests read the rest.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use step1x_edit::cli;
use step1x_edit::commands::inspect::{PlanJob, plan_edit};
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::cuda::{Configuration, Device, Gemm, ROUNDS, Trial, Trials};
use step1x_edit::exec::products;
use step1x_edit::graph::BodyId;
use step1x_edit::model::edit::Savings;
use step1x_edit::model::{Preset, Version};
use step1x_edit::plan::{Plan, Precision};
use step1x_edit::tensor::DType;

const PROMPT: &str = "Change the sofa to vintage leather.";
/// Milliseconds of an edit that a product takes at least, to be looked at, and that a preference saves at all sizes together.
const LEAST: f64 = 1.0;
/// What a preference gains where it counts, at least, and what it may lose at any size in any round, as shares of the favourite's
/// time.
const GAIN: f64 = 0.01;
const LOSS: f64 = 0.005;

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
    let mut measured = Vec::new();
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
        measured.extend(measure(&program.plan, &mut trials)?);
    }
    println!("\npreferences:");
    for (shape, preferred) in preferences(&measured) {
        println!("    ({shape:?}, &{preferred:?}),");
    }
    Ok(())
}

/// A product of an edit.
struct Measured {
    gemm: Gemm,
    /// Times that an edit runs it.
    runs: f64,
    trials: Vec<Trial>,
}

impl Measured {
    /// Milliseconds of an edit that it takes by a suggestion.
    fn milliseconds(&self, trial: &Trial) -> f64 {
        self.runs * trial.milliseconds.iter().sum::<f64>() / ROUNDS as f64
    }

    fn by(&self, configuration: &Configuration) -> Option<&Trial> {
        self.trials.iter().find(|trial| trial.configuration == *configuration)
    }

    /// Whether a suggestion is never slower than the favourite, but for noise.
    fn is_no_loss(&self, trial: &Trial) -> bool {
        trial.milliseconds.iter().zip(self.trials[0].milliseconds).all(|(ms, favourite)| *ms <= (1.0 + LOSS) * favourite)
    }
}

fn measure(plan: &Plan, trials: &mut Trials) -> Result<Vec<Measured>> {
    // Those of one type together: operands are filled anew when it changes.
    let mut runs: BTreeMap<(String, String), (usize, Gemm)> = BTreeMap::new();
    for body in (0..plan.graph.bodies.len()).map(BodyId) {
        for gemm in products(plan, body) {
            let key = (gemm.x.dtype.to_string(), gemm.to_string());
            runs.entry(key).or_insert((0, gemm)).0 += plan.itinerary.runs_of(body);
        }
    }
    let (mut all, mut sums) = (Vec::new(), [0.0; 3]);
    for ((_, text), (runs, gemm)) in &runs {
        let runs = *runs as f64;
        if runs * trials.favourite(gemm)? < LEAST {
            continue;
        }
        let product = Measured { gemm: *gemm, runs, trials: trials.time(gemm)? };
        println!("{runs} x {text}");
        for Trial { configuration, milliseconds, chosen } in &product.trials {
            let rounds: Vec<String> = milliseconds.iter().map(|ms| format!("{:.1}", 1e3 * ms)).collect();
            let numbers = configuration.map(|number| number.to_string());
            println!("{} {}: {} µs", if *chosen { '*' } else { ' ' }, numbers.join(" "), rounds.join(" "));
        }
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

/// For each shape of weights the configurations that save most without a loss anywhere; each next one of what the ones before it are
/// not suggested for.
fn preferences(measured: &[Measured]) -> Vec<((usize, usize), Vec<Configuration>)> {
    let mut shapes: BTreeMap<(usize, usize), Vec<&Measured>> = BTreeMap::new();
    for product in measured.iter().filter(|product| product.gemm.x.dtype == DType::BF16) {
        shapes.entry((product.gemm.n, product.gemm.k)).or_default().push(product);
    }
    let mut all = Vec::new();
    for (shape, mut left) in shapes {
        let mut preferred = Vec::new();
        while let Some(best) = best(&left) {
            preferred.push(best);
            left.retain(|product| product.by(&best).is_none());
        }
        if !preferred.is_empty() {
            all.push((shape, preferred));
        }
    }
    all
}

/// The configuration that saves most of these products' time, if it saves anything to speak of and loses nowhere.
fn best(products: &[&Measured]) -> Option<Configuration> {
    let mut saved: BTreeMap<Configuration, f64> = BTreeMap::new();
    for configuration in products.iter().flat_map(|product| &product.trials).map(|trial| trial.configuration) {
        let found = || products.iter().filter_map(|product| Some((*product, product.by(&configuration)?)));
        let favourites: f64 = found().map(|(product, _)| product.milliseconds(&product.trials[0])).sum();
        let saves = favourites - found().map(|(product, trial)| product.milliseconds(trial)).sum::<f64>();
        if saves >= LEAST && saves >= GAIN * favourites && found().all(|(product, trial)| product.is_no_loss(trial)) {
            saved.insert(configuration, saves);
        }
    }
    saved.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(configuration, _)| configuration)
}
