//! Tensors that are packed in blocks, unpacked to f32 while they are read.

use super::Stored;
use crate::tensor::{DType, Spec};
use crate::weights::Result;
use crate::weights::file::Blocks;

/// Values that are unpacked at once: a multiple of every block's.
const FEW: usize = 32 << 10;

/// A tensor in blocks, in f32.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Its bytes, row by row.
    pub(super) base: Stored,
    blocks: Blocks,
    pub(super) spec: Spec,
}

impl Packed {
    /// The tensor whose bytes `base` are blocks of this kind.
    ///
    /// # Errors
    /// A base of no bytes, or rows that are no whole blocks.
    pub fn new(base: Stored, blocks: Blocks) -> Result<Packed> {
        let mut shape = base.spec.shape.clone();
        match shape.0.last_mut() {
            Some(row) if base.spec.dtype == DType::U8 && row.is_multiple_of(blocks.bytes()) => {
                *row = *row / blocks.bytes() * blocks.elements();
            }
            _ => return Err(base.named(&format!("it is {}, which are no rows of {blocks}", base.spec))),
        }
        Ok(Packed { base, blocks, spec: Spec { dtype: DType::F32, shape } })
    }

    pub(super) fn values(&self, first: usize, values: &mut [f32]) -> Result<()> {
        let (of_a_block, size) = (self.blocks.elements(), self.blocks.bytes());
        let (mut at, mut rest) = (first, values);
        let mut bytes = vec![];
        let mut whole = vec![];
        while !rest.is_empty() {
            let (block, begun) = (at / of_a_block, at % of_a_block);
            let (part, behind) = rest.split_at_mut(rest.len().min(FEW - begun));
            let count = (begun + part.len()).div_ceil(of_a_block);
            bytes.resize(count * size, 0);
            whole.resize(count * of_a_block, 0.0);
            self.base.read_at(block * size, &mut bytes)?;
            self.blocks.decode(&bytes, &mut whole);
            part.copy_from_slice(&whole[begun..begun + part.len()]);
            if part.iter().any(|value| !value.is_finite()) {
                return Err(self.base.fault("has values that are not finite, so the file is damaged"));
            }
            at += part.len();
            rest = behind;
        }
        Ok(())
    }
}
