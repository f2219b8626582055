//! What tests, parity runs and benches share: an op with operands of some size and the bound on a kernel's error.

use super::{HostValues, How, Kernel, Op, ProductConfig, round};
use crate::tensor::{DType, Spec};

/// A worked example of an op: operands' specs, how to fill them, and how closely a kernel must meet the reference.
#[derive(Debug)]
pub struct Case {
    /// The op with its attributes.
    pub op: Box<dyn Op>,
    /// Operands.
    pub inputs: Vec<Spec>,
    /// Type of each output (shapes follow from `infer`).
    pub outputs: Vec<DType>,
    /// How integer operands are filled, as the exclusive upper bound of their values.
    pub index_bound: usize,
    /// Every how many-th float is not finite.
    pub broken: Option<usize>,
    /// Largest normalised mean square error of a kernel against the reference.
    pub bound: f64,
    /// Why that bound.
    pub reason: &'static str,
}

/// bf16 keeps 8 bits: one rounding errs by at most 2^-9 of the value, in mean square by about (2^-9)²/3.
pub(super) const ONE_ROUNDING: f64 = 1.3e-6;

impl Case {
    pub(super) fn new(op: impl Op + 'static, inputs: Vec<Spec>, output: DType) -> Case {
        let reason = "one rounding to bf16 and another summation order";
        Case { op: Box::new(op), inputs, outputs: vec![output], index_bound: 0, broken: None, bound: 4.0 * ONE_ROUNDING, reason }
    }

    /// The bound for a kernel. cuBLASLt's products of rows at multiples of 8 bytes round once more before they add the bias:
    /// without one they are within 2.3e-9 of the reference, with one within 8.8e-6.
    pub fn bound_of(&self, kernel: &Kernel) -> f64 {
        let twice = matches!(kernel.how, How::Product(ProductConfig { bias: true, alignment: 8, .. }));
        if twice { 2.0 * self.bound } else { self.bound }
    }

    /// Filled operands: floats from [`noise`] rounded to their type, indices below the case's bound.
    pub fn operands(&self) -> Vec<HostValues> {
        let filled = self.inputs.iter().enumerate().map(|(i, spec)| {
            let values = noise(spec.shape.elements(), 7 + i as u64);
            let index = |v: f32| ((v + 1.0) / 2.0 * self.index_bound as f32) as usize;
            match spec.dtype {
                DType::I32 => HostValues::I32(values.into_iter().map(|v| index(v) as i32).collect()),
                DType::U8 => HostValues::U8(values.into_iter().map(|v| index(v) as u8).collect()),
                dtype => {
                    let mut values: Vec<f32> = values.into_iter().map(|v| round(dtype, v)).collect();
                    if let Some(every) = self.broken {
                        let faults = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().cycle();
                        values.iter_mut().step_by(every).zip(faults).for_each(|(v, fault)| *v = fault);
                    }
                    HostValues::F32(values)
                }
            }
        });
        filled.collect()
    }
}

/// `n` values in [-1, 1) that depend on `seed` alone.
pub(super) fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
