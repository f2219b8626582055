//! Values in Thrift's compact protocol, which Parquet's metadata is written in: a tree, with every bound looked at.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// Most structures and lists within each other.
const NESTING_MAX: usize = 16;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// A flag.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// A number that is not whole; Parquet's metadata has none that is read.
    Float,
    /// Bytes or a text.
    Bytes(Vec<u8>),
    /// Values of one kind.
    List(Vec<Value>),
    /// Values by the numbers of their fields.
    Structure(BTreeMap<i16, Value>),
}

impl Value {
    /// A field's number.
    pub(super) fn number(&self, field: i16) -> Option<i64> {
        match self.field(field)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A field's flag.
    pub(super) fn flag(&self, field: i16) -> Option<bool> {
        match self.field(field)? {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// A field's list.
    pub(super) fn list(&self, field: i16) -> Option<&[Value]> {
        match self.field(field)? {
            Value::List(values) => Some(values),
            _ => None,
        }
    }

    /// A field's text.
    pub(super) fn text(&self, field: i16) -> Option<&str> {
        self.field(field)?.as_text()
    }

    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Value::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// A field.
    pub(super) fn field(&self, field: i16) -> Option<&Value> {
        match self {
            Value::Structure(fields) => fields.get(&field),
            _ => None,
        }
    }
}

/// Reads one structure at the beginning of bytes; gives it and how many bytes it took.
pub(super) fn structure(bytes: &[u8]) -> Result<(Value, usize)> {
    let mut reader = Reader { bytes, at: 0 };
    let value = reader.structure(0)?;
    Ok((value, reader.at))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8> {
        let byte = *self.bytes.get(self.at).context("it ends early")?;
        self.at += 1;
        Ok(byte)
    }

    /// A number of seven bits a byte, the lowest first.
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a number has no end")
    }

    fn zigzag(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn structure(&mut self, depth: usize) -> Result<Value> {
        ensure!(depth <= NESTING_MAX, "it has more than {NESTING_MAX} structures within each other");
        let (mut fields, mut number) = (BTreeMap::new(), 0i16);
        loop {
            let head = self.byte()?;
            let (delta, kind) = (head >> 4, head & 15);
            if kind == 0 {
                return Ok(Value::Structure(fields));
            }
            number = match delta {
                0 => i16::try_from(self.zigzag()?)?,
                delta => number.checked_add(delta.into()).context("a field's number is too large")?,
            };
            let value = match kind {
                1 | 2 => Value::Flag(kind == 1),
                kind => self.value(kind, depth)?,
            };
            fields.insert(number, value);
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<Value> {
        ensure!(depth <= NESTING_MAX, "it has more than {NESTING_MAX} structures within each other");
        Ok(match kind {
            1 | 2 => Value::Flag(self.byte()? == 1),
            3 => Value::Number(i64::from(self.byte()?.cast_signed())),
            4..=6 => Value::Number(self.zigzag()?),
            7 => {
                (0..8).try_for_each(|_| self.byte().map(drop))?;
                Value::Float
            }
            8 => {
                let length = usize::try_from(self.varint()?)?;
                let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len()).context("it ends early")?;
                let bytes = self.bytes[self.at..end].to_vec();
                self.at = end;
                Value::Bytes(bytes)
            }
            9 | 10 => {
                let head = self.byte()?;
                let length = if head >> 4 == 15 { self.varint()? } else { (head >> 4).into() };
                // An element has a byte at the least.
                ensure!(length <= (self.bytes.len() - self.at) as u64, "a list ends outside");
                Value::List((0..length).map(|_| self.value(head & 15, depth + 1)).collect::<Result<_>>()?)
            }
            11 => {
                let length = self.varint()?;
                let kinds = if length > 0 { self.byte()? } else { 0 };
                ensure!(length <= (self.bytes.len() - self.at) as u64, "a map ends outside");
                for _ in 0..length {
                    self.value(kinds >> 4, depth + 1)?;
                    self.value(kinds & 15, depth + 1)?;
                }
                Value::List(vec![])
            }
            12 => self.structure(depth + 1)?,
            other => bail!("it has a value of the kind {other}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_that_were_written() {
        // Field 1: -3; field 2: "ab"; field 20: [true, false]; field 21: {field 1: true}; the end.
        let bytes = [0x15, 5, 0x18, 2, b'a', b'b', 0x09, 40, 0x21, 1, 2, 0x1c, 0x11, 0, 0, 99];
        let (value, taken) = structure(&bytes).unwrap();
        assert_eq!((taken, value.number(1), value.text(2)), (15, Some(-3), Some("ab")));
        assert_eq!(value.list(20).unwrap(), [Value::Flag(true), Value::Flag(false)]);
        assert_eq!(value.field(21).unwrap().flag(1), Some(true));
        for length in 0..15 {
            assert!(structure(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn structures_have_a_limit() {
        let nested = |depth: usize| [vec![0x1c; depth], vec![0; depth + 1]].concat();
        assert!(structure(&nested(NESTING_MAX)).is_ok());
        assert!(structure(&nested(NESTING_MAX + 1)).is_err());
        assert!(structure(&[0x19, 0xfc, 0xff, 0xff, 0xff, 0x7f]).is_err(), "a list that claims more than there is");
    }
}
