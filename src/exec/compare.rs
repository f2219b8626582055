//! The device against the reference, node by node: both compute each node from the operands that lie on the device, so the
//! first node that differs is the one at fault.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};

use super::{Cuda, Executor};
use crate::graph::BodyId;
use crate::ops::{HostValues, Operand, Output, cases, round};

/// Largest normalised mean square error of a node: some roundings to bf16, or products of TF32.
const BOUND: f64 = 2e-5;

/// How far values are from the expected ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// `Σ(a − b)² / Σb²`; infinite if a value is not finite where the expected one is, or the other way round.
    pub nmse: f64,
    /// The element that is farthest off.
    pub at: usize,
    /// Its value.
    pub got: f32,
    /// What it should be.
    pub expected: f32,
}

impl Difference {
    /// Compares as many values of one kind.
    ///
    /// # Errors
    /// Another kind or number of values.
    pub fn of(got: &HostValues, expected: &HostValues) -> Result<Difference> {
        let widened = |buffer: &HostValues| match buffer {
            HostValues::F32(v) => v.clone(),
            HostValues::I32(v) => v.iter().map(|&v| v as f32).collect(),
            HostValues::U8(v) => v.iter().map(|&v| v.into()).collect(),
        };
        let one_kind = std::mem::discriminant(got) == std::mem::discriminant(expected);
        let (got, expected) = (widened(got), widened(expected));
        ensure!(
            one_kind && got.len() == expected.len() && !got.is_empty(),
            "the results differ in kind or number: {} and {} values",
            got.len(),
            expected.len()
        );
        let apart = |(&a, &b): (&f32, &f32)| match a == b || (a.is_nan() && b.is_nan()) {
            true => 0.0,
            false if a.is_finite() && b.is_finite() => (a as f64 - b as f64).powi(2),
            false => f64::INFINITY,
        };
        let (mut sum, mut norm, mut worst) = (0.0, 0.0, (0, 0.0));
        for (at, pair) in got.iter().zip(&expected).enumerate() {
            let square = apart(pair);
            (sum, norm) = (sum + square, norm + if pair.1.is_finite() { (*pair.1 as f64).powi(2) } else { 0.0 });
            worst = if square > worst.1 { (at, square) } else { worst };
        }
        let nmse = if sum == 0.0 { 0.0 } else { sum / norm };
        Ok(Difference { nmse, at: worst.0, got: got[worst.0], expected: expected[worst.0] })
    }

    /// Whether it is within a bound; of 0: whether the values are equal.
    pub fn within(&self, bound: f64) -> bool {
        self.nmse <= bound // never true of NaN
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Difference { nmse, at, got, expected } = self;
        write!(f, "NMSE {nmse:.2e}, farthest at {at}: {got:e} instead of {expected:e}")
    }
}

/// An output of a node, compared.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The node.
    pub node: String,
    /// Its op and kernel.
    pub what: String,
    /// How far off it is.
    pub difference: Difference,
}

/// A body, compared.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every output that is within its bound.
    pub outputs: Vec<Compared>,
    /// Outputs that are not, in words.
    pub differing: Vec<String>,
}

impl fmt::Display for Report {
    /// The farthest output of each kind of node.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut farthest: BTreeMap<&str, (usize, &Compared)> = BTreeMap::new();
        for output in &self.outputs {
            let (count, known) = farthest.entry(&output.what).or_insert((0, output));
            *count += 1;
            *known = if output.difference.nmse > known.difference.nmse { output } else { known };
        }
        for (what, (count, output)) in farthest {
            writeln!(f, "{count:>5} {what}: {}, {}", output.node, output.difference)?;
        }
        self.differing.iter().try_for_each(|text| writeln!(f, "{text}"))
    }
}

/// Runs a body, which was announced and whose inputs are there, node by node on the device, and computes each node by the
/// reference from the device's operands. Ops whose cases ask for equality must be equal, others within a bound.
///
/// Stops at the first node that differs, with its op, kernel, error, and the farthest element's values, unless `go_on`.
///
/// # Errors
/// What stops a run.
pub fn compare(cuda: &mut Cuda, body: BodyId, go_on: bool) -> Result<Report> {
    let plan = cuda.shared_plan();
    let mut bounds: BTreeMap<&str, f64> = BTreeMap::new();
    for case in cases() {
        let bound = bounds.entry(case.op.kind()).or_insert(0.0);
        *bound = if case.bound > 0.0 { BOUND } else { *bound };
    }
    let mut report = Report::default();
    for at in plan.graph.nodes_of(body) {
        let node = &plan.graph.nodes[at];
        let what = format!("{} ({})", node.op.kind(), plan.kernels[at]);
        let operands: Vec<HostValues> = node.inputs.iter().map(|&id| cuda.read(id)).collect::<Result<_>>()?;
        let spec = |&id: &_| plan.graph.tensor(id).spec.clone();
        let operands: Vec<Operand> =
            node.inputs.iter().zip(&operands).map(|(id, buffer)| Operand { spec: spec(id), values: buffer.values() }).collect();
        let mut expected: Vec<Output> = node.outputs.iter().map(|id| Output::zeros(spec(id))).collect();
        node.op.reference(&operands, &mut expected);
        cuda.run_node(at)?;
        for (&id, expected) in node.outputs.iter().zip(&expected) {
            let difference = Difference::of(&cuda.read(id)?, &rounded(expected))?;
            let bound = bounds.get(node.op.kind()).copied().unwrap_or(BOUND);
            let name = &node.name;
            if difference.within(bound) {
                report.outputs.push(Compared { node: name.clone(), what: what.clone(), difference });
            } else {
                report.differing.push(format!("{name} differs: {what}, {}: {difference}, bound {bound:e}", expected.spec));
            }
        }
        if !(go_on || report.differing.is_empty()) {
            break;
        }
    }
    Ok(report)
}

/// An output as a tensor of its type holds it.
fn rounded(output: &Output) -> HostValues {
    match &output.values {
        HostValues::F32(values) => HostValues::F32(values.iter().map(|&v| round(output.spec.dtype, v)).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(got: &[f32], expected: &[f32]) -> Difference {
        Difference::of(&HostValues::F32(got.to_vec()), &HostValues::F32(expected.to_vec())).unwrap()
    }

    #[test]
    fn the_farthest_element_is_shown() {
        let difference = of(&[1.0, 2.5, 2.0], &[1.0, 2.0, 2.1]);
        assert_eq!((difference.at, difference.got, difference.expected), (1, 2.5, 2.0));
        assert!((difference.nmse - 0.26 / 9.41).abs() < 1e-6);
        assert!(difference.within(0.03) && !difference.within(0.02));
        assert!(difference.to_string().contains("at 1: 2.5e0 instead of 2e0"), "{difference}");
    }

    #[test]
    fn what_is_not_finite_must_be_the_same() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert!(of(&[nan, inf, 1.0], &[nan, inf, 1.0]).within(0.0));
        for (got, expected) in [(nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, inf), (inf, -inf), (nan, inf)] {
            assert!(!of(&[got, 1.0], &[expected, 1.0]).within(1e300), "{got} for {expected}");
        }
    }

    #[test]
    fn zeros_must_be_zeros_and_kinds_the_same() {
        assert!(of(&[0.0], &[-0.0]).within(0.0) && !of(&[1e-20], &[0.0]).within(1e300));
        assert!(Difference::of(&HostValues::U8(vec![1]), &HostValues::I32(vec![1])).is_err());
        assert!(Difference::of(&HostValues::U8(vec![]), &HostValues::U8(vec![])).is_err());
    }
}
