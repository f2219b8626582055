//! JPEG XL, by `jxl-oxide`.

use anyhow::{Result, bail, ensure};
use jxl_oxide::{AllocTracker, JxlImage, PixelFormat};

use super::canvas::Canvas;
use super::colour::Stated;
use super::orientation::Orientation;
use super::samples::{Colour, Layout, Opacity};
use super::{Decoded, Reading, check_size, damaged, ends_early, first_of};

/// Bytes that the decoder takes for a pixel: channels of 4 bytes, in its several stages.
const BYTES_PER_PIXEL: u64 = 64;

pub(super) fn read(bytes: &[u8], reading: &Reading) -> Result<(Decoded, Orientation)> {
    let limit = reading.pixels_max.saturating_mul(BYTES_PER_PIXEL) as usize;
    let image = JxlImage::builder()
        .alloc_tracker(AllocTracker::with_limit(limit))
        .read(bytes)
        .map_err(|_| damaged("JPEG XL", "header"))?;
    let size = check_size(image.width().into(), image.height().into(), reading)?;
    ensure!(image.num_loaded_keyframes() > 0 && image.is_loading_done(), ends_early("JPEG XL"));
    let (colour, opacity) = match image.pixel_format() {
        PixelFormat::Gray => (Colour::Grey, Opacity::Opaque),
        PixelFormat::Graya => (Colour::Grey, Opacity::Straight),
        PixelFormat::Rgb => (Colour::Rgb, Opacity::Opaque),
        PixelFormat::Rgba => (Colour::Rgb, Opacity::Straight),
        PixelFormat::Cmyk | PixelFormat::Cmyka => {
            bail!("the JPEG XL is CMYK, which cannot be read; convert it first, for example with `djxl in.jxl out.png`")
        }
    };
    // Of what the decoder makes of it, which need not be what the file was made from.
    let stated = match image.rendered_cicp() {
        Some([primaries, transfer, ..]) => Stated::cicp([primaries, transfer, 0, 1]),
        None => Stated::icc(&image.rendered_icc()),
    };
    let render = image.render_frame(0).map_err(|_| damaged("JPEG XL", "pixel data"))?;
    let mut stream = render.stream();
    let layout = Layout { colour, opacity };
    let mut canvas = Canvas::new(size, layout, stated, reading)?;
    let mut row = vec![0u16; size.0 * layout.channels()];
    for _ in 0..size.1 {
        ensure!(stream.write_to_buffer(&mut row) == row.len(), ends_early("JPEG XL"));
        canvas.rows(&row);
    }
    if image.num_loaded_keyframes() > 1 {
        canvas.notes.push(first_of(image.num_loaded_keyframes(), "frames"));
    }
    // The decoder has turned it.
    Ok((canvas.finish()?, Orientation::Upright))
}
