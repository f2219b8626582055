//! The released sizes: recorded and planned, not run. The programs read exactly the tensors of the checkpoints, and a
//! GPU takes every node.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use step1x_edit::graph::Graph;
use step1x_edit::model::edit::{self, Conventions, EditSpec, NoiseSource, Savings};
use step1x_edit::model::text::TextRows;
use step1x_edit::model::{Config, PromptRows, Version};
use step1x_edit::ops::{Arch, H100_GRID_THREADS};
use step1x_edit::plan::{Itinerary, Plan, Precision, Target};
use step1x_edit::prompt::window_order;
use step1x_edit::tensor::{Component, Shape};

use crate::common::AXES;

/// Tensor names and shapes.
type Shapes = BTreeMap<String, Vec<usize>>;

fn manifest(name: &str) -> Shapes {
    let path = format!("{}/tests/data/manifests/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let entries: BTreeMap<String, Value> = serde_json::from_slice(&bytes).expect("a manifest is an object");
    let shape = |entry: Value| serde_json::from_value(entry["shape"].clone()).expect("a shape");
    entries.into_iter().map(|(name, entry)| (name, shape(entry))).collect()
}

/// Qwen2.5-VL-7B-Instruct's config.json, as far as dimensions go.
fn qwen_config() -> Value {
    json!({
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064, "rope_theta": 1e6,
        "rope_scaling": { "type": "mrope", "mrope_section": [16, 24, 24] },
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "patch_size": 14,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 3584, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    })
}

/// The manifests of a version's three checkpoints; of Qwen's without the head that only generation needs.
fn manifests(version: Version) -> BTreeMap<Component, Shapes> {
    let dit = match version {
        Version::V1_0 => "step1x-edit-i1258.json",
        Version::V1_1 => "step1x-edit-v1p1-official.json",
    };
    let mut qwen = manifest("qwen2.5-vl-7b-instruct.json");
    qwen.remove("lm_head.weight").expect("a head");
    BTreeMap::from([(Component::Dit, manifest(dit)), (Component::Vae, manifest("vae.json")), (Component::Qwen, qwen)])
}

fn config(manifests: &BTreeMap<Component, Shapes>) -> Config {
    let shape_of = |component: Component, name: &str| manifests[&component].get(name).cloned().map(Shape);
    Config::infer(&shape_of, &qwen_config(), AXES).expect("the released shapes are understood")
}

/// An edit of a square picture with a prompt of 25 tokens and an empty negative prompt.
fn edit_graph(config: &Config, latent: usize, savings: Savings) -> Graph {
    let (grid, picture) = ((36, 36), 18 * 18);
    let (_, bounds) = window_order(grid, config.vision.window);
    let (prefix, tails, cut) = (220 + picture, [30, 5], 217);
    let text_rows = |prefix: usize, tails: [usize; 2], starts: &[usize]| {
        let pictures = starts.iter().map(|start| start + 219..start + 219 + picture).collect();
        TextRows { prefix, tails: tails.to_vec(), pictures, hidden_keys: false }
    };
    let text = match savings.share_prefix {
        true => text_rows(prefix, tails, &[0]),
        false => text_rows(0, tails.map(|tail| prefix + tail), &[0, prefix + tails[0]]),
    };
    let spec = EditSpec {
        latent: (latent, latent),
        reference: true,
        patches: grid.0 * grid.1,
        windows: bounds.windows(2).map(|b| b[0]..b[1]).collect(),
        text,
        prompt: PromptRows::new(&tails.map(|tail| prefix + tail - cut), 640, savings.collapse_padding),
        steps: 28,
        noise: NoiseSource::Philox { grid_threads: H100_GRID_THREADS },
        sample_posterior: true,
        savings,
        conventions: Conventions::OFFICIAL,
    };
    edit::record(config, &spec).0
}

#[test]
fn weights_are_those_of_the_manifests() {
    for version in [Version::V1_0, Version::V1_1] {
        let expected = manifests(version);
        let config = config(&expected);
        assert_eq!(config.version, version);
        let mut read: BTreeMap<Component, Shapes> = BTreeMap::new();
        for (component, storage) in edit_graph(&config, 64, Savings::ALL).weights() {
            read.entry(component).or_default().insert(storage.name.clone(), storage.spec.shape.0.clone());
        }
        for (component, expected) in &expected {
            let read = &read[component];
            let missing: Vec<&String> = expected.keys().filter(|name| !read.contains_key(*name)).collect();
            let unknown: Vec<&String> = read.keys().filter(|name| !expected.contains_key(*name)).collect();
            assert!(missing.is_empty() && unknown.is_empty(), "{version}: not read {missing:?}, not there {unknown:?}");
            expected.iter().for_each(|(name, shape)| assert_eq!(&read[name], shape, "{version}: {name}"));
            println!("{version} {component}: {} tensors", expected.len());
        }
    }
}

#[test]
fn a_gpu_takes_every_node_of_an_edit() {
    for (version, latent) in [(Version::V1_0, 64), (Version::V1_1, 64), (Version::V1_0, 128), (Version::V1_1, 128)] {
        let config = config(&manifests(version));
        for savings in [Savings::ALL, Savings::NONE] {
            let graph = edit_graph(&config, latent, savings);
            let itinerary = Itinerary::of_all(&graph);
            let plan =
                Plan::new(graph, itinerary, Precision::Bf16, Target::Cuda(Arch(90))).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(plan.kernels.len(), plan.graph.nodes.len());
            assert_eq!(plan.overlaps(), []);
            let (nodes, arena, all) = (plan.graph.nodes.len(), plan.arena_bytes >> 20, savings == Savings::ALL);
            println!("{version} at {0}x{0}, savings {all}: {nodes} nodes, arena {arena} MiB", 8 * latent);
        }
    }
}
