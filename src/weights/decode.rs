//! Floats as stored in files, widened to f32, and back; and the narrow formats that no crate here covers.
//!
//! e4m3 ("e4m3fn"): 1 sign, 4 exponent (bias 7), 3 mantissa bits, subnormals, no infinities;
//! 0x7f and 0xff are NaN, the largest value is 448. e5m2 is the upper half of a binary16.

use half::f16;
use pulp::Arch;
use rayon::prelude::*;

use crate::tensor::DType;

/// Elements a task of a parallel loop handles; smaller inputs stay on the calling thread.
const CHUNK: usize = 1 << 16;

static E4M3: [f32; 256] = e4m3_table();

const fn e4m3_table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let sign = (code as u32 & 0x80) << 24;
        let exponent = (code as u32 >> 3) & 15;
        let mantissa = code as u32 & 7;
        let magnitude = if exponent == 15 && mantissa == 7 {
            0x7fc0_0000
        } else if exponent == 0 {
            (mantissa as f32 / 512.0).to_bits()
        } else {
            ((exponent + 120) << 23) | (mantissa << 20)
        };
        table[code] = f32::from_bits(sign | magnitude);
        code += 1;
    }
    table
}

/// The value of an e4m3 byte.
pub fn e4m3_to_f32(code: u8) -> f32 {
    E4M3[code as usize]
}

/// The e4m3 byte nearest to `value`, ties to even; NaN where that would exceed 448.
pub fn f32_to_e4m3(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs();
    // 464 lies between 448 and the 480 that the NaN code would have been; the tie goes to 448, the even one.
    if magnitude.is_nan() || magnitude > 464.0 {
        return sign | 0x7f;
    }
    if magnitude < 1.0 / 64.0 {
        // Subnormals are multiples of 2^-9; 8 of them is the code of the smallest normal, 2^-6.
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_ffff + ((bits >> 20) & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// The e5m2 byte nearest to `value`, ties to even; infinity from 61,440 on, which is nearer to what would be 65,536.
pub fn f32_to_e5m2(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs();
    if magnitude.is_nan() {
        return sign | 0x7f;
    }
    if magnitude < 1.0 / 16384.0 {
        // Subnormals are multiples of 2^-16; 4 of them is the code of the smallest normal, 2^-14.
        return sign | (magnitude * 65536.0).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits().min(0x4780_0000);
    let rounded = bits + 0xf_ffff + ((bits >> 21) & 1);
    sign | ((rounded >> 21) - (112 << 2)).min(0x7c) as u8
}

/// Widens little-endian elements of any float type to f32, exactly; `bytes` need no alignment.
///
/// Panics when `dtype` is not a float or `bytes` does not hold `out.len()` elements.
pub fn decode_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let size = dtype.bytes();
    assert_eq!(
        Some(bytes.len()),
        out.len().checked_mul(size),
        "decode of {} {dtype} elements from {} bytes",
        out.len(),
        bytes.len()
    );
    if out.len() <= CHUNK {
        return Arch::new().dispatch(|| decode_here(dtype, bytes, out));
    }
    let chunks = out.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * size));
    chunks.for_each(|(out, bytes)| Arch::new().dispatch(|| decode_here(dtype, bytes, out)));
}

/// The same on this thread, with the vector units that whoever calls it is compiled for.
#[inline(always)]
pub(super) fn decode_here(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => widen(bytes, out, f32::from_le_bytes),
        DType::BF16 => widen(bytes, out, |b| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
        DType::F16 => widen(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::F8E4M3 => widen(bytes, out, |[b]| e4m3_to_f32(b)),
        DType::F8E5M2 => widen(bytes, out, |[b]| f16::from_le_bytes([0, b]).to_f32()),
        DType::I32 | DType::U8 | DType::S8 => panic!("decode_f32 is for floats, not {dtype}"),
    }
}

#[inline(always)]
fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = value(*bytes);
    }
}

/// The bits of the nearest bf16, ties to even, as `half` has them, without a branch: so that vector units round many at once.
#[inline(always)]
fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x0040_0000;
    ((if value.is_nan() { quiet } else { rounded }) >> 16) as u16
}

/// Rounds f32 to little-endian elements of any float type, ties to even.
///
/// Panics when `dtype` is not a float or `bytes` does not hold as many elements as there are values.
pub fn encode_f32(dtype: DType, values: &[f32], bytes: &mut [u8]) {
    Arch::new().dispatch(|| encode_here(dtype, values, bytes));
}

/// The same, with the vector units that whoever calls it is compiled for.
#[inline(always)]
pub(super) fn encode_here(dtype: DType, values: &[f32], bytes: &mut [u8]) {
    #[inline(always)]
    fn each<const N: usize>(values: &[f32], bytes: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
        bytes.as_chunks_mut::<N>().0.iter_mut().zip(values).for_each(|(to, &from)| *to = convert(from));
    }
    assert_eq!(values.len() * dtype.bytes(), bytes.len(), "encode of {} values as {dtype}", values.len());
    match dtype {
        DType::F32 => each(values, bytes, f32::to_le_bytes),
        DType::BF16 => each(values, bytes, |v| f32_to_bf16(v).to_le_bytes()),
        DType::F16 => each(values, bytes, |v| f16::from_f32(v).to_le_bytes()),
        DType::F8E4M3 => each(values, bytes, |v| [f32_to_e4m3(v)]),
        DType::F8E5M2 => each(values, bytes, |v| [f32_to_e5m2(v)]),
        DType::I32 | DType::U8 | DType::S8 => panic!("encode_f32 is for floats, not {dtype}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    #[test]
    fn e4m3_values() {
        assert_eq!(e4m3_to_f32(0x00).to_bits(), 0);
        assert_eq!(e4m3_to_f32(0x01), 2.0f32.powi(-9));
        assert_eq!(e4m3_to_f32(0x07), 7.0 * 2.0f32.powi(-9));
        assert_eq!(e4m3_to_f32(0x08), 2.0f32.powi(-6));
        assert_eq!(e4m3_to_f32(0x38), 1.0);
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(e4m3_to_f32(0xfe), -448.0);
        assert_eq!(e4m3_to_f32(0x80).to_bits(), 0x8000_0000);
        assert!(e4m3_to_f32(0x7f).is_nan() && e4m3_to_f32(0xff).is_nan());
    }

    #[test]
    fn every_e4m3_byte_survives_the_round_trip() {
        for code in 0..=255u8 {
            assert_eq!(f32_to_e4m3(e4m3_to_f32(code)), code, "0x{code:02x}");
        }
    }

    #[test]
    fn e4m3_rounds_to_even_and_overflows_to_nan() {
        // v1.0's scale_factor in the official FP8 mode.
        assert_eq!(e4m3_to_f32(f32_to_e4m3(-0.91)), -0.9375);
        assert_eq!(f32_to_e4m3(464.0), 0x7e);
        assert_eq!(f32_to_e4m3(464.1), 0x7f);
        assert_eq!(f32_to_e4m3(f32::NEG_INFINITY), 0xff);
        assert_eq!(f32_to_e4m3(2.0f32.powi(-10)), 0x00);
        assert_eq!(f32_to_e4m3(3.0 * 2.0f32.powi(-10)), 0x02);
        assert_eq!(f32_to_e4m3(1.0625), 0x38);
        assert_eq!(f32_to_e4m3(1.1875), 0x3a);
    }

    #[test]
    fn e5m2_is_the_upper_half_of_a_binary16() {
        let value = |code: u8| {
            let mut out = [0.0];
            decode_f32(DType::F8E5M2, &[code], &mut out);
            out[0]
        };
        for (code, wanted) in
            [(0x3c, 1.0), (0xbe, -1.5), (0x7b, 57344.0), (0x04, 2.0f32.powi(-14)), (0x83, -3.0 * 2.0f32.powi(-16))]
        {
            assert_eq!(value(code), wanted);
        }
        assert_eq!((value(0x7c), value(0xfc)), (f32::INFINITY, f32::NEG_INFINITY));
        assert!([0x7d, 0x7e, 0x7f, 0xfd, 0xff].iter().all(|code| value(*code).is_nan()));
        for code in 0..=255u8 {
            let nan = value(code).is_nan();
            assert_eq!(f32_to_e5m2(value(code)), if nan { code & 0x80 | 0x7f } else { code }, "0x{code:02x}");
        }
        for (value, code) in [(1.125, 0x3c), (1.375, 0x3e), (61439.0, 0x7b), (61440.0, 0x7c), (1e9, 0x7c), (2.0f32.powi(-17), 0)]
        {
            assert_eq!(f32_to_e5m2(value), code, "{value}");
        }
        assert_eq!(f32_to_e5m2(f32::NEG_INFINITY), 0xfc);
    }

    /// Every upper half, with lower halves about the ties.
    #[test]
    fn rounding_to_bf16_is_that_of_half() {
        let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let values: Vec<f32> =
            (0..=u32::from(u16::MAX)).flat_map(|upper| lower.map(|lower| f32::from_bits(upper << 16 | lower))).collect();
        let mut bytes = vec![0; 2 * values.len()];
        encode_f32(DType::BF16, &values, &mut bytes);
        for (value, got) in values.iter().zip(bytes.as_chunks().0) {
            assert_eq!(u16::from_le_bytes(*got), bf16::from_f32(*value).to_bits(), "0x{:08x}", value.to_bits());
        }
    }

    proptest! {
        #[test]
        fn e4m3_is_the_nearest(value in -448.0f32..448.0) {
            let error = (e4m3_to_f32(f32_to_e4m3(value)) - value).abs();
            let least = (0..=255u8)
                .map(|code| (e4m3_to_f32(code) - value).abs())
                .fold(f32::INFINITY, f32::min);
            prop_assert_eq!(error, least);
        }
    }

    #[test]
    fn values_encode_and_unaligned_and_parallel_inputs_decode_exactly() {
        let n = CHUNK * 2 + 17;
        let values: Vec<f32> = (0..n).map(|i| (i % 251) as f32 - 125.0).collect();
        let stored: [(DType, Vec<u8>); 5] = [
            (DType::F32, encode(&values, |v| v.to_le_bytes())),
            (DType::BF16, encode(&values, |v| bf16::from_f32(v).to_le_bytes())),
            (DType::F16, encode(&values, |v| f16::from_f32(v).to_le_bytes())),
            (DType::F8E4M3, encode(&values, |v| [f32_to_e4m3(v)])),
            (DType::F8E5M2, encode(&values, |v| [f32_to_e5m2(v)])),
        ];
        for (dtype, bytes) in stored {
            let mut encoded = vec![0; bytes.len()];
            encode_f32(dtype, &values, &mut encoded);
            assert!(encoded == bytes, "{dtype}");
            let mut shifted = vec![0];
            shifted.extend_from_slice(&bytes);
            let mut out = vec![f32::NAN; n];
            decode_f32(dtype, &shifted[1..], &mut out);
            let want: Vec<f32> = match dtype {
                DType::F8E4M3 => values.iter().map(|&v| e4m3_to_f32(f32_to_e4m3(v))).collect(),
                DType::F8E5M2 => bytes.iter().map(|&b| f16::from_bits(u16::from(b) << 8).to_f32()).collect(),
                _ => values.clone(),
            };
            assert_eq!(out, want, "{dtype}");
        }
    }

    fn encode<const N: usize>(values: &[f32], stored: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&v| stored(v)).collect()
    }
}
