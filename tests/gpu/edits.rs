//! Whole edits of the tiny preset: against the CPU, against themselves, node by node.

use std::sync::Arc;

use step1x_edit::exec::{Cuda, Executor, Reference, compare};
use step1x_edit::graph::BodyId;
use step1x_edit::model::Version;
use step1x_edit::model::edit::Savings;
use step1x_edit::ops::{Arch, HostValues};
use step1x_edit::pipeline::Rules;
use step1x_edit::plan::{Itinerary, Leg, Plan, Precision, Target, Turns};

use crate::common::relative_l2;
use crate::common::tiny::{STEPS, TinyEdit, residencies};
use crate::support::{Gpu, gpu};

/// Largest distance of the device's bf16 to float32, in distances of the CPU's. Both round at the same places, so
/// their errors are draws of one size, over a few thousand values; the farthest measured is 1.09.
const FARTHER: f64 = 1.2;

/// Rules, versions and savings, of which every saving and none.
const KINDS: [(Rules, Version, Savings, &str); 4] = [
    (Rules::Official, Version::V1_1, Savings::ALL, "v1.1"),
    (Rules::Official, Version::V1_1, Savings::NONE, "v1.1 without savings"),
    (Rules::Official, Version::V1_0, Savings::ALL, "v1.0"),
    (Rules::Diffusers, Version::V1_1, Savings::ALL, "v1.1 by the rules of diffusers"),
];

fn edits(gpu: &Gpu) -> Vec<(&'static str, TinyEdit)> {
    let of = |(rules, version, savings, name)| (name, TinyEdit::by(rules, Precision::Bf16, gpu.target(), version, savings));
    let int8 = || TinyEdit::planned(Precision::Int8, gpu.target(), Version::V1_1, Savings::ALL);
    let integers = Precision::Int8.check(Arch(gpu.device.capability)).is_ok().then(|| ("v1.1 in int8", int8()));
    KINDS.map(of).into_iter().chain(integers).collect()
}

/// The reference computes what a plan for a GPU says, with rows rounded apart and weights as they lie there: nothing differs from the
/// plan for the CPU.
#[test]
fn integers_are_the_same_in_the_plans_for_a_gpu_and_for_the_cpu() {
    for precision in [Precision::Int8, Precision::Mixed] {
        let [gpu, cpu] = [Target::Cuda(Arch(90)), Target::Cpu].map(|target| {
            let edit = TinyEdit::planned(precision, target, Version::V1_1, Savings::ALL);
            let products = edit.plan().graph.nodes.iter().filter(|node| node.op.kind() == "linear_int8").count();
            assert_eq!(products > 0, target != Target::Cpu);
            edit.run(&mut Reference::new(edit.plan().clone(), Arc::new(edit.weights())).unwrap()).unwrap()
        });
        for ((name, gpu), (_, cpu)) in gpu.iter().zip(&cpu) {
            assert!(gpu == cpu, "{precision}: {name}");
        }
    }
}

#[test]
fn every_stage_is_as_near_to_float32_as_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let mut far = Vec::new();
    let precisions = [Precision::Bf16, Precision::Int8, Precision::Mixed].into_iter();
    let runs = precisions.filter(|precision| precision.check(Arch(gpu.device.capability)).is_ok());
    for (precision, (rules, version, savings, what)) in runs.flat_map(|precision| KINDS.map(|kind| (precision, kind))) {
        let what = &format!("{what}, {precision}");
        let edit = TinyEdit::by(rules, precision, gpu.target(), version, savings);
        let float32 = TinyEdit::by(rules, Precision::F32, Target::Cpu, version, savings);
        let weights = Arc::new(edit.weights());
        let ours = edit.run(&mut gpu.executor(edit.plan(), weights.clone())).unwrap_or_else(|e| panic!("{what}: {e:#}"));
        let cpu = edit.run(&mut Reference::new(edit.plan().clone(), weights.clone()).unwrap()).unwrap();
        let truth = float32.run(&mut Reference::new(float32.plan().clone(), weights).unwrap()).unwrap();
        for (((name, ours), (_, cpu)), (_, truth)) in ours.iter().zip(&cpu).zip(&truth) {
            let (ours, cpu) = (distance(ours, truth), distance(cpu, truth));
            println!("{what}: {name}: {ours:.2e}, CPU {cpu:.2e}");
            // A comparison that is never true of NaN.
            let near = ours <= FARTHER * cpu;
            far.extend((!near).then(|| format!("{what}: {name} is {ours:.2e} away, the CPU's {cpu:.2e}")));
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
}

fn distance(a: &HostValues, b: &HostValues) -> f64 {
    let widened = |pixels: &[u8]| pixels.iter().map(|&p| f32::from(p)).collect::<Vec<f32>>();
    match (a, b) {
        (HostValues::F32(a), HostValues::F32(b)) => relative_l2(a, b),
        (HostValues::U8(a), HostValues::U8(b)) => relative_l2(&widened(a), &widened(b)),
        (a, b) => f64::from(u8::from(a != b)),
    }
}

#[test]
fn captured_uncaptured_and_repeated_runs_give_the_same_bytes() {
    let Some(gpu) = gpu() else { return };
    for (what, edit) in edits(&gpu) {
        let weights = Arc::new(edit.weights());
        let mut captured = gpu.executor(edit.plan(), weights.clone());
        let first = edit.run(&mut captured).unwrap();
        let latents = |(name, values): &(String, HostValues)| match values {
            HostValues::F32(v) => assert!(v.iter().all(|v| v.is_finite()), "{what}: {name}"),
            _ => assert!(!name.contains("fault") || *values == HostValues::I32(vec![0]), "{what}: {name} is {values:?}"),
        };
        first.iter().for_each(latents);
        let same = |how: &str, again: Vec<(String, HostValues)>| {
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
fn every_residency_gives_the_same_bytes() {
    let Some(gpu) = gpu() else { return };
    for (what, edit) in edits(&gpu) {
        let weights = Arc::new(edit.weights());
        let mut first = None;
        for plan in edit.residencies() {
            let policy = plan.weights.policy;
            // Then once more with every weight overwritten as soon as nobody needs it.
            let poisoned = (!plan.weights.keeps_all()).then(|| gpu.executor(&plan, weights.clone()).with_poison());
            for (how, mut exec) in std::iter::once(gpu.executor(&plan, weights.clone())).chain(poisoned).enumerate() {
                // From the second run on some weights are there already, from the third on others come from the host's store.
                for run in 0..3 {
                    let results = edit.run(&mut exec).unwrap_or_else(|e| panic!("{what}, {policy:?}: {e:#}"));
                    let first = first.get_or_insert_with(|| results.clone());
                    for ((name, a), (_, b)) in first.iter().zip(&results) {
                        assert!(a == b, "{what}: {name} is another when {policy:?}, run {run}, poisoned {how} of 1");
                    }
                }
            }
        }
    }
}

#[test]
fn every_node_is_near_the_reference_on_its_own_operands() {
    let Some(gpu) = gpu() else { return };
    let mut faults = Vec::new();
    for (what, edit) in edits(&gpu) {
        let mut exec = gpu.executor(edit.plan(), Arc::new(edit.weights()));
        edit.write_inputs(&mut exec).unwrap();
        exec.begin(&edit.plan().itinerary).unwrap();
        for body in (0..edit.plan().graph.bodies.len()).map(BodyId) {
            let stage = edit.plan().graph.bodies[body.0].name;
            for _ in 0..edit.plan().itinerary.runs_of(body).min(2) {
                let report = compare(&mut exec, body, true).unwrap_or_else(|e| panic!("{what}: {stage}: {e:#}"));
                println!("{what}: {stage}\n{report}");
                faults.extend(report.differing.iter().map(|text| format!("{what}: {stage}: {text}")));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What outlives a program: a second one on the same GPU finds modules and weights, and both can take turns.
#[test]
fn programs_on_one_gpu_share_weights_and_give_the_same_bytes() {
    let Some(gpu) = gpu() else { return };
    let edit = TinyEdit::new(gpu.target(), Version::V1_1, Savings::ALL);
    let weights = Arc::new(edit.weights());
    let alone = edit.run(&mut gpu.executor(edit.plan(), weights.clone())).unwrap();
    for plan in edit.residencies() {
        let (policy, shared) = (plan.weights.policy, gpu.open(weights.clone()));
        let [mut one, mut other] = [&plan, &plan].map(|plan| Cuda::load(&shared, plan.clone()).unwrap());
        for turn in 0..2 {
            for (name, exec) in [("one", &mut one), ("other", &mut other)] {
                let before = shared.made().uploaded_bytes;
                assert!(edit.run(exec).unwrap() == alone, "{policy:?}: turn {turn} of {name}");
                let uploaded = shared.made().uploaded_bytes - before;
                let first = turn == 0 && name == "one";
                assert!(first || !plan.weights.keeps_all() || uploaded == 0, "{policy:?}: {uploaded} bytes came again");
                assert!(!first || uploaded >= plan.weight_bytes() as u64, "{policy:?}: {uploaded} bytes came");
            }
        }
    }
}

/// Bodies that take turns: a weight that had to make way comes again, in every turn.
#[test]
fn a_weight_comes_as_often_as_it_is_needed() {
    let Some(gpu) = gpu() else { return };
    const TURNS: usize = 3;
    let edit = TinyEdit::new(gpu.target(), Version::V1_1, Savings::ALL);
    let (b, weights) = (edit.program.tensors.bodies, Arc::new(edit.weights()));
    let alone = edit.run(&mut gpu.executor(edit.plan(), weights.clone())).unwrap();
    let turns = Leg { bodies: vec![b.vision, b.text], turns: Turns::Times(TURNS) };
    let itinerary = Itinerary([Itinerary::once(b.vae_encode).0, vec![turns]].concat());
    let itinerary = itinerary.then_once([b.conditioning]).then_times(b.step, STEPS).then_once([b.vae_decode]);
    let Plan { graph, precision, target, .. } = Plan::clone(edit.plan());
    let plan = Plan::new(graph, itinerary, precision, target).unwrap();
    for plan in residencies(&plan) {
        let (policy, shared) = (plan.weights.policy, gpu.open(weights.clone()));
        let mut exec = Cuda::load(&shared, plan.clone()).unwrap();
        let results = edit.run(&mut exec).unwrap_or_else(|e| panic!("{policy:?}: {e:#}"));
        assert_eq!(results.len(), alone.len() + 2 * (TURNS - 1));
        // The last turn's results, and all that follows from them, are those of an edit with one turn.
        let values = |results: &[(String, HostValues)]| results.iter().map(|(_, v)| v.clone()).collect::<Vec<_>>();
        assert!(values(&results[2 * TURNS - 1..]) == values(&alone[1..]), "{policy:?}");
        let come =
            plan.weights.arrivals(&plan.weights.visits(&plan.itinerary.visits()), &mut vec![false; plan.graph.storages.len()]);
        let bytes = come.iter().map(|arrival| plan.graph.storages[arrival.storage.0].spec.bytes() as u64).sum::<u64>();
        assert_eq!(shared.made().uploaded_bytes, bytes, "{policy:?}: bytes sent");
        // With little memory weights come more than once.
        let once = bytes == plan.weight_bytes() as u64;
        assert!(if plan.weights.keeps_all() { once } else { !once || plan.device_bytes() > plan.least_bytes() }, "{policy:?}");
    }
}
