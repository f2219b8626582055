//! The coded blocks of a component, walked without making pixels of them.
//!
//! A block that cannot exist is a [`Fault`]. One that can, but that no picture of 8-bit samples has, raises a doubt.

use super::huffman::{Bits, Missing, Table};

/// The size that no coefficient exceeds before quantisation: √(64 · 128²).
const MOST: i64 = 1024;

/// Samples lie within 128 of the middle. Some writers exceed it by up to 31, so that edges of white ring less.
const REACH: f64 = 160.0;

/// Values of a block whose codes stand among equal bytes, so many that no writer has made them.
const MONOTONOUS_MAX: u32 = 16;

/// Why a block cannot be walked.
pub(super) enum Fault {
    /// The data ends in it.
    Missing,
    /// It holds what no writer writes.
    Impossible,
}

impl From<Missing> for Fault {
    fn from(_: Missing) -> Fault {
        Fault::Missing
    }
}

/// The coefficients that a scan brings, in coded order, and how many of their lowest bits were and will be missing.
#[derive(Clone, Copy)]
pub(super) struct Band {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) before: u8,
    pub(super) after: u8,
}

/// What is known of a component.
pub(super) struct Component {
    /// Blocks of it in a unit, across and down.
    pub(super) sampling: (usize, usize),
    /// Blocks across and down: of the picture itself, and with those that fill up the last units.
    pub(super) own: (usize, usize),
    pub(super) padded: (usize, usize),
    /// For each coefficient how many of its lowest bits have not come yet; none: nothing has.
    pub(super) missing_bits: [Option<u8>; 64],
    /// For each block, in which coefficients refinement finds a value. Only of progressive files.
    pub(super) nonzero: Vec<u64>,
    /// Steps of the coefficients.
    pub(super) steps: [i64; 64],
    /// Largest distance of a block from what it was before it was rounded to steps.
    pub(super) rounding: f64,
    /// The last DC value.
    pub(super) dc: i32,
    /// Blocks that a code has said to end at once.
    pub(super) ending: u32,
    /// Something was found that no picture has.
    pub(super) doubtful: bool,
}

impl Component {
    /// Whether all has come. The end marker vouches that the writer meant to send nothing finer.
    pub(super) fn complete(&self, progressive: bool, ended: bool) -> bool {
        match (progressive, ended) {
            (true, false) => self.missing_bits.iter().all(|missing| *missing == Some(0)),
            _ => self.missing_bits[0].is_some(),
        }
    }

    pub(super) fn restart(&mut self) {
        (self.dc, self.ending) = (0, 0);
    }

    /// A block of a sequential scan.
    pub(super) fn whole(&mut self, bits: &mut Bits, dc: &Table, ac: &Table) -> Result<(), Fault> {
        self.dc_first(bits, dc, 0)?;
        let (mut next, mut monotonous, mut energy) = (1, 0, 0);
        while next < 64 {
            let code = bits.symbol(ac)?.ok_or(Fault::Impossible)?;
            let (zeros, size) = (usize::from(code >> 4), code & 15);
            match (zeros, size) {
                (15, 0) => next += 16,
                (_, 0) => break,
                _ => {
                    next += zeros + 1;
                    let value = value(bits.take(size.into())?, size);
                    energy += square(i64::from(value) * self.steps.get(next - 1).ok_or(Fault::Impossible)?);
                    monotonous += u32::from(bits.in_monotony());
                }
            }
            if next > 64 || size > 10 {
                return Err(Fault::Impossible);
            }
        }
        self.doubtful |= monotonous > MONOTONOUS_MAX || energy as f64 > self.energy_max();
        Ok(())
    }

    /// Most that the squares of a block's AC coefficients can sum up to, given its mean: no sample lies beyond the reach.
    fn energy_max(&self) -> f64 {
        // A coefficient may have been rounded by half a step.
        let mean = (f64::from(self.dc.abs()) - 0.5) * self.steps[0] as f64 / 8.0;
        let variance = ((REACH - mean) * (REACH + mean)).max(0.0);
        (8.0 * variance.sqrt() + self.rounding).powi(2)
    }

    /// Sets the steps of the coefficients.
    pub(super) fn quantise(&mut self, steps: [i64; 64]) {
        self.steps = steps;
        self.rounding = steps.iter().map(|step| square(*step) as f64 / 4.0).sum::<f64>().sqrt();
    }

    /// The first bits of a DC value.
    pub(super) fn dc_first(&mut self, bits: &mut Bits, table: &Table, after: u8) -> Result<(), Fault> {
        let size = bits.symbol(table)?.ok_or(Fault::Impossible)?;
        if size > 11 {
            return Err(Fault::Impossible);
        }
        self.dc += value(bits.take(size.into())?, size);
        let reached = i64::from(self.dc << after).abs() * self.steps[0];
        self.doubtful |= reached > MOST + 2 * self.steps[0];
        match reached <= 2 * MOST + 2 * self.steps[0] {
            true => Ok(()),
            false => Err(Fault::Impossible),
        }
    }

    /// The first bits of a band of coefficients of the block at this place.
    pub(super) fn ac_first(&mut self, bits: &mut Bits, table: &Table, band: Band, at: usize) -> Result<(), Fault> {
        if self.ending > 0 {
            self.ending -= 1;
            return Ok(());
        }
        let (mut next, mut monotonous) = (band.first, 0);
        while next <= band.last {
            let code = bits.symbol(table)?.ok_or(Fault::Impossible)?;
            let (zeros, size) = (usize::from(code >> 4), code & 15);
            match (zeros, size) {
                (15, 0) => next += 16,
                (run, 0) => {
                    self.ending = (1 << run) - 1 + bits.take(run as u32)?;
                    return Ok(());
                }
                _ => {
                    next += zeros + 1;
                    let value = value(bits.take(size.into())?, size);
                    if next > band.last + 1 || size > 10 {
                        return Err(Fault::Impossible);
                    }
                    let reached = i64::from(value << band.after).abs() * self.steps[next - 1];
                    monotonous += u32::from(bits.in_monotony());
                    self.doubtful |= reached > MOST + 2 * self.steps[next - 1] || monotonous > MONOTONOUS_MAX;
                    self.nonzero[at] |= 1 << (next - 1);
                }
            }
        }
        Ok(())
    }

    /// One more bit of a band of coefficients: of each that has a value already, and of those that get one now.
    pub(super) fn ac_refined(&mut self, bits: &mut Bits, table: &Table, band: Band, at: usize) -> Result<(), Fault> {
        let nonzero = &mut self.nonzero[at];
        let mut next = band.first;
        while self.ending == 0 && next <= band.last {
            let code = bits.symbol(table)?.ok_or(Fault::Impossible)?;
            let (mut zeros, size) = (code >> 4, code & 15);
            match (zeros, size) {
                (0..=14, 0) => {
                    self.ending = (1 << zeros) + bits.take(zeros.into())?;
                    break;
                }
                (_, 0 | 1) => bits.take(size.into())?,
                _ => return Err(Fault::Impossible),
            };
            // The new value stands behind so many zeros, among which those with a value are refined.
            loop {
                if next > band.last {
                    if size > 0 {
                        return Err(Fault::Impossible);
                    }
                    break;
                }
                next += 1;
                if *nonzero >> (next - 1) & 1 == 1 {
                    bits.take(1)?;
                } else if zeros > 0 {
                    zeros -= 1;
                } else {
                    *nonzero |= u64::from(size) << (next - 1);
                    break;
                }
            }
        }
        if self.ending > 0 {
            let rest = u64::MAX >> (63 - band.last) & u64::MAX.checked_shl(next as u32).unwrap_or(0);
            for _ in 0..(*nonzero & rest).count_ones() {
                bits.take(1)?;
            }
            self.ending -= 1;
        }
        Ok(())
    }
}

/// The number that these bits stand for: the lower half of them are negative.
fn value(bits: u32, size: u8) -> i32 {
    let bits = bits as i32;
    if size > 0 && bits >> (size - 1) == 0 { bits - (1 << size) + 1 } else { bits }
}

fn square(number: i64) -> i64 {
    number * number
}
