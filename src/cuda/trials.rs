//! How fast each algorithm is that cuBLASLt suggests for a product: what the preferences of `algorithms` are made from.
//!
//! Speed depends on power, and power on the values: operands are normally distributed, as real ones nearly are. A device at its
//! power limit changes its clock from one hundredth of a second to the next, so algorithms take turns of half a millisecond.

use std::f64::consts::TAU;
use std::sync::Arc;

use anyhow::Result;
use half::bf16;

use super::algorithms::Configuration;
use super::device::{Device, Event, Memory, Stream};
use super::gemm::{Gemms, Product};
use super::launch::{Gemm, Matrix};
use super::library::Setup;
use crate::tensor::DType;

/// How often all are timed.
pub const ROUNDS: usize = 3;
/// Milliseconds that each algorithm takes in a round, and in a turn, about.
const ROUND: f32 = 15.0;
const TURN: f32 = 0.5;
/// Values that are made; operands repeat them.
const VALUES: usize = 1 << 20;
/// Bytes set aside for an operand: the largest that the released model has, and its alignment.
const OPERAND: usize = (1 << 30) + 256;

/// A device with operands for any product of an edit.
pub struct Trials {
    device: Arc<Device>,
    stream: Stream,
    gemms: Gemms,
    /// x, w, y, bias and workspace, of [`OPERAND`] bytes each.
    memory: Memory,
    /// Type of the values that lie in x and w.
    filled: Option<DType>,
}

/// An algorithm with the milliseconds that it took in each round.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Which one.
    pub configuration: Configuration,
    /// Of one run.
    pub milliseconds: [f64; ROUNDS],
    /// Whether an edit takes it.
    pub chosen: bool,
}

impl Trials {
    /// Takes 5 gibibytes.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: not so much is free, or cuBLASLt is missing.
    pub fn new(device: &Arc<Device>, setup: &Setup) -> Result<Trials> {
        device.make_current()?;
        let (stream, memory) = (Stream::new(device)?, Memory::new(device, 5 * OPERAND)?);
        Ok(Trials { device: device.clone(), stream, gemms: Gemms::new(device, setup)?, memory, filled: None })
    }

    /// Times the algorithms that are suggested for a product, the library's favourite first. Its addresses say only how
    /// operands are aligned.
    ///
    /// # Errors
    /// A product whose operands are too large here, or what cuBLASLt or the driver reports.
    pub fn time(&mut self, gemm: &Gemm) -> Result<Vec<Trial>> {
        self.fill(gemm.x.dtype)?;
        let gemm = self.placed(gemm)?;
        let (products, chosen) = self.gemms.prepare_all(&gemm)?;
        let rounds = (0..ROUNDS).map(|_| self.round(&products)).collect::<Result<Vec<_>>>()?;
        let trial = |(number, (configuration, _)): (usize, &(Configuration, Product))| Trial {
            configuration: *configuration,
            milliseconds: std::array::from_fn(|round| rounds[round][number]),
            chosen: number == chosen,
        };
        Ok(products.iter().enumerate().map(trial).collect())
    }

    /// Milliseconds of a run by the library's favourite.
    ///
    /// # Errors
    /// As for [`Trials::time`].
    pub fn favourite(&mut self, gemm: &Gemm) -> Result<f64> {
        self.fill(gemm.x.dtype)?;
        let (products, _) = self.gemms.prepare_all(&self.placed(gemm)?)?;
        Ok(f64::from(self.turn(&products[0].1, 2)?) / 2.0)
    }

    /// The algorithms that are suggested for a product, the library's favourite first.
    ///
    /// # Errors
    /// As for [`Trials::time`].
    pub fn suggestions(&self, gemm: &Gemm) -> Result<Vec<Configuration>> {
        let (products, _) = self.gemms.prepare_all(&self.placed(gemm)?)?;
        Ok(products.into_iter().map(|(configuration, _)| configuration).collect())
    }

    /// The version of cuBLASLt.
    pub fn version(&self) -> usize {
        self.gemms.version
    }

    /// Milliseconds of a run of each product, which take turns.
    fn round(&self, products: &[(Configuration, Product)]) -> Result<Vec<f64>> {
        let once: Vec<f32> = products.iter().map(|(_, product)| Ok(self.turn(product, 2)? / 2.0)).collect::<Result<_>>()?;
        let runs: Vec<usize> = once.iter().map(|once| (TURN / once).ceil() as usize).collect();
        let turns = (ROUND / once.iter().copied().fold(TURN, f32::max)).ceil() as usize;
        let mut sums = vec![0.0; products.len()];
        for _ in 0..turns {
            for (((_, product), &runs), sum) in products.iter().zip(&runs).zip(&mut sums) {
                *sum += f64::from(self.turn(product, runs)?) / (turns * runs) as f64;
            }
        }
        Ok(sums)
    }

    /// Milliseconds of so many runs, which follow one that is not timed.
    fn turn(&self, product: &Product, runs: usize) -> Result<f32> {
        let (start, end) = (Event::new(&self.device, true)?, Event::new(&self.device, true)?);
        // SAFETY: `placed` gave each operand memory of its own.
        let run = || unsafe { self.gemms.run(product, &self.stream) };
        run()?;
        start.record(&self.stream)?;
        (0..runs).try_for_each(|_| run())?;
        end.record(&self.stream)?;
        self.stream.synchronize()?;
        end.milliseconds_since(&start)
    }

    /// The product with operands in this memory, aligned as before.
    fn placed(&self, gemm: &Gemm) -> Result<Gemm> {
        let address = |operand: usize, before: u64| self.memory.address + (operand * OPERAND) as u64 + before % 256;
        let matrix = |operand: usize, m: &Matrix, rows: usize| {
            let bytes = rows * m.stride * m.dtype.bytes() + 256;
            anyhow::ensure!(bytes <= OPERAND, "an operand takes {bytes} bytes; there is room for {OPERAND}");
            Ok(Matrix { address: address(operand, m.address), ..*m })
        };
        let [x, w, y] = [(&gemm.x, gemm.m), (&gemm.w, gemm.n), (&gemm.y, gemm.m)];
        Ok(Gemm {
            x: matrix(0, x.0, x.1)?,
            w: matrix(1, w.0, w.1)?,
            y: matrix(2, y.0, y.1)?,
            bias: gemm.bias.map(|before| address(3, before)),
            workspace: address(4, 0),
            ..*gemm
        })
    }

    /// Fills x, w and bias.
    fn fill(&mut self, dtype: DType) -> Result<()> {
        if self.filled == Some(dtype) {
            return Ok(());
        }
        let bits = |value: f32| match dtype {
            DType::F32 => value.to_le_bytes().to_vec(),
            _ => bf16::from_f32(value).to_le_bytes().to_vec(),
        };
        let some: Vec<u8> = (0..VALUES).flat_map(|i| bits(normal(i as u64))).collect();
        for operand in [0, 1, 3] {
            let there = operand * OPERAND..(operand + 1) * OPERAND;
            there.step_by(some.len()).try_for_each(|at| self.memory.write(at, &some))?;
        }
        self.filled = Some(dtype);
        Ok(())
    }
}

/// A normally distributed value, by Box and Muller.
fn normal(number: u64) -> f32 {
    let uniform = |n: u64| {
        let mixed = (n ^ n >> 31).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ mixed >> 32) >> 11) as f64 / (1u64 << 53) as f64
    };
    let (radius, angle) = (uniform(2 * number), uniform(2 * number + 1));
    ((-2.0 * (1.0 - radius).ln()).sqrt() * (TAU * angle).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_normally_distributed() {
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(normal(i))).collect();
        let moment = |power: i32| values.iter().map(|v| v.powi(power)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.02, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.05 && (moment(4) - 3.0).abs() < 0.1, "{} {}", moment(3), moment(4));
    }
}
