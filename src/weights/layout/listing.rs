//! Which files of a repository a model is read from, by their names alone: each network in one form, and nothing that is not read.

use std::collections::BTreeSet;

use super::parts::{CONFIG, STEM, TEXT_ENCODER, TOKENIZERS, VAE};
use super::{DIT_V1_0, DIT_V1_1, QWEN, QWEN_CONFIG, QWEN_STEM, QWEN_TOKENIZER, SETTINGS};

/// What of a repository is read.
#[derive(Debug, PartialEq, Eq)]
pub enum Listed {
    /// A model, all of it.
    Whole(Vec<String>),
    /// A transformer and what is beside it, but no text encoder.
    WithoutTextEncoder(Vec<String>),
    /// Several transformers, one of which must be chosen.
    Several(Vec<String>),
    /// Nothing: it is no model that is read, or lacks the transformer that is meant.
    None,
}

/// What is read of files with these names; `dit`: the transformer that is meant where there are several.
pub fn read_of(names: &BTreeSet<&str>, dit: Option<&str>) -> Listed {
    if names.contains("model_index.json") || names.iter().any(|name| name.starts_with("transformer/")) {
        return of_diffusers(names);
    }
    let mut transformers: Vec<&str> = names.iter().copied().filter(|name| is_transformer(name)).collect();
    match dit {
        Some(dit) => transformers.retain(|name| *name == dit),
        None if transformers.iter().any(|name| [DIT_V1_0, DIT_V1_1].contains(name)) => {
            transformers.retain(|name| [DIT_V1_0, DIT_V1_1].contains(name));
        }
        None => {}
    }
    match transformers[..] {
        [] if dit.is_none() => text_encoder(names, "").map_or(Listed::None, Listed::Whole),
        [] => Listed::None,
        [transformer] => {
            let mut files = vec![transformer.to_string()];
            files.extend(autoencoder(names));
            files.extend(there(names, SETTINGS));
            match [QWEN, TEXT_ENCODER].iter().find_map(|folder| text_encoder(names, &format!("{folder}/"))) {
                Some(text) => Listed::Whole([files, text].concat()),
                None => Listed::WithoutTextEncoder(files),
            }
        }
        _ => Listed::Several(transformers.into_iter().map(String::from).collect()),
    }
}

fn is_transformer(name: &str) -> bool {
    name.starts_with("step1x-edit") && name.ends_with(".safetensors") && !name.contains('/')
}

fn of_diffusers(names: &BTreeSet<&str>) -> Listed {
    let transformer = weights(names, "transformer/", STEM);
    match text_encoder(names, &format!("{TEXT_ENCODER}/")) {
        Some(text) if !transformer.is_empty() => {
            let small = ["model_index.json", SETTINGS, "transformer/config.json"].iter().filter_map(|name| there(names, name));
            Listed::Whole(small.chain(transformer).chain(autoencoder(names)).chain(text).collect())
        }
        _ => Listed::None,
    }
}

fn autoencoder(names: &BTreeSet<&str>) -> Vec<String> {
    match there(names, super::VAE) {
        Some(single) => vec![single],
        None => {
            let folder = format!("{VAE}/");
            there(names, &format!("{folder}{CONFIG}")).into_iter().chain(weights(names, &folder, STEM)).collect()
        }
    }
}

/// The text encoder in a folder, whose name ends with `/` or is empty: all that it needs is there.
fn text_encoder(names: &BTreeSet<&str>, folder: &str) -> Option<Vec<String>> {
    let weights = Some(weights(names, folder, QWEN_STEM)).filter(|files| !files.is_empty())?;
    let config = there(names, &format!("{folder}{QWEN_CONFIG}"))?;
    let beside = TOKENIZERS.iter().filter(|_| folder.strip_suffix('/') == Some(TEXT_ENCODER)).map(|other| format!("{other}/"));
    let mut folders = beside.chain([folder.to_string()]);
    let tokenizer = folders.find_map(|folder| there(names, &format!("{folder}{QWEN_TOKENIZER}")))?;
    Some([vec![config, tokenizer], weights].concat())
}

/// A network's single file, else its index and shards.
fn weights(names: &BTreeSet<&str>, folder: &str, stem: &str) -> Vec<String> {
    let (single, index) = (format!("{folder}{stem}.safetensors"), format!("{folder}{stem}.safetensors.index.json"));
    if names.contains(single.as_str()) {
        return vec![single];
    }
    let first = format!("{folder}{stem}-");
    let is_shard = |name: &&str| {
        let numbers = name.strip_prefix(&first).and_then(|rest| rest.strip_suffix(".safetensors"));
        numbers.and_then(|numbers| numbers.split_once("-of-")).is_some()
    };
    let shards = names.iter().copied().filter(is_shard).map(String::from);
    there(names, &index).into_iter().flat_map(|index| [index].into_iter().chain(shards.clone())).collect()
}

fn there(names: &BTreeSet<&str>, name: &str) -> Option<String> {
    names.contains(name).then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(names: &[&'a str], dit: Option<&str>) -> (Listed, BTreeSet<&'a str>) {
        let names: BTreeSet<&str> = names.iter().copied().collect();
        (read_of(&names, dit), names)
    }

    fn whole(names: &[&str]) -> Vec<String> {
        let mut sorted: Vec<String> = names.iter().map(ToString::to_string).collect();
        sorted.sort();
        sorted
    }

    const QWEN_FILES: [&str; 5] = [
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];

    #[test]
    fn of_two_transformers_one_is_read() {
        let others = ["README.md", "LICENSE", "assets/a.png", ".gitattributes", "step1x-edit-i1258-FP8.safetensors"];
        let all = [&others[..], &[DIT_V1_0, DIT_V1_1, "vae.safetensors"]].concat();
        let without = |files: &[&str]| Listed::WithoutTextEncoder(files.iter().map(ToString::to_string).collect());
        assert_eq!(read(&all, Some(DIT_V1_1)).0, without(&[DIT_V1_1, "vae.safetensors"]));
        assert_eq!(read(&all, Some(DIT_V1_0)).0, without(&[DIT_V1_0, "vae.safetensors"]));
        assert_eq!(read(&all, None).0, Listed::Several(vec![DIT_V1_0.into(), DIT_V1_1.into()]));
        assert_eq!(read(&[&others[..], &["vae.safetensors"]].concat(), Some(DIT_V1_1)).0, Listed::None);
        let one = ["step1x-edit-i1258-FP8.safetensors", "vae.safetensors", "step1x.json", "README.md"];
        let expected = without(&["step1x-edit-i1258-FP8.safetensors", "vae.safetensors", "step1x.json"]);
        assert_eq!(read(&one, None).0, expected);
    }

    #[test]
    fn a_text_encoder_is_a_model_without_its_other_forms() {
        let others = ["model.fp16.safetensors", "pytorch_model.bin", "README.md", "vocab.json", "merges.txt"];
        let Listed::Whole(mut files) = read(&[&QWEN_FILES[..], &others].concat(), None).0 else { panic!("not whole") };
        files.sort();
        assert_eq!(files, whole(&QWEN_FILES));
        let single = ["config.json", "tokenizer.json", "model.safetensors"];
        let Listed::Whole(mut files) = read(&[&QWEN_FILES[..], &["model.safetensors"]].concat(), None).0 else { panic!() };
        files.sort();
        assert_eq!(files, whole(&single));
        for lacking in 0..3 {
            let rest: Vec<&str> = (0..3).filter(|at| *at != lacking).map(|at| QWEN_FILES[at]).collect();
            assert_eq!(read(&rest, None).0, Listed::None, "{rest:?}");
        }
    }

    #[test]
    fn a_folder_of_diffusers_is_read_as_its_layout_says() {
        let read_files = [
            "model_index.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
            "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "processor/tokenizer.json",
        ];
        let others =
            ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "README.md", "vae/diffusion_pytorch_model.bin"];
        let Listed::Whole(mut files) = read(&[&read_files[..], &others].concat(), None).0 else { panic!("not whole") };
        files.sort();
        assert_eq!(files, whole(&read_files));
        assert_eq!(read(&read_files[..7], None).0, Listed::None);
        assert_eq!(read(&["README.md"], None).0, Listed::None);
    }
}
