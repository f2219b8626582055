//! The vision tower and the text model, with and without the prefix that both prompts share.

use std::collections::HashMap;
use std::ops::Range;

use step1x_edit::exec::Executor;
use step1x_edit::graph::{Graph, Node};
use step1x_edit::model::text::{self, EMBEDDINGS, TextRows};
use step1x_edit::model::vision;
use step1x_edit::ops::Values;
use step1x_edit::plan::Precision;
use step1x_edit::tensor::Component;
use step1x_edit::weights::read_rows;

use crate::common::{Golden, SyntheticWeights, assert_close, executor, json, number, planned, tiny_config};

/// float32 in another summation order; an independent implementation is within 8e-6.
const BOUND: f32 = 5e-5;

/// One picture with its text.
struct Case<'a> {
    golden: &'a Golden,
    image: String,
    ids: Vec<usize>,
    /// Merged token at each place of the window order.
    window_index: Vec<usize>,
    /// Places in the text of the picture's tokens.
    picture: Range<usize>,
    /// Length of the text through `<|vision_end|>`.
    prefix: usize,
}

fn cases(golden: &Golden) -> Vec<Case<'_>> {
    let config = json("config_tiny.json");
    let names = (0..).map(|i| format!("image{i}")).take_while(|image| golden.has(&format!("{image}.input_ids")));
    let case = |image: String| {
        let ids = golden.indices(&format!("{image}.input_ids"));
        let place = |key: &str| ids.iter().position(|&id| id == number(&config, key)).expect("a picture in the text");
        let (start, end) = (place("image_token_id"), place("vision_end_token_id"));
        let window_index = golden.indices(&format!("{image}.window_index"));
        assert_eq!(window_index.len(), end - start, "{image}: tokens of the picture");
        Case { golden, image, ids, window_index, picture: start..end, prefix: end + 1 }
    };
    let cases: Vec<Case> = names.map(case).collect();
    assert!(!cases.is_empty(), "the file has pictures");
    cases
}

impl Case<'_> {
    fn name(&self, field: &str) -> String {
        format!("{}.{field}", self.image)
    }

    /// The text once with an empty prefix, or `branches` times with the part through the picture shared.
    fn text_rows(&self, branches: Option<usize>) -> TextRows {
        let hidden_keys = self.masked().contains(&true);
        let (prefix, copies) = branches.map_or((0, 1), |branches| (self.prefix, branches));
        TextRows { prefix, tails: vec![self.ids.len() - prefix; copies], pictures: vec![self.picture.clone()], hidden_keys }
    }

    fn masked(&self) -> Vec<bool> {
        self.golden.indices(&self.name("attention_mask")).into_iter().map(|m| m == 0).collect()
    }

    /// Row and column in the patch grid of each row in block order: four consecutive rows make one merged token.
    fn places(&self) -> Vec<(usize, usize)> {
        let (height, width) = self.golden.grid(&self.name("image_grid_thw"));
        let place = |row: usize| {
            let (merged, within) = (row / 4, row % 4);
            (merged / (width / 2) * 2 + within / 2, merged % (width / 2) * 2 + within % 2)
        };
        (0..height * width).map(place).collect()
    }

    /// Position in the text of every packed row.
    fn text_places(&self, rows: &TextRows) -> Vec<usize> {
        let tails = rows.tails.iter().flat_map(|&tail| rows.prefix..rows.prefix + tail);
        (0..rows.prefix).chain(tails).collect()
    }

    fn run(&self, rows: &TextRows) -> HashMap<String, Vec<f32>> {
        let config = tiny_config();
        let window_rows: Vec<usize> = self.window_index.iter().flat_map(|m| 4 * m..4 * m + 4).collect();
        let bounds = self.golden.indices(&self.name("cu_window_seqlens"));
        let windows: Vec<Range<usize>> = bounds.windows(2).map(|b| b[0]..b[1]).collect();
        let mut graph = Graph::new();
        let (body, (tower, model)) = graph.body("encoder", |g| {
            g.with_weights(Component::Qwen, |g| {
                let tower = vision::record(g, &config.vision, window_rows.len(), &windows);
                let model = text::record(g, &config.text, rows, tower.merged);
                (tower, model)
            })
        });
        let plan = planned(graph, Precision::F32);
        let mut run = executor(&plan, self.golden.seed());
        let indices = |values: &[usize]| values.iter().map(|&v| v as i32).collect::<Vec<i32>>();

        let places = self.places();
        let places: Vec<(usize, usize)> = window_rows.iter().map(|&row| places[row]).collect();
        let head = config.vision.hidden / config.vision.heads;
        run.write(tower.pixel_values, Values::F32(&self.golden.f32(&self.name("pixel_values")).values)).unwrap();
        run.write(tower.window_rows, Values::I32(&indices(&window_rows))).unwrap();
        run.write(tower.rope, Values::F32(&vision::rope_table(&places, head))).unwrap();

        let text_places = self.text_places(rows);
        let position_ids = self.golden.indices(&self.name("position_ids"));
        let positions: Vec<[usize; 3]> =
            text_places.iter().map(|&p| [0, 1, 2].map(|axis| position_ids[axis * self.ids.len() + p])).collect();
        let is_picture = |place: &usize| self.picture.contains(place);
        let (pictures, tokens): (Vec<usize>, Vec<usize>) = text_places.iter().partition(|place| is_picture(place));
        let ids: Vec<usize> = tokens.iter().map(|&place| self.ids[place]).collect();
        let table = SyntheticWeights::embeddings(&config.text, self.golden.seed());
        run.write(model.tokens, Values::F32(&read_rows(&table, Component::Qwen, EMBEDDINGS, &ids).unwrap())).unwrap();
        run.write(model.places, Values::I32(&indices(&self.window_places(&pictures)))).unwrap();
        run.write(model.rope, Values::F32(&text::rope_table(&positions, &config.text))).unwrap();
        if let Some(key_bias) = model.key_bias {
            let masked = self.masked();
            let bias: Vec<f32> = text_places.iter().map(|&p| if masked[p] { f32::NEG_INFINITY } else { 0.0 }).collect();
            run.write(key_bias, Values::F32(&bias)).unwrap();
        }
        let mut found = HashMap::new();
        run.run(body, &mut |node, run| node.map_or(Ok(()), |node| observe(node, run, &mut found))).unwrap();
        found
    }

    /// Rows of the tower's result, which stays in window order, of the picture's tokens at these places of the text.
    fn window_places(&self, pictures: &[usize]) -> Vec<usize> {
        let mut window_place = vec![0; self.window_index.len()];
        self.window_index.iter().enumerate().for_each(|(place, &merged)| window_place[merged] = place);
        pictures.iter().map(|place| window_place[place - self.picture.start]).collect()
    }

    /// The golden values `field` with rows in the order of `rows`.
    fn expected(&self, field: &str, rows: &[usize]) -> Vec<f32> {
        let golden = self.golden.f32(&self.name(field));
        let cols = golden.shape[1];
        rows.iter().flat_map(|&row| &golden.values[row * cols..][..cols]).copied().collect()
    }

    /// Holds every tensor of this picture's run against the file; the largest difference.
    fn compare(&self, rows: &TextRows) -> f32 {
        let (found, text_places) = (self.run(rows), self.text_places(rows));
        let prefix = self.name("");
        let fields: Vec<&str> = self.golden.names().into_iter().filter_map(|n| n.strip_prefix(&prefix)).collect();
        let (mut worst, mut compared): (f32, usize) = (0.0, 0);
        for field in fields {
            let order: Vec<usize> = match field {
                "vision_output" => self.window_index.clone(),
                "final_hidden" => text_places.clone(),
                _ if field.starts_with("hidden.") => text_places.clone(),
                _ if field.starts_with("visual.") => (0..self.golden.shape(&self.name(field))[0]).collect(),
                _ => continue, // an input
            };
            let what = format!("{}, prefix {}", self.name(field), rows.prefix);
            let got = found.get(field).unwrap_or_else(|| panic!("no node gives {field}"));
            worst = worst.max(assert_close(&what, got, &self.expected(field, &order), BOUND));
            compared += 1;
        }
        assert!(compared > 3, "{}: {compared} tensors compared", self.image);
        worst
    }
}

/// Keeps what the golden file names: outputs of nodes, and the stream that enters each layer.
fn observe(node: &Node, run: &dyn Executor, found: &mut HashMap<String, Vec<f32>>) -> anyhow::Result<()> {
    let between = |start: &str, end: &str| node.name.strip_prefix(start)?.strip_suffix(end);
    let (name, tensor) = if let Some(i) = between("model.layers.", ".input_layernorm") {
        (format!("hidden.{i}"), node.inputs[0])
    } else if let Some(i) = between("visual.blocks.", ".residual2") {
        (format!("visual.block{i}"), node.outputs[0])
    } else {
        let name = match &node.name[..] {
            "visual.patch_embed" => "visual.patch_embed",
            "visual.merger.mlp.2" => "vision_output",
            "model.norm" => "final_hidden",
            _ => return Ok(()),
        };
        (name.to_string(), node.outputs[0])
    };
    found.insert(name, run.read_f32(tensor)?);
    Ok(())
}

#[test]
fn one_text_without_a_shared_prefix() {
    let golden = Golden::open("qwen.safetensors");
    for case in cases(&golden) {
        println!("{}: {:.1e}", case.image, case.compare(&case.text_rows(None)));
    }
}

#[test]
fn two_branches_behind_a_shared_prefix() {
    let golden = Golden::open("qwen.safetensors");
    for case in cases(&golden) {
        println!("{}: {:.1e}", case.image, case.compare(&case.text_rows(Some(2))));
    }
}
