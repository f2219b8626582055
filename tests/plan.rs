//! The planner: printed graphs and plans as committed, and no byte that two living tensors share.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use step1x_edit::commands::inspect::{PlanJob, plan_edit};
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::error::{ResourceError, UsageError};
use step1x_edit::graph::{BodyId, Graph, Kind, Node, StorageId, TensorId};
use step1x_edit::model::Preset;
use step1x_edit::model::Version;
use step1x_edit::model::edit::{Conventions, NoiseSource, Savings};
use step1x_edit::ops::{Add, Arch};
use step1x_edit::pipeline::{EditInputs, Program, Request, Rules};
use step1x_edit::plan::{ALIGNMENT, Budget, Itinerary, Leg, Plan, Policy, Precision, Target, Turns};
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
        // What outlives a body lies below all of them, so first-fit leaves a little more unused.
        assert!(side == 512 || (plan.arena_bytes as f64) < 1.03 * decode.live_bytes as f64, "it decides how large the arena is");
        let strips = plan.graph.nodes.iter().filter(|node| node.op.attributes().ends_with("strip")).count();
        assert_eq!(strips > 0, side > 1024, "{strips} convolutions of strips");
        assert_eq!(plan.overlaps(), []);
        if side == 1040 {
            every_read_finds_what_was_written(&plan); // of a larger one it would take a minute
        }
    }
}

/// The plan with weights resident, and streamed in as little as it takes, and in more and more.
fn residencies(plan: &Plan) -> Vec<Plan> {
    let (least, most) = (plan.least_bytes(), plan.clone().resident().device_bytes());
    let streamed = [0, 1, 2, 5, 10, 25, 50, 80, 99].map(|percent| {
        let bytes = least + (most.saturating_sub(least)) / 100 * percent;
        plan.clone().streamed(bytes, 55.0).unwrap_or_else(|least| panic!("{least} bytes are the least, not {bytes}"))
    });
    [vec![plan.clone().resident()], streamed.to_vec()].concat()
}

/// Every weight has a place; kept ones have it alone, above all activations; a segment's weights are apart, and above its activations.
#[test]
fn weights_that_are_there_together_share_no_bytes() {
    for (preset, size) in [(Preset::Tiny, 256), (Preset::Full, 1024)] {
        for plan in residencies(&planned(preset, (size, size), size, Precision::Bf16).plan) {
            let (residency, graph) = (&plan.weights, &plan.graph);
            let name = |storage: StorageId| &graph.storages[storage.0].name;
            let placed: Vec<StorageId> =
                (0..graph.storages.len()).map(StorageId).filter(|s| residency.offsets[s.0].is_some()).collect();
            assert_eq!(placed.len(), read_by_nodes(graph));
            let overlap = |a: StorageId, b: StorageId| {
                let [a, b] = [a, b].map(|s| residency.place(s).unwrap());
                a.start < b.end && b.start < a.end
            };
            for &one in &placed {
                let place = residency.place(one).unwrap();
                assert!(place.end <= residency.bytes && place.start % ALIGNMENT == 0, "{}", name(one));
                if residency.kept[one.0] {
                    assert!(residency.arena.iter().all(|height| *height <= place.start), "{} lies among activations", name(one));
                    let other = placed.iter().find(|&&other| other != one && overlap(one, other));
                    assert!(other.is_none(), "{} and {} are not apart", name(one), name(*other.unwrap()));
                }
            }
            for (number, segment) in residency.segments.iter().enumerate() {
                let height = residency.arena[number];
                assert!(residency.keeps_all() || height >= plan.arena_of(segment.body));
                let reads = residency.reads_of(number);
                for (at, &one) in reads.iter().enumerate() {
                    assert!(residency.place(one).unwrap().start >= height, "{} lies among activations", name(one));
                    assert!(reads[..at].iter().all(|&other| !overlap(one, other)), "{} in segment {number}", name(one));
                }
            }
            // Segments are the bodies' nodes, cut.
            let nodes: Vec<usize> = residency.segments.iter().flat_map(|segment| segment.nodes.clone()).collect();
            assert!(nodes.into_iter().eq(0..graph.nodes.len()), "segments leave out nodes");
        }
    }
}

/// The released size at 1024x1024: what is resident, what streams, and what is refused.
#[test]
fn weights_are_resident_if_they_fit_and_stream_if_not() {
    let [small, large] = [512, 1024].map(|size| planned(Preset::Full, (size, size), size, Precision::Bf16).plan);
    let fit = |plan: &Plan, budget| Plan::clone(plan).fit(budget, 55.0, None);
    let resident = Plan::clone(&large).resident().peak_bytes();
    assert_eq!(fit(&large, Budget::Free(resident)).unwrap().weights.policy, Policy::Resident);
    for budget in [resident - 1, 24_000_000_000, 16_000_000_000, 12_000_000_000, 6_000_000_000, 4_500_000_000] {
        let plan = fit(&large, Budget::Allowed(budget)).unwrap();
        assert!(matches!(plan.weights.policy, Policy::Streamed { .. }) && plan.peak_bytes() <= budget, "{budget}");
        assert!(plan.peak_bytes() + ALIGNMENT > budget, "{budget}: {} are left unused", budget - plan.peak_bytes());
        // At 1024x1024 the steps hide their copies.
        let passages = plan.passages(55.0);
        let step = plan.graph.body_named("step").unwrap().0;
        assert!(passages[step].stalls < 0.002 * passages[step].seconds, "{budget}: {:?}", passages[step]);
    }
    // With room for all weights of the step, none of them streams.
    let step = |plan: &Plan| plan.memory()[plan.graph.body_named("step").unwrap().0];
    assert_eq!(step(&fit(&large, Budget::Allowed(24_000_000_000)).unwrap()).streamed, 0);
    assert!(step(&fit(&large, Budget::Allowed(6_000_000_000)).unwrap()).streamed > 15_000_000_000);
    // At 512x512 they do not hide: the more memory, the sooner an edit is done.
    let seconds = [4_000_000_000, 6_000_000_000, 16_000_000_000].map(|budget| {
        let passages = fit(&small, Budget::Allowed(budget)).unwrap().passages(55.0);
        passages.iter().map(|passage| passage.seconds).sum::<f64>()
    });
    assert!(seconds.is_sorted_by(|a, b| a > b), "{seconds:?}");

    // A plan of a smaller picture streams where another streams already, though it need not.
    let like = fit(&large, Budget::Allowed(30_000_000_000)).unwrap().device_bytes();
    let same = Plan::clone(&small).fit(Budget::Allowed(resident), 55.0, Some(like)).unwrap();
    assert_eq!(same.weights.policy, Policy::Streamed { bytes: like });

    let refused = |plan: &Plan, budget| fit(plan, budget).unwrap_err().downcast::<ResourceError>().unwrap().0;
    let least = large.least_peak_bytes();
    let text = refused(&large, Budget::Free(least - 1));
    let said = format!("at least {}", step1x_edit::plan::format_bytes(least));
    assert!(text.contains(&said) && text.contains("are free") && text.contains("smaller --size-level"), "{text}");
    fit(&large, Budget::Free(least)).unwrap();
    let text = refused(&small, Budget::Allowed(1_000_000_000));
    assert!(text.contains("--max-vram allows 1.00 GB"), "{text}");
}

/// A slower link: more of the step is kept, as far as there is room, and what is left over is the stall that is told.
#[test]
fn a_slower_link_keeps_more() {
    let plan = planned(Preset::Full, (1024, 1024), 1024, Precision::Bf16).plan;
    let step = plan.graph.body_named("step").unwrap().0;
    let [fast, slow] = [55.0, 25.0].map(|link| Plan::clone(&plan).streamed(9_400_000_000, link).unwrap());
    assert!(slow.memory()[step].kept > fast.memory()[step].kept + 1_000_000_000, "{:?}", slow.memory()[step]);
    let stalls = |plan: &Plan| plan.passages(25.0)[step].stalls;
    assert!(stalls(&slow) < 0.5 * stalls(&fast), "{} {}", stalls(&slow), stalls(&fast));
    // What is kept is spread over the step, more of it in the double blocks, which read twice the bytes in the same time.
    let nodes = plan.graph.nodes_of(BodyId(step));
    let (mut quarters, mut seen) = ([0usize; 4], std::collections::HashSet::new());
    for at in nodes.clone() {
        let weights = plan.graph.nodes[at].inputs.iter().map(|&id| plan.graph.tensor(id).storage);
        for storage in weights.filter(|s| slow.weights.kept[s.0] && seen.insert(*s)) {
            quarters[(at - nodes.start) * 4 / nodes.len()] += plan.graph.storages[storage.0].spec.bytes();
        }
    }
    let all: usize = quarters.iter().sum();
    assert!(quarters.iter().all(|quarter| 40 * quarter > all && 2 * quarter < all), "{quarters:?}");
}

/// Runs of bodies on ownership of the region: activations take their part, each weight is written as soon as its gate lets it, and
/// every segment must find the weights it reads.
fn every_segment_finds_its_weights(plan: &Plan, runs: &[Vec<usize>]) {
    const ACTIVATIONS: usize = usize::MAX - 1;
    let (graph, residency) = (&plan.graph, &plan.weights);
    let what = residency.policy;
    let mut owner = vec![usize::MAX; residency.bytes.div_ceil(ALIGNMENT)];
    let blocks = |storage: StorageId| {
        let place = residency.place(storage).unwrap();
        place.start / ALIGNMENT..place.end.div_ceil(ALIGNMENT)
    };
    let mut resident = vec![false; graph.storages.len()];
    for bodies in runs {
        let visits = residency.visits(&bodies.iter().map(|&body| BodyId(body)).collect::<Vec<_>>());
        let arrivals = residency.arrivals(&visits, &mut resident);
        for arrival in &arrivals {
            assert!(arrival.gate <= arrival.visit, "{what:?}: {} comes too late", graph.storages[arrival.storage.0].name);
        }
        for (at, &segment) in visits.iter().enumerate() {
            for arrival in arrivals.iter().filter(|arrival| arrival.gate == at) {
                owner[blocks(arrival.storage)].fill(arrival.storage.0);
            }
            owner[..residency.arena[segment] / ALIGNMENT].fill(ACTIVATIONS);
            for &storage in residency.reads_of(segment) {
                let name = &graph.storages[storage.0].name;
                assert!(owner[blocks(storage)].iter().all(|&o| o == storage.0), "{what:?}, {bodies:?}: {name} at {at}");
            }
        }
        for (i, _) in resident.iter().enumerate().filter(|(_, there)| **there) {
            assert!(owner[blocks(StorageId(i))].iter().all(|&o| o == i), "{what:?}, {bodies:?}: {i} is not there");
        }
    }
}

/// Of a second edit nothing comes again that is kept, and everything that streams does.
#[test]
fn what_is_kept_comes_once() {
    let plan = planned(Preset::Tiny, (256, 256), 256, Precision::Bf16).plan;
    for plan in residencies(&plan) {
        let visits = plan.weights.visits(&plan.itinerary.visits());
        let mut resident = vec![false; plan.graph.storages.len()];
        let first = plan.weights.arrivals(&visits, &mut resident);
        assert!(first.len() >= read_by_nodes(&plan.graph));
        let again = plan.weights.arrivals(&visits, &mut resident);
        assert!(again.iter().all(|arrival| !plan.weights.kept[arrival.storage.0]));
        assert_eq!(again.is_empty(), plan.weights.keeps_all(), "{:?}", plan.weights.policy);
    }
}

/// The modelled time of a step's nodes against steps measured on an H100 (benches/results: 2026-11-26-h100-stream-first.txt, of 512
/// -judge-lora-layouts.txt, of 768 2026-11-25-h100-bench-768.txt). The bound is what is asked of a plan's prediction.
#[test]
fn a_modelled_step_takes_as_long_as_a_measured_one() {
    for (side, measured) in [(512, 0.109), (768, 0.2507), (1024, 0.4973), (2048, 3.621)] {
        let plan = planned(Preset::Full, (side, side), side, Precision::Bf16).plan;
        let pace = plan.pace(55.0);
        let modelled: f64 = plan.graph.nodes_of(plan.graph.body_named("step").unwrap()).map(|at| pace.nodes[at]).sum();
        assert!((modelled / measured - 1.0).abs() < 0.03, "{side}: {modelled} s, measured {measured} s");
    }
}

/// A turn of the timeline takes its nodes' time and its stalls; with an endless link nothing stalls; with a link so slow that nothing
/// hides, a turn takes what its bytes take.
#[test]
fn the_timeline_is_that_of_two_lanes() {
    let plan = Plan::clone(&planned(Preset::Full, (512, 512), 512, Precision::Bf16).plan);
    let plan = plan.streamed(5_400_000_000, 55.0).unwrap();
    let step = plan.graph.body_named("step").unwrap();
    let turns = 4;
    let visits = plan.weights.visits(&vec![step; turns]);
    let each = visits.len() / turns;
    for (link, stalls) in [(1e6, false), (55.0, true), (1.0, true)] {
        let pace = plan.pace(link);
        let nodes: f64 = plan.graph.nodes_of(step).map(|at| pace.nodes[at]).sum();
        let timeline = plan.weights.timeline(&visits, &mut vec![false; plan.graph.storages.len()], &pace);
        assert!(timeline.windows(2).all(|pair| pair[0].ends <= pair[1].begins), "segments run one after another");
        let turn = &timeline[2 * each..3 * each];
        let (seconds, waited) = (turn[each - 1].ends - timeline[2 * each - 1].ends, turn.iter().map(|v| v.stalls).sum::<f64>());
        assert!((seconds - nodes - waited).abs() < 1e-9, "{link}: {seconds} {nodes} {waited}");
        assert_eq!(waited > 0.01 * nodes, stalls, "{link}: {waited} of {seconds}");
        if stalls {
            let bytes = plan.memory()[step.0].streamed as f64;
            assert!((seconds / (bytes / pace.link) - 1.0).abs() < 0.05, "{link}: {seconds} s for {bytes} bytes");
        }
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
        for plan in residencies(&plan) {
            every_segment_finds_its_weights(&plan, &runs);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 16))]

    /// Edits of the released size in any budget with any link: no place is written before its last reader is done.
    #[test]
    fn no_budget_loses_a_weight(size in prop::sample::select(vec![256usize, 512, 1024]), percent in 0.0f64..100.0, link in 5.0f64..200.0) {
        let plan = Plan::clone(&planned(Preset::Full, (size, size), size, Precision::Bf16).plan);
        let (least, most) = (plan.least_bytes(), plan.clone().resident().device_bytes());
        let bytes = least + ((most - least) as f64 * percent / 100.0) as usize;
        let plan = plan.streamed(bytes, link).unwrap();
        prop_assert!(plan.device_bytes() <= bytes);
        let edit: Vec<usize> = plan.itinerary.visits().iter().map(|body| body.0).collect();
        // Three turns of the step are as good as all.
        let mut edit = edit;
        edit.dedup();
        let step = plan.graph.body_named("step").unwrap().0;
        let at = edit.iter().position(|&body| body == step).unwrap();
        edit.splice(at..at + 1, [step; 3]);
        every_segment_finds_its_weights(&plan, &[edit.clone(), edit]);
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
    for precision in [Precision::F32, Precision::Fp8] {
        let refused = Program::new(&model.config, spec.clone(), precision, Target::Cuda(Arch(90)));
        assert!(format!("{:#}", refused.err().unwrap()).contains(&format!("only the CPU runs --precision {precision}")));
    }
}

/// Weights of the products that are rounded, without their block's number, and the products' attributes.
fn rounded(precision: Precision) -> Vec<(String, String)> {
    let plan = planned(Preset::Full, (512, 512), 512, precision).plan;
    // On a GPU they have an op of their own, between whose weight and rows the rows' scales stand.
    let integers = |node: &Node| node.op.kind() == "linear_int8";
    let weight = |node: &Node| node.inputs.get(if integers(node) { 2 } else { 1 }).copied();
    let module = |node: &Node| weight(node).map_or("", |weight| &plan.graph.storage_of(weight).name);
    let attributes = |node: &Node| format!("{}{}", node.op.attributes(), if integers(node) { " int8" } else { "" });
    let all = plan.graph.nodes.iter().map(|node| (without_block(module(node)), attributes(node)));
    all.filter(|(_, attributes)| ["int8", "e4m3"].iter().any(|word| attributes.ends_with(word))).collect()
}

/// `blocks.3.module` as `blocks.module`.
fn without_block(name: &str) -> String {
    let parts: Vec<&str> = name.splitn(3, '.').collect();
    if let [blocks, number, module] = parts[..]
        && number.parse::<usize>().is_ok()
    {
        return format!("{blocks}.{module}");
    }
    name.into()
}

#[test]
fn on_a_gpu_rows_are_rounded_once_and_weights_take_half() {
    let [bf16, int8] = [Precision::Bf16, Precision::Int8].map(|precision| planned(Preset::Full, (512, 512), 512, precision).plan);
    let count = |kind: &str| int8.graph.nodes.iter().filter(|node| node.op.kind() == kind).count();
    // Products of single blocks read the same rows twice; of the last one, all rows and those that ask.
    assert_eq!((count("linear_int8"), count("quantize_rows")), (19 * 8 + 38 * 3 + 1, 19 * 8 + 37 * 2 + 3));
    let (mut elements, mut rows) = (0, 0);
    for (n, k) in std::iter::repeat_n([(9216, 3072), (3072, 3072), (12288, 3072), (3072, 12288)], 2 * 19)
        .flatten()
        .chain(std::iter::repeat_n([(21504, 3072), (3072, 15360)], 38).flatten())
    {
        (elements, rows) = (elements + n * k, rows + n);
    }
    // Integers instead of bf16, and a scale and a bias in f32 instead of a bias in bf16.
    assert_eq!(int8.weight_bytes(), bf16.weight_bytes() - elements + 6 * rows);
    assert_eq!(int8.graph.weights().count(), bf16.graph.weights().count(), "the checkpoint's weights");
    assert!(int8.pace(55.0).nodes.iter().sum::<f64>() < bf16.pace(55.0).nodes.iter().sum::<f64>());
    assert_eq!(int8.overlaps(), []);
    // A plan of a planned graph is the same.
    let Plan { graph, itinerary, precision, target, .. } = Plan::clone(&int8);
    let again = Plan::new(graph, itinerary, precision, target).unwrap();
    assert_eq!((again.to_string(), again.graph.to_string()), (int8.to_string(), int8.graph.to_string()));
}

#[test]
fn products_of_integers_need_their_gpu() {
    let model = PresetModel::new(Preset::Tiny, Version::V1_1).unwrap();
    let spec = planned(Preset::Tiny, (64, 64), 64, Precision::Bf16).spec.clone();
    for (precision, arch) in [(Precision::Int8, 80), (Precision::Mixed, 89), (Precision::Int8, 100)] {
        let refused = Program::new(&model.config, spec.clone(), precision, Target::Cuda(Arch(arch))).err().unwrap();
        let text = refused.downcast_ref::<UsageError>().unwrap_or_else(|| panic!("{refused:#}")).0.clone();
        for word in [&format!("--precision {precision}"), "9.0", &format!("{}.{}", arch / 10, arch % 10), "bf16", "--device cpu"]
        {
            assert!(text.contains(word), "{text}");
        }
    }
}

#[test]
fn products_of_the_blocks_alone_are_rounded() {
    let before_gelu = ["img_attn.qkv", "img_attn.proj", "img_mlp.0", "txt_attn.qkv", "txt_attn.proj", "txt_mlp.0", "linear1"];
    let after_gelu = ["img_mlp.2", "txt_mlp.2", "linear2"];
    // Eight of each of 19 double blocks; three of each of 38 single ones, and one more of the last, whose queries are apart.
    let (all, after) = (19 * 8 + 38 * 3 + 1, 19 * 2 + 38);
    for (precision, word, count) in
        [(Precision::Int8, "int8", all), (Precision::Fp8, "e4m3", all), (Precision::Mixed, "int8", all - after)]
    {
        let found = rounded(precision);
        assert_eq!(found.len(), count, "{precision}");
        let modules = if precision == Precision::Mixed { &before_gelu[..] } else { &[&before_gelu[..], &after_gelu].concat() };
        let of_blocks: BTreeSet<String> = modules
            .iter()
            .map(|module| format!("{}_blocks.{module}.weight", if module.contains("linear") { "single" } else { "double" }))
            .collect();
        assert_eq!(found.iter().map(|(module, _)| module.clone()).collect::<BTreeSet<_>>(), of_blocks, "{precision}");
        assert!(found.iter().all(|(_, attributes)| attributes.ends_with(word)), "{precision}");
        assert_eq!(found.iter().filter(|(_, attributes)| attributes.contains("gelu_tanh")).count(), after, "GELU stays");
    }
    for precision in [Precision::Bf16, Precision::F32] {
        assert_eq!(rounded(precision), []);
    }
}
