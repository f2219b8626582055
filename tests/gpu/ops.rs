//! Every case of every op against the reference: dense and as columns of wider buffers, beside its inputs and in place.

use std::collections::HashMap;
use std::sync::Arc;

use half::{bf16, f16};
use step1x_edit::exec::{Difference, Executor, Reference, unwatched};
use step1x_edit::graph::{BodyId, Graph, Node, TensorId};
use step1x_edit::ops::{Arch, Case, HostValues, Op, Operand, Output, WeightOrder, cases, round};
use step1x_edit::plan::{Itinerary, Plan, Precision, Target};
use step1x_edit::tensor::{Component, DType, Spec};
use step1x_edit::weights::{ModelError, WeightSource};

use crate::support::{Gpu, gpu};

/// How a case's operands lie.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Outputs are inputs where the op allows it.
    in_place: bool,
    /// Columns of the buffer before and after the operand's own.
    pad: usize,
}

/// Operands that are weights, because the device has them in another order than the host.
#[derive(Default)]
struct Weights(HashMap<String, (Spec, Vec<u8>)>);

impl WeightSource for Weights {
    fn spec(&self, _: Component, name: &str) -> Option<Spec> {
        self.0.get(name).map(|(spec, _)| spec.clone())
    }

    fn read_at(&self, _: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<(), ModelError> {
        let (_, all) = self.0.get(name).ok_or_else(|| ModelError::new(format!("there is no {name}")))?;
        bytes.copy_from_slice(&all[offset..offset + bytes.len()]);
        Ok(())
    }
}

/// A graph of one node.
struct OneNode {
    graph: Graph,
    weights: Weights,
    /// Buffers to be filled, with their values.
    inputs: Vec<(TensorId, HostValues)>,
    /// The node's outputs, and the buffers around them.
    outputs: Vec<(TensorId, TensorId)>,
}

/// Inputs that the outputs of an op may be.
fn aliases(op: &dyn Op) -> &'static [usize] {
    match op.kind() {
        _ if !op.in_place() => &[],
        "guidance_euler" => &[1, 3, 4],
        _ => &[0],
    }
}

fn encoded(dtype: DType, values: &HostValues) -> Vec<u8> {
    let HostValues::F32(values) = values else { panic!("weights are floats") };
    match dtype {
        DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("no weights are {other}"),
    }
}

/// Only float matrices of several rows have gaps in real graphs.
fn wide(spec: &Spec, pad: usize) -> Option<[usize; 2]> {
    let [rows, cols] = spec.shape.0[..] else { return None };
    (pad > 0 && rows > 1 && spec.dtype.is_float()).then_some([rows, cols + 2 * pad])
}

/// Values with columns of NaN around: who reads those, shows it.
fn surrounded(values: &HostValues, cols: usize, pad: usize) -> HostValues {
    let HostValues::F32(values) = values else { panic!("only floats are surrounded") };
    let gap = vec![f32::NAN; pad];
    HostValues::F32(values.chunks(cols).flat_map(|row| [&gap[..], row, &gap].concat()).collect())
}

impl OneNode {
    fn new(case: &Case, op: Arc<dyn Op>, outputs: &[Spec], values: &[HostValues], form: Form) -> OneNode {
        let mut one = OneNode { graph: Graph::new(), weights: Weights::default(), inputs: vec![], outputs: vec![] };
        let OneNode { graph, weights, inputs, outputs: results } = &mut one;
        graph.body("case", |g| {
            let mut whole = Vec::new();
            let mut operand = |(i, spec): (usize, &Spec)| {
                let name = format!("operand {i}");
                if op.weight_order(i) != WeightOrder::AsStored {
                    let bytes = encoded(spec.dtype, &values[i]);
                    weights.0.insert(name.clone(), (spec.clone(), bytes));
                    let id = g.with_weights(Component::Vae, |g| g.weight(&name, spec.dtype, spec.shape.clone()));
                    whole.push(id);
                    return id;
                }
                let (buffer, view, filled) = match wide(spec, form.pad) {
                    Some(shape) => {
                        let buffer = g.input(&name, spec.dtype, shape);
                        let cols = spec.shape.cols();
                        (buffer, g.cols(buffer, form.pad..form.pad + cols), surrounded(&values[i], cols, form.pad))
                    }
                    None => {
                        let buffer = g.input(&name, spec.dtype, spec.shape.clone());
                        (buffer, buffer, values[i].clone())
                    }
                };
                inputs.push((buffer, filled));
                whole.push(buffer);
                view
            };
            let views: Vec<TensorId> = case.inputs.iter().enumerate().map(&mut operand).collect();
            for (i, spec) in outputs.iter().enumerate() {
                let alias = aliases(&*op).get(i).filter(|&&input| form.in_place && case.inputs[input] == *spec);
                results.push(match (alias, wide(spec, form.pad)) {
                    (Some(&input), _) => (views[input], whole[input]),
                    (None, Some(shape)) => {
                        let buffer = g.buffer(&format!("result {i}"), spec.dtype, shape);
                        (g.cols(buffer, form.pad..form.pad + spec.shape.cols()), buffer)
                    }
                    (None, None) => {
                        let buffer = g.buffer(&format!("result {i}"), spec.dtype, spec.shape.clone());
                        (buffer, buffer)
                    }
                });
            }
            let written = results.iter().map(|(view, _)| *view).collect();
            g.nodes.push(Node { name: "node".into(), op: op.clone(), inputs: views, outputs: written });
            let kept: Vec<TensorId> = results.iter().map(|(_, buffer)| *buffer).filter(|id| !whole.contains(id)).collect();
            kept.into_iter().for_each(|id| g.output(id));
        });
        one
    }
}

/// What came of a case in a form: a line, and whether it is good; none if no kernel takes the form. Without a device the
/// reference runs the graph, for an sm_90 plan.
fn parity(
    gpu: Option<&Gpu>,
    case: &Case,
    op: &Arc<dyn Op>,
    expected: &[Output],
    form: Form,
) -> anyhow::Result<Option<(String, bool)>> {
    let specs: Vec<Spec> = expected.iter().map(|output| output.spec.clone()).collect();
    let OneNode { graph, weights, inputs, outputs } = OneNode::new(case, op.clone(), &specs, &case.operands(), form);
    let (itinerary, target) = (Itinerary::of_all(&graph), gpu.map_or(Target::Cuda(Arch(90)), |gpu| gpu.target()));
    let plan = match Plan::new(graph, itinerary, Precision::Bf16, target) {
        Ok(plan) => Arc::new(plan),
        Err(refused) if form.pad > 0 && refused.to_string().contains("kernel takes") => {
            println!("  refused with {form:?}: {}", refused.to_string().replace('\n', " "));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let weights = Arc::new(weights);
    let exec: &mut dyn Executor = match gpu {
        Some(gpu) => &mut gpu.executor(&plan, weights.clone()),
        None => &mut Reference::new(plan.clone(), weights)?,
    };
    for (id, values) in &inputs {
        exec.write(*id, values.values())?;
    }
    exec.begin(&plan.itinerary)?;
    exec.run(BodyId(0), &mut unwatched)?;
    exec.finish()?;
    let (mut line, mut good) = (format!("{} ({}) {form:?}:", op.kind(), plan.kernels[0]), true);
    for ((view, buffer), expected) in outputs.iter().zip(expected) {
        let rounded = match &expected.values {
            HostValues::F32(v) => HostValues::F32(v.iter().map(|&v| round(expected.spec.dtype, v)).collect()),
            other => other.clone(),
        };
        let difference = Difference::of(&exec.read(*view)?, &rounded)?;
        good &= difference.within(case.bound_of(&plan.kernels[0]));
        line += &format!(" {} {difference};", expected.spec);
        if view != buffer {
            // The gaps held NaN before: the poison of the arena, or what was written there.
            let HostValues::F32(all) = exec.read(*buffer)? else { anyhow::bail!("not a float buffer") };
            let cols = expected.spec.shape.cols();
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
        every_case(Some(&gpu));
    }
}

/// The graphs of the test above, on the CPU: what differs there is the test's own fault.
#[test]
fn the_reference_meets_itself_in_every_form() {
    every_case(None);
}

fn every_case(gpu: Option<&Gpu>) {
    let mut faults = Vec::new();
    let mut ran = 0;
    for mut case in cases() {
        let mut specs = case.op.infer(&case.inputs).unwrap();
        specs.iter_mut().zip(&case.outputs).for_each(|(spec, &dtype)| spec.dtype = dtype);
        let values = case.operands();
        let operands: Vec<Operand> =
            case.inputs.iter().zip(&values).map(|(spec, v)| Operand { spec: spec.clone(), values: v.values() }).collect();
        let mut expected: Vec<Output> = specs.into_iter().map(Output::zeros).collect();
        case.op.reference(&operands, &mut expected);
        let op: Arc<dyn Op> = Arc::from(std::mem::replace(&mut case.op, Box::new(step1x_edit::ops::Add)));

        let can_alias = aliases(&*op).first().is_some_and(|&input| case.inputs[input] == expected[0].spec);
        let can_pad = case.inputs.iter().chain(expected.iter().map(|o| &o.spec)).any(|spec| wide(spec, 1).is_some());
        for in_place in [false, true].into_iter().filter(|in_place| can_alias || !in_place) {
            for pad in [0, 8, 4, 1].into_iter().filter(|pad| can_pad || *pad == 0) {
                let form = Form { in_place, pad };
                match parity(gpu, &case, &op, &expected, form) {
                    Ok(None) => {}
                    Ok(Some((line, good))) => {
                        println!("{line} bound {:.1e}", case.bound);
                        ran += 1;
                        faults.extend((!good).then(|| format!("{line} bound {:.1e} ({})", case.bound, case.reason)));
                    }
                    Err(error) => faults.push(format!("{} {:?} {form:?}: {error:#}", op.kind(), case.inputs)),
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} of {ran} runs:\n{}", faults.len(), faults.join("\n"));
}
