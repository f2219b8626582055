//! What the host does before the device has work: tokens, resampling, a checkpoint's header, the program of a 1024² edit.
//!
//! `cargo bench --bench host`; figures and machine are in `README.md` beside this file.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::image::{Filter, Rgb, resize};
use step1x_edit::model::Preset;
use step1x_edit::model::Version;
use step1x_edit::model::edit::{Conventions, NoiseSource, Savings};
use step1x_edit::ops::{Arch, H100_GRID_THREADS};
use step1x_edit::pipeline::{EditInputs, Program, Request};
use step1x_edit::plan::{Precision, Target};
use step1x_edit::prompt::fit;
use step1x_edit::tensor::Component;
use step1x_edit::weights::parse_header;

const PROMPT: &str =
    "Replace the sofa with a vintage leather couch, keep the lamp as it is, and write \"NOVA\" on the wall in red.";

fn full() -> PresetModel {
    PresetModel::new(Preset::Full, Version::V1_1).expect("the embedded preset")
}

/// From a request to a plan for an H100: recording, precision, verification, kernel choice, offsets.
fn plan(c: &mut Criterion) {
    let (model, size) = (full(), (1024, 1024));
    let [_, (height, width)] = fit(size.1, size.0, &model.settings).expect("a size that fits");
    let grid = (height / 14, width / 14);
    let tokens = [PROMPT, ""]
        .map(|text| model.tokenizer.encode_prompt(text, grid.0 * grid.1 / 4, &model.settings).expect("a prompt that fits"));
    let request = Request {
        size,
        reference: true,
        grid,
        tokens: &tokens,
        steps: 28,
        noise: NoiseSource::Philox { grid_threads: H100_GRID_THREADS },
        sample_posterior: false,
        savings: Savings::ALL,
        conventions: Conventions::OFFICIAL,
    };
    let plan = || {
        let inputs = EditInputs::new(&model.config, &model.settings, &request)?;
        Program::new(&model.config, inputs.spec, Precision::Bf16, Target::Cuda(Arch(90)))
    };
    c.bench_function("record and plan 1024x1024", |b| b.iter(|| plan().expect("a program")));
}

fn tokenizer(c: &mut Criterion) {
    let model = full();
    c.bench_function("load tokenizer.json", |b| {
        b.iter(|| step1x_edit::prompt::Tokenizer::from_bytes(black_box(&model.tokenizer_json)).expect("a tokenizer"))
    });
    c.bench_function("encode a prompt of 22 words", |b| {
        b.iter(|| model.tokenizer.encode_prompt(black_box(PROMPT), 324, &model.settings).expect("tokens"))
    });
}

/// A picture of 12 megapixels to the working size of 1024².
fn lanczos(c: &mut Criterion) {
    let (width, height) = (4000, 3000);
    let data = (0..width * height * 3).map(|i| (i * i / 7 + i / 3) as u8).collect();
    let picture = Rgb { width, height, data };
    let mut group = c.benchmark_group("resize");
    group.throughput(Throughput::Elements((width * height) as u64)).sample_size(20);
    group.bench_function("lanczos 4000x3000 to 1184x880", |b| b.iter(|| resize(black_box(&picture), 1184, 880, Filter::Lanczos)));
}

/// The header of the released transformer.
fn header(c: &mut Criterion) {
    let (mut entries, mut end) = (serde_json::Map::new(), 0);
    for (component, name, dtype, shape) in full().config.checkpoint() {
        if component == Component::Dit {
            let start = end;
            end += shape.elements() * dtype.bytes();
            let dtype = dtype.to_string().to_uppercase();
            entries.insert(name.clone(), json!({"dtype": dtype, "shape": shape.0, "data_offsets": [start, end]}));
        }
    }
    let text = serde_json::Value::Object(entries).to_string();
    let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let file_bytes = (bytes.len() + end) as u64;
    let tensors = parse_header(&bytes, file_bytes).expect("a header").len();
    c.bench_function(&format!("parse a safetensors header of {tensors} tensors"), |b| {
        b.iter(|| parse_header(black_box(&bytes), file_bytes).expect("a header"))
    });
}

criterion_group!(host, plan, tokenizer, lanczos, header);
criterion_main!(host);
