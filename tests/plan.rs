//! The planner: printed graphs and plans as committed, and no byte that two living tensors share.

use std::path::PathBuf;

use proptest::prelude::*;
use step1x_edit::cli::{PlanJob, Preset};
use step1x_edit::graph::{Kind, TensorId};
use step1x_edit::inspect::plan_edit;
use step1x_edit::model::Version;
use step1x_edit::model::edit::{NoiseSource, Savings};
use step1x_edit::ops::Arch;
use step1x_edit::pipeline::{Program, Request};
use step1x_edit::plan::{ALIGNMENT, Plan, Precision, Target};
use step1x_edit::synth::PresetModel;

const PROMPT: &str = "Replace 'TRAIN' with 'PLANE'";

fn planned(preset: Preset, size: (usize, usize), size_level: usize, precision: Precision) -> Program {
    let version = Version::V1_1;
    let model = PresetModel::new(preset, version).unwrap();
    let job = PlanJob { version, size, size_level, steps: 28, precision, savings: Savings::ALL };
    plan_edit(&model.config, &model.settings, &model.tokenizer, PROMPT, &job).unwrap()
}

/// Compares with `tests/snapshots/{name}.txt`, or writes it if STEP1X_UPDATE_SNAPSHOTS is set.
fn snapshot(name: &str, plan: &Plan) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/snapshots/{name}.txt"));
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
        (plan.stages.iter().map(|s| s.live_bytes).max().unwrap(), plan.stages.iter().map(|s| s.live_bytes).sum::<usize>());
    // The arena is that of the most demanding moment, but for what first-fit leaves unused.
    assert!(plan.arena_bytes >= largest && (plan.arena_bytes as f64) < 1.02 * largest as f64 && plan.arena_bytes < sum);
}

/// A weight is on its way while the stage before its first reader runs, and stays until its last reader is done.
#[test]
fn weights_that_are_there_together_share_no_bytes() {
    for (preset, size) in [(Preset::Tiny, 256), (Preset::Full, 1024)] {
        let plan = planned(preset, (size, size), size, Precision::Bf16).plan;
        let weights = plan.graph.storages.iter().enumerate().filter_map(|(i, storage)| {
            let (offset, readers) = (plan.weights.offsets[i]?, plan.weights.readers[i].clone()?);
            Some((offset..offset + storage.spec.bytes(), readers.start().saturating_sub(1)..=*readers.end(), &storage.name))
        });
        let weights: Vec<_> = weights.collect();
        assert_eq!(weights.len(), plan.graph.weights().count());
        for (i, (bytes, stages, name)) in weights.iter().enumerate() {
            assert!(bytes.end <= plan.weights.bytes && bytes.start % ALIGNMENT == 0, "{name}");
            for (other_bytes, other_stages, other) in &weights[..i] {
                let together = stages.start() <= other_stages.end() && other_stages.start() <= stages.end();
                let apart = bytes.end <= other_bytes.start || other_bytes.end <= bytes.start;
                assert!(!together || apart, "{name} and {other}");
            }
        }
        // The region is as large as the two neighbouring stages with the most weights.
        let pairs = plan.stages.windows(2).map(|pair| pair[0].weight_bytes + pair[1].weight_bytes);
        assert!((plan.weights.bytes as f64) < 1.01 * pairs.max().unwrap() as f64);
    }
    assert!(planned(Preset::Full, (1024, 1024), 1024, Precision::Bf16).plan.device_bytes() < 45_000_000_000);
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
    for stage in &graph.stages {
        for run in 0..stage.repeat.min(3) {
            for node in &graph.nodes[stage.nodes.clone()] {
                for storage in node.inputs.iter().filter_map(in_arena) {
                    let name = &graph.storages[storage].name;
                    assert!(
                        owner[blocks(storage)].iter().all(|&o| o == storage),
                        "run {run}: {} reads {name}, which is gone",
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any edit's plan: sizes, prompts, versions, savings, noise, with and without a reference.
    #[test]
    fn no_edit_loses_a_tensor(
        (w, h) in (1usize..12, 1usize..12),
        (gw, gh) in (1usize..6, 1usize..6),
        words in 0usize..120,
        switches in prop::array::uniform8(any::<bool>()),
    ) {
        let [v1_0, reference, host, sample, collapse_padding, trim_last_block, share_prefix, condition_once] = switches;
        let model = PresetModel::new(Preset::Tiny, if v1_0 { Version::V1_0 } else { Version::V1_1 }).unwrap();
        let encode = |prompt: &str| model.tokenizer.encode_prompt(prompt, gw * gh).unwrap();
        let request = Request {
            size: (16 * w, 16 * h),
            reference,
            grid: (2 * gh, 2 * gw),
            tokens: &[encode(&"red! ".repeat(words)), encode("")],
            steps: 1 + words % 4,
            cfg_scale: 6.0,
            noise: if host { NoiseSource::Host } else { NoiseSource::Philox { seed: 1, grid_threads: 256 } },
            sample_posterior: sample,
            savings: Savings { collapse_padding, trim_last_block, share_prefix, condition_once },
        };
        for (precision, target) in [(Precision::F32, Target::Cpu), (Precision::Bf16, Target::Cuda(Arch(80)))] {
            let program = Program::new(&model.config, &model.settings, &request, precision, target).unwrap();
            prop_assert_eq!(program.plan.overlaps(), []);
            every_read_finds_what_was_written(&program.plan);
        }
    }
}

#[test]
fn a_refusal_names_nodes_and_reasons() {
    let model = PresetModel::new(Preset::Tiny, Version::V1_1).unwrap();
    let tokens = [model.tokenizer.encode_prompt("red", 4).unwrap(), model.tokenizer.encode_prompt("", 4).unwrap()];
    let request = Request {
        size: (32, 32),
        reference: true,
        grid: (4, 4),
        tokens: &tokens,
        steps: 1,
        cfg_scale: 6.0,
        noise: NoiseSource::Host,
        sample_posterior: false,
        savings: Savings::ALL,
    };
    let refused = Program::new(&model.config, &model.settings, &request, Precision::Bf16, Target::Cuda(Arch(75)));
    let text = format!("{:#}", refused.err().unwrap());
    assert!(text.contains("encoder.conv_in (conv2d): sm_75 is below sm_80") && text.contains("no sm_75 kernel takes"), "{text}");
    let refused = Program::new(&model.config, &model.settings, &request, Precision::F32, Target::Cuda(Arch(90)));
    assert!(format!("{:#}", refused.err().unwrap()).contains("f32 runs on the CPU"));
}
