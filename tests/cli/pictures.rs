//! Pictures of all kinds, and files that are none.

use std::time::{Duration, Instant};

use super::support::*;

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
    place.edit_refused(&["-i", &fixture("cmyk.jpg")], 1, &["cmyk.jpg", "CMYK", "save it as RGB"]);
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
    place.edit_refused(&["-i", "huge.png"], 1, &["huge.png", "100000x100000", "100 megapixels"]);
    assert!(start.elapsed() < Duration::from_secs(5));
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
