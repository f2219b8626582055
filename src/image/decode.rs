//! Picture files of other programs, as 8-bit RGB.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use ::image::metadata::Orientation;
use ::image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits};
use anyhow::{Context, Result, bail, ensure};

use super::{Rgb, jpeg};

/// Largest picture, in pixels. A header is a few bytes and can claim any size, so memory is bounded by this.
const PIXELS_MAX: u64 = 100_000_000;

/// Largest file, in bytes: a picture of PIXELS_MAX with four uncompressed 16-bit channels, and its metadata.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Formats by their names, as messages list them.
const READABLE: &str = "JPEG, PNG, WebP, BMP, GIF and TIFF";

/// Reads a picture file as [`decode_bytes`] does.
///
/// # Errors
///
/// If the file cannot be read or is over 1 GiB, and as [`decode_bytes`]; the message names the path.
pub fn decode(path: &Path) -> Result<Rgb> {
    read_file(path).and_then(|bytes| decode_bytes(&bytes)).with_context(|| format!("cannot read the picture {}", path.display()))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    ensure!(!file.metadata()?.is_dir(), "it is a folder; give a picture file");
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() as u64 <= FILE_BYTES_MAX,
        "the file is larger than {} MiB, so it is hardly a picture of at most {} megapixels",
        FILE_BYTES_MAX >> 20,
        PIXELS_MAX / 1_000_000
    );
    Ok(bytes)
}

/// The picture in the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF file; the format is found from the content.
///
/// The EXIF orientation is applied, so the result is upright. Alpha is dropped, not blended, as Pillow's
/// `convert("RGB")` does. Grey is repeated in all channels, palettes are expanded, and a 16-bit sample v becomes
/// v / 257 rounded to nearest. Colour profiles are ignored. Of an animation the first frame is taken.
///
/// # Errors
///
/// If the bytes are no such picture or a damaged one, the picture has no pixels or more than 100 megapixels, or its
/// colours cannot be converted faithfully (CMYK, floating point). No bytes make it panic.
pub fn decode_bytes(bytes: &[u8]) -> Result<Rgb> {
    decode_within(bytes, PIXELS_MAX)
}

/// [`decode_bytes`] for at most `pixels_max` pixels.
fn decode_within(bytes: &[u8], pixels_max: u64) -> Result<Rgb> {
    let format = picture_format(bytes)?;
    let name = format!("{format:?}").to_uppercase();
    if format == ImageFormat::Jpeg {
        jpeg::check(bytes)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits(pixels_max));
    let mut decoder = reader.into_decoder().with_context(|| format!("the {name} header cannot be read"))?;
    check_header(&decoder, pixels_max)?;
    // Damaged metadata is no reason to refuse intact pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).with_context(|| format!("the {name} is damaged or not supported"))?;
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Rgb { width, height, data: samples(picture)? })
}

fn picture_format(bytes: &[u8]) -> Result<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    ensure!(!bytes.is_empty(), "the file is empty; {READABLE} can be read");
    match ::image::guess_format(bytes) {
        Ok(format @ (Bmp | Gif | Jpeg | Png | Tiff | WebP)) => Ok(format),
        Ok(other) => {
            bail!("it looks like {other:?}, which is not supported; {READABLE} can be read")
        }
        Err(_) => bail!(
            "its content is not a known picture format (it begins with bytes {:02x?}); {READABLE} can be read",
            &bytes[..bytes.len().min(8)]
        ),
    }
}

fn limits(pixels_max: u64) -> Limits {
    let mut limits = Limits::no_limits();
    // 8 bytes for each pixel of the largest layout, and as much again for the decoder's own buffers.
    limits.max_alloc = Some((16 * pixels_max).max(1 << 24));
    limits
}

/// Refuses by size and colour layout, before memory for the pixels is taken.
fn check_header(decoder: &impl ImageDecoder, pixels_max: u64) -> Result<()> {
    let (width, height) = decoder.dimensions();
    ensure!(width > 0 && height > 0, "the picture is {width}x{height}: it has no pixels");
    ensure!(
        u64::from(width) * u64::from(height) <= pixels_max,
        "the picture claims {width}x{height} pixels; at most {} megapixels can be read; scale it down first",
        pixels_max / 1_000_000
    );
    ensure!(
        !matches!(decoder.original_color_type(), ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16),
        "the picture is CMYK (meant for printing), which is not converted; save it as RGB"
    );
    ensure!(
        !matches!(decoder.color_type(), ColorType::Rgb32F | ColorType::Rgba32F),
        "the picture has floating-point samples, whose range is not known; save it with 8 or 16 bits"
    );
    Ok(())
}

/// Samples of any integer layout as interleaved 8-bit RGB.
fn samples(picture: DynamicImage) -> Result<Vec<u8>> {
    let keep = |sample: u8| sample;
    Ok(match picture {
        DynamicImage::ImageRgb8(picture) => picture.into_raw(),
        DynamicImage::ImageRgba8(picture) => to_rgb::<_, 4>(&picture, keep),
        DynamicImage::ImageLuma8(picture) => to_rgb::<_, 1>(&picture, keep),
        DynamicImage::ImageLumaA8(picture) => to_rgb::<_, 2>(&picture, keep),
        DynamicImage::ImageRgb16(picture) => to_rgb::<_, 3>(&picture, to_8_bits),
        DynamicImage::ImageRgba16(picture) => to_rgb::<_, 4>(&picture, to_8_bits),
        DynamicImage::ImageLuma16(picture) => to_rgb::<_, 1>(&picture, to_8_bits),
        DynamicImage::ImageLumaA16(picture) => to_rgb::<_, 2>(&picture, to_8_bits),
        other => bail!("the picture's samples are {:?}; grey or RGB with 8 or 16 bits can be read", other.color()),
    })
}

/// One and two channels are grey and grey with alpha, three and four RGB and RGB with alpha.
fn to_rgb<T: Copy, const CHANNELS: usize>(samples: &[T], convert: impl Fn(T) -> u8) -> Vec<u8> {
    let (green, blue) = if CHANNELS < 3 { (0, 0) } else { (1, 2) };
    samples.chunks_exact(CHANNELS).flat_map(|pixel| [pixel[0], pixel[green], pixel[blue]]).map(convert).collect()
}

/// Nearest of the 256 levels; 65535 = 257 · 255.
fn to_8_bits(sample: u16) -> u8 {
    ((u32::from(sample) + 128) / 257) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    /// (x, y) and colour of one pixel.
    type Pixel = ((usize, usize), [u8; 3]);

    /// Pictures whose samples are stored losslessly, with their size and pixels that Pillow 11.1 found in them
    /// (`ImageOps.exif_transpose`, then `convert("RGB")`). The 16-bit values are v / 257 rounded instead, where Pillow
    /// would cut off the low byte.
    #[rustfmt::skip]
    const EXACT: &[(&str, (usize, usize), &[Pixel])] = &[
        ("rgb.bmp", (13, 9), &[((0, 0), [0, 0, 40]), ((6, 4), [62, 50, 78]), ((12, 8), [124, 100, 116])]),
        ("rgb.tif", (13, 9), &[((0, 0), [0, 0, 40]), ((6, 4), [62, 50, 78]), ((12, 8), [124, 100, 116])]),
        ("rgba.png", (13, 9), &[((0, 0), [0, 0, 40]), ((6, 4), [62, 50, 78]), ((12, 8), [124, 100, 116])]),
        ("rgba.webp", (13, 9), &[((0, 0), [0, 0, 40]), ((6, 4), [62, 50, 78]), ((12, 8), [124, 100, 116])]),
        ("animated.webp", (13, 9), &[((0, 0), [0, 0, 40]), ((6, 4), [62, 50, 78]), ((12, 8), [124, 100, 116])]),
        ("animated.gif", (13, 9), &[((0, 0), [5, 1, 42]), ((6, 4), [58, 42, 74]), ((12, 8), [116, 95, 112])]),
        // the colour of (6, 4) is the transparent one
        ("transparent.gif", (13, 9), &[((0, 0), [7, 8, 45]), ((6, 4), [62, 36, 72]), ((12, 8), [105, 94, 108])]),
        // the colour of (7, 4) is the transparent one
        ("palette.png", (13, 9), &[((0, 0), [7, 8, 45]), ((7, 4), [78, 63, 88]), ((12, 8), [105, 94, 108])]),
        ("bilevel.png", (13, 9), &[((0, 0), [0, 0, 0]), ((12, 8), [255, 255, 255])]),
        ("bilevel.tif", (13, 9), &[((0, 0), [0, 0, 0]), ((12, 8), [255, 255, 255])]),
        ("bilevel-inverted.tif", (13, 9), &[((0, 0), [255, 255, 255]), ((12, 8), [0, 0, 0])]),
        ("grey.png", (13, 9), &[((0, 0), [0, 0, 0]), ((6, 4), [62, 62, 62]), ((12, 8), [124, 124, 124])]),
        ("grey-alpha.png", (13, 9), &[((0, 0), [0, 0, 0]), ((6, 4), [62, 62, 62]), ((12, 8), [124, 124, 124])]),
        ("rgb16.png", (13, 9), &[((0, 0), [0, 255, 0]), ((6, 4), [118, 183, 56]), ((12, 8), [236, 112, 224])]),
        ("grey16.png", (13, 9), &[((0, 0), [0, 0, 0]), ((6, 4), [118, 118, 118]), ((12, 8), [236, 236, 236])]),
        ("rotated.png", (9, 13), &[((0, 0), [16, 88, 80]), ((4, 6), [62, 50, 78]), ((8, 0), [0, 0, 40])]),
    ];

    /// The same for JPEG.
    #[rustfmt::skip]
    const JPEG: &[(&str, (usize, usize), &[Pixel])] = &[
        ("colour.jpg", (40, 30), &[((0, 0), [39, 30, 197]), ((20, 15), [120, 105, 144]), ((39, 0), [192, 31, 124])]),
        ("progressive.jpg", (40, 30), &[((20, 15), [121, 104, 146]), ((39, 29), [196, 175, 96])]),
        ("grey.jpg", (40, 30), &[((0, 0), [52, 52, 52]), ((20, 15), [114, 114, 114]), ((39, 0), [90, 90, 90])]),
        ("rotated.jpg", (30, 40), &[((0, 0), [44, 172, 173]), ((15, 20), [121, 99, 145]), ((29, 0), [39, 30, 197])]),
        ("rgb-adobe.jpg", (40, 30), &[((0, 0), [40, 30, 200]), ((20, 15), [120, 105, 145])]),
    ];

    fn fixture(name: &str) -> PathBuf {
        Path::new("tests/data/images").join(name)
    }

    fn check(name: &str, size: (usize, usize), pixels: &[Pixel], tolerance: u8) {
        let picture = decode(&fixture(name)).unwrap();
        assert_eq!((picture.width, picture.height), size, "{name}");
        assert_eq!(picture.data.len(), size.0 * size.1 * 3, "{name}");
        for ((x, y), expected) in pixels {
            let found = &picture.data[(y * picture.width + x) * 3..][..3];
            let near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= tolerance);
            assert!(near, "{name} at ({x}, {y}): {found:?}, expected {expected:?} within {tolerance}");
        }
    }

    #[test]
    fn lossless_files_have_pillows_pixels() {
        for (name, size, pixels) in EXACT {
            check(name, *size, pixels, 0);
        }
    }

    /// Two decoders may round the inverse cosine transform, the chroma upsampling and the colour conversion apart; on
    /// these smooth pictures the difference seen is 1 level.
    #[test]
    fn jpeg_files_are_near_pillows_pixels() {
        for (name, size, pixels) in JPEG {
            check(name, *size, pixels, 2);
        }
    }

    fn refusal(bytes: &[u8]) -> String {
        format!("{:#}", decode_bytes(bytes).unwrap_err())
    }

    fn read(name: &str) -> Vec<u8> {
        std::fs::read(fixture(name)).unwrap()
    }

    #[test]
    fn jpeg_that_would_change_colours_is_refused() {
        let message = refusal(&read("cmyk.jpg"));
        assert!(message.contains("4 colour components"), "{message}");
        let message = refusal(&read("truncated.jpg"));
        assert!(message.contains("cut short"), "{message}");
        // Without its Adobe segment only the component ids say RGB.
        let mut unlabelled = read("rgb-adobe.jpg");
        let adobe = unlabelled.windows(5).position(|name| name == b"Adobe").unwrap();
        unlabelled[adobe] = b'X';
        let message = refusal(&unlabelled);
        assert!(message.contains("stores RGB"), "{message}");
    }

    #[test]
    fn other_damage_is_refused() {
        assert!(refusal(b"").contains("empty"));
        assert!(refusal(b"not a picture at all").contains("not a known picture format"));
        for name in ["rgba.png", "rgb.bmp", "rgb.tif", "rgba.webp", "transparent.gif", "palette.png"] {
            let bytes = read(name);
            assert!(decode_bytes(&bytes[..bytes.len() / 2]).is_err(), "{name}, first half");
        }
        let message = format!("{:#}", decode(Path::new("tests/data/images/absent.png")).unwrap_err());
        assert!(message.contains("absent.png"), "{message}");
        let message = format!("{:#}", decode(Path::new("tests/data/images")).unwrap_err());
        assert!(message.contains("is a folder"), "{message}");
    }

    #[test]
    fn enormous_claim_is_refused_by_its_header() {
        // Width and height of a BMP, little-endian, at 18 and 22.
        let mut bytes = read("rgb.bmp");
        bytes[18..22].copy_from_slice(&60_000u32.to_le_bytes());
        bytes[22..26].copy_from_slice(&60_000u32.to_le_bytes());
        let message = refusal(&bytes);
        assert!(message.contains("60000x60000") && message.contains("100 megapixels"), "{message}");
    }

    #[test]
    fn sixteen_bits_round_to_the_nearest_level() {
        assert_eq!([0, 128, 129, 257, 65_407, 65_535].map(to_8_bits), [0, 0, 1, 1, 255, 255]);
        for level in 0..=255u16 {
            assert_eq!(u16::from(to_8_bits(level * 257)), level);
        }
    }

    proptest! {
        // Some seconds of mutations.
        #![proptest_config(ProptestConfig {
            cases: 12 * ProptestConfig::default().cases,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Small limit: an inflated header shall cost neither memory nor time here.
        #[test]
        fn mutated_files_never_panic(
            file in 0..EXACT.len() + JPEG.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        ) {
            let mut bytes = read(EXACT.iter().chain(JPEG).nth(file).unwrap().0);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(picture) = decode_within(&bytes, 1 << 20) {
                prop_assert_eq!(picture.data.len(), picture.width * picture.height * 3);
            }
        }
    }
}
