//! PNG: chunks are looked at here, the pixels are decoded by the `png` crate, row by row.
//!
//! What is damaged but holds every pixel is read, with a note: the end chunk is missing, or one of the two checksums over
//! the pixels is wrong while the other vouches for them.

mod chunks;
pub(super) mod sieve;

use anyhow::{Result, anyhow, ensure};
use png::{BitDepth, ColorType, DecodeOptions, DecodingError, Transformations};

use self::chunks::Parts;
pub(super) use self::chunks::SIGNATURE;
use super::canvas::Canvas;
use super::orientation::Orientation;
use super::samples::{Colour, Layout, Opacity};
use super::{Decoded, Reading, check_size, damaged, ends_early, first_of};

pub(super) fn read(bytes: &[u8], reading: &Reading) -> Result<(Decoded, Orientation)> {
    let parts = Parts::new(bytes)?;
    let (width, height) = parts.size();
    ensure!(width > 0 && height > 0, "the PNG header says {width}x{height}: the picture has no pixels");
    let size = check_size(width.into(), height.into(), reading)?;
    let mut canvas = match pixels(&parts, size, reading, Checksum::Heeded) {
        Ok(canvas) => canvas,
        // The data's own checksum is either wrong or not reached. Without the other one nothing vouches for the pixels.
        Err(fault) if fault.of_data && !parts.pixels_suspect => {
            let mut canvas = pixels(&parts, size, reading, Checksum::Ignored).map_err(|fault| fault.error)?;
            if parts.ended {
                canvas.notes.push("the checksum of the PNG's pixels is wrong; the picture may be damaged".into());
            }
            canvas
        }
        Err(fault) => return Err(fault.error),
    };
    if parts.pixels_suspect {
        canvas.notes.push("the checksum of a chunk of the PNG is wrong (IDAT), but that of the pixels in it is right".into());
    }
    if !parts.ended {
        canvas.notes.push("the end of the PNG is missing (IEND), but every pixel is there".into());
    }
    if parts.frames > 1 {
        canvas.notes.push(first_of(parts.frames, "frames"));
    }
    Ok((canvas.finish()?, parts.orientation()))
}

/// What is done about the checksum at the end of the compressed pixels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checksum {
    Heeded,
    Ignored,
}

/// Why pixels could not be decoded.
struct Fault {
    error: anyhow::Error,
    /// It lies in the compressed pixels.
    of_data: bool,
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Fault {
        Fault { error, of_data: false }
    }
}

fn pixels(parts: &Parts, size: (usize, usize), reading: &Reading, checksum: Checksum) -> Result<Canvas, Fault> {
    let mut options = DecodeOptions::default();
    options.set_ignore_crc(true);
    options.set_ignore_adler32(checksum == Checksum::Ignored);
    let mut decoder = png::Decoder::new_with_options(parts.picture(), options);
    // A row or two, as wide as they may be.
    decoder.set_limits(png::Limits { bytes: usize::MAX });
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(|_| damaged("PNG", "header"))?;
    let (colours, depth) = reader.output_color_type();
    let (colour, opacity) = match colours {
        ColorType::Grayscale => (Colour::Grey, Opacity::Opaque),
        ColorType::GrayscaleAlpha => (Colour::Grey, Opacity::Straight),
        ColorType::Rgba => (Colour::Rgb, Opacity::Straight),
        ColorType::Rgb | ColorType::Indexed => (Colour::Rgb, Opacity::Opaque),
    };
    let (layout, sixteen) = (Layout { colour, opacity }, depth == BitDepth::Sixteen);
    let mut canvas = Canvas::new(size, layout, parts.colours(), reading)?;
    let mut row = vec![0; reader.output_line_size(size.0 as u32).unwrap_or(0)];
    let mut wide = Vec::new();
    for (done, line) in lines(size, parts.interlaced()).enumerate() {
        reader
            .read_row(&mut row)
            .map_err(|error| fault(&error, &format!("pixels cannot be decoded beyond row {done}"), parts))?;
        let samples = &row[..line.pixels(size.0) * layout.channels() * if sixteen { 2 } else { 1 }];
        if sixteen {
            wide.clear();
            wide.extend(samples.as_chunks::<2>().0.iter().map(|sample| u16::from_be_bytes(*sample)));
        }
        match (sixteen, parts.interlaced()) {
            (false, false) => canvas.rows(samples),
            (true, false) => canvas.rows(&wide),
            (false, true) => canvas.scatter(line.y, line.first, line.step, samples),
            (true, true) => canvas.scatter(line.y, line.first, line.step, &wide),
        }
    }
    // What is left is the checksum.
    reader.finish().map_err(|error| fault(&error, "pixels do not have the checksum that they should", parts))?;
    Ok(canvas)
}

fn fault(error: &DecodingError, of_pixels: &str, parts: &Parts) -> Fault {
    let error = match (error, parts.ended) {
        (DecodingError::LimitsExceeded, _) => anyhow!("the PNG needs more memory than a picture of its size should"),
        (_, false) => ends_early("PNG"),
        _ => anyhow!("the PNG is damaged: its {of_pixels}; copy or download it again"),
    };
    Fault { error, of_data: true }
}

/// Some pixels of a row, in the order of the file.
struct Line {
    y: usize,
    first: usize,
    step: usize,
}

impl Line {
    fn pixels(&self, width: usize) -> usize {
        (width - self.first).div_ceil(self.step)
    }
}

/// First column and row, and steps between columns and rows, of the passes of an interlaced picture.
const PASSES: [[usize; 4]; 7] =
    [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

/// The lines of a picture as its file has them.
fn lines((width, height): (usize, usize), interlaced: bool) -> impl Iterator<Item = Line> {
    let passes: &[[usize; 4]] = if interlaced { &PASSES } else { &[[0, 0, 1, 1]] };
    let passes = passes.iter().filter(move |[first, ..]| *first < width);
    passes.flat_map(move |&[first, top, step, down]| (top..height).step_by(down).map(move |y| Line { y, first, step }))
}
