//! What sampling needs from the host: times, per-step table, starting noise from PyTorch's CPU generator, packing.
//!
//! Times and CPU noise equal the official float32 values bit for bit, so the order of operations here is the rule, not
//! a choice: PyTorch's AVX2 noise comes from short polynomials whose products and sums the compiler fused in places.
//! Knows nothing of graphs and devices; noise of a CUDA generator is an op (`ops::Noise`).

use std::f32::consts::{FRAC_1_SQRT_2, TAU};
use std::hash::{BuildHasher, Hasher, RandomState};

use rayon::prelude::*;

use crate::ops;
use crate::tensor::DType;

/// The times of `steps` steps over `tokens` noisy tokens, from 1 down to 0: [steps + 1].
///
/// Linear times bent towards 1, more so for more tokens. At some sizes (1014 tokens, say) the first time is the float
/// below 1: the official division is a reciprocal and a product.
pub fn schedule(steps: usize, tokens: usize) -> Vec<f32> {
    let shift = exp_shift(tokens);
    let step = (-1.0 / steps as f64) as f32;
    let count = steps + 1;
    let linear = |i: usize| match i < count / 2 {
        true => step.mul_add(i as f32, 1.0),
        false => -step * (steps - i) as f32,
    };
    (0..count).map(|i| 1.0 / (shift + (1.0 / linear(i) - 1.0)) * shift).collect()
}

/// Which arithmetic makes the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The official script's, see [`schedule`]; times are embedded as they are.
    Official,
    /// The Euler scheduler of diffusers: the same curve with other last bits. A time is embedded as a thousandth of the
    /// scheduler's timestep, in the type in which the pipeline runs.
    Scheduler,
}

impl Clock {
    /// The times of `steps` steps over `tokens` noisy tokens, from 1 down to 0: [steps + 1].
    pub fn times(self, steps: usize, tokens: usize) -> Vec<f32> {
        if self == Clock::Official {
            return schedule(steps, tokens);
        }
        // Equally spaced from 1 to 1/steps in f64, then everything in f32; the last, 0, is put behind.
        let shift = exp_shift(tokens);
        let last = 1.0 / steps as f64;
        let spacing = if steps > 1 { (last - 1.0) / (steps - 1) as f64 } else { 0.0 };
        let linear = |i: usize| if i + 1 == steps && i > 0 { last } else { i as f64 * spacing + 1.0 };
        let bent = |i: usize| shift / (shift + (1.0 / linear(i) as f32 - 1.0));
        (0..steps).map(bent).chain([0.0]).collect()
    }

    /// A time as the model is told it, in a run of type `dtype`.
    pub fn told(self, time: f32, dtype: DType) -> f32 {
        let round = |value| ops::round(dtype, value);
        match (self, dtype) {
            (Clock::Official, _) => time,
            (Clock::Scheduler, DType::F32) => time * 1000.0 / 1000.0,
            // The model multiplies by 1000 in that type again; here that is undone in f32, where it is exact to a last bit.
            (Clock::Scheduler, _) => round(1000.0 * round(round(time * 1000.0) / 1000.0)) / 1000.0,
        }
    }
}

/// How much times over so many tokens are bent towards 1.
fn exp_shift(tokens: usize) -> f32 {
    let slope = (1.15 - 0.5) / (4096.0 - 256.0);
    (slope * tokens as f64 + (0.5 - slope * 256.0)).exp() as f32
}

/// Each step's Δt, 1 where guidance is limited by its norm (time above `guidance_limit`), else 0, and `scale`: [steps, 3].
///
/// Times become Python floats in the official code, so they are subtracted and compared in f64; the product with the
/// velocity takes Δt in f32.
pub fn step_table(times: &[f32], guidance_limit: f64, scale: f32) -> Vec<f32> {
    let row = |pair: &[f32]| {
        let (t, next) = (pair[0] as f64, pair[1] as f64);
        [(next - t) as f32, if t > guidance_limit { 1.0 } else { 0.0 }, scale]
    };
    times.windows(2).flat_map(row).collect()
}

/// Noise [16, height, width] as packed tokens [height/2 · width/2, 64], channel c·4 + row·2 + col, rounded to `dtype`.
pub fn pack_noise(noise: &[f32], height: usize, width: usize, dtype: DType) -> Vec<f32> {
    assert!(height.is_multiple_of(2) && width.is_multiple_of(2), "latents of {height}x{width} do not pack in 2x2 squares");
    assert_eq!(noise.len(), 16 * height * width, "noise for latents of 16x{height}x{width}");
    (0..noise.len()).map(|at| ops::round(dtype, noise[ops::drawn_at(at, (height, width))])).collect()
}

/// A seed nobody chose, from the system's entropy; 63 bits, so that it can be given back as a seed that is not negative.
pub fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 11
}

/// The first `n` values of `torch.randn` in float32 from a CPU generator just seeded: [n].
pub fn torch_cpu_normal(seed: u64, n: usize) -> Vec<f32> {
    let mut words = MersenneTwister::new(seed as u32);
    match n < GROUP {
        true => pairs(&mut words, n),
        false => groups(&mut words, n),
    }
}

/// Values that PyTorch makes together: eight radii, then eight angles.
const GROUP: usize = 16;

/// Few values: pairs in f64, cosine first, each uniform from two words (53 bits).
fn pairs(words: &mut MersenneTwister, n: usize) -> Vec<f32> {
    let mut uniform = || {
        let (high, low) = (words.next() as u64, words.next() as u64);
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    };
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let (angle, radius) = (std::f64::consts::TAU * uniform(), (-2.0 * (-uniform()).ln_1p()).sqrt());
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(n);
    values
}

/// Many values: uniforms of 24 bits in place, then groups of 16; an incomplete group is covered by drawing the last 16
/// values anew.
fn groups(words: &mut MersenneTwister, n: usize) -> Vec<f32> {
    let mut uniform = || (words.next() & 0xFF_FFFF) as f32 / 16_777_216.0;
    let mut values: Vec<f32> = (0..n).map(|_| uniform()).collect();
    let mut last: [f32; GROUP] = std::array::from_fn(|_| uniform());
    values.par_chunks_exact_mut(GROUP).for_each(normal_group);
    if !n.is_multiple_of(GROUP) {
        normal_group(&mut last);
        values[n - GROUP..].copy_from_slice(&last);
    }
    values
}

/// 16 uniforms to 16 normals, in place: cosines, then sines.
fn normal_group(group: &mut [f32]) {
    let (first, second) = group.split_at_mut(GROUP / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * log(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(TAU * *b);
        // Times deviation 1 plus mean 0, which makes a negative zero positive.
        (*a, *b) = (radius * cos + 0.0, radius * sin + 0.0);
    }
}

/// Cephes' `logf` for x in [2^-24, 1].
fn log(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    // ln 2 as a short number and a rest, so that its product with the exponent is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let exponent = (x.to_bits() >> 23) as i32 - 126;
    let mantissa = f32::from_bits(x.to_bits() & 0x7F_FFFF | 0.5f32.to_bits());
    let (m, e) = match mantissa < FRAC_1_SQRT_2 {
        true => (mantissa - 1.0 + mantissa, (exponent - 1) as f32),
        false => (mantissa - 1.0, exponent as f32),
    };
    let square = m * m;
    let series = P[1..].iter().fold(P[0], |sum, &p| sum.mul_add(m, p)) * m;
    let rest = (-0.5f32).mul_add(square, series.mul_add(square, e * LN_2[1]));
    e.mul_add(LN_2[0], m + rest)
}

/// Cephes' `sinf` and `cosf` for x in [0, 2π].
fn sin_cos(x: f32) -> (f32, f32) {
    const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    // π/4 in three parts, subtracted one after the other.
    const QUARTER: [f32; 3] = [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8];
    let octant = ((x * (4.0 / std::f32::consts::PI)) as i32 + 1) & !1;
    let x = QUARTER.iter().fold(x, |x, &part| (-part).mul_add(octant as f32, x));
    let square = x * x;
    let cos = COS[0].mul_add(square, COS[1]).mul_add(square, COS[2]) * square;
    let cos = cos.mul_add(square, -0.5 * square) + 1.0;
    let sin = SIN[0].mul_add(square, SIN[1]).mul_add(square, SIN[2]) * square;
    let sin = sin.mul_add(x, x);
    match octant & 7 {
        0 => (sin, cos),
        2 => (cos, -sin),
        4 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// mt19937: 624 words of state, replaced all at once.
struct MersenneTwister {
    state: [u32; Self::WORDS],
    at: usize,
}

impl MersenneTwister {
    const WORDS: usize = 624;
    const SHIFT: usize = 397;

    /// Only the low half of a generator's 64-bit seed reaches the state.
    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::WORDS];
        for i in 1..Self::WORDS {
            let previous = state[i - 1];
            state[i] = (previous ^ previous >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        MersenneTwister { state, at: Self::WORDS }
    }

    fn next(&mut self) -> u32 {
        if self.at == Self::WORDS {
            self.refill();
        }
        let mut word = self.state[self.at];
        self.at += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9D2C_5680;
        word ^= word << 15 & 0xEFC6_0000;
        word ^ word >> 18
    }

    fn refill(&mut self) {
        for i in 0..Self::WORDS {
            let joined = self.state[i] & 0x8000_0000 | self.state[(i + 1) % Self::WORDS] & 0x7FFF_FFFF;
            let twisted = (joined >> 1) ^ ((joined & 1) * 0x9908_B0DF);
            self.state[i] = self.state[(i + Self::SHIFT) % Self::WORDS] ^ twisted;
        }
        self.at = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_from_one_to_zero() {
        for tokens in [24, 256, 1024, 4096] {
            for steps in 1..=200 {
                let times = schedule(steps, tokens);
                assert_eq!(times.len(), steps + 1);
                assert!(times.is_sorted_by(|a, b| a > b), "{steps} steps, {tokens} tokens");
                assert_eq!((times[0], times[steps]), (1.0, 0.0), "{steps} steps, {tokens} tokens");
            }
        }
    }

    #[test]
    fn first_time_is_one_or_the_float_below() {
        for tokens in 1..=20_000 {
            let first = schedule(1, tokens)[0];
            assert!(first == 1.0 || first == 1.0f32.next_down(), "{tokens} tokens: {first}");
        }
        // A recorded official run over 1014 tokens begins here.
        assert_eq!(schedule(28, 1014)[0], 1.0f32.next_down());
    }

    #[test]
    fn step_table_holds_differences_the_rule_and_the_scale() {
        // 0.93 in f32 lies above 0.93 in f64, so it counts as above the limit.
        let times = [1.0, 0.93, 0.929, 0.25, 0.0];
        let rule = |limit| step_table(&times, limit, 6.0).chunks(3).map(|row| row[1]).collect::<Vec<_>>();
        assert_eq!(rule(0.93), [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(rule(0.93f32 as f64), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(rule(1.0), [0.0; 4]);
        let table = step_table(&times, 0.93, 6.0);
        assert_eq!(table.len(), 12);
        assert_eq!((table[0], table[9]), ((0.93f32 as f64 - 1.0) as f32, -0.25));
        assert!(table.iter().skip(2).step_by(3).all(|scale| *scale == 6.0));
    }

    #[test]
    fn noise_packs_in_squares() {
        // Latents of 4x6: every value names its place.
        let noise: Vec<f32> = (0..16 * 24).map(|at| at as f32).collect();
        let tokens = pack_noise(&noise, 4, 6, DType::F32);
        assert_eq!(tokens[..8], [0.0, 1.0, 6.0, 7.0, 24.0, 25.0, 30.0, 31.0]);
        assert_eq!(tokens[64..68], [2.0, 3.0, 8.0, 9.0], "second token: next to the first");
        assert_eq!(tokens[3 * 64..][..4], [12.0, 13.0, 18.0, 19.0], "fourth token: below the first");
        assert_eq!(tokens[5 * 64 + 63], 383.0);
        assert_eq!(pack_noise(&noise, 4, 6, DType::BF16)[5 * 64 + 63], 384.0);
    }

    #[test]
    fn last_group_is_drawn_anew() {
        let (even, odd) = (torch_cpu_normal(3, 32), torch_cpu_normal(3, 35));
        assert_eq!(even[..19], odd[..19]);
        assert_ne!(even[19..], odd[19..32]);
        assert_eq!(torch_cpu_normal(3, 0), [0.0; 0]);
        assert_eq!(torch_cpu_normal(3, 8)[..7], torch_cpu_normal(3, 7));
    }

    #[test]
    fn only_low_seed_bits_reach_the_generator() {
        assert_eq!(torch_cpu_normal(5, 16), torch_cpu_normal(5 + (1 << 32), 16));
    }

    #[test]
    fn twister_vector() {
        // Published known answer: word 10,000 of the default seed.
        let mut words = MersenneTwister::new(5489);
        assert_eq!((0..10_000).map(|_| words.next()).last(), Some(4_123_659_995));
    }
}
