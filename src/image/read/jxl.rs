//! JPEG XL, by `jxl-oxide`.

use anyhow::{Result, bail, ensure};
use jxl_oxide::color::{ColourEncoding, TransferFunction};
use jxl_oxide::{AllocTracker, InitializeResult, JxlImage, PixelFormat};

use super::canvas::Canvas;
use super::colour::Stated;
use super::orientation::Orientation;
use super::samples::{Colour, Layout, Opacity};
use super::{Decoded, Reading, check_size, damaged, ends_early, first_of};

/// Largest picture, in pixels: the decoder holds several stages of it.
const PIXELS_MAX: u64 = 100_000_000;

/// Bytes that the decoder takes for a pixel, its channels having 4 bytes each: at most 16 without loss, 32 with it.
const BYTES_PER_PIXEL: usize = 32;

/// Most bytes that it may take: so many times what it should, and some for small pictures.
const TIMES_MAX: usize = 2;
const OTHER_BYTES_MAX: usize = 64 << 20;

pub(super) fn read(bytes: &[u8], reading: &Reading) -> Result<(Decoded, Orientation)> {
    // The decoder keeps the file's data; until the size is known, it gets nothing else.
    let memory = AllocTracker::with_limit(bytes.len());
    let image = parsed(bytes, &memory)?.ok_or_else(|| ends_early("JPEG XL"))?;
    let pixels_max = reading.pixels_max.min(PIXELS_MAX);
    let size = check_size(image.width().into(), image.height().into(), &Reading { pixels_max, ..*reading })?;
    let needed = BYTES_PER_PIXEL * size.0 * size.1;
    reading.afford(size, needed)?;
    memory.expand_limit(TIMES_MAX * needed + OTHER_BYTES_MAX);
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
        None if has_unknown_curve(&image) => Stated::Unusable("is of an unknown kind".into()),
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

/// Whether it says of its colours that their curve is unknown, or a power of nothing; of such the decoder makes no profile.
fn has_unknown_curve(image: &JxlImage) -> bool {
    match &image.image_header().metadata.colour_encoding {
        ColourEncoding::Enum(colours) => matches!(colours.tf, TransferFunction::Unknown | TransferFunction::Gamma { g: 0, .. }),
        ColourEncoding::IccProfile(_) => false,
    }
}

/// The image, of which nothing is decoded yet; none if its header is cut off. All bytes are given at once, because the decoder
/// would begin its header anew with each part.
pub(super) fn parsed(bytes: &[u8], memory: &AllocTracker) -> Result<Option<JxlImage>> {
    let header = |_| damaged("JPEG XL", "header");
    let mut image = JxlImage::builder().alloc_tracker(memory.clone()).build_uninit();
    image.feed_bytes(bytes).map_err(header)?;
    Ok(match image.try_init().map_err(header)? {
        InitializeResult::Initialized(image) => Some(image),
        InitializeResult::NeedMoreData(_) => None,
    })
}
