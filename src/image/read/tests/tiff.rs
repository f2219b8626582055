//! TIFF files that other programs seldom write.

use super::*;

/// A TIFF of 3x5 pixels in strips of two rows, with so many bytes behind the rows of each; the sizes of strips count so many
/// of them.
fn in_strips(behind: usize, counted: usize) -> Vec<u8> {
    let pixels: Vec<u8> = (0..45).collect();
    let mut file = b"II*\0\0\0\0\0".to_vec();
    let (mut offsets, mut sizes) = (vec![], vec![]);
    for rows in pixels.chunks(18) {
        offsets.push(file.len() as u32);
        sizes.push((rows.len() + counted) as u32);
        file.extend(rows);
        file.extend(vec![0xee; behind]);
    }
    let mut place = |values: &[u32]| {
        let at = file.len() as u32;
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        at
    };
    let (offsets, sizes) = (place(&offsets), place(&sizes));
    let directory = file.len() as u32;
    file[4..8].copy_from_slice(&directory.to_le_bytes());
    // Width, height, bits, compression, RGB, offsets, samples, rows of a strip, sizes: tag, 3 (SHORT) or 4 (LONG), count, value.
    let tags = [
        (256u16, 3u16, 1u32, 3),
        (257, 3, 1, 5),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 3, offsets),
        (277, 3, 1, 3),
        (278, 3, 1, 2),
        (279, 4, 3, sizes),
    ];
    file.extend((tags.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in tags {
        file.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
        file.extend([count.to_le_bytes(), value.to_le_bytes()].concat());
    }
    file.extend([0; 4]);
    file
}

#[test]
fn rows_of_strips_join_whatever_lies_behind_them() {
    let expected: Vec<u8> = (0..45).collect();
    for (behind, counted) in [(0, 0), (2, 0), (2, 2), (5, 3)] {
        let decoded = decode_bytes(&in_strips(behind, counted), &Reading::default()).unwrap();
        assert_eq!(decoded.picture.data, expected, "{behind} bytes behind, {counted} counted");
    }
}
