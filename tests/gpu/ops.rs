//! Every case of every op against the reference: dense and as columns of wider buffers, beside its inputs and in place.

use std::sync::Arc;

use step1x_edit::exec::{Difference, Executor, Form, OneNode, Reference, aliases, unwatched};
use step1x_edit::ops::{Arch, Case, HostValues, cases};
use step1x_edit::plan::{Itinerary, Plan, Precision, Target};

use crate::support::{Gpu, gpu};

/// What came of a case in a form: a line, and whether it is good; none if no kernel takes the form. Without a device the
/// reference runs the graph, for an sm_90 plan.
fn parity(
    gpu: Option<&Gpu>,
    case: &Case,
    operands: &[HostValues],
    expected: &[HostValues],
    form: Form,
) -> anyhow::Result<Option<(String, bool)>> {
    let OneNode { graph, body, weights, inputs, outputs } = OneNode::new(case, operands, form)?;
    let (itinerary, target) = (Itinerary::of_all(&graph), gpu.map_or(Target::Cuda(Arch(90)), |gpu| gpu.target()));
    let plan = match Plan::new(graph, itinerary, Precision::Bf16, target) {
        Ok(plan) => Arc::new(plan),
        Err(refused) if form.pad > 0 && refused.to_string().contains("kernel takes") => {
            println!("  refused with {form:?}: {}", refused.to_string().replace('\n', " "));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let exec: &mut dyn Executor = match gpu {
        Some(gpu) => &mut gpu.executor(&plan, weights),
        None => &mut Reference::new(plan.clone(), weights)?,
    };
    for (id, values) in &inputs {
        exec.write(*id, values.values())?;
    }
    exec.begin(&plan.itinerary)?;
    exec.run(body, &mut unwatched)?;
    exec.finish(&mut unwatched)?;
    let (mut line, mut good) = (format!("{} ({}) {form:?}:", case.op.kind(), plan.kernels[0]), true);
    for (((view, buffer), expected), spec) in outputs.iter().zip(expected).zip(case.results()?) {
        let difference = Difference::of(&exec.read(*view)?, expected)?;
        good &= difference.within(case.bound_of(&plan.kernels[0]));
        line += &format!(" {spec} {difference};");
        if view != buffer {
            // The gaps held NaN before: the poison of the arena, or what was written there.
            let HostValues::F32(all) = exec.read(*buffer)? else { anyhow::bail!("not a float buffer") };
            let cols = spec.shape.cols();
            let gap = |i: usize| !(form.pad..form.pad + cols).contains(&(i % (cols + 2 * form.pad)));
            if let Some(at) = (0..all.len()).find(|&i| gap(i) && !all[i].is_nan()) {
                good = false;
                line += &format!(" the gap at {at} was overwritten with {};", all[at]);
            }
        }
    }
    Ok(Some((line, good)))
}

#[test]
fn every_case_meets_the_reference() {
    if let Some(gpu) = gpu() {
        every_case(Some(&gpu), false);
    }
}

/// Apart from the others: the sanitizer would take hours.
#[test]
fn every_case_of_a_released_size_meets_the_reference() {
    if let Some(gpu) = gpu() {
        every_case(Some(&gpu), true);
    }
}

/// The graphs of the small cases, on the CPU: what differs there is the test's own fault.
#[test]
fn the_reference_meets_itself_in_every_form() {
    every_case(None, false);
}

fn every_case(gpu: Option<&Gpu>, timed: bool) {
    let mut faults = Vec::new();
    let mut ran = 0;
    let arch = gpu.map_or(Arch(90), |gpu| Arch(gpu.device.capability));
    for case in cases().iter().filter(|case| case.timed == timed && case.least <= arch) {
        let (operands, results) = (case.operands(), case.results().unwrap());
        let expected = case.expected(&operands).unwrap();
        for form in forms(case) {
            match parity(gpu, case, &operands, &expected, form) {
                Ok(None) => {}
                Ok(Some((line, good))) => {
                    println!("{line} bound {:.1e}", case.bound);
                    ran += 1;
                    faults.extend((!good).then(|| format!("{line} bound {:.1e} ({})", case.bound, case.reason)));
                }
                Err(error) => faults.push(format!("{} {:?} -> {results:?} {form:?}: {error:#}", case.op.kind(), case.inputs)),
            }
        }
    }
    assert!(faults.is_empty(), "{} of {ran} runs:\n{}", faults.len(), faults.join("\n"));
}

/// The forms that a case can take; those that are timed, as they are.
fn forms(case: &Case) -> Vec<Form> {
    if case.timed {
        return vec![Form::default()];
    }
    let results = case.results().unwrap();
    let can_alias = aliases(&*case.op).first().is_some_and(|&input| case.inputs[input] == results[0]);
    let wide = Form { in_place: false, pad: 1 };
    let can_pad = case.inputs.iter().chain(&results).any(|spec| wide.wide(spec).is_some());
    let forms = [false, true].into_iter().flat_map(|in_place| [0, 8, 4, 1].map(|pad| Form { in_place, pad }));
    forms.filter(|form| (can_alias || !form.in_place) && (can_pad || form.pad == 0)).collect()
}

/// What the op laboratory times is the case: its graph, run by the reference, has the case's results.
#[test]
fn the_laboratory_runs_the_case() {
    for case in cases().iter().filter(|case| !case.timed) {
        let operands = case.operands();
        let OneNode { graph, body, weights, inputs, outputs } = OneNode::timed(case, &operands, 1 << 12).unwrap();
        let itinerary = Itinerary::of_all(&graph);
        let plan = Arc::new(Plan::new(graph, itinerary, Precision::Bf16, Target::Cuda(Arch(90))).unwrap());
        let names: Vec<&str> = plan.graph.nodes.iter().map(|node| &node.name[..]).collect();
        assert!(names == ["flush", "cold", "warm"] && plan.kernels[1] == plan.kernels[2], "{names:?}");
        let mut exec = Reference::new(plan, weights).unwrap();
        inputs.iter().for_each(|(id, values)| exec.write(*id, values.values()).unwrap());
        exec.begin(&exec.plan().itinerary.clone()).unwrap();
        exec.run(body, &mut unwatched).unwrap();
        for ((view, _), expected) in outputs.iter().zip(case.expected(&operands).unwrap()) {
            let difference = Difference::of(&exec.read(*view).unwrap(), &expected).unwrap();
            assert!(difference.within(case.bound), "{} on {:?}: {difference}", case.op.kind(), case.inputs);
        }
    }
}
