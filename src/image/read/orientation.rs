//! Which side of a picture is up: EXIF, else XMP, and turning it so.
//!
//! As Pillow's `ImageOps.exif_transpose` finds it: the number may have any integer type, and XMP counts only where EXIF
//! says nothing. Metadata that cannot be read is no reason to refuse intact pixels: then the picture stays as it is.

use anyhow::Result;
use rayon::prelude::*;

use super::{Decoded, Reading};

/// The orientation tag of EXIF and TIFF.
const ORIENTATION: u16 = 0x112;

/// How the stored rows and columns lie in the picture, as EXIF numbers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Orientation {
    #[default]
    Upright = 1,
    Mirrored,
    HalfTurned,
    Flipped,
    Transposed,
    /// To be turned clockwise.
    QuarterTurned,
    Transversed,
    /// To be turned counterclockwise.
    ThreeQuartersTurned,
}

impl From<u64> for Orientation {
    fn from(number: u64) -> Orientation {
        match number {
            2 => Orientation::Mirrored,
            3 => Orientation::HalfTurned,
            4 => Orientation::Flipped,
            5 => Orientation::Transposed,
            6 => Orientation::QuarterTurned,
            7 => Orientation::Transversed,
            8 => Orientation::ThreeQuartersTurned,
            _ => Orientation::Upright,
        }
    }
}

impl Orientation {
    /// The orientation that the metadata of a file states.
    pub(super) fn stated(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
        exif.and_then(in_exif).or_else(|| xmp.and_then(in_xmp)).map_or(Orientation::Upright, Orientation::from)
    }
}

/// The number in the first directory of EXIF bytes, which are those of a small TIFF file.
fn in_exif(mut exif: &[u8]) -> Option<u64> {
    while let Some(rest) = exif.strip_prefix(b"Exif\0\0") {
        exif = rest;
    }
    let little = match exif.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = exif.get(at..at.checked_add(size)?)?;
        let grow = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if little { bytes.iter().rev().fold(0, grow) } else { bytes.iter().fold(0, grow) })
    };
    let directory = number(4, 4)? as usize;
    let entries = number(directory, 2)? as usize;
    let entry = (0..entries).map(|i| directory + 2 + 12 * i).find(|at| number(*at, 2) == Some(ORIENTATION.into()))?;
    // The value of one number stands in the entry itself, from its ninth byte on.
    let size = match number(entry + 2, 2)? {
        1 | 6 => 1,
        3 | 8 => 2,
        4 | 9 | 13 => 4,
        _ => return None,
    };
    number(entry + 8, size)
}

/// The digit of `tiff:Orientation`, which XMP has as an attribute or as an element.
fn in_xmp(xmp: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"tiff:Orientation";
    xmp.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME).find_map(|(at, _)| {
        let rest = &xmp[at + NAME.len()..];
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| u64::from(digit - b'0'))
    })
}

/// Turns picture and alpha upright.
///
/// # Errors
///
/// If there is no memory for a quarter turn.
pub(super) fn upright(mut decoded: Decoded, orientation: Orientation, reading: &Reading) -> Result<Decoded> {
    let size = (decoded.picture.width, decoded.picture.height);
    let quarter = orientation as u8 >= Orientation::Transposed as u8;
    if quarter {
        reading.afford(size, decoded.picture.data.len())?;
    }
    decoded.picture.data = turned::<3>(decoded.picture.data, size, orientation);
    decoded.alpha = decoded.alpha.map(|alpha| turned::<1>(alpha, size, orientation));
    if quarter {
        (decoded.picture.width, decoded.picture.height) = (size.1, size.0);
    }
    Ok(decoded)
}

/// [height, width, N] turned. Quarter turns need a second picture, the others none.
fn turned<const N: usize>(mut data: Vec<u8>, (width, height): (usize, usize), orientation: Orientation) -> Vec<u8> {
    let pixels = data.as_chunks_mut::<N>().0;
    match orientation {
        Orientation::Upright => data,
        Orientation::Mirrored => {
            pixels.chunks_exact_mut(width).for_each(<[_]>::reverse);
            data
        }
        Orientation::HalfTurned => {
            pixels.reverse();
            data
        }
        Orientation::Flipped => {
            pixels.reverse();
            pixels.chunks_exact_mut(width).for_each(<[_]>::reverse);
            data
        }
        Orientation::Transposed => transposed::<N>(pixels, (width, height), |x, y| (x, y)),
        Orientation::QuarterTurned => transposed::<N>(pixels, (width, height), |x, y| (x, height - 1 - y)),
        Orientation::Transversed => transposed::<N>(pixels, (width, height), |x, y| (width - 1 - x, height - 1 - y)),
        Orientation::ThreeQuartersTurned => transposed::<N>(pixels, (width, height), |x, y| (width - 1 - x, y)),
    }
}

/// [height, width, N] to [width, height, N]; `place` gives the new row and column of the pixel at column x and row y.
fn transposed<const N: usize>(
    pixels: &[[u8; N]],
    (width, height): (usize, usize),
    place: impl Fn(usize, usize) -> (usize, usize) + Sync,
) -> Vec<u8> {
    /// Columns of the input that are walked together, so that what is read is near.
    const BAND: usize = 64;
    let mut data = vec![0; width * height * N];
    let first_is_row_0 = place(0, 0).0 == 0;
    data.par_chunks_mut(BAND * height * N).enumerate().for_each(|(band, rows)| {
        let (from, count) = (band * BAND, rows.len() / (height * N));
        let columns = if first_is_row_0 { from..from + count } else { width - from - count..width - from };
        let rows = rows.as_chunks_mut::<N>().0;
        for y in 0..height {
            for x in columns.clone() {
                let (row, column) = place(x, y);
                rows[(row - from) * height + column] = pixels[y * width + x];
            }
        }
    });
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EXIF with one entry of this type whose value begins with these bytes.
    fn exif(order: &[u8; 2], kind: u8, value: [u8; 4]) -> Vec<u8> {
        let big = order == b"MM";
        let short = |number: u8| if big { [0, number] } else { [number, 0] };
        let long = |number: u8| if big { [0, 0, 0, number] } else { [number, 0, 0, 0] };
        let tag = if big { [0x01, 0x12] } else { [0x12, 0x01] };
        [&order[..], &short(42), &long(8), &short(1), &tag, &short(kind), &long(1), &value].concat()
    }

    #[test]
    fn exif_states_it_in_any_integer_type_and_order() {
        for (kind, big, little) in [
            (3, [0, 6, 0, 0], [6, 0, 0, 0]),
            (4, [0, 0, 0, 6], [6, 0, 0, 0]),
            (1, [6, 0, 0, 0], [6, 0, 0, 0]),
            (9, [0, 0, 0, 6], [6, 0, 0, 0]),
        ] {
            assert_eq!(in_exif(&exif(b"MM", kind, big)), Some(6));
            assert_eq!(in_exif(&exif(b"II", kind, little)), Some(6));
        }
        let prefixed = [b"Exif\0\0".to_vec(), exif(b"II", 3, [8, 0, 0, 0])].concat();
        assert_eq!(in_exif(&prefixed), Some(8));
        assert_eq!(in_exif(&exif(b"II", 2, [b'6', 0, 0, 0])), None);
        for cut in 0..prefixed.len() {
            assert_eq!(in_exif(&prefixed[..cut]).unwrap_or(8), 8);
        }
    }

    #[test]
    fn xmp_counts_where_exif_is_silent() {
        let attribute: &[u8] = br#"<x tiff:Orientation="6"/>"#;
        assert_eq!(Orientation::stated(None, Some(attribute)), Orientation::QuarterTurned);
        assert_eq!(Orientation::stated(None, Some(b"<tiff:Orientation>3</tiff:Orientation>")), Orientation::HalfTurned);
        let upright = exif(b"II", 3, [1, 0, 0, 0]);
        assert_eq!(Orientation::stated(Some(&upright), Some(attribute)), Orientation::Upright);
        assert_eq!(Orientation::stated(Some(b"II*\0"), Some(attribute)), Orientation::QuarterTurned);
        assert_eq!(Orientation::stated(None, Some(b"tiff:Orientation")), Orientation::Upright);
    }

    /// The letters of a 3x2 picture as each orientation shows them.
    #[test]
    fn every_orientation_turns_as_exif_defines() {
        let shown = [(2, "CBAFED"), (3, "FEDCBA"), (4, "DEFABC"), (5, "ADBECF"), (6, "DAEBFC"), (7, "FCEBDA"), (8, "CFBEAD")];
        for (number, expected) in shown {
            let found = turned::<1>(b"ABCDEF".to_vec(), (3, 2), Orientation::from(number));
            assert_eq!(String::from_utf8(found).unwrap(), expected, "{number}");
        }
        // Wider than a band, with channels.
        let (width, height) = (150, 3);
        let data: Vec<u8> = (0..width * height).flat_map(|i| [i as u8, (i >> 8) as u8, 7]).collect();
        let there = turned::<3>(data.clone(), (width, height), Orientation::QuarterTurned);
        assert_eq!(turned::<3>(there, (height, width), Orientation::ThreeQuartersTurned), data);
        let there = turned::<3>(data.clone(), (width, height), Orientation::Transversed);
        assert_eq!(turned::<3>(there, (height, width), Orientation::Transversed), data);
    }
}
