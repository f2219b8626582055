//! What all ops share: every case infers, costs, selects and runs; views and branch rows count right.

pub(super) use super::case::noise;
use super::*;

/// The single float result of an op on float operands.
pub(super) fn run_f32(op: &dyn Op, operands: &[(Spec, &[f32])]) -> Vec<f32> {
    let specs: Vec<Spec> = operands.iter().map(|(spec, _)| spec.clone()).collect();
    let mut outputs: Vec<_> = op.infer(&specs).expect("operands fit").into_iter().map(Output::zeros).collect();
    let inputs: Vec<_> = operands.iter().map(|(spec, v)| Operand { spec: spec.clone(), values: Values::F32(v) }).collect();
    op.reference(&inputs, &mut outputs);
    outputs[0].f32().to_vec()
}

#[test]
fn every_case_infers_costs_selects_and_runs_to_finite_values() {
    for case in cases() {
        let what = format!("{} {:?} on {:?}", case.op.kind(), case.op, case.inputs);
        let specs = case.results().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(specs.len(), case.outputs.len(), "{what}");
        assert!(case.op.cost(&case.inputs, &specs).bytes > 0, "{what}");
        let views = |specs: &[Spec]| specs.iter().map(View::dense).collect::<Vec<_>>();
        case.op.select(Arch(90), &views(&case.inputs), &views(&specs)).unwrap_or_else(|e| panic!("{what}: {}", e.reason));
        let refused = case.op.select(Arch(75), &views(&case.inputs), &views(&specs));
        assert!(refused.is_err_and(|e| e.reason.contains("sm_75")), "{what} must name the architecture it cannot use");
        assert!(!case.reason.is_empty() && case.bound >= 0.0);
        if case.timed {
            continue; // its reference takes long
        }

        let buffers = case.operands();
        let operands: Vec<Operand> = buffers
            .iter()
            .zip(&case.inputs)
            .map(|(buffer, spec)| Operand { spec: spec.clone(), values: buffer.values() })
            .collect();
        let mut outputs: Vec<Output> = specs.into_iter().map(Output::zeros).collect();
        case.op.reference(&operands, &mut outputs);
        for output in &mut outputs {
            if output.spec.dtype.is_float() && case.broken.is_none() {
                let values = output.f32();
                assert!(values.iter().all(|v| v.is_finite()), "{what}");
                assert!(values.iter().any(|v| *v != 0.0), "{what} gave zeros");
            }
        }
    }
}

#[test]
fn alignment_counts_offset_and_stride_in_bytes() {
    let spec = Spec::new(DType::BF16, [4, 64]);
    assert_eq!(View::dense(&spec).alignment(), 16);
    assert_eq!(View { offset: 4, ..View::dense(&spec) }.alignment(), 8);
    assert_eq!(View { row_stride: 65, ..View::dense(&spec) }.alignment(), 2);
}

#[test]
fn branch_rows_repeat_by_step() {
    let table = |rows: &BranchRows, n| (0..n).map(|r| rows.table_row(r)).collect::<Vec<_>>();
    let text = BranchRows::of(&[2, 3]);
    assert_eq!(table(&text, 10), [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]);
    assert_eq!(table(&text.then(&BranchRows::of(&[1, 1])), 8), [0, 0, 1, 1, 1, 0, 1, 2]);
}
