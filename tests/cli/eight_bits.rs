//! Weights of eight-bit floats, with scales as the programs of others write them. They make the picture of the values that they
//! stand for.

use std::collections::BTreeSet;

use step1x_edit::tensor::{DType, Shape};
use step1x_edit::weights::{decode_f32, encode_f32};

use super::support::*;
use super::tensors::*;

/// A way of writing them.
#[derive(Clone, Copy)]
struct Way {
    /// Before every name.
    prefix: &'static str,
    /// After the module's name.
    scale: &'static str,
    /// Type of the values, in the header and here; and what the largest becomes.
    dtype: (&'static str, DType, f32),
    /// Rows and columns that share a scale; 0: all.
    block: [usize; 2],
}

const E4M3: (&str, DType, f32) = ("F8_E4M3", DType::F8E4M3, 448.0);
const E5M2: (&str, DType, f32) = ("F8_E5M2", DType::F8E5M2, 57344.0);
const COMFYUI: &str = "model.diffusion_model.";

/// As ComfyUI has them, twice; as compressed-tensors and FBGEMM do; as DeepSeek and Qwen do; and e5m2 in two of these.
const WAYS: [Way; 6] = [
    Way { prefix: COMFYUI, scale: "scale_weight", dtype: E4M3, block: [0, 0] },
    Way { prefix: "", scale: "weight_scale", dtype: E4M3, block: [0, 0] },
    Way { prefix: "", scale: "weight_scale", dtype: E4M3, block: [1, 0] },
    Way { prefix: "", scale: "weight_scale_inv", dtype: E4M3, block: [128, 128] },
    Way { prefix: COMFYUI, scale: "scale_weight", dtype: E5M2, block: [0, 0] },
    Way { prefix: "", scale: "weight_scale_inv", dtype: E5M2, block: [128, 128] },
];

/// A matrix in eight bits, its scales, and the values that it then has.
fn scaled(matrix: &Stored, way: &Way) -> [Stored; 3] {
    let [rows, columns] = matrix.shape.0[..] else { panic!("{} is no matrix", matrix.name) };
    let [down, across] = [(way.block[0], rows), (way.block[1], columns)].map(|(block, all)| if block == 0 { all } else { block });
    let grid = [rows.div_ceil(down), columns.div_ceil(across)];
    let (name, dtype, most) = way.dtype;
    let values = matrix.values();
    let block_of = |i: usize| i / columns / down * grid[1] + i % columns / across;
    let mut scales = vec![0f32; grid[0] * grid[1]];
    values.iter().enumerate().for_each(|(i, v)| scales[block_of(i)] = scales[block_of(i)].max(v.abs() / most));
    let mut bytes = vec![0; values.len()];
    let divided: Vec<f32> = values.iter().enumerate().map(|(i, v)| v / scales[block_of(i)]).collect();
    encode_f32(dtype, &divided, &mut bytes);
    let mut back = vec![0.0; values.len()];
    decode_f32(dtype, &bytes, &mut back);
    let back = f32s(back.iter().enumerate().map(|(i, v)| v * scales[block_of(i)]));
    let module = matrix.name.strip_suffix(".weight").unwrap();
    let shape = if way.block == [0, 0] { Shape(vec![]) } else { Shape(grid.to_vec()) };
    [
        Stored { name: format!("{}{}", way.prefix, matrix.name), dtype: name, shape: matrix.shape.clone(), bytes },
        Stored { name: format!("{}{module}.{}", way.prefix, way.scale), dtype: "F32", shape, bytes: f32s(scales) },
        Stored { bytes: back, ..matrix.clone() },
    ]
}

/// A file's tensors in eight bits where they are matrices, and in the values that they then have.
fn both(file: &str, way: &Way) -> (Vec<Stored>, Vec<Stored>) {
    let (mut eight, mut values) = (vec![], vec![]);
    for t in stored(file, "F32", |v| v.to_le_bytes().to_vec()) {
        if t.shape.0.len() == 2 && t.name.ends_with(".weight") {
            let [weight, scales, back] = scaled(&t, way);
            eight.extend([weight, scales]);
            values.push(back);
        } else {
            eight.push(Stored { name: format!("{}{}", way.prefix, t.name), ..t.clone() });
            values.push(t);
        }
    }
    (eight, values)
}

fn edited(place: &Place, output: &str) -> Vec<u8> {
    place.edited(&["-m", "model", "-i", &fixture("grey.png"), "-o", output, "-f"]);
    place.read(output)
}

#[test]
fn scaled_transformers_make_the_picture_of_their_values() {
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    let path = dir.join(DIT);
    let mut pictures = BTreeSet::new();
    for (i, way) in WAYS.iter().enumerate() {
        let (mut eight, values) = both(DIT, way);
        // What some programs add, and what changes no weight.
        eight.push(Stored { name: format!("{}scaled_fp8", way.prefix), dtype: way.dtype.0, shape: [0].into(), bytes: vec![] });
        for idle in ["scale_input", "input_scale", "activation_scale"] {
            let name = format!("{}img_in.{idle}", way.prefix);
            eight.push(Stored { name, dtype: "F32", shape: Shape(vec![]), bytes: f32s([0.0]) });
        }
        write(&path, &eight);
        let of_eight = edited(&place, "eight.png");
        write(&path, &values);
        assert_eq!(of_eight, edited(&place, "values.png"), "way {i}");
        pictures.insert(of_eight);
    }
    // Two bits of mantissa and three make different pictures.
    assert!(pictures.len() > 1);
}

/// As Qwen's own FP8 files are: blocks, and a configuration that tells of them.
#[test]
fn a_text_encoder_with_scales_of_blocks_makes_the_picture_of_its_values() {
    let place = Place::new();
    let dir = place.linked_model("model", &[TEXT, CONFIG]);
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(model().join(CONFIG)).unwrap()).unwrap();
    config["quantization_config"] = serde_json::json!({"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]});
    std::fs::write(dir.join(CONFIG), config.to_string()).unwrap();
    let (eight, values) = both(TEXT, &WAYS[3]);
    write(&dir.join(TEXT), &eight);
    let of_eight = edited(&place, "eight.png");
    write(&dir.join(TEXT), &values);
    assert_eq!(of_eight, edited(&place, "values.png"));
}

/// What e5m2 holds exactly makes one picture in it and in bf16.
#[test]
fn e5m2_without_scales_makes_the_picture_of_its_values() {
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    let code = |v: f32| {
        let mut byte = [0];
        encode_f32(DType::F8E5M2, &[v], &mut byte);
        byte
    };
    let exact = |v: f32| half::f16::from_le_bytes([0, code(v)[0]]).to_f32();
    write(&dir.join(DIT), &stored(DIT, "F8_E5M2", |v| code(v).to_vec()));
    let eight = edited(&place, "eight.png");
    write(&dir.join(DIT), &stored(DIT, "BF16", |v| bf16(exact(v))));
    assert_eq!(eight, edited(&place, "values.png"));
}

#[test]
fn scales_that_are_missing_or_wrong_are_named() {
    let place = Place::new();
    let dir = place.linked_model("model", &[DIT]);
    let (eight, _) = both(DIT, &WAYS[3]);
    let name = "double_blocks.0.img_attn.qkv.weight_scale_inv";
    let refused = |change: &dyn Fn(&mut Vec<Stored>, usize), words: &[&str]| {
        let mut tensors = eight.clone();
        let at = tensors.iter().position(|t| t.name == name).unwrap();
        change(&mut tensors, at);
        write(&dir.join(DIT), &tensors);
        place.edit_refused(&["-m", "model"], 3, &[&[DIT][..], words].concat());
    };
    let weight = "double_blocks.0.img_attn.qkv.weight";
    refused(&|tensors, at| drop(tensors.remove(at)), &[weight, "its scale is missing", "fetch all files again"]);
    refused(&|tensors, at| drop(tensors.remove(at - 1)), &[name, "is the scale of", "which is not there"]);
    let short = |tensors: &mut Vec<Stored>, at: usize| {
        tensors[at] = Stored { shape: [5, 2].into(), bytes: f32s([1.0; 10]), ..tensors[at].clone() };
    };
    refused(&short, &[name, "it is f32[5, 2]", "[6, 2] of blocks of 128×128"]);
    for (value, words) in
        [(0.0, "a scale is 0; it must be above 0"), (-1.0, "a scale is -1"), (f32::NAN, "values that are not finite")]
    {
        let wrong = |tensors: &mut Vec<Stored>, at: usize| tensors[at].bytes[4..8].copy_from_slice(&value.to_le_bytes());
        refused(&wrong, &[name, words]);
    }
}
