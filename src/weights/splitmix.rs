//! Synthetic weights, `splitmix-v1`: any element from its tensor's name, shape and a seed.
//!
//! ```text
//! base  = fnv1a64(name.as_bytes()) ^ seed * G            (modulo 2^64)
//! z     = splitmix64 finaliser of base + (i + 1) * G, for element i in row-major order
//! v     = 2 * (z >> 40) * 2^-24 - 1           (exact in f32, in [-1, 1))
//! value = f32(mean + f32(amp * v))            (then rounded to nearest even in the stored dtype)
//! ```
//!
//! Mean and amp keep activations of a deep stack near 1: uniform of variance 1 / fan_in for matrices.

use half::f16;
use rayon::prelude::*;

use super::decode::{f32_to_e4m3, f32_to_e5m2};
use crate::hash::fnv1a64;
use crate::tensor::{DType, Shape};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Elements a task of the parallel fill handles.
const CHUNK: usize = 1 << 15;

/// The values of one tensor, as a function of the element's place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Splitmix {
    base: u64,
    mean: f32,
    amp: f32,
}

impl Splitmix {
    /// The values of the tensor that a checkpoint calls `name`; released shapes use seed 0.
    pub fn new(name: &str, shape: &Shape, seed: u64) -> Splitmix {
        let (mean, amp) = mean_amp(name, shape);
        Splitmix { base: fnv1a64(name.as_bytes()) ^ seed.wrapping_mul(GOLDEN), mean, amp }
    }

    /// The generator's state before element `i`; each element advances it by `GOLDEN`.
    fn state(&self, i: u64) -> u64 {
        self.base.wrapping_add(i.wrapping_mul(GOLDEN))
    }

    /// The element whose generator has come to `state`, before rounding to the stored dtype.
    #[inline(always)]
    fn value(&self, state: u64) -> f32 {
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // 24 bits, so the signed conversion, the cheap one, is exact.
        let u = (z >> 40) as i32 as f32 * (1.0 / 16_777_216.0);
        let v = 2.0 * u - 1.0;
        self.mean + self.amp * v
    }

    /// Writes the elements from `first` on, as many as `out` holds, little-endian, rounded to nearest even.
    ///
    /// Panics when `dtype` is not a float or `out` is not a multiple of its size.
    pub fn fill(&self, first: u64, dtype: DType, out: &mut [u8]) {
        assert_eq!(out.len() % dtype.bytes(), 0, "fill of {} bytes with {dtype}", out.len());
        out.par_chunks_mut(CHUNK * dtype.bytes()).enumerate().for_each(|(chunk, out)| {
            let first = first + (chunk * CHUNK) as u64;
            match dtype {
                DType::F32 => self.store(first, out, f32::to_le_bytes),
                DType::BF16 => self.store(first, out, |v| bf16_bits(v).to_le_bytes()),
                DType::F16 => self.store(first, out, |v| f16::from_f32(v).to_le_bytes()),
                DType::F8E4M3 => self.store(first, out, |v| [f32_to_e4m3(v)]),
                DType::F8E5M2 => self.store(first, out, |v| [f32_to_e5m2(v)]),
                DType::I32 | DType::U8 | DType::S8 => panic!("synthetic weights are floats, not {dtype}"),
            }
        });
    }

    fn store<const N: usize>(&self, first: u64, out: &mut [u8], stored: impl Fn(f32) -> [u8; N]) {
        let mut state = self.state(first);
        for element in out.as_chunks_mut::<N>().0 {
            state = state.wrapping_add(GOLDEN);
            *element = stored(self.value(state));
        }
    }
}

/// Fills `out`, the whole tensor, little-endian; any seed gives the same bytes on every machine.
///
/// Panics when `dtype` is not a float or `out` does not have the tensor's size.
pub fn fill(name: &str, shape: &Shape, dtype: DType, seed: u64, out: &mut [u8]) {
    assert_eq!(out.len(), shape.elements() * dtype.bytes(), "fill of {name} {dtype}{shape}");
    Splitmix::new(name, shape, seed).fill(0, dtype, out);
}

/// Nearest-even bf16 of a value that is finite, as all synthetic ones are.
#[inline(always)]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Centre and half width of the tensor's uniform distribution; the first rule that matches.
fn mean_amp(name: &str, shape: &Shape) -> (f32, f32) {
    let rank = shape.0.len();
    if name.ends_with("scale_factor") {
        (-0.91, 0.0)
    } else if name.contains("embed_tokens") || name.contains("lm_head") {
        (0.0, (3f64.sqrt() * 0.02) as f32)
    } else if rank == 1 && name.ends_with("bias") {
        (0.0, 0.02)
    } else if rank <= 1 {
        (1.0, 0.1)
    } else {
        let fan_in: f64 = shape.0[1..].iter().map(|&d| d as f64).product();
        (0.0, (3.0 / fan_in).sqrt() as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (element, its f32 bits, its bf16 bits)
    type Vector = (usize, u32, u16);

    // Made by another implementation, in NumPy.
    #[rustfmt::skip]
    const VECTORS: &[(&str, &[usize], u64, &[Vector])] = &[
        ("connector.scale_factor", &[1], 0, &[(0, 0xbf68f5c3, 0xbf69)]),
        ("model.embed_tokens.weight", &[8, 16], 0, &[(0, 0xbc1219b3, 0xbc12), (1, 0xbc4c4ce7, 0xbc4c), (2, 0x3a7148d0, 0x3a71), (127, 0xbac5a822, 0xbac6)]),
        ("lm_head.weight", &[8, 16], 3, &[(0, 0xbb529f05, 0xbb53), (1, 0x3cfbc779, 0x3cfc), (2, 0x3c7ae7a6, 0x3c7b), (127, 0x3c5fe29a, 0x3c60)]),
        ("img_in.bias", &[16], 0, &[(0, 0xbc3c5621, 0xbc3c), (1, 0x3c5ef9a6, 0x3c5f), (2, 0xbc025330, 0xbc02), (15, 0xbb568c70, 0xbb57)]),
        ("double_blocks.0.img_attn.norm.key_norm.scale", &[16], 0, &[(0, 0x3f86db65, 0x3f87), (1, 0x3f6e1223, 0x3f6e), (2, 0x3f77a2f9, 0x3f78), (15, 0x3f83dd94, 0x3f84)]),
        ("img_in.weight", &[48, 64], 0, &[(0, 0x3e347641, 0x3e34), (1, 0xbe206bdd, 0xbe20), (2, 0x3d9ac6b1, 0x3d9b), (3071, 0xbd9f8a3b, 0xbda0)]),
        ("img_in.weight", &[48, 64], 7, &[(0, 0x3df38bc1, 0x3df4), (1, 0x3da89660, 0x3da9), (2, 0xbe5b2378, 0xbe5b), (3071, 0x3e10e177, 0x3e11)]),
        ("decoder.conv_in.weight", &[8, 4, 3, 3], 0, &[(0, 0x3dc8e342, 0x3dc9), (1, 0xbe408985, 0xbe41), (2, 0x3e76fe1f, 0x3e77), (287, 0xbd003f21, 0xbd00)]),
        ("x.bias", &[], 0, &[(0, 0x3f6a884a, 0x3f6b)]),
    ];

    // FNV-1a 64 of all bf16 bytes of a [301, 997] matrix, by the NumPy implementation.
    const MATRIX_DIGEST: u64 = 0xf030_42c0_112e_62be;

    #[test]
    fn values_equal_numpy() {
        for &(name, shape, seed, vectors) in VECTORS {
            let shape = Shape(shape.to_vec());
            let mut f32_bytes = vec![0; shape.elements() * 4];
            fill(name, &shape, DType::F32, seed, &mut f32_bytes);
            let mut bf16_bytes = vec![0; shape.elements() * 2];
            fill(name, &shape, DType::BF16, seed, &mut bf16_bytes);
            for &(i, f32_bits, bf16_bits) in vectors {
                assert_eq!(f32_bytes.as_chunks().0[i], f32_bits.to_le_bytes(), "{name}[{i}]");
                assert_eq!(bf16_bytes.as_chunks().0[i], bf16_bits.to_le_bytes(), "{name}[{i}]");
            }
        }
    }

    #[test]
    fn a_matrix_of_many_chunks_equals_numpy() {
        let shape = Shape::from([301, 997]);
        let mut bytes = vec![0; shape.elements() * 2];
        fill("single_blocks.3.linear1.weight", &shape, DType::BF16, 5, &mut bytes);
        assert_eq!(fnv1a64(&bytes), MATRIX_DIGEST);
    }

    #[test]
    fn a_part_equals_the_whole() {
        let shape = Shape::from([7, 11]);
        let values = Splitmix::new("txt_in.weight", &shape, 1);
        for dtype in [DType::F32, DType::F16, DType::F8E4M3, DType::F8E5M2] {
            let size = dtype.bytes();
            let mut whole = vec![0; 77 * size];
            values.fill(0, dtype, &mut whole);
            let mut part = vec![0; 20 * size];
            values.fill(31, dtype, &mut part);
            assert_eq!(part, whole[31 * size..51 * size], "{dtype}");
        }
    }
}
