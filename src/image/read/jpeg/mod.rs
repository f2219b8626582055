//! JPEG: segments and coded data are looked at here, the pixels are decoded by `zune-jpeg`.
//!
//! That decoder fills in what a damaged file lacks, so it is given only what [`scan::check`] has found whole. It also lets an
//! Adobe segment decide what the components are; libjpeg lets JFIF decide, then Adobe, then the components' ids. Where that
//! makes a difference, and for CMYK, samples are taken as they are stored and converted here.

mod block;
mod huffman;
mod scan;
mod segments;

use anyhow::Result;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use self::segments::{EOI, Header};
use super::canvas::{Canvas, zeroed};
use super::orientation::Orientation;
use super::samples::{Colour, Layout};
use super::{Decoded, Reading, check_size, damaged};

pub(super) fn read(bytes: &[u8], reading: &Reading) -> Result<(Decoded, Orientation)> {
    let header = Header::new(bytes)?;
    let size = check_size(header.frame.width as u64, header.frame.height as u64, reading)?;
    reading.afford(size, header.frame.coefficient_bytes() + 3 * size.0 * size.1)?;
    let findings = scan::check(bytes, &header.frame)?;
    let ended;
    let whole = if findings.ended {
        bytes
    } else {
        ended = [bytes, &[0xff, EOI]].concat();
        &ended
    };
    let stored = Stored::of(&header);
    let mut samples = decode(whole, stored, size, reading)?;
    stored.convert(&mut samples);
    let stated = header.colours();
    let mut canvas = match stored.colour() {
        Colour::Grey => {
            let mut canvas = Canvas::new(size, Layout::opaque(Colour::Grey), stated, reading)?;
            canvas.rows(&samples);
            canvas
        }
        colour => Canvas::adopting(samples, size, Layout::opaque(colour), stated, reading),
    };
    if !findings.ended {
        canvas.notes.push("the end of the JPEG is missing (its last two bytes), but every pixel is there".into());
    }
    if findings.doubtful {
        canvas.notes.push("the pixel data of the JPEG does not look whole, so a part of the picture may be damaged".into());
    }
    Ok((canvas.finish()?, header.orientation()))
}

/// What the components of a JPEG are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Grey,
    YCbCr,
    Rgb,
    /// `inverted`: as Adobe's programs write it, paper is 255.
    Cmyk {
        inverted: bool,
    },
    /// CMYK whose inks but the black one are stored as YCbCr; always inverted.
    Ycck,
}

impl Stored {
    fn of(header: &Header) -> Stored {
        let ids: Vec<u8> = header.frame.components.iter().map(|component| component.id).collect();
        match (ids.len(), header.adobe) {
            (1, _) => Stored::Grey,
            (3, _) if header.jfif => Stored::YCbCr,
            (3, Some(transform)) => {
                if transform == 0 {
                    Stored::Rgb
                } else {
                    Stored::YCbCr
                }
            }
            (3, None) => {
                if ids == *b"RGB" {
                    Stored::Rgb
                } else {
                    Stored::YCbCr
                }
            }
            (_, Some(2)) => Stored::Ycck,
            (_, adobe) => Stored::Cmyk { inverted: adobe.is_some() },
        }
    }

    fn colour(self) -> Colour {
        match self {
            Stored::Grey => Colour::Grey,
            Stored::YCbCr | Stored::Rgb => Colour::Rgb,
            Stored::Cmyk { .. } | Stored::Ycck => Colour::Cmyk,
        }
    }

    /// What the decoder is asked for, given what it takes the file for.
    fn asked(self, taken: ColorSpace) -> ColorSpace {
        match (self, taken) {
            (Stored::YCbCr, ColorSpace::YCbCr) => ColorSpace::RGB,
            (_, taken) => taken,
        }
    }

    /// Makes RGB or amounts of ink of the samples that the decoder gave.
    fn convert(self, samples: &mut [u8]) {
        match self {
            Stored::Cmyk { inverted: true } => samples.iter_mut().for_each(|sample| *sample = 255 - *sample),
            Stored::Ycck => samples.chunks_exact_mut(4).for_each(|pixel| {
                let [red, green, blue] = rgb_of_ycbcr([pixel[0], pixel[1], pixel[2]]);
                pixel.copy_from_slice(&[red, green, blue, 255 - pixel[3]]);
            }),
            _ => {}
        }
    }
}

/// JFIF's conversion, rounded to nearest.
pub(super) fn rgb_of_ycbcr([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    // `as` saturates.
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|sample| sample.round() as u8)
}

/// The samples as they are stored, but YCbCr as RGB.
fn decode(bytes: &[u8], stored: Stored, size: (usize, usize), reading: &Reading) -> Result<Vec<u8>> {
    let options = DecoderOptions::default().set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|_| damaged("JPEG", "header"))?;
    let taken = decoder.input_colorspace().ok_or_else(|| damaged("JPEG", "header"))?;
    let asked = stored.asked(taken);
    decoder.set_options(options.jpeg_set_out_colorspace(asked));
    let mut samples = zeroed(size.0 * size.1 * asked.num_components(), size, reading)?;
    decoder.decode_into(&mut samples).map_err(|_| damaged("JPEG", "pixel data"))?;
    if (stored, asked) == (Stored::YCbCr, taken) {
        samples.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| *pixel = rgb_of_ycbcr(*pixel));
    }
    Ok(samples)
}

/// Refuses a JPEG that is part of another file if it is not whole.
pub(super) fn check_whole(bytes: &[u8]) -> Result<()> {
    let header = Header::new(bytes)?;
    scan::check(bytes, &header.frame).map(|_| ())
}
