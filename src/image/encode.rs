//! The result as the bytes of a picture file.

use std::io::Write;
use std::path::Path;

use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::webp::WebPEncoder;
use ::image::{ExtendedColorType, ImageEncoder};
use anyhow::{Context, Result, bail, ensure};

use super::{Alpha, Rgb};

/// Quality of JPEG output, of 100, where nobody says another.
pub const JPEG_QUALITY: u8 = 95;

/// PNG keyword under which picture generators keep their settings.
const PARAMETERS_KEYWORD: &str = "parameters";

/// Format of an output file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lossless, with the parameters as text.
    Png,
    /// Lossy, quality 95.
    Jpeg,
    /// Lossless.
    WebP,
}

impl Format {
    /// The format that the extension of `path` names, in upper or lower case.
    ///
    /// # Errors
    ///
    /// If the extension is missing or not one of png, jpg, jpeg, webp.
    pub fn of(path: &Path) -> Result<Format> {
        const CHOICES: &str = "end it in .png, .jpg, .jpeg or .webp";
        let Some(extension) = path.extension() else {
            bail!("the output path {} has no extension that names a format; {CHOICES}", path.display());
        };
        match extension.to_string_lossy().to_ascii_lowercase().as_str() {
            "png" => Ok(Format::Png),
            "jpg" | "jpeg" => Ok(Format::Jpeg),
            "webp" => Ok(Format::WebP),
            other => bail!("the output path {} ends in .{other}, which cannot be written; {CHOICES}", path.display()),
        }
    }

    /// Largest width or height in pixels that the format's header can hold.
    fn side_max(self) -> usize {
        match self {
            Format::Png => i32::MAX as usize,
            Format::Jpeg => 65_535,
            Format::WebP => 16_383,
        }
    }

    /// Whether the format can hold what is asked to become of transparency.
    ///
    /// # Errors
    ///
    /// If alpha is to be kept in a JPEG.
    pub fn check_alpha(self, alpha: Alpha) -> Result<()> {
        ensure!(
            (self, alpha) != (Format::Jpeg, Alpha::Keep),
            "a JPEG cannot be transparent, so --alpha keep is of no use; write a PNG or WebP, or choose --alpha composite"
        );
        Ok(())
    }

    /// Whether the format can hold a picture of this size.
    ///
    /// # Errors
    ///
    /// If a side is 0 or larger than the format's header allows.
    pub fn check_size(self, width: usize, height: usize) -> Result<()> {
        let side_max = self.side_max();
        ensure!(
            (1..=side_max).contains(&width) && (1..=side_max).contains(&height),
            "a {width}x{height} picture cannot be written as {self:?}: each side must be 1 to {side_max} pixels; \
             write a PNG, which takes larger ones"
        );
        Ok(())
    }
}

/// The bytes of a picture file, as [`encode_at`] with the quality of JPEG that the command line writes.
///
/// # Errors
///
/// As for [`encode_at`].
pub fn encode(picture: &Rgb, alpha: Option<&[u8]>, format: Format, parameters: &str) -> Result<Vec<u8>> {
    encode_at(picture, alpha, format, JPEG_QUALITY, parameters)
}

/// The bytes of a picture file, which says that its colours are sRGB. `alpha` is the opacity of each pixel, [height, width].
/// `quality` (1 to 100) is that of a JPEG.
/// `parameters` (how the picture was made) goes into a PNG as text with keyword "parameters": tEXt if it is ASCII, else iTXt;
/// none if it is empty. The other formats do not carry it.
///
/// # Errors
///
/// If the picture is empty, its data does not fit its size, a side is larger than the format allows, or the format cannot hold
/// alpha.
pub fn encode_at(picture: &Rgb, alpha: Option<&[u8]>, format: Format, quality: u8, parameters: &str) -> Result<Vec<u8>> {
    let Rgb { width, height, data } = picture;
    format.check_size(*width, *height)?;
    if alpha.is_some() {
        format.check_alpha(Alpha::Keep)?;
    }
    ensure!(
        width.checked_mul(*height).and_then(|pixels| pixels.checked_mul(3)) == Some(data.len())
            && alpha.is_none_or(|alpha| alpha.len() == data.len() / 3),
        "a {width}x{height} RGB picture cannot hold {} bytes",
        data.len()
    );
    let (width, height) = (u32::try_from(*width)?, u32::try_from(*height)?);
    let mut bytes = Vec::new();
    match (format, alpha) {
        (Format::Png, _) => write_png(&mut bytes, data, alpha, (width, height), parameters).context("PNG encoding failed")?,
        (Format::Jpeg, _) => {
            let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
            encoder.set_exif_metadata(SRGB_EXIF.to_vec()).context("JPEG encoding failed")?;
            encoder.encode(data, width, height, ExtendedColorType::Rgb8).context("JPEG encoding failed")?;
        }
        (Format::WebP, None) => write_webp(&mut bytes, data, (width, height), ExtendedColorType::Rgb8)?,
        (Format::WebP, Some(alpha)) => {
            write_webp(&mut bytes, &interleaved(data, alpha), (width, height), ExtendedColorType::Rgba8)?
        }
    }
    Ok(bytes)
}

/// Red, green, blue and alpha of each pixel.
fn interleaved(data: &[u8], alpha: &[u8]) -> Vec<u8> {
    data.chunks_exact(3).zip(alpha).flat_map(|(pixel, alpha)| [pixel[0], pixel[1], pixel[2], *alpha]).collect()
}

fn write_webp(bytes: &mut Vec<u8>, samples: &[u8], (width, height): (u32, u32), colours: ExtendedColorType) -> Result<()> {
    let mut encoder = WebPEncoder::new_lossless(bytes);
    encoder.set_exif_metadata(SRGB_EXIF.to_vec()).context("WebP encoding failed")?;
    encoder.encode(samples, width, height, colours).context("WebP encoding failed")
}

/// EXIF that says sRGB and nothing else: a directory whose one entry leads to the EXIF directory, whose one entry is the
/// colour space, 1.
#[rustfmt::skip]
const SRGB_EXIF: &[u8] = &[
    b'M', b'M', 0, 42, 0, 0, 0, 8,
    0, 1, 0x87, 0x69, 0, 4, 0, 0, 0, 1, 0, 0, 0, 26, 0, 0, 0, 0,
    0, 1, 0xa0, 0x01, 0, 3, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0,
];

fn write_png(bytes: &mut Vec<u8>, data: &[u8], alpha: Option<&[u8]>, size: (u32, u32), parameters: &str) -> Result<()> {
    let mut encoder = png::Encoder::new(bytes, size.0, size.1);
    encoder.set_color(if alpha.is_some() { png::ColorType::Rgba } else { png::ColorType::Rgb });
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_source_srgb(png::SrgbRenderingIntent::Perceptual);
    // NUL ends a text in PNG; leaving it out is better than losing a finished picture over it.
    let text = parameters.replace('\0', "");
    if text.is_ascii() && !text.is_empty() {
        encoder.add_text_chunk(PARAMETERS_KEYWORD.into(), text)?;
    } else if !text.is_empty() {
        encoder.add_itxt_chunk(PARAMETERS_KEYWORD.into(), text)?;
    }
    let mut writer = encoder.write_header()?;
    let Some(alpha) = alpha else {
        writer.write_image_data(data)?;
        return Ok(writer.finish()?);
    };
    let mut stream = writer.stream_writer()?;
    let width = size.0 as usize;
    for (row, alpha) in data.chunks_exact(width * 3).zip(alpha.chunks_exact(width)) {
        stream.write_all(&interleaved(row, alpha))?;
    }
    Ok(stream.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Reading, decode_bytes};

    /// Smooth, so that JPEG at quality 95 stays close.
    fn gradient(width: usize, height: usize) -> Rgb {
        let pixel = |x: usize, y: usize| [(x * 4) as u8, (y * 5) as u8, ((x + y) * 2) as u8];
        let data = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
        Rgb { width, height, data }
    }

    /// Keyword and text of the chunks of one kind.
    type Texts = Vec<(String, String)>;

    /// The tEXt and the iTXt chunks of a PNG.
    fn texts(bytes: &[u8]) -> (Texts, Texts) {
        let reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let info = reader.info();
        let ascii = info.uncompressed_latin1_text.iter().map(|t| (t.keyword.clone(), t.text.clone()));
        let utf8 = info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap()));
        (ascii.collect(), utf8.collect())
    }

    #[test]
    fn lossless_formats_come_back_equal() {
        let picture = gradient(33, 21);
        for format in [Format::Png, Format::WebP] {
            assert_eq!(
                decode_bytes(&encode(&picture, None, format, "seed 1").unwrap(), &Reading::default()).unwrap().picture,
                picture,
                "{format:?}"
            );
        }
    }

    #[test]
    fn jpeg_comes_back_close() {
        let picture = gradient(48, 40);
        let decoded = decode_bytes(&encode(&picture, None, Format::Jpeg, "").unwrap(), &Reading::default()).unwrap().picture;
        assert_eq!((decoded.width, decoded.height), (48, 40));
        let worst = decoded.data.iter().zip(&picture.data).map(|(a, b)| a.abs_diff(*b)).max();
        // Quantisation steps at quality 95 are at most 10 of 255, on high frequencies a gradient hardly has.
        assert!(worst <= Some(6), "{worst:?}");
    }

    #[test]
    fn png_carries_parameters() {
        let picture = gradient(4, 4);
        let text = |parameters| texts(&encode(&picture, None, Format::Png, parameters).unwrap());
        let entry = |value: &str| vec![("parameters".to_string(), value.to_string())];
        assert_eq!(text("a red hat\nseed: 7"), (entry("a red hat\nseed: 7"), vec![]));
        assert_eq!(text("帽子改成红色, é"), (vec![], entry("帽子改成红色, é")));
        assert_eq!(text("cut\0here"), (entry("cuthere"), vec![]));
        assert_eq!(text(""), (vec![], vec![]));
    }

    #[test]
    fn format_follows_the_extension() {
        let of = |path: &str| Format::of(Path::new(path));
        assert_eq!(of("a/b.png").unwrap(), Format::Png);
        assert_eq!(of("b.JPG").unwrap(), Format::Jpeg);
        assert_eq!(of("b.Jpeg").unwrap(), Format::Jpeg);
        assert_eq!(of("b.c.webp").unwrap(), Format::WebP);
        for path in ["b.gif", "b", "a.png/b", ".png"] {
            let message = of(path).unwrap_err().to_string();
            assert!(message.contains(path) && message.contains(".webp"), "{message}");
        }
    }

    #[test]
    fn impossible_pictures_are_errors() {
        let picture = |width, height, bytes| Rgb { width, height, data: vec![0; bytes] };
        assert!(encode(&picture(0, 3, 0), None, Format::Png, "").is_err());
        assert!(encode(&picture(2, 2, 11), None, Format::Jpeg, "").is_err());
        let message = encode(&picture(16_384, 1, 16_384 * 3), None, Format::WebP, "").unwrap_err().to_string();
        assert!(message.contains("16384x1") && message.contains("16383"), "{message}");
    }
}
