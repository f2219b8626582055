//! WebP: chunks are found here, the picture among them is decoded by `image-webp`.
//!
//! The decoder is given a file of one still frame. So no canvas is made that the frame does not fill, colours come in four
//! channels from the start and are packed in place, and of an animation only the first frame is looked at.

use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use image_webp::WebPDecoder;

use super::canvas::{Canvas, zeroed};
use super::colour::Stated;
use super::orientation::Orientation;
use super::samples::{Colour, Layout, Opacity};
use super::{Decoded, Reading, check_canvas, check_size, damaged, ends_early, first_of};

/// Flag of a VP8X chunk: there is alpha.
const ALPHA: u8 = 0x10;

pub(super) fn read(bytes: &[u8], reading: &Reading) -> Result<(Decoded, Orientation)> {
    let file = File::new(bytes)?;
    let (width, height) = check_size(u64::from(file.size.0), u64::from(file.size.1), reading)?;
    let frame = &file.frame;
    let size = (frame.size.0 as usize, frame.size.1 as usize);
    let fills = frame.at == (0, 0) && size == (width, height);
    ensure!(
        file.frames > 0 || fills,
        "the WebP is damaged: it claims {width}x{height} pixels, but its picture has {}x{}; copy or download it again",
        size.0,
        size.1
    );
    ensure!(
        frame.at.0 as usize + size.0 <= width && frame.at.1 as usize + size.1 <= height,
        "the WebP is damaged: its first frame lies outside the picture; copy or download it again"
    );

    let channels = if frame.alpha || frame.is_lossless() { 4 } else { 3 };
    let mut samples = zeroed(size.0 * size.1 * channels, size, reading)?;
    let still = frame.as_file();
    let mut decoder = WebPDecoder::new(Cursor::new(still)).map_err(|_| damaged("WebP", "header"))?;
    decoder.read_image(&mut samples).map_err(|_| damaged("WebP", "pixel data"))?;
    if frame.is_lossless() && !frame.alpha {
        samples.iter_mut().skip(3).step_by(4).for_each(|alpha| *alpha = 255);
    }
    if !fills {
        check_canvas((width, height), size)?;
        samples = on_canvas(&samples, frame, (width, height), reading)?;
    }
    let opacity = match samples.len() / (width * height) {
        3 => Opacity::Opaque,
        _ => Opacity::Straight,
    };
    let stated = file.icc.map_or(Stated::Srgb, Stated::icc);
    let layout = Layout { colour: Colour::Rgb, opacity };
    let mut canvas = Canvas::adopting(samples, (width, height), layout, stated, reading);
    if file.frames > 1 {
        canvas.notes.push(first_of(file.frames, "frames"));
    }
    Ok((canvas.finish()?, Orientation::stated(file.exif, file.xmp)))
}

/// A frame's pixels, in three or four channels, on a canvas that is transparent elsewhere.
fn on_canvas(samples: &[u8], frame: &Frame, (width, height): (usize, usize), reading: &Reading) -> Result<Vec<u8>> {
    let across = frame.size.0 as usize;
    let channels = samples.len() / (across * frame.size.1 as usize);
    let mut canvas = zeroed(width * height * 4, (width, height), reading)?;
    for (y, row) in samples.chunks_exact(across * channels).enumerate() {
        let at = (frame.at.1 as usize + y) * width + frame.at.0 as usize;
        for (pixel, target) in row.chunks_exact(channels).zip(canvas[at * 4..].chunks_exact_mut(4)) {
            target[3] = 255;
            target[..channels].copy_from_slice(pixel);
        }
    }
    Ok(canvas)
}

/// What the chunks of a WebP file are.
struct File<'a> {
    /// Width and height of the canvas.
    size: (u32, u32),
    frame: Frame<'a>,
    /// Frames of an animation; 0 for a still picture.
    frames: usize,
    icc: Option<&'a [u8]>,
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
}

/// A frame: its chunks, and where it lies on the canvas.
struct Frame<'a> {
    at: (u32, u32),
    size: (u32, u32),
    alpha: bool,
    /// The `ALPH` chunk of a lossy frame.
    opacity: Option<&'a [u8]>,
    /// Kind and content of the chunk with the pixels.
    picture: (&'static [u8; 4], &'a [u8]),
}

/// A chunk, and whether all its bytes are there.
struct Chunk<'a> {
    kind: &'a [u8],
    content: &'a [u8],
    whole: bool,
}

/// The chunks in a row of bytes; the last one may be cut.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (kind, size) = (rest.get(..4)?, rest.get(4..8)?);
        let size = u32::from_le_bytes(size.try_into().ok()?) as usize;
        let content = &rest[8..rest.len().min(8 + size)];
        rest = &rest[(8 + size + size % 2).min(rest.len())..];
        Some(Chunk { kind, content, whole: content.len() == size })
    })
}

impl<'a> File<'a> {
    fn new(bytes: &'a [u8]) -> Result<File<'a>> {
        let first = chunks(&bytes[12..]).next().ok_or_else(|| damaged("WebP", "header"))?;
        if first.kind != b"VP8X" {
            let frame = Frame::new(&bytes[12..])?;
            return Ok(File { size: frame.size, frame, frames: 0, icc: None, exif: None, xmp: None });
        }
        let header = first.content.get(..10).ok_or_else(|| damaged("WebP", "header"))?;
        let find = |kind: &[u8; 4]| chunks(&bytes[12..]).find(|chunk| chunk.kind == kind);
        let content = |kind| find(kind).map(|chunk: Chunk| chunk.content);
        let frames = chunks(&bytes[12..]).filter(|chunk| chunk.kind == b"ANMF").count();
        let mut frame = match content(b"ANMF") {
            // Place (6), size (6), duration (3), flags, then the frame's chunks.
            Some(animated) => {
                let place = animated.get(..16).ok_or_else(|| damaged("WebP", "first frame"))?;
                Frame { at: (2 * three_bytes(place, 0), 2 * three_bytes(place, 3)), ..Frame::new(&animated[16..])? }
            }
            None => Frame::new(&bytes[12..])?,
        };
        if frames == 0 && frame.is_lossless() {
            // Whether a still picture has alpha is said at the beginning.
            frame.alpha = header[0] & ALPHA != 0;
        }
        Ok(File {
            size: (three_bytes(header, 4) + 1, three_bytes(header, 7) + 1),
            frame,
            frames,
            icc: content(b"ICCP"),
            exif: content(b"EXIF"),
            xmp: content(b"XMP "),
        })
    }
}

fn three_bytes(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], 0])
}

impl<'a> Frame<'a> {
    /// The frame in these chunks.
    fn new(bytes: &'a [u8]) -> Result<Frame<'a>> {
        let lossy = |kind: &[u8]| kind == b"VP8 ";
        let picture = chunks(bytes).find(|chunk| lossy(chunk.kind) || chunk.kind == b"VP8L");
        let Chunk { kind, content, whole } = picture.context("the WebP holds no picture; copy or download it again")?;
        ensure!(whole, ends_early("WebP"));
        let numbers = content.get(..if lossy(kind) { 10 } else { 5 }).ok_or_else(|| damaged("WebP", "pixel data"))?;
        if lossy(kind) {
            // Tag (3), start code (3), width and height with a scale in the upper bits.
            let side = |at: usize| u32::from(u16::from_le_bytes([numbers[at], numbers[at + 1]]) & 0x3fff);
            let opacity = chunks(bytes).find(|chunk| chunk.kind == b"ALPH" && chunk.whole).map(|chunk| chunk.content);
            return Ok(Frame {
                at: (0, 0),
                size: (side(6), side(8)),
                alpha: opacity.is_some(),
                opacity,
                picture: (b"VP8 ", content),
            });
        }
        // Signature, then 14 bits of width - 1, 14 of height - 1, and whether alpha is used.
        let header = u32::from_le_bytes([numbers[1], numbers[2], numbers[3], numbers[4]]);
        let size = ((header & 0x3fff) + 1, (header >> 14 & 0x3fff) + 1);
        Ok(Frame { at: (0, 0), size, alpha: header >> 28 & 1 == 1, opacity: None, picture: (b"VP8L", content) })
    }

    fn is_lossless(&self) -> bool {
        self.picture.0 == b"VP8L"
    }

    /// A file of this frame alone. A lossless one is decoded with alpha in any case.
    fn as_file(&self) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WEBP".to_vec();
        let mut add = |kind: &[u8; 4], content: &[u8]| {
            file.extend_from_slice(kind);
            file.extend_from_slice(&(content.len() as u32).to_le_bytes());
            file.extend_from_slice(content);
            file.extend_from_slice(&[0][..content.len() % 2]);
        };
        let [w, h] = [self.size.0, self.size.1].map(|side| side.saturating_sub(1).to_le_bytes());
        if let Some(opacity) = self.opacity {
            add(b"VP8X", &[ALPHA, 0, 0, 0, w[0], w[1], w[2], h[0], h[1], h[2]]);
            add(b"ALPH", opacity);
        }
        add(self.picture.0, self.picture.1);
        if self.is_lossless() {
            let flags = file.len() - self.picture.1.len() - self.picture.1.len() % 2 + 4;
            file[flags] |= 0x10;
        }
        let riff = (file.len() - 8) as u32;
        file[4..8].copy_from_slice(&riff.to_le_bytes());
        file
    }
}
