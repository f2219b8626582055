//! TIFF: tags are looked at here, strips and tiles are decoded by the `tiff` crate, a row of them at a time.
//!
//! The decoder knows no palettes and few kinds of extra samples. So it is shown every file as a grey one, whose samples it
//! hands out as they are stored; what they mean is said here.

mod tags;

use std::io::{self, Cursor, Read, Seek, SeekFrom};

use anyhow::{Result, bail, ensure};
use tiff::TiffError;
use tiff::decoder::{ChunkType, Decoder, DecodingResult, Limits};

use self::tags::{Directory, Tag};
use super::canvas::Canvas;
use super::colour::Stated;
use super::jpeg::{check_whole, rgb_of_ycbcr};
use super::orientation::Orientation;
use super::samples::{Colour, Layout, Opacity, Sample};
use super::{Decoded, Reading, check_size, damaged, ends_early, first_of, format};

/// The number of JPEG among the ways to compress.
const JPEG: u64 = 7;

/// Most samples of a pixel.
const SAMPLES_MAX: usize = 64;

/// Most bytes of a strip or a tile for each pixel of the picture, and of those of a small picture.
const STRIP_PIXEL_BYTES_MAX: usize = 16;
const SMALL_STRIP_BYTES_MAX: usize = 1 << 20;

const CONVERT: &str = "convert it first, for example with `magick in.tif out.png`";

pub(super) fn read(bytes: &[u8], reading: &Reading) -> Result<(Decoded, Orientation)> {
    let page = Directory::first(bytes).ok_or_else(|| damaged("TIFF", "header"))?;
    if is_raw(&page) || page.below().any(|below| is_raw(&below)) {
        return Err(format::raw());
    }
    let side = |tag| page.number(tag).ok_or_else(|| damaged("TIFF", "header"));
    let size = check_size(side(Tag::Width)?, side(Tag::Height)?, reading)?;
    let meaning = Meaning::of(&page)?;
    check_compression(&page)?;
    check_parts(bytes, &page, size)?;

    let stated = page.bytes(Tag::IccProfile).map_or(Stated::Srgb, Stated::icc);
    let mut canvas = Canvas::new(size, meaning.layout, stated, reading)?;
    let (at, grey) = page.patch(Tag::Photometric, 1).ok_or_else(|| damaged("TIFF", "header"))?;
    let file = Patched { file: Cursor::new(bytes), at: at as u64, patch: grey };
    let mut limits = Limits::unlimited();
    limits.decoding_buffer_size = (size.0 * size.1).saturating_mul(STRIP_PIXEL_BYTES_MAX).max(SMALL_STRIP_BYTES_MAX);
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    limits.ifd_value_size = bytes.len();
    let mut decoder = Decoder::new(file).map_err(|error| refusal(&error))?.with_limits(limits);
    match meaning.stored(bytes, &page, size) {
        Some(rows) => canvas.rows(rows),
        None => meaning.pixels(&mut decoder, size, &mut canvas).map_err(|error| refusal(&error))?,
    }
    let pages = page.pages();
    if pages > 1 {
        canvas.notes.push(first_of(pages, "pages"));
    }
    let orientation = match page.number(Tag::Orientation) {
        Some(number) => number.into(),
        None => Orientation::stated(None, page.bytes(Tag::Xmp)),
    };
    Ok((canvas.finish()?, orientation))
}

/// Whether this is the picture of a camera's sensor, or of a file that has one beside it.
fn is_raw(page: &Directory) -> bool {
    page.number(Tag::DngVersion).is_some() || matches!(page.number(Tag::Photometric), Some(32_803 | 34_892))
}

fn refusal(error: &TiffError) -> anyhow::Error {
    match error {
        TiffError::UnsupportedError(_) => anyhow::anyhow!("the TIFF is of a kind that cannot be read; {CONVERT}"),
        TiffError::LimitsExceeded => anyhow::anyhow!("the TIFF needs more memory than a picture of its size should; {CONVERT}"),
        TiffError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => ends_early("TIFF"),
        _ => damaged("TIFF", "pixel data"),
    }
}

/// Refuses what cannot be unpacked, by name.
fn check_compression(page: &Directory) -> Result<()> {
    let name = match page.number(Tag::Compression).unwrap_or(1) {
        1 | 4 | 5 | JPEG | 8 | 32_773 | 32_946 => return Ok(()),
        2 | 3 => "CCITT Group 3",
        6 => "old-style JPEG",
        34_887 => "LERC",
        34_925 => "LZMA",
        50_000 => "Zstandard",
        50_001 => "WebP",
        number => {
            let name = match number {
                33_003..=33_005 | 34_712 => "JPEG 2000".to_string(),
                50_002 => "JPEG XL".to_string(),
                _ => format!("a method that is not known here, number {number}"),
            };
            bail!(
                "the TIFF is compressed with {name}, which cannot be read; save it without compression in the program that made it"
            )
        }
    };
    bail!("the TIFF is compressed with {name}, which cannot be read; use `tiffcp -c lzw in.tif out.tif` first")
}

/// Refuses strips or tiles that make a few bytes be unpacked again and again, and JPEG data that is not whole.
fn check_parts(bytes: &[u8], page: &Directory, (width, height): (usize, usize)) -> Result<()> {
    let find = |strips, tiles| page.numbers(strips).or_else(|| page.numbers(tiles)).ok_or_else(|| damaged("TIFF", "header"));
    let offsets = find(Tag::StripOffsets, Tag::TileOffsets)?;
    let sizes = find(Tag::StripByteCounts, Tag::TileByteCounts)?;
    let is_jpeg = page.number(Tag::Compression) == Some(JPEG);
    // Tables of all parts stand apart, in a JPEG of their own; its end and the part's beginning are left out.
    let tables = page.bytes(Tag::JpegTables).filter(|tables| is_jpeg && tables.len() >= 4);
    let parts = || offsets.iter().zip(&sizes).map(|(at, size)| usize::try_from(*at).ok().zip(usize::try_from(*size).ok()));
    // Equal tiles may be stored once, but none is larger than its pixels.
    let there = |part: Option<(usize, usize)>| part.map_or(0, |(at, size)| size.min(bytes.len().saturating_sub(at)));
    let unpacked = parts().map(|part| there(part) + tables.map_or(0, <[u8]>::len)).fold(0, usize::saturating_add);
    ensure!(
        unpacked <= (width * height).saturating_mul(STRIP_PIXEL_BYTES_MAX).saturating_add(bytes.len()),
        damaged("TIFF", "header")
    );
    for part in parts().filter(|_| is_jpeg) {
        let part = part.and_then(|(at, size)| bytes.get(at..at.checked_add(size)?)).ok_or_else(|| ends_early("TIFF"))?;
        match tables {
            Some(tables) if part.len() > 2 => check_whole(&[&tables[..tables.len() - 2], &part[2..]].concat())?,
            _ => check_whole(part)?,
        }
    }
    Ok(())
}

/// What the samples of a pixel mean.
struct Meaning {
    kind: Kind,
    bits: usize,
    /// Samples of a pixel as they are stored.
    samples: usize,
    /// They are stored in a plane each.
    planar: bool,
    /// What the canvas is given.
    layout: Layout,
}

enum Kind {
    Grey {
        inverted: bool,
    },
    /// Red, green and blue of each number.
    Palette(Vec<[u8; 3]>),
    Colour,
    YCbCr,
}

impl Meaning {
    fn of(page: &Directory) -> Result<Meaning> {
        let bits = page.numbers(Tag::BitsPerSample).unwrap_or(vec![1]);
        let samples = page.number(Tag::SamplesPerPixel).unwrap_or(1) as usize;
        let formats = page.numbers(Tag::SampleFormat).unwrap_or(vec![1]);
        ensure!(
            !formats.contains(&3),
            "the TIFF has floating-point samples, whose range is not known; save it with 8 or 16 bits"
        );
        let depth = bits.first().copied().unwrap_or(1) as usize;
        let alike = bits.iter().all(|bits| *bits as usize == depth) && formats.iter().all(|format| matches!(format, 1 | 4));
        ensure!(
            alike && matches!(depth, 1 | 2 | 4 | 8 | 16),
            "the TIFF has samples of {depth} bits of an unusual kind; whole numbers of 1, 2, 4, 8 or 16 bits can be read; {CONVERT}"
        );
        ensure!(
            page.number(Tag::FillOrder).is_none_or(|order| order == 1),
            "the TIFF has its bits in reverse order, which cannot be read; {CONVERT}"
        );
        let (kind, colour) = Kind::of(page, depth)?;
        // A palette's pixel is one sample.
        let stored = if matches!(kind, Kind::Palette(_)) { 1 } else { colour.channels() };
        ensure!((stored..=SAMPLES_MAX).contains(&samples), damaged("TIFF", "header"));
        let extra = page.numbers(Tag::ExtraSamples);
        let opacity = match (extra.as_deref().and_then(<[u64]>::first), samples > stored && !matches!(kind, Kind::Palette(_))) {
            (_, false) | (Some(0), _) => Opacity::Opaque,
            (Some(1), _) => Opacity::Associated,
            // Many programs do not say that the fourth sample is alpha.
            _ => Opacity::Straight,
        };
        let planar = page.number(Tag::PlanarConfiguration) == Some(2) && samples > 1;
        let layout = Layout { colour, opacity };
        Ok(Meaning { kind, bits: depth, samples, planar, layout })
    }

    /// The samples, if they are stored one after another just as the canvas takes them.
    fn stored<'a>(&self, bytes: &'a [u8], page: &Directory, (width, height): (usize, usize)) -> Option<&'a [u8]> {
        let plain = matches!(self.kind, Kind::Colour) && self.samples == self.layout.channels() && !self.planar && self.bits == 8;
        let offsets = page.numbers(Tag::StripOffsets).filter(|_| plain && page.number(Tag::Compression).unwrap_or(1) == 1)?;
        let sizes = page.numbers(Tag::StripByteCounts)?;
        let rows = page.number(Tag::RowsPerStrip).unwrap_or(u64::MAX).clamp(1, height as u64) as usize;
        let strips = (0..height).step_by(rows).map(|top| (rows.min(height - top) * width * self.samples) as u64);
        let whole = offsets.len() == strips.len() && sizes.len() == strips.len();
        // A strip may have bytes behind its rows; then the next one does not follow on them.
        let joined = offsets.windows(2).zip(strips.clone()).all(|(at, strip)| at[0].checked_add(strip) == Some(at[1]));
        let held = sizes.iter().zip(strips).all(|(size, strip)| *size >= strip);
        let first = usize::try_from(*offsets.first()?).ok().filter(|_| whole && joined && held)?;
        bytes.get(first..first.checked_add(width * height * self.samples)?)
    }

    /// Reads all strips or tiles into the canvas.
    fn pixels<R: Read + Seek>(
        &self,
        decoder: &mut Decoder<R>,
        size: (usize, usize),
        canvas: &mut Canvas,
    ) -> Result<(), TiffError> {
        let (width, height) = size;
        let (across, down) = decoder.chunk_dimensions();
        let columns = match decoder.get_chunk_type() {
            ChunkType::Strip => 1,
            ChunkType::Tile => width.div_ceil(across as usize),
        };
        let bands = height.div_ceil(down as usize);
        for band in 0..bands {
            let rows = (down as usize).min(height - band * down as usize);
            if columns == 1 && !self.planar && self.bits >= 8 {
                match decoder.read_chunk(band as u32)? {
                    DecodingResult::U8(samples) => self.give(&samples, canvas),
                    DecodingResult::U16(samples) => self.give(&samples, canvas),
                    _ => {}
                }
                continue;
            }
            let planes = if self.planar { self.samples } else { 1 };
            let in_chunk = self.samples / planes;
            let (mut narrow, mut wide) = (vec![], vec![]);
            match self.bits {
                16 => wide.resize(rows * width * self.samples, 0),
                _ => narrow.resize(rows * width * self.samples, 0),
            }
            for (plane, column) in (0..planes).flat_map(|plane| (0..columns).map(move |column| (plane, column))) {
                let chunk = ((plane * bands + band) * columns + column) as u32;
                let data_width = decoder.chunk_data_dimensions(chunk).0 as usize;
                let place = Place { left: column * across as usize, width, plane, samples: self.samples, in_chunk };
                match decoder.read_chunk(chunk)? {
                    DecodingResult::U8(data) if self.bits == 8 => place.fill(&data, data_width * in_chunk, &mut narrow),
                    DecodingResult::U8(data) => {
                        let data = unpacked(&data, self.bits, data_width * in_chunk);
                        place.fill(&data, data_width * in_chunk, &mut narrow);
                    }
                    DecodingResult::U16(data) => place.fill(&data, data_width * in_chunk, &mut wide),
                    _ => {}
                }
            }
            match self.bits {
                16 => self.give(&wide, canvas),
                _ => self.give(&narrow, canvas),
            }
        }
        Ok(())
    }

    /// Gives samples, as they are stored, to the canvas, as they are meant.
    fn give<T: Sample + Scaled>(&self, samples: &[T], canvas: &mut Canvas) {
        let pixels = samples.chunks_exact(self.samples);
        let channels = self.layout.channels();
        match &self.kind {
            Kind::Grey { inverted } => {
                let meant = pixels.flat_map(|pixel| {
                    let grey = pixel[0].scaled(self.bits);
                    std::iter::once(if *inverted { grey.inverted() } else { grey })
                        .chain(pixel[1..channels].iter().map(|s| s.scaled(self.bits)))
                });
                canvas.rows(&meant.collect::<Vec<T>>());
            }
            Kind::Palette(colours) => {
                let meant = pixels.flat_map(|pixel| colours.get(pixel[0].index()).copied().unwrap_or_default());
                canvas.rows(&meant.collect::<Vec<u8>>());
            }
            Kind::Colour if self.samples == channels && self.bits >= 8 => canvas.rows(samples),
            Kind::Colour => {
                let meant = pixels.flat_map(|pixel| pixel[..channels].iter().map(|sample| sample.scaled(self.bits)));
                canvas.rows(&meant.collect::<Vec<T>>());
            }
            Kind::YCbCr => {
                let meant = pixels.flat_map(|pixel| rgb_of_ycbcr([pixel[0].level(), pixel[1].level(), pixel[2].level()]));
                canvas.rows(&meant.collect::<Vec<u8>>());
            }
        }
    }
}

impl Kind {
    /// What the samples are, and the colour that they become.
    fn of(page: &Directory, bits: usize) -> Result<(Kind, Colour)> {
        let is_jpeg = page.number(Tag::Compression) == Some(JPEG);
        Ok(match page.number(Tag::Photometric) {
            Some(0) => (Kind::Grey { inverted: true }, Colour::Grey),
            Some(1) => (Kind::Grey { inverted: false }, Colour::Grey),
            Some(2) => (Kind::Colour, Colour::Rgb),
            Some(3) if bits <= 8 => {
                let map = page.numbers(Tag::ColourMap).filter(|map| map.len() == 3 << bits);
                let map = map.ok_or_else(|| damaged("TIFF", "palette"))?;
                // Of 16 bits each; but some programs write 8.
                let shift = if map.iter().any(|value| *value > 255) { 8 } else { 0 };
                let count = 1 << bits;
                let colour = |i: usize| [0, 1, 2].map(|channel| (map[channel * count + i] >> shift) as u8);
                (Kind::Palette((0..count).map(colour).collect()), Colour::Rgb)
            }
            Some(5) if bits >= 8 => (Kind::Colour, Colour::Cmyk),
            Some(6) if bits == 8 => {
                let subsampling = page.numbers(Tag::YCbCrSubsampling).unwrap_or(vec![2, 2]);
                ensure!(
                    is_jpeg || subsampling == [1, 1],
                    "the TIFF stores colours at a lower resolution than brightness, which can be read only from JPEG data; {CONVERT}"
                );
                (Kind::YCbCr, Colour::Rgb)
            }
            Some(8..=10) => bail!("the TIFF is in the Lab colour space, which cannot be read; {CONVERT}"),
            Some(4) => bail!("the TIFF is a mask, not a picture; give the picture that it belongs to"),
            Some(other) => bail!("the TIFF's colours are of a kind that cannot be read (number {other}, {bits} bits); {CONVERT}"),
            None => return Err(damaged("TIFF", "header")),
        })
    }
}

/// Where a chunk's samples belong in a row of chunks.
struct Place {
    left: usize,
    /// Pixels of a row of the picture.
    width: usize,
    plane: usize,
    /// Samples of a pixel, in the picture and in the chunk.
    samples: usize,
    in_chunk: usize,
}

impl Place {
    fn fill<T: Copy>(&self, data: &[T], row: usize, band: &mut [T]) {
        for (from, to) in data.chunks_exact(row).zip(band.chunks_exact_mut(self.width * self.samples)) {
            let pixels = to[self.left * self.samples..].chunks_exact_mut(self.samples);
            for (from, to) in from.chunks_exact(self.in_chunk).zip(pixels) {
                to[self.plane..self.plane + self.in_chunk].copy_from_slice(from);
            }
        }
    }
}

/// Samples of 1, 2 or 4 bits, each row of them beginning a new byte.
fn unpacked(data: &[u8], bits: usize, row: usize) -> Vec<u8> {
    let mask = (1u8 << bits) - 1;
    let sample = move |bytes: &[u8], i: usize| bytes[i * bits / 8] >> (8 - bits - i * bits % 8) & mask;
    data.chunks_exact((row * bits).div_ceil(8)).flat_map(|bytes| (0..row).map(move |i| sample(bytes, i))).collect()
}

/// A stored sample.
trait Scaled: Copy {
    /// The sample of so many bits in all bits of its type.
    fn scaled(self, bits: usize) -> Self;
    fn inverted(self) -> Self;
    fn index(self) -> usize;
}

impl Scaled for u8 {
    fn scaled(self, bits: usize) -> u8 {
        if bits >= 8 { self } else { (u16::from(self) * 255 / ((1 << bits) - 1)) as u8 }
    }

    fn inverted(self) -> u8 {
        255 - self
    }

    fn index(self) -> usize {
        self.into()
    }
}

impl Scaled for u16 {
    fn scaled(self, _: usize) -> u16 {
        self
    }

    fn inverted(self) -> u16 {
        65_535 - self
    }

    fn index(self) -> usize {
        self.into()
    }
}

/// A file some bytes of which are read as others.
struct Patched<'a> {
    file: Cursor<&'a [u8]>,
    at: u64,
    patch: Vec<u8>,
}

impl Read for Patched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.file.position();
        let count = self.file.read(buffer)?;
        for (at, byte) in (self.at..).zip(&self.patch) {
            if let Some(place) = at.checked_sub(from).filter(|place| *place < count as u64) {
                buffer[place as usize] = *byte;
            }
        }
        Ok(count)
    }
}

impl Seek for Patched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
