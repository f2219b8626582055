//! The pages of a column: levels that say which values are there, and the values, plain or by a dictionary.

use anyhow::{Context, Result, bail, ensure};

/// The values of one page or of a dictionary; a flag is a byte of 0 or 1.
pub(super) type Values = Vec<Vec<u8>>;

/// Values one after another, each with its length.
pub(super) fn plain_bytes(bytes: &[u8], count: usize) -> Result<Values> {
    let mut at = 0;
    let next = || {
        let length = bytes.get(at..at + 4).context("a page ends early")?;
        let length = u32::from_le_bytes(length.try_into()?) as usize;
        let value = bytes.get(at + 4..).and_then(|rest| rest.get(..length)).context("a page ends early")?;
        at += 4 + length;
        Ok(value.to_vec())
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Flags, a bit each.
pub(super) fn plain_flags(bytes: &[u8], count: usize) -> Result<Values> {
    ensure!(bytes.len() >= count.div_ceil(8), "a page ends early");
    Ok((0..count).map(|i| vec![bytes[i / 8] >> (i % 8) & 1]).collect())
}

/// Numbers of a fixed width of bits, in runs of equal ones and in groups of eight.
pub(super) fn runs(bytes: &[u8], width: u32, count: usize) -> Result<Vec<u32>> {
    ensure!(width <= 32, "a page has numbers of {width} bits");
    let (mut numbers, mut at) = (Vec::with_capacity(count.min(8 * bytes.len().max(1) * 64)), 0);
    while numbers.len() < count {
        let head = varint(bytes, &mut at)?;
        let left = count - numbers.len();
        if head & 1 == 0 {
            let size = width.div_ceil(8) as usize;
            let value = bytes.get(at..at + size).context("a page ends early")?;
            at += size;
            let value = value.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
            let length = usize::try_from(head >> 1)?;
            ensure!(length > 0, "a page has a run of nothing");
            numbers.extend(std::iter::repeat_n(value, length.min(left)));
        } else {
            let groups = usize::try_from(head >> 1)?;
            let size = groups.checked_mul(width as usize).context("a page ends early")?;
            let packed = bytes.get(at..).and_then(|rest| rest.get(..size.min(rest.len()))).context("a page ends early")?;
            at += packed.len();
            // The last group may be cut off behind the last value.
            let there = groups.saturating_mul(8).min(left);
            ensure!(groups > 0 && packed.len() * 8 >= there * width as usize, "a page ends early");
            numbers.extend((0..there).map(|i| bits(packed, i * width as usize, width)));
        }
    }
    Ok(numbers)
}

/// The numbers of a level or of flags, which have their length before them; gives how many bytes that took.
pub(super) fn prefixed_runs(bytes: &[u8], width: u32, count: usize) -> Result<(Vec<u32>, usize)> {
    let length = bytes.get(..4).context("a page ends early")?;
    let length = u32::from_le_bytes(length.try_into()?) as usize;
    let own = bytes.get(4..).and_then(|rest| rest.get(..length)).context("a page ends early")?;
    Ok((runs(own, width, count)?, 4 + length))
}

/// Values by their numbers in a dictionary.
pub(super) fn by_dictionary(bytes: &[u8], count: usize, dictionary: Option<&Values>) -> Result<Values> {
    let dictionary = dictionary.context("a page needs a dictionary that is not there")?;
    if count == 0 {
        return Ok(vec![]);
    }
    let (&width, bytes) = bytes.split_first().context("a page ends early")?;
    let value = |number: u32| dictionary.get(number as usize).cloned().context("a page names a value that the dictionary lacks");
    runs(bytes, width.into(), count)?.into_iter().map(value).collect()
}

/// So many bits from a place on, the lowest first.
fn bits(bytes: &[u8], at: usize, width: u32) -> u32 {
    let value = (at / 8..(at + width as usize).div_ceil(8)).rev().fold(0u64, |all, i| all << 8 | u64::from(bytes[i]));
    let mask = if width == 32 { u64::from(u32::MAX) } else { (1 << width) - 1 };
    (value >> (at % 8) & mask) as u32
}

fn varint(bytes: &[u8], at: &mut usize) -> Result<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*at).context("a page ends early")?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a page has a number without an end")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of Parquet's own description of this encoding.
    #[test]
    fn runs_and_groups_are_read() {
        let packed = [0b0000_0011, 0b1000_1000, 0b1100_0110, 0b1111_1010];
        assert_eq!(runs(&packed, 3, 8).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(runs(&[20, 1], 1, 10).unwrap(), [1; 10]);
        assert_eq!(runs(&[4, 7, 3, 0b10], 1, 4).unwrap()[2..], [0, 1]);
        assert!(runs(&[20], 1, 10).is_err() && runs(&[], 1, 1).is_err() && runs(&[0, 1], 1, 1).is_err());
        assert!(runs(&[3], 8, 8).is_err(), "a group that is not there");
    }

    #[test]
    fn values_are_cut_by_their_lengths() {
        let bytes = [&[2, 0, 0, 0][..], b"ab", &[0, 0, 0, 0]].concat();
        assert_eq!(plain_bytes(&bytes, 2).unwrap(), [b"ab".to_vec(), vec![]]);
        assert!(plain_bytes(&bytes, 3).is_err() && plain_bytes(&[9, 0, 0, 0, 1], 1).is_err());
        let dictionary = vec![b"x".to_vec(), b"y".to_vec()];
        assert_eq!(by_dictionary(&[1, 4, 1], 2, Some(&dictionary)).unwrap(), [b"y".to_vec(), b"y".to_vec()]);
        assert!(by_dictionary(&[2, 4, 3], 2, Some(&dictionary)).is_err() && by_dictionary(&[1, 4, 1], 2, None).is_err());
    }
}
