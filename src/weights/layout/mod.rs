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
//! The other layout is that of diffusers (see `diffusers.rs`). Where a file stands says what it is for, not how its tensors are
//! named.
//!
//! In a Hugging Face cache, `<model>` is `models--<org>--<name>/snapshots/<hash>` and the Qwen folder a
//! `models--Qwen--…` beside it; in a ModelScope cache they are `<org>/<name>` and `Qwen/<name>`, or, of its newer client,
//! `<org>--<name>/snapshots/<branch>` and `Qwen--…`.

mod diffusers;
mod gguf;
mod listing;
mod parts;
mod weights;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Component as Part, Path, PathBuf};

use super::file::WeightFile;
use super::foreign::{FIRST, Foreign, what_bytes, what_names};
use super::json::read;
use super::words::listed;
use super::{ModelError, Result};
use crate::model::Version;
use crate::tensor::Component;

pub(super) use self::listing::{Listed, read_of};
use self::parts::{Autoencoder, Named, TextEncoder, refuse_foreign};
pub(super) use self::weights::Weights;

pub(super) const DIT_V1_0: &str = "step1x-edit-i1258.safetensors";
pub(super) const DIT_V1_1: &str = "step1x-edit-v1p1-official.safetensors";
pub(super) const VAE: &str = "vae.safetensors";
/// What no tensor tells, in the model's folder.
pub const SETTINGS: &str = "step1x.json";
pub(super) const QWEN: &str = "Qwen2.5-VL-7B-Instruct";
const QWEN_CONFIG: &str = "config.json";
const QWEN_TOKENIZER: &str = "tokenizer.json";
/// Of its files with weights, without the extension.
const QWEN_STEM: &str = "model";

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
pub(super) const REVISION_BYTES: u64 = 1000;

const STEP1X_SOURCE: &str = "from the repository stepfun-ai/Step1X-Edit";
const QWEN_SOURCE: &str = "from the repository Qwen/Qwen2.5-VL-7B-Instruct";

/// A way in which a model's folder is arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutKind {
    /// As the authors publish it.
    Official,
    /// As `Step1X-Edit-v1p1-diffusers` is.
    Diffusers,
}

impl LayoutKind {
    /// Where a network's weights are, below the model's folder and without `.safetensors`.
    pub fn stem(self, component: Component, version: Version) -> &'static str {
        match (self, component, version) {
            (LayoutKind::Diffusers, ..) => diffusers::stem(component),
            (LayoutKind::Official, Component::Dit, Version::V1_0) => "step1x-edit-i1258",
            (LayoutKind::Official, Component::Dit, Version::V1_1) => "step1x-edit-v1p1-official",
            (LayoutKind::Official, Component::Vae, _) => "vae",
            (LayoutKind::Official, Component::Qwen, _) => "Qwen2.5-VL-7B-Instruct/model",
        }
    }

    /// Where the text encoder's `config.json` and `tokenizer.json` are.
    pub fn qwen_files(self) -> [&'static str; 2] {
        match self {
            LayoutKind::Official => ["Qwen2.5-VL-7B-Instruct/config.json", "Qwen2.5-VL-7B-Instruct/tokenizer.json"],
            LayoutKind::Diffusers => ["text_encoder/config.json", "processor/tokenizer.json"],
        }
    }
}

/// The files of one model; all but the settings exist.
#[derive(Debug)]
pub(super) struct Layout {
    pub kind: LayoutKind,
    pub dir: PathBuf,
    pub dit: Weights,
    pub vae: Weights,
    pub qwen: Weights,
    pub settings: Option<PathBuf>,
    /// None: it is to be found out from the tensors.
    pub qwen_config: Option<PathBuf>,
    pub tokenizer: PathBuf,
    /// What a folder of diffusers says of its networks.
    pub declared: Vec<(Component, PathBuf)>,
}

/// Where a model is: its folder or its transformer's file, and parts that are elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPath {
    /// The folder, a cache's folder for it, or the transformer's file.
    pub model: PathBuf,
    /// The autoencoder's file or folder; none: beside the transformer.
    pub vae: Option<PathBuf>,
    /// The text encoder's folder, or the file in it; none: beside the transformer.
    pub text_encoder: Option<PathBuf>,
    /// The vision tower of a text encoder in files of llama.cpp; none: the only one beside its text model.
    pub mmproj: Option<PathBuf>,
}

impl From<&Path> for ModelPath {
    fn from(model: &Path) -> ModelPath {
        ModelPath { model: model.to_path_buf(), vae: None, text_encoder: None, mmproj: None }
    }
}

impl Layout {
    /// Finds the model at a path: its folder, a cache's folder for it, or its DiT file.
    ///
    /// Fails when there is nothing at a path, when a file is known to be something else, when more than one DiT file could
    /// be meant, or when files are missing, all of which are then listed, with those that are there instead.
    pub fn find(at: &ModelPath) -> Result<Layout> {
        let path = at.model.as_path();
        let (mut dir, dit) = if path.is_file() {
            refuse_foreign(path, Component::Dit)?;
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            (parent.unwrap_or(Path::new(".")).to_path_buf(), Some(Weights::at(path)?))
        } else if path.is_dir() {
            let dir = snapshot(path)?;
            let dit = find_dit(&dir)?.map(Weights::Single);
            (dir, dit)
        } else {
            return Err(absent(path));
        };
        let (whole, tower) = (diffusers::around(&dir), at.mmproj.as_deref());
        tower.map(gguf::named).transpose()?;
        let named = Named {
            vae: at.vae.as_deref().map(Autoencoder::at).transpose()?,
            text_encoder: at.text_encoder.as_deref().map(|path| TextEncoder::at(path, &find_qwen(&dir)?, tower)).transpose()?,
            tower: at.mmproj.clone(),
        };
        let named = match &dit {
            Some(Weights::Single(file)) => named.or_in(file, &find_qwen(&dir)?)?,
            _ => named,
        };
        let layout = if whole.is_some() || dit.is_none() && diffusers::is_in(&dir) {
            dir = whole.unwrap_or(dir);
            diffusers::find(dir, dit, named)?
        } else {
            Layout::official(dir, dit, named)?
        };
        match (tower, &layout.qwen) {
            (None, _) | (Some(_), Weights::Gguf(_)) => Ok(layout),
            (Some(tower), other) => {
                let text = other.path().display();
                let fault = format!("it is a vision tower for a text encoder in GGUF, and {text} is none; leave out --mmproj");
                Err(ModelError::new(fault).at(tower))
            }
        }
    }

    /// The model in a folder of the official layout, and of parts that stand beside each other.
    fn official(dir: PathBuf, dit: Option<Weights>, named: Named) -> Result<Layout> {
        let mut missing = Vec::new();
        if dit.is_none() {
            missing.push(format!("{DIT_V1_0} (v1.0) or {DIT_V1_1} (v1.1), {STEP1X_SOURCE}"));
        }
        let vae = match named.vae {
            None => Autoencoder::find(&dir, STEP1X_SOURCE, &mut missing)?,
            given => given,
        };
        let folder = find_qwen(&dir)?;
        let shown = folder.strip_prefix(&dir).unwrap_or(&folder).display().to_string();
        let text_encoder = match named.text_encoder {
            None => match if folder.is_dir() { None } else { gguf::find(&dir, named.tower.as_deref())? } {
                Some(files) => TextEncoder::of_gguf(&dir, files, (".", QWEN_SOURCE), &mut missing),
                None => TextEncoder::find(&folder, (&shown, QWEN_SOURCE), named.tower.as_deref(), &mut missing)?,
            },
            given => given,
        };
        match (dit, vae, text_encoder) {
            (Some(dit), Some(vae), Some(text)) if missing.is_empty() => {
                Ok(Layout::of(LayoutKind::Official, dir, dit, None, vae, text))
            }
            _ => Err(incomplete(&dir, &[(&dir, Component::Dit), (&folder, Component::Qwen)], &missing)),
        }
    }

    fn of(kind: LayoutKind, dir: PathBuf, dit: Weights, config: Option<PathBuf>, vae: Autoencoder, text: TextEncoder) -> Layout {
        let declared = [(Component::Dit, config), (Component::Vae, vae.config)];
        Layout {
            kind,
            dit,
            vae: vae.weights,
            qwen: text.weights,
            settings: Some(dir.join(SETTINGS)).filter(|p| p.is_file()),
            qwen_config: text.config,
            tokenizer: text.tokenizer,
            declared: declared.into_iter().filter_map(|(component, path)| Some((component, path?))).collect(),
            dir,
        }
    }

    /// Every file of the model.
    pub fn files(&self) -> Vec<PathBuf> {
        let weights = [&self.dit, &self.vae, &self.qwen].into_iter().flat_map(Weights::files);
        let (mut seen, mut weights) = (BTreeSet::new(), weights.collect::<Vec<_>>());
        weights.retain(|path| seen.insert(path.clone())); // one file may hold several parts
        let declared = self.declared.iter().map(|(_, path)| path.clone());
        let small = [self.settings.clone(), self.qwen_config.clone(), Some(self.tokenizer.clone())];
        weights.into_iter().chain(small.into_iter().flatten()).chain(declared).collect()
    }
}

/// There is nothing at `path`. A name as a hub has it is told how the files of a hub become a folder.
fn absent(path: &Path) -> ModelError {
    let place = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let parts: Vec<_> = path.components().collect();
    let is_name = matches!(parts[..], [Part::Normal(_), Part::Normal(_)]);
    let remedy = match is_name {
        true => "a name on a hub is not looked up here; fetch its files as docs/models.md says, then name their folder",
        false => "give --model the folder of a model, or its step1x-edit*.safetensors (docs/models.md)",
    };
    ModelError::new(format!("{}: there is no such folder or file; looked for {}; {remedy}", path.display(), place.display()))
}

/// What a folder lacks; `places` are those where files may be that are something else.
fn incomplete(dir: &Path, places: &[(&Path, Component)], missing: &[String]) -> ModelError {
    let found: Vec<String> = places.iter().flat_map(|(folder, usual)| foreign_in(dir, folder, *usual)).collect();
    let lists = [listed("there instead", &found), listed("missing", missing)].concat();
    ModelError::new(format!("{}: not a complete model folder{lists}", dir.display()))
}

/// Files with weights in a folder of a model that are something else than `usual`, in words.
fn foreign_in(dir: &Path, folder: &Path, usual: Component) -> Vec<String> {
    let names = names_in(folder).unwrap_or_default();
    let weights = |name: &&String| WEIGHTS.iter().any(|extension| name.to_ascii_lowercase().ends_with(extension));
    let foreign = |name: &String| {
        let wanted = if name == VAE { Component::Vae } else { usual };
        let path = folder.join(name);
        let shown = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
        look(&path, wanted).map(|foreign| format!("{shown}: {foreign}"))
    };
    names.iter().filter(weights).take(MOST_LOOKED_AT).filter_map(foreign).collect()
}

/// The folder itself, or for `models--<org>--<name>` of a Hugging Face cache the snapshot that `main` means, and for `<org>--<name>`
/// of a ModelScope cache that of the main branch.
pub(super) fn snapshot(dir: &Path) -> Result<PathBuf> {
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
    if let Some(branch) = ["master", "main"].map(|branch| snapshots.join(branch)).into_iter().find(|branch| branch.is_dir()) {
        return Ok(branch);
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

/// The Qwen folder beside the DiT file, where a cache keeps it, or as diffusers calls it; the first if there is none.
fn find_qwen(dir: &Path) -> Result<PathBuf> {
    let beside = dir.join(QWEN);
    if beside.is_dir() {
        return Ok(beside);
    }
    let above = |levels: usize| dir.ancestors().nth(levels);
    let in_hub = above(1)
        .filter(|snapshots| snapshots.ends_with("snapshots"))
        .and(above(3))
        .and_then(|hub| ["models--Qwen", "Qwen"].map(|org| hub.join(format!("{org}--{QWEN}"))).into_iter().find(|p| p.is_dir()));
    if let Some(repository) = in_hub {
        return snapshot(&repository);
    }
    // ModelScope writes the dot of a name as three underscores.
    let in_modelscope = above(2)
        .into_iter()
        .flat_map(|root| [QWEN.to_string(), QWEN.replace('.', "___")].map(|q| root.join("Qwen").join(q)))
        .find(|p| p.is_dir());
    let of_diffusers = Some(dir.join(parts::TEXT_ENCODER)).filter(|p| p.is_dir());
    Ok(in_modelscope.or(of_diffusers).unwrap_or(beside))
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
        let file = if file.has(wanted) { file.only(wanted) } else { file };
        what_names(file.tensors().map(|(name, _)| name), Some(wanted))
    })
}

/// Whether joining `name` to a folder stays directly within that folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Part::Normal(part)), None) if part == name)
}

/// Names in a folder, sorted; such that are not UTF-8 are none of ours.
pub(super) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let io = |e: std::io::Error| ModelError::io("list it", dir, &e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
