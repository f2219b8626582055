//! The form in which a device wants a weight, and the bytes of any part of it in that form.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::decode::{decode_f32, encode_f32};
use super::{ModelError, Result, WeightSource, quantized};
use crate::ops::{Quantized, WeightOrder};
use crate::tensor::{Component, DType, Spec};

/// Elements that one task reads and widens; they stay in a core's cache in between.
const CHUNK: usize = 1 << 15;
/// The same of rows that are rounded to eight bits.
const ROUNDED: usize = 1 << 18;

/// What a device's copy of a weight is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightForm {
    /// Element type; s8: integers with a scale and a bias for each row, as [`Quantized`] says.
    pub dtype: DType,
    /// Order of the elements.
    pub order: WeightOrder,
}

/// A weight in a form: what a device's copy of it is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightKey {
    /// The part of the model.
    pub component: Component,
    /// Canonical name.
    pub name: Arc<str>,
    /// Type and order on the device.
    pub form: WeightForm,
}

impl WeightKey {
    /// Writes the little-endian bytes of as many elements as `bytes` holds, from element `first` of this form on; of s8, of whole rows,
    /// with what is beside each behind them all.
    ///
    /// # Errors
    /// No such weight, values that are no floats, or what reading it reports.
    pub fn fill(&self, weights: &dyn WeightSource, first: usize, bytes: &mut [u8]) -> Result<()> {
        let WeightKey { component, name, form } = self;
        if form.dtype == DType::S8 {
            return self.fill_rounded(weights, first, bytes);
        }
        let stored = spec_of(weights, *component, name)?;
        let size = form.dtype.bytes();
        let values = match form.order {
            WeightOrder::AsStored if stored.dtype == form.dtype => {
                return weights.read_at(*component, name, first * size, bytes);
            }
            WeightOrder::AsStored => {
                let mut values = vec![0.0; bytes.len() / size];
                read_f32(weights, *component, name, first, &mut values)?;
                values
            }
            WeightOrder::ChannelsLast => self.channels_last(weights, &stored, first..first + bytes.len() / size)?,
        };
        encode_f32(form.dtype, &values, bytes);
        Ok(())
    }

    /// How it lies, of s8.
    ///
    /// # Errors
    /// No such weight, or one that has no rows.
    pub fn quantized(&self, weights: &dyn WeightSource) -> Result<Quantized> {
        let stored = spec_of(weights, self.component, &self.name)?;
        match stored.shape.0[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok(Quantized { rows, cols }),
            _ => Err(ModelError::new(format!("{} is {stored}, where a matrix is needed", self.name))),
        }
    }

    /// Writes as many whole rows as `bytes` holds, from the one on that element `first` begins: integers, then pairs.
    fn fill_rounded(&self, weights: &dyn WeightSource, first: usize, bytes: &mut [u8]) -> Result<()> {
        let Quantized { cols, .. } = self.quantized(weights)?;
        let (first, rows) = (first / cols, bytes.len() / (cols + Quantized::PAIR));
        let (integers, pairs) = bytes.split_at_mut(rows * cols);
        let mut biases = vec![0.0; rows];
        if let Some(bias) = self.bias().filter(|bias| weights.spec(self.component, bias).is_some()) {
            read_f32(weights, self.component, &bias, first, &mut biases)?;
        }
        let as_bf16 = WeightKey { form: WeightForm { dtype: DType::BF16, ..self.form }, ..self.clone() };
        // What is computed in large blocks is read at once.
        let fitting = (ROUNDED / cols).clamp(1, rows.max(1));
        let step = if weights.is_computed(self.component, &self.name) { rows.max(1) } else { fitting };
        let mut read = vec![0; step * cols * 2];
        let parts = integers.chunks_mut(step * cols).zip(pairs.chunks_mut(step * Quantized::PAIR));
        for (part, (integers, pairs)) in parts.enumerate() {
            let read = &mut read[..integers.len() * 2];
            as_bf16.fill(weights, (first + part * step) * cols, read)?;
            quantized::round_rows(read, cols, integers, &biases[part * step..], pairs);
        }
        Ok(())
    }

    /// The other weight that it is made of, if there is one.
    pub fn bias(&self) -> Option<String> {
        if self.form.dtype == DType::S8 { quantized::bias_of(&self.name) } else { None }
    }

    /// Elements of a convolution's [O, K, K, C], which its file has as [O, C, K, K]; reads the filters that they are of.
    fn channels_last(&self, weights: &dyn WeightSource, stored: &Spec, elements: Range<usize>) -> Result<Vec<f32>> {
        let [_, c, height, width] = stored.shape.0[..] else {
            return Err(ModelError::new(format!("{} is {stored}, which is no convolution", self.name)));
        };
        let (taps, filter) = (height * width, c * height * width);
        if elements.is_empty() {
            return Ok(vec![]);
        }
        let filters = elements.start / filter..elements.end.div_ceil(filter);
        let mut values = vec![0.0; filters.len() * filter];
        read_f32(weights, self.component, &self.name, filters.start * filter, &mut values)?;
        let start = filters.start * filter;
        // Element i is that of filter i / filter, tap i / c % taps, channel i % c.
        let at = |i: usize| values[(i / filter * c + i % c) * taps + i / c % taps];
        Ok(elements.map(|i| at(i - start)).collect())
    }
}

/// The values of as many elements of a weight as `values` holds, from element `first` on, read and widened in parallel.
///
/// # Errors
/// No such weight, values that are no floats, or what reading it reports.
pub fn read_f32(weights: &dyn WeightSource, component: Component, name: &str, first: usize, values: &mut [f32]) -> Result<()> {
    let spec = spec_of(weights, component, name)?;
    let size = spec.dtype.bytes();
    if !spec.dtype.is_float() {
        return Err(ModelError::new(format!("{name} is {spec}, where floats are needed")));
    }
    let read = |bytes: &mut Vec<u8>, (chunk, values): (usize, &mut [f32])| {
        let bytes = &mut bytes[..values.len() * size];
        weights.read_at(component, name, (first + chunk * CHUNK) * size, bytes)?;
        decode_f32(spec.dtype, bytes, values);
        Ok(())
    };
    let most = values.len().min(CHUNK);
    let buffer = || vec![0; most * size];
    if weights.is_computed(component, name) {
        let mut bytes = vec![0; values.len() * size];
        weights.read_at(component, name, first * size, &mut bytes)?;
        decode_f32(spec.dtype, &bytes, values);
        return Ok(());
    }
    match values.len() <= CHUNK {
        true => read(&mut buffer(), (0, values)),
        false => values.par_chunks_mut(CHUNK).enumerate().try_for_each_init(buffer, read),
    }
}

pub(super) fn spec_of(weights: &dyn WeightSource, component: Component, name: &str) -> Result<Spec> {
    weights.spec(component, name).ok_or_else(|| ModelError::new(format!("the {component} weights lack {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    /// A weight whose every element is its place.
    struct Counting(Spec);

    impl WeightSource for Counting {
        fn spec(&self, _: Component, name: &str) -> Option<Spec> {
            (name == "w").then(|| self.0.clone())
        }

        fn read_at(&self, _: Component, _: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
            let values: Vec<f32> = (0..self.0.shape.elements()).map(|i| i as f32).collect();
            let mut all = vec![0; self.0.bytes()];
            encode_f32(self.0.dtype, &values, &mut all);
            bytes.copy_from_slice(&all[offset..offset + bytes.len()]);
            Ok(())
        }
    }

    fn key(dtype: DType, order: WeightOrder) -> WeightKey {
        WeightKey { component: Component::Vae, name: "w".into(), form: WeightForm { dtype, order } }
    }

    fn filled(key: &WeightKey, weights: &Counting, elements: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0xa5; elements.len() * key.form.dtype.bytes()];
        key.fill(weights, elements.start, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_weight_takes_the_type_of_its_form() {
        let bytes =
            |stored, wanted| filled(&key(wanted, WeightOrder::AsStored), &Counting(Spec::new(stored, [3, 100])), 250..300);
        let of = |value: fn(f32) -> Vec<u8>| (250..300).flat_map(|i| value(i as f32)).collect::<Vec<u8>>();
        let exact = of(|v| v.to_le_bytes().to_vec());
        let rounded = of(|v| bf16::from_f32(v).to_le_bytes().to_vec());
        let widened = of(|v| bf16::from_f32(v).to_f32().to_le_bytes().to_vec());
        assert_eq!(bytes(DType::F32, DType::F32), exact);
        assert_eq!(bytes(DType::F16, DType::F32), exact);
        assert_eq!(bytes(DType::F32, DType::BF16), rounded);
        assert_eq!(bytes(DType::BF16, DType::BF16), rounded);
        assert_eq!(bytes(DType::BF16, DType::F32), widened);
        assert_eq!(bytes(DType::F32, DType::F16), of(|v| f16::from_f32(v).to_le_bytes().to_vec()));
    }

    #[test]
    fn a_convolution_is_turned_to_channels_last() {
        let (o, c, k) = (4, 3, 3);
        let weights = Counting(Spec::new(DType::F32, [o, c, k, k]));
        let key = key(DType::F32, WeightOrder::ChannelsLast);
        let mut wanted = Vec::new();
        for filter in 0..o {
            for (y, x) in (0..k * k).map(|tap| (tap / k, tap % k)) {
                wanted.extend((0..c).flat_map(|channel| ((((filter * c + channel) * k + y) * k + x) as f32).to_le_bytes()));
            }
        }
        assert_eq!(filled(&key, &weights, 0..o * c * k * k), wanted);
        let flat = Counting(Spec::new(DType::F32, [4, 27]));
        assert!(key.fill(&flat, 0, &mut [0; 4]).unwrap_err().to_string().contains("w is f32[4, 27], which is no convolution"));
    }

    #[test]
    fn large_weights_are_read_in_chunks() {
        let weights = Counting(Spec::new(DType::F32, [2, CHUNK + 3]));
        let mut values = vec![0.0; CHUNK + 5];
        read_f32(&weights, Component::Vae, "w", CHUNK - 2, &mut values).unwrap();
        assert!(values.iter().enumerate().all(|(i, &v)| v == (CHUNK - 2 + i) as f32));
    }

    #[test]
    fn what_cannot_be_filled_is_told() {
        let weights = Counting(Spec::new(DType::F32, [4]));
        let absent = WeightKey { name: "v".into(), ..key(DType::F32, WeightOrder::AsStored) };
        let text = absent.fill(&weights, 0, &mut [0; 4]).unwrap_err().to_string();
        assert_eq!(text, "the autoencoder weights lack v");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]
        #[test]
        fn parts_are_those_of_the_whole(
            start in 0..=5 * 2 * 9usize,
            end in 0..=5 * 2 * 9usize,
            last in any::<bool>(),
            stored in prop_oneof![Just(DType::F32), Just(DType::BF16), Just(DType::F8E4M3)],
            wanted in prop_oneof![Just(DType::F32), Just(DType::BF16)],
        ) {
            let order = if last { WeightOrder::ChannelsLast } else { WeightOrder::AsStored };
            let (key, weights) = (key(wanted, order), Counting(Spec::new(stored, [5, 2, 3, 3])));
            let (start, end) = (start.min(end), start.max(end));
            let size = wanted.bytes();
            prop_assert_eq!(filled(&key, &weights, start..end), &filled(&key, &weights, 0..90)[start * size..end * size]);
        }
    }
}
