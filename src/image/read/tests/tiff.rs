//! TIFF files that other programs seldom write.

use super::*;

/// A number of a tag: of one value, or where the values are.
type Tag = (u16, u32);

/// Adds a directory of these LONG numbers; one of several values gives their count and place. Says where it is.
fn directory(file: &mut Vec<u8>, tags: &[(Tag, u32)], next: u32) -> u32 {
    let at = file.len() as u32;
    file.extend((tags.len() as u16).to_le_bytes());
    for ((tag, count), value) in tags {
        file.extend([tag.to_le_bytes(), 4u16.to_le_bytes()].concat());
        file.extend([count.to_le_bytes(), value.to_le_bytes()].concat());
    }
    file.extend(next.to_le_bytes());
    at
}

/// Adds values; says where they are.
fn values(file: &mut Vec<u8>, values: &[u32]) -> u32 {
    let at = file.len() as u32;
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    at
}

/// A TIFF that begins with these bytes, whose first directory is added last.
fn tiff(mut file: Vec<u8>, tags: &[(Tag, u32)], next: u32) -> Vec<u8> {
    let first = directory(&mut file, tags, next);
    file[4..8].copy_from_slice(&first.to_le_bytes());
    file
}

const HEAD: &[u8] = b"II*\0\0\0\0\0";

/// What describes a picture without compression: size, bits, samples.
fn described(width: u32, height: u32, samples: u32, photometric: u32) -> Vec<(Tag, u32)> {
    let tags = [(256, width), (257, height), (258, 8), (259, 1), (262, photometric), (277, samples)];
    tags.map(|(tag, value)| ((tag, 1), value)).to_vec()
}

/// A grey picture of one pixel, with further tags.
fn dot(mut file: Vec<u8>, tags: &[(Tag, u32)], next: u32) -> Vec<u8> {
    let at = file.len() as u32;
    file.push(7);
    let strip = [((273, 1), at), ((278, 1), 1), ((279, 1), 1)];
    tiff(file, &[&described(1, 1, 1, 1)[..], &strip, tags].concat(), next)
}

/// 3x5 pixels in strips of two rows, with so many bytes behind the rows of each; the sizes of strips count so many of them.
fn in_strips(behind: usize, counted: usize) -> Vec<u8> {
    let pixels: Vec<u8> = (0..45).collect();
    let mut file = HEAD.to_vec();
    let (mut offsets, mut sizes) = (vec![], vec![]);
    for rows in pixels.chunks(18) {
        offsets.push(file.len() as u32);
        sizes.push((rows.len() + counted) as u32);
        file.extend(rows);
        file.extend(vec![0xee; behind]);
    }
    let (offsets, sizes) = (values(&mut file, &offsets), values(&mut file, &sizes));
    let strips = [((273, 3), offsets), ((278, 1), 2), ((279, 3), sizes)];
    tiff(file, &[&described(3, 5, 3, 2)[..], &strips].concat(), 0)
}

#[test]
fn rows_of_strips_join_whatever_lies_behind_them() {
    let expected: Vec<u8> = (0..45).collect();
    for (behind, counted) in [(0, 0), (2, 0), (2, 2), (5, 3)] {
        let decoded = decode_bytes(&in_strips(behind, counted), &Reading::default()).unwrap();
        assert_eq!(decoded.picture.data, expected, "{behind} bytes behind, {counted} counted");
    }
}

#[test]
fn pages_are_counted_up_to_a_limit() {
    let pages = |count: u32| {
        let mut file = HEAD.to_vec();
        // Directories without entries, each naming the one before it.
        let next = (1..count).fold(0, |next, _| directory(&mut file, &[], next));
        decode_bytes(&dot(file, &[], next), &Reading::default()).unwrap().notes.concat()
    };
    assert_eq!(pages(1), "");
    for (count, counted) in [(99_999, 99_999), (100_000, 100_000), (100_001, 100_000), (300_000, 100_000)] {
        assert!(pages(count).contains(&format!("first of the {counted} pages")), "{count}");
    }
}

#[test]
fn directories_below_are_looked_at_up_to_a_limit() {
    let with = |plain: usize| {
        let mut file = HEAD.to_vec();
        let empty = directory(&mut file, &[], 0);
        let raw = directory(&mut file, &[((262, 1), 32_803)], 0);
        let below = values(&mut file, &[vec![empty; plain], vec![raw; 2]].concat());
        decode_bytes(&dot(file, &[((330, plain as u32 + 2), below)], 0), &Reading::default())
    };
    assert!(format!("{:#}", with(63).unwrap_err()).contains("raw"));
    assert_eq!(with(64).unwrap().picture.data, [7; 3]);
}

/// A BigTIFF may announce any number of entries.
#[test]
fn entries_of_a_directory_have_a_limit() {
    let fault = |count: u64| {
        let mut file = [&b"II+\0\x08\0\0\0"[..], &16u64.to_le_bytes(), &count.to_le_bytes()].concat();
        let strip = [((273, 1), 8), ((278, 1), 1), ((279, 1), 4096)];
        for ((tag, values), value) in [&described(1, 1, 1, 1)[..], &strip].concat() {
            file.extend([tag.to_le_bytes(), 4u16.to_le_bytes()].concat());
            file.extend([u64::from(values).to_le_bytes(), u64::from(value).to_le_bytes()].concat());
        }
        refusal(&file)
    };
    assert!(fault(65_535).contains("ends early"), "{}", fault(65_535));
    assert!(fault(65_536).contains("its header"), "{}", fault(65_536));
}

/// A tag of single bytes would take eight times its memory.
#[test]
fn numbers_of_a_tag_have_a_limit() {
    let fault = |count: u32| {
        let file = [HEAD, &vec![0; 4 * count as usize]].concat();
        let strips = [((273, count), 8), ((278, 1), 1), ((279, count), 8)];
        let decoded = decode_bytes(&tiff(file, &[&described(1, 1, 1, 1)[..], &strips].concat(), 0), &Reading::default());
        decoded.map_or_else(|error| format!("{error:#}"), |_| String::new())
    };
    assert!(!fault(1 << 23).contains("its header"), "{}", fault(1 << 23));
    assert!(fault((1 << 23) + 1).contains("its header"), "{}", fault((1 << 23) + 1));
}

#[test]
fn samples_of_a_pixel_have_a_limit() {
    let of = |samples: u32| {
        let mut file = HEAD.to_vec();
        file.extend(vec![9; samples as usize]);
        let strip = [((273, 1), 8), ((278, 1), 1), ((279, 1), samples)];
        decode_bytes(&tiff(file, &[&described(1, 1, samples, 2)[..], &strip].concat(), 0), &Reading::default())
    };
    let fault = |samples| of(samples).map_or_else(|error| format!("{error:#}"), |_| String::new());
    assert!(!fault(64).contains("its header"), "{}", fault(64));
    assert!(fault(65).contains("its header"), "{}", fault(65));
}

#[test]
fn strips_have_at_most_so_many_bytes() {
    let of = |(width, height): (u32, u32), samples: u32| {
        let size = width * height * samples;
        let strip = [((273, 1), 8), ((278, 1), height), ((279, 1), size)];
        let file = [HEAD, &vec![9; size as usize]].concat();
        decode_bytes(&tiff(file, &[&described(width, height, samples, 2)[..], &strip].concat(), 0), &Reading::default())
    };
    // Of a small picture 1 MiB, of a larger one 16 bytes for each pixel.
    for (size, most) in [((128, 128), 64), ((256, 257), 16)] {
        assert_eq!(of(size, most).unwrap().picture.width, size.0 as usize);
    }
    for (size, more) in [((128, 129), 64), ((256, 257), 17)] {
        let message = format!("{:#}", of(size, more).unwrap_err());
        assert!(message.contains("more memory than"), "{size:?}: {message}");
    }
}

/// A picture whose many strips are one and the same: each would be unpacked, or looked at as a JPEG, anew.
#[test]
fn strips_cannot_be_unpacked_again_and_again() {
    let jpeg = bytes("images", "grey.jpg");
    let clears = [0x80, 0, 0].repeat(100_000);
    for (compression, strip, strips) in
        [(7, &jpeg, 100_000), (5, &clears, 10_000), (8, &clears, 10_000), (32_773, &clears, 10_000)]
    {
        let mut file = HEAD.to_vec();
        let at = file.len() as u32;
        file.extend(strip);
        let offsets = values(&mut file, &vec![at; strips]);
        let sizes = values(&mut file, &vec![strip.len() as u32; strips]);
        let mut tags = described(1, strips as u32, 1, 1);
        tags[3].1 = compression;
        let count = strips as u32;
        tags.extend([((273, count), offsets), ((278, 1), 1), ((279, count), sizes)]);
        let message = refusal(&tiff(file, &tags, 0));
        assert!(message.contains("TIFF is damaged: its header"), "{compression}: {message}");
    }
    // Equal tiles may be one.
    let mut file = HEAD.to_vec();
    file.extend(vec![7; 256]);
    let offsets = values(&mut file, &[8; 9]);
    let sizes = values(&mut file, &[256; 9]);
    let tiles = [((322, 1), 16), ((323, 1), 16), ((324, 9), offsets), ((325, 9), sizes)];
    let decoded = decode_bytes(&tiff(file, &[&described(48, 48, 1, 1)[..], &tiles].concat(), 0), &Reading::default()).unwrap();
    assert_eq!(decoded.picture.data, vec![7; 48 * 48 * 3]);
}
