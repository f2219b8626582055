//! Fuzzing of everything that reads a file or a text of someone else's: any bytes give a result or an error, in bounded time
//! and memory, and what is accepted keeps what it promises.
//!
//! ```sh
//! cargo test --release --test fuzz                                                          # some thousand cases of each
//! STEP1X_FUZZ_CASES=1000000 cargo test --profile fuzz --test fuzz -- --nocapture pictures   # with overflow checks
//! STEP1X_FUZZ_FIRST=4711 STEP1X_FUZZ_CASES=1 cargo test --release --test fuzz pictures      # one case again
//! ```

mod lora;
mod mutate;
mod run;
#[cfg(all(unix, feature = "serve"))]
mod serve;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use step1x_edit::commands::verify::{self, VerifyJob};
use step1x_edit::image::{self, Decoded, Reading, Rgb};
use step1x_edit::model::{AXES, Config};
use step1x_edit::pipeline::{CFG_SCALES, parse_settings};
use step1x_edit::prompt::{self, PromptSettings, Tokenizer};
use step1x_edit::sampling;
use step1x_edit::weights::{Entry, ModelFolder, parse_gguf, parse_header, tokenizer::full_tokenizer_json};
use step1x_edit::{DeviceChoice, Model, Place, PlaceChoice, Progress};

use self::mutate::Rng;
use self::run::{fuzz, fuzz_slowly};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Largest picture that is decoded here, in pixels.
const PIXELS: u64 = 16_000_000;

/// A file of the repository.
fn read(name: &str) -> Vec<u8> {
    let path = Path::new(ROOT).join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Words of a format, separated by spaces.
fn words(list: &'static str) -> Vec<&'static str> {
    list.split(' ').collect()
}

/// A safetensors file of this header and as many zeros behind it.
fn file_of(header: &[u8], data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, &vec![0; data]].concat()
}

/// The header of a safetensors file, without its length.
fn header_of(file: &[u8]) -> &[u8] {
    let (length, rest) = file.split_first_chunk().unwrap();
    &rest[..u64::from_le_bytes(*length) as usize]
}

/// Tensors lie in the file, apart from each other, each as long as its shape says.
fn assert_apart(entries: &BTreeMap<String, Entry>, bytes: &[u8]) {
    let mut ranges: Vec<_> = entries.values().map(|entry| entry.range.clone()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "tensors overlap");
    for entry in entries.values() {
        assert_eq!(bytes[entry.range.clone()].len(), entry.spec.bytes());
    }
}

/// Accepted tensors are apart from each other.
#[test]
fn header() {
    let words =
        words("F32 BF16 F16 F8_E4M3 F8_E5M2 I32 U8 I64 dtype shape data_offsets __metadata__ a b \\u0000 \\ud800 [[[[[[[[");
    let seeds = [
        file_of(
            br#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#,
            32,
        ),
        file_of(
            br#"{"__metadata__":{"format":"pt"},"x":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"y":{"dtype":"F8_E4M3","shape":[0,9],"data_offsets":[1,1]}}"#,
            1,
        ),
        file_of(br#"{"k":{"dtype":"F16","shape":[1,1,1,1,1,2],"data_offsets":[0,4]}}"#, 4),
        file_of(b"{}", 0),
    ];
    let lengths = [0, 1, 1 << 63, 99_999_999, 100_000_001, u64::MAX, u64::MAX - 7, u64::MAX - 8];
    let make = |rng: &mut Rng| {
        let seed = &seeds[rng.below(seeds.len())];
        let header = header_of(seed);
        let data = seed.len() - header.len() - 8;
        let mut bytes = match rng.below(4) {
            0 => mutate::text(rng, seed, &words),
            _ => file_of(&mutate::text(rng, header, &words), data),
        };
        if rng.below(12) == 0 && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(&rng.of(&lengths).to_le_bytes());
        }
        bytes
    };
    fuzz("header", make, |bytes| {
        // A file that is said to be longer or shorter than it is: the header must not be trusted further than that.
        for length in [0, 1 << 40, u64::MAX, u64::MAX - 8] {
            let _ = parse_header(bytes, length).map_err(|e| e.to_string());
        }
        let Ok(entries) = parse_header(bytes, bytes.len() as u64) else { return false };
        assert_apart(&entries, bytes);
        true
    });
}

/// The same of the header of a GGUF file.
#[test]
fn gguf_header() {
    let whole = read("tests/data/gguf/small.gguf");
    let seeds = [whole.clone(), whole[..448].to_vec(), [&whole[..8], &[0; 16]].concat()];
    fuzz(
        "gguf_header",
        |rng| {
            let seed = rng.below(seeds.len());
            mutate::binary(rng, &seeds[seed], &seeds)
        },
        |bytes| {
            for length in [0, 1 << 40, u64::MAX, u64::MAX - 8] {
                let _ = parse_gguf(bytes, length).map_err(|e| e.to_string());
            }
            let Ok((entries, _)) = parse_gguf(bytes, bytes.len() as u64) else { return false };
            assert_apart(&entries, bytes);
            true
        },
    );
}

/// An accepted tokenizer gives ids below its vocabulary's size.
#[test]
fn tokenizer() {
    let words = words(
        "NFC Split ByteLevel Sequence FixedLength BPE Regex String pattern behavior Isolated Removed (a+)+$ (?i:'s)|x* <|image_pad|> type content special WordPiece Whitespace Metaspace",
    );
    let whole = read("assets/demo-model/Qwen2.5-VL-7B-Instruct/tokenizer.json");
    // The vocabulary is most of the file; mutations are to hit the rest as often.
    let at = whole.windows(7).position(|w| w == b"\"model\"").expect("a tokenizer.json has a model");
    let make = |rng: &mut Rng| {
        let (head, tail) = whole.split_at(at);
        match rng.below(4) {
            0 => mutate::text(rng, &whole, &words),
            _ => [&mutate::text(rng, head, &words), tail].concat(),
        }
    };
    let settings = PromptSettings::default();
    let prompts = ["make the circle blue", "'\"“”  \n\n1234567890 <|im_end|> 把圆形变成蓝色", &"a".repeat(300)];
    fuzz("tokenizer", make, |bytes| {
        let Ok(tokenizer) = Tokenizer::from_bytes(bytes).map_err(|e| format!("{e:#}")) else { return false };
        for prompt in prompts {
            if let Ok(tokens) = tokenizer.encode_prompt(prompt, 25, &settings) {
                assert!(tokens.ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary_size()));
            }
        }
        true
    });
}

/// Every prompt gives ids below the vocabulary's size and as many picture tokens as were asked for.
#[test]
fn prompt() {
    const WORDS: [&str; 34] = [
        "make",
        "the circle",
        "blue",
        "'",
        "\"",
        "“",
        "”",
        "<|im_end|>",
        "<|im_start|>",
        "<|vision_end|>",
        "<|vision_start|>",
        "<|image_pad|>",
        "<|endoftext|>",
        "\n",
        "\r\n",
        "  ",
        "\t",
        "\u{0}",
        "\u{301}",
        "\u{1F468}\u{200D}\u{1F469}",
        "圆",
        "ﷺ",
        "\u{feff}",
        "\u{202e}",
        "\u{10ffff}",
        "'s",
        "1234567890",
        "é",
        "e\u{301}",
        "\u{1100}\u{1161}\u{11a8}",
        "\u{0344}",
        "ſ",
        "İ",
        "!",
    ];
    let demo = Tokenizer::from_bytes(&read("assets/demo-model/Qwen2.5-VL-7B-Instruct/tokenizer.json")).unwrap();
    let full = Tokenizer::from_bytes(&full_tokenizer_json().unwrap()).unwrap();
    let make = |rng: &mut Rng| {
        let mut text = String::new();
        for _ in 0..rng.below(40) {
            match rng.below(4) {
                0 => text.extend(char::from_u32(rng.next() as u32 % 0x11_0000)),
                1 => text += &rng.of(&WORDS).repeat(1 + rng.below(6)),
                _ => text += rng.of(&WORDS),
            }
        }
        // One in a thousand is far longer than any that is kept.
        if rng.below(1000) == 0 { text.repeat(2000).into_bytes() } else { text.into_bytes() }
    };
    let settings = PromptSettings::default();
    fuzz("prompt", make, |bytes| {
        let text = str::from_utf8(bytes).unwrap();
        let taken = [&demo, &full].map(|tokenizer| {
            let Ok(tokens) = tokenizer.encode_prompt(text, 25, &settings) else { return false };
            assert!(tokens.ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary_size()));
            assert_eq!(tokens.image_tokens, 25);
            true
        });
        assert_eq!(taken[0], taken[1], "one vocabulary refuses what the other takes");
        taken[0]
    });
}

/// An accepted picture has all its samples and no more pixels than are allowed.
#[test]
fn pictures() {
    let seeds = pictures_of(&["tests/data/images", "tests/data/pictures", "tests/data/reports"]);
    let make = |rng: &mut Rng| {
        let seed = rng.below(seeds.len());
        let mut bytes = mutate::binary(rng, &seeds[seed], &seeds);
        // With its checksums right, a mutated PNG is read further.
        if bytes.starts_with(b"\x89PNG") && rng.below(2) == 0 {
            sum_chunks(&mut bytes);
        }
        bytes
    };
    let reading = Reading { pixels_max: PIXELS, ..Reading::default() };
    fuzz("pictures", make, |bytes| {
        let Ok(Decoded { picture, .. }) = image::decode_bytes(bytes, &reading).map_err(|e| format!("{e:#}")) else {
            return false;
        };
        assert_eq!(picture.data.len(), picture.width * picture.height * 3);
        assert!((1..=PIXELS).contains(&((picture.width * picture.height) as u64)));
        true
    });
}

/// The small files of these folders that may be pictures.
fn pictures_of(folders: &[&str]) -> Vec<Vec<u8>> {
    let folders = folders.iter().map(|folder| Path::new(ROOT).join(folder));
    let mut paths: Vec<PathBuf> =
        folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let files = paths
        .iter()
        .filter(|path| path.is_file() && !path.to_string_lossy().ends_with(".expected.png"))
        .map(|path| fs::read(path).unwrap());
    files.filter(|bytes| bytes.len() < 16 << 10).collect()
}

/// Gives every whole chunk of a PNG its right checksum.
fn sum_chunks(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4) {
        let end = at + 8 + u32::from_be_bytes(length.try_into().unwrap()) as usize;
        if end + 4 > bytes.len() {
            return;
        }
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&crc.sum().to_be_bytes());
        at = end + 4;
    }
}

/// Dimensions that are accepted have a manifest.
#[test]
fn config() {
    let words = words(
        "vision_config text_config rope_scaling rope_parameters mrope_section fullatt_block_indexes hidden_size num_attention_heads depth window_size out_hidden_size",
    );
    let folder = ModelFolder::demo().unwrap();
    let seed = read("assets/demo-model/Qwen2.5-VL-7B-Instruct/config.json");
    let shape_of = |component, name: &str| folder.recipe(component, name).map(|recipe| recipe.spec().shape.clone());
    fuzz(
        "config",
        |rng| mutate::text(rng, &seed, &words),
        |bytes| {
            let Ok(json) = serde_json::from_slice::<Value>(bytes) else { return false };
            let Ok(config) = Config::infer(&shape_of, &json, AXES) else { return false };
            assert!(!config.manifest().is_empty());
            true
        },
    );
}

/// Settings that are accepted are in range, and hold for a tokenizer or are refused in words.
#[test]
fn settings() {
    let words = words(
        "cut max_text min_pixels max_pixels axes rules official diffusers size_level cfg_scale 64 4096 128 6.0 1e39 -0.5 [16,56,56] null",
    );
    let seed = br#"{"size_level": 128, "cfg_scale": 1.0, "cut": 208, "max_text": 64, "min_pixels": 19600, "max_pixels": 19600, "axes": [16, 56, 56]}"#;
    let tokenizer = Tokenizer::from_bytes(&read("assets/demo-model/Qwen2.5-VL-7B-Instruct/tokenizer.json")).unwrap();
    fuzz(
        "settings",
        |rng| mutate::text(rng, seed, &words),
        |bytes| {
            let Ok(json) = serde_json::from_slice(bytes) else { return false };
            let Ok(settings) = parse_settings(Some(json)).map_err(|e| format!("{e:#}")) else { return false };
            assert!(
                settings.size_level.is_none_or(|side| (64..=4096).contains(&side)) && CFG_SCALES.contains(&settings.cfg_scale)
            );
            let _ = settings.prompt.check(&tokenizer).map_err(|e| e.to_string());
            true
        },
    );
}

/// Every stage is refused, so that an edit ends when it would begin.
struct Stop;

impl Progress for Stop {
    fn place(&mut self, _: &Place) {}

    fn stage(&mut self, _: &str, _: usize, _: usize) -> anyhow::Result<()> {
        anyhow::bail!("stopped")
    }

    fn node(&mut self) -> anyhow::Result<()> {
        anyhow::bail!("stopped")
    }

    fn notice(&mut self, _: &str) {}
}

/// What a recorded run's header says is refused, or is an edit in range.
#[test]
fn recorded_header() {
    let words = words("prompt steps cfg seed 0 1 1000 1001 18446744073709551615 nan inf -1 1e9 6.0");
    let seed = br#"{"__metadata__":{"prompt":"make the circle blue","steps":"2","cfg":"6.0","seed":"42"}}"#;
    let make = |rng: &mut Rng| file_of(&mutate::text(rng, seed, &words), 0);
    fuzz("recorded_header", make, |bytes| {
        let Ok((_, header)) = SafeTensors::read_metadata(bytes) else { return false };
        let metadata = header.metadata().clone().unwrap_or_default();
        let Ok(edit) = verify::parameters(&metadata).map_err(|e| format!("{e:#}")) else { return false };
        assert!((1..=1000).contains(&edit.steps));
        true
    });
}

/// A recorded run with any header is refused or gets as far as its first stage.
#[test]
fn recorded_run() {
    let words = words(
        "prompt steps cfg seed rules diffusers rgb cond.input_ids uncond.input_ids pixel_values U8 I32 F32 BF16 F64 0 1 18446744073709551615 nan inf -1 1e9",
    );
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let job = VerifyJob {
        model: Path::new(ROOT).join("assets/demo-model").as_path().into(),
        golden: folder.path().to_path_buf(),
        name: "run".into(),
        rules: None,
        place: PlaceChoice { device: DeviceChoice::Cpu, ..PlaceChoice::default() },
        json: false,
    };
    let files = recorded(&Model::demo().unwrap());
    for (name, bytes) in &files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let make = |rng: &mut Rng| {
        let number = rng.below(files.len());
        let (_, seed) = &files[number];
        let header = header_of(seed);
        let mut bytes = [&[number as u8][..], &file_of(&mutate::text(rng, header, &words), 0)].concat();
        bytes.extend(&seed[8 + header.len()..]);
        let length = if rng.below(8) == 0 { 1 + rng.below(bytes.len()) } else { bytes.len() };
        bytes.truncate(length);
        bytes
    };
    let ended = || verify::run(&job, &mut Stop).map(|_| ()).map_err(|error| format!("{error:#}"));
    let as_it_is = ended().unwrap_err();
    assert!(as_it_is.contains("stopped"), "{as_it_is}");
    // The first byte of an input says which of the three files it is.
    fuzz_slowly("recorded_run", make, |bytes| {
        let (name, whole) = &files[bytes[0] as usize];
        let path = folder.path().join(name);
        fs::write(&path, &bytes[1..]).unwrap();
        let message = ended().unwrap_err();
        fs::write(&path, whole).unwrap();
        message.contains("stopped")
    });
}

/// A recorded run of the demo model as far as its first stage: inputs, official results, truth.
fn recorded(model: &Model) -> [(&'static str, Vec<u8>); 3] {
    let picture = Rgb { width: 128, height: 128, data: vec![128; 3 * 128 * 128] };
    let patches = prompt::patches(&picture, &model.settings).unwrap();
    let ids = |text| model.tokenizer.encode_prompt(text, patches.image_tokens(), &model.settings).unwrap().ids;
    let [first, second] = ["make the circle blue", ""].map(ids);
    let bytes = |ids: &[u32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let (first_ids, second_ids) = (bytes(&first), bytes(&second));
    let values: Vec<u8> = patches.pixel_values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let count = patches.pixel_values.len();
    let file = |tensors: Vec<(&str, Dtype, Vec<usize>, &[u8])>, metadata: Option<HashMap<String, String>>| {
        let views = tensors.into_iter().map(|(name, dtype, shape, data)| (name, TensorView::new(dtype, shape, data).unwrap()));
        safetensors::serialize(views, metadata).unwrap()
    };
    let settings = [("prompt", "make the circle blue"), ("steps", "2"), ("cfg", "6.0"), ("seed", "42")];
    let settings = settings.map(|(key, value)| (key.to_string(), value.to_string())).into();
    let (noise, times) = (vec![0; 4 * 16 * 16 * 16], sampling::schedule(2, 64));
    let times: Vec<u8> = times.iter().flat_map(|time| time.to_le_bytes()).collect();
    let official = vec![("noise", Dtype::F32, vec![1, 16, 16, 16], &noise[..]), ("timesteps", Dtype::F32, vec![3], &times)];
    let truth = vec![("x", Dtype::F32, vec![1], &[0; 4][..])];
    let inputs = vec![
        ("cond.input_ids", Dtype::I32, vec![first.len()], &first_ids[..]),
        ("pixel_values", Dtype::F32, vec![count], &values),
        ("rgb", Dtype::U8, vec![128, 128, 3], &picture.data),
        ("uncond.input_ids", Dtype::I32, vec![second.len()], &second_ids),
    ];
    [
        ("run_inputs.safetensors", file(inputs, None)),
        ("run.safetensors", file(official, Some(settings))),
        ("run_truth.safetensors", file(truth, None)),
    ]
}
