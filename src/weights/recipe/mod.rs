//! How a weight comes to be: the tensor that the model code names, made from those that files hold.
//!
//! A recipe is evaluated piece by piece: any range of its elements is read, or computed, without the others, and has the
//! same bytes however the tensor is cut. "Rows" are along the first axis: those of a matrix, filters of a convolution,
//! elements of a bias.

mod addition;
mod change;
mod low_rank;
mod packed;
mod scaled;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::addition::Addition;
pub use self::change::{Change, Factor, Magnitudes, Pair, PlusLora, Product};
pub use self::packed::Packed;
pub use self::scaled::Scaled;
use super::decode::{decode_f32, encode_f32};
use super::file::WeightFile;
use super::words::shown;
use super::{ModelError, Result, sound};
use crate::tensor::{DType, Shape, Spec};

/// Bytes that are read and looked at before the next: few enough for a core's cache, a multiple of every element's size.
const PART: usize = 256 << 10;

/// Elements that are widened or rounded at once, on one thread: those of a block stay in its core's cache.
const FEW: usize = 32 << 10;

/// Rows that are computed at once. For fewer the second factor would come too often from memory, more would leave the cache.
const BLOCK: usize = 64;

/// How a tensor is made.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// Read as it is.
    Stored(Stored),
    /// Rows of other tensors, one below the other.
    Rows(Rows),
    /// Bytes that scales make values of.
    Scaled(Scaled),
    /// Blocks of a few bits a value.
    Packed(Packed),
    /// Another tensor with what LoRA files add.
    PlusLora(PlusLora),
}

impl Recipe {
    /// Element type and extents of what is made.
    pub fn spec(&self) -> &Spec {
        match self {
            Recipe::Stored(stored) => &stored.spec,
            Recipe::Rows(rows) => &rows.spec,
            Recipe::Scaled(scaled) => &scaled.spec,
            Recipe::Packed(packed) => &packed.spec,
            Recipe::PlusLora(sum) => &sum.spec,
        }
    }

    /// Makes the bytes from `offset` on, little-endian in the type of [`spec`](Recipe::spec).
    ///
    /// # Errors
    /// Bytes beyond the tensor's end, parts of elements where these have to be computed, or what the file system reports.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let spec = self.spec();
        if spec.bytes().checked_sub(offset).is_none_or(|left| left < bytes.len()) {
            let asked = format!("{} bytes from {offset} on are beyond the end of a tensor of {}", bytes.len(), spec.bytes());
            return Err(self.named(&asked));
        }
        match self {
            Recipe::Stored(stored) => stored.read_at(offset, bytes).map(drop),
            Recipe::Rows(rows) if rows.are_of_one_type() => {
                let size = rows.spec.dtype.bytes();
                rows.each_part(rows.row * size, offset..offset + bytes.len(), |part, from, to| part.read_at(from, &mut bytes[to]))
            }
            Recipe::Rows(_) | Recipe::Scaled(_) | Recipe::Packed(_) | Recipe::PlusLora(_) => self.compute(offset, bytes),
        }
    }

    /// The same where the bytes are those of files; gives the bits of the largest magnitude among its elements.
    fn read_stored(&self, offset: usize, bytes: &mut [u8]) -> Result<u32> {
        match self {
            Recipe::Stored(stored) => stored.read_at(offset, bytes),
            Recipe::Rows(rows) if rows.are_of_one_type() => {
                let (row, wanted, mut largest) = (rows.row * rows.spec.dtype.bytes(), offset..offset + bytes.len(), 0);
                rows.each_part(row, wanted, |part, from, to| {
                    largest = part.read_stored(from, &mut bytes[to])?.max(largest);
                    Ok(())
                })?;
                Ok(largest)
            }
            other => Err(other.named("it is computed, where bytes of a file are needed")),
        }
    }

    /// Lets the system forget what it has in memory of the files.
    pub(super) fn give_back(&self) {
        match self {
            Recipe::Stored(stored)
            | Recipe::Scaled(Scaled { base: stored, .. })
            | Recipe::Packed(Packed { base: stored, .. }) => stored.file.give_back(&stored.name),
            Recipe::Rows(rows) => rows.tensors().for_each(Recipe::give_back),
            Recipe::PlusLora(sum) => sum.base.give_back(),
        }
    }

    /// Whether its bytes are those of files, so that they have its values without any rounding.
    fn is_stored(&self) -> bool {
        match self {
            Recipe::Stored(_) => true,
            Recipe::Rows(rows) => rows.are_of_one_type() && rows.tensors().all(Recipe::is_stored),
            Recipe::Scaled(_) | Recipe::Packed(_) | Recipe::PlusLora(_) => false,
        }
    }

    /// The same elements under other extents, where they are stored as they are.
    ///
    /// # Errors
    /// Extents of another number of elements, or elements that are computed.
    pub(super) fn reshaped(self, shape: impl Into<Shape>) -> Result<Recipe> {
        match self {
            Recipe::Stored(stored) => stored.reshaped(shape).map(Recipe::Stored),
            Recipe::Rows(rows) => rows.reshaped(shape).map(Recipe::Rows),
            other => Err(other.named(&format!("it is {} in blocks or with scales, where plain values are needed", other.spec()))),
        }
    }

    fn compute(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let size = self.spec().dtype.bytes();
        if !offset.is_multiple_of(size) || !bytes.len().is_multiple_of(size) {
            let asked = format!("{} bytes from {offset} on are not whole elements of {size} bytes", bytes.len());
            return Err(self.named(&asked));
        }
        if let Recipe::PlusLora(sum) = self {
            return sum.bytes(offset / size, bytes);
        }
        let mut values = vec![0.0; bytes.len() / size];
        self.values(offset / size, &mut values)?;
        encode_f32(self.spec().dtype, &values, bytes);
        Ok(())
    }

    /// The values of the elements from `first` on, before any rounding to the type of the spec.
    fn values(&self, first: usize, values: &mut [f32]) -> Result<()> {
        match self {
            Recipe::Stored(stored) => stored.values(first, values),
            Recipe::Scaled(scaled) => scaled.values(first, values),
            Recipe::Packed(packed) => packed.values(first, values),
            Recipe::Rows(rows) => {
                rows.each_part(rows.row, first..first + values.len(), |part, from, to| part.values(from, &mut values[to]))
            }
            Recipe::PlusLora(sum) => sum.values(first, values),
        }
    }

    /// A fault, with the file and name of the first tensor it is about in front.
    pub(super) fn named(&self, fault: &str) -> ModelError {
        match self {
            Recipe::Stored(stored)
            | Recipe::Scaled(Scaled { base: stored, .. })
            | Recipe::Packed(Packed { base: stored, .. }) => stored.named(fault),
            Recipe::Rows(rows) => match rows.parts.first() {
                Some(part) => part.of.named(fault),
                None => ModelError::new(fault),
            },
            Recipe::PlusLora(sum) => sum.base.named(fault),
        }
    }
}

/// A tensor of a file. What is read of it is looked at on its way: values must be finite.
#[derive(Clone, Debug)]
pub struct Stored {
    file: Arc<WeightFile>,
    name: String,
    spec: Spec,
    /// Whether it is known to have a value other than zero, where one is asked for; shared by all that were cloned of it.
    not_zero: Option<Arc<AtomicBool>>,
}

impl Stored {
    /// The tensor that `file` calls `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn new(file: &Arc<WeightFile>, name: &str) -> Result<Stored> {
        let spec = file
            .spec(name)
            .ok_or_else(|| ModelError::new(format!("there is no tensor {}", shown(name))).at(file.path()))?
            .clone();
        Ok(Stored { file: file.clone(), name: name.to_string(), spec, not_zero: None })
    }

    /// Element type and extents.
    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The same tensor, refused if all of a matrix is zero: no trained one is, and a download that was given its size in
    /// advance and did not end looks like that. Vectors may be zero.
    pub fn not_zero(self) -> Stored {
        let matrix = self.spec.shape.0.len() > 1 && self.spec.dtype != DType::I32;
        Stored { not_zero: matrix.then(Arc::default), ..self }
    }

    /// Reads bytes from `offset` on, a part at a time, so that each is looked at while it is in the cache. (Elements that the
    /// ends of a part divide are passed over; who reads weights reads whole ones.) Gives the bits of the largest magnitude.
    fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<u32> {
        let (dtype, size) = (self.spec.dtype, self.spec.dtype.bytes());
        let mut largest = 0;
        for (part, bytes) in bytes.chunks_mut(PART).enumerate() {
            self.file.read_at(&self.name, offset + part * PART, bytes)?;
            let whole = offset.next_multiple_of(size) - offset;
            largest = sound::largest(dtype, bytes.get(whole..).unwrap_or_default()).max(largest);
        }
        if sound::is_infinite(dtype, largest) {
            return Err(self.fault("has values that are not finite, so the file is damaged"));
        }
        match &self.not_zero {
            Some(known) if largest == 0 && !bytes.is_empty() && !known.load(Ordering::Relaxed) => {
                self.check_not_zero(known).map(|()| largest)
            }
            _ => Ok(largest),
        }
    }

    /// Reads on from the tensor's start until there is a value other than zero.
    fn check_not_zero(&self, known: &AtomicBool) -> Result<()> {
        let all = self.spec.bytes();
        let mut bytes = vec![0; PART.min(all)];
        for offset in (0..all).step_by(PART) {
            let part = &mut bytes[..PART.min(all - offset)];
            self.file.read_at(&self.name, offset, part)?;
            if sound::largest(self.spec.dtype, part) != 0 {
                known.store(true, Ordering::Relaxed);
                return Ok(());
            }
        }
        Err(self.fault("has only zeros, as where a download was given its size in advance and did not end"))
    }

    /// Reads all of it once, and keeps nothing.
    ///
    /// # Errors
    /// Values that are not finite, or what the file system reports.
    pub fn check(&self) -> Result<()> {
        let mut bytes = vec![0; PART.min(self.spec.bytes())];
        (0..self.spec.bytes()).step_by(PART).try_for_each(|offset| {
            let end = PART.min(self.spec.bytes() - offset);
            self.read_at(offset, &mut bytes[..end]).map(drop)
        })
    }

    fn values(&self, first: usize, values: &mut [f32]) -> Result<()> {
        let size = self.spec.dtype.bytes();
        let mut bytes = vec![0; values.len().min(FEW) * size];
        for (chunk, values) in values.chunks_mut(FEW).enumerate() {
            let bytes = &mut bytes[..values.len() * size];
            self.read_at((first + chunk * FEW) * size, bytes)?;
            decode_f32(self.spec.dtype, bytes, values);
        }
        Ok(())
    }

    pub(in crate::weights) fn named(&self, fault: &str) -> ModelError {
        ModelError::new(format!("{}: {fault}", shown(&self.name))).at(self.file.path())
    }

    pub(super) fn fault(&self, fault: &str) -> ModelError {
        let text = format!("the tensor {}, {}, {fault}; fetch the file again", shown(&self.name), self.spec);
        ModelError::new(text).at(self.file.path())
    }

    /// The same elements under other extents, as a matrix is a convolution of 1×1.
    ///
    /// # Errors
    /// Extents of another number of elements.
    pub fn reshaped(self, shape: impl Into<Shape>) -> Result<Stored> {
        let spec = Spec { dtype: self.spec.dtype, shape: shape.into() };
        if spec.shape.elements() == self.spec.shape.elements() {
            return Ok(Stored { spec, ..self });
        }
        Err(self.named(&format!("it is {}, which cannot become {}", self.spec, spec.shape)))
    }
}

/// Rows of several tensors, one below the other.
#[derive(Clone, Debug)]
pub struct Rows {
    parts: Vec<Part>,
    /// Elements of a row of the parts.
    row: usize,
    spec: Spec,
}

/// Consecutive rows of a tensor.
#[derive(Clone, Debug)]
struct Part {
    of: Recipe,
    rows: Range<usize>,
}

impl Rows {
    /// Rows of `parts`, in this order. Their type is that of all parts, or f32 where these differ.
    ///
    /// # Errors
    /// No parts, a tensor without rows or with less than are asked for, or rows of different extents.
    pub fn new(parts: impl IntoIterator<Item = (Recipe, Range<usize>)>) -> Result<Rows> {
        let parts: Vec<Part> = parts.into_iter().map(|(of, rows)| Part { of, rows }).collect();
        let first = parts.first().ok_or_else(|| ModelError::new("a tensor must have rows"))?.of.spec().clone();
        for Part { of, rows } in &parts {
            let spec = of.spec();
            if spec.shape.0.first().is_none_or(|&all| rows.start > rows.end || rows.end > all) {
                return Err(of.named(&format!("it is {spec} and has no rows {} to {}", rows.start, rows.end)));
            }
            if spec.shape.0[1..] != first.shape.0[1..] {
                return Err(of.named(&format!("its rows, of {spec}, are not those of {first}")));
            }
        }
        let dtype = match parts.iter().find(|part| part.of.spec().dtype != first.dtype) {
            None => first.dtype,
            Some(other) if !first.dtype.is_float() || !other.of.spec().dtype.is_float() => {
                return Err(other.of.named(&format!("its rows, of {}, are not those of {first}", other.of.spec())));
            }
            Some(_) => DType::F32,
        };
        let mut shape = first.shape;
        shape.0[0] = parts.iter().map(|part| part.rows.len()).sum();
        Ok(Rows { parts, row: row_elements(&shape), spec: Spec { dtype, shape } })
    }

    /// The same elements under other extents.
    ///
    /// # Errors
    /// Extents of another number of elements.
    pub fn reshaped(self, shape: impl Into<Shape>) -> Result<Rows> {
        let shape = shape.into();
        if shape.elements() == self.spec.shape.elements() {
            return Ok(Rows { spec: Spec { dtype: self.spec.dtype, shape }, ..self });
        }
        let fault = format!("it is a part of {}, which cannot become {shape}", self.spec);
        Err(self.parts.first().map_or_else(|| ModelError::new(&fault), |part| part.of.named(&fault)))
    }

    /// All rows of `parts`, in this order.
    ///
    /// # Errors
    /// As of [`Rows::new`].
    pub fn of_all(parts: impl IntoIterator<Item = Recipe>) -> Result<Rows> {
        Rows::new(parts.into_iter().map(|part| {
            let all = part.spec().shape.0.first().copied().unwrap_or(0);
            (part, 0..all)
        }))
    }

    /// The tensors whose rows these are, in order.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Recipe> {
        self.parts.iter().map(|part| &part.of)
    }

    fn are_of_one_type(&self) -> bool {
        self.parts.iter().all(|part| part.of.spec().dtype == self.spec.dtype)
    }

    /// Visits the parts that hold units `wanted`, where a row has `row` units, bytes or elements: the part's tensor, the
    /// first unit to take from it, and which of those wanted it gives.
    fn each_part(
        &self,
        row: usize,
        wanted: Range<usize>,
        mut visit: impl FnMut(&Recipe, usize, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let mut start = 0;
        for part in &self.parts {
            let end = start + part.rows.len() * row;
            let common = start.max(wanted.start)..end.min(wanted.end);
            if !common.is_empty() {
                let from = part.rows.start * row + common.start - start;
                visit(&part.of, from, common.start - wanted.start..common.end - wanted.start)?;
            }
            start = end;
        }
        Ok(())
    }
}

/// Elements of a row along the first axis.
pub(super) fn row_elements(shape: &Shape) -> usize {
    shape.0.iter().skip(1).product()
}

/// Lends a thread's buffer, with whatever values are left in it. Memory that is taken anew for each block costs as much time, in
/// pages that the system has to clear, as the block's product.
fn with_buffer<T>(values: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local! {
        static SPARE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(vec![]) };
    }
    let mut buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.resize(buffer.len().max(values), 0.0);
    let result = work(&mut buffer[..values]);
    SPARE.with_borrow_mut(|spare| spare.push(buffer));
    result
}

#[cfg(test)]
mod tests;
