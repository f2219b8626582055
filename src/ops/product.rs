//! Products on the CPU, of f32 and of operands rounded to eight bits: every row of x and of w is divided by a scale of its own.
//! A sum of integers is exact, so that all devices agree on it.

use gemm::Parallelism;
use pulp::Arch;

/// `y[m, n] = x[m, k] · w`, all dense, with w [n, k] if `transposed`, else [k, n].
pub(super) fn matmul(
    x: &[f32],
    w: &[f32],
    transposed: bool,
    y: &mut [f32],
    m: usize,
    k: usize,
    n: usize,
    parallelism: Parallelism,
) {
    assert!(x.len() == m * k && w.len() == n * k && y.len() == m * n);
    let (w_col, w_row) = if transposed { (k as isize, 1) } else { (1, n as isize) };
    // SAFETY: the three slices hold exactly the elements that the strides reach, and y is not aliased.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            w_col,
            w_row,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// How the operands of a product are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EightBit {
    /// To whole numbers from -127 to 127.
    Int8,
    /// To 4 exponent and 3 mantissa bits, at most 448.
    E4m3,
}

/// Columns that are summed at a time: 1024 · 127² is below 2²⁴, so that f32 holds every sum of integers exactly.
const COLUMNS: usize = 1024;
/// Rows of x that are multiplied at a time, which bounds the memory of a large product.
const ROWS: usize = 64;

impl EightBit {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            EightBit::Int8 => "int8",
            EightBit::E4m3 => "e4m3",
        }
    }

    /// y[m, n] = x[m, k] · w[n, k]ᵀ + bias[n], of rounded operands, all dense. A sum, a product of two scales and the
    /// scaled sum with its bias are rounded to f32 once each.
    pub(super) fn product(self, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32], k: usize) {
        let w = Rows::new(self, w, k);
        let n = w.scales.len();
        for (x, y) in x.chunks(ROWS * k).zip(y.chunks_mut(ROWS * n)) {
            Rows::new(self, x, k).times(&w, bias, y, k);
        }
    }

    /// How the values of a row are rounded. A row of zeros has scale 0, and so has, in effect, one of values too small to be told
    /// from them; one that is not finite has a scale that is not, so that results show it.
    pub(super) fn rounded(self, row: &[f32]) -> Rounded {
        // As numbers, magnitudes are in the order of their bits, with NaN above all.
        let most = f32::from_bits(row.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0));
        let factor = self.largest() / most;
        Rounded { format: self, factor: if factor.is_finite() { factor } else { 0.0 }, scale: most / self.largest() }
    }

    /// The largest magnitude of a rounded value.
    fn largest(self) -> f32 {
        match self {
            EightBit::Int8 => 127.0,
            EightBit::E4m3 => 448.0,
        }
    }

    /// To nearest, ties to even; `v` is at most [`EightBit::largest`], or a rounding error above it.
    #[inline(always)]
    fn round(self, v: f32) -> f32 {
        match self {
            EightBit::Int8 => v.round_ties_even(),
            EightBit::E4m3 => {
                // Neighbours are 2⁻³ of the power of two below v apart, and 2⁻⁹ below the smallest normal, 2⁻⁶.
                let exponent = (v.to_bits() >> 23 & 0xff).clamp(127 - 6, 127 + 8);
                let step = f32::from_bits((exponent - 3) << 23);
                (v / step).round_ties_even() * step
            }
        }
    }
}

/// How the values of a row are rounded.
#[derive(Clone, Copy)]
pub(super) struct Rounded {
    format: EightBit,
    factor: f32,
    /// What rounded values are multiples of.
    pub(super) scale: f32,
}

impl Rounded {
    /// A value of the row in steps of its scale.
    #[inline(always)]
    pub(super) fn value(self, v: f32) -> f32 {
        if self.factor > 0.0 { self.format.round(v * self.factor) } else { 0.0 }
    }
}

/// The same of rows that are whole numbers already, x[m, k] and w[n, k], with the scales of each.
pub(super) fn product_of_integers([x, w]: [&[f32]; 2], [x_scales, w_scales]: [&[f32]; 2], bias: &[f32], y: &mut [f32], k: usize) {
    let w = Rows::of_integers(w, w_scales, k);
    for ((x, scales), y) in x.chunks(ROWS * k).zip(x_scales.chunks(ROWS)).zip(y.chunks_mut(ROWS * w.scales.len())) {
        Rows::of_integers(x, scales, k).times(&w, Some(bias), y, k);
    }
}

#[inline(always)]
fn scaled(y: &mut [f32], sums: &[f64], x_scale: f32, w_scales: &[f32], bias: Option<&[f32]>) {
    for (i, ((y, &sum), w_scale)) in y.iter_mut().zip(sums).zip(w_scales).enumerate() {
        *y = (sum as f32).mul_add(x_scale * w_scale, bias.map_or(0.0, |bias| bias[i]));
    }
}

/// Rounded rows in parts of [`COLUMNS`] columns, and what their values are multiples of.
struct Rows {
    parts: Vec<Vec<f32>>,
    scales: Vec<f32>,
}

impl Rows {
    /// Rows [.., cols], rounded.
    fn new(format: EightBit, values: &[f32], cols: usize) -> Rows {
        let (mut rows, mut scales) = (Rows::empty(values.len() / cols, cols), Vec::with_capacity(values.len() / cols));
        for row in values.chunks_exact(cols) {
            let rounded = format.rounded(row);
            scales.push(rounded.scale);
            Arch::new().dispatch(|| rows.push(row, |v| rounded.value(v)));
        }
        Rows { scales, ..rows }
    }

    /// Rows [.., cols] that are rounded already.
    fn of_integers(values: &[f32], scales: &[f32], cols: usize) -> Rows {
        let mut rows = Rows { scales: scales.to_vec(), ..Rows::empty(scales.len(), cols) };
        values.chunks_exact(cols).for_each(|row| rows.push(row, |v| v));
        rows
    }

    fn empty(rows: usize, cols: usize) -> Rows {
        let part = |start: usize| Vec::with_capacity(rows * COLUMNS.min(cols - start));
        Rows { parts: (0..cols).step_by(COLUMNS).map(part).collect(), scales: vec![] }
    }

    #[inline(always)]
    fn push(&mut self, row: &[f32], value: impl Fn(f32) -> f32) {
        let parts = self.parts.iter_mut().zip(row.chunks(COLUMNS));
        parts.for_each(|(to, from)| to.extend(from.iter().map(|&v| value(v))));
    }

    /// y[m, n] = these rows · wᵀ + bias.
    fn times(&self, w: &Rows, bias: Option<&[f32]>, y: &mut [f32], k: usize) {
        let (m, n) = (self.scales.len(), w.scales.len());
        let (mut part, mut sums) = (vec![0.0; y.len()], vec![0.0f64; y.len()]);
        for ((x, w), start) in self.parts.iter().zip(&w.parts).zip((0..k).step_by(COLUMNS)) {
            matmul(x, w, true, &mut part, m, COLUMNS.min(k - start), n, Parallelism::Rayon(0));
            sums.iter_mut().zip(&part).for_each(|(sum, &part)| *sum += f64::from(part));
        }
        let rows = y.chunks_exact_mut(n).zip(sums.chunks_exact(n)).zip(&self.scales);
        Arch::new().dispatch(|| rows.for_each(|((y, sums), &scale)| scaled(y, sums, scale, &w.scales, bias)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::case::noise;
    use super::*;

    const BOTH: [EightBit; 2] = [EightBit::Int8, EightBit::E4m3];

    #[test]
    fn e4m3_takes_the_nearest_of_its_values() {
        // From 0 in steps of 2⁻⁹, then eight of each power of two, without the last, which is NaN: in order, so that even
        // places are even mantissas.
        let normal = (-6..=8).flat_map(|power| (8..16).map(move |eighths| eighths as f32 / 8.0 * 2f32.powi(power)));
        let values: Vec<f32> = (0..8).map(|i| i as f32 / 512.0).chain(normal).take(127).collect();
        assert_eq!(values.last(), Some(&448.0));
        let distance = |v: f32, i: usize| (f64::from(v) - f64::from(values[i])).abs();
        for v in (0..0x43e0).map(|bits| f32::from_bits(bits << 16)).chain([448.0]) {
            let nearest =
                (0..values.len()).min_by(|&a, &b| distance(v, a).total_cmp(&distance(v, b)).then((a % 2).cmp(&(b % 2))));
            let expected = values[nearest.unwrap()];
            assert_eq!(EightBit::E4m3.round(v), expected, "{v:e}");
            assert_eq!(EightBit::E4m3.round(-v), -expected, "{v:e}");
        }
    }

    #[test]
    fn the_largest_of_a_row_is_the_largest_code() {
        // Of 127 steps of 2: 3 is halfway between one and two of them, and goes to the even.
        let int8 = Rows::new(EightBit::Int8, &[254.0, 3.0, -5.0, 0.0, -1.0, -0.25, 0.5, 0.0], 4);
        assert_eq!(int8.parts, [[127.0, 2.0, -2.0, 0.0, -127.0, -32.0, 64.0, 0.0]]);
        assert_eq!(int8.scales, [2.0, 1.0 / 127.0]);
        let e4m3 = Rows::new(EightBit::E4m3, &[-896.0, 2.0, 35.0, 0.0], 4);
        assert_eq!((&e4m3.parts[..], &e4m3.scales[..]), (&[vec![-448.0, 1.0, 18.0, 0.0]][..], &[2.0][..]));
    }

    #[test]
    fn sums_of_integers_are_exact_at_any_depth() {
        // Whole numbers with 127 in every row, so that scales are 1 and nothing is rounded.
        let (m, k, n) = (ROWS + 3, 2 * COLUMNS + 452, 5);
        let whole = |count: usize, seed| -> Vec<f32> {
            let values = noise(count, seed).into_iter().map(|v| 127.0 * v.signum() - (v * 9.0).round());
            values.enumerate().map(|(i, v)| if i % k == 0 { 127.0 } else { v.clamp(-127.0, 127.0) }).collect()
        };
        let (x, mut w) = (whole(m * k, 1), whole(n * k, 2));
        w[..k].copy_from_slice(&x[..k]); // the largest sum there is, beyond what f32 holds exactly
        let mut y = vec![0.0; m * n];
        EightBit::Int8.product(&x, &w, None, &mut y, k);
        for (i, y) in y.iter().enumerate() {
            let rows = x[i / n * k..].iter().zip(&w[i % n * k..]).take(k);
            let sum: i64 = rows.map(|(&x, &w)| x as i64 * w as i64).sum();
            assert_eq!(*y, sum as f32, "{i}");
        }
        assert!(y[0] > 16_777_216.0);
    }

    #[test]
    fn errors_are_within_half_a_step_of_each_operand() {
        let (m, k, n) = (7, 3 * COLUMNS / 2, 6);
        let (x, w, bias) = (noise(m * k, 3), noise(n * k, 4), noise(n, 5));
        for format in BOTH {
            // Half the distance of neighbours, for a value of a row whose largest is `most`.
            let half = |v: f32, most: f32| match format {
                EightBit::Int8 => most / 127.0 / 2.0,
                EightBit::E4m3 => (v.abs() / 16.0).max(most / 448.0 / 1024.0),
            };
            let most = |row: &[f32]| row.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let mut y = vec![0.0; m * n];
            format.product(&x, &w, Some(&bias), &mut y, k);
            let mut rounded = 0.0f64;
            for (i, &y) in y.iter().enumerate() {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let (most_x, most_w) = (most(x), most(w));
                let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                let bound = |(&x, &w): (&f32, &f32)| {
                    let (dx, dw) = (half(x, most_x), half(w, most_w));
                    f64::from(x.abs() * dw + w.abs() * dx + dx * dw)
                };
                let error = (f64::from(y) - exact - f64::from(bias[i % n])).abs();
                // One rounding of the result to f32, and of the scales, beside.
                assert!(error <= x.iter().zip(w).map(bound).sum::<f64>() + 1e-4, "{format:?} {i}: {error}");
                rounded += error;
            }
            assert!(rounded > 1e-3 * y.len() as f64, "{format:?} rounds nothing");
        }
    }

    #[test]
    fn zeros_stay_and_what_is_not_finite_shows() {
        for format in BOTH {
            let (x, w) = ([0.0, 0.0, 1.0, f32::NAN, f32::INFINITY, 1.0], [1.0, 1.0]);
            let mut y = vec![7.0; 3];
            format.product(&x, &w, Some(&[0.5]), &mut y, 2);
            assert_eq!(y[0], 0.5, "{format:?}");
            assert!(y[1].is_nan() && y[2].is_nan(), "{format:?}: {y:?}");
        }
    }
}
