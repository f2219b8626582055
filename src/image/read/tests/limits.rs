//! What a file may cost, and files that nobody meant.

use super::*;

/// A profile of 2 GB in 2 MB, an eXIf of many megabytes, and texts in great number: none is kept.
#[test]
fn metadata_costs_no_memory() {
    let pixels = [chunk(b"IDAT", &zlib(&[0; 25 * 8])), chunk(b"IEND", &[])].concat();
    let of = |parts: Vec<u8>| decode_bytes(&png(8, 8, &[parts, pixels.clone()]), &Reading::default()).unwrap().notes;
    let bomb = [b"p\0\0".to_vec(), zlib(&vec![0; 64 << 20])].concat();
    assert!(of(chunk(b"iCCP", &bomb))[0].contains("larger than 4 MiB"));
    assert!(of(chunk(b"eXIf", &vec![0; 32 << 20])).is_empty());
    let texts = chunk(b"tEXt", b"Comment\0").repeat(1 << 20);
    assert!(of(texts).is_empty());
    let text = [b"Raw profile type exif\0\0".to_vec(), zlib(&vec![b'\n'; 64 << 20])].concat();
    assert!(of(chunk(b"zTXt", &text).repeat(100)).is_empty());
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
        index in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = index.get(seeds()).clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let reading = Reading { pixels_max: 1 << 20, alpha: Alpha::Keep, ..Reading::default() };
        if let Ok(Decoded { picture, alpha, .. }) = decode_bytes(&bytes, &reading) {
            prop_assert_eq!(picture.data.len(), picture.width * picture.height * 3);
            prop_assert!(alpha.is_none_or(|alpha| alpha.len() == picture.width * picture.height));
        }
    }
}

/// Every picture of `tests/data`, once read.
fn seeds() -> &'static [Vec<u8>] {
    static SEEDS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SEEDS.get_or_init(|| {
        let folders = ["images", "pictures"].map(|folder| fs::read_dir(Path::new("tests/data").join(folder)).unwrap());
        let files = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
        files.filter(|file| !file.to_string_lossy().ends_with(".expected.png")).map(|file| fs::read(file).unwrap()).collect()
    })
}

/// A file is read without what is not used of it, and gives what its bytes give.
#[test]
fn a_sieved_png_reads_alike() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let answer = |decoded: Result<Decoded>| match decoded {
        Ok(Decoded { picture, notes, .. }) => Ok((picture, notes)),
        Err(error) => Err(error.root_cause().to_string()),
    };
    for name in ["upright-raw.png", "upright-xmp.png", "profile-palette.png", "frames.png", "cicp-p3.png", "profile-broken.png"] {
        let whole = bytes("pictures", name);
        for cut in [whole.len(), whole.len() - 1, whole.len() - 12, whole.len() * 2 / 3, 60, 20, 8] {
            fs::write(&path, &whole[..cut]).unwrap();
            let (sieved, plain) = (decode(&path, &Reading::default()), decode_bytes(&whole[..cut], &Reading::default()));
            assert_eq!(answer(sieved), answer(plain), "{name} to {cut}");
        }
    }
    let kept = |parts: &[Vec<u8>]| png::sieve::read(&png(8, 8, parts)[..]).unwrap().len();
    let pixels = [chunk(b"IDAT", &zlib(&[0; 25 * 8])), chunk(b"IEND", &[])].concat();
    let bare = kept(std::slice::from_ref(&pixels));
    assert_eq!(kept(&[chunk(b"tEXt", b"Comment\0hello").repeat(1000), chunk(b"eXIf", &vec![0; 9 << 20]), pixels.clone()]), bare);
    assert_eq!(kept(&[pixels.clone(), vec![1; 1000]]), bare);
    // One chunk of a kind is kept, up to 8 MiB.
    let text = |size| [b"XML:com.adobe.xmp\0\0\0\0\0".to_vec(), vec![b' '; size]].concat();
    for (kind, content) in [(b"eXIf", vec![0; 8 << 20]), (b"iCCP", vec![0; 100]), (b"iTXt", text(1000))] {
        assert_eq!(kept(&[chunk(kind, &content).repeat(3), pixels.clone()]), bare + 12 + content.len());
    }
    assert_eq!(kept(&[chunk(b"eXIf", &vec![0; (8 << 20) + 1]), pixels.clone()]), bare);
    assert_eq!(kept(&[chunk(b"PLTE", &[0; 768]), pixels.clone()]), bare + 12 + 768);
    assert_eq!(kept(&[chunk(b"PLTE", &[0; 769]), pixels.clone()]), bare);
    // However few bytes come at a time.
    let file = png(8, 8, &[chunk(b"eXIf", &vec![0; 9 << 20]), pixels.clone()]);
    assert_eq!(read_all(file[..3].chain(&file[3..]), &Reading::default(), 0).unwrap().len(), bare);
    // A profile beyond all bounds is seen as such.
    let noise: Vec<u8> = (0..9u64 << 20).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    fs::write(&path, png(8, 8, &[chunk(b"iCCP", &[b"p\0\0".to_vec(), zlib(&noise)].concat()), pixels])).unwrap();
    assert!(decode(&path, &Reading::default()).unwrap().notes[0].contains("larger than 4 MiB"));
}

/// A black PNG of 8-bit RGB that ends before its first row does.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    png(width, height, &[chunk(b"IDAT", &zlib(&[0; 9])), chunk(b"IEND", &[])])
}

/// A JPEG XL that begins with these numbers, each with its bits.
fn jxl_of(numbers: &[(u32, u32)]) -> Vec<u8> {
    let bits: Vec<bool> = numbers.iter().flat_map(|&(value, count)| (0..count).map(move |i| value >> i & 1 == 1)).collect();
    let bytes = bits.chunks(8).map(|bits| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit)));
    [0xff, 0x0a].into_iter().chain(bytes).collect()
}

/// No multiple of 8; a side is one more than 30 bits say; no fixed aspect.
fn jxl_size(width: u32, height: u32) -> [(u32, u32); 6] {
    [(0, 1), (3, 2), (height - 1, 30), (0, 3), (3, 2), (width - 1, 30)]
}

/// The header of a JPEG XL that says nothing but its size: all metadata and the matrix are as usual.
fn jxl_header(width: u32, height: u32) -> Vec<u8> {
    jxl_of(&[&jxl_size(width, height)[..], &[(3, 2)]].concat())
}

#[test]
fn pictures_have_at_most_so_many_pixels() {
    for name in ["profile-srgb.png", "444-progressive.jpg", "alpha-lossy.webp", "alpha.gif", "tiles.tif", "lossy.jxl"] {
        let file = bytes("pictures", name);
        let with = |pixels_max| decode_bytes(&file, &Reading { pixels_max, ..Reading::default() });
        assert_eq!(with(44 * 35).unwrap().picture.data.len(), 3 * 44 * 35, "{name}");
        let message = format!("{:#}", with(44 * 35 - 1).unwrap_err());
        assert!(message.contains("44x35 pixels; at most"), "{name}: {message}");
    }
    let all = Reading { pixels_max: u64::MAX, ..Reading::default() };
    for (file, reading) in [
        (claiming as fn(u32, u32) -> Vec<u8>, Reading::default()),
        (jxl_header, Reading::default()),
        // JPEG XL has a limit of its own.
        (jxl_header, all),
    ] {
        let message = |width| format!("{:#}", decode_bytes(&file(width, 10_000), &reading).unwrap_err());
        assert!(!message(10_000).contains("megapixels"), "{}", message(10_000));
        assert!(message(10_001).contains("10001x10000 pixels; at most 100 megapixels"), "{}", message(10_001));
    }
}

#[test]
fn files_have_at_most_so_many_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.bmp");
    let reading = Reading { pixels_max: 13 * 9, ..Reading::default() };
    let most = 8 * 13 * 9 + (256 << 20);
    fs::write(&path, bytes("images", "rgb.bmp")).unwrap();
    let with_length = |length| {
        fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        decode(&path, &reading).map_err(|error| format!("{error:#}"))
    };
    assert_eq!((with_length(most).unwrap().picture.width, most), (13, 268_436_392));
    assert!(with_length(most + 1).unwrap_err().contains("more than 268 MB"));
    // What comes from a pipe, too.
    let message = read_all(std::io::repeat(b' '), &reading, 0).unwrap_err().to_string();
    assert!(message.contains("more than 268 MB"), "{message}");
    assert_eq!(read_all(std::io::repeat(b' ').take(most), &reading, 0).unwrap().len() as u64, most);
}

#[test]
fn colour_profiles_have_at_most_so_many_bytes() {
    let pixels = [chunk(b"IDAT", &zlib(&[0; 25 * 8])), chunk(b"IEND", &[])].concat();
    for (size, words) in [(4 << 20, "is damaged or of an unknown kind"), ((4 << 20) + 1, "is larger than 4 MiB")] {
        let profile = vec![0; size];
        let packed = chunk(b"iCCP", &[b"p\0\0".to_vec(), zlib(&profile)].concat());
        let notes = decode_bytes(&png(8, 8, &[packed, pixels.clone()]), &Reading::default()).unwrap().notes;
        assert!(notes[0].contains(words), "{size}: {notes:?}");
        let colour::Stated::Unusable(why) = colour::Stated::icc(&profile) else { panic!("zeros are no profile") };
        assert_eq!(why, words, "{size}");
    }
}

#[test]
fn texts_of_a_png_are_unpacked_up_to_a_limit() {
    let pixels = [chunk(b"IDAT", &zlib(&[0; 25 * 4])), chunk(b"IEND", &[])].concat();
    let size = |bytes: usize| {
        let mut xmp = br#"<x tiff:Orientation="6"/>"#.to_vec();
        xmp.resize(bytes, b' ');
        let text = chunk(b"zTXt", &[b"XML:com.adobe.xmp\0\0".to_vec(), zlib(&xmp)].concat());
        let picture = decode_bytes(&png(8, 4, &[text, pixels.clone()]), &Reading::default()).unwrap().picture;
        (picture.width, picture.height)
    };
    assert_eq!((size(1 << 20), size((1 << 20) + 1)), ((4, 8), (8, 4)));
}

/// A grey progressive JPEG of one black block: its DC value, then bands of one AC value each in two parts, then the rest in so
/// many bands.
fn in_scans(count: u8) -> Vec<u8> {
    let table = |class: u8| [&[0xff, 0xc4, 0, 20, class, 1][..], &[0; 15], &[0]].concat();
    let scan = |first: u8, last: u8, bits: u8| [0xff, 0xda, 0, 8, 1, 1, 0, first, last, bits, 0x7f];
    let mut file =
        [&[0xff, 0xd8, 0xff, 0xdb, 0, 67, 0][..], &[1; 64], &[0xff, 0xc2, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0]].concat();
    file.extend([table(0), table(0x10)].concat());
    file.extend(scan(0, 0, 0));
    // 0x01: all bits but the last; 0x10: the last.
    (1..=48).for_each(|band| file.extend([scan(band, band, 0x01), scan(band, band, 0x10)].concat()));
    let rest = count - 97;
    (0..rest).for_each(|i| file.extend(scan(49 + i, if i + 1 == rest { 63 } else { 49 + i }, 0)));
    file.extend([0xff, 0xd9]);
    file
}

#[test]
fn scans_of_a_jpeg_have_a_limit() {
    assert_eq!(decode_bytes(&in_scans(100), &Reading::default()).unwrap().picture.data, [128; 3 * 64]);
    let message = refusal(&in_scans(101));
    assert!(message.contains("more than 100 scans"), "{message}");
}

/// A GIF whose canvas has this size and whose only frame another one.
fn on_canvas(canvas: (u16, u16), frame: (u16, u16)) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = ::gif::Encoder::new(&mut file, canvas.0, canvas.1, &[0, 0, 0, 255, 255, 255]).unwrap();
    let pixels = vec![1; usize::from(frame.0) * usize::from(frame.1)];
    encoder.write_frame(&::gif::Frame::from_indexed_pixels(frame.0, frame.1, pixels, None)).unwrap();
    drop(encoder);
    file
}

#[test]
fn a_canvas_is_hardly_larger_than_its_frame() {
    // 10 megapixels around any frame, or 64 times those of a larger one.
    for (frame, width, most) in [((10, 10), 2500, 4000), ((400, 400), 3200, 3200)] {
        let picture = decode_bytes(&on_canvas((width, most), frame), &Reading::default()).unwrap().picture;
        assert_eq!((picture.width, picture.height), (width.into(), most.into()));
        let message = refusal(&on_canvas((width, most + 1), frame));
        assert!(message.contains(&format!("its first frame fills only {}x{}", frame.0, frame.1)), "{message}");
    }
}

/// The decoder is told how much memory it may have, and keeps to it.
#[test]
fn the_decoder_of_jpeg_xl_has_a_limit_of_memory() {
    let file = bytes("pictures", "lossy.jxl");
    let asked = |bytes: usize| {
        let reading = Reading { check_memory: |what, bytes| bail!("{what} needs {bytes} bytes"), ..Reading::default() };
        assert!(format!("{:#}", decode_bytes(&file, &reading).unwrap_err()).ends_with(&format!("needs {bytes} bytes")));
    };
    asked(32 * 44 * 35);
    // Its data alone, and a picture.
    let parsed = |limit: usize| jxl::parsed(&file, &jxl_oxide::AllocTracker::with_limit(limit)).ok().flatten();
    assert!(parsed(file.len() / 2).is_none());
    assert!(parsed(file.len()).unwrap().render_frame(0).is_err());
    assert!(parsed(file.len() + (64 << 20) + 2 * 32 * 44 * 35).unwrap().render_frame(0).is_ok());
}

/// A profile of 8 million bytes in 2: its decoder once began anew with every 4 kB of the file.
#[test]
fn the_profile_of_a_jpeg_xl_takes_no_time() {
    const BYTES: u32 = 8_000_000;
    // Not all as usual; 8 bits; no further channels; colours as they are, by a profile; the matrix as usual.
    let metadata = [(0, 1), (0, 1), (0, 1), (0, 2), (1, 1), (0, 2), (0, 1), (0, 1), (1, 1), (0, 2), (0, 2), (1, 1)];
    let size = [(3, 2), (BYTES & 0xfff, 12), (1, 1), (BYTES >> 12 & 0xff, 8), (1, 1), (BYTES >> 20, 8), (0, 1)];
    // No repetition, one code for all, a prefix code of bytes; of 256, four have two bits: 0, 1, 4 and 255.
    let code = [(0, 1), (1, 1), (0, 2), (1, 1), (8, 4), (0, 4), (0, 4), (1, 1), (7, 4), (127, 7), (1, 2), (3, 2)];
    let symbols = [(0, 8), (1, 8), (4, 8), (255, 8), (0, 1)];
    // 255, 255, 255 and 4 say a size of 10,485,759, and 0 that there are no commands.
    let sizes = [(3, 2), (3, 2), (3, 2), (1, 2), (0, 2)];
    let mut file = jxl_of(&[&jxl_size(8, 8)[..], &metadata, &size, &code, &symbols, &sizes].concat());
    file.resize(file.len() + BYTES as usize / 4, 0x4e);
    let begun = std::time::Instant::now();
    let message = refusal(&file);
    assert!(message.contains("JPEG XL is damaged: its header"), "{message}");
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    // All of it is read: three quarters are not enough.
    file.truncate(file.len() * 3 / 4);
    let message = refusal(&file);
    assert!(message.contains("JPEG XL ends early"), "{message}");
}

/// Of colours whose curve is unknown, the decoder makes a panic instead of a profile.
#[test]
fn a_jpeg_xl_of_unknown_colours_is_read_as_it_is() {
    let known = bytes("pictures", "grey.jxl");
    let mut unknown = known.clone();
    // A part of the number of the curve.
    unknown[7] = 8;
    let decoded = decode_bytes(&unknown, &Reading::default()).unwrap();
    assert!(decoded.notes.len() == 1 && decoded.notes[0].contains("is of an unknown kind"), "{:?}", decoded.notes);
    assert!(decoded.picture == decode_bytes(&known, &Reading { ignore_profile: true, ..Reading::default() }).unwrap().picture);
}
