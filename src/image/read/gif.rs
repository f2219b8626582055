//! GIF: the first frame, on the whole screen.

use anyhow::Result;
use gif::{ColorOutput, DecodeOptions, MemoryLimit};

use super::canvas::{Canvas, zeroed};
use super::colour::Stated;
use super::orientation::Orientation;
use super::samples::{Colour, Layout, Opacity};
use super::{Decoded, Reading, check_canvas, check_size, damaged, first_of};

pub(super) fn read(bytes: &[u8], reading: &Reading) -> Result<(Decoded, Orientation)> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::RGBA);
    // Memory is bounded by the check of the size.
    options.set_memory_limit(MemoryLimit::Unlimited);
    let mut decoder = options.read_info(bytes).map_err(|_| damaged("GIF", "header"))?;
    let screen = (usize::from(decoder.width()), usize::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(|_| damaged("GIF", "first frame"))?;
    let frame = frame.ok_or_else(|| damaged("GIF", "first frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (across, down) = (usize::from(frame.width), usize::from(frame.height));
    // A frame beyond the screen makes it larger, as in Pillow.
    let (width, height) = (screen.0.max(left + across), screen.1.max(top + down));
    let (width, height) = check_size(width as u64, height as u64, reading)?;

    check_canvas((width, height), (across, down))?;
    let mut screen = zeroed(width * height * 4, (width, height), reading)?;
    if (across, down) == (width, height) {
        decoder.read_into_buffer(&mut screen).map_err(|_| damaged("GIF", "pixel data"))?;
    } else {
        let mut pixels = zeroed(across * down * 4, (across, down), reading)?;
        decoder.read_into_buffer(&mut pixels).map_err(|_| damaged("GIF", "pixel data"))?;
        for (y, row) in pixels.chunks_exact((across * 4).max(1)).enumerate() {
            screen[((top + y) * width + left) * 4..][..across * 4].copy_from_slice(row);
        }
    }
    let layout = Layout { colour: Colour::Rgb, opacity: Opacity::Straight };
    let mut canvas = Canvas::adopting(screen, (width, height), layout, Stated::Srgb, reading);
    let Blocks { frames, ended } = blocks(bytes);
    if frames > 1 {
        canvas.notes.push(first_of(frames, "frames"));
    }
    if !ended && frames <= 1 {
        canvas.notes.push("the end of the GIF is missing, but every pixel is there".into());
    }
    Ok((canvas.finish()?, Orientation::Upright))
}

/// What the blocks of a GIF say without being decoded.
struct Blocks {
    frames: usize,
    /// The trailer was reached.
    ended: bool,
}

fn blocks(bytes: &[u8]) -> Blocks {
    let mut found = Blocks { frames: 0, ended: false };
    // Header (6), screen size (4), flags, background, aspect.
    let mut at = 13 + bytes.get(10).map_or(0, |flags| palette_bytes(*flags));
    while let Some(kind) = bytes.get(at) {
        at = match kind {
            0x2c => {
                found.frames += 1;
                // Place and size (8), flags, palette, size of codes.
                past_sub_blocks(bytes, at + 11 + bytes.get(at + 9).map_or(0, |flags| palette_bytes(*flags)))
            }
            0x21 => past_sub_blocks(bytes, at + 2),
            0x3b => {
                found.ended = true;
                break;
            }
            _ => break,
        };
    }
    found
}

fn palette_bytes(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

fn past_sub_blocks(bytes: &[u8], mut at: usize) -> usize {
    while let Some(size) = bytes.get(at) {
        at += 1 + usize::from(*size);
        if *size == 0 {
            break;
        }
    }
    at
}
