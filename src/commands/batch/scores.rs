//! Cheap scores of an edit, by its pixels alone: an edit that changes nothing, or everything, is the commonest reject.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::image::Rgb;

/// A pixel counts as changed if one of its channels differs by more than this, of 255: what the autoencoder alone does to a picture
/// mostly stays below.
const CHANGED: u8 = 24;

/// How far a result is from its source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Share of the pixels that count as changed, 0 to 1.
    pub changed: f64,
    /// Mean difference of the channels of all other pixels, 0 to 255; 0 if there are none.
    pub outside: f64,
    /// Peak signal-to-noise ratio to the source, in dB; 99 at most.
    pub psnr: f64,
    /// Mean of all channels of the result, 0 to 255: 0 is a black picture.
    pub mean: f64,
}

impl Scores {
    /// Compares a result with its source, of the same size.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn of(source: &Rgb, result: &Rgb) -> Scores {
        assert_eq!((source.width, source.height), (result.width, result.height), "one size");
        let row = 3 * source.width;
        let rows = source.data.par_chunks(row).zip(result.data.par_chunks(row));
        let sums = rows.map(|(source, result)| Sums::of(source, result)).reduce(Sums::default, Sums::plus);
        let pixels = (source.width * source.height) as f64;
        let outside = 3.0 * (pixels - sums.changed as f64);
        let rounded = |value: f64| (value * 1e4).round() / 1e4;
        let mean_square = sums.squares as f64 / (3.0 * pixels);
        Scores {
            changed: rounded(sums.changed as f64 / pixels),
            outside: rounded(if outside > 0.0 { sums.outside as f64 / outside } else { 0.0 }),
            psnr: rounded((10.0 * (255.0 * 255.0 / mean_square).log10()).min(99.0)),
            mean: rounded(sums.result as f64 / (3.0 * pixels)),
        }
    }
}

/// Whole numbers, so that the order of adding does not matter.
#[derive(Clone, Copy, Default)]
struct Sums {
    changed: u64,
    outside: u64,
    squares: u64,
    result: u64,
}

impl Sums {
    fn of(source: &[u8], result: &[u8]) -> Sums {
        let mut sums = Sums::default();
        for (a, b) in source.chunks_exact(3).zip(result.chunks_exact(3)) {
            let apart = [0, 1, 2].map(|channel| a[channel].abs_diff(b[channel]));
            sums.squares += apart.iter().map(|apart| u64::from(*apart) * u64::from(*apart)).sum::<u64>();
            sums.result += b.iter().map(|value| u64::from(*value)).sum::<u64>();
            match apart.iter().any(|apart| *apart > CHANGED) {
                true => sums.changed += 1,
                false => sums.outside += apart.iter().map(|apart| u64::from(*apart)).sum::<u64>(),
            }
        }
        sums
    }

    fn plus(self, other: Sums) -> Sums {
        Sums {
            changed: self.changed + other.changed,
            outside: self.outside + other.outside,
            squares: self.squares + other.squares,
            result: self.result + other.result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_pixels_counted_by_hand() {
        let source = Rgb { width: 2, height: 2, data: vec![100; 12] };
        assert_eq!(Scores::of(&source, &source), Scores { changed: 0.0, outside: 0.0, psnr: 99.0, mean: 100.0 });
        // One pixel far off in one channel, one channel of another by 6.
        let mut result = source.clone();
        (result.data[0], result.data[4]) = (200, 106);
        let scores = Scores::of(&source, &result);
        assert_eq!((scores.changed, scores.outside), (0.25, 0.6667));
        let mean_square: f64 = (100.0 * 100.0 + 36.0) / 12.0;
        assert!((scores.psnr - 10.0 * (65025.0 / mean_square).log10()).abs() < 1e-4);
        let at = |apart: u8| Scores::of(&source, &Rgb { data: vec![100 + apart; 12], ..source.clone() }).changed;
        assert_eq!((at(CHANGED), at(CHANGED + 1)), (0.0, 1.0));
        let black = Scores::of(&source, &Rgb { data: vec![0; 12], ..source.clone() });
        assert_eq!((black.mean, black.outside), (0.0, 0.0));
    }
}
