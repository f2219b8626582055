use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::model::{Config, Version};
use crate::tensor::DType;
use crate::weights::write::tests::write_safetensors;

const PLACES: [(Component, &str); 2] = [(Component::Dit, "transformer"), (Component::Vae, "vae")];

/// The released tensors of a component.
fn planned(config: &Config, component: Component) -> Vec<PlannedTensor> {
    let checkpoint = config.checkpoint().into_iter().filter(|(of, ..)| *of == component);
    checkpoint.map(|(_, name, dtype, shape)| PlannedTensor::new(name, Spec { dtype, shape })).collect()
}

/// A name with its block numbers as `{i}`, as the map of names has those of the transformer.
fn pattern(component: Component, name: &str) -> String {
    let mut segments: Vec<&str> = name.split('.').collect();
    if component == Component::Dit && segments[0].ends_with("_blocks") {
        segments[1] = "{i}";
    }
    segments.join(".")
}

/// The map was made by running the converter of diffusers on tensors that carry the numbers of their rows.
#[test]
fn names_and_rows_are_those_of_the_converter() {
    let map: Value = serde_json::from_str(include_str!("../../../tests/data/name-map-diffusers.json")).unwrap();
    let config = Config::full(Version::V1_1);
    for (component, part) in PLACES {
        let moved = to_diffusers(component, &planned(&config, component), config.dit.hidden);
        let mut seen = std::collections::BTreeSet::new();
        for tensor in &moved {
            let name = pattern(component, &tensor.name);
            let wanted = &map[part][&name];
            assert!(wanted.is_object(), "{name} is not in the map");
            let (of, shape, rows) = match &tensor.of {
                Some(Excerpt { name, shape, rows }) => (name, shape, rows.clone()),
                None => (&tensor.name, &tensor.spec.shape, vec![0..tensor.spec.shape.0[0]]),
            };
            assert_eq!(wanted["official"], pattern(component, of), "{name}");
            let whole = serde_json::json!([[0, shape.0[0]]]);
            let rows: Vec<[usize; 2]> = rows.iter().map(|rows| [rows.start, rows.end]).collect();
            assert_eq!(*wanted.get("rows").unwrap_or(&whole), serde_json::json!(rows), "{name}");
            assert_eq!(wanted.get("reshape").is_some(), tensor.spec.shape.0.len() != shape.0.len(), "{name}");
            seen.insert(name);
        }
        assert_eq!(seen.len(), map[part].as_object().unwrap().len(), "{part}: every name of the map is made");
    }
}

fn file(path: &Path, tensors: &[PlannedTensor]) -> Arc<WeightFile> {
    write_safetensors(path, tensors, &[], 7).unwrap();
    Arc::new(WeightFile::open(path).unwrap())
}

fn bytes(recipe: &Recipe) -> Vec<u8> {
    let mut bytes = vec![0; recipe.spec().bytes()];
    recipe.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Tensors of the tiny model as diffusers has them.
fn moved_tiny(component: Component) -> Vec<PlannedTensor> {
    let config = Config::tiny(Version::V1_1);
    to_diffusers(component, &planned(&config, component), config.dit.hidden)
}

#[test]
fn what_was_moved_is_read_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for (component, _) in PLACES {
        let official = planned(&Config::tiny(Version::V1_1), component);
        let before = [file(&dir.path().join("official.safetensors"), &official)];
        let mut moved = moved_tiny(component);
        let second = moved.split_off(moved.len() / 3); // parts of a tensor in several files
        let after =
            [("a", &moved), ("b", &second)].map(|(name, t)| file(&dir.path().join(name).with_extension("safetensors"), t));
        assert!(!Spelling::of(component, &before).moved && Spelling::of(component, &after).moved);
        let [before, after] = [recipes(component, &before).unwrap(), recipes(component, &after).unwrap()];
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (name, recipe) in &before {
            assert_eq!(recipe.spec(), after[name].spec(), "{name}");
            assert!(bytes(recipe) == bytes(&after[name]), "{component}: {name}");
        }
    }
}

/// What is said of the moved tiny transformer with its tensors through `change`.
fn fault(change: impl FnOnce(&mut Vec<PlannedTensor>)) -> String {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let mut tensors = moved_tiny(Component::Dit);
    change(&mut tensors);
    let text = recipes(Component::Dit, &[file(&dir.path().join("x.safetensors"), &tensors)]).unwrap_err().to_string();
    assert!(text.contains("x.safetensors: "), "{text}");
    text
}

#[test]
fn parts_that_do_not_make_a_whole_are_named() {
    const K: &str = "single_transformer_blocks.1.attn.to_k.weight";
    let at = |tensors: &[PlannedTensor], name: &str| tensors.iter().position(|t| t.name == name).unwrap();
    let text = fault(|tensors| tensors.retain(|t| t.name != K));
    assert!(text.contains(&format!("missing (1):\n  {K}")), "{text}");
    let text = fault(|tensors| {
        let at = at(tensors, K);
        tensors[at] = PlannedTensor::new(K, Spec::new(DType::BF16, [128, 256]));
    });
    assert!(text.contains(&format!("{K}: it has 128 rows, but x_embedder.weight has 256")), "{text}");
    let text = fault(|tensors| {
        let at = at(tensors, K);
        tensors[at] = PlannedTensor::new(K, Spec::new(DType::BF16, [256, 255]));
    });
    assert!(text.contains(&format!("{K}: its rows, of bf16[256, 255], are not those of")), "{text}");
    let text = fault(|tensors| tensors.push(PlannedTensor::new("img_in.weight", Spec::new(DType::BF16, [256, 64]))));
    assert!(text.contains("x_embedder.weight and img_in.weight are two names of one tensor"), "{text}");
    let text = fault(|tensors| {
        let spec = Spec::new(DType::BF16, [768, 256]);
        tensors.push(PlannedTensor::new("double_blocks.0.img_attn.qkv.weight", spec));
    });
    assert!(text.contains("are two names of one tensor"), "{text}");
}

#[test]
fn only_names_of_the_table_are_moved() {
    let same = |component, name: &str| assert_eq!(canonical(component, name).name, name, "{name}");
    for name in
        ["x_embedders.weight", "transformer_blocks.01.attn.norm_q.weight", "transformer_blocks.x.ff.net.2.bias", "proj", ""]
    {
        same(Component::Dit, name);
    }
    same(Component::Vae, "decoder.up_blocks.4.resnets.0.conv1.weight");
    same(Component::Vae, "x_embedder.weight");
    assert_eq!(
        canonical(Component::Vae, "decoder.up_blocks.3.resnets.2.conv_shortcut.bias").name,
        "decoder.up.0.block.2.nin_shortcut.bias"
    );
    assert_eq!(canonical(Component::Qwen, "model.visual.w").name, "visual.w");
    let spelling = Spelling { head: "model.diffusion_model.".into(), moved: true };
    let shown = spelling.shown(Component::Dit, "double_blocks.3.txt_attn.qkv.bias");
    assert!(shown.starts_with("model.diffusion_model.transformer_blocks.3.attn.add_q_proj.bias, "), "{shown}");
    assert!(shown.ends_with(", which are double_blocks.3.txt_attn.qkv.bias"), "{shown}");
    assert_eq!(Spelling::default().shown(Component::Dit, "img_in.bias"), "img_in.bias");
}

/// A file of one tensor a name, with these bytes.
fn raw(path: &Path, tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Arc<WeightFile> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let range = [data.len(), data.len() + bytes.len()];
        header.insert(name.to_string(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": range}));
        data.extend_from_slice(bytes);
    }
    let header = Value::Object(header).to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
    Arc::new(WeightFile::open(path).unwrap())
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn eight_bit_values_are_multiplied_by_their_scales() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let weight = |name| (name, "F8_E4M3", &[2, 2][..], vec![0x38, 0xb8, 0x40, 0x30]); // 1, -1, 2, 0.5
    let note = br#"{"format": "float8_e4m3fn"}"#.to_vec();
    let file = raw(
        &path,
        &[
            weight("a.weight"),
            ("a.scale_weight", "F32", &[], f32s(&[0.5])),
            ("a.scale_input", "F32", &[], f32s(&[9.0])),
            weight("model.diffusion_model.b.weight"),
            ("model.diffusion_model.b.weight_scale", "F32", &[2, 1], f32s(&[3.0, 10.0])),
            ("model.diffusion_model.b.comfy_quant", "U8", &[note.len()], note),
            ("c.bias", "F8_E4M3", &[2], vec![0x38, 0xb8]),
            ("d.weight", "F8_E5M2", &[2, 2], vec![0x3c, 0xbc, 0x40, 0x38]),
            ("d.weight_scale_inv", "BF16", &[1, 2], vec![0x40, 0x40, 0x80, 0x3f]), // 3, 1
            ("d.activation_scale", "F32", &[], f32s(&[9.0])),
            ("scaled_fp8", "F8_E4M3", &[2], vec![0, 0]),
        ],
    );
    let recipes = recipes(Component::Dit, &[file]).unwrap();
    assert_eq!(recipes.keys().collect::<Vec<_>>(), ["a.weight", "b.weight", "c.bias", "d.weight"]);
    assert_eq!(*recipes["a.weight"].spec(), Spec::new(DType::F32, [2, 2]));
    assert_eq!(bytes(&recipes["a.weight"]), f32s(&[0.5, -0.5, 1.0, 0.25]));
    assert_eq!(bytes(&recipes["b.weight"]), f32s(&[3.0, -3.0, 20.0, 5.0]));
    assert_eq!(recipes["c.bias"].spec().dtype, DType::F8E4M3);
    assert_eq!(bytes(&recipes["d.weight"]), f32s(&[3.0, -1.0, 6.0, 0.5]));
    let mut part = [0; 8];
    recipes["b.weight"].read_at(4, &mut part).unwrap();
    assert_eq!(part[..], f32s(&[-3.0, 20.0]));
}

#[test]
fn scales_that_do_not_fit_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let weight = ("a.weight", "F8_E4M3", &[2, 2][..], vec![0x38; 4]);
    let scale = |shape: &'static [usize], values: &[f32]| ("a.scale_weight", "F32", shape, f32s(values));
    let note = |text: &str| ("a.comfy_quant", "U8", vec![text.len()], text.as_bytes().to_vec());
    let (other, broken) = (note(r#"{"format": "nvfp4"}"#), note("{"));
    for (tensors, words) in [
        (vec![scale(&[], &[1.0])], "a.scale_weight is the scale of a.weight, which is not there"),
        (
            vec![weight.clone(), scale(&[3], &[1.0; 3])],
            "a.scale_weight: it is f32[3]; a.weight, f8_e4m3[2, 2], can have one scale, one for each of its 2 rows, or [1, 1] of blocks of",
        ),
        (vec![weight.clone(), scale(&[2, 3], &[1.0; 6])], "a.scale_weight: it is f32[2, 3]; a.weight"),
        (
            vec![weight.clone(), ("b.weight", "F8_E5M2", &[1, 1], vec![0x38]), scale(&[], &[1.0])],
            "b.weight: its scale is missing: it is f8_e5m2[1, 1], and other weights here have one, such as a.scale_weight",
        ),
        (vec![weight.clone(), scale(&[], &[0.0])], "a.scale_weight: a scale is 0; it must be above 0"),
        (vec![weight.clone(), scale(&[], &[f32::NAN])], "the tensor a.scale_weight, f32[], has values that are not finite"),
        (
            vec![weight.clone(), scale(&[], &[1.0]), ("a.weight_scale", "F32", &[], f32s(&[1.0]))],
            "a.weight_scale and a.scale_weight are two scales of one weight",
        ),
        (
            vec![("a.weight", "BF16", &[1, 1], vec![0x80, 0x3f]), scale(&[], &[1.0])],
            "a.weight: it is bf16[1, 1], which has no scale",
        ),
        (vec![weight.clone(), (other.0, other.1, &other.2, other.3.clone())], "has the format nvfp4; of ComfyUI's formats"),
        (vec![weight.clone(), (broken.0, broken.1, &broken.2, broken.3.clone())], "a.comfy_quant is not the JSON expected"),
    ] {
        let text = recipes(Component::Dit, &[raw(&path, &tensors)]).unwrap_err().to_string();
        assert!(text.contains("x.safetensors: ") && text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_note_of_just_so_many_bytes_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let of = |length: usize| {
        let note = format!("{:length$}", r#"{"format": "float8_e4m3fn"}"#).into_bytes();
        recipes(Component::Dit, &[raw(&dir.path().join("x.safetensors"), &[("a.comfy_quant", "U8", &[length], note)])])
    };
    assert!(of(4096).unwrap().is_empty());
    let text = of(4097).unwrap_err().to_string();
    assert!(text.contains("a.comfy_quant has 4097 bytes, where JSON of at most 4096 is read"), "{text}");
}
