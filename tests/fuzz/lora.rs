//! LoRA files of all trainers: what is accepted has weights that are finite, and the same however they are read.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use indicatif::ProgressBar;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use step1x_edit::Model;
use step1x_edit::commands::synth::{self, SynthJob};
use step1x_edit::model::{Preset, Version};
use step1x_edit::pipeline::LoraChoice;
use step1x_edit::stop::Stop;
use step1x_edit::tensor::Component;
use step1x_edit::weights::{LayoutKind, Lora, ModelFolder, WeightSource, decode_f32};

use super::mutate::{self, Rng};
use super::run::fuzz_slowly;
use super::{file_of, header_of, read, words};

/// What stands between a file's name of a module and the model's.
const PREFIXES: &str =
    "lora_unet_ lora_transformer_ lycoris_ transformer. diffusion_model. base_model.model. lora_te1_ text_encoder.";

/// Names of modules in all layouts, of matrices of several shapes.
const MODULES: &str = "img_in x_embedder double_blocks.0.img_attn.qkv double_blocks_0_img_attn_qkv transformer_blocks.0.attn.to_k norm_out.linear final_layer.adaLN_modulation.1 proj_out single_blocks.1.linear1 blocks.0.attn.a_to_qkv nothing";

/// Ends of names: factors of all kinds.
const ENDS: &str = ".lora_down.weight .lora_up.weight .lora_A.weight .lora_B.weight .alpha .dora_scale .lora_magnitude_vector .hada_w1_a .hada_w1_b .hada_w2_a .hada_w2_b .lokr_w1 .lokr_w2 .lokr_w1_a .lokr_w1_b .lokr_w2_a .lokr_w2_b .lokr_t2 .bias .weight";

/// How strongly a file is to change the model, by the first byte of a case.
const SCALES: [f32; 6] = [1.0, 0.0, -0.5, 100.0, -100.0, 1e-30];

const DTYPES: [Dtype; 9] =
    [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F8_E4M3, Dtype::I32, Dtype::U8, Dtype::F64, Dtype::I64, Dtype::BOOL];

/// Extents that tensors have, or do not; the first are those of tensors of any number of axes.
const EXTENTS: [usize; 14] = [0, 1, 2, 3, 4, 5, 8, 16, 64, 192, 256, 512, 768, 1024];

/// Bits of float32 that are written into tensors; of fewer bits, the upper ones count.
const VALUES: [u32; 10] = [
    0,           // 0
    0x8000_0000, // -0
    0x3f80_0000, // 1
    0xc000_0000, // -2
    0x7f7f_7f7f, // 3.4e38, also in bf16
    0xff7f_ff7f, // -3.4e38
    0x7f80_0000, // infinity
    0x7fc0_0000, // no number
    0x0000_0001, // the least of all
    0x7bff_7bff, // the largest of f16
];

#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// A LoRA file.
#[derive(Clone)]
struct Seed {
    tensors: Vec<Tensor>,
    metadata: HashMap<String, String>,
}

impl Seed {
    fn file(&self) -> Vec<u8> {
        safetensors::serialize(self.tensors.iter().map(Tensor::view), Some(self.metadata.clone())).unwrap()
    }

    /// One to five changes that leave it a safetensors file: of names, shapes, types, values, and of what says alpha.
    fn changed(&self, rng: &mut Rng) -> Seed {
        let mut seed = self.clone();
        for _ in 0..1 + rng.below(5) {
            let at = rng.below(seed.tensors.len());
            match (rng.below(9), seed.tensors.get_mut(at)) {
                (0, Some(_)) if rng.below(3) == 0 => drop(seed.tensors.remove(at)),
                (1, Some(tensor)) => {
                    let copy = Tensor { name: renamed(rng, &tensor.name), ..tensor.clone() };
                    seed.tensors.push(copy);
                }
                (2 | 3, Some(tensor)) => tensor.name = renamed(rng, &tensor.name),
                (4, Some(tensor)) => {
                    tensor.dtype = rng.of(&DTYPES);
                    tensor.fill(rng);
                }
                (5, Some(tensor)) => {
                    tensor.reshape(rng);
                    tensor.fill(rng);
                }
                (6 | 7, Some(tensor)) => tensor.write(rng),
                _ => seed.say(rng),
            }
        }
        seed.tensors.sort_by(|one, other| one.name.cmp(&other.name));
        seed.tensors.dedup_by(|one, other| one.name == other.name);
        seed
    }

    /// Changes the metadata.
    fn say(&mut self, rng: &mut Rng) {
        const KEY: &str = "lora_adapter_metadata";
        const PEFT: &str =
            r#"{"transformer.r": 3, "transformer.lora_alpha": 6, "alpha_pattern": {"x_embedder": 2.5}, "use_rslora": true}"#;
        let words = words("lora_alpha alpha_pattern use_rslora transformer.lora_alpha r x_embedder 1e39 -1 1e-46 true null");
        let before = self.metadata.get(KEY).map_or(PEFT, String::as_str).as_bytes();
        let said = String::from_utf8_lossy(&mutate::text(rng, before, &words)).into_owned();
        self.metadata.insert(KEY.into(), said);
        if rng.below(4) == 0 {
            let base = rng.of(&["Step1X-Edit", "flux1", "", "sd_\u{1b}[31m", "\u{202e}"]);
            self.metadata.insert("ss_base_model_version".into(), base.into());
        }
    }
}

impl Tensor {
    fn view(&self) -> (&str, TensorView<'_>) {
        (&self.name, TensorView::new(self.dtype, self.shape.clone(), &self.bytes).unwrap())
    }

    /// Gives it as many bytes as type and shape need, from those that are there.
    fn fill(&mut self, rng: &mut Rng) {
        let needed = self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8;
        if self.bytes.is_empty() {
            self.bytes.push(rng.next() as u8);
        }
        self.bytes = self.bytes.iter().copied().cycle().take(needed).collect();
    }

    fn reshape(&mut self, rng: &mut Rng) {
        match rng.below(5) {
            0 => self.shape.reverse(),
            1 => self.shape.push(1),
            2 => drop(self.shape.pop()),
            3 if !self.shape.is_empty() => {
                let at = rng.below(self.shape.len());
                self.shape[at] = rng.of(&EXTENTS);
            }
            _ => self.shape = (0..rng.below(4)).map(|_| rng.of(&EXTENTS[..9])).collect(),
        }
    }

    /// Writes an extreme into all elements, or into one.
    fn write(&mut self, rng: &mut Rng) {
        let (size, bits) = (self.dtype.bitsize() / 8, rng.of(&VALUES).to_le_bytes());
        let (at, all) = (rng.below(self.bytes.len() / size), rng.below(3) == 0);
        for (_, element) in self.bytes.chunks_mut(size).enumerate().filter(|(i, _)| all || *i == at) {
            element.iter_mut().rev().zip(bits.iter().rev()).for_each(|(to, from)| *to = *from);
        }
    }
}

/// A name with another beginning, module or end.
fn renamed(rng: &mut Rng, name: &str) -> String {
    let [prefixes, modules, ends] = [PREFIXES, MODULES, ENDS].map(words);
    let end = ends.iter().find(|end| name.ends_with(*end)).copied().unwrap_or_default();
    let prefix = prefixes.iter().find(|prefix| name.starts_with(*prefix)).copied().unwrap_or_default();
    let module = name[prefix.len()..].strip_suffix(end).unwrap_or_default();
    match rng.below(5) {
        0 => [rng.of(&prefixes), module, end].concat(),
        1 => [prefix, rng.of(&modules), end].concat(),
        2 => String::from_utf8_lossy(&mutate::text(rng, name.as_bytes(), &ends)).into_owned(),
        _ => [prefix, module, rng.of(&ends)].concat(),
    }
}

/// Files of each kind, of the modules whose names hold one of some words, from what the golden files hold.
fn seeds() -> Vec<Seed> {
    let golden = read("tests/data/golden/lora_multi.safetensors");
    let tensors = SafeTensors::deserialize(&golden).unwrap();
    let (_, header) = SafeTensors::read_metadata(&golden).unwrap();
    let said = header.metadata().as_ref().and_then(|said| said.get("file_b_metadata")).expect("metadata of file b");
    let peft: HashMap<String, String> = serde_json::from_str(said).unwrap();
    let kinds: [(&str, &[&str]); 11] = [
        ("file.a/", &["unet_img_in", "0_img_attn_qkv"]),
        ("file.a/", &["single_blocks_1_modulation"]),
        ("file.b/", &["x_embedder", "norm_out.linear"]),
        ("file.b/", &["single_transformer_blocks.2.attn.to_k", "add_k_proj"]),
        ("file.c/", &["double_blocks.0.img_attn.proj"]),
        ("file.d/", &["img_attn_qkv"]),
        ("file.d/", &["0_txt_attn_proj"]),
        ("file.d/", &["txt_mlp_2"]),
        ("file.d/", &["blocks_1_linear2"]),
        ("file.d/", &["attn_to_k"]),
        ("file.d/", &["proj_mlp"]),
    ];
    let seed = |(file, modules): (&str, &[&str])| {
        let tensor = |(name, view): (&str, TensorView)| {
            let name = name.strip_prefix(file).filter(|name| modules.iter().any(|module| name.contains(module)))?.to_string();
            Some(Tensor { name, dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() })
        };
        let tensors: Vec<Tensor> = tensors.iter().filter_map(tensor).collect();
        assert!(tensors.len() > 1, "{file} has no {modules:?}");
        Seed { tensors, metadata: if file == "file.b/" { peft.clone() } else { HashMap::new() } }
    };
    kinds.into_iter().map(seed).collect()
}

/// The tiny model that the golden files change.
fn tiny(folder: &Path) -> Model {
    let (preset, version, layout) = (Preset::Tiny, Version::V1_1, LayoutKind::Official);
    let job = SynthJob { output: folder.join("model"), preset, version, seed: 0, layout };
    synth::run(&job, &Stop::new(), &ProgressBar::hidden()).unwrap();
    Model::open(&job.output).unwrap()
}

/// An accepted file gives weights that are finite, or are refused in words; read from another place on, they are the same.
#[test]
fn lora() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (model, seeds) = (tiny(folder.path()), seeds());
    let (files, words) = (seeds.iter().map(Seed::file).collect::<Vec<_>>(), words(ENDS));
    let make = |rng: &mut Rng| {
        let number = rng.below(seeds.len());
        let (whole, header) = (&files[number], header_of(&files[number]));
        let bytes = match rng.below(8) {
            0 => mutate::binary(rng, whole, &files),
            1 => [&file_of(&mutate::text(rng, header, &words), 0)[..], &whole[8 + header.len()..]].concat(),
            _ => seeds[number].changed(rng).file(),
        };
        [&[rng.below(SCALES.len()) as u8][..], &bytes].concat()
    };
    let path = folder.path().join("lora.safetensors");
    let merged = Cell::new(0);
    fuzz_slowly("lora", make, |case| {
        fs::write(&path, &case[1..]).unwrap();
        let lora = match Lora::open(&LoraChoice { path: path.clone(), scale: SCALES[case[0] as usize] }) {
            Ok(lora) => lora,
            Err(fault) => return plain(&fault.to_string()),
        };
        if let Err(fault) = lora.summary() {
            plain(&fault.to_string());
        }
        match model.folder.adapt(vec![lora], &mut |_| Ok(())) {
            Ok(changed) => {
                merged.set(merged.get() + 1);
                check(&model.folder, &changed)
            }
            Err(fault) => plain(&format!("{fault:#}")),
        }
    });
    println!("lora: {} files were merged", merged.get());
}

/// Reads some of the weights that changed, once from the start and once from a third on.
fn check(model: &ModelFolder, changed: &BTreeSet<String>) -> bool {
    changed.iter().take(2).all(|name| {
        let spec = model.spec(Component::Dit, name).expect("a weight that changes is there");
        let mut bytes = vec![0; spec.bytes()];
        if let Err(fault) = model.read_at(Component::Dit, name, 0, &mut bytes) {
            return plain(&fault.to_string());
        }
        let mut values = vec![0.0; spec.shape.elements()];
        decode_f32(spec.dtype, &bytes, &mut values);
        assert!(values.iter().all(|value| value.is_finite()), "{name} is not finite");
        let third = (spec.shape.elements() / 3) * spec.dtype.bytes();
        let mut end = vec![0; bytes.len() - third];
        model.read_at(Component::Dit, name, third, &mut end).unwrap();
        assert!(end == bytes[third..], "{name} is another when it is read from {third} on");
        true
    })
}

/// A message is one for people: not long, without control characters and names of Rust. Gives false: the case was refused.
fn plain(message: &str) -> bool {
    assert!(message.len() <= 17_000, "{} bytes: {message}", message.len());
    assert!(!message.chars().any(|c| c.is_control() && c != '\n'), "{message:?}");
    let of_rust = ["Some(", "None", "LokrPair", "Hada(", "Lokr(", "Magnitudes", "ModelError"];
    assert!(!of_rust.iter().any(|word| message.contains(word)), "{message}");
    false
}
