//! LoRA and its relatives: what a file adds to rows of a tensor, computed while the tensor is read.
//!
//! All sums are in f32 and are rounded once. Blocks of rows are made in parallel, and a sum does not depend on where a read begins
//! and ends.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::low_rank::{Addend, LowRank, Rounded, add};
use super::{BLOCK, FEW, Recipe, row_elements, with_buffer};
use crate::tensor::{DType, Shape, Spec};
use crate::weights::Result;
use crate::weights::decode::encode_f32;
use crate::weights::sound;

/// A tensor with changes added, in f32, and rounded once.
#[derive(Clone, Debug)]
pub struct PlusLora {
    pub(super) base: Box<Recipe>,
    pub(super) changes: Vec<Change>,
    pub(super) spec: Spec,
}

/// What is added to rows of a tensor: `strength * scale * product`; with magnitudes, `strength` times the way from W, the rows
/// before, to W + `scale * product` whose rows or columns are given the lengths that the magnitudes say.
#[derive(Clone, Debug)]
pub struct Change {
    /// The rows.
    pub rows: Range<usize>,
    /// What is made of the factors, [rows, row].
    pub product: Product,
    /// What the file says of alpha.
    pub scale: f32,
    /// What the user says.
    pub strength: f32,
    /// Of DoRA.
    pub magnitudes: Option<Magnitudes>,
}

/// A matrix made of smaller ones.
#[derive(Clone, Debug)]
pub enum Product {
    /// LoRA: `up · down`.
    LowRank(Pair),
    /// LoHa: two such products, multiplied element by element.
    Hadamard([Pair; 2]),
    /// LoKr: their Kronecker product.
    Kronecker([Factor; 2]),
}

/// `up · down`, up [n, r], down [r, m].
#[derive(Clone, Debug)]
pub struct Pair {
    /// The factor that makes outputs.
    pub up: Recipe,
    /// The factor that makes r values of an input.
    pub down: Recipe,
}

/// A matrix as it is, or of two factors.
#[derive(Clone, Debug)]
pub enum Factor {
    /// As it is.
    Whole(Recipe),
    /// `up · down`.
    Pair(Pair),
}

/// The lengths that rows or columns are to have.
#[derive(Clone, Debug)]
pub struct Magnitudes {
    lengths: Recipe,
    /// The tensor without any change; none: what the change is added to.
    base: Option<Box<Recipe>>,
    by_columns: bool,
    /// Of columns, once it is known, what to multiply each with.
    factors: Arc<OnceLock<Vec<f32>>>,
}

impl Magnitudes {
    /// `lengths` [n] or [n, 1] of the rows, or [1, m] of the columns.
    pub fn new(lengths: Recipe) -> Magnitudes {
        let by_columns = matches!(lengths.spec().shape.0[..], [1, columns] if columns > 1);
        Magnitudes { lengths, base: None, by_columns, factors: Arc::default() }
    }

    /// The same, of the rows of `base`, whatever else is added to the tensor.
    pub fn of(self, base: Recipe) -> Magnitudes {
        Magnitudes { base: Some(Box::new(base)), ..self }
    }
}

impl Pair {
    /// Rows and columns of the product, if the factors fit each other.
    fn extents(&self) -> Option<(usize, usize)> {
        let (up, down) = (&self.up.spec().shape, &self.down.spec().shape);
        let (rank, rows) = (*down.0.first()?, *up.0.first()?);
        (rank > 0 && up.0.len() > 1 && row_elements(up) == rank).then_some((rows, row_elements(down)))
    }

    fn recipes(&self) -> Vec<&Recipe> {
        vec![&self.down, &self.up]
    }
}

impl Factor {
    fn extents(&self) -> Option<(usize, usize)> {
        match self {
            Factor::Whole(recipe) => Some((*recipe.spec().shape.0.first()?, row_elements(&recipe.spec().shape))),
            Factor::Pair(pair) => pair.extents(),
        }
    }

    fn recipes(&self) -> Vec<&Recipe> {
        match self {
            Factor::Whole(recipe) => vec![recipe],
            Factor::Pair(pair) => pair.recipes(),
        }
    }
}

impl Product {
    /// The tensors it is made of, one at least.
    fn recipes(&self) -> Vec<&Recipe> {
        match self {
            Product::LowRank(pair) => pair.recipes(),
            Product::Hadamard(pairs) => pairs.iter().flat_map(Pair::recipes).collect(),
            Product::Kronecker(factors) => factors.iter().flat_map(Factor::recipes).collect(),
        }
    }

    /// Rows and columns, if the factors fit each other.
    fn extents(&self) -> Option<(usize, usize)> {
        match self {
            Product::LowRank(pair) => pair.extents(),
            Product::Hadamard([one, other]) => one.extents().filter(|extents| other.extents() == Some(*extents)),
            Product::Kronecker([left, right]) => {
                let ((a, b), (c, d)) = (left.extents()?, right.extents()?);
                Some((a.checked_mul(c)?, b.checked_mul(d)?))
            }
        }
    }
}

impl PlusLora {
    /// The sum of `base` and `changes`, rounded to `dtype`: the type of `base`, as the official code merges, or a wider one.
    ///
    /// # Errors
    /// Factors that do not fit each other or their rows, or values that are no floats.
    pub fn new(base: Recipe, mut changes: Vec<Change>, dtype: DType) -> Result<PlusLora> {
        let spec = Spec { dtype, shape: base.spec().shape.clone() };
        let factors = changes.iter().flat_map(Change::recipes);
        if let Some(other) = factors.chain([&base]).find(|recipe| !recipe.spec().dtype.is_float()) {
            return Err(other.named(&format!("it is {}, where a LoRA product needs floats", other.spec())));
        }
        if !dtype.is_float() {
            return Err(base.named(&format!("it is to become {dtype}, where a LoRA product needs floats")));
        }
        for change in &mut changes {
            if let Some((at, fault)) = change.misfit(&spec.shape) {
                return Err(change.recipes()[at].named(&fault));
            }
            if let Some(magnitudes) = &mut change.magnitudes {
                magnitudes.base.get_or_insert_with(|| Box::new(base.clone()));
            }
        }
        Ok(PlusLora { base: Box::new(base), changes, spec })
    }

    /// The values of the elements from `first` on, before rounding.
    pub(super) fn values(&self, first: usize, values: &mut [f32]) -> Result<()> {
        let ready = self.ready(first..first + values.len())?;
        self.in_blocks(first, 1, values, |first, values| self.sum(&ready, first, values))
    }

    /// The bytes of the elements from `first` on.
    pub(super) fn bytes(&self, first: usize, bytes: &mut [u8]) -> Result<()> {
        let size = self.spec.dtype.bytes();
        let ready = self.ready(first..first + bytes.len() / size)?;
        let plain: Option<Vec<Addend>> = ready.iter().map(Ready::addend).collect();
        let plain = plain.filter(|_| self.base.is_stored() && self.base.spec().dtype == self.spec.dtype);
        self.in_blocks(first, size, bytes, |first, bytes| {
            if let Some(addends) = &plain {
                return self.rounded(addends, first, bytes);
            }
            with_buffer(bytes.len() / size, |values| {
                self.sum(&ready, first, values)?;
                let parts = values.chunks(FEW).zip(bytes.chunks_mut(FEW * size));
                parts.for_each(|(values, bytes)| encode_f32(self.spec.dtype, values, bytes));
                self.check_finite(bytes)
            })
        })
    }

    /// The same of plain products and a base that is stored in the type of the sums: these take its place, a few at a time.
    fn rounded(&self, addends: &[Addend], first: usize, bytes: &mut [u8]) -> Result<()> {
        let dtype = self.spec.dtype;
        let elements = first..first + bytes.len() / dtype.bytes();
        self.base.read_at(first * dtype.bytes(), bytes)?;
        add(addends, row_elements(&self.spec.shape), elements, &mut Rounded { dtype, bytes })?;
        self.check_finite(bytes)
    }

    /// Refuses values that the type cannot have, though those of the tensor and of the changes are finite.
    fn check_finite(&self, bytes: &[u8]) -> Result<()> {
        let dtype = self.spec.dtype;
        match sound::is_infinite(dtype, sound::largest(dtype, bytes)) {
            true => Err(self.base.named(&format!(
                "what the LoRA files add makes values that are not finite in {dtype}; give them smaller scales, or leave out the one \
                 that is damaged"
            ))),
            false => Ok(()),
        }
    }

    /// The changes that touch some elements, with what all their blocks need.
    fn ready(&self, elements: Range<usize>) -> Result<Vec<Ready<'_>>> {
        let width = row_elements(&self.spec.shape);
        let touched = |change: &&Change| change.rows.start * width < elements.end && elements.start < change.rows.end * width;
        self.changes.iter().filter(touched).map(|change| Ready::new(change, width)).collect()
    }

    /// Works on elements from `first` on, of `size` units each, block by block side by side.
    fn in_blocks<T: Send>(
        &self,
        first: usize,
        size: usize,
        units: &mut [T],
        work: impl Fn(usize, &mut [T]) -> Result<()> + Sync,
    ) -> Result<()> {
        let step = (BLOCK * row_elements(&self.spec.shape)).max(1);
        let head = (first.next_multiple_of(step) - first).min(units.len() / size);
        let (begun, whole) = units.split_at_mut(head * size);
        let at = |block: usize| first + head + block * step;
        let (one, others) = rayon::join(
            || if head == 0 { Ok(()) } else { work(first, begun) },
            || whole.par_chunks_mut(step * size).enumerate().try_for_each(|(block, units)| work(at(block), units)),
        );
        one.and(others)
    }

    fn sum(&self, ready: &[Ready], first: usize, values: &mut [f32]) -> Result<()> {
        self.base.values(first, values)?;
        ready.iter().try_for_each(|ready| ready.add(first, values))
    }
}

impl Change {
    fn recipes(&self) -> Vec<&Recipe> {
        let mut recipes = self.product.recipes();
        recipes.extend(self.magnitudes.iter().map(|magnitudes| &magnitudes.lengths));
        recipes
    }

    /// Why it is no change of a tensor of this shape, and which of its recipes tells.
    fn misfit(&self, shape: &Shape) -> Option<(usize, String)> {
        let recipes = self.product.recipes();
        let rows = &self.rows;
        let fits = rows.start <= rows.end && rows.end <= shape.0.first().copied().unwrap_or(0);
        let extents = (rows.len(), row_elements(shape));
        if !fits || self.product.extents() != Some(extents) {
            let factors: Vec<String> = recipes.iter().map(|recipe| recipe.spec().shape.to_string()).collect();
            let wanted = format!("rows {} to {} of {shape}", rows.start, rows.end);
            return Some((0, format!("the factors {} do not make {wanted}", factors.join(" and "))));
        }
        let Magnitudes { lengths, by_columns, .. } = self.magnitudes.as_ref()?;
        let wanted = if *by_columns { extents.1 } else { extents.0 };
        let text = format!("it is {}, where {wanted} lengths are needed", lengths.spec());
        (lengths.spec().shape.elements() != wanted).then_some((recipes.len(), text))
    }

    /// Why it is no change of a tensor of this shape; none if it is one.
    pub fn why_not(&self, shape: &Shape) -> Option<String> {
        self.misfit(shape).map(|(_, fault)| fault)
    }
}

/// A change with what all its blocks need.
struct Ready<'a> {
    change: &'a Change,
    width: usize,
    factors: Factors<'a>,
    /// Lengths of the rows, or factors of the columns.
    magnitudes: Option<Vec<f32>>,
}

enum Factors<'a> {
    LowRank(LowRank<'a>),
    Hadamard([LowRank<'a>; 2]),
    Kronecker([Dense; 2]),
}

/// A matrix.
struct Dense {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Dense {
    fn new(factor: &Factor) -> Result<Dense> {
        let (rows, columns) = factor.extents().unwrap_or((0, 0));
        let values = match factor {
            Factor::Whole(recipe) => all(recipe)?,
            Factor::Pair(pair) => {
                let mut values = vec![0.0; rows * columns];
                LowRank::new(&pair.up, &pair.down)?.rows(0..rows, &mut values)?;
                values
            }
        };
        Ok(Dense { rows, columns, values })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}

fn all(recipe: &Recipe) -> Result<Vec<f32>> {
    let mut values = vec![0.0; recipe.spec().shape.elements()];
    recipe.values(0, &mut values)?;
    Ok(values)
}

impl<'a> Ready<'a> {
    fn new(change: &'a Change, width: usize) -> Result<Ready<'a>> {
        let factors = match &change.product {
            Product::LowRank(pair) => Factors::LowRank(LowRank::new(&pair.up, &pair.down)?),
            Product::Hadamard([one, other]) => {
                Factors::Hadamard([LowRank::new(&one.up, &one.down)?, LowRank::new(&other.up, &other.down)?])
            }
            Product::Kronecker([left, right]) => Factors::Kronecker([Dense::new(left)?, Dense::new(right)?]),
        };
        let mut ready = Ready { change, width, factors, magnitudes: None };
        ready.magnitudes = change.magnitudes.as_ref().map(|magnitudes| ready.magnitudes(magnitudes)).transpose()?;
        Ok(ready)
    }

    /// Lengths of the rows, or what to multiply each column with.
    fn magnitudes(&self, magnitudes: &Magnitudes) -> Result<Vec<f32>> {
        if !magnitudes.by_columns {
            return all(&magnitudes.lengths);
        }
        if let Some(factors) = magnitudes.factors.get() {
            return Ok(factors.clone());
        }
        let own = &self.change.rows;
        let blocks: Vec<usize> = own.clone().step_by(BLOCK).collect();
        let of_block = |&row: &usize| {
            let rows = row..own.end.min(row + BLOCK);
            let mut changed = vec![0.0; rows.len() * self.width];
            self.changed(magnitudes, rows, &mut changed)?;
            let mut squares = vec![0.0; self.width];
            for row in changed.chunks_exact(self.width) {
                squares.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
            }
            Ok(squares)
        };
        let squares: Vec<Vec<f64>> = blocks.par_iter().map(of_block).collect::<Result<_>>()?;
        let factors = all(&magnitudes.lengths)?.into_iter().enumerate().map(|(column, length)| {
            let sum: f64 = squares.iter().map(|squares| squares[column]).sum();
            factor(length, sum)
        });
        Ok(magnitudes.factors.get_or_init(|| factors.collect()).clone())
    }

    /// Writes rows after the change, but for magnitudes; gives those before it.
    fn changed(&self, magnitudes: &Magnitudes, rows: Range<usize>, changed: &mut [f32]) -> Result<Vec<f32>> {
        self.product(rows.clone(), changed)?;
        let mut base = vec![0.0; changed.len()];
        if let Some(tensor) = &magnitudes.base {
            tensor.values(rows.start * self.width, &mut base)?;
        }
        changed.iter_mut().zip(&base).for_each(|(v, base)| *v = base + self.change.scale * *v);
        Ok(base)
    }

    /// Writes what is added to some of the rows, but for a factor, which it gives.
    fn block(&self, rows: Range<usize>, added: &mut [f32]) -> Result<f32> {
        let Change { scale, strength, magnitudes, .. } = self.change;
        let (Some(magnitudes), Some(lengths)) = (magnitudes, &self.magnitudes) else {
            self.product(rows, added)?;
            return Ok(strength * scale);
        };
        let (base, changed) = (self.changed(magnitudes, rows.clone(), added)?, added);
        for (i, (changed, base)) in changed.chunks_exact_mut(self.width).zip(base.chunks_exact(self.width)).enumerate() {
            let by_row = (!magnitudes.by_columns).then(|| {
                let sum = changed.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
                factor(lengths[rows.start - self.change.rows.start + i], sum)
            });
            for (column, (v, base)) in changed.iter_mut().zip(base).enumerate() {
                *v = by_row.unwrap_or_else(|| lengths[column]) * *v - base;
            }
        }
        Ok(*strength)
    }

    /// Writes some rows of the product.
    fn product(&self, rows: Range<usize>, product: &mut [f32]) -> Result<()> {
        let own = rows.start - self.change.rows.start..rows.end - self.change.rows.start;
        match &self.factors {
            Factors::LowRank(wide) => wide.rows(own, product)?,
            Factors::Hadamard([one, other]) => {
                let mut second = vec![0.0; product.len()];
                one.rows(own.clone(), product)?;
                other.rows(own, &mut second)?;
                product.iter_mut().zip(second).for_each(|(v, second)| *v *= second);
            }
            Factors::Kronecker([left, right]) => {
                for (row, values) in own.zip(product.chunks_exact_mut(self.width)) {
                    let (left, right) = (left.row(row / right.rows), right.row(row % right.rows));
                    for (left, values) in left.iter().zip(values.chunks_exact_mut(right.len())) {
                        values.iter_mut().zip(right).for_each(|(v, right)| *v = left * right);
                    }
                }
            }
        }
        Ok(())
    }

    /// The change as a product that is added as it is; none if it is more than that.
    fn addend(&self) -> Option<Addend<'_>> {
        let Change { rows, scale, strength, magnitudes, .. } = self.change;
        match &self.factors {
            Factors::LowRank(product) if magnitudes.is_none() => {
                Some(Addend { product, rows: rows.clone(), factor: strength * scale })
            }
            _ => None,
        }
    }

    /// Adds the change to the elements from `first` on of its tensor.
    fn add(&self, first: usize, values: &mut [f32]) -> Result<()> {
        if let Some(addend) = self.addend() {
            return add(&[addend], self.width, first..first + values.len(), values);
        }
        let (own, width, end) = (&self.change.rows, self.width, first + values.len());
        let touched = own.start.max(first / width)..own.end.min(end.div_ceil(width));
        if touched.is_empty() {
            return Ok(());
        }
        let start = touched.start - (touched.start - own.start) % BLOCK;
        for row in (start..touched.end).step_by(BLOCK) {
            let rows = row..own.end.min(row + BLOCK);
            with_buffer(rows.len() * width, |added| {
                let factor = self.block(rows.clone(), added)?;
                let of_block = rows.start * width..rows.end * width;
                let common = of_block.start.max(first)..of_block.end.min(end);
                let sums = &mut values[common.start - first..common.end - first];
                let added = &added[common.start - of_block.start..common.end - of_block.start];
                sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += factor * added);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// What gives a vector of this sum of squares its length; one of zeros stays.
fn factor(length: f32, squares: f64) -> f32 {
    if squares > 0.0 { (f64::from(length) / squares.sqrt()) as f32 } else { 0.0 }
}
