//! Whether the bytes of a tensor can be those of a weight, as they pass on their way to a device.
//!
//! One number says it: the bits of the largest magnitude. It is zero if all elements are, and reaches those of infinity if one
//! is not finite. Taking it costs one pass over bytes that are in the cache.

use crate::tensor::DType;

/// The bits of the largest magnitude among the whole elements of some bytes; of bytes, the largest; 0 for other integers and for no elements.
pub(super) fn largest(dtype: DType, bytes: &[u8]) -> u32 {
    match dtype {
        DType::F32 => most(bytes, |b| i32::from_le_bytes(b) & 0x7fff_ffff) as u32,
        // Signed, since the smallest vector units compare 16 bits as signed only.
        DType::BF16 | DType::F16 => most(bytes, |b| i16::from_le_bytes(b) & 0x7fff) as u32,
        DType::F8E4M3 | DType::F8E5M2 => most(bytes, |[b]: [u8; 1]| b & 0x7f).into(),
        DType::U8 => most(bytes, |[b]: [u8; 1]| b).into(),
        DType::I32 | DType::S8 => 0,
    }
}

fn most<const N: usize, T: Ord + Default>(bytes: &[u8], magnitude: impl Fn([u8; N]) -> T) -> T {
    bytes.as_chunks::<N>().0.iter().fold(T::default(), |most, element| most.max(magnitude(*element)))
}

/// Whether a largest magnitude is that of infinity or of no number.
pub(super) fn is_infinite(dtype: DType, largest: u32) -> bool {
    let infinity = match dtype {
        DType::F32 => 0x7f80_0000,
        DType::BF16 => 0x7f80,
        DType::F16 => 0x7c00,
        DType::F8E4M3 => 0x7f,
        DType::F8E5M2 => 0x7c,
        DType::I32 | DType::U8 | DType::S8 => return false,
    };
    largest >= infinity
}

#[cfg(test)]
mod tests {
    use super::super::decode::{decode_f32, encode_f32};
    use super::*;
    use proptest::prelude::*;

    const FLOATS: [DType; 5] = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2];

    #[test]
    fn zeros_of_both_signs_are_zero() {
        for dtype in FLOATS {
            let mut bytes = vec![0; 100 * dtype.bytes()];
            encode_f32(dtype, &[0.0, -0.0].repeat(50), &mut bytes);
            assert_eq!(largest(dtype, &bytes), 0, "{dtype}");
            assert_eq!(largest(dtype, &[]), 0);
            bytes[99 * dtype.bytes()] = 1;
            assert_eq!(largest(dtype, &bytes), 1, "{dtype}: the smallest number is none");
        }
        assert_eq!((largest(DType::I32, &[7; 4]), largest(DType::U8, &[7, 200])), (0, 200));
    }

    proptest! {
        #[test]
        fn a_part_is_finite_if_its_values_are(mut bytes in prop::collection::vec(any::<u8>(), 0..200), exponents in any::<bool>()) {
            if exponents {
                bytes.iter_mut().skip(1).step_by(2).for_each(|byte| *byte |= 0x7c);
            }
            for dtype in FLOATS {
                let whole = bytes.len() / dtype.bytes();
                let mut values = vec![0.0; whole];
                decode_f32(dtype, &bytes[..whole * dtype.bytes()], &mut values);
                let found = largest(dtype, &bytes);
                prop_assert_eq!(is_infinite(dtype, found), values.iter().any(|value| !value.is_finite()));
                prop_assert_eq!(found == 0, values.iter().all(|value| *value == 0.0));
            }
        }
    }
}
