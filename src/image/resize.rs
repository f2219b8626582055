//! Pillow's resampling of 8-bit pictures, torchvision's, and the working size of an edit.
//!
//! Two separable passes, columns first. Each pass computes its weights in float64, rounds them to 22 fractional bits and
//! sums in i32; its result is rounded to 8 bits before the next pass. A pass whose axis keeps its size is skipped. Every
//! rounding is Pillow's, so results are equal in all bits. torchvision does the same with weights of 16 bits, whose fraction is
//! as long as the axis' largest weight allows.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::Rgb;

/// Fractional bits of Pillow's weights: 8 bits of the sample and 2 of headroom complete an i32.
const WEIGHT_BITS: u32 = 22;

/// A filter, in one library's arithmetic.
#[derive(Clone, Copy, Debug)]
enum Rule {
    Pillow(Filter),
    /// Bicubic with antialiasing.
    Torchvision,
}

impl Rule {
    fn filter(self) -> Filter {
        match self {
            Rule::Pillow(filter) => filter,
            Rule::Torchvision => Filter::Bicubic,
        }
    }

    /// Fractional bits of weights, the largest of which is `largest`: torchvision's fit in 16 bits.
    fn bits(self, largest: f64) -> u32 {
        let too_large = |bits: &u32| (0.5 + largest * f64::from(1 << (bits + 1))) as i32 >= 1 << 15;
        match self {
            Rule::Pillow(_) => WEIGHT_BITS,
            Rule::Torchvision => (0..WEIGHT_BITS).find(too_large).unwrap_or(WEIGHT_BITS),
        }
    }
}

/// Sides of the working picture are multiples of this: 8 of the autoencoder times 2 of the patches.
const SIDE_MULTIPLE: usize = 16;

/// Interpolation kernel; widened by the scale when a picture shrinks (antialiasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Keys' cubic convolution with a = −0.5, 2 pixels to each side.
    Bicubic,
    /// Windowed sinc, 3 pixels to each side.
    Lanczos,
}

impl Filter {
    /// Distance in input pixels (before widening) beyond which the kernel is 0.
    fn support(self) -> f64 {
        match self {
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Filter::Bicubic => cubic(x.abs()),
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

/// Keys' kernel for a = −0.5 at distance `x` ≥ 0. The order of operations is part of bit equality.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let angle = x * std::f64::consts::PI;
    angle.sin() / angle
}

/// The input samples that make one output sample, along one axis.
struct Window {
    /// Index of the first input sample.
    first: usize,
    /// One fixed-point weight for each sample from `first` on; they sum to about 1.
    weights: Vec<i32>,
}

/// The windows of one axis.
struct Axis {
    windows: Vec<Window>,
    /// Fractional bits of the weights.
    bits: u32,
}

impl Axis {
    /// Where a sum of weighted samples starts, so that dropping the fraction rounds to nearest.
    fn half(&self) -> i32 {
        1 << self.bits >> 1
    }

    fn sample(&self, sum: i32) -> u8 {
        (sum >> self.bits).clamp(0, 255) as u8
    }
}

/// One window for each of `output` samples made from `input` samples.
fn windows(input: usize, output: usize, rule: Rule) -> Axis {
    let filter = rule.filter();
    let scale = input as f64 / output as f64;
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    let per_sample = 1.0 / widening;
    let exact: Vec<(usize, Vec<f64>)> = (0..output)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            // `as` truncates toward zero and saturates at 0, which is the clipping on the left.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let weights: Vec<f64> = (first..end).map(|j| filter.weight((j as f64 - center + 0.5) * per_sample)).collect();
            let sum: f64 = weights.iter().sum();
            (first, weights.iter().map(|w| if sum == 0.0 { *w } else { w / sum }).collect())
        })
        .collect();
    let largest = exact.iter().flat_map(|(_, weights)| weights).copied().fold(0.0, f64::max);
    let bits = rule.bits(largest);
    let fixed = |(first, weights): (usize, Vec<f64>)| Window {
        first,
        weights: weights.into_iter().map(|weight| fixed_point(weight, bits)).collect(),
    };
    Axis { windows: exact.into_iter().map(fixed).collect(), bits }
}

/// `weight` with so many fractional bits, halves rounded away from zero.
fn fixed_point(weight: f64, bits: u32) -> i32 {
    let scaled = weight * f64::from(1 << bits);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// `picture` at `width` × `height` pixels, equal to Pillow's `Image.resize` in every bit.
///
/// # Panics
///
/// If `width` or `height` is 0, or `picture.data` does not hold `height · width · 3` bytes.
pub fn resize(picture: &Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    resize_by(Rule::Pillow(filter), picture, width, height)
}

/// `picture` at `width` × `height` pixels, equal in every bit to torchvision's bicubic `resize` of 8-bit pictures with antialiasing.
///
/// # Panics
///
/// As [`resize`].
pub fn resize_as_torchvision(picture: &Rgb, width: usize, height: usize) -> Rgb {
    resize_by(Rule::Torchvision, picture, width, height)
}

fn resize_by(rule: Rule, picture: &Rgb, width: usize, height: usize) -> Rgb {
    let data = resize_channels::<3>(&picture.data, (picture.width, picture.height), (width, height), rule);
    Rgb { width, height, data }
}

/// Opacity of each pixel, [height, width], at another size (width, height).
///
/// # Panics
///
/// As [`resize`].
pub fn resize_alpha(alpha: Vec<u8>, from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    if from == to { alpha } else { resize_channels::<1>(&alpha, from, to, Rule::Pillow(Filter::Bicubic)) }
}

/// [H, W, N] to [height, width, N].
fn resize_channels<const N: usize>(data: &[u8], from: (usize, usize), to: (usize, usize), rule: Rule) -> Vec<u8> {
    assert!(to.0 > 0 && to.1 > 0, "resize to {}x{}: a picture has at least one pixel", to.0, to.1);
    assert_eq!(data.len(), from.0 * from.1 * N, "{}x{} of {N} channels", from.0, from.1);
    if from.0 == to.0 {
        return resize_rows(data, (from.0 * N, from.1), to.1, rule);
    }
    let columns = resize_columns::<N>(data, from, to.0, rule);
    if from.1 == to.1 { columns } else { resize_rows(&columns, (to.0 * N, from.1), to.1, rule) }
}

/// The horizontal pass: [H, W, N] to [H, to, N].
fn resize_columns<const N: usize>(data: &[u8], (width, height): (usize, usize), to: usize, rule: Rule) -> Vec<u8> {
    let axis = windows(width, to, rule);
    let mut resized = vec![0; height * to * N];
    resized.par_chunks_exact_mut(to * N).zip(data.par_chunks_exact(width * N)).for_each(|(output, input)| {
        for (pixel, window) in output.chunks_exact_mut(N).zip(&axis.windows) {
            let mut sum = [axis.half(); N];
            for (weight, sample) in window.weights.iter().zip(input[window.first * N..].chunks_exact(N)) {
                for channel in 0..N {
                    sum[channel] += weight * i32::from(sample[channel]);
                }
            }
            pixel.copy_from_slice(&sum.map(|sum| axis.sample(sum)));
        }
    });
    resized
}

/// The vertical pass: [H, row] to [to, row].
fn resize_rows(data: &[u8], (row, height): (usize, usize), to: usize, rule: Rule) -> Vec<u8> {
    if height == to {
        return data.to_vec();
    }
    let axis = windows(height, to, rule);
    let mut resized = vec![0; to * row];
    resized.par_chunks_exact_mut(row).zip(&axis.windows).for_each_init(
        || vec![0; row],
        |sums, (output, window)| {
            sums.fill(axis.half());
            for (weight, input) in window.weights.iter().zip(data[window.first * row..].chunks_exact(row)) {
                for (sum, sample) in sums.iter_mut().zip(input) {
                    *sum += weight * i32::from(*sample);
                }
            }
            for (sample, sum) in output.iter_mut().zip(sums) {
                *sample = axis.sample(*sum);
            }
        },
    );
    resized
}

/// Width and height in pixels at which a `width` × `height` picture is edited: about `size_level`² pixels of the same
/// aspect, each side rounded down to a multiple of 16.
///
/// # Errors
///
/// If a side of the input or `size_level` is 0, or the aspect is so extreme that a side would become 0.
pub fn working_size(width: usize, height: usize, size_level: usize) -> Result<(usize, usize)> {
    ensure!(width > 0 && height > 0, "a {width}x{height} picture has no pixels; both sides must be at least 1 pixel");
    ensure!(
        (SIDE_MULTIPLE..=1 << 20).contains(&size_level),
        "size level {size_level} is out of range; give one from {SIDE_MULTIPLE} to {} pixels, usually 512 or 1024",
        1 << 20
    );
    let aspect = width as f64 / height as f64;
    let area = (size_level * size_level) as f64;
    let (wide, high) = if width > height {
        let wide = (area * aspect).sqrt().ceil();
        (wide, (wide / aspect).ceil())
    } else {
        let high = (area / aspect).sqrt().ceil();
        ((high * aspect).ceil(), high)
    };
    let (wide, high) = (round_down(wide), round_down(high));
    // A side of 16 needs size_level / √aspect ≥ 16; rounding up on the way admits slightly more.
    let aspect_max = (size_level / SIDE_MULTIPLE).pow(2);
    ensure!(
        wide > 0 && high > 0,
        "a {width}x{height} picture is too narrow: at size level {size_level} it would be edited at {wide}x{high} pixels; \
         the longer side may be up to {aspect_max} times the shorter one, so crop the picture or raise the size level"
    );
    Ok((wide, high))
}

fn round_down(side: f64) -> usize {
    side as usize / SIDE_MULTIPLE * SIDE_MULTIPLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use sha2::{Digest, Sha256};
    use std::path::PathBuf;

    fn golden(file: &str) -> PathBuf {
        PathBuf::from(std::env::var_os("STEP1X_GOLDEN").unwrap_or("tests/data/golden".into())).join(file)
    }

    fn golden_resizes() -> Value {
        serde_json::from_slice(&std::fs::read(golden("resize.json")).unwrap()).unwrap()
    }

    fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn pair(value: &Value) -> (usize, usize) {
        let sides = numbers(value);
        (sides[0], sides[1])
    }

    fn sha256(data: &[u8]) -> String {
        Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The picture that the metadata of `processor.safetensors` states as a formula.
    fn formula(width: usize, height: usize, shift: usize) -> Rgb {
        let pixel = |x: usize, y: usize| {
            let r = 5 * x + 3 * y + 31 * shift;
            let g = x * y / 11 + 17 * shift;
            let b = ((x >> 3) ^ (y >> 2)) * 37 + shift;
            [r as u8, g as u8, b as u8]
        };
        let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
        Rgb { width, height, data }
    }

    #[test]
    fn golden_pixels() {
        let golden = golden_resizes();
        let cases = golden["pixels"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let (width, height) = pair(&case["input_size"]);
            let picture = Rgb { width, height, data: numbers(&case["input"]) };
            let (width, height) = pair(&case["output_size"]);
            for (filter, name) in [(Filter::Lanczos, "lanczos"), (Filter::Bicubic, "default_filter")] {
                let resized = resize(&picture, width, height, filter);
                assert_eq!(resized.data, numbers::<u8>(&case[name]), "{name} to {width}x{height}");
            }
        }
    }

    #[test]
    fn golden_working_sizes() {
        let golden = golden_resizes();
        let cases = golden["sizes"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let (width, height) = pair(&case["input"]);
            let size_level = case["size_level"].as_u64().unwrap() as usize;
            assert_eq!(working_size(width, height, size_level).unwrap(), pair(&case["working"]), "{case}");
        }
    }

    #[test]
    fn golden_processor_chain() {
        let file = std::fs::read(golden("processor.safetensors")).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&file).unwrap();
        let cases: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let number = |name: &str| case[name].as_u64().unwrap() as usize;
            let input = formula(number("width"), number("height"), number("shift"));
            assert_eq!(sha256(&input.data), case["input_sha256"], "input of {case}");
            let (width, height) = pair(&case["first_size"]);
            let first = resize(&input, width, height, Filter::Bicubic);
            assert_eq!(sha256(&first.data), case["first_sha256"], "first resize of {case}");
            let (width, height) = pair(&case["final_size"]);
            let last = resize(&first, width, height, Filter::Bicubic);
            assert_eq!(sha256(&last.data), case["resized_sha256"], "second resize of {case}");
        }
    }

    /// SHA-256 (first 8 bytes) of Pillow 11.1's resizes of `formula(width, height, shift)`: (width, height, shift,
    /// output width, output height, bicubic, lanczos).
    const PILLOW: &[(usize, usize, usize, usize, usize, &str, &str)] = &[
        (1, 1, 1, 37, 21, "50458902877c8437", "50458902877c8437"),
        (2, 3, 2, 1, 1, "116727cad246c6b6", "116727cad246c6b6"),
        (300, 200, 3, 1, 1, "98b530bd13f3fe38", "98b530bd13f3fe38"),
        (64, 48, 4, 65, 47, "8afc846cbe922f35", "c83f1cf58d40a77f"),
        (500, 3, 5, 16, 3, "370bf032945cb159", "0c72370b7454d259"),
        (500, 3, 5, 500, 90, "3a949dd8872dee82", "4cdacdb90a956793"),
        (3, 900, 6, 7, 11, "624092ed77e1295f", "40ecdb2c6049cbfa"),
        (1000, 700, 7, 592, 432, "ba539136b59fd072", "3cac704d3a6929c1"),
        (257, 129, 8, 1536, 640, "a262e0d207fcb882", "13d383197537ff31"),
        (640, 427, 9, 33, 1200, "3be203832a35033c", "4fbb657ed2ab348c"),
        (97, 89, 10, 96, 16, "fb102cd4c99f9353", "685c376f0cdfc0ab"),
        (16, 16, 11, 512, 512, "83a53b85c2897495", "6e10423f960c100e"),
        (1201, 801, 12, 600, 401, "d442973b525d31a3", "29ff2b7fbf3d0662"),
        (50, 50, 13, 25, 200, "25a0fc6738712f52", "0ea50dd325554e65"),
    ];

    #[test]
    fn pillow_at_extremes() {
        for &(width, height, shift, to_width, to_height, bicubic, lanczos) in PILLOW {
            let picture = formula(width, height, shift);
            for (filter, expected) in [(Filter::Bicubic, bicubic), (Filter::Lanczos, lanczos)] {
                let found = sha256(&resize(&picture, to_width, to_height, filter).data);
                assert_eq!(&found[..16], expected, "{width}x{height} to {to_width}x{to_height}, {filter:?}");
            }
        }
    }

    /// SHA-256 (first 8 bytes) of resizes of `formula(width, height, shift)` by PyTorch 2.11, whose arithmetic torchvision uses:
    /// (width, height, shift, output width, output height, bicubic with antialiasing).
    const TORCHVISION: &[(usize, usize, usize, usize, usize, &str)] = &[
        (300, 200, 3, 1, 1, "98b530bd13f3fe38"),
        (64, 48, 4, 65, 47, "a369db939fdd124e"),
        (500, 3, 5, 16, 3, "370bf032945cb159"),
        (3, 900, 6, 7, 11, "624092ed77e1295f"),
        (1036, 1036, 7, 504, 504, "98f7dc1a325ae158"),
        (840, 1260, 8, 392, 616, "e6b967e75e7c1b8a"),
        (1372, 756, 9, 672, 364, "4552a00ca3248b00"),
        (640, 427, 10, 33, 1200, "a8c46f47e6963da8"),
        (97, 89, 11, 96, 16, "1952aa0aa198a7b1"),
        (6000, 40, 12, 28, 28, "d5892d57c262ee7d"),
    ];

    #[test]
    fn torchvision_at_extremes() {
        for &(width, height, shift, to_width, to_height, expected) in TORCHVISION {
            let found = sha256(&resize_as_torchvision(&formula(width, height, shift), to_width, to_height).data);
            assert_eq!(&found[..16], expected, "{width}x{height} to {to_width}x{to_height}");
        }
    }

    /// 255 · Σ|weight| must stay below 2³¹ for the sums to fit their i32.
    #[test]
    fn weighted_sums_fit() {
        for rule in [Rule::Pillow(Filter::Bicubic), Rule::Pillow(Filter::Lanczos), Rule::Torchvision] {
            for (input, output) in (1..60).flat_map(|input| (1..60).map(move |output| (input, output))) {
                let axis = windows(input, output, rule);
                for window in &axis.windows {
                    let sum: i64 = window.weights.iter().map(|weight| i64::from(weight.abs())).sum();
                    assert!(sum * 255 + i64::from(axis.half()) < 1 << 31, "{input} to {output}, {rule:?}");
                    let most = window.weights.iter().copied().max().unwrap_or(0);
                    assert!(!matches!(rule, Rule::Torchvision) || most < 1 << 15, "{input} to {output}: {most}");
                }
            }
        }
        // A picture of extreme aspect on its way to a few pixels: the fraction has its most bits, and sums still fit.
        let axis = windows(1_000_000, 28, Rule::Torchvision);
        assert_eq!(axis.bits, WEIGHT_BITS);
    }

    #[test]
    fn same_size_is_a_copy() {
        let picture = formula(7, 5, 1);
        assert_eq!(resize(&picture, 7, 5, Filter::Lanczos), picture);
    }

    #[test]
    fn extreme_aspect_is_refused_with_the_possible_one() {
        let message = working_size(100_000, 10, 512).unwrap_err().to_string();
        assert!(message.contains("100000x10") && message.contains("1024 times"), "{message}");
        assert!(working_size(10, 100_000, 512).is_err());
        assert!(working_size(10_240, 10, 512).is_ok());
        assert!(working_size(0, 10, 512).is_err());
        assert!(working_size(10, 10, 0).is_err());
        assert!(working_size(10, 10, usize::MAX).is_err());
    }
}
