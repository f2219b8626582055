//! Flags that say where the parts of a model are.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::environment;
use crate::pipeline::ModelPath;
use crate::tensor::Component;

/// Parts that are elsewhere than beside the transformer.
#[derive(Clone, Debug, Args)]
pub struct PartsArgs {
    /// Autoencoder, where it is not beside the transformer: its .safetensors, its folder, or a name as of -m
    #[arg(long, value_name = "PATH", requires = "model", hide_short_help = true)]
    vae: Option<PathBuf>,
    /// Text encoder, where it is not beside the transformer: its folder, its .safetensors or .gguf, or a name as of -m
    #[arg(long, value_name = "PATH", requires = "model", hide_short_help = true)]
    text_encoder: Option<PathBuf>,
    /// Vision tower of a text encoder in .gguf, where several files beside it could be meant: a .gguf
    #[arg(long, value_name = "FILE", requires = "model", hide_short_help = true)]
    mmproj: Option<PathBuf>,
}

impl PartsArgs {
    /// The model of a path or a name, with these parts.
    ///
    /// # Errors
    /// A model error: no cache has the model, or a part, of this name.
    pub(super) fn of(&self, model: &Path) -> Result<ModelPath> {
        let part = |named: &Option<PathBuf>, what| named.as_deref().map(|named| environment::located(named, what)).transpose();
        Ok(ModelPath {
            model: environment::located(model, Component::Dit)?,
            vae: part(&self.vae, Component::Vae)?,
            text_encoder: part(&self.text_encoder, Component::Qwen)?,
            mmproj: self.mmproj.clone(),
        })
    }
}
