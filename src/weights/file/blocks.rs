//! Blocks of a few bits a value, as llama.cpp packs matrices, unpacked to f32 exactly as its own code does.
//!
//! A row is a sequence of blocks. Each has one or two halves that scale it; the kinds with a K divide it into parts with scales of
//! their own.

use std::fmt;

use half::f16;

/// A kind of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// 4 bits and a scale for 32 values.
    Q4_0,
    /// 4 bits, a scale and an offset.
    Q4_1,
    /// 5 bits and a scale.
    Q5_0,
    /// 5 bits, a scale and an offset.
    Q5_1,
    /// 8 bits and a scale.
    Q8_0,
    /// 4 bits for 256 values in 8 parts.
    Q4K,
    /// 5 bits in 8 parts.
    Q5K,
    /// 6 bits in 16 parts.
    Q6K,
}

impl Blocks {
    /// The kind of llama.cpp's number.
    pub(super) fn of(number: u32) -> Option<Blocks> {
        Some(match number {
            2 => Blocks::Q4_0,
            3 => Blocks::Q4_1,
            6 => Blocks::Q5_0,
            7 => Blocks::Q5_1,
            8 => Blocks::Q8_0,
            12 => Blocks::Q4K,
            13 => Blocks::Q5K,
            14 => Blocks::Q6K,
            _ => return None,
        })
    }

    /// Values of a block.
    pub const fn elements(self) -> usize {
        match self {
            Blocks::Q4_0 | Blocks::Q4_1 | Blocks::Q5_0 | Blocks::Q5_1 | Blocks::Q8_0 => 32,
            Blocks::Q4K | Blocks::Q5K | Blocks::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Blocks::Q4_0 => 18,
            Blocks::Q4_1 => 20,
            Blocks::Q5_0 => 22,
            Blocks::Q5_1 => 24,
            Blocks::Q8_0 => 34,
            Blocks::Q4K => 144,
            Blocks::Q5K => 176,
            Blocks::Q6K => 210,
        }
    }

    /// Unpacks whole blocks. Panics where there is another number of bytes than the values have.
    pub fn decode(self, bytes: &[u8], values: &mut [f32]) {
        assert_eq!(bytes.len() * self.elements(), values.len() * self.bytes(), "blocks of {self}");
        let blocks = bytes.chunks_exact(self.bytes()).zip(values.chunks_exact_mut(self.elements()));
        match self {
            Blocks::Q8_0 => blocks.for_each(|(b, out)| {
                let scale = half(b, 0);
                out.iter_mut().zip(&b[2..]).for_each(|(out, q)| *out = f32::from(*q as i8) * scale);
            }),
            Blocks::Q4_0 => blocks.for_each(|(b, out)| small(half(b, 0), None, &[], &b[2..], out)),
            Blocks::Q4_1 => blocks.for_each(|(b, out)| small(half(b, 0), Some(half(b, 2)), &[], &b[4..], out)),
            Blocks::Q5_0 => blocks.for_each(|(b, out)| small(half(b, 0), None, &b[2..6], &b[6..], out)),
            Blocks::Q5_1 => blocks.for_each(|(b, out)| small(half(b, 0), Some(half(b, 2)), &b[4..8], &b[8..], out)),
            Blocks::Q4K => blocks.for_each(|(b, out)| eight_parts(b, &[], &b[16..], out)),
            Blocks::Q5K => blocks.for_each(|(b, out)| eight_parts(b, &b[16..48], &b[48..], out)),
            Blocks::Q6K => blocks.for_each(|(b, out)| sixteen_parts(b, out)),
        }
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Blocks::Q4_0 => "q4_0",
            Blocks::Q4_1 => "q4_1",
            Blocks::Q5_0 => "q5_0",
            Blocks::Q5_1 => "q5_1",
            Blocks::Q8_0 => "q8_0",
            Blocks::Q4K => "q4_k",
            Blocks::Q5K => "q5_k",
            Blocks::Q6K => "q6_k",
        })
    }
}

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 32 values: the first 16 are the low halves of 16 bytes. `fifth` has a bit more for each value. Without an offset, values are
/// centred on zero.
fn small(scale: f32, offset: Option<f32>, fifth: &[u8], low: &[u8], out: &mut [f32]) {
    let centre = if offset.is_some() { 0 } else { 8 << u32::from(!fifth.is_empty()) };
    for (i, out) in out.iter_mut().enumerate() {
        let four = low[i % 16] >> (i / 16 * 4) & 15;
        let more = fifth.get(i / 8).map_or(0, |bits| bits >> (i % 8) & 1);
        *out = scale * f32::from((four | more << 4) as i8 - centre) + offset.unwrap_or(0.0);
    }
}

/// 256 values in 8 parts, each with a scale and an offset of 6 bits, which two halves scale in turn.
fn eight_parts(block: &[u8], fifth: &[u8], low: &[u8], out: &mut [f32]) {
    let (scale, offset, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        // Of the first four parts 6 bits lie in a byte each; of the others 4 bits, and 2 on top of those of the first.
        let [six_scale, six_offset] = match part {
            0..4 => [packed[part] & 63, packed[part + 4] & 63],
            _ => {
                let (both, tops) = (packed[part + 4], [packed[part - 4] >> 6, packed[part] >> 6]);
                [both & 15 | tops[0] << 4, both >> 4 | tops[1] << 4]
            }
        };
        let (scale, offset) = (scale * f32::from(six_scale), offset * f32::from(six_offset));
        let low = &low[part / 2 * 32..][..32];
        for (i, out) in out.iter_mut().enumerate() {
            let four = low[i] >> (part % 2 * 4) & 15;
            let more = fifth.get(i).map_or(0, |bits| bits >> part & 1);
            *out = scale * f32::from(four | more << 4) - offset;
        }
    }
}

/// 256 values of 6 bits in 16 parts, each with a scale of a byte, which one half scales in turn.
fn sixteen_parts(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, scale) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (i, out) in out.iter_mut().enumerate() {
        // Each half of the block: 64 bytes hold the low bits of 128 values, 32 bytes the high ones.
        let (of_two, i) = (i / 128, i % 128);
        let four = low[of_two * 64 + i % 64] >> (i / 64 * 4) & 15;
        let two = high[of_two * 32 + i % 32] >> (i / 32 * 2) & 3;
        let part = scale * f32::from(scales[of_two * 8 + i / 16] as i8);
        *out = part * f32::from((four | two << 4) as i8 - 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;
    use crate::weights::{WeightFile, decode_f32};

    /// The file was made with llama.cpp's own package.
    #[test]
    fn blocks_have_the_values_of_llama_cpp() {
        let file = WeightFile::embedded("blocks", include_bytes!("../../../tests/data/gguf/blocks.safetensors")).unwrap();
        for (number, name) in
            [(2, "Q4_0"), (3, "Q4_1"), (6, "Q5_0"), (7, "Q5_1"), (8, "Q8_0"), (12, "Q4_K"), (13, "Q5_K"), (14, "Q6_K")]
        {
            let kind = Blocks::of(number).unwrap();
            assert_eq!(kind.to_string(), name.to_lowercase());
            let bytes = file.read(&format!("{name}.values")).unwrap();
            let mut wanted = vec![0.0; bytes.len() / 4];
            decode_f32(DType::F32, &bytes, &mut wanted);
            let mut values = vec![f32::NAN; wanted.len()];
            kind.decode(&file.read(&format!("{name}.blocks")).unwrap(), &mut values);
            assert_eq!(values.len(), 1024);
            for (i, (value, wanted)) in values.iter().zip(&wanted).enumerate() {
                assert_eq!(value, wanted, "{name}: value {i}");
            }
        }
        assert!([0, 1, 10, 11, 24, 30, 40].iter().all(|number| Blocks::of(*number).is_none()));
    }
}
