//! BMP, by the decoder of the `image` crate.

use std::io::Cursor;

use anyhow::Result;
use image::codecs::bmp::BmpDecoder;
use image::{ColorType, ImageDecoder};

use super::canvas::{Canvas, zeroed};
use super::colour::Stated;
use super::orientation::Orientation;
use super::samples::{Colour, Layout, Opacity};
use super::{Decoded, Reading, check_size, damaged};

pub(super) fn read(bytes: &[u8], reading: &Reading) -> Result<(Decoded, Orientation)> {
    let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(|_| damaged("BMP", "header"))?;
    let (width, height) = decoder.dimensions();
    let size = check_size(u64::from(width), u64::from(height), reading)?;
    let opacity = if decoder.color_type() == ColorType::Rgba8 { Opacity::Straight } else { Opacity::Opaque };
    let layout = Layout { colour: Colour::Rgb, opacity };
    let mut samples = zeroed(decoder.total_bytes() as usize, size, reading)?;
    decoder.read_image(&mut samples).map_err(|_| damaged("BMP", "pixel data"))?;
    let canvas = Canvas::adopting(samples, size, layout, Stated::Srgb, reading);
    Ok((canvas.finish()?, Orientation::Upright))
}
