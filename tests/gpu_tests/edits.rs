//! Whole edits of the tiny preset: against the CPU, against themselves, node by node.

use std::sync::Arc;

use step1x_edit::exec::{Executor, Reference, compare};
use step1x_edit::model::Version;
use step1x_edit::model::edit::Savings;
use step1x_edit::ops::Buffer;

use crate::common::relative_l2;
use crate::support::{Gpu, STEPS, TinyEdit, gpu};

/// Relative L2 distance of the device's bf16 to the CPU's: that which bf16 itself may have to float32 (golden tests).
const BOUND: f64 = 0.018;

/// Versions and savings, of which every saving and none.
fn edits(gpu: &Gpu) -> Vec<(String, TinyEdit)> {
    let of = |(version, savings, name): (Version, Savings, &str)| {
        (format!("{version}, {name}"), TinyEdit::new(gpu.target(), version, savings))
    };
    [
        (Version::V1_1, Savings::ALL, "all savings"),
        (Version::V1_1, Savings::NONE, "no savings"),
        (Version::V1_0, Savings::ALL, "all savings"),
    ]
    .map(of)
    .into()
}

#[test]
fn every_stage_is_as_near_to_the_cpu_as_bf16_allows() {
    let Some(gpu) = gpu() else { return };
    let mut far = Vec::new();
    for (what, edit) in edits(&gpu) {
        let weights = Arc::new(edit.weights());
        let mut exec = gpu.executor(edit.plan(), weights.clone());
        let ours = edit.run(&mut exec).unwrap_or_else(|e| panic!("{what}: {e:#}"));
        let expected = edit.run(&mut Reference::new(edit.plan(), &*weights).unwrap()).unwrap();
        for ((name, ours), (_, expected)) in ours.iter().zip(&expected) {
            let widened = |pixels: &[u8]| pixels.iter().map(|&p| f32::from(p)).collect::<Vec<f32>>();
            let distance = match (ours, expected) {
                (Buffer::F32(a), Buffer::F32(b)) => relative_l2(a, b),
                (Buffer::U8(a), Buffer::U8(b)) => relative_l2(&widened(a), &widened(b)),
                (a, b) => f64::from(u8::from(a != b)),
            };
            println!("{what}: {name}: {distance:.1e}");
            // A comparison that is never true of NaN.
            let near = distance <= BOUND;
            far.extend((!near).then(|| format!("{what}: {name} is {distance:.1e} away")));
        }
    }
    assert!(far.is_empty(), "bound {BOUND}:\n{}", far.join("\n"));
}

#[test]
fn captured_uncaptured_and_repeated_runs_give_the_same_bytes() {
    let Some(gpu) = gpu() else { return };
    for (what, edit) in edits(&gpu) {
        let weights = Arc::new(edit.weights());
        let mut captured = gpu.executor(edit.plan(), weights.clone());
        let first = edit.run(&mut captured).unwrap();
        let latents = |(name, values): &(String, Buffer)| match values {
            Buffer::F32(v) => assert!(v.iter().all(|v| v.is_finite()), "{what}: {name}"),
            _ => assert!(!name.contains("fault") || *values == Buffer::I32(vec![0]), "{what}: {name} is {values:?}"),
        };
        first.iter().for_each(latents);
        let same = |how: &str, again: Vec<(String, Buffer)>| {
            for ((name, a), (_, b)) in first.iter().zip(&again) {
                assert!(a == b, "{what}: {name} is another in a run {how}");
            }
        };
        same("of the same executor", edit.run(&mut captured).unwrap());
        drop(captured);
        same("of a new executor", edit.run(&mut gpu.executor(edit.plan(), weights.clone())).unwrap());
        same("without capture", edit.run(&mut gpu.executor(edit.plan(), weights).without_capture()).unwrap());
    }
}

#[test]
fn every_node_is_near_the_reference_on_its_own_operands() {
    let Some(gpu) = gpu() else { return };
    let mut faults = Vec::new();
    for (what, edit) in edits(&gpu) {
        let mut exec = gpu.executor(edit.plan(), Arc::new(edit.weights()));
        edit.write_inputs(&mut exec).unwrap();
        exec.begin(&edit.stages()).unwrap();
        for stage in edit.stages() {
            let repeat = if stage == "step" { STEPS.min(2) } else { 1 };
            for _ in 0..repeat {
                let report = compare(&mut exec, stage, true).unwrap_or_else(|e| panic!("{what}: {stage}: {e:#}"));
                println!("{what}: {stage}\n{report}");
                faults.extend(report.differing.iter().map(|text| format!("{what}: {stage}: {text}")));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
