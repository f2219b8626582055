//! Tokens, positions, patch rows and window order against the official code's, bit for bit.

use serde::Deserialize;
use step1x_edit::image::{Filter, Rgb, resize};
use step1x_edit::pipeline::Rules;
use step1x_edit::prompt::{PATCH_VALUES, PromptSettings, PromptTokens, Tokenizer, fit, patches, resized, window_order};
use step1x_edit::weights::tokenizer::{TINY_ADDED, full_tokenizer_json};

use crate::common::{Golden, golden_path, json, number, read};

fn to_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Equality of long lists, with the first difference instead of both lists.
fn assert_same<T: PartialEq + std::fmt::Debug>(got: &[T], expected: &[T], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    if let Some(i) = (0..got.len()).find(|i| got[*i] != expected[*i]) {
        panic!("{what}: at {i} got {:?}, expected {:?}", got[i], expected[i]);
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(&full_tokenizer_json().unwrap()).unwrap()
}

/// A row of `prompt_tokens.json`; `size` is width and height.
#[derive(Deserialize)]
struct Row {
    prompt: String,
    size: [usize; 2],
    version: String,
    image_grid_thw: [usize; 3],
    length: usize,
    cut: usize,
    valid_length: usize,
    attention_masked_positions: Vec<usize>,
    input_ids: Vec<u32>,
}

#[test]
fn prompt_tokens() {
    let rows: Vec<Row> = serde_json::from_slice(&read("prompt_tokens.json")).unwrap();
    let tokenizer = tokenizer();
    for (version, rules) in [("v1.1", Rules::Official), ("v1p1-diffusers", Rules::Diffusers)] {
        let settings = rules.prompt(&PromptSettings::default());
        let own = || rows.iter().filter(|row| row.version == version);
        assert!(own().count() > 0, "no row of version {version}");
        own().for_each(|row| assert_row(row, &tokenizer, &settings));
        println!("{} rows of {version} equal", own().count());
    }
    let later = rows.iter().filter(|row| row.version == "v1p2").count();
    if later > 0 {
        println!("skipped {later} rows of v1p2: its template is not there yet");
    }
}

fn assert_row(row: &Row, tokenizer: &Tokenizer, settings: &PromptSettings) {
    let [width, height] = row.size;
    let [t, h, w] = row.image_grid_thw;
    let size = fit(height, width, settings).unwrap()[1];
    assert_eq!((1, size.0 / 14, size.1 / 14), (t, h, w), "grid of {width}x{height}");
    let tokens = tokenizer.encode_prompt(&row.prompt, h * w / 4, settings).unwrap();
    let what = format!("{:?}", row.prompt);
    assert_same(&tokens.ids, &row.input_ids, &what);
    assert_eq!(tokens.ids.len(), row.length, "{what}");
    assert_eq!(tokens.masked, row.attention_masked_positions, "{what}");
    assert_eq!((settings.cut, tokenizer.cut()), (row.cut, row.cut), "{what}");
    assert_eq!(tokens.kept(settings), row.valid_length, "{what}");
    assert_eq!(tokens.lost(settings), row.length - row.cut - row.valid_length, "{what}");
}

/// A case of `processor.safetensors`; sizes are width and height.
#[derive(Deserialize)]
struct Case {
    width: usize,
    height: usize,
    shift: usize,
    min_pixels: usize,
    max_pixels: usize,
    first_size: [usize; 2],
    final_size: [usize; 2],
}

impl Case {
    /// The test picture, by the formula in the file's header.
    fn picture(&self) -> Rgb {
        let pixel = |y: usize, x: usize| {
            let s = self.shift;
            [5 * x + 3 * y + 31 * s, x * y / 11 + 17 * s, ((x >> 3) ^ (y >> 2)) * 37 + s]
        };
        let (width, height) = (self.width, self.height);
        let values = (0..width * height).flat_map(|i| pixel(i / width, i % width));
        Rgb { width, height, data: values.map(|value| (value % 256) as u8).collect() }
    }
}

#[test]
fn pictures_of_the_processor() {
    let golden = Golden::open("processor.safetensors");
    let cases: Vec<Case> = serde_json::from_value(golden.metadata_json("cases")).unwrap();
    assert!(!cases.is_empty());
    for (i, case) in cases.iter().enumerate() {
        let (min_pixels, max_pixels) = (case.min_pixels, case.max_pixels);
        let settings = PromptSettings { min_pixels, max_pixels, ..PromptSettings::default() };
        let [first, last] = fit(case.height, case.width, &settings).unwrap();
        assert_eq!([first.1, first.0], case.first_size, "case {i}");
        assert_eq!([last.1, last.0], case.final_size, "case {i}");
        let picture = case.picture();
        let name = |field: &str| format!("case{i}.{field}");
        if golden.has(&name("first_rgb")) {
            let expected = golden.picture(&name("first_rgb"));
            let got = resize(&picture, first.1, first.0, Filter::Bicubic);
            assert_same(&got.data, &expected.data, &name("first_rgb"));
        }
        if golden.has(&name("resized_rgb")) {
            let expected = golden.picture(&name("resized_rgb"));
            let got = resized(&picture, &settings).unwrap();
            assert_eq!((got.width, got.height), (expected.width, expected.height), "case {i}");
            assert_same(&got.data, &expected.data, &name("resized_rgb"));
        }
        let got = patches(&picture, &settings).unwrap();
        assert_eq!(got.grid, golden.grid(&name("image_grid_thw")), "case {i}");
        let rows = golden.indices(&name("rows"));
        let row = |row: &usize| to_bits(&got.pixel_values[row * PATCH_VALUES..][..PATCH_VALUES]);
        let chosen: Vec<u32> = rows.iter().flat_map(row).collect();
        assert_same(&chosen, &golden.bits(&name("pixel_values")), &name("pixel_values"));
    }
}

/// Positions of one text of `qwen.safetensors` whose picture has `merged` tokens down and across.
fn assert_positions(golden: &Golden, image: &str, image_id: usize, merged: (usize, usize)) {
    let name = |field: &str| format!("{image}.{field}");
    let ids = golden.indices(&name("input_ids"));
    let mask = golden.indices(&name("attention_mask"));
    let masked: Vec<usize> = (0..mask.len()).filter(|i| mask[*i] == 0).collect();
    assert_eq!(masked, (0..ids.len()).filter(|i| ids[*i] == 0).collect::<Vec<_>>(), "{image}");
    let image_start = ids.iter().position(|id| *id == image_id).unwrap();
    let ids = ids.into_iter().map(|id| id as u32).collect();
    let tokens = PromptTokens { ids, masked, image_start, image_tokens: merged.0 * merged.1, unread: 0 };
    let positions = tokens.positions(merged).unwrap().concat();
    let positions: Vec<usize> = positions.into_iter().map(|value| value as usize).collect();
    assert_same(&positions, &golden.indices(&name("position_ids")), &name("position_ids"));
}

#[test]
fn inputs_of_the_tiny_encoder() {
    let golden = Golden::open("qwen.safetensors");
    let config = json("config_tiny.json");
    let vision = &config["vision_config"];
    let window = number(vision, "window_size") / number(vision, "patch_size") / number(vision, "spatial_merge_size");
    let image_id = number(&config, "image_token_id");
    // The pictures have their size already, so bounds that allow any size leave them as they are.
    let (min_pixels, max_pixels) = (1, usize::MAX);
    let settings = PromptSettings { min_pixels, max_pixels, ..PromptSettings::default() };
    let names = (0..).map(|i| format!("image{i}"));
    let names: Vec<String> = names.take_while(|i| golden.has(&format!("{i}.rgb"))).collect();
    assert!(!names.is_empty());
    for image in names {
        let name = |field: &str| format!("{image}.{field}");
        let got = patches(&golden.picture(&name("rgb")), &settings).unwrap();
        assert_eq!(got.grid, golden.grid(&name("image_grid_thw")), "{image}");
        let expected = golden.bits(&name("pixel_values"));
        assert_same(&to_bits(&got.pixel_values), &expected, &name("pixel_values"));

        let (index, bounds) = window_order(got.grid, window);
        assert_same(&index, &golden.indices(&name("window_index")), &name("window_index"));
        assert_same(&bounds, &golden.indices(&name("cu_window_seqlens")), &name("cu_window_seqlens"));

        assert_positions(&golden, &image, image_id, got.merged());
    }
}

/// The preset is made for the committed file, whatever folder the other tests read.
#[test]
fn tiny_tokens_have_the_ids_of_the_tiny_config() {
    let config: serde_json::Value = serde_json::from_str(include_str!("../data/golden/config_tiny.json")).unwrap();
    let named = [
        ("<|image_pad|>", "image_token_id"),
        ("<|vision_start|>", "vision_start_token_id"),
        ("<|vision_end|>", "vision_end_token_id"),
        ("<|video_pad|>", "video_token_id"),
        ("<|vision_pad|>", "vision_token_id"),
    ];
    for (token, key) in named {
        let id = TINY_ADDED.iter().find(|(content, _)| *content == token).map(|(_, id)| *id);
        assert_eq!(config[key].as_u64(), id.map(u64::from), "{token}");
    }
}

/// The real model's inputs, where the folder holds the full-size files.
#[test]
fn inputs_of_the_full_encoder() {
    if !golden_path("full_512_inputs.safetensors").exists() {
        println!("skipped: this golden folder has no full_512_inputs.safetensors");
        return;
    }
    let golden = Golden::open("full_512_inputs.safetensors");
    let settings = PromptSettings::default();
    let got = patches(&golden.picture("rgb"), &settings).unwrap();
    assert_eq!(got.grid, golden.grid("grid"));
    let expected = golden.bits("pixel_values");
    assert_same(&to_bits(&got.pixel_values), &expected, "pixel_values");
    let tokenizer = tokenizer();
    for (which, prompt) in [("cond", golden.metadata("prompt").to_string()), ("uncond", String::new())] {
        let tokens = tokenizer.encode_prompt(&prompt, got.image_tokens(), &PromptSettings::default()).unwrap();
        let ids: Vec<usize> = tokens.ids.iter().map(|id| *id as usize).collect();
        assert_same(&ids, &golden.indices(&format!("{which}.input_ids")), which);
        assert_eq!([tokens.kept(&settings)], *golden.indices(&format!("{which}.valid")));
    }
}
