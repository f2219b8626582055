//! Text encoders in files of llama.cpp make the picture of the values that they hold.

use std::fs;
use std::path::Path;

use half::f16;
use step1x_edit::tensor::Shape;

use super::support::*;
use super::tensors::*;

/// A note of a header.
enum Note {
    Text(&'static str),
    Number(u32),
    Real(f32),
    Numbers(&'static [i32]),
}

use Note::{Number, Numbers, Real, Text};

/// A tensor with llama.cpp's number of its type.
#[derive(Clone)]
struct Tensor {
    name: String,
    kind: u32,
    shape: Shape,
    bytes: Vec<u8>,
}

const F32: u32 = 0;
const F16: u32 = 1;
const Q8_0: u32 = 8;
const BF16: u32 = 30;

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

fn write_gguf(path: &Path, notes: &[(&str, Note)], tensors: &[Tensor]) {
    let mut header =
        [&b"GGUF\x03\0\0\0"[..], &(tensors.len() as u64).to_le_bytes(), &(notes.len() as u64).to_le_bytes()].concat();
    for (name, note) in notes {
        header.extend(text(name.as_bytes()));
        header.extend(match note {
            Text(value) => [&8u32.to_le_bytes()[..], &text(value.as_bytes())].concat(),
            Number(value) => [4u32.to_le_bytes(), value.to_le_bytes()].concat(),
            Real(value) => [6u32.to_le_bytes(), value.to_le_bytes()].concat(),
            Numbers(values) => {
                let list: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                [&[9u32.to_le_bytes(), 5u32.to_le_bytes()].concat()[..], &(values.len() as u64).to_le_bytes(), &list].concat()
            }
        });
    }
    let mut data = vec![];
    for t in tensors {
        header.extend(text(t.name.as_bytes()));
        header.extend((t.shape.0.len() as u32).to_le_bytes());
        header.extend(t.shape.0.iter().rev().flat_map(|n| (*n as u64).to_le_bytes()));
        header.extend([&t.kind.to_le_bytes()[..], &(data.len() as u64).to_le_bytes()].concat());
        data.extend(&t.bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    fs::write(path, [header, data].concat()).unwrap();
}

/// The parts of names that llama.cpp has otherwise.
const NAMES: [(&str, &str); 21] = [
    ("model.embed_tokens", "token_embd"),
    ("lm_head", "output"),
    ("model.layers.", "blk."),
    ("post_attention_layernorm", "ffn_norm"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("model.norm", "output_norm"),
    ("visual.merger.mlp.", "mm."),
    ("visual.merger.ln_q", "v.post_ln"),
    ("visual.blocks.", "v.blk."),
    (".norm1", ".ln1"),
    (".norm2", ".ln2"),
    ("attn.qkv", "attn_qkv"),
    ("attn.proj", "attn_out"),
    ("visual.patch_embed.proj", "v.patch_embd"),
];

/// The tensors as llama.cpp has them, each stored by `store`: those of the text model, and those of the vision tower.
fn moved(tensors: &[Stored], store: impl Fn(usize, String, Shape, &[f32]) -> Tensor) -> [Vec<Tensor>; 2] {
    let mut parts = [vec![], vec![]];
    for (i, t) in tensors.iter().enumerate() {
        let name = NAMES.iter().fold(t.name.clone(), |name, (from, to)| name.replace(from, to));
        let (values, part) = (t.values(), &mut parts[usize::from(t.name.starts_with("visual."))]);
        let extents = &t.shape.0;
        if name.contains("attn_qkv") {
            let mut shape = t.shape.clone();
            shape.0[0] /= 3;
            let each = values.chunks(values.len() / 3).zip(["attn_q", "attn_k", "attn_v"]);
            part.extend(each.map(|(values, to)| store(i, name.replace("attn_qkv", to), shape.clone(), values)));
        } else if let [filters, channels, 2, height, width] = extents[..] {
            for (picture, name) in [name.clone(), format!("{name}.1")].into_iter().enumerate() {
                let pictures = values.chunks(height * width).skip(picture).step_by(2);
                let values: Vec<f32> = pictures.flatten().copied().collect();
                part.push(store(i, name, [filters, channels, height, width].into(), &values));
            }
        } else {
            part.push(store(i, name, t.shape.clone(), &values));
        }
    }
    parts
}

fn plain(kind: u32, name: String, shape: Shape, values: &[f32]) -> Tensor {
    let bytes = match kind {
        F32 => f32s(values.iter().copied()),
        F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| bf16(*v)).collect(),
    };
    Tensor { name, kind, shape, bytes }
}

/// Blocks of 32 values: a half that scales them, and a byte for each.
fn q8_0(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut back) = (vec![], vec![]);
    for block in values.as_chunks::<32>().0 {
        let scale = f16::from_f32(block.iter().fold(0f32, |most, v| most.max(v.abs())) / 127.0);
        let codes = block.map(|v| (v / scale.to_f32()).round().clamp(-128.0, 127.0) as i8);
        bytes.extend(scale.to_le_bytes());
        bytes.extend(codes.map(|code| code as u8));
        back.extend(codes.map(|code| f32::from(code) * scale.to_f32()));
    }
    (bytes, back)
}

fn is_packed(shape: &Shape) -> bool {
    shape.0.len() == 2 && shape.0[1].is_multiple_of(32)
}

fn write_both(folder: &Path, [text, tower]: &[Vec<Tensor>; 2]) {
    fs::create_dir_all(folder).unwrap();
    write_text(&folder.join("Qwen2.5-VL-7B-Instruct-Q8_0.gguf"), text);
    write_tower(&folder.join("mmproj-F16.gguf"), tower);
}

fn write_text(path: &Path, tensors: &[Tensor]) {
    let notes = [
        ("general.architecture", Text("qwen2vl")),
        ("qwen2vl.rope.freq_base", Real(1e6)),
        ("qwen2vl.rope.dimension_sections", Numbers(&[16, 24, 24, 0])),
        ("tokenizer.ggml.token_type", Numbers(&[1; 100])),
    ];
    write_gguf(path, &notes, tensors);
}

fn write_tower(path: &Path, tensors: &[Tensor]) {
    let notes = [
        ("general.architecture", Text("clip")),
        ("clip.projector_type", Text("qwen2.5vl_merger")),
        ("clip.vision.attention.head_count", Number(2)),
        ("clip.vision.n_wa_pattern", Number(2)),
    ];
    write_gguf(path, &notes, tensors);
}

fn f32_tensors() -> Vec<Stored> {
    stored(TEXT, "F32", |v| v.to_le_bytes().to_vec())
}

/// Matrices as they are, in turn in each of the types that hold them.
fn exact() -> [Vec<Tensor>; 2] {
    moved(&f32_tensors(), |i, name, shape, values| {
        plain(if shape.0.len() == 1 || i % 2 == 0 { F32 } else { BF16 }, name, shape, values)
    })
}

const FILE: &str = "encoder/Qwen2.5-VL-7B-Instruct-Q8_0.gguf";
const TOWER: &str = "encoder/mmproj-F16.gguf";

fn edited(place: &Place, args: &[&str], output: &str) -> Vec<u8> {
    place.edited(&[args, &["-i", &fixture("grey.png"), "-o", output]].concat());
    place.read(output)
}

#[test]
fn the_names_and_arrangements_of_llama_cpp_make_the_same_picture() {
    let place = Place::new();
    write_both(&place.path("encoder"), &exact());
    let shared = edited(&place, &[], "shared.png");
    // Configuration and tokenizer of the model, whose own weights are not read then.
    place.linked_model("model", &[TEXT]);
    assert_eq!(shared, edited(&place, &["-m", "model", "--text-encoder", FILE], "named.png"));
    // Where the model has weights, what else lies there is not looked into.
    place.linked_model("whole", &[]);
    let [beside, within] = ["whole/text.gguf", "whole/Qwen2.5-VL-7B-Instruct/text.gguf"];
    for file in [beside, within] {
        fs::hard_link(place.path(FILE), place.path(file)).unwrap();
    }
    assert_eq!(shared, edited(&place, &["-m", "whole"], "whole.png"));
    // Beside a transformer, without any configuration.
    for file in [DIT, VAE, SETTINGS] {
        fs::hard_link(model().join(file), place.path("encoder").join(file)).unwrap();
    }
    place.edit_refused(&["-m", "encoder"], 3, &["encoder: not a complete model folder", "missing (1)", "tokenizer.json"]);
    fs::hard_link(model().join(TOKENIZER), place.path("encoder/tokenizer.json")).unwrap();
    assert_eq!(shared, edited(&place, &["-m", "encoder"], "beside.png"));
    let dit = format!("encoder/{DIT}");
    assert_eq!(shared, edited(&place, &["-m", &dit], "file.png"));
    let inspected = place.run(&["inspect", "-m", "encoder"]);
    assert!(inspected.stdout.contains(FILE) && inspected.stdout.contains(TOWER), "{}", inspected.stdout);
    // In the text encoder's own folder.
    let folder = place.path("model/Qwen2.5-VL-7B-Instruct");
    for file in [FILE, TOWER] {
        fs::hard_link(place.path(file), folder.join(Path::new(file).file_name().unwrap())).unwrap();
    }
    assert_eq!(shared, edited(&place, &["-m", "model"], "within.png"));
    fs::remove_file(folder.join("config.json")).unwrap();
    assert_eq!(shared, edited(&place, &["-m", "model"], "inferred.png"));
    // Of several vision towers one is named, wherever it lies, and no other is looked into.
    for name in ["mmproj-BF16.gguf", "mmproj-F16.gguf"] {
        fs::remove_file(folder.join(name)).ok();
        fs::write(folder.join(name), "none").unwrap();
    }
    place.edit_refused(&["-m", "model"], 3, &["choose one with --mmproj", "there (2):\n  mmproj-BF16.gguf"]);
    assert_eq!(shared, edited(&place, &["-m", "model", "--mmproj", TOWER], "tower.png"));
    let within = folder.join(Path::new(FILE).file_name().unwrap()).display().to_string();
    assert_eq!(shared, edited(&place, &["-m", "model", "--text-encoder", &within, "--mmproj", TOWER], "both.png"));
}

#[test]
fn blocks_make_the_picture_of_their_values() {
    let place = Place::new();
    let dir = place.linked_model("model", &[TEXT]);
    let mut tensors = f32_tensors();
    let packed = moved(&tensors, |_, name, shape, values| match is_packed(&shape) {
        true => Tensor { name, kind: Q8_0, shape, bytes: q8_0(values).0 },
        false => plain(if shape.0.len() == 1 { F32 } else { F16 }, name, shape, values),
    });
    for t in &mut tensors {
        let values = t.values();
        t.bytes = match t.shape.0.len() {
            1 => f32s(values),
            2 if is_packed(&t.shape) => f32s(q8_0(&values).1),
            _ => f32s(values.into_iter().map(|v| f16::from_f32(v).to_f32())),
        };
    }
    write_both(&place.path("encoder"), &packed);
    let of_blocks = edited(&place, &["-m", "model", "--text-encoder", FILE], "blocks.png");
    write(&dir.join(TEXT), &tensors);
    assert_eq!(of_blocks, edited(&place, &["-m", "model"], "values.png"));
    assert_ne!(of_blocks, edited(&place, &[], "shared.png"), "eight bits change a picture");
}

#[test]
fn what_is_wrong_with_them_is_named() {
    let place = Place::new();
    place.linked_model("model", &[TEXT]);
    let [text, tower] = exact();
    let write_again = || write_both(&place.path("encoder"), &[text.clone(), tower.clone()]);
    let refused = |file: &str, words: &[&str]| place.edit_refused(&["-m", "model", "--text-encoder", file], 3, words);
    write_again();
    refused(TOWER, &[TOWER, "this is a vision tower; give --text-encoder the file of the text model"]);
    fs::rename(place.path(TOWER), place.path("encoder/other.gguf")).unwrap();
    refused(FILE, &[FILE, "this is the text model alone; put the vision tower beside it, a file such as mmproj-F16.gguf"]);
    write_again();
    fs::copy(place.path(TOWER), place.path("encoder/mmproj-BF16.gguf")).unwrap();
    refused(
        FILE,
        &[FILE, "several files beside it have a vision tower; choose one with --mmproj", "mmproj-BF16.gguf", "mmproj-F16.gguf"],
    );
    let with = |file: &str, words: &[&str]| {
        place.edit_refused(&["-m", "model", "--text-encoder", FILE, "--mmproj", file], 3, words);
    };
    with("encoder/none.gguf", &["none.gguf: there is no such file; give --mmproj"]);
    with(FILE, &["this is a vision tower of the kind \"\", where"]);
    place.edit_refused(
        &["-m", "model", "--text-encoder", "encoder", "--mmproj", "encoder"],
        3,
        &["encoder: there is no such file"],
    );
    let whole = Place::new();
    whole.linked_model("model", &[]);
    let given = place.path(TOWER).display().to_string();
    whole.edit_refused(
        &["-m", "model", "--mmproj", &given],
        3,
        &[TOWER, "for a text encoder in GGUF, and model/Qwen2.5-VL-7B-Instruct"],
    );
    whole.run(&["edit", "-i", "x.png", "-p", "x", "-o", "x.png", "--mmproj", "x"]).refused(2, &["--model"]);
    fs::remove_file(place.path("encoder/mmproj-BF16.gguf")).unwrap();
    write_text(&place.path(TOWER), &tower);
    refused(FILE, &[TOWER, "this is a vision tower of the kind \"\", where Qwen2.5-VL has qwen2.5vl_merger"]);
    write_again();
    refused(&report("quantised.gguf"), &["quantised.gguf"]);
    place.edit_refused(&["-m", FILE], 3, &[FILE, "this is a GGUF file", "with --text-encoder"]);

    let change = |change: &dyn Fn(&mut Vec<Tensor>, usize), name: &str, words: &[&str]| {
        let mut tensors = text.clone();
        let at = tensors.iter().position(|t| t.name == name).unwrap();
        change(&mut tensors, at);
        write_text(&place.path(FILE), &tensors);
        refused(FILE, words);
    };
    const Q: &str = "blk.1.attn_q.weight";
    change(&|tensors, at| drop(tensors.remove(at)), Q, &["missing (1)", Q]);
    change(&|tensors, at| tensors[at].name += ".more", Q, &["missing (1)", "unexpected (1)"]);
    change(&|tensors, at| tensors[at].kind = 10, Q, &[FILE, Q, "is of GGML's kind 10; F32, F16, BF16, Q8_0"]);
    let packed = |byte: &'static [u8; 2]| {
        move |tensors: &mut Vec<Tensor>, at: usize| {
            let count = tensors[at].shape.elements() / 32;
            let bytes = [&byte[..], &[if byte[1] == 0 { 0 } else { 1 }; 32]].concat().repeat(count);
            tensors[at] = Tensor { kind: Q8_0, bytes, ..tensors[at].clone() };
        }
    };
    change(&packed(&[0, 0x7c]), Q, &[FILE, Q, "has values that are not finite"]);
    change(&packed(&[0, 0]), Q, &[FILE, Q, "has only zeros"]);
    write_again();
    let whole = place.read(FILE);
    place.write(FILE, &whole[..whole.len() / 2]);
    refused(FILE, &[FILE, "bytes are missing", "download is probably incomplete"]);
    place.write(FILE, &whole[..1000]);
    refused(FILE, &[FILE, "the file ends in its header, with 1000 bytes"]);
}
