//! What tests, parity runs and the op laboratory share: an op with operands of some size and the bound on a kernel's error.

use std::sync::Arc;

use anyhow::Result;

use super::{Arch, HostValues, How, Kernel, Op, Operand, Output, ProductConfig, round};
use crate::tensor::{DType, Spec};

/// A worked example of an op: operands' specs, how to fill them, and how closely a kernel must meet the reference.
#[derive(Debug)]
pub struct Case {
    /// The op with its attributes.
    pub op: Arc<dyn Op>,
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
    /// The least architecture that has a kernel.
    pub least: Arch,
    /// Of a released edit's size, for timing on a GPU: its reference takes up to some seconds of 16 cores.
    pub timed: bool,
}

/// bf16 keeps 8 bits: one rounding errs by at most 2^-9 of the value, in mean square by about (2^-9)²/3.
pub(super) const ONE_ROUNDING: f64 = 1.3e-6;

impl Case {
    pub(super) fn new(op: impl Op + 'static, inputs: Vec<Spec>, output: DType) -> Case {
        let reason = "one rounding to bf16 and another summation order";
        Case {
            op: Arc::new(op),
            inputs,
            outputs: vec![output],
            index_bound: 0,
            broken: None,
            bound: 4.0 * ONE_ROUNDING,
            reason,
            least: Arch(80),
            timed: false,
        }
    }

    /// The same, of a released edit's size.
    pub(super) fn timed(self) -> Case {
        Case { timed: true, ..self }
    }

    /// Specs of the results.
    ///
    /// # Errors
    /// What about the operands does not fit.
    pub fn results(&self) -> Result<Vec<Spec>> {
        let mut specs = self.op.infer(&self.inputs)?;
        specs.iter_mut().zip(&self.outputs).for_each(|(spec, &dtype)| spec.dtype = dtype);
        Ok(specs)
    }

    /// The results by the reference, rounded to their types; `operands`: of [`Case::operands`].
    ///
    /// # Errors
    /// As for [`Case::results`].
    pub fn expected(&self, operands: &[HostValues]) -> Result<Vec<HostValues>> {
        let mut outputs: Vec<Output> = self.results()?.into_iter().map(Output::zeros).collect();
        let inputs = self.inputs.iter().zip(operands).map(|(spec, v)| Operand { spec: spec.clone(), values: v.values() });
        self.op.reference(&inputs.collect::<Vec<_>>(), &mut outputs);
        Ok(outputs.into_iter().map(Output::rounded).collect())
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
                DType::S8 => HostValues::F32(values.into_iter().map(|v| (127.0 * v).round()).collect()),
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
