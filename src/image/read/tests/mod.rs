//! Pictures of other programs against the pixels that Pillow and LittleCMS find in them; damage; mutations.

mod limits;
mod tiff;

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

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

/// Files of `tests/data`, by folder.
fn file(folder: &str, name: &str) -> PathBuf {
    Path::new("tests/data").join(folder).join(name)
}

fn bytes(folder: &str, name: &str) -> Vec<u8> {
    fs::read(file(folder, name)).unwrap()
}

/// As the official code reads: transparency dropped, profiles ignored.
const OFFICIAL: Reading = Reading {
    pixels_max: 100_000_000,
    alpha: Alpha::Drop,
    background: [255; 3],
    ignore_profile: true,
    check_memory: |_, _| Ok(()),
};

fn check(name: &str, size: (usize, usize), pixels: &[Pixel], tolerance: u8) {
    let picture = decode(&file("images", name), &OFFICIAL).unwrap().picture;
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

/// Words of the notes that a file of `pictures` or `reports` gives, in order; a file that is not here gives none.
#[rustfmt::skip]
const NOTES: &[(&str, &[&str])] = &[
    ("alpha-16.png", &["transparent in places, which are shown on white"]),
    ("alpha-associated.tif", &["transparent"]),
    ("alpha-grey.png", &["transparent"]),
    ("alpha-interlaced.png", &["transparent"]),
    ("alpha-key.png", &["transparent"]),
    ("alpha-lossless.webp", &["transparent"]),
    ("alpha-lossy.webp", &["transparent"]),
    ("alpha.gif", &["transparent"]),
    ("alpha.jxl", &["transparent"]),
    ("alpha.png", &["transparent"]),
    ("animated.gif", &["first of the 2 frames"]),
    ("cicp-p3.png", &["from Display P3 to sRGB"]),
    ("cicp-pq.png", &["from HDR (PQ"]),
    ("cicp-unknown.png", &["(cICP 1-13-0-0) is of an unknown kind"]),
    ("cmyk-profile.jpg", &["from CMYK by the profile \"a press\" to sRGB"]),
    ("cmyk.jpg", &["CMYK"]),
    ("cmyk.tif", &["CMYK"]),
    ("frames.gif", &["first of the 3 frames"]),
    ("frames.png", &["first of the 3 frames"]),
    ("frames.tif", &["first of the 3 pages"]),
    ("frames.webp", &["first of the 3 frames"]),
    ("gamma-1-16.png", &["from gamma 1.00 to sRGB"]),
    ("gamma-1-grey.png", &["from gamma 1.00 to sRGB"]),
    ("gamma-1.png", &["from gamma 1.00 to sRGB"]),
    ("gamma-adobe.png", &["from gamma 2.20, own primaries to sRGB"]),
    ("jpeg-no-end-marker-progressive.jpg", &["end of the JPEG is missing"]),
    ("jpeg-no-end-marker.jpg", &["end of the JPEG is missing"]),
    ("png-no-end-chunk.png", &["end of the PNG is missing"]),
    ("png-pixel-checksum.png", &["checksum of a chunk of the PNG is wrong (IDAT)"]),
    ("profile-16.png", &["from \"Display P3\" to sRGB"]),
    ("profile-adobe-rgb.png", &["from \"AdobeRGB-like\" to sRGB"]),
    ("profile-adobe.png", &["from \"Adobe RGB\" to sRGB"]),
    ("profile-broken.png", &["is damaged or of an unknown kind"]),
    ("profile-bt709.png", &["from \"BT.709\""]),
    ("profile-display-p3.jpg", &["from \"Display P3 (test)\" to sRGB"]),
    ("profile-grey-1.0.png", &["from \"grey 1.0\""]),
    ("profile-grey-1.8.png", &["from \"grey 1.8\""]),
    ("profile-grey.jpg", &["from \"grey 1.8\""]),
    ("profile-in-parts.jpg", &["from \"Adobe RGB\""]),
    ("profile-of-grey.png", &["is for grey pictures, which this is not"]),
    ("profile-p3.png", &["from \"Display P3\""]),
    ("profile-palette.png", &["from \"Display P3\"", "transparent"]),
    ("profile-prophoto.jpg", &["from \"ProPhoto RGB\""]),
    ("profile-prophoto.png", &["from \"ProPhoto RGB\""]),
    ("profile-table.png", &["from \"a table\""]),
    ("profile.tif", &["from \"Display P3\""]),
    ("profile.webp", &["from \"Display P3\""]),
    ("transparent-logo.png", &["transparent"]),
    ("ycck.jpg", &["CMYK"]),
];

/// Largest mean difference from Pillow's reading, in levels. Decoders of JPEG round apart, most where they interpolate
/// colours; those of JPEG XL and two colour managers a little.
fn bound(name: &str) -> f64 {
    match name {
        _ if name.ends_with(".jpg") || name == "jpeg.tif" => 0.7,
        "lossy.jxl" => 0.3,
        "profile-table.png" => 0.3,
        _ if name.starts_with("profile") || name.starts_with("gamma") || name.starts_with("cicp") => 0.05,
        _ => 0.0,
    }
}

#[test]
fn files_of_other_programs_have_their_pixels_and_notes() {
    let mut count = 0;
    for folder in ["pictures", "reports"] {
        for entry in fs::read_dir(Path::new("tests/data").join(folder)).unwrap() {
            let expected = entry.unwrap().path();
            let Some(name) = expected.file_name().unwrap().to_str().unwrap().strip_suffix(".expected.png") else { continue };
            count += 1;
            let Decoded { picture, notes, .. } = decode(&file(folder, name), &Reading::default()).unwrap();
            let expected = ::image::open(&expected).unwrap().to_rgb8();
            assert_eq!((picture.width as u32, picture.height as u32), expected.dimensions(), "{name}");
            let sum: u64 = picture.data.iter().zip(expected.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let mean = sum as f64 / picture.data.len() as f64;
            assert!(mean <= bound(name), "{name}: mean difference {mean}");
            let words = NOTES.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, words)| words);
            assert_eq!(notes.len(), words.len(), "{name}: {notes:?}");
            assert!(notes.iter().zip(words).all(|(note, words)| note.contains(words)), "{name}: {notes:?}");
        }
    }
    assert!(count >= 80, "{count}");
}

#[test]
fn colours_and_transparency_are_taken_as_asked() {
    let official = |name: &str| decode(&file("pictures", name), &OFFICIAL).unwrap();
    let plain = official("profile-srgb.png").picture;
    for name in
        ["profile-prophoto.png", "profile.webp", "profile.tif", "gamma-1.png", "cicp-pq.png", "alpha.png", "alpha-lossless.webp"]
    {
        let decoded = official(name);
        assert!(decoded.picture == plain, "{name}");
        assert!(decoded.notes.is_empty() && decoded.alpha.is_none(), "{name}: {:?}", decoded.notes);
    }
    let background = [10, 200, 30];
    let kept = decode(&file("pictures", "alpha.png"), &Reading { alpha: Alpha::Keep, background, ..Reading::default() }).unwrap();
    let over = decode(&file("pictures", "alpha.png"), &Reading { background, ..Reading::default() }).unwrap();
    assert_eq!(kept.picture, over.picture);
    assert_eq!(over.picture.data[..3], background);
    assert!(over.notes[0].contains("#0ac81e"), "{:?}", over.notes);
    let alpha = kept.alpha.unwrap();
    let expected = ::image::open(file("pictures", "alpha.png")).unwrap().to_rgba8();
    assert!(alpha.iter().eq(expected.pixels().map(|pixel| &pixel.0[3])));
    let opaque = decode(&file("pictures", "profile-srgb.png"), &Reading { alpha: Alpha::Keep, ..Reading::default() }).unwrap();
    assert!(opaque.alpha.is_none());
}

/// Alpha is turned with the picture.
#[test]
fn kept_alpha_lies_as_the_picture_does() {
    let mut png = bytes("pictures", "alpha.png");
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    png.splice(33..33, chunk(b"eXIf", exif));
    let turned = decode_bytes(&png, &Reading { alpha: Alpha::Keep, ..Reading::default() }).unwrap();
    let Rgb { width, height, .. } = turned.picture;
    let expected = ::image::open(file("pictures", "alpha.png")).unwrap().rotate90().to_rgba8();
    assert_eq!((width as u32, height as u32), expected.dimensions());
    assert!(turned.alpha.unwrap().iter().eq(expected.pixels().map(|pixel| &pixel.0[3])));
}

fn refusal(bytes: &[u8]) -> String {
    format!("{:#}", decode_bytes(bytes, &Reading::default()).unwrap_err())
}

/// The notes of a picture that can be read, and whether its pixels are those of another file.
fn notes(bytes: &[u8], like: &[u8]) -> Vec<String> {
    let decoded = decode_bytes(bytes, &Reading::default()).unwrap();
    assert!(decoded.picture == decode_bytes(like, &Reading::default()).unwrap().picture);
    decoded.notes
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(content);
    [&(content.len() as u32).to_be_bytes(), &kind[..], content, &crc.sum().to_be_bytes()].concat()
}

/// A PNG of these compressed pixels.
fn png(width: u32, height: u32, parts: &[Vec<u8>]) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), parts.concat()].concat()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_png_whose_pixels_are_all_there_is_read() {
    let rows: Vec<u8> = (0..40u8).flat_map(|y| std::iter::once(0).chain((0..90).map(move |x| x ^ y.wrapping_mul(37)))).collect();
    let data = zlib(&rows);
    let half = data.len() / 2;
    let of = |parts: &[Vec<u8>]| png(30, 40, parts);
    let (first, second, end) = (chunk(b"IDAT", &data[..half]), chunk(b"IDAT", &data[half..]), chunk(b"IEND", &[]));
    let whole = of(&[first.clone(), second.clone(), end.clone()]);
    assert!(notes(&whole, &whole).is_empty());
    // A wrong checksum of a chunk, while that of the pixels is right.
    let mut wrong = first.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert!(notes(&of(&[wrong, second.clone(), end.clone()]), &whole)[0].contains("checksum of a chunk"));
    // The other way round.
    let mut checked = data[half..].to_vec();
    *checked.last_mut().unwrap() ^= 1;
    let other = of(&[first.clone(), chunk(b"IDAT", &checked), end.clone()]);
    assert!(notes(&other, &whole)[0].contains("checksum of the PNG's pixels is wrong"));
    // No end chunk, a part of one, and a cut in what follows the last pixel.
    for cut in 1..=20 {
        let found = notes(&whole[..whole.len() - cut], &whole);
        assert!(found.len() == 1 && found[0].contains("end of the PNG is missing"), "{cut}: {found:?}");
    }
    // Both checksums wrong, and a hole under a right one.
    let mut both = first.clone();
    both[8 + half / 2] ^= 0x10;
    assert!(refusal(&of(&[both, second.clone(), end.clone()])).contains("PNG is damaged"));
    let hole = [&data[..half / 2], &[0; 40], &data[half / 2 + 40..]].concat();
    assert!(refusal(&of(&[chunk(b"IDAT", &hole), end.clone()])).contains("PNG is damaged"));
    for cut in [whole.len() - 80, whole.len() / 2, 60, 34, 20] {
        let message = refusal(&whole[..cut]);
        assert!(message.contains("end") || message.contains("header"), "{cut}: {message}");
    }
}

#[test]
fn a_jpeg_that_lacks_pixels_is_refused() {
    for (folder, name) in [
        ("reports", "orientation-as-long.jpg"),
        ("images", "progressive.jpg"),
        ("pictures", "420-restarts.jpg"),
        ("pictures", "420-progressive-restarts.jpg"),
        ("pictures", "cmyk.jpg"),
        ("pictures", "profile-grey.jpg"),
    ] {
        let whole = bytes(folder, name);
        for cut in whole.len() - 2..whole.len() {
            let found = notes(&whole[..cut], &whole);
            assert!(found.iter().any(|note| note.contains("end of the JPEG is missing")), "{name}: {found:?}");
        }
        for cut in (2..whole.len() - 3).step_by(7) {
            let message = refusal(&whole[..cut]);
            assert!(message.contains("cut short"), "{name} to {cut}: {message}");
        }
        // An end marker does not make it whole.
        let ended = [&whole[..whole.len() * 3 / 4], &[0xff, 0xd9]].concat();
        let message = refusal(&ended);
        assert!(message.contains("JPEG is damaged") || message.contains("cut short"), "{name}: {message}");
    }
}

/// Where coded data of the first scan begins.
fn coded(jpeg: &[u8]) -> usize {
    let scan = jpeg.windows(2).position(|marker| marker == [0xff, 0xda]).unwrap();
    scan + 2 + usize::from(jpeg[scan + 3])
}

/// By a refusal or a note. There is no checksum: random bytes fit in by chance at two of a hundred places.
#[test]
fn a_hole_in_a_jpeg_is_noticed() {
    let (mut random, mut unseen) = (0, 0);
    for name in ["orientation-as-long.jpg", "jpeg-no-end-marker-progressive.jpg", "profile-display-p3.jpg"] {
        let whole = bytes("reports", name);
        let clean = decode_bytes(&whole, &Reading::default()).unwrap().notes.len();
        let from = coded(&whole);
        for at in (from..whole.len() - 520).step_by(97) {
            let noticed = |fill: &dyn Fn(usize) -> u8| {
                let mut hole = whole.clone();
                hole[at..at + 500].iter_mut().enumerate().for_each(|(i, byte)| *byte = fill(i));
                decode_bytes(&hole, &Reading::default()).map_or(true, |decoded| decoded.notes.len() > clean)
            };
            for fill in [0, 0xff, 0xaa] {
                assert!(noticed(&|_| fill), "{name}, {fill:02x} at {at}");
            }
            random += 1;
            unseen += usize::from(!noticed(&|i| (i * i * 31 + i) as u8));
        }
    }
    assert!(random > 90 && unseen * 33 <= random, "{unseen} of {random}");
    // A restart marker out of turn, one too many, and data that nothing calls for.
    let whole = bytes("pictures", "420-restarts.jpg");
    let at = (0..whole.len() - 1).find(|at| whole[*at] == 0xff && whole[at + 1] == 0xd1).unwrap();
    let mut out_of_turn = whole.clone();
    out_of_turn[at + 1] = 0xd2;
    assert!(refusal(&out_of_turn).contains("JPEG is damaged"));
    let end = whole.len() - 2;
    let more = [&whole[..end], &[0xff, 0xd0, 0x12, 0x34], &whole[end..]].concat();
    assert!(notes(&more, &whole)[0].contains("does not look whole"));
}

#[test]
fn a_jpeg_of_another_process_is_named() {
    let whole = bytes("images", "colour.jpg");
    let frame = whole.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    let with = |at: usize, byte: u8| {
        let mut other = whole.clone();
        other[frame + at] = byte;
        refusal(&other)
    };
    assert!(with(1, 0xc9).contains("an arithmetic-coded JPEG"));
    assert!(with(1, 0xc3).contains("a lossless JPEG"));
    assert!(with(1, 0xc5).contains("a hierarchical JPEG"));
    assert!(with(4, 12).contains("12 bits a sample"));
    assert!(with(9, 2).contains("2 colour components"));
}

#[test]
fn other_damage_is_refused() {
    for name in ["rgba.png", "rgb.bmp", "rgb.tif", "rgba.webp", "transparent.gif", "palette.png"] {
        let bytes = bytes("images", name);
        assert!(decode_bytes(&bytes[..bytes.len() / 2], &Reading::default()).is_err(), "{name}, first half");
    }
    for name in ["jpeg.tif", "tiles.tif", "palette-4.tif", "lossless.jxl", "lossy.jxl", "alpha-lossy.webp", "alpha-lossless.webp"]
    {
        let bytes = bytes("pictures", name);
        for part in 1..8 {
            let message = refusal(&bytes[..bytes.len() * part / 8]);
            assert!(message.contains("again"), "{name}, {part} of 8: {message}");
        }
    }
    let message = format!("{:#}", decode(Path::new("tests/data/images/absent.png"), &Reading::default()).unwrap_err());
    assert!(message.contains("absent.png"), "{message}");
    let message = format!("{:#}", decode(Path::new("tests/data/images"), &Reading::default()).unwrap_err());
    assert!(message.contains("is a folder"), "{message}");
    let message = format!("{:#}", decode(&file("pictures", "float.tif"), &Reading::default()).unwrap_err());
    assert!(message.contains("floating-point") && message.contains("16 bits"), "{message}");
}

/// The value of a tag in the first directory of a little-endian TIFF, of one SHORT, set to another.
fn with_tag(name: &str, tag: u16, value: u16) -> Vec<u8> {
    let mut tiff = bytes("images", name);
    let directory = u32::from_le_bytes(tiff[4..8].try_into().unwrap()) as usize;
    let entry = (directory + 2..).step_by(12).find(|at| tiff[*at..at + 2] == tag.to_le_bytes()).unwrap();
    tiff[entry + 8..entry + 10].copy_from_slice(&value.to_le_bytes());
    tiff
}

#[test]
fn a_tiff_that_cannot_be_read_is_named() {
    for (tag, value, words) in [
        (259, 50_000, "Zstandard"),
        (259, 6, "old-style JPEG"),
        (259, 34_712, "JPEG 2000"),
        (259, 4711, "number 4711"),
        (262, 32_803, "raw file"),
        (262, 8, "Lab"),
        (262, 6, "lower resolution than brightness"),
    ] {
        let message = refusal(&with_tag("rgb.tif", tag, value));
        assert!(message.contains(words), "{words}: {message}");
    }
}

#[test]
fn enormous_claims_are_refused_by_the_header() {
    // Width and height of a BMP, little-endian, at 18 and 22.
    let mut bmp = bytes("images", "rgb.bmp");
    bmp[18..22].copy_from_slice(&60_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000u32.to_le_bytes());
    let message = refusal(&bmp);
    assert!(
        message.contains("60000x60000") && message.contains("100 megapixels") && message.contains("10000x10000"),
        "{message}"
    );
    // The canvas of a WebP of one frame; 24 bits each of width - 1 and height - 1 at 24 and 27.
    let mut webp = bytes("pictures", "upright-xmp.webp");
    webp[24..30].copy_from_slice(&[0xff, 0x1f, 0, 0xff, 0x1f, 0]);
    let message = refusal(&webp);
    assert!(message.contains("8192x8192") && message.contains("44x35"), "{message}");
    // An animation may have a canvas that its first frame does not fill, but not any.
    let mut animation = bytes("pictures", "frames.webp");
    animation[24..30].copy_from_slice(&[0xff, 0x1f, 0, 0xff, 0x1f, 0]);
    let message = refusal(&animation);
    assert!(message.contains("8192x8192") && message.contains("44x35"), "{message}");
    let mut screen = bytes("pictures", "frames.gif");
    screen[6..10].copy_from_slice(&[0, 0x20, 0, 0x20]);
    let message = refusal(&screen);
    assert!(message.contains("8192x8192") && message.contains("44x35"), "{message}");
}

/// Whoever reads says how much memory there is; each format asks before it takes some.
#[test]
fn memory_is_asked_for_before_it_is_taken() {
    let reading = Reading {
        check_memory: |what, bytes| match bytes {
            0..4000 => Ok(()),
            _ => Err(ResourceError(format!("{what} needs {bytes} bytes")).into()),
        },
        ..Reading::default()
    };
    for name in ["alpha.png", "cmyk.jpg", "444-progressive.jpg", "profile.webp", "alpha.gif", "tiles.tif", "big.tif", "lossy.jxl"]
    {
        let error = decode_bytes(&bytes("pictures", name), &reading).unwrap_err();
        let ResourceError(text) = error.downcast_ref().unwrap_or_else(|| panic!("{name}: {error:#}"));
        assert!(text.contains("44x35 pixels needs"), "{name}: {text}");
    }
    let error = decode(&file("pictures", "big.tif"), &reading).unwrap_err();
    assert!(error.downcast_ref::<ResourceError>().unwrap().0.contains("this file needs 4660 bytes"), "{error:#}");
}
