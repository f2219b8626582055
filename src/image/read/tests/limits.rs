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
    // However few bytes come at a time.
    let file = png(8, 8, &[chunk(b"eXIf", &vec![0; 9 << 20]), pixels.clone()]);
    assert_eq!(read_all(file[..3].chain(&file[3..]), &Reading::default(), 0).unwrap().len(), bare);
    // A profile beyond all bounds is seen as such.
    let noise: Vec<u8> = (0..9u64 << 20).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    fs::write(&path, png(8, 8, &[chunk(b"iCCP", &[b"p\0\0".to_vec(), zlib(&noise)].concat()), pixels])).unwrap();
    assert!(decode(&path, &Reading::default()).unwrap().notes[0].contains("larger than 4 MiB"));
}
