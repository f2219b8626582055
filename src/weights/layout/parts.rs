//! The parts of a model beside its transformer: where they are looked for, and what is found at a path that the user names.

use std::path::{Path, PathBuf};

use super::super::{ModelError, Result};
use super::weights::Weights;
use super::{QWEN_CONFIG, QWEN_STEM, QWEN_TOKENIZER, look, snapshot};
use crate::tensor::Component;
use crate::weights::words::listed;

/// What diffusers calls the folders of these parts, and the files in them.
pub(super) const VAE: &str = "vae";
pub(super) const TEXT_ENCODER: &str = "text_encoder";
pub(super) const CONFIG: &str = "config.json";
pub(super) const STEM: &str = "diffusion_pytorch_model";

/// Where its releases have put the tokenizer.
pub(super) const TOKENIZERS: [&str; 3] = ["processor", "tokenizer", TEXT_ENCODER];

/// The autoencoder's files.
#[derive(Debug)]
pub(super) struct Autoencoder {
    pub weights: Weights,
    /// Its configuration file, in the layout of diffusers.
    pub config: Option<PathBuf>,
}

/// The text encoder's files.
#[derive(Debug)]
pub(super) struct TextEncoder {
    pub weights: Weights,
    pub config: PathBuf,
    pub tokenizer: PathBuf,
}

/// The parts that the user has named.
#[derive(Debug)]
pub(super) struct Named {
    pub vae: Option<Autoencoder>,
    pub text_encoder: Option<TextEncoder>,
}

impl Autoencoder {
    /// The file at a path, or that of the folder there.
    ///
    /// # Errors
    /// There is none, or it is known to be something else.
    pub fn at(path: &Path) -> Result<Autoencoder> {
        if path.is_file() {
            refuse_foreign(path, Component::Vae)?;
            let own = path.file_stem().is_some_and(|stem| stem == STEM);
            let config = Some(path.with_file_name(CONFIG)).filter(|config| own && config.is_file());
            return Ok(Autoencoder { weights: Weights::at(path)?, config });
        }
        if !path.is_dir() {
            return Err(absent(path, "the autoencoder's .safetensors or its folder"));
        }
        let mut missing = Vec::new();
        match Autoencoder::find(&snapshot(path)?, "no source", &mut missing)? {
            Some(found) => Ok(found),
            None => Err(nothing(path, "autoencoder", &[super::VAE.into(), format!("{}.safetensors", STEM)])),
        }
    }

    /// The autoencoder of a model's folder or in a folder of its own: `vae.safetensors`, or as diffusers has it.
    ///
    /// # Errors
    /// A fault of an index.
    pub fn find(dir: &Path, source: &str, missing: &mut Vec<String>) -> Result<Option<Autoencoder>> {
        let single = dir.join(super::VAE);
        if single.is_file() {
            return Ok(Some(Autoencoder { weights: Weights::Single(single), config: None }));
        }
        let below = dir.join(VAE);
        let folder = if below.is_dir() { below } else { dir.to_path_buf() };
        let mut lacks = Vec::new();
        let weights = Weights::find(&folder, STEM, (VAE, source), &mut lacks)?;
        if weights.is_none() && folder == dir {
            missing.push(format!("{}, {source}", super::VAE));
            return Ok(None);
        }
        missing.append(&mut lacks);
        let config = Some(folder.join(CONFIG)).filter(|config| config.is_file());
        Ok(weights.map(|weights| Autoencoder { weights, config }))
    }
}

impl TextEncoder {
    /// The text encoder in the folder at a path, or the file at a path, with what it needs beside it.
    ///
    /// # Errors
    /// There is none, or it is known to be something else, or it lacks files.
    pub fn at(path: &Path) -> Result<TextEncoder> {
        let (folder, weights) = if path.is_file() {
            refuse_foreign(path, Component::Qwen)?;
            (path.parent().unwrap_or(Path::new("")).to_path_buf(), Some(Weights::at(path)?))
        } else if path.is_dir() {
            let dir = snapshot(path)?;
            let below = dir.join(TEXT_ENCODER);
            (if below.is_dir() { below } else { dir }, None)
        } else {
            return Err(absent(path, "the text encoder's folder, or its .safetensors"));
        };
        let mut missing = Vec::new();
        let source = super::QWEN_SOURCE;
        let shown = folder.display().to_string();
        let weights = match weights {
            None => Weights::find(&folder, QWEN_STEM, (&shown, source), &mut missing)?,
            given => given,
        };
        match TextEncoder::with(&folder, weights, (&shown, source), &mut missing) {
            Some(found) if missing.is_empty() => Ok(found),
            _ => Err(nothing(path, "text encoder", &missing)),
        }
    }

    /// The text encoder in a folder, which messages call as `shown` says, as they do its source. What is not there is added
    /// to `missing`.
    ///
    /// # Errors
    /// A fault of the index.
    pub fn find(folder: &Path, shown: (&str, &str), missing: &mut Vec<String>) -> Result<Option<TextEncoder>> {
        let weights = Weights::find(folder, QWEN_STEM, shown, missing)?;
        Ok(TextEncoder::with(folder, weights, shown, missing))
    }

    fn with(
        folder: &Path,
        weights: Option<Weights>,
        (shown, source): (&str, &str),
        missing: &mut Vec<String>,
    ) -> Option<TextEncoder> {
        let config = folder.join(QWEN_CONFIG);
        if !config.is_file() {
            missing.push(format!("{shown}/{QWEN_CONFIG}, {source}"));
        }
        let of_diffusers = folder.file_name().is_some_and(|name| name == TEXT_ENCODER);
        let beside = TOKENIZERS.iter().map(|name| folder.with_file_name(name)).filter(|_| of_diffusers);
        let mut folders = beside.chain([folder.to_path_buf()]);
        let tokenizer = folders.find_map(|folder| Some(folder.join(QWEN_TOKENIZER)).filter(|path| path.is_file()));
        if tokenizer.is_none() {
            let usual = if of_diffusers { TOKENIZERS[0] } else { shown };
            missing.push(format!("{usual}/{QWEN_TOKENIZER}, {source}"));
        }
        Some(TextEncoder { weights: weights?, config, tokenizer: tokenizer? })
    }
}

/// Refuses a file that is known to be something else.
pub(super) fn refuse_foreign(path: &Path, wanted: Component) -> Result<()> {
    match look(path, wanted) {
        Some(foreign) => Err(ModelError::new(foreign.to_string()).at(path)),
        None => Ok(()),
    }
}

fn absent(path: &Path, wanted: &str) -> ModelError {
    ModelError::new(format!("there is no such file or folder; give {wanted} (docs/models.md)")).at(path)
}

fn nothing(path: &Path, what: &str, missing: &[String]) -> ModelError {
    ModelError::new(format!("this is no complete {what}{}", listed("missing", missing))).at(path)
}
