use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;
use crate::model::{Config, Version};
use crate::tensor::Component;

const D: usize = 256;

/// The tiny transformer's tensors.
fn tensors() -> Vec<(String, Shape)> {
    let manifest = Config::tiny(Version::V1_1).manifest();
    manifest.into_iter().filter(|(c, ..)| *c == Component::Dit).map(|(_, name, shape)| (name, shape)).collect()
}

fn modules() -> Modules {
    Modules::new(tensors().iter().map(|(name, shape)| (name.as_str(), shape)))
}

/// A file of f32 tensors, all elements 0.5.
struct Written {
    _dir: TempDir,
    path: PathBuf,
}

fn written(tensors: &[(&str, &[usize])], metadata: &[(&str, &str)]) -> Written {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.safetensors");
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| 0.5f32.to_le_bytes().repeat(shape.iter().product())).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| (name.to_string(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    safetensors::serialize_to_file(views, Some(metadata), &path).unwrap();
    Written { _dir: dir, path }
}

impl Written {
    fn open(&self) -> Result<Arc<Lora>> {
        Lora::open(&LoraChoice { path: self.path.clone(), scale: 1.0 })
    }

    fn check(&self) -> Result<usize> {
        let tensors = tensors();
        self.open()?.check(tensors.iter().map(|(name, shape)| (name.as_str(), shape)))
    }
}

fn pair(module: &str, rank: usize, out: usize, row: usize) -> [(String, Vec<usize>); 2] {
    [(format!("{module}.lora_A.weight"), vec![rank, row]), (format!("{module}.lora_B.weight"), vec![out, rank])]
}

fn file_of(tensors: &[(String, Vec<usize>)], metadata: &[(&str, &str)]) -> Written {
    let tensors: Vec<(&str, &[usize])> = tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    written(&tensors, metadata)
}

fn fault<T: std::fmt::Debug>(result: Result<T>, words: &[&str]) {
    let text = result.unwrap_err().to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn names_of_all_trainers_find_their_rows() {
    let modules = modules();
    let qkv = "double_blocks.0.img_attn.qkv.weight";
    let linear1 = "single_blocks.2.linear1.weight";
    for (name, weight, rows) in [
        ("lora_unet_double_blocks_0_img_attn_qkv", qkv, 0..3 * D),
        ("double_blocks.0.img_attn.qkv", qkv, 0..3 * D),
        ("diffusion_model.double_blocks.0.img_attn.qkv", qkv, 0..3 * D),
        ("base_model.model.double_blocks.0.img_attn.qkv", qkv, 0..3 * D),
        ("base_model.model.transformer.transformer_blocks.0.attn.to_k", qkv, D..2 * D),
        ("transformer.transformer_blocks.0.attn.to_q", qkv, 0..D),
        ("lora_transformer_transformer_blocks_0_attn_to_v", qkv, 2 * D..3 * D),
        ("lycoris_transformer_blocks_0_attn_to_v", qkv, 2 * D..3 * D),
        ("transformer.transformer_blocks.0.attn.processor.to_q", qkv, 0..D),
        ("blocks.0.attn.a_to_qkv", qkv, 0..3 * D),
        ("transformer.transformer_blocks.1.attn.add_k_proj", "double_blocks.1.txt_attn.qkv.weight", D..2 * D),
        ("transformer.transformer_blocks.1.attn.to_out.0", "double_blocks.1.img_attn.proj.weight", 0..D),
        ("transformer.transformer_blocks.1.ff_context.net.0.proj", "double_blocks.1.txt_mlp.0.weight", 0..4 * D),
        ("transformer.single_transformer_blocks.2.attn.to_v", linear1, 2 * D..3 * D),
        ("single_transformer_blocks.2.proj_mlp", linear1, 3 * D..7 * D),
        ("single_blocks.2.to_qkv_mlp", linear1, 0..7 * D),
        ("lora_unet_single_blocks_2_linear1", linear1, 0..7 * D),
        ("transformer.single_transformer_blocks.2.proj_out", "single_blocks.2.linear2.weight", 0..D),
        ("transformer.single_transformer_blocks.2.norm.linear", "single_blocks.2.modulation.lin.weight", 0..3 * D),
        ("transformer.x_embedder", "img_in.weight", 0..D),
        ("transformer.proj_out", "final_layer.linear.weight", 0..64),
        ("transformer.time_text_embed.timestep_embedder.linear_1", "time_in.in_layer.weight", 0..D),
    ] {
        let target = modules.find(name).unwrap_or_else(|| panic!("{name} is not found"));
        assert_eq!((target.weight.as_str(), &target.rows, target.swapped), (weight, &rows, false), "{name}");
    }
    let last = modules.find("transformer.norm_out.linear").unwrap();
    assert_eq!((last.weight.as_str(), last.swapped), ("final_layer.adaLN_modulation.1.weight", true));
    assert!(!modules.find("lora_unet_final_layer_adaLN_modulation_1").unwrap().swapped);
    for name in ["transformer_blocks.2.attn.to_q", "double_blocks.0.img_attn", "lora_unet_", "", "img_in.bias"] {
        assert_eq!(modules.find(name), None, "{name}");
    }
}

#[test]
fn ends_of_names_are_parts() {
    for (key, module, part) in [
        ("m.lora_down.weight", "m", Part::Down),
        ("m.lora_A.default.weight", "m", Part::Down),
        ("m.lora.up.weight", "m", Part::Up),
        ("m.to_q_lora.up.weight", "m.to_q", Part::Up),
        ("m.lora_B", "m", Part::Up),
        ("m.alpha", "m", Part::Alpha),
        ("m.lora_magnitude_vector", "m", Part::Magnitudes),
        ("m.dora_scale", "m", Part::Magnitudes),
        ("m.lokr_w2_a", "m", Part::LokrPair(1, 0)),
        ("m.lokr_w1", "m", Part::Lokr(0)),
        ("m.hada_w1_b", "m", Part::Hada(0, 1)),
    ] {
        assert_eq!(split(key), Some((module, part)), "{key}");
    }
    for key in ["m.weight", "m.lora_A.bias", "m.lokr_t2", "m.diff"] {
        assert_eq!(split(key), None, "{key}");
    }
}

#[test]
fn alpha_is_the_tensors_then_the_metadatas_then_the_rank() {
    let alpha_of = |with_tensor: bool, metadata: &[(&str, &str)]| {
        let mut tensors = pair("transformer.x_embedder", 4, D, 64).to_vec();
        if with_tensor {
            tensors.push(("transformer.x_embedder.alpha".into(), vec![]));
        }
        let lora = file_of(&tensors, metadata).open().unwrap();
        let (module, parts) = lora.modules.first_key_value().unwrap();
        lora.scaling(module, parts).unwrap()
    };
    let said = |text: &'static str| [("lora_adapter_metadata", text)];
    assert_eq!(alpha_of(true, &[]), 0.5 / 4.0);
    assert_eq!(alpha_of(false, &[]), 1.0);
    assert_eq!(alpha_of(false, &said(r#"{"transformer.r": 9, "transformer.lora_alpha": 8}"#)), 2.0);
    assert_eq!(alpha_of(true, &said(r#"{"transformer.lora_alpha": 8}"#)), 0.5 / 4.0);
    let patterns = r#"{"transformer.lora_alpha": 8, "transformer.alpha_pattern": {"x_embedder": 2}}"#;
    assert_eq!(alpha_of(false, &said(patterns)), 0.5);
    assert_eq!(alpha_of(false, &said(r#"{"transformer.lora_alpha": 8, "transformer.use_rslora": true}"#)), 4.0);
    fault(file_of(&pair("x_embedder", 4, D, 64), &said("[1")).open(), &["lora_adapter_metadata", "not as PEFT writes it"]);
    for large in [r#"{"lora_alpha": 1e39}"#, r#"{"alpha_pattern": {"x_embedder": -1e39}}"#] {
        fault(file_of(&pair("x_embedder", 4, D, 64), &[("lora_adapter_metadata", large)]).open(), &["too large a number"]);
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let fits = pair("img_in", 4, D, 64);
    assert_eq!(file_of(&fits, &[]).check().unwrap(), 1);
    let with = |more: &[(&str, &[usize])]| {
        let more = more.iter().map(|(name, shape)| (name.to_string(), shape.to_vec()));
        file_of(&fits.iter().cloned().chain(more).collect::<Vec<_>>(), &[]).check()
    };
    fault(
        with(&[
            ("double_blocks.7.img_mod.lin.lora_A.weight", &[4, D]),
            ("double_blocks.7.img_mod.lin.lora_B.weight", &[6 * D, 4]),
        ]),
        &["1 modules fit", "nothing of it is used", "not in this model (2)", "double_blocks.7.img_mod.lin.lora_A.weight"],
    );
    fault(with(&[("img_in.lora_A.bias", &[4])]), &["not in this model (1)", "img_in.lora_A.bias"]);
    fault(with(&[("txt_in.lora_A.weight", &[4, D])]), &["not of its shapes (1)", "txt_in: it lacks lora_up (lora_B)"]);
    fault(with(&[("txt_in.hada_w2_a", &[D, 4])]), &["txt_in: it lacks hada_w1_a"]);
    fault(with(&[("txt_in.lokr_w2_b", &[4, D])]), &["txt_in: it lacks lokr_w1_a"]);
    fault(
        with(&[("txt_in.lora_A.weight", &[4, D]), ("txt_in.lora_B.weight", &[D + 1, 4])]),
        &["txt_in: the factors [4, 256] and [257, 4] do not make rows 0 to 256 of [256, 256]"],
    );
    for scalar in [[&[][..], &[D, 4]], [&[4, D], &[]], [&[], &[]]] {
        let factors = with(&[("txt_in.lora_A.weight", scalar[0]), ("txt_in.lora_B.weight", scalar[1])]);
        fault(factors, &["txt_in: the factors", "do not make rows 0 to 256 of [256, 256]"]);
    }
    fault(with(&[("img_in.dora_scale", &[3, 1])]), &["img_in", "256 lengths are needed"]);
    fault(with(&[("img_in.hada_w1_a", &[D, 4])]), &["img_in", "lora_A.weight does not belong"]);
    fault(with(&[("img_in.lora_down.weight", &[4, 64])]), &["two names of one tensor"]);
    fault(with(&[("img_in.alpha", &[2])]), &["img_in", "f32[2], where one number is needed"]);
}

#[test]
fn files_for_others_are_told_by_what_they_are_for() {
    let check = |module: &str, metadata: &[(&str, &str)]| file_of(&pair(module, 4, 7, 7), metadata).check();
    fault(check("transformer_blocks.59.img_mlp.net.2", &[]), &["nothing of this file changes", "seems to be for Qwen-Image"]);
    fault(check("lora_unet_double_blocks_18_img_mod_lin", &[]), &["seems to be for FLUX"]);
    fault(check("lora_unet_down_blocks_0_attentions_0_proj_in", &[]), &["seems to be for Stable Diffusion"]);
    fault(check("diffusion_model.blocks.0.self_attn.q", &[]), &["seems to be for Wan"]);
    fault(check("whatever", &[("ss_base_model_version", "flux1")]), &["seems to be for FLUX"]);
    fault(check("lora_te1_text_model_encoder_layers_0_mlp_fc1", &[]), &["changes only a text encoder (2 tensors)"]);
    let mut both = pair("img_in", 4, D, 64).to_vec();
    both.extend(pair("text_encoder.text_model.encoder.layers.0.mlp.fc1", 4, 7, 7));
    let both = file_of(&both, &[]);
    assert_eq!((both.check().unwrap(), both.open().unwrap().unused().len()), (1, 2));
}

/// Finite factors may make what no float is: it is refused when it is read, in the words of the weight.
#[test]
fn what_becomes_infinite_is_refused() {
    let base = written(&[("img_in.weight", &[2, 4])], &[]);
    let file = Arc::new(WeightFile::open(&base.path).unwrap());
    let recipes = BTreeMap::from([("img_in.weight".to_string(), Recipe::Stored(Stored::new(&file, "img_in.weight").unwrap()))]);
    let lora = file_of(&[("img_in.alpha".into(), vec![])].into_iter().chain(pair("img_in", 1, 2, 4)).collect::<Vec<_>>(), &[]);
    let read = |scale: f32| {
        let lora = Lora::open(&LoraChoice { path: lora.path.clone(), scale }).unwrap();
        let merged = Merged::new(&recipes, vec![lora]).unwrap();
        let mut bytes = vec![0; 4 * 8];
        merged.recipe(Component::Dit, "img_in.weight").unwrap().read_at(0, &mut bytes).map(|()| bytes)
    };
    // 0.5 + scale · alpha · up · down.
    assert_eq!(read(100.0).unwrap(), (0.5f32 + 100.0 * 0.125).to_le_bytes().repeat(8));
    assert_eq!(read(f32::MAX).unwrap(), (f32::MAX * 0.125).to_le_bytes().repeat(8));
    let values: Vec<u8> = std::fs::read(&lora.path).unwrap();
    let large = [&values[..values.len() - 24], &f32::MAX.to_le_bytes().repeat(6)].concat();
    std::fs::write(&lora.path, large).unwrap();
    fault(read(1.0), &["img_in.weight: what the LoRA files add makes values that are not finite in f32", "smaller scales"]);
}

/// `norm_out.linear` of diffusers has its halves the other way round; of a product whose rows cannot be moved, the weight is.
#[test]
fn swapped_halves_are_put_right_for_every_kind_of_change() {
    let (weight, rows, row) = ("final_layer.adaLN_modulation.1.weight", 6, 4);
    let base = written(&[(weight, &[rows, row])], &[]);
    let file = Arc::new(WeightFile::open(&base.path).unwrap());
    let recipes = BTreeMap::from([(weight.to_string(), Recipe::Stored(Stored::new(&file, weight).unwrap()))]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.safetensors");
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let merged = |tensors: &[(&str, [usize; 2], Vec<u8>)]| {
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (format!("transformer.norm_out.linear.{name}"), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let lora = Lora::open(&LoraChoice { path: path.clone(), scale: 1.0 }).unwrap();
        let merged = Merged::new(&recipes, vec![lora]).unwrap();
        let mut bytes = vec![0; 4 * rows * row];
        merged.recipe(Component::Dit, weight).unwrap().read_at(0, &mut bytes).unwrap();
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        values.chunks(row).map(|row| row[0]).collect::<Vec<f32>>()
    };
    // Row i of the file's module changes by i; the weight is 0.5 everywhere.
    let counted = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
    let ones = bytes(&[1.0; 4]);
    let wanted = [3.5, 4.5, 5.5, 0.5, 1.5, 2.5];
    assert_eq!(merged(&[("lora_A.weight", [1, row], ones.clone()), ("lora_B.weight", [rows, 1], bytes(&counted))]), wanted);
    assert_eq!(merged(&[("lokr_w1", [rows, 1], bytes(&counted)), ("lokr_w2", [1, row], ones.clone())]), wanted);
    let lengths = ("dora_scale", [rows, 1], bytes(&[2.0, 4.0, 6.0, 8.0, 10.0, 12.0]));
    let dora = merged(&[("lora_A.weight", [1, row], ones), ("lora_B.weight", [rows, 1], bytes(&counted)), lengths]);
    assert_eq!(dora, [4.0, 5.0, 6.0, 1.0, 2.0, 3.0], "of rows of four equal values, each half the length");
}

#[test]
fn damaged_and_foreign_files_are_refused() {
    let whole = file_of(&pair("img_in", 4, D, 64), &[]);
    let bytes = std::fs::read(&whole.path).unwrap();
    std::fs::write(&whole.path, &bytes[..bytes.len() - 5]).unwrap();
    fault(whole.open(), &["5 bytes are missing"]);
    let mut nan = bytes.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&whole.path, nan).unwrap();
    fault(whole.open(), &["img_in.lora_", "not finite"]);
    std::fs::write(&whole.path, b"PK\x03\x04, and so on").unwrap();
    fault(whole.open(), &["a zip archive", "a LoRA is given as a .safetensors file"]);
    std::fs::remove_file(&whole.path).unwrap();
    fault(whole.open(), &["cannot open it"]);
}

#[test]
fn a_summary_says_what_a_file_is() {
    let mut tensors = pair("img_in", 4, D, 64).to_vec();
    tensors.extend(pair("txt_in", 8, D, D));
    tensors.push(("img_in.alpha".into(), vec![1]));
    tensors.push(("txt_in.dora_scale".into(), vec![D, 1]));
    let said = [("ss_network_module", "library.lora_module"), ("ss_base_model_version", "Step1X-Edit")];
    let file = file_of(&tensors, &said);
    let summary = file.open().unwrap().summary().unwrap();
    assert_eq!((summary.trainer.as_str(), summary.base_model.as_deref()), ("the official trainer", Some("Step1X-Edit")));
    assert_eq!(summary.modules, BTreeMap::from([("LoRA".into(), 1), ("LoRA with DoRA".into(), 1)]));
    assert_eq!((summary.ranks, summary.alphas), (BTreeMap::from([(4, 1), (8, 1)]), Some([0.5, 0.5])));
    assert_eq!(summary.bytes, std::fs::metadata(&file.path).unwrap().len());
    assert_eq!(summary.sha256.len(), 64);
    let trainer = |metadata: &[(&str, &str)], name: &str| {
        about::trainer(&metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(), &[name])
    };
    assert_eq!(trainer(&[("software", r#"{"name": "ai-toolkit"}"#)], ""), "ai-toolkit");
    assert_eq!(trainer(&[("ot_branch", "master")], ""), "OneTrainer");
    assert!(trainer(&[("ss_network_module", "networks.lora_flux")], "").contains("sd-scripts"));
    assert!(trainer(&[], "lora_unet_img_in.alpha").contains("sd-scripts"));
    assert!(trainer(&[], "lycoris_x.lokr_w1").contains("LyCORIS"));
    assert_eq!(trainer(&[], "x"), "unknown");
}
