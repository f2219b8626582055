//! Pictures of all kinds, and files that are none.

use std::io::Write;
use std::time::{Duration, Instant};

use super::support::*;

/// A device may never end.
#[cfg(unix)]
#[test]
fn devices_are_no_pictures() {
    let place = Place::new();
    for device in ["/dev/zero", "/dev/null"] {
        place.edit_refused(&["-i", device], 1, &[device, "it is a device"]);
    }
}

#[test]
fn every_layout_gives_a_picture_of_its_upright_size() {
    let place = Place::new();
    let small =
        ["rgb16", "grey16", "grey", "grey-alpha", "rgba", "palette", "bilevel"].map(|name| (format!("{name}.png"), (13, 9)));
    let more = [("rgba.webp", (13, 9)), ("animated.gif", (13, 9)), ("rgb.bmp", (13, 9)), ("rgb.tif", (13, 9))];
    let rotated = [("rotated.png", (9, 13)), ("rotated.jpg", (30, 40)), ("grey.jpg", (40, 30)), ("progressive.jpg", (40, 30))];
    let more = more.into_iter().chain(rotated).map(|(name, size)| (name.to_string(), size));
    for (name, size) in small.into_iter().chain(more) {
        place.edited(&["-i", &fixture(&name), "--steps", "1", "--force"]);
        let (width, height, _) = pixels(&place.read("out.png"));
        assert_eq!((width, height), size, "{name}");
    }
    assert_eq!(place.names(), ["out.png"]);
}

#[test]
fn files_that_are_no_pictures_are_refused() {
    let place = Place::new();
    place.write("notes.txt", "not a picture, only words about one");
    place.write("empty.png", "");
    place.edit_refused(&["-i", "absent.jpg"], 1, &["absent.jpg", "No such file"]);
    place.edit_refused(&["-i", "notes.txt"], 1, &["notes.txt", "not a known picture format", "PNG"]);
    place.edit_refused(&["-i", "empty.png"], 1, &["empty.png", "empty"]);
    place.edit_refused(&["-i", "."], 1, &["is a folder"]);
    place.edit_refused(&["-i", &fixture("truncated.jpg")], 1, &["truncated.jpg", "cut short"]);
}

/// `grey.png` whose header claims another size.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    let mut png = std::fs::read(fixture("grey.png")).unwrap();
    // Signature (8), length (4), `IHDR` at 12, width at 16, height at 20, checksum of 12..29 at 29.
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let mut checksum = flate2::Crc::new();
    checksum.update(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
    png
}

#[test]
fn sizes_of_headers_are_checked_before_memory_is_taken() {
    let place = Place::new();
    place.write("none.png", claiming(0, 9));
    place.edit_refused(&["-i", "none.png"], 1, &["none.png", "PNG header"]);
    let mut bmp = std::fs::read(fixture("rgb.bmp")).unwrap();
    bmp[18..22].fill(0);
    place.write("none.bmp", bmp);
    place.edit_refused(&["-i", "none.bmp"], 1, &["none.bmp"]);
    place.write("huge.png", claiming(100_000, 100_000));
    let start = Instant::now();
    place.edit_refused(&["-i", "huge.png"], 1, &["huge.png", "100000x100000", "300 megapixels", "scale it down", "17320x17320"]);
    assert!(start.elapsed() < Duration::from_secs(5));
    place.write("most.png", claiming(20_000, 15_000));
    place.edit_refused(&["-i", "most.png"], 1, &["most.png", "PNG is damaged"]);
    place.write("more.png", claiming(20_000, 15_001));
    place.edit_refused(&["-i", "more.png"], 1, &["more.png", "20000x15001", "300 megapixels"]);
}

fn grey(place: &Place, name: &str, width: u32, height: u32) {
    image::GrayImage::from_pixel(width, height, image::Luma([90])).save(place.path(name)).unwrap();
}

#[test]
fn an_extreme_aspect_is_refused_with_what_would_be_possible() {
    let place = Place::new();
    grey(&place, "line.png", 30_000, 1);
    // At 64 the working size would have no height; at 4096 it is the encoder that takes no such aspect.
    place.edit_refused(&["-i", "line.png"], 1, &["30000x1", "16 times", "crop"]);
    place.edit_refused(&["-i", "line.png", "--size-level", "4096"], 1, &["30000x1", "aspect", "at most 200", "crop"]);
    // The most that this size level allows.
    grey(&place, "strip.png", 160, 10);
    place.edited(&["-i", "strip.png", "--steps", "1"]);
    let (width, height, _) = pixels(&place.read("out.png"));
    assert_eq!((width, height), (160, 10));
}

#[test]
fn a_format_too_small_for_the_result_is_refused_before_the_work() {
    let place = Place::new();
    grey(&place, "wide.png", 17_000, 1_100);
    place.edit_refused(&["-i", "wide.png", "-o", "out.webp"], 2, &["17000x1100", "WebP", "16383", "PNG"]);
    place.edited(&["-i", "wide.png", "-o", "out.webp", "--steps", "1", "--keep-working-size"]);
}

/// Reports that are refused, with words of the message that say what it is and what helps.
const REFUSED: [(&str, &[&str]); 4] = [
    ("jpeg-hole.jpg", &["JPEG is damaged", "copy or download it again"]),
    ("phone.heic", &["HEIC", "heif-convert"]),
    ("page-instead-of-picture.jpg", &["web page", "download"]),
    ("lora.safetensors", &["not a known picture format"]),
];

#[test]
fn what_cannot_be_read_is_named_with_what_helps() {
    let place = Place::new();
    for (name, words) in REFUSED {
        place.edit_refused(&["-i", &report(name)], 1, words);
        let stderr = place.edit(&["-i", &report(name)]).stderr;
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

/// Reports that are read, and words of the note that `-q` leaves. Beside each lies what Pillow makes of it.
const READ: [(&str, &str); 13] = [
    ("jpeg-no-end-marker.jpg", "end of the JPEG is missing"),
    ("jpeg-no-end-marker-progressive.jpg", "end of the JPEG is missing"),
    ("png-no-end-chunk.png", "end of the PNG is missing"),
    ("png-pixel-checksum.png", "checksum of a chunk of the PNG"),
    ("profile-display-p3.jpg", "Display P3"),
    ("profile-adobe-rgb.png", "AdobeRGB"),
    ("orientation-as-long.jpg", ""),
    ("orientation-in-xmp.jpg", ""),
    ("transparent-logo.png", "shown on white"),
    ("palette.tif", ""),
    ("cmyk.jpg", "CMYK"),
    ("animated.gif", "first of the 2 frames"),
    ("export.jxl", ""),
];

#[test]
fn pictures_of_other_programs_are_edited_as_pillow_reads_them() {
    let place = Place::new();
    for (name, note) in READ {
        let answer = place.edited(&["-i", &report(name), "--steps", "1", "-q", "--device", "cpu", "--force", "-o", "a.png"]);
        let notes: Vec<&str> = answer.stderr.lines().collect();
        assert_eq!(notes.len(), usize::from(!note.is_empty()), "{name}: {notes:?}");
        assert!(notes.iter().all(|line| line.starts_with("note: ") && line.contains(note)), "{name}: {notes:?}");
        let expected = format!("{}.expected.png", report(name));
        if std::path::Path::new(&expected).exists() {
            place.edited(&["-i", &expected, "--steps", "1", "-q", "--device", "cpu", "--force", "-o", "b.png"]);
            let mean = mean_difference(&place.read("a.png"), &place.read("b.png"));
            assert!(mean <= 0.5, "{name}: {mean}");
        }
    }
}

/// Mean difference of two pictures of one size, in levels.
fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
    let ((aw, ah, a), (bw, bh, b)) = (pixels(a), pixels(b));
    assert_eq!((aw, ah), (bw, bh));
    a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn transparency_is_kept_dropped_or_put_on_a_colour() {
    let place = Place::new();
    let logo = report("transparent-logo.png");
    let input = image::open(&logo).unwrap().to_rgba8();
    let edit =
        |more: &[&str]| place.edited(&[&["-i", &logo, "--steps", "1", "-q", "--device", "cpu", "--force"], more].concat()).stderr;
    for output in ["kept.png", "kept.webp"] {
        assert_eq!(edit(&["--alpha", "keep", "-o", output]), "");
        let kept = image::load_from_memory(&place.read(output)).unwrap();
        assert_eq!(kept.color(), image::ColorType::Rgba8, "{output}");
        assert!(kept.to_rgba8().pixels().zip(input.pixels()).all(|(a, b)| a.0[3] == b.0[3]), "{output}");
    }
    edit(&["--alpha", "keep", "--keep-working-size", "-o", "small.png"]);
    let small = image::load_from_memory(&place.read("small.png")).unwrap().to_rgba8();
    assert_eq!((small.width(), small.get_pixel(0, 0).0[3], small.get_pixel(32, 32).0[3]), (64, 0, 255));
    place.edit_refused(&["-i", &logo, "--alpha", "keep", "-o", "out.jpg"], 2, &["JPEG", "--alpha", "PNG or WebP"]);

    // As one would see it, and as the official code reads it.
    let flat = |name: &str, background: [u8; 3]| {
        let over = |pixel: &image::Rgba<u8>| {
            let [colour @ .., alpha] = pixel.0;
            let mix =
                |c: u8, b: u8| ((u32::from(c) * u32::from(alpha) + u32::from(b) * (255 - u32::from(alpha)) + 127) / 255) as u8;
            image::Rgb([mix(colour[0], background[0]), mix(colour[1], background[1]), mix(colour[2], background[2])])
        };
        image::RgbImage::from_fn(input.width(), input.height(), |x, y| over(input.get_pixel(x, y)))
            .save(place.path(name))
            .unwrap();
    };
    flat("yellow.png", [255, 204, 0]);
    image::DynamicImage::from(input.clone()).to_rgb8().save(place.path("hidden.png")).unwrap();
    assert!(edit(&["--background", "#ffcc00", "-o", "on_yellow.png"]).contains("on #ffcc00"));
    assert_eq!(edit(&["--alpha", "drop", "-o", "dropped.png"]), "");
    for (flattened, edited) in [("yellow.png", "on_yellow.png"), ("hidden.png", "dropped.png")] {
        place.edited(&["-i", flattened, "--steps", "1", "--force", "-o", "alike.png"]);
        assert_eq!(pixels(&place.read("alike.png")), pixels(&place.read(edited)), "{edited}");
    }
    place.edit_refused(&["-i", &logo, "--background", "yellowish"], 2, &["--background", "#ffcc00"]);
}

#[test]
fn a_profile_can_be_ignored() {
    let place = Place::new();
    let with = report("profile-adobe-rgb.png");
    image::open(&with).unwrap().to_rgb8().save(place.path("without.png")).unwrap();
    place.edited(&["-i", &with, "--steps", "1", "-o", "a.png"]);
    place.edited(&["-i", "without.png", "--steps", "1", "-o", "b.png"]);
    let answer = place.edited(&["-i", &with, "--steps", "1", "-q", "--device", "cpu", "--ignore-profile", "-o", "c.png"]);
    assert_eq!(answer.stderr, "");
    assert_ne!(pixels(&place.read("a.png")), pixels(&place.read("b.png")));
    assert_eq!(pixels(&place.read("c.png")), pixels(&place.read("b.png")));
}

/// Results say sRGB in the way of their format.
#[test]
fn results_say_that_they_are_srgb() {
    let place = Place::new();
    for name in ["a.png", "a.jpg", "a.webp"] {
        place.edited(&["-i", &fixture("rgb.bmp"), "--steps", "1", "-o", name]);
    }
    let png = place.read("a.png");
    let reader = png::Decoder::new(std::io::Cursor::new(&png[..])).read_info().unwrap();
    assert!(reader.info().srgb.is_some());
    // Tag 0xa001 of type SHORT, once: 1 is sRGB.
    for name in ["a.jpg", "a.webp"] {
        let entry = [0xa0, 0x01, 0, 3, 0, 0, 0, 1, 0, 1];
        assert!(place.read(name).windows(entry.len()).any(|bytes| bytes == entry), "{name}");
    }
}

/// The process's peak of resident memory in bytes, with a picture and without.
fn peak(place: &Place, args: &[&str]) -> u64 {
    let answer = place.edited(&[args, &["--steps", "1", "--json", "--force"]].concat());
    answer.json()["peak_bytes"]["resident"].as_u64().unwrap()
}

/// Most memory of a PNG, in sizes of its own pixels.
const TIMES_MOST: u64 = 2;

#[test]
fn a_picture_of_108_megapixels_takes_less_than_twice_its_memory() {
    let place = Place::new();
    let small = peak(&place, &["-i", &fixture("rgb.bmp")]);
    let large = peak(&place, &["-i", &report("108-megapixels.png"), "--keep-working-size"]);
    let whole = 12_000 * 9_000 * 3;
    assert!(large < small + TIMES_MOST * whole, "{small} and {large} bytes");
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(content);
    [&(content.len() as u32).to_be_bytes(), &kind[..], content, &crc.sum().to_be_bytes()].concat()
}

/// A black PNG of one bit a pixel, with more chunks behind its header.
fn black(width: u32, height: u32, more: &[u8]) -> Vec<u8> {
    let rows = vec![0; (width.div_ceil(8) as usize + 1) * height as usize];
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[1, 0, 0, 0, 0]].concat();
    let parts = [chunk(b"IHDR", &header), more.to_vec(), chunk(b"IDAT", &zlib(&rows)), chunk(b"IEND", &[])];
    [b"\x89PNG\r\n\x1a\n".to_vec(), parts.concat()].concat()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A profile that unpacks to 200 MB, 100 MB of EXIF, and 2 million texts.
#[test]
fn metadata_takes_no_memory() {
    let place = Place::new();
    place.write("plain.png", black(64, 64, &[]));
    let plain = peak(&place, &["-i", "plain.png"]);
    let profile = chunk(b"iCCP", &[b"p\0\0".to_vec(), zlib(&vec![0; 200_000_000])].concat());
    for (name, metadata) in [
        ("profile.png", profile),
        ("exif.png", chunk(b"eXIf", &vec![0; 100_000_000])),
        ("texts.png", chunk(b"tEXt", b"Comment\0").repeat(2_000_000)),
    ] {
        place.write(name, black(64, 64, &metadata));
        drop(metadata);
        let more = peak(&place, &["-i", name]).saturating_sub(plain);
        assert!(more < 20_000_000, "{name}: {more} bytes");
    }
}

/// 840 MB of pixels within a limit of 700 MB.
#[cfg(target_os = "linux")]
#[test]
fn a_picture_that_memory_does_not_hold_is_refused_with_both_numbers() {
    let place = Place::new();
    place.write("large.png", black(20_000, 14_000, &[]));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -v 700000; exec \"$0\" \"$@\"", BINARY]).args(place.edit_args(&[
        "-i",
        "large.png",
        "--device",
        "cpu",
    ]));
    let answer: Answer = shell.current_dir(place.path("")).output().unwrap().into();
    answer.refused(4, &["20000x14000", "840.0 MB", "ulimit -v"]);
}
