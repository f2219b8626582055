//! Tensors of eight-bit floats with their scales, multiplied out in f32 while they are read.

use std::sync::Arc;

use super::{Stored, row_elements};
use crate::tensor::{DType, Spec};
use crate::weights::words::shown;
use crate::weights::{ModelError, Result};

/// Rows and columns of a block that has a scale of its own, in DeepSeek's and Qwen's files and all that follow them.
const BLOCK: usize = 128;

/// A tensor of eight-bit floats with its scales, in f32.
#[derive(Clone, Debug)]
pub struct Scaled {
    pub(super) base: Stored,
    /// A matrix, row by row.
    scales: Arc<[f32]>,
    /// Rows and columns of the base that share a scale.
    block: [usize; 2],
    pub(super) spec: Spec,
}

impl Scaled {
    /// Each value of `base`, [n, ...], times its scale. `scales`, which are read now, are a matrix [a, b], [a] or [], and along
    /// each axis one for all, one for each row or column, or one for each block of 128.
    ///
    /// # Errors
    /// A base of another type, another number of scales, or such that are not above zero.
    pub fn new(base: Stored, scales: &Stored) -> Result<Scaled> {
        if !base.spec.dtype.is_fp8() {
            let fault = format!("it is {}, which has no scale; {} is one of eight-bit floats", base.spec, shown(&scales.name));
            return Err(base.named(&fault));
        }
        let (rows, columns) = (base.spec.shape.0.first().copied().unwrap_or(1), row_elements(&base.spec.shape));
        let (down, across) = (scales.spec.shape.0.first().copied().unwrap_or(1), row_elements(&scales.spec.shape));
        let block = match (shared(down, rows), shared(across, columns)) {
            (Some(down), Some(across)) if scales.spec.dtype.is_float() => [down, across],
            _ => return Err(misfit(&base, scales, [rows, columns])),
        };
        let mut values = vec![0.0; down * across];
        scales.values(0, &mut values)?;
        if let Some(wrong) = values.iter().find(|scale| **scale <= 0.0) {
            return Err(scales.named(&format!("a scale is {wrong}; it must be above 0; fetch the file again")));
        }
        let spec = Spec { dtype: DType::F32, shape: base.spec.shape.clone() };
        Ok(Scaled { base, scales: values.into(), block, spec })
    }

    pub(super) fn values(&self, first: usize, values: &mut [f32]) -> Result<()> {
        self.base.values(first, values)?;
        let columns = row_elements(&self.spec.shape).max(1);
        let [down, across] = self.block;
        let of_a_row = columns.div_ceil(across);
        let mut at = first;
        let mut rest = values;
        while !rest.is_empty() {
            let (row, column) = (at / columns, at % columns);
            let end = columns.min((column / across + 1) * across);
            let (run, behind) = rest.split_at_mut((end - column).min(rest.len()));
            let scale = self.scales[row / down * of_a_row + column / across];
            run.iter_mut().for_each(|value| *value *= scale);
            at += run.len();
            rest = behind;
        }
        Ok(())
    }
}

/// Of how many of `all` each of `count` scales is; none if there is another number of them.
fn shared(count: usize, all: usize) -> Option<usize> {
    match count {
        1 => Some(all.max(1)),
        _ if count == all => Some(1),
        _ => (count == all.div_ceil(BLOCK)).then_some(BLOCK),
    }
}

fn misfit(base: &Stored, scales: &Stored, [rows, columns]: [usize; 2]) -> ModelError {
    let blocks = format!("[{}, {}] of blocks of {BLOCK}×{BLOCK}", rows.div_ceil(BLOCK), columns.div_ceil(BLOCK));
    let wanted = format!("one scale, one for each of its {rows} rows, or {blocks}");
    scales.named(&format!("it is {}; {}, {}, can have {wanted}", scales.spec, shown(&base.name), base.spec))
}
