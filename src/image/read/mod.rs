//! Picture files of other programs, as 8-bit sRGB.
//!
//! Each format has a reader of its own, which looks at the file's metadata, has a crate decode the pixels and gives them to
//! a [`canvas::Canvas`] row by row, so that beside the finished picture little is held. What a person should know of a
//! picture that could be read comes with it as notes.

mod bmp;
mod canvas;
mod colour;
mod format;
mod gif;
mod jpeg;
mod jxl;
mod orientation;
mod panics;
mod png;
mod samples;
mod tiff;
mod webp;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use self::format::Format;
pub use self::panics::quieten_decoders;
use super::{Rgb, Stream, stream};
use crate::error::ResourceError;
use crate::reserve::try_reserve;

/// What becomes of a picture's transparency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpha {
    /// The picture is put on the background.
    Composite,
    /// As for `Composite`, and the alpha comes with the picture.
    Keep,
    /// Alpha is forgotten, as by Pillow's `convert("RGB")`: the colours under what is invisible appear.
    Drop,
}

/// Largest picture in pixels, where a caller says nothing else.
const PIXELS_MAX: u64 = 100_000_000;

/// Most bytes of a file for each pixel that may be read, four uncompressed 16-bit channels, and beside its pixels.
const PIXEL_BYTES_MAX: u64 = 8;
const OTHER_BYTES_MAX: u64 = 256 << 20;

/// Largest canvas that a frame need not fill, in pixels; a larger one may be so many times as large as its first frame.
const CANVAS_PIXELS_MAX: usize = 10_000_000;
const CANVAS_TIMES_MAX: usize = 64;

/// How a picture is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Largest picture, in pixels. A header is a few bytes and can claim any size, so memory is bounded by this.
    pub pixels_max: u64,
    /// What becomes of transparency.
    pub alpha: Alpha,
    /// What is seen through a transparent picture: red, green, blue.
    pub background: [u8; 3],
    /// Take colours as they are stored, as the official code does, whatever they mean.
    pub ignore_profile: bool,
    /// Refuses, before memory is taken, what needs more bytes of it than there are: `(what needs it, bytes)`.
    pub check_memory: fn(&str, usize) -> Result<()>,
}

impl Reading {
    /// Refuses a picture of this size whose reading needs so many bytes at once, if they are not there.
    fn afford(&self, (width, height): (usize, usize), bytes: usize) -> Result<()> {
        let checked = (self.check_memory)(&format!("reading this picture of {width}x{height} pixels"), bytes);
        checked.map_err(|error| match error.downcast() {
            Ok(ResourceError(text)) => ResourceError(format!("{text}, or scale the picture down first")).into(),
            Err(other) => other,
        })
    }
}

impl Default for Reading {
    /// At most 100 megapixels, on white, in sRGB; memory is taken unasked.
    fn default() -> Reading {
        Reading {
            pixels_max: PIXELS_MAX,
            alpha: Alpha::Composite,
            background: [255; 3],
            ignore_profile: false,
            check_memory: |_, _| Ok(()),
        }
    }
}

/// A picture, and what came with it.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The picture, upright, in sRGB.
    pub picture: Rgb,
    /// Opacity of each pixel, [height, width]; none unless it was to be kept and something is transparent.
    pub alpha: Option<Vec<u8>>,
    /// What a person should know of how the picture was read; each a sentence.
    pub notes: Vec<String>,
}

/// Reads a picture file as [`decode_bytes`] does.
///
/// # Errors
///
/// If the file cannot be read or is far larger than its pixels could be, and as [`decode_bytes`]; the message names the path.
pub fn decode(path: &Path, reading: &Reading) -> Result<Decoded> {
    let read = || decode_bytes(&read_file(path, reading)?, reading);
    read().with_context(|| format!("cannot read the picture {}", path.display()))
}

/// Reads a picture file, or the picture that comes from standard input.
///
/// # Errors
///
/// As for [`decode`]; a usage error if standard input is a terminal.
pub fn decode_from(stream: &Stream, reading: &Reading) -> Result<Decoded> {
    let Stream::File(path) = stream else {
        let input = stream::standard_input()?;
        let read = || decode_bytes(&read_all(input, reading, 0)?, reading);
        return read().context("cannot read the picture from standard input");
    };
    decode(path, reading)
}

/// The bytes of a picture file, without metadata that is not looked at.
///
/// # Errors
///
/// If it cannot be read, or is far larger than its pixels could be.
pub fn read_file(path: &Path, reading: &Reading) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    ensure!(!found.is_dir(), "it is a folder; give a picture file");
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = found.file_type();
        ensure!(!kind.is_char_device() && !kind.is_block_device(), "it is a device; give a picture file");
    }
    read_all(file, reading, found.len())
}

/// All bytes that are used, of which `announced` may come.
fn read_all(input: impl Read, reading: &Reading, announced: u64) -> Result<Vec<u8>> {
    let bytes_max = reading.pixels_max.saturating_mul(PIXEL_BYTES_MAX).saturating_add(OTHER_BYTES_MAX);
    let too_long = || {
        let (most, pixels) = (bytes_max / 1_000_000, reading.pixels_max / 1_000_000);
        anyhow!("it has more than {most} MB, so it is hardly a picture of at most {pixels} megapixels")
    };
    let mut input = BufReader::new(input.take(bytes_max.saturating_add(1)));
    let mut bytes = Vec::new();
    input.by_ref().take(png::SIGNATURE.len() as u64).read_to_end(&mut bytes)?;
    if bytes == png::SIGNATURE {
        bytes = png::sieve::read(png::SIGNATURE.chain(&mut input))?;
    } else {
        ensure!(announced <= bytes_max, too_long());
        (reading.check_memory)("reading this file", announced as usize)?;
        try_reserve(&mut bytes, announced as usize)?;
        input.read_to_end(&mut bytes)?;
    }
    ensure!(input.get_ref().limit() > 0, too_long());
    Ok(bytes)
}

/// The picture in the bytes of a JPEG, PNG, WebP, GIF, BMP, TIFF or JPEG XL file; the format is found from the content.
///
/// The result is upright by EXIF or XMP, in sRGB by the file's profile, and on the background where it is transparent. Grey
/// is repeated in all channels, palettes are expanded, CMYK is converted, and a 16-bit sample v becomes v / 257 rounded to
/// nearest. Of an animation the first frame is taken, of a document the first page.
///
/// # Errors
///
/// If the bytes are no such picture, lack pixels or cannot be decoded without guessing, or the picture is larger than allowed
/// or has floating-point samples; a [`ResourceError`] if there is no memory for it. No bytes make it panic.
pub fn decode_bytes(bytes: &[u8], reading: &Reading) -> Result<Decoded> {
    let read = match format::of(bytes)? {
        Format::Jpeg => jpeg::read,
        Format::Png => png::read,
        Format::WebP => webp::read,
        Format::Gif => gif::read,
        Format::Bmp => bmp::read,
        Format::Tiff => tiff::read,
        Format::JpegXl => jxl::read,
    };
    // The decoding crates are fuzzed by their authors; what still slips through ends this picture, not the program.
    match panics::caught(|| read(bytes, reading)) {
        Some(read) => read.and_then(|(decoded, orientation)| orientation::upright(decoded, orientation, reading)),
        None => bail!("its decoder failed, so the file is probably damaged; copy or download it again"),
    }
}

/// Width and height that the header of a picture file claims, not turned upright; none where that takes more than its first bytes.
pub fn claimed_size(bytes: &[u8]) -> Option<(usize, usize)> {
    let claimed = || {
        let reader = ::image::ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().ok()?;
        reader.into_dimensions().ok()
    };
    let (width, height) = panics::caught(claimed).flatten()?;
    Some((width as usize, height as usize))
}

/// The size as indices, if such a picture may be read.
fn check_size(width: u64, height: u64, reading: &Reading) -> Result<(usize, usize)> {
    ensure!(width > 0 && height > 0, "the picture is {width}x{height}: it has no pixels");
    let pixels = width.checked_mul(height);
    if pixels.is_none_or(|pixels| pixels > reading.pixels_max) {
        let scale = (reading.pixels_max as f64 / (width as f64 * height as f64)).sqrt();
        bail!(
            "the picture claims {width}x{height} pixels; at most {} megapixels can be read; scale it down first, for example to \
             {}x{}",
            reading.pixels_max / 1_000_000,
            ((width as f64 * scale) as u64).max(1),
            ((height as f64 * scale) as u64).max(1)
        );
    }
    Ok((width as usize, height as usize))
}

/// Refuses a canvas of which the only picture that is read fills next to nothing: a few bytes can claim any.
fn check_canvas(canvas: (usize, usize), frame: (usize, usize)) -> Result<()> {
    ensure!(
        canvas.0 * canvas.1 <= (CANVAS_TIMES_MAX * frame.0 * frame.1).max(CANVAS_PIXELS_MAX),
        "the picture claims {}x{} pixels, but its first frame fills only {}x{} of them, so it is probably damaged; \
         copy or download it again",
        canvas.0,
        canvas.1,
        frame.0,
        frame.1
    );
    Ok(())
}

/// The error of a file part of which cannot be what its writer wrote.
fn damaged(format: &str, part: &str) -> anyhow::Error {
    anyhow!("the {format} is damaged: its {part} cannot be decoded; copy or download the file again")
}

/// The error of a file that lacks part of its pixels.
fn ends_early(format: &str) -> anyhow::Error {
    anyhow!("the {format} ends early and lacks part of its pixels: the file was cut short; copy or download it again")
}

/// The note of a file of which only the first frame or page is read.
fn first_of(count: usize, what: &str) -> String {
    format!("only the first of the {count} {what} of the picture is edited")
}

#[cfg(test)]
mod tests;
