//! The parts of a model beside its transformer: where they are looked for, and what is found at a path that the user names.

use std::path::{Path, PathBuf};

use super::super::file::WeightFile;
use super::super::{ModelError, Result};
use super::weights::Weights;
use super::{QWEN_CONFIG, QWEN_STEM, QWEN_TOKENIZER, gguf, look, snapshot};
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
    /// None: it is to be found out from the tensors.
    pub config: Option<PathBuf>,
    pub tokenizer: PathBuf,
}

/// The parts that the user has named.
#[derive(Debug)]
pub(super) struct Named {
    pub vae: Option<Autoencoder>,
    pub text_encoder: Option<TextEncoder>,
    /// The vision tower of a text encoder in files of llama.cpp.
    pub tower: Option<PathBuf>,
}

impl Named {
    /// What is not named may be in the transformer's file too; a text encoder's small files are then beside it, or in `usual`.
    ///
    /// # Errors
    /// A text encoder without its tokenizer.
    pub fn or_in(self, file: &Path, usual: &Path) -> Result<Named> {
        let Ok(opened) = WeightFile::open(file) else { return Ok(self) }; // what is wrong is told when the model is opened
        let vae = match self.vae {
            None if opened.has(Component::Vae) => {
                Some(Autoencoder { weights: Weights::Single(file.to_path_buf()), config: None })
            }
            given => given,
        };
        let text_encoder = match self.text_encoder {
            None if opened.has(Component::Qwen) => Some(TextEncoder::at(file, usual, None)?),
            given => given,
        };
        Ok(Named { vae, text_encoder, tower: self.tower })
    }
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
    /// The text encoder in the folder at a path, or the file at a path, of safetensors or of llama.cpp. A file needs neither
    /// configuration nor tokenizer beside it if these are in `usual`, the model's own folder for them; dimensions are found out from
    /// its tensors if there is no configuration at all. `tower`: as of [`gguf::with_tower`].
    ///
    /// # Errors
    /// There is none, or it is known to be something else, or it lacks files.
    pub fn at(path: &Path, usual: &Path, tower: Option<&Path>) -> Result<TextEncoder> {
        let source = super::QWEN_SOURCE;
        let mut missing = Vec::new();
        if path.is_file() {
            let weights = if gguf::is_at(path) {
                Weights::Gguf(gguf::with_tower(path, tower)?)
            } else {
                refuse_foreign(path, Component::Qwen)?;
                Weights::at(path)?
            };
            let folder = path.parent().unwrap_or(Path::new(""));
            let config = config_in(folder).or_else(|| config_in(usual));
            return match tokenizer_in(folder).or_else(|| tokenizer_in(usual)) {
                Some(tokenizer) => Ok(TextEncoder { weights, config, tokenizer }),
                None => Err(nothing(path, "text encoder", &[format!("{QWEN_TOKENIZER} beside it, {source}")])),
            };
        }
        if !path.is_dir() {
            return Err(absent(path, "the text encoder's folder, or its .safetensors or .gguf"));
        }
        let dir = snapshot(path)?;
        let below = dir.join(TEXT_ENCODER);
        let folder = if below.is_dir() { below } else { dir };
        let shown = folder.display().to_string();
        match TextEncoder::find(&folder, (&shown, source), tower, &mut missing)? {
            Some(found) if missing.is_empty() => Ok(found),
            _ => Err(nothing(path, "text encoder", &missing)),
        }
    }

    /// The text encoder in a folder, which messages call as `shown` says, as they do its source. What is not there is added
    /// to `missing`.
    ///
    /// # Errors
    /// A fault of the index, or a file of llama.cpp without its second one.
    pub fn find(
        folder: &Path,
        (shown, source): (&str, &str),
        tower: Option<&Path>,
        missing: &mut Vec<String>,
    ) -> Result<Option<TextEncoder>> {
        let mut lacks = Vec::new();
        let weights = Weights::find(folder, QWEN_STEM, (shown, source), &mut lacks)?;
        if weights.is_none()
            && let Some(files) = gguf::find(folder, tower)?
        {
            return Ok(TextEncoder::of_gguf(folder, files, (shown, source), missing));
        }
        missing.append(&mut lacks);
        let config = config_in(folder);
        if config.is_none() {
            missing.push(format!("{shown}/{QWEN_CONFIG}, {source}"));
        }
        let tokenizer = found_tokenizer(folder, (shown, source), missing);
        Ok(weights.and_then(|weights| Some(TextEncoder { weights, config, tokenizer: tokenizer? })))
    }

    /// The text encoder in files of llama.cpp, in a folder that has the tokenizer; without one it is added to `missing`.
    pub fn of_gguf(folder: &Path, files: [PathBuf; 2], shown: (&str, &str), missing: &mut Vec<String>) -> Option<TextEncoder> {
        let tokenizer = found_tokenizer(folder, shown, missing)?;
        Some(TextEncoder { weights: Weights::Gguf(files), config: config_in(folder), tokenizer })
    }
}

fn config_in(folder: &Path) -> Option<PathBuf> {
    Some(folder.join(QWEN_CONFIG)).filter(|path| path.is_file())
}

fn is_of_diffusers(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name == TEXT_ENCODER)
}

/// The tokenizer in a folder of a text encoder, or beside it as diffusers has it.
fn tokenizer_in(folder: &Path) -> Option<PathBuf> {
    let beside = TOKENIZERS.iter().map(|name| folder.with_file_name(name)).filter(|_| is_of_diffusers(folder));
    let mut folders = beside.chain([folder.to_path_buf()]);
    folders.find_map(|folder| Some(folder.join(QWEN_TOKENIZER)).filter(|path| path.is_file()))
}

fn found_tokenizer(folder: &Path, (shown, source): (&str, &str), missing: &mut Vec<String>) -> Option<PathBuf> {
    let found = tokenizer_in(folder);
    if found.is_none() {
        let usual = if is_of_diffusers(folder) { TOKENIZERS[0] } else { shown };
        missing.push(format!("{usual}/{QWEN_TOKENIZER}, {source}"));
    }
    found
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
