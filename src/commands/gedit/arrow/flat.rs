//! The few FlatBuffers tables that a message of an Arrow stream has, read with every bound looked at.

use anyhow::{Context, Result};

/// A table at a place of a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Table<'a> {
    /// The table that a buffer begins with.
    pub(super) fn root(bytes: &'a [u8]) -> Result<Table<'a>> {
        Table { bytes, at: 0 }.follow(0)
    }

    /// The table to which the offset at a place leads.
    fn follow(self, at: usize) -> Result<Table<'a>> {
        let offset = u32::from_le_bytes(self.take(at)?) as usize;
        let at = at.checked_add(offset).filter(|at| *at < self.bytes.len());
        Ok(Table { at: at.context("an offset leads out of it")?, ..self })
    }

    fn take<const N: usize>(self, at: usize) -> Result<[u8; N]> {
        let bytes = at.checked_add(N).and_then(|end| self.bytes.get(at..end));
        Ok(bytes.context("it ends early")?.try_into()?)
    }

    /// Where a field's value is; none: it has the default.
    fn field(self, number: usize) -> Result<Option<usize>> {
        let back = i32::from_le_bytes(self.take(self.at)?);
        let table = (self.at as i64).checked_sub(back.into()).and_then(|at| usize::try_from(at).ok());
        let table = table.context("its fields lie outside")?;
        let length = u16::from_le_bytes(self.take(table)?) as usize;
        let entry = 4 + 2 * number;
        if entry + 2 > length {
            return Ok(None);
        }
        let offset = u16::from_le_bytes(self.take(table + entry)?) as usize;
        Ok((offset > 0).then_some(self.at + offset))
    }

    /// A byte, 0 by default.
    pub(super) fn byte(self, number: usize) -> Result<u8> {
        self.field(number)?.map_or(Ok(0), |at| Ok(self.take::<1>(at)?[0]))
    }

    /// A 64-bit number, 0 by default.
    pub(super) fn long(self, number: usize) -> Result<i64> {
        self.field(number)?.map_or(Ok(0), |at| Ok(i64::from_le_bytes(self.take(at)?)))
    }

    /// A table.
    pub(super) fn table(self, number: usize) -> Result<Option<Table<'a>>> {
        self.field(number)?.map(|at| self.follow(at)).transpose()
    }

    /// A text.
    pub(super) fn text(self, number: usize) -> Result<Option<&'a str>> {
        let Some((at, length)) = self.vector(number, 1)? else { return Ok(None) };
        Ok(Some(std::str::from_utf8(&self.bytes[at..at + length])?))
    }

    /// A list of tables.
    pub(super) fn tables(self, number: usize) -> Result<Vec<Table<'a>>> {
        let Some((at, length)) = self.vector(number, 4)? else { return Ok(vec![]) };
        (0..length).map(|i| self.follow(at + 4 * i)).collect()
    }

    /// A list of pairs of 64-bit numbers.
    pub(super) fn pairs(self, number: usize) -> Result<Vec<[i64; 2]>> {
        let Some((at, length)) = self.vector(number, 16)? else { return Ok(vec![]) };
        let pair = |at: usize| Ok([i64::from_le_bytes(self.take(at)?), i64::from_le_bytes(self.take(at + 8)?)]);
        (0..length).map(|i| pair(at + 16 * i)).collect()
    }

    /// Where a list's elements of so many bytes lie, and how many there are.
    fn vector(self, number: usize, size: usize) -> Result<Option<(usize, usize)>> {
        let Some(at) = self.field(number)? else { return Ok(None) };
        let start = at.checked_add(u32::from_le_bytes(self.take(at)?) as usize).context("a list lies outside")?;
        let length = u32::from_le_bytes(self.take(start)?) as usize;
        let end = length.checked_mul(size).and_then(|bytes| bytes.checked_add(start + 4));
        end.filter(|end| *end <= self.bytes.len()).context("a list ends outside")?;
        Ok(Some((start + 4, length)))
    }
}
