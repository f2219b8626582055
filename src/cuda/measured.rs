//! Products with the times of what cuBLASLt suggests for them, in the words of `benches/products.rs`, and the preferences that
//! follow from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::algorithms::{Configuration, Preference, shape};
use super::launch::Gemm;
use super::trials::{ROUNDS, Trial};

/// Milliseconds that a preference saves at least, of one edit at each size that was measured, together.
const LEAST: f64 = 1.0;
/// What it saves at least, and what it may lose in a single round, as shares of the favourite's time.
const GAIN: f64 = 0.01;
const LOSS: f64 = 0.005;

/// A product of an edit, timed.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The device's model.
    pub device: String,
    /// Of cuBLASLt.
    pub version: usize,
    /// Times that the edit runs it.
    pub runs: usize,
    /// Rows, columns and depth.
    pub extents: [usize; 3],
    /// Types, strides and alignments, and what is done with the sum: the rest of [`Gemm`]'s text.
    pub operands: String,
    /// What is suggested for it, the favourite first.
    pub trials: Vec<Trial>,
}

/// What a device's model prefers with a version of cuBLASLt, its major and minor: 1301.
pub type Tables = BTreeMap<(String, usize), Vec<Preference>>;

impl Measured {
    /// A product that was timed here.
    pub fn new(device: &str, version: usize, runs: usize, gemm: &Gemm, trials: Vec<Trial>) -> Measured {
        let text = gemm.to_string();
        let operands = text.split_once(' ').map(|(_, operands)| operands).unwrap_or_default().to_string();
        Measured { device: device.to_string(), version, runs, extents: [gemm.m, gemm.n, gemm.k], operands, trials }
    }

    /// The products of what the bench printed. Lines that tell of no product are passed over.
    pub fn read(text: &str) -> Vec<Measured> {
        let mut all: Vec<Measured> = Vec::new();
        let mut machine = (String::new(), 0);
        for line in text.lines() {
            if let Some(found) = machine_of(line) {
                machine = found;
            } else if let Some(trial) = trial(line) {
                all.last_mut().into_iter().for_each(|product| product.trials.push(trial.clone()));
            } else if let Some((runs, extents, operands)) = product(line) {
                let (device, version) = machine.clone();
                all.push(Measured { device, version, runs, extents, operands, trials: Vec::new() });
            }
        }
        all.retain(|product| !product.trials.is_empty());
        all
    }

    /// Milliseconds of the edit that it takes by a suggestion.
    pub fn milliseconds(&self, trial: &Trial) -> f64 {
        self.runs as f64 * trial.milliseconds.iter().sum::<f64>() / ROUNDS as f64
    }

    /// Milliseconds of the edit that a configuration saves and that the favourite takes. Nothing: it is not suggested.
    fn saved(&self, configuration: &Configuration) -> Option<(f64, f64)> {
        let trial = self.trials.iter().find(|trial| trial.configuration == *configuration)?;
        let favourite = self.milliseconds(&self.trials[0]);
        let slower = |(ms, favourite): (&f64, &f64)| *ms > (1.0 + LOSS) * favourite;
        let loses = trial.milliseconds.iter().zip(&self.trials[0].milliseconds).any(slower);
        Some((if loses { f64::NEG_INFINITY } else { favourite - self.milliseconds(trial) }, favourite))
    }
}

impl fmt::Display for Measured {
    /// What [`Measured::read`] reads: a line of the product, and one of each suggestion (`*`: what an edit takes), with the
    /// microseconds of each round.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [m, n, k] = self.extents;
        write!(f, "{} x {m}x{n}x{k} {}", self.runs, self.operands)?;
        for Trial { configuration, milliseconds, chosen } in &self.trials {
            let numbers = configuration.map(|number| number.to_string()).join(" ");
            let rounds = milliseconds.map(|ms| format!("{:.1}", 1e3 * ms)).join(" ");
            write!(f, "\n{} {numbers}: {rounds} µs", if *chosen { '*' } else { ' ' })?;
        }
        Ok(())
    }
}

/// `NVIDIA H100 80GB HBM3, cuBLASLt 130100`
fn machine_of(line: &str) -> Option<(String, usize)> {
    let (device, version) = line.split_once(", cuBLASLt ")?;
    Some((device.to_string(), version.parse().ok()?))
}

/// `532 x 16384x3072x12288 bf16/12288@256 bf16/12288@256 bf16/3072@256 bias`
fn product(line: &str) -> Option<(usize, [usize; 3], String)> {
    let (runs, product) = line.split_once(" x ")?;
    let (extents, operands) = product.split_once(' ')?;
    Some((runs.parse().ok()?, numbers(extents.split('x'))?, operands.to_string()))
}

/// `* 66 419 35 1 0 0 5 0 3: 927.8 912.7 898.6 µs`
fn trial(line: &str) -> Option<Trial> {
    let (configuration, rounds) = line.strip_suffix(" µs")?.split_once(':')?;
    let configuration = numbers(configuration.trim_start_matches('*').split_whitespace())?;
    let microseconds: [f64; ROUNDS] = numbers(rounds.split_whitespace())?;
    Some(Trial { configuration, milliseconds: microseconds.map(|us| us / 1e3), chosen: line.starts_with('*') })
}

fn numbers<'a, T: std::str::FromStr, const N: usize>(words: impl Iterator<Item = &'a str>) -> Option<[T; N]> {
    words.map(|word| word.parse().ok()).collect::<Option<Vec<T>>>()?.try_into().ok()
}

/// For the products of bf16 operands of one shape that have one favourite: what saves most of their time, if it saves anything to
/// speak of and loses at none of the rows that were measured.
pub fn preferences(measured: &[Measured]) -> Tables {
    let mut alike: BTreeMap<_, Vec<&Measured>> = BTreeMap::new();
    for product in measured.iter().filter(|product| product.operands.starts_with("bf16/")) {
        let machine = (product.device.clone(), product.version / 100);
        alike.entry((machine, shape(product.extents), product.trials[0].configuration)).or_default().push(product);
    }
    let mut tables = Tables::new();
    for ((machine, shape, favourite), products) in alike {
        if let Some(best) = best(&products) {
            tables.entry(machine).or_default().push((shape, favourite, best));
        }
    }
    tables
}

fn best(products: &[&Measured]) -> Option<Configuration> {
    // No sums in parts of k: their roundings are others.
    let candidates: BTreeSet<Configuration> =
        products.iter().flat_map(|product| &product.trials).map(|trial| trial.configuration).filter(|c| c[3] == 1).collect();
    let saves = |candidate: Configuration| {
        let each: Vec<(f64, f64)> = products.iter().filter_map(|product| product.saved(&candidate)).collect();
        let (saved, favourite) = each.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let loses_nowhere = each.iter().all(|(saved, _)| *saved >= 0.0);
        (loses_nowhere && saved >= LEAST && saved >= GAIN * favourite).then_some((candidate, saved))
    };
    candidates.into_iter().filter_map(saves).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(candidate, _)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAVOURITE: Configuration = [66, 1, 0, 1, 0, 0, 0, 0, 0];
    const OTHER: Configuration = [66, 2, 0, 1, 0, 0, 0, 0, 0];
    const THIRD: Configuration = [66, 3, 0, 1, 0, 0, 0, 0, 0];
    const PARTS: Configuration = [66, 4, 0, 2, 2, 0, 0, 0, 0];

    /// A product that runs 1000 times, of suggestions with the microseconds of their rounds.
    fn product(rows: usize, trials: &[(Configuration, [f64; ROUNDS])]) -> Measured {
        let trial = |(configuration, microseconds): &(Configuration, [f64; ROUNDS])| Trial {
            configuration: *configuration,
            milliseconds: microseconds.map(|us| us / 1e3),
            chosen: *configuration == FAVOURITE,
        };
        let (device, operands) = ("GPU".to_string(), "bf16/8@256 bf16/8@256 bf16/8@256".to_string());
        let trials = trials.iter().map(trial).collect();
        Measured { device, version: 130_102, runs: 1000, extents: [rows, 8, 8], operands, trials }
    }

    fn preferred(measured: &[Measured]) -> Vec<Preference> {
        preferences(measured).remove(&("GPU".to_string(), 1301)).unwrap_or_default()
    }

    #[test]
    fn what_is_printed_is_read() {
        let printed = product(300, &[(FAVOURITE, [9.5, 9.0, 12.5]), (OTHER, [8.0, 1000.0, 8.5])]).to_string();
        let text = format!("GPU, cuBLASLt 130102\n\n512x512, 300 rows a step\n{printed}\n1 products: favourite 9.0 ms\n");
        let [read] = &Measured::read(&text)[..] else { panic!("one product") };
        assert_eq!((&*read.device, read.version, read.runs, read.extents), ("GPU", 130_102, 1000, [300, 8, 8]));
        assert_eq!(read.trials[1].milliseconds, [0.008, 1.0, 0.0085]);
        assert_eq!(read.to_string(), printed);
        assert!(Measured::read("of no product\n1 x 2\n 66: 1 µs\n").is_empty());
    }

    #[test]
    fn the_one_that_saves_most_is_preferred() {
        let all = [(FAVOURITE, [100.0; 3]), (OTHER, [98.0; 3]), (THIRD, [96.0; 3]), (PARTS, [50.0; 3])];
        assert_eq!(preferred(&[product(257, &all)]), [([3, 8, 8], FAVOURITE, THIRD)]);
        assert_eq!(preferred(&[product(257, &all[..2])]), [([3, 8, 8], FAVOURITE, OTHER)]);
        let of_floats = Measured { operands: "f32/8@256".to_string(), ..product(257, &all) };
        assert_eq!(preferred(&[of_floats]), []);
    }

    #[test]
    fn what_gains_nothing_to_speak_of_is_not_preferred() {
        for (rounds, runs) in [([99.2; 3], 1000), ([90.0; 3], 90), ([100.6, 90.0, 90.0], 1000)] {
            let measured = Measured { runs, ..product(257, &[(FAVOURITE, [100.0; 3]), (OTHER, rounds)]) };
            assert_eq!(preferred(&[measured]), [], "{rounds:?} {runs}");
        }
    }

    #[test]
    fn what_loses_at_other_rows_of_the_tile_is_not_preferred() {
        let gains = || product(257, &[(FAVOURITE, [100.0; 3]), (OTHER, [90.0; 3])]);
        let loses = |rows, favourite| product(rows, &[(favourite, [100.0; 3]), (OTHER, [100.4; 3])]);
        let found = [([3, 8, 8], FAVOURITE, OTHER)];
        assert_eq!(preferred(&[gains(), loses(384, FAVOURITE)]), []);
        assert_eq!(preferred(&[gains(), loses(385, FAVOURITE)]), found);
        assert_eq!(preferred(&[gains(), loses(256, FAVOURITE)]), found);
        assert_eq!(preferred(&[gains(), loses(384, THIRD)]), found, "another favourite");
        assert_eq!(preferred(&[gains(), product(384, &[(FAVOURITE, [100.0; 3]), (THIRD, [100.0; 3])])]), found, "not suggested");
    }
}
