//! One forward of the transformer with its connector, tensor by tensor; both released versions.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use step1x_edit::exec::Executor;
use step1x_edit::graph::{BodyId, Graph, Node, TensorId};
use step1x_edit::model::dit::{self, StepInputs, StepRows};
use step1x_edit::model::edit::Savings;
use step1x_edit::model::{Config, HEAD_WIDTH, PromptRows};
use step1x_edit::ops::{Cast, Values};
use step1x_edit::plan::Precision;
use step1x_edit::tensor::Component;
use step1x_edit::tensor::DType::{BF16, F32};
use step1x_edit::weights::WeightSource;

use crate::common::{Floats, Golden, ONE_ROW, SyntheticWeights, assert_close, executor_on, planned};

/// float32 in another summation order; an independent implementation is within 2e-6.
const BOUND: f32 = 5e-5;

/// What the official forward was given: batch 2 (or one entry of it), each entry with its own time.
pub struct Given {
    embedding: Floats,
    image: Floats,
    times: Vec<f32>,
    valid: Vec<usize>,
    grid: (usize, usize),
    reference: bool,
    seed: u64,
}

impl Given {
    pub fn read(golden: &Golden, grid: (usize, usize)) -> Given {
        let image = golden.f32("in.img");
        let reference = match image.shape[1] / (grid.0 * grid.1) {
            1 => false,
            2 => true,
            n => panic!("{n} pictures of {grid:?} tokens"),
        };
        let (embedding, times) = (golden.f32("in.llm_embedding"), golden.f32("in.timestep").values);
        Given { embedding, image, times, valid: golden.valid_rows(), grid, reference, seed: golden.seed() }
    }

    /// An entry of the batch alone.
    fn alone(&self, branch: usize) -> Given {
        let entry =
            |floats: &Floats| Floats { shape: [&[1], &floats.shape[1..]].concat(), values: floats.entry(branch).to_vec() };
        let (embedding, image) = (entry(&self.embedding), entry(&self.image));
        Given { embedding, image, times: vec![self.times[branch]], valid: vec![self.valid[branch]], ..*self }
    }

    fn rows(&self, savings: Savings) -> StepRows {
        let prompt = PromptRows::new(&self.valid, self.embedding.shape[1], savings.collapse_padding);
        StepRows { prompt, grid: self.grid, reference: self.reference }
    }
}

/// The inputs of a recorded forward and what is read off it.
struct Recorded {
    embedding: TensorId,
    times: TensorId,
    rope: TensorId,
    key_bias: Option<TensorId>,
    images: Vec<(TensorId, usize, Range<usize>)>, // input, batch entry, tokens of the entry
    x: TensorId,
    velocity: TensorId,
}

fn record(config: &Config, rows: &StepRows, trim: bool) -> (Graph, Recorded) {
    let (mut graph, n) = (Graph::new(), rows.tokens());
    let g = &mut graph;
    let (_, recorded) = g.body("forward", |g| {
        let embedding = g.input("embedding", BF16, [rows.prompt.total(), config.dit.context]);
        let times = g.input("times", F32, [rows.branches()]);
        let (rope, key_bias) = dit::step_tables(g, rows);
        g.with_weights(Component::Dit, |g| {
            let x = g.buffer("x", BF16, [rows.total(), config.dit.hidden]);
            let conditioned = dit::condition(g, config, &rows.prompt, embedding, times);
            let text = g.rows(x, 0..rows.prompt.total());
            g.op_into("txt", Cast(BF16), &[conditioned.text], &[text]);
            let mut images = Vec::new();
            for branch in 0..rows.branches() {
                let noisy = g.input(&format!("noisy{branch}"), BF16, [n, config.dit.in_channels]);
                images.push((noisy, branch, 0..n));
                let reference = rows.reference.then(|| g.input(&format!("reference{branch}"), BF16, [n, config.dit.in_channels]));
                images.extend(reference.map(|reference| (reference, branch, n..2 * n)));
                dit::image_in(g, rows, x, branch, noisy, reference);
            }
            let inputs = StepInputs { x, modulation: conditioned.modulation, rope, key_bias };
            let velocity = dit::blocks(g, &config.dit, rows, inputs, trim);
            g.output(velocity);
            Recorded { embedding, times, rope, key_bias, images, x, velocity }
        })
    });
    (graph, recorded)
}

/// What one forward gave, under the golden files' names.
pub struct Forward {
    rows: StepRows,
    config: Config,
    tensors: HashMap<String, Vec<f32>>,
    velocity: Vec<f32>,
}

fn forward(given: &Given, config: &Config, savings: Savings) -> Forward {
    forward_on(given, config, savings, None)
}

/// A forward with these weights; none: by the recipe.
pub fn forward_on(
    given: &Given,
    config: &Config,
    savings: Savings,
    weights: Option<Arc<dyn WeightSource + Send + Sync>>,
) -> Forward {
    let rows = given.rows(savings);
    let (graph, recorded) = record(config, &rows, savings.trim_last_block);
    let plan = planned(graph, Precision::F32);
    let weights = weights.unwrap_or_else(|| Arc::new(SyntheticWeights::new(&plan.graph, given.seed)));
    let mut run = executor_on(&plan, weights);
    let kept = |b| given.embedding.rows(b, 0..rows.prompt.branch(b).len());
    let embedding: Vec<f32> = (0..rows.branches()).flat_map(kept).copied().collect();
    run.write(recorded.embedding, Values::F32(&embedding)).unwrap();
    run.write(recorded.times, Values::F32(&given.times)).unwrap();
    run.write(recorded.rope, Values::F32(&rows.rope_table(config))).unwrap();
    if let Some(key_bias) = recorded.key_bias {
        run.write(key_bias, Values::F32(&rows.prompt.key_bias())).unwrap();
    }
    for (input, branch, tokens) in &recorded.images {
        run.write(*input, Values::F32(given.image.rows(*branch, tokens.clone()))).unwrap();
    }
    let mut tensors = HashMap::new();
    let mut observe = |node: Option<&Node>, run: &dyn Executor| {
        let Some(node) = node else { return Ok(()) };
        if let Some((name, whole_stream)) = golden_name(&node.name, config) {
            tensors.insert(name, run.read_f32(if whole_stream { recorded.x } else { node.outputs[0] })?);
        }
        Ok(())
    };
    run.run(BodyId(0), &mut observe).unwrap();
    let velocity = run.read_f32(recorded.velocity).unwrap();
    Forward { rows, config: config.clone(), tensors, velocity }
}

/// The golden name of what stands after a node, and whether that is the whole stream.
fn golden_name(node: &str, config: &Config) -> Option<(String, bool)> {
    let last = config.dit.connector_depth - 1;
    if node == format!("connector.S.individual_token_refiner.blocks.{last}.residual2") {
        return Some(("connector.text".into(), false));
    }
    let block = |kind: &str, end: &str| node.strip_prefix(kind)?.strip_suffix(end)?.parse::<usize>().ok();
    match node {
        "connector.global_proj_out" => Some(("connector.pooled".into(), false)),
        "vec" => Some(("vec".into(), false)),
        _ => {
            let double = block("double_blocks.", ".img_residual2").map(|i| format!("double.{i}"));
            let name = double.or_else(|| block("single_blocks.", ".residual").map(|i| format!("single.{i}")));
            name.map(|name| (name, true))
        }
    }
}

impl Forward {
    /// Rows `range` of a stream whose rows are those of the step.
    fn cut(&self, values: &[f32], range: Range<usize>) -> Vec<f32> {
        let cols = values.len() / self.rows.total();
        values[range.start * cols..range.end * cols].to_vec()
    }

    /// Text rows of a branch as the official code has them, all `length`: a padding row that stands for all is repeated.
    fn text(&self, values: &[f32], cols: usize, branch: usize, length: usize) -> Vec<f32> {
        let prompt = &self.rows.prompt;
        let own = &values[prompt.branch(branch).start * cols..][..prompt.branch(branch).len() * cols];
        let last = prompt.branch(branch).len() - 1;
        (0..length).flat_map(|row| own[row.min(last) * cols..][..cols].to_vec()).collect()
    }

    /// Image rows of a branch in the official order: noisy, then reference.
    fn image(&self, values: &[f32], branch: usize) -> Vec<f32> {
        let noisy = self.cut(values, self.rows.noisy_of(branch));
        let reference = self.rows.reference.then(|| self.cut(values, self.rows.reference_of(branch)));
        [noisy, reference.unwrap_or_default()].concat()
    }

    /// Holds every tensor that the golden file has for `version` against this forward's; the largest difference.
    fn compare(&self, golden: &Golden, version: &str, trim: bool) -> f32 {
        let prefix = format!("{version}.");
        let names: Vec<&str> = golden.names().into_iter().filter_map(|n| n.strip_prefix(&prefix)).collect();
        let names: Vec<&str> = names.into_iter().filter(|n| *n != "in.img_ids").collect();
        // Connector, vec and velocity; two streams after each double block, one after each single block.
        assert_eq!(names.len(), 4 + 2 * self.config.dit.depth + self.config.dit.depth_single, "{names:?}");
        let compare = |name: &&str| {
            let expected = golden.f32(&format!("{prefix}{name}"));
            let differences = (0..2).map(|b| self.compare_branch(name, &expected, b, trim));
            differences.fold(0.0, f32::max)
        };
        names.iter().map(compare).fold(0.0, f32::max)
    }

    pub fn compare_branch(&self, name: &str, expected: &Floats, branch: usize, trim: bool) -> f32 {
        let (n, length) = (self.rows.tokens(), self.rows.prompt.valid[branch] + self.rows.prompt.padding_meant[branch]);
        let cols = expected.shape[expected.shape.len() - 1];
        let what = format!("{} {name} of branch {branch}", self.config.version);
        let check = |got: &[f32], expected: &[f32]| assert_close(&what, got, expected, BOUND);
        if name == "velocity" {
            let got = &self.velocity[branch * n * cols..][..n * cols];
            return check(got, expected.rows(branch, 0..n));
        }
        let (tensor, part) = match name.strip_prefix("double.").and_then(|rest| rest.split_once('.')) {
            Some((block, part)) => (format!("double.{block}"), part),
            None => (name.to_string(), ""),
        };
        let values = self.tensors.get(&tensor).unwrap_or_else(|| panic!("no node gives {name}"));
        let last = format!("single.{}", self.config.dit.depth_single - 1);
        match (name, part) {
            ("connector.pooled" | "vec", _) => check(&values[branch * cols..][..cols], expected.entry(branch)),
            ("connector.text", _) | (_, "txt") => check(&self.text(values, cols, branch, length), expected.entry(branch)),
            (_, "img") => check(&self.image(values, branch), expected.entry(branch)),
            // The trimmed block leaves all but the noisy rows as they were.
            (name, _) if trim && name == last => {
                let noisy = self.cut(values, self.rows.noisy_of(branch));
                check(&noisy, expected.rows(branch, length..length + n))
            }
            _ => {
                let joint = [self.text(values, cols, branch, length), self.image(values, branch)].concat();
                check(&joint, expected.entry(branch))
            }
        }
    }
}

fn dit_step() -> (Golden, Given) {
    let golden = Golden::open("dit_step.safetensors");
    let grid: [usize; 2] = serde_json::from_value(golden.metadata_json("packed_grid")).expect("packed_grid");
    let given = Given::read(&golden, grid.into());
    let valid: Vec<usize> = serde_json::from_value(golden.metadata_json("valid_text_rows")).expect("valid_text_rows");
    assert_eq!(given.valid, valid);
    (golden, given)
}

#[test]
fn every_tensor_of_a_forward() {
    let (golden, given) = dit_step();
    for (prefix, version) in golden.versions() {
        let config = golden.config(version);
        for savings in [Savings::NONE, Savings::ALL] {
            let worst = forward(&given, &config, savings).compare(&golden, prefix, savings.trim_last_block);
            println!("dit_step {version}, savings {}: {worst:.1e}", savings == Savings::ALL);
        }
    }
}

#[test]
fn each_saving_alone_keeps_the_velocity() {
    let (golden, given) = dit_step();
    for (_, version) in golden.versions() {
        let config = golden.config(version);
        let plain = forward(&given, &config, Savings::NONE).velocity;
        let alone = [
            ("collapse_padding", Savings { collapse_padding: true, ..Savings::NONE }),
            ("trim_last_block", Savings { trim_last_block: true, ..Savings::NONE }),
        ];
        for (name, savings) in alone {
            let worst = assert_close(name, &forward(&given, &config, savings).velocity, &plain, 1e-5);
            println!("{version}, {name}: {worst:.1e}");
        }
    }
}

/// A branch that runs alone gives the velocities that it gives beside the other, which are the official ones.
#[test]
fn one_branch_alone_gives_its_own_velocity() {
    let (golden, given) = dit_step();
    for (prefix, version) in golden.versions() {
        let config = golden.config(version);
        let expected = golden.f32(&format!("{prefix}.velocity"));
        for savings in [Savings::NONE, Savings::ALL] {
            let both = forward(&given, &config, savings).velocity;
            for (branch, beside) in both.chunks(both.len() / 2).enumerate() {
                let alone = forward(&given.alone(branch), &config, savings).velocity;
                let official = expected.rows(branch, 0..given.rows(savings).tokens());
                assert_close(&format!("{version} velocity of branch {branch} alone"), &alone, official, BOUND);
                let worst =
                    assert_close(&format!("{version} branch {branch} alone and beside the other"), &alone, beside, ONE_ROW);
                println!("{version} branch {branch} alone: {worst:.1e}");
            }
        }
    }
}

#[test]
fn positions_are_those_of_the_official_ids() {
    let (golden, given) = dit_step();
    let theta = golden.metadata_json("config_dit")["theta"].as_f64().expect("theta");
    for (prefix, version) in golden.versions() {
        let (config, rows) = (golden.config(version), given.rows(Savings::ALL));
        let (table, ids) = (rows.rope_table(&config), golden.f32(&format!("{prefix}.in.img_ids")));
        let row_of = |row: usize| &table[row * HEAD_WIDTH..][..HEAD_WIDTH];
        let rotation = |position: &[f32]| -> Vec<f32> {
            let of_axis = |(&p, d): (&f32, usize)| {
                (0..d / 2).flat_map(move |k| {
                    let (sin, cos) = (p as f64 * theta.powf(-2.0 * k as f64 / d as f64)).sin_cos();
                    [cos as f32, sin as f32]
                })
            };
            position.iter().zip(config.dit.axes).flat_map(of_axis).collect()
        };
        (0..rows.prompt.total()).for_each(|row| {
            assert_close("a text row", row_of(row), &rotation(&[0.0; 3]), 1e-6);
        });
        for branch in 0..2 {
            let reference = if rows.reference { rows.reference_of(branch) } else { 0..0 };
            let order: Vec<usize> = rows.noisy_of(branch).chain(reference).collect();
            assert_eq!(order.len(), ids.shape[1]);
            for (token, row) in order.into_iter().enumerate() {
                let what = format!("{version} token {token} of branch {branch}");
                assert_close(&what, row_of(row), &rotation(ids.rows(branch, token..token + 1)), 1e-6);
            }
        }
    }
}
