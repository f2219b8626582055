//! Where the files of a model are: the official layout, and the caches that download tools make of it.
//!
//! ```text
//! <model>/step1x-edit-i1258.safetensors | step1x-edit-v1p1-official.safetensors
//!         vae.safetensors
//!         step1x.json                                      (optional)
//!         Qwen2.5-VL-7B-Instruct/config.json
//!                                tokenizer.json
//!                                model.safetensors | model-*.safetensors + model.safetensors.index.json
//! ```
//!
//! In a Hugging Face cache, `<model>` is `models--<org>--<name>/snapshots/<hash>` and the Qwen folder a
//! `models--Qwen--…` beside it; in a ModelScope cache they are `<org>/<name>` and `Qwen/<name>`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component as Part, Path, PathBuf};

use serde::Deserialize;

use super::file::WeightFile;
use super::foreign::{FIRST, Foreign, what_bytes, what_names};
use super::json::{CONFIG_BYTES, INDEX_BYTES, Named, read, read_json};
use super::words::{listed, shown};
use super::{ModelError, Result};
use crate::tensor::Component;

pub(super) const DIT_V1_0: &str = "step1x-edit-i1258.safetensors";
pub(super) const DIT_V1_1: &str = "step1x-edit-v1p1-official.safetensors";
pub(super) const VAE: &str = "vae.safetensors";
pub(super) const SETTINGS: &str = "step1x.json";
pub(super) const QWEN: &str = "Qwen2.5-VL-7B-Instruct";
pub(super) const QWEN_CONFIG: &str = "config.json";
pub(super) const QWEN_TOKENIZER: &str = "tokenizer.json";
pub(super) const QWEN_SINGLE: &str = "model.safetensors";
pub(super) const QWEN_INDEX: &str = "model.safetensors.index.json";

/// What says that a folder has the layout of diffusers.
const DIFFUSERS: &str = "model_index.json";

/// Ends of the names of files that hold weights, of any program.
const WEIGHTS: [&str; 16] = [
    ".safetensors",
    ".sft",
    ".gguf",
    ".ggml",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".pb",
    ".tflite",
    ".h5",
    ".zip",
    ".tar",
    ".gz",
    ".tgz",
];

/// Most files of a folder that are looked into for what is in the place of a model.
const MOST_LOOKED_AT: usize = 50;

/// Most bytes of a file that names a revision; one has 40.
const REVISION_BYTES: u64 = 1000;

const STEP1X_SOURCE: &str = "from the repository stepfun-ai/Step1X-Edit";
const QWEN_SOURCE: &str = "from the repository Qwen/Qwen2.5-VL-7B-Instruct";

/// The files of one model; all but the settings exist.
#[derive(Debug)]
pub(super) struct Layout {
    pub dir: PathBuf,
    pub dit: PathBuf,
    pub vae: PathBuf,
    pub settings: Option<PathBuf>,
    pub qwen: PathBuf,
    pub index: Option<Index>,
}

/// Which shard of a folder holds which tensor; shard names are plain file names.
#[derive(Debug)]
pub(super) struct Index {
    /// Stored tensor name -> shard.
    pub weight_map: BTreeMap<String, String>,
    /// Every shard named, once.
    pub shards: BTreeSet<String>,
}

impl Layout {
    /// Finds the model at `path`: its folder, a cache's folder for it, or its DiT file.
    ///
    /// Fails when there is nothing at `path`, when the file is known to be something else, when more than one DiT file could
    /// be meant, or when files are missing, all of which are then listed, with those that are there instead.
    pub fn find(path: &Path) -> Result<Layout> {
        let (dir, dit) = if path.is_file() {
            if let Some(foreign) = look(path, Component::Dit) {
                return Err(ModelError::new(foreign.to_string()).at(path));
            }
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            let dir = parent.unwrap_or(Path::new(".")).to_path_buf();
            (dir, Some(path.to_path_buf()))
        } else if path.is_dir() {
            let dir = snapshot(path)?;
            let dit = find_dit(&dir)?;
            (dir, dit)
        } else {
            return Err(absent(path));
        };
        let mut missing = Vec::new();
        if dit.is_none() {
            missing.push(format!("{DIT_V1_0} (v1.0) or {DIT_V1_1} (v1.1), {STEP1X_SOURCE}"));
        }
        let vae = dir.join(VAE);
        if !vae.is_file() {
            missing.push(format!("{VAE}, {STEP1X_SOURCE}"));
        }
        let qwen = find_qwen(&dir)?;
        let index = missing_in_qwen(&qwen, &dir, &mut missing)?;
        match dit {
            Some(dit) if missing.is_empty() => {
                Ok(Layout { settings: Some(dir.join(SETTINGS)).filter(|p| p.is_file()), dit, vae, qwen, index, dir })
            }
            _ => Err(incomplete(&dir, &qwen, &missing)),
        }
    }

    /// Every file of the model.
    pub fn files(&self) -> Vec<PathBuf> {
        let of_qwen = |name: &str| self.qwen.join(name);
        let mut files = vec![self.dit.clone(), self.vae.clone()];
        files.extend(self.settings.clone());
        files.extend([QWEN_CONFIG, QWEN_TOKENIZER].map(of_qwen));
        match &self.index {
            None => files.push(of_qwen(QWEN_SINGLE)),
            Some(index) => files.extend([QWEN_INDEX].into_iter().chain(index.shards.iter().map(String::as_str)).map(of_qwen)),
        }
        files
    }
}

/// There is nothing at `path`. A name as a hub has it is told how the files of a hub become a folder.
fn absent(path: &Path) -> ModelError {
    let place = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let parts: Vec<_> = path.components().collect();
    let is_name = matches!(parts[..], [Part::Normal(_), Part::Normal(_)]);
    let remedy = match is_name {
        true => {
            "a name on a hub is not looked up, and nothing is downloaded: fetch its files as docs/models.md says, then name their folder"
        }
        false => "give --model the folder of a model, or its step1x-edit*.safetensors (docs/models.md)",
    };
    ModelError::new(format!("{}: there is no such folder or file; looked for {}; {remedy}", path.display(), place.display()))
}

fn incomplete(dir: &Path, qwen: &Path, missing: &[String]) -> ModelError {
    let (layout, found) = (diffusers(dir), foreign_in(dir, qwen));
    let lists = [listed("there instead", &found), listed("missing", missing)].concat();
    ModelError::new(format!("{}: not a complete model folder{layout}{lists}", dir.display()))
}

/// What `model_index.json` says of a folder, if it has one.
fn diffusers(dir: &Path) -> String {
    #[derive(Deserialize)]
    struct Pipeline {
        #[serde(rename = "_class_name")]
        class: String,
    }
    let path = dir.join(DIFFUSERS);
    if !path.is_file() {
        return String::new();
    }
    let of =
        read_json::<Pipeline>(&path, CONFIG_BYTES).map_or(String::new(), |pipeline| format!(" of {}", shown(&pipeline.class)));
    format!("\nthis is the diffusers layout{of}; download the files of Step1X-Edit in the official layout")
}

/// Files with weights in a model's folder and in that of its text encoder that are something else, in words.
fn foreign_in(dir: &Path, qwen: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (folder, usual) in [(dir, Component::Dit), (qwen, Component::Qwen)] {
        let names = names_in(folder).unwrap_or_default();
        let weights = |name: &&String| WEIGHTS.iter().any(|extension| name.to_ascii_lowercase().ends_with(extension));
        for name in names.iter().filter(weights).take(MOST_LOOKED_AT) {
            let wanted = if name == VAE { Component::Vae } else { usual };
            let path = folder.join(name);
            let shown = path.strip_prefix(dir).unwrap_or(&path).display();
            found.extend(look(&path, wanted).map(|foreign| format!("{shown}: {foreign}")));
        }
    }
    found
}

/// The folder itself, or for `models--<org>--<name>` of a Hugging Face cache the snapshot that `main` means.
fn snapshot(dir: &Path) -> Result<PathBuf> {
    let snapshots = dir.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(dir.to_path_buf());
    }
    if let Ok(revision) = read(&dir.join("refs/main"), REVISION_BYTES) {
        let revision = std::str::from_utf8(&revision).unwrap_or_default().trim();
        let at_main = snapshots.join(revision);
        if is_plain_name(revision) && at_main.is_dir() {
            return Ok(at_main);
        }
    }
    match &names_in(&snapshots)?[..] {
        [only] => Ok(snapshots.join(only)),
        names => Err(ModelError::new(format!(
            "{}: refs/main names none of its {} snapshots; give --model one of the folders in {}",
            dir.display(),
            names.len(),
            snapshots.display()
        ))),
    }
}

/// The DiT file of a folder: an official one, else the only `step1x-edit*.safetensors`, such as a community FP8 file.
fn find_dit(dir: &Path) -> Result<Option<PathBuf>> {
    let mut candidates = names_in(dir)?;
    candidates.retain(|name| name.starts_with("step1x-edit") && name.ends_with(".safetensors"));
    let official = [DIT_V1_0, DIT_V1_1].map(String::from);
    if candidates.iter().any(|name| official.contains(name)) {
        candidates.retain(|name| official.contains(name));
    }
    match &candidates[..] {
        [] => Ok(None),
        [only] => Ok(Some(dir.join(only))),
        several => Err(ModelError::new(format!(
            "{}: the folder holds several models, {}; give --model the path of one of these files",
            dir.display(),
            several.join(", ")
        ))),
    }
}

/// The Qwen folder beside the DiT file, or where a cache keeps it; the former if there is none.
fn find_qwen(dir: &Path) -> Result<PathBuf> {
    let beside = dir.join(QWEN);
    if beside.is_dir() {
        return Ok(beside);
    }
    let above = |levels: usize| dir.ancestors().nth(levels);
    let in_hub = above(1)
        .filter(|snapshots| snapshots.ends_with("snapshots"))
        .and(above(3))
        .map(|hub| hub.join(format!("models--Qwen--{QWEN}")));
    if let Some(repository) = in_hub.filter(|p| p.is_dir()) {
        return snapshot(&repository);
    }
    // ModelScope writes the dot of a name as three underscores.
    let in_modelscope = above(2)
        .into_iter()
        .flat_map(|root| [QWEN.to_string(), QWEN.replace('.', "___")].map(|q| root.join("Qwen").join(q)))
        .find(|p| p.is_dir());
    Ok(in_modelscope.unwrap_or(beside))
}

/// Adds what the Qwen folder lacks to `missing`; the index if its weights come in shards.
fn missing_in_qwen(qwen: &Path, dir: &Path, missing: &mut Vec<String>) -> Result<Option<Index>> {
    let shown = qwen.strip_prefix(dir).unwrap_or(qwen).display();
    for name in [QWEN_CONFIG, QWEN_TOKENIZER] {
        if !qwen.join(name).is_file() {
            missing.push(format!("{shown}/{name}, {QWEN_SOURCE}"));
        }
    }
    if qwen.join(QWEN_SINGLE).is_file() {
        return Ok(None);
    }
    let index_path = qwen.join(QWEN_INDEX);
    if !index_path.is_file() {
        missing.push(format!("{shown}/{QWEN_INDEX} and the files it lists (or {QWEN_SINGLE}), {QWEN_SOURCE}"));
        return Ok(None);
    }
    let index = Index::read(&index_path)?;
    for shard in &index.shards {
        if !qwen.join(shard).is_file() {
            missing.push(format!("{shown}/{shard}, {QWEN_SOURCE}"));
        }
    }
    Ok(Some(index))
}

impl Index {
    /// Fails when the file is no index, lists nothing, or lists a shard outside its folder.
    pub fn read(path: &Path) -> Result<Index> {
        #[derive(Deserialize)]
        struct Raw {
            weight_map: Named<String>,
        }
        let raw: Raw = read_json(path, INDEX_BYTES)?;
        let weight_map = raw.weight_map.0;
        let shards: BTreeSet<String> = weight_map.values().cloned().collect();
        if shards.is_empty() {
            return Err(ModelError::new("lists no tensors; fetch the file again").at(path));
        }
        if let Some(shard) = shards.iter().find(|s| !is_plain_name(s)) {
            return Err(ModelError::new(format!(
                "\"{}\" is not the name of a file beside it; fetch the file again",
                shown(shard)
            ))
            .at(path));
        }
        Ok(Index { weight_map, shards })
    }
}

/// What the file at `path` is, if it can be read, is known and not what is wanted here.
fn look(path: &Path, wanted: Component) -> Option<Foreign> {
    if !path.is_file() {
        return None; // opening a pipe would wait
    }
    let mut first = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(FIRST as u64).read_to_end(&mut first).ok()?;
    what_bytes(&first).or_else(|| {
        let file = WeightFile::open(path).ok()?;
        what_names(file.tensors().map(|(name, _)| name), Some(wanted))
    })
}

/// Whether joining `name` to a folder stays directly within that folder.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Part::Normal(part)), None) if part == name)
}

/// Names in a folder, sorted; such that are not UTF-8 are none of ours.
fn names_in(dir: &Path) -> Result<Vec<String>> {
    let io = |e: std::io::Error| ModelError::io("list it", dir, &e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    /// Empty files and the folders they need.
    fn touch(dir: &Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    const QWEN_FILES: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

    fn qwen_at(dir: &Path) {
        touch(dir, &QWEN_FILES);
    }

    fn fault(path: &Path) -> String {
        Layout::find(path).unwrap_err().to_string()
    }

    #[test]
    fn all_that_is_missing_is_listed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let text = fault(dir.path());
        for name in [DIT_V1_0, DIT_V1_1, VAE, QWEN_CONFIG, QWEN_TOKENIZER, QWEN_INDEX, QWEN_SINGLE] {
            assert!(text.contains(name), "{name}: {text}");
        }
        assert!(text.contains("missing (5)") && text.contains("stepfun-ai/Step1X-Edit"), "{text}");
        assert!(text.contains("Qwen/Qwen2.5-VL-7B-Instruct"), "{text}");
        touch(dir.path(), &["model_index.json"]);
        assert!(fault(dir.path()).contains("diffusers layout"));
        assert!(fault(&dir.path().join("absent")).contains("no such folder"));
    }

    #[test]
    fn absent_shards_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &[DIT_V1_1, VAE]);
        let qwen = dir.path().join(QWEN);
        touch(&qwen, &["config.json", "tokenizer.json", "one"]);
        let index = r#"{"weight_map":{"a":"one","b":"two"}}"#;
        fs::write(qwen.join(QWEN_INDEX), index).unwrap();
        let text = fault(dir.path());
        assert!(text.contains("missing (1):\n  Qwen2.5-VL-7B-Instruct/two"), "{text}");
    }

    #[test]
    fn the_dit_file_is_chosen_or_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &[VAE, "step1x-edit-i1258-FP8.safetensors"]);
        qwen_at(&dir.path().join(QWEN));
        let community = Layout::find(dir.path()).unwrap();
        assert!(community.dit.ends_with("step1x-edit-i1258-FP8.safetensors"));
        touch(dir.path(), &["step1x-edit-other.safetensors"]);
        assert!(fault(dir.path()).contains("the folder holds several models"));
        touch(dir.path(), &[DIT_V1_0]);
        assert!(Layout::find(dir.path()).unwrap().dit.ends_with(DIT_V1_0));
        touch(dir.path(), &[DIT_V1_1]);
        let text = fault(dir.path());
        assert!(text.contains(DIT_V1_0) && text.contains(DIT_V1_1), "{text}");
        let chosen = Layout::find(&dir.path().join(DIT_V1_1)).unwrap();
        assert!(chosen.dit.ends_with(DIT_V1_1));
        assert_eq!(chosen.dir, dir.path());
    }

    #[test]
    fn a_hugging_face_cache_is_resolved() {
        let hub = tempfile::tempdir().unwrap();
        let model = hub.path().join("models--stepfun-ai--Step1X-Edit");
        touch(&model.join("snapshots/abc"), &[DIT_V1_1, VAE]);
        let qwen = hub.path().join("models--Qwen--Qwen2.5-VL-7B-Instruct");
        qwen_at(&qwen.join("snapshots/def"));
        let only = Layout::find(&model).unwrap();
        assert_eq!(only.dir, model.join("snapshots/abc"));
        assert_eq!(only.qwen, qwen.join("snapshots/def"));
        assert!(Layout::find(&model.join("snapshots/abc")).is_ok());

        fs::create_dir_all(model.join("snapshots/older")).unwrap();
        assert!(fault(&model).contains("refs/main names none of its 2 snapshots"));
        touch(&model, &["refs/main"]);
        fs::write(model.join("refs/main"), "abc\n").unwrap();
        assert_eq!(Layout::find(&model).unwrap().dir, model.join("snapshots/abc"));
        fs::write(model.join("refs/main"), format!("{:1000}", "abc")).unwrap();
        assert!(Layout::find(&model).is_ok());
        for wrong in ["../..".to_string(), format!("{:1001}", "abc")] {
            fs::write(model.join("refs/main"), wrong).unwrap();
            assert!(fault(&model).contains("refs/main"));
        }
    }

    #[test]
    fn files_in_a_models_place_are_looked_at_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        for count in [49, 50, 51] {
            fs::write(dir.path().join(format!("{count}.gguf")), "GGUF").unwrap();
            if count == 49 {
                (1..49).for_each(|i| fs::write(dir.path().join(format!("{i}.gguf")), "GGUF").unwrap());
            }
            let text = fault(dir.path());
            assert!(text.contains(&format!("there instead ({})", count.min(50))), "{count}: {text}");
        }
    }

    #[test]
    fn a_modelscope_cache_is_resolved() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("stepfun-ai/Step1X-Edit");
        touch(&model, &[DIT_V1_1, VAE]);
        let qwen = root.path().join("Qwen/Qwen2___5-VL-7B-Instruct");
        qwen_at(&qwen);
        assert_eq!(Layout::find(&model).unwrap().qwen, qwen);
    }

    fn index_of(text: &[u8]) -> Result<Index> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(QWEN_INDEX);
        fs::write(&path, text).unwrap();
        Index::read(&path)
    }

    #[test]
    fn faults_of_the_index_are_told() {
        let fault = |text: &str| index_of(text.as_bytes()).unwrap_err().to_string();
        assert!(fault("{}").contains("missing field `weight_map`"));
        assert!(fault(r#"{"weight_map":{}}"#).contains("lists no tensors"));
        assert!(fault(r#"{"weight_map":{"a":"x","a":"y"}}"#).contains("appears twice"));
        for shard in ["../x", "/x", "a/b", "", ".", "..", "a/"] {
            let text = fault(&format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#));
            assert!(text.contains("not the name of a file"), "{shard}: {text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]
        #[test]
        fn mutated_indexes_never_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
            cut in 0..60usize,
        ) {
            let mut text = br#"{"metadata":{"total_size":8},"weight_map":{"a":"m-1","b":"m-2"}}"#.to_vec();
            for (place, byte) in edits {
                let place = place.index(text.len());
                text[place] = byte;
            }
            text.truncate(text.len() - cut);
            if let Ok(index) = index_of(&text) {
                prop_assert!(index.shards.iter().all(|shard| is_plain_name(shard)));
            }
        }
    }
}
