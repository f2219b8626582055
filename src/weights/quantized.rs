//! Matrices for products of integers: rows of bf16 rounded to eight bits while they are read, with a scale and a bias for each.
//!
//! How it lies [`Quantized`] says: the bias is the module's, as bf16 has it. Whole rows make a part of it, so that nothing is read
//! twice. The integers are those that [`QuantizeRows`](crate::ops::QuantizeRows) gives.

use pulp::Arch;

use crate::ops::{Quantized, round};
use crate::tensor::DType;

/// The module's bias, for which `weight` is the name of its weight.
pub(super) fn bias_of(weight: &str) -> Option<String> {
    Some(format!("{}.bias", weight.strip_suffix(".weight")?))
}

/// Rounds some rows of little-endian bf16 to integers, and writes their scales and biases beside each other.
pub(super) fn round_rows(read: &[u8], cols: usize, integers: &mut [u8], biases: &[f32], pairs: &mut [u8]) {
    Arch::new().dispatch(|| round_here(read, cols, integers, biases, pairs));
}

#[inline(always)]
fn round_here(read: &[u8], cols: usize, integers: &mut [u8], biases: &[f32], pairs: &mut [u8]) {
    let rows = read.as_chunks::<2>().0.chunks_exact(cols).zip(integers.chunks_exact_mut(cols));
    for (((row, integers), pair), &bias) in rows.zip(pairs.as_chunks_mut::<{ Quantized::PAIR }>().0).zip(biases) {
        let scale = round_row(row, integers);
        pair[..4].copy_from_slice(&scale.to_le_bytes());
        pair[4..].copy_from_slice(&round(DType::BF16, bias).to_le_bytes());
    }
}

/// Little-endian bf16 to integers; gives what these are multiples of.
#[inline(always)]
fn round_row(row: &[[u8; 2]], integers: &mut [u8]) -> f32 {
    // As numbers, magnitudes are in the order of their bits, with NaN above all.
    let most = row.iter().fold(0, |most: u16, v| most.max(u16::from_le_bytes(*v) & 0x7fff));
    let most = f32::from_bits(u32::from(most) << 16);
    let factor = 127.0 / most;
    if !factor.is_finite() || factor == 0.0 {
        integers.fill(0);
        return most / 127.0;
    }
    for (integer, v) in integers.iter_mut().zip(row) {
        let v = f32::from_bits(u32::from(u16::from_le_bytes(*v)) << 16) * factor;
        // Beside 1.5·2²³ an f32 has no room for fractions, and whole numbers are its lowest bits; the sum is rounded to even.
        *integer = (v + 12_582_912.0).to_bits() as u8;
    }
    most / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Op, Operand, Output, QuantizeRows, Values, WeightOrder};
    use crate::tensor::{Component, Spec};
    use crate::weights::{Result, WeightForm, WeightKey, WeightSource, encode_f32};
    use std::collections::HashMap;

    /// Weights in memory.
    struct Given(HashMap<&'static str, (Spec, Vec<u8>)>);

    impl WeightSource for Given {
        fn spec(&self, _: Component, name: &str) -> Option<Spec> {
            self.0.get(name).map(|(spec, _)| spec.clone())
        }

        fn read_at(&self, _: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
            bytes.copy_from_slice(&self.0[name].1[offset..][..bytes.len()]);
            Ok(())
        }
    }

    fn stored(spec: Spec, values: &[f32]) -> (Spec, Vec<u8>) {
        let mut bytes = vec![0; spec.bytes()];
        encode_f32(spec.dtype, values, &mut bytes);
        (spec, bytes)
    }

    /// Values of many magnitudes, a row of zeros, one of subnormal numbers, one with a NaN and one with an infinity.
    fn values(rows: usize, cols: usize) -> Vec<f32> {
        let of = |i: usize| {
            let (row, at) = (i / cols, (i * 2_654_435_761) % 8191);
            match row {
                1 => 0.0,
                2 => f32::from_bits((at as u32) << 16 & 0x007f_0000),
                3 if i % cols == 5 => f32::NAN,
                4 if i % cols == 7 => f32::NEG_INFINITY,
                _ => (at as f32 - 4095.0) * 2f32.powi(row as i32 % 30 - 15),
            }
        };
        (0..rows * cols).map(of).collect()
    }

    fn key() -> WeightKey {
        let form = WeightForm { dtype: DType::S8, order: WeightOrder::AsStored };
        WeightKey { component: Component::Dit, name: "m.weight".into(), form }
    }

    #[test]
    fn rows_are_rounded_as_activations_are_whatever_they_are_stored_as() {
        // More than two parts.
        let (rows, cols) = (600, 1000);
        let (w, b): (Vec<f32>, Vec<f32>) = (values(rows, cols), (0..rows).map(|row| row as f32 * 0.37).collect());
        for dtype in [DType::BF16, DType::F32] {
            let weight = stored(Spec::new(dtype, [rows, cols]), &w);
            let weights = Given([("m.weight", weight), ("m.bias", stored(Spec::new(dtype, [rows]), &b))].into());
            let layout = key().quantized(&weights).unwrap();
            let mut bytes = vec![0xa5; layout.bytes()];
            key().fill(&weights, 0, &mut bytes).unwrap();

            let rounded: Vec<f32> = w.iter().map(|&v| round(DType::BF16, v)).collect();
            let spec = Spec::new(DType::BF16, [rows, cols]);
            let mut expected: Vec<_> =
                QuantizeRows.infer(std::slice::from_ref(&spec)).unwrap().into_iter().map(Output::zeros).collect();
            QuantizeRows.reference(&[Operand { spec, values: Values::F32(&rounded) }], &mut expected);
            let integers: Vec<f32> = bytes[..rows * cols].iter().map(|&b| f32::from(b as i8)).collect();
            assert!(integers == expected[0].f32(), "{dtype}");
            for (row, pair) in bytes[layout.pairs(0..rows)].as_chunks::<8>().0.iter().enumerate() {
                let [scale, bias] = [0, 4].map(|at| f32::from_le_bytes(pair[at..at + 4].try_into().unwrap()));
                assert_eq!(scale.to_bits(), expected[1].f32()[row].to_bits(), "{dtype}: scale of row {row}");
                assert_eq!(bias, round(DType::BF16, b[row]));
            }

            // Parts of whole rows are those of the whole.
            for part in [3..4, 7..rows - 1] {
                let mut some = vec![0xa5; part.len() * (cols + 8)];
                key().fill(&weights, part.start * cols, &mut some).unwrap();
                let (integers, pairs) = some.split_at(part.len() * cols);
                assert!(*integers == bytes[part.start * cols..part.end * cols] && *pairs == bytes[layout.pairs(part)]);
            }
        }
    }

    #[test]
    fn a_module_without_bias_has_zeros_and_what_has_no_rows_is_refused() {
        let weights = Given([("m.weight", stored(Spec::new(DType::BF16, [2, 2]), &[1.0, -1.0, 2.0, 0.0]))].into());
        let mut bytes = vec![0; 20];
        key().fill(&weights, 0, &mut bytes).unwrap();
        assert_eq!(bytes[..4].iter().map(|&b| b as i8).collect::<Vec<_>>(), [127, -127, 127, 0]);
        assert_eq!((&bytes[8..12], &bytes[16..20]), (&[0; 4][..], &[0; 4][..]));
        let flat = Given([("m.weight", stored(Spec::new(DType::BF16, [4]), &[0.0; 4]))].into());
        let text = key().fill(&flat, 0, &mut bytes).unwrap_err().to_string();
        assert_eq!(text, "m.weight is bf16[4], where a matrix is needed");
    }
}
