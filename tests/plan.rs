//! The planner: printed graphs and plans as committed, and no byte that two living tensors share.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use proptest::prelude::*;
use step1x_edit::commands::inspect::{PlanJob, plan_edit};
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::error::ResourceError;
use step1x_edit::graph::{BodyId, Graph, Kind, StorageId, TensorId};
use step1x_edit::model::Preset;
use step1x_edit::model::Version;
use step1x_edit::model::edit::{Conventions, NoiseSource, Savings};
use step1x_edit::ops::{Add, Arch};
use step1x_edit::pipeline::{EditInputs, Program, Request, Rules};
use step1x_edit::plan::{ALIGNMENT, Arrival, Budget, Itinerary, Leg, Plan, Policy, Precision, Residency, Target, Turns};
use step1x_edit::tensor::DType;

const PROMPT: &str = "Replace 'TRAIN' with 'PLANE'";

fn planned(preset: Preset, size: (usize, usize), size_level: usize, precision: Precision) -> Program {
    let model = PresetModel::new(preset, Version::V1_1).unwrap();
    let job = PlanJob { prompt: PROMPT.into(), rules: None, size, size_level, steps: 28, precision, savings: Savings::ALL };
    plan_edit(&model.config, &model.settings, &model.tokenizer, &job).unwrap()
}

/// Compares with `tests/data/snapshots/{name}.txt`, or writes it if STEP1X_UPDATE_SNAPSHOTS is set.
fn snapshot(name: &str, plan: &Plan) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/snapshots/{name}.txt"));
    let text = format!("{plan}\n{}", plan.graph);
    if std::env::var_os("STEP1X_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differing = text.lines().zip(committed.lines()).position(|(a, b)| a != b);
    assert!(
        text == committed,
        "{} differs from line {:?} on; if that is meant, run with STEP1X_UPDATE_SNAPSHOTS=1 and commit it",
        path.display(),
        differing.map(|line| line + 1)
    );
}

#[test]
fn snapshots() {
    for (name, preset, size, level, precision) in [
        ("tiny_256", Preset::Tiny, (512, 768), 256, Precision::F32),
        ("full_512", Preset::Full, (512, 512), 512, Precision::Bf16),
        ("full_1024", Preset::Full, (1024, 1024), 1024, Precision::Bf16),
    ] {
        let program = planned(preset, size, level, precision);
        snapshot(name, &program.plan);
        assert_eq!(program.plan.overlaps(), []);
        every_read_finds_what_was_written(&program.plan);
    }
}

#[test]
fn stages_share_one_arena() {
    let plan = planned(Preset::Full, (1024, 1024), 1024, Precision::Bf16).plan;
    let (largest, sum) =
        (plan.bodies.iter().map(|s| s.live_bytes).max().unwrap(), plan.bodies.iter().map(|s| s.live_bytes).sum::<usize>());
    // The arena is that of the most demanding moment, but for what first-fit leaves unused.
    assert!(plan.arena_bytes >= largest && (plan.arena_bytes as f64) < 1.02 * largest as f64 && plan.arena_bytes < sum);
}

fn read_by_nodes(graph: &Graph) -> usize {
    graph.storages.iter().filter(|storage| matches!(storage.kind, Kind::Weight(_))).count()
}

/// The released text model without its table of 152,064 embeddings, of which the host looks rows up: 28 layers of projections
/// [3584, 3584] and [512, 3584] with biases, [3584, 3584], three of [18944, 3584], two norms, and a norm behind them, in bf16.
#[test]
fn the_table_of_embeddings_takes_no_memory_of_a_device() {
    let layer = 3584 * 3584 + 3584 + 2 * (512 * 3584 + 512) + 3584 * 3584 + 3 * 18944 * 3584 + 2 * 3584;
    for size in [512, 1024] {
        let plan = planned(Preset::Full, (size, size), size, Precision::Bf16).plan;
        let text = plan.bodies.iter().find(|body| body.name == "text").unwrap();
        assert_eq!(2 * (28 * layer + 3584), 13_051_243_520_usize);
        assert_eq!(text.weight_bytes, 13_051_243_520);
        let of_bodies: usize = plan.bodies.iter().map(|body| body.weight_bytes).sum();
        let all: usize = plan.graph.weights().map(|(_, storage)| storage.spec.bytes()).sum();
        assert_eq!((plan.weight_bytes(), all - of_bodies), (of_bodies, 1_089_994_752));
    }
}

/// The decoder's widest block, whose map of 256 channels in f32 is the largest tensor of all, passes large pictures in strips: beside
/// that map and the shortcut, which is half as large, a strip is there.
#[test]
fn large_pictures_are_decoded_in_strips() {
    for (side, most) in
        [(512, 540_000_000), (1024, 2_150_000_000), (1040, 1_800_000_000), (1536, 3_800_000_000), (2048, 6_600_000_000)]
    {
        let plan = planned(Preset::Full, (side, side), side, Precision::Bf16).plan;
        let decode = plan.bodies.last().unwrap();
        let largest = 256 * 4 * side * side;
        assert!((largest..=most).contains(&decode.live_bytes), "{side}: {} are live", decode.live_bytes);
        assert!(side == 512 || (plan.arena_bytes as f64) < 1.02 * decode.live_bytes as f64, "it decides how large the arena is");
        let strips = plan.graph.nodes.iter().filter(|node| node.op.attributes().ends_with("strip")).count();
        assert_eq!(strips > 0, side > 1024, "{strips} convolutions of strips");
        assert_eq!(plan.overlaps(), []);
        if side == 1040 {
            every_read_finds_what_was_written(&plan); // of a larger one it would take a minute
        }
    }
}

/// Weights have places of their own as long as a policy says: with `OVERLAPPED` one is on its way while the stage before
/// its first reader runs, with `PHASED` not before that stage has ended, with `RESIDENT` all stay.
#[test]
fn weights_that_are_there_together_share_no_bytes() {
    for (preset, size) in [(Preset::Tiny, 256), (Preset::Full, 1024)] {
        let plan = planned(preset, (size, size), size, Precision::Bf16).plan;
        let (stages, last) = (&plan.bodies, plan.bodies.len() - 1);
        let pairs = stages.windows(2).map(|pair| pair[0].weight_bytes + pair[1].weight_bytes);
        let expected = [plan.weight_bytes(), pairs.max().unwrap(), stages.iter().map(|s| s.weight_bytes).max().unwrap()];
        for (policy, expected) in Policy::ALL.into_iter().zip(expected) {
            let residency = Residency::new(&plan.graph, policy);
            let held = |readers: RangeInclusive<usize>| match policy.ahead {
                usize::MAX => 0..=last,
                1 => readers.start().saturating_sub(1)..=*readers.end(),
                _ => readers,
            };
            let weights = (0..plan.graph.storages.len()).filter_map(|i| {
                Some((
                    residency.place(&plan.graph, StorageId(i))?,
                    held(residency.readers[i].clone()?),
                    &plan.graph.storages[i].name,
                ))
            });
            let weights: Vec<_> = weights.collect();
            assert_eq!(weights.len(), read_by_nodes(&plan.graph));
            for (i, (bytes, stages, name)) in weights.iter().enumerate() {
                assert!(bytes.end <= residency.bytes && bytes.start % ALIGNMENT == 0, "{policy}: {name}");
                for (other_bytes, other_stages, other) in &weights[..i] {
                    let together = stages.start() <= other_stages.end() && other_stages.start() <= stages.end();
                    let apart = bytes.end <= other_bytes.start || other_bytes.end <= bytes.start;
                    assert!(!together || apart, "{policy}: {name} and {other}");
                }
            }
            // No larger than what is there together, but for alignment.
            assert!(residency.bytes >= expected && (residency.bytes as f64) < 1.02 * expected as f64, "{policy}: {expected}");
        }
    }
}

/// The budgets of the README, and what is refused below them.
#[test]
fn the_fastest_residency_that_fits_is_taken() {
    let [small, large] = [512, 1024].map(|size| planned(Preset::Full, (size, size), size, Precision::Bf16).plan);
    let fit = |plan: &Plan, budget| plan.clone().fit(budget, Policy::RESIDENT);
    for (size, budget, policy) in [
        (1024, 45_000_000_000, Policy::RESIDENT),
        (1024, 40_000_000_000, Policy::OVERLAPPED),
        (1024, 22_000_000_000, Policy::PHASED),
        (512, 21_000_000_000, Policy::PHASED),
    ] {
        let plan = fit(if size == 512 { &small } else { &large }, Budget::Allowed(budget)).unwrap();
        assert!(plan.weights.policy == policy && plan.peak_bytes() <= budget, "{budget}: {}", plan.weights.policy);
    }
    let peaks = large.peaks();
    assert!(peaks.is_sorted_by(|a, b| a.0 > b.0 && a.1 > b.1), "{peaks:?}");
    for (policy, peak) in peaks {
        let fitting = fit(&large, Budget::Free(peak)).unwrap();
        assert_eq!((fitting.weights.policy, fitting.peak_bytes()), (policy, peak));
    }
    let slower = Plan::clone(&large).fit(Budget::Free(usize::MAX), Policy::OVERLAPPED).unwrap();
    assert_eq!(slower.weights.policy, Policy::OVERLAPPED, "none faster than was asked");
    let refused = |plan: &Plan, budget| fit(plan, budget).unwrap_err().downcast::<ResourceError>().unwrap().0;
    let text = refused(&large, Budget::Free(peaks[2].1 - 1));
    assert!(text.contains("at least 20.00 GB") && text.contains("are free") && text.contains("smaller --size-level"), "{text}");
    let text = refused(&small, Budget::Allowed(17_000_000_000));
    assert!(text.contains("--max-vram allows 17.00 GB") && text.contains("smallest picture needs 17.82 GB"), "{text}");
}

/// Programs that plan at the same moment see the same free memory. Each that finds it taken plans again, a policy slower, with what
/// is free by then: on 80 GB two fit, and a third is refused.
#[test]
fn programs_that_plan_at_the_same_moment_find_room() {
    let plan = planned(Preset::Full, (1024, 1024), 1024, Precision::Bf16).plan;
    let fit = |free: usize, fastest| Plan::clone(&plan).fit(Budget::Free(free), fastest);
    let all = 84_000_000_000;
    let [first, second] = [fit(all, Policy::RESIDENT).unwrap(), fit(all, Policy::RESIDENT).unwrap()];
    assert_eq!((first.weights.policy, second.weights.policy), (Policy::RESIDENT, Policy::RESIDENT));
    assert!(first.peak_bytes() + second.peak_bytes() > all, "not both");
    let left = all - first.peak_bytes();
    let second = fit(left, Policy::OVERLAPPED).unwrap();
    assert_eq!(second.weights.policy, Policy::OVERLAPPED);
    let third = fit(left - second.peak_bytes(), Policy::PHASED).unwrap_err().to_string();
    assert!(third.contains("at least 20.00 GB") && third.contains("14.1"), "both numbers: {third}");
}

/// What the chart shows of a policy: the weights of each stage in place, those that come early, those that leave.
#[test]
fn the_memory_over_the_stages_is_that_of_the_policy() {
    let plan = planned(Preset::Full, (1024, 1024), 1024, Precision::Bf16).plan;
    let own: Vec<usize> = plan.bodies.iter().map(|s| s.weight_bytes).collect();
    let (all, last) = (plan.weight_bytes(), own.len() - 1);
    let resident = plan.memory();
    assert_eq!((resident[0].arriving, resident[last].resident), (all - own[0], all));
    assert!(resident.iter().all(|m| m.resident + m.arriving == all && m.leaving == 0), "{resident:?}");
    for policy in [Policy::OVERLAPPED, Policy::PHASED] {
        let plan = Plan::clone(&plan).with(policy);
        let memory = plan.memory();
        assert!(memory.iter().zip(&own).all(|(m, &own)| m.resident == own && m.leaving == own), "{policy}: {memory:?}");
        assert!(memory.iter().all(|m| m.resident + m.arriving <= plan.weights.bytes), "{policy}: {memory:?}");
        let come = memory.iter().zip(&own[1..]).all(|(m, &next)| m.arriving >= next);
        assert_eq!(come, policy == Policy::OVERLAPPED, "{memory:?}");
    }
}

/// Runs of stages on ownership of the weights' region: each weight is written as soon as its gate lets it, and every stage
/// must find the weights it reads.
fn every_stage_finds_its_weights(plan: &Plan, policy: Policy, runs: &[Vec<usize>]) {
    let (graph, residency) = (&plan.graph, Residency::new(&plan.graph, policy));
    let mut owner = vec![usize::MAX; residency.bytes / ALIGNMENT];
    let blocks = |storage: StorageId| {
        let place = residency.place(graph, storage).unwrap();
        place.start / ALIGNMENT..place.end.div_ceil(ALIGNMENT)
    };
    let mut resident = vec![false; graph.storages.len()];
    for stages in runs {
        let arrivals = residency.arrivals(graph, stages, &mut resident);
        for (at, &stage) in stages.iter().enumerate() {
            for arrival in arrivals.iter().filter(|arrival| arrival.gate == at) {
                owner[blocks(arrival.storage)].fill(arrival.storage.0);
            }
            let inputs = graph.nodes[residency.segments[stage].nodes.clone()].iter().flat_map(|node| &node.inputs);
            for storage in inputs.map(|&id| graph.tensor(id).storage).filter(|s| residency.offsets[s.0].is_some()) {
                let name = &graph.storages[storage.0].name;
                assert!(owner[blocks(storage)].iter().all(|&o| o == storage.0), "{policy}, {stages:?}: {name} at {at}");
            }
        }
        for (i, _) in resident.iter().enumerate().filter(|(_, there)| **there) {
            assert!(owner[blocks(StorageId(i))].iter().all(|&o| o == i), "{policy}, {stages:?}: {i} is not there");
        }
    }
}

/// A whole edit waits for as little as its policy promises, and a second one of `RESIDENT` fetches nothing.
#[test]
fn gates_are_no_later_than_the_policy_says() {
    let plan = planned(Preset::Tiny, (256, 256), 256, Precision::Bf16).plan;
    let all: Vec<usize> = (0..plan.bodies.len()).collect();
    for policy in Policy::ALL {
        let residency = Residency::new(&plan.graph, policy);
        let mut resident = vec![false; plan.graph.storages.len()];
        let arrivals = residency.arrivals(&plan.graph, &all, &mut resident);
        assert_eq!(arrivals.len(), read_by_nodes(&plan.graph));
        for Arrival { storage, visit, gate } in arrivals {
            assert!(gate <= visit, "{policy}: {} comes too late", plan.graph.storages[storage.0].name);
            let first = *residency.readers[storage.0].as_ref().unwrap().start();
            let latest = if policy.keeps_all() { 0 } else { first.saturating_sub(policy.ahead) };
            assert!(gate <= latest, "{policy}: {} waits for {gate} stages", plan.graph.storages[storage.0].name);
        }
        let again = residency.arrivals(&plan.graph, &all, &mut resident).len();
        assert_eq!(again == 0, policy == Policy::RESIDENT, "{policy}: {again} come again");
    }
}

/// Runs the plan on ownership alone: whoever writes bytes owns them, and every read must find its own bytes, also when a
/// repeated stage comes round again. Knows nothing of lifetimes.
fn every_read_finds_what_was_written(plan: &Plan) {
    let graph = &plan.graph;
    let mut owner = vec![usize::MAX; plan.arena_bytes / ALIGNMENT];
    let blocks = |storage: usize| {
        let start = plan.offsets[storage].unwrap() / ALIGNMENT;
        start..start + graph.storages[storage].spec.bytes().div_ceil(ALIGNMENT)
    };
    for (i, storage) in graph.storages.iter().enumerate() {
        if storage.kind == Kind::Input {
            owner[blocks(i)].fill(i);
        }
    }
    let in_arena = |id: &TensorId| Some(graph.tensor(*id).storage.0).filter(|&s| plan.offsets[s].is_some());
    for leg in &plan.itinerary.0 {
        let most = 3 * leg.bodies.len();
        for (turn, body) in leg.visits().into_iter().take(most.max(12)).enumerate() {
            for node in &graph.nodes[graph.nodes_of(body)] {
                for storage in node.inputs.iter().filter_map(in_arena) {
                    let name = &graph.storages[storage].name;
                    assert!(
                        owner[blocks(storage)].iter().all(|&o| o == storage),
                        "turn {turn}: {} reads {name}, which is gone",
                        node.name
                    );
                }
                node.outputs.iter().filter_map(in_arena).for_each(|storage| owner[blocks(storage)].fill(storage));
            }
        }
    }
    for (i, storage) in graph.storages.iter().enumerate().filter(|(_, s)| s.kind == Kind::Output) {
        assert!(owner[blocks(i)].iter().all(|&o| o == i), "the output {} is gone at the end", storage.name);
    }
}

/// Four bodies of pointwise nodes: each reads two tensors that were written before it; a body that nobody gave a node has one.
fn random_graph(nodes: &[(usize, prop::sample::Index, prop::sample::Index)]) -> (Graph, Vec<BodyId>) {
    let mut g = Graph::new();
    let mut made = vec![g.input("x", DType::F32, [3, 64])];
    let bodies = (0..4).map(|body| {
        let (id, ()) = g.body(["first", "step", "cached", "last"][body], |g| {
            let own: Vec<_> = nodes.iter().filter(|(of, ..)| *of == body).collect();
            for (_, a, b) in if own.is_empty() { vec![&nodes[0]] } else { own } {
                let operands = [*a.get(&made), *b.get(&made)];
                made.push(g.op(&format!("node {}", made.len()), Add, &operands));
            }
        });
        id
    });
    let bodies = bodies.collect();
    g.output(*made.last().unwrap());
    (g, bodies)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 10))]

    /// Any edit's plan: sizes, prompts, branches, versions, savings, noise, with and without a reference.
    #[test]
    fn no_edit_loses_a_tensor(
        (w, h) in (1usize..12, 1usize..12),
        (gw, gh) in (1usize..6, 1usize..6),
        words in 0usize..120,
        branches in 1usize..=2,
        switches in prop::array::uniform9(any::<bool>()),
    ) {
        let [v1_0, diffusers, reference, host, sample, collapse_padding, trim_last_block, share_prefix, condition_once] = switches;
        let model = PresetModel::new(Preset::Tiny, if v1_0 { Version::V1_0 } else { Version::V1_1 }).unwrap();
        let encode = |prompt: &str| model.tokenizer.encode_prompt(prompt, gw * gh, &model.settings).unwrap();
        let request = Request {
            size: (16 * w, 16 * h),
            reference,
            grid: (2 * gh, 2 * gw),
            tokens: &[encode(&"red! ".repeat(words)), encode("")][..branches],
            steps: 1 + words % 4,
            noise: if host { NoiseSource::Host } else { NoiseSource::Philox { grid_threads: 256 } },
            sample_posterior: sample,
            savings: Savings { collapse_padding, trim_last_block, share_prefix, condition_once },
            conventions: Rules::ALL[usize::from(diffusers)].conventions(),
        };
        for (precision, target) in [(Precision::F32, Target::Cpu), (Precision::Bf16, Target::Cuda(Arch(80)))] {
            let inputs = EditInputs::new(&model.config, &model.settings, &request).unwrap();
            let program = Program::new(&model.config, inputs.spec, precision, target).unwrap();
            prop_assert_eq!(program.plan.overlaps(), []);
            every_read_finds_what_was_written(&program.plan);
            let peaks = program.plan.peaks();
            prop_assert!(peaks.is_sorted_by(|a, b| a.1 >= b.1), "{:?}", peaks);
        }
    }

    /// Bodies of one leg in any order, which hand each other what they made: random graphs, random masks.
    #[test]
    fn a_leg_of_several_bodies_loses_nothing(
        nodes in prop::collection::vec((0usize..4, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 8..40),
        letters in prop::collection::vec(0u8..2, 0..12),
    ) {
        let (graph, bodies) = random_graph(&nodes);
        let middle = Leg { bodies: bodies[1..3].to_vec(), turns: Turns::Mask([vec![0, 1], letters].concat()) };
        let itinerary = Itinerary([Itinerary::once([bodies[0]]).0, vec![middle], Itinerary::once([bodies[3]]).0].concat());
        let plan = Plan::new(graph, itinerary, Precision::F32, Target::Cpu).unwrap();
        prop_assert_eq!(plan.overlaps(), []);
        every_read_finds_what_was_written(&plan);
    }

    /// Any runs of any stages, with returns, one after another on one executor.
    #[test]
    fn no_stage_loses_a_weight(
        runs in prop::collection::vec(prop::collection::vec(0usize..6, 1..12), 1..5),
        condition_once in any::<bool>(),
    ) {
        let model = PresetModel::new(Preset::Tiny, Version::V1_1).unwrap();
        let savings = Savings { condition_once, ..Savings::ALL };
        let job = PlanJob { prompt: PROMPT.into(), rules: None, size: (64, 64), size_level: 64, steps: 2, precision: Precision::Bf16, savings };
        let plan = plan_edit(&model.config, &model.settings, &model.tokenizer, &job).unwrap().plan;
        Policy::ALL.into_iter().for_each(|policy| every_stage_finds_its_weights(&plan, policy, &runs));
    }
}

#[test]
fn a_refusal_names_nodes_and_reasons() {
    let model = PresetModel::new(Preset::Tiny, Version::V1_1).unwrap();
    let tokens = [
        model.tokenizer.encode_prompt("red", 4, &model.settings).unwrap(),
        model.tokenizer.encode_prompt("", 4, &model.settings).unwrap(),
    ];
    let request = Request {
        size: (32, 32),
        reference: true,
        grid: (4, 4),
        tokens: &tokens,
        steps: 1,
        noise: NoiseSource::Host,
        sample_posterior: false,
        savings: Savings::ALL,
        conventions: Conventions::OFFICIAL,
    };
    let spec = EditInputs::new(&model.config, &model.settings, &request).unwrap().spec;
    let refused = Program::new(&model.config, spec.clone(), Precision::Bf16, Target::Cuda(Arch(75)));
    let text = format!("{:#}", refused.err().unwrap());
    assert!(
        text.contains("encoder.conv_in (conv2d): the GPU is sm_75; the kernel needs sm_80")
            && text.contains("no sm_75 kernel takes"),
        "{text}"
    );
    let refused = Program::new(&model.config, spec, Precision::F32, Target::Cuda(Arch(90)));
    assert!(format!("{:#}", refused.err().unwrap()).contains("f32 runs on the CPU"));
}
