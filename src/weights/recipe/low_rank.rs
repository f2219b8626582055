//! Products of a few ranks, added to rows of a tensor at nearly the speed at which a core multiplies.
//!
//! What is added to an element is one chain of fused multiply-adds in the order of the ranks, then times a factor. So it has the
//! same bits wherever its row and column lie in a block, and whichever vector unit adds it up. (An x86 processor without fused
//! multiply-adds rounds between the two.)
//!
//! Work goes tile by tile: a tile's sums, and what is multiplied for them, stay in the caches next to the core. With whole rows of
//! sums in f32, moving them would take longer than multiplying.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{BLOCK, Recipe, row_elements, with_buffer};
use crate::tensor::DType;
use crate::weights::Result;
use crate::weights::decode::{decode_here, encode_here};

/// Rows of `up` that are multiplied at once, and columns of `down`: as many sums as the registers of the widest vector units hold
/// beside what they are made of. Others take them in parts.
const TALL: usize = 8;
const WIDE: usize = 48;
/// Vectors of sums in each row.
const VECTORS: usize = 3;
/// Columns of a tile: whole panels of [`WIDE`]. Enough of a row for a core to fetch ahead, few enough for a tile to stay in its
/// second cache.
const SPAN: usize = 16 * WIDE;

/// `up · down`, of which some rows at a time are made.
pub(super) struct LowRank<'a> {
    up: &'a Recipe,
    /// Panel by panel, each [rank, WIDE]; the last is filled up with zeros.
    down: Vec<[f32; WIDE]>,
    rank: usize,
    columns: usize,
}

/// A product and the rows of a tensor that it is added to, times a factor.
pub(super) struct Addend<'a> {
    pub product: &'a LowRank<'a>,
    pub rows: Range<usize>,
    pub factor: f32,
}

/// Some elements of a tensor, to which products are added.
pub(super) trait Sums {
    /// Their values, of those from the number `at` on.
    fn load(&self, at: usize, values: &mut [f32]);
    /// Takes the sums.
    fn store(&mut self, at: usize, sums: &[f32]);
}

/// Sums that stay in f32.
impl Sums for [f32] {
    #[inline(always)]
    fn load(&self, at: usize, values: &mut [f32]) {
        values.copy_from_slice(&self[at..][..values.len()]);
    }

    #[inline(always)]
    fn store(&mut self, at: usize, sums: &[f32]) {
        self[at..][..sums.len()].copy_from_slice(sums);
    }
}

/// Sums in the place of their elements, little-endian, rounded to the type that those have.
pub(super) struct Rounded<'a> {
    pub dtype: DType,
    pub bytes: &'a mut [u8],
}

impl Sums for Rounded<'_> {
    #[inline(always)]
    fn load(&self, at: usize, values: &mut [f32]) {
        let size = self.dtype.bytes();
        decode_here(self.dtype, &self.bytes[at * size..][..values.len() * size], values);
    }

    #[inline(always)]
    fn store(&mut self, at: usize, sums: &[f32]) {
        let size = self.dtype.bytes();
        encode_here(self.dtype, sums, &mut self.bytes[at * size..][..sums.len() * size]);
    }
}

impl<'a> LowRank<'a> {
    /// Of factors that fit each other; all of `down` is read.
    pub fn new(up: &'a Recipe, down: &Recipe) -> Result<LowRank<'a>> {
        let (rank, columns) = (down.spec().shape.0[0], row_elements(&down.spec().shape));
        let mut panels = vec![[0.0; WIDE]; rank * columns.div_ceil(WIDE)];
        with_buffer(rank * columns, |values| {
            down.values(0, values)?;
            for (k, row) in values.chunks_exact(columns.max(1)).enumerate() {
                for (panel, row) in row.chunks(WIDE).enumerate() {
                    panels[panel * rank + k][..row.len()].copy_from_slice(row);
                }
            }
            Ok(())
        })?;
        Ok(LowRank { up, down: panels, rank, columns })
    }

    /// Writes some rows of the product.
    pub fn rows(&self, rows: Range<usize>, product: &mut [f32]) -> Result<()> {
        product.fill(0.0);
        let all = Addend { product: self, rows: 0..rows.end, factor: 1.0 };
        add(&[all], self.columns, rows.start * self.columns..rows.end * self.columns, product)
    }

    /// Rows of the first factor, [rank, TALL] one behind the other; the last are filled up with zeros.
    fn up(&self, rows: Range<usize>) -> Result<Vec<[f32; TALL]>> {
        let mut groups = vec![[0.0; TALL]; self.rank * rows.len().div_ceil(TALL)];
        with_buffer(rows.len() * self.rank, |values| {
            self.up.values(rows.start * self.rank, values)?;
            for (row, values) in values.chunks_exact(self.rank).enumerate() {
                let group = &mut groups[row / TALL * self.rank..][..self.rank];
                group.iter_mut().zip(values).for_each(|(group, value)| group[row % TALL] = *value);
            }
            Ok(())
        })?;
        Ok(groups)
    }
}

/// Adds products, in their order, to some elements of a tensor whose rows have `width` of them.
pub(super) fn add(addends: &[Addend], width: usize, elements: Range<usize>, sums: &mut (impl Sums + ?Sized)) -> Result<()> {
    add_on(Arch::new(), addends, width, elements, sums)
}

fn add_on(arch: Arch, addends: &[Addend], width: usize, elements: Range<usize>, sums: &mut (impl Sums + ?Sized)) -> Result<()> {
    if elements.is_empty() {
        return Ok(());
    }
    let touched = elements.start / width..elements.end.div_ceil(width);
    for start in touched.clone().step_by(BLOCK) {
        let rows = start..touched.end.min(start + BLOCK);
        let mut parts = vec![];
        for Addend { product, rows: own, factor } in addends {
            let common = own.start.max(rows.start)..own.end.min(rows.end);
            if !common.is_empty() {
                let up = product.up(common.start - own.start..common.end - own.start)?;
                parts.push(Part { product, up, rows: common.start - start..common.end - start, factor: *factor });
            }
        }
        with_buffer(BLOCK * SPAN, |tile| {
            let (tile, elements) = (tile.as_chunks_mut().0, elements.clone());
            arch.dispatch(Block { parts: &parts, width, rows, elements, sums, tile });
        });
    }
    Ok(())
}

/// An addend's rows in a block.
struct Part<'a> {
    product: &'a LowRank<'a>,
    up: Vec<[f32; TALL]>,
    rows: Range<usize>,
    factor: f32,
}

/// Rows of a tensor, at most [`BLOCK`], of which some elements are summed up.
struct Block<'a, S: ?Sized> {
    parts: &'a [Part<'a>],
    width: usize,
    rows: Range<usize>,
    elements: Range<usize>,
    sums: &'a mut S,
    tile: &'a mut [[f32; SPAN]],
}

impl<T: Sums + ?Sized> WithSimd for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for column in (0..self.width).step_by(SPAN) {
            for (i, row) in self.rows.clone().enumerate() {
                if let Some((at, columns)) = self.wanted(row, column) {
                    self.sums.load(at, &mut self.tile[i][columns]);
                }
            }
            for part in self.parts {
                part.add(simd, column / WIDE, &mut self.tile[part.rows.clone()]);
            }
            for (i, row) in self.rows.clone().enumerate() {
                if let Some((at, columns)) = self.wanted(row, column) {
                    self.sums.store(at, &self.tile[i][columns]);
                }
            }
        }
    }
}

impl<T: ?Sized> Block<'_, T> {
    /// Which of a row's columns in the tile that begins at `column` are summed up, and the first one's number among all elements.
    #[inline(always)]
    fn wanted(&self, row: usize, column: usize) -> Option<(usize, Range<usize>)> {
        let tile = row * self.width + column..row * self.width + self.width.min(column + SPAN);
        let cells = tile.start.max(self.elements.start)..tile.end.min(self.elements.end);
        (!cells.is_empty()).then(|| (cells.start - self.elements.start, cells.start - tile.start..cells.end - tile.start))
    }
}

impl Part<'_> {
    /// Adds the panels from `first` on that a tile has.
    #[inline(always)]
    fn add<S: Simd>(&self, simd: S, first: usize, tile: &mut [[f32; SPAN]]) {
        let rank = self.product.rank;
        let panels = self.product.down.chunks_exact(rank).skip(first).take(SPAN / WIDE);
        for (panel, down) in panels.enumerate() {
            for (up, tile) in self.up.chunks_exact(rank).zip(tile.chunks_mut(TALL)) {
                for column in (0..WIDE).step_by(VECTORS * S::F32_LANES) {
                    let at = panel * WIDE + column;
                    // Three vectors of sums a row: of 32 registers eight rows need 24, of 16 four need 12.
                    if S::REGISTER_COUNT >= 32 {
                        self.add_rows::<S, TALL>(simd, (up, 0), (down, column), tile, at);
                    } else {
                        let (upper, lower) = tile.split_at_mut(tile.len().min(TALL / 2));
                        self.add_rows::<S, { TALL / 2 }>(simd, (up, 0), (down, column), upper, at);
                        self.add_rows::<S, { TALL / 2 }>(simd, (up, TALL / 2), (down, column), lower, at);
                    }
                }
            }
        }
    }

    /// Adds `N` rows of vectors to those that there are.
    #[inline(always)]
    fn add_rows<S: Simd, const N: usize>(
        &self,
        simd: S,
        (up, row): (&[[f32; TALL]], usize),
        (down, column): (&[[f32; WIDE]], usize),
        tile: &mut [[f32; SPAN]],
        at: usize,
    ) {
        let mut products = [[simd.splat_f32s(0.0); VECTORS]; N];
        for (up, down) in up.iter().zip(down) {
            let down = S::as_simd_f32s(&down[column..][..VECTORS * S::F32_LANES]).0;
            for (products, up) in products.iter_mut().zip(&up[row..][..N]) {
                let up = simd.splat_f32s(*up);
                for (product, down) in products.iter_mut().zip(down) {
                    *product = simd.mul_add_e_f32s(up, *down, *product);
                }
            }
        }
        let factor = simd.splat_f32s(self.factor);
        for i in 0..N {
            let Some(sums) = tile.get_mut(i) else { break };
            let sums = S::as_mut_simd_f32s(&mut sums[at..][..VECTORS * S::F32_LANES]).0;
            for (sum, product) in sums.iter_mut().zip(products[i]) {
                *sum = simd.add_f32s(*sum, simd.mul_f32s(factor, product));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::decode::encode_f32;
    use crate::weights::recipe::tests::source;

    /// With what this machine can add up, and whether that rounds once for a product and its addition.
    fn units() -> Vec<(Arch, bool)> {
        let best = Arch::new();
        let mut units = vec![(Arch::Scalar, false), (best, !matches!(best, Arch::Scalar))];
        #[cfg(target_arch = "x86_64")]
        units.extend(pulp::x86::V3::try_new().map(|unit| (Arch::V3(unit), true)));
        units
    }

    #[test]
    fn a_sum_is_one_chain_in_the_order_of_ranks_wherever_it_lies() {
        for (rows, columns, ranks) in [(1, 1, [1, 2]), (11, WIDE + 1, [64, 3]), (2 * BLOCK + 13, SPAN + 77, [5, 1])] {
            // The second product changes the middle rows alone.
            let own = [0..rows, rows / 3..rows - rows / 3];
            let source = source(&[
                ("base", DType::BF16, &[rows, columns]),
                ("up0", DType::F32, &[own[0].len(), ranks[0]]),
                ("down0", DType::BF16, &[ranks[0], columns]),
                ("up1", DType::BF16, &[own[1].len(), ranks[1]]),
                ("down1", DType::F32, &[ranks[1], columns]),
            ]);
            let [base, up0, down0, up1, down1] = ["base", "up0", "down0", "up1", "down1"].map(|name| source.values(name));
            let ups = ["up0", "up1"].map(|name| source.stored(name));
            let products = [0, 1].map(|i| LowRank::new(&ups[i], &source.stored(&format!("down{i}"))).unwrap());
            let addends = [0, 1].map(|i| Addend { product: &products[i], rows: own[i].clone(), factor: [0.75, -1.3][i] });
            for (arch, fused) in units() {
                let add_up = |a: f32, b: f32, sum: f32| if fused { a.mul_add(b, sum) } else { a * b + sum };
                let mut wanted = base.clone();
                for (own, factor, rank, up, down) in
                    [(&own[0], 0.75, ranks[0], &up0, &down0), (&own[1], -1.3f32, ranks[1], &up1, &down1)]
                {
                    for (i, j) in own.clone().enumerate().flat_map(|row| (0..columns).map(move |j| (row, j))) {
                        let chain = (0..rank).fold(0.0, |sum, k| add_up(up[i.0 * rank + k], down[k * columns + j], sum));
                        wanted[i.1 * columns + j] += factor * chain;
                    }
                }
                let all = rows * columns;
                for part in [0..all, 0..all / 2, all / 3..all, all / 5..all - all / 7, all / 2..all / 2] {
                    let mut sums = base[part.clone()].to_vec();
                    add_on(arch, &addends, columns, part.clone(), &mut sums[..]).unwrap();
                    assert!(sums == wanted[part.clone()], "{part:?} of [{rows}, {columns}] on {arch:?}");
                    let [mut bytes, once] = [&base, &wanted].map(|values| {
                        let mut bytes = vec![0; 2 * part.len()];
                        encode_f32(DType::BF16, &values[part.clone()], &mut bytes);
                        bytes
                    });
                    let mut rounded = Rounded { dtype: DType::BF16, bytes: &mut bytes };
                    add_on(arch, &addends, columns, part.clone(), &mut rounded).unwrap();
                    assert!(bytes == once, "{part:?} of [{rows}, {columns}] in bf16 on {arch:?}");
                }
            }
        }
    }

    #[test]
    fn rows_of_a_product_are_near_those_in_f64() {
        let (rows, columns, rank) = (BLOCK + 5, SPAN + 3, 64);
        let source = source(&[("up", DType::F32, &[rows, rank]), ("down", DType::F16, &[rank, columns])]);
        let [up, down] = ["up", "down"].map(|name| source.values(name));
        let factor = source.stored("up");
        let product = LowRank::new(&factor, &source.stored("down")).unwrap();
        let mut values = vec![f32::NAN; (rows - 2) * columns];
        product.rows(1..rows - 1, &mut values).unwrap();
        for (at, &got) in values.iter().enumerate() {
            let (i, j) = (1 + at / columns, at % columns);
            let terms = (0..rank).map(|k| f64::from(up[i * rank + k]) * f64::from(down[k * columns + j]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            assert!(
                (f64::from(got) - sum).abs() <= size * rank as f64 * f64::from(f32::EPSILON) / 2.0,
                "[{i}, {j}]: {got}, not {sum}"
            );
        }
    }
}
