//! Flags that say where the parts of a model are.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::environment;
use crate::pipeline::ModelPath;

/// Parts that are elsewhere than beside the transformer.
#[derive(Clone, Debug, Args)]
pub struct PartsArgs {
    /// Autoencoder, where it is not beside the transformer: its .safetensors or its folder
    #[arg(long, value_name = "PATH", requires = "model", hide_short_help = true)]
    vae: Option<PathBuf>,
    /// Text encoder, where it is not beside the transformer: its folder, or the .safetensors in it
    #[arg(long, value_name = "PATH", requires = "model", hide_short_help = true)]
    text_encoder: Option<PathBuf>,
}

impl PartsArgs {
    /// The model of a path or a name, with these parts.
    ///
    /// # Errors
    /// A model error: no cache has the model of this name.
    pub(super) fn of(&self, model: &Path) -> Result<ModelPath> {
        let model = environment::model(model)?.as_path().into();
        Ok(ModelPath { vae: self.vae.clone(), text_encoder: self.text_encoder.clone(), ..model })
    }
}
