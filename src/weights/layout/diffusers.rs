//! The layout of diffusers.
//!
//! ```text
//! <model>/model_index.json
//!         transformer/config.json
//!                     diffusion_pytorch_model.safetensors | diffusion_pytorch_model-*.safetensors + their index
//!         vae/config.json
//!             diffusion_pytorch_model.safetensors
//!         text_encoder/config.json
//!                      model.safetensors | model-*.safetensors + their index
//!         processor/tokenizer.json | tokenizer/tokenizer.json | text_encoder/tokenizer.json
//!         step1x.json                                            (optional)
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::json::{CONFIG_BYTES, read_json};
use super::super::words::shown;
use super::super::{ModelError, Result};
use super::parts::{Autoencoder, CONFIG, Named, STEM, TEXT_ENCODER, TextEncoder, VAE};
use super::{Layout, LayoutKind, Weights, incomplete};
use crate::tensor::Component;

/// What says that a folder has this layout.
const INDEX: &str = "model_index.json";

/// The pipelines of Step1X-Edit: the one whose model is read, and that of version 1.2.
const PIPELINE: &str = "Step1XEditPipeline";
const PIPELINE_V1_2: &str = "Step1XEditPipelineV1P2";

const TRANSFORMER: &str = "transformer";

const SOURCE: &str = "from the repository stepfun-ai/Step1X-Edit-v1p1-diffusers";

/// Where a network's weights are, without `.safetensors`.
pub(super) fn stem(component: Component) -> &'static str {
    match component {
        Component::Dit => "transformer/diffusion_pytorch_model",
        Component::Vae => "vae/diffusion_pytorch_model",
        Component::Qwen => "text_encoder/model",
    }
}

/// Whether a folder has this layout, as far as names tell.
pub(super) fn is_in(dir: &Path) -> bool {
    dir.join(INDEX).is_file() || dir.join(TRANSFORMER).is_dir()
}

/// The folder of this layout whose transformer's folder `dir` is.
pub(super) fn around(dir: &Path) -> Option<PathBuf> {
    let above = dir.parent().filter(|_| dir.file_name().is_some_and(|name| name == TRANSFORMER))?;
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    above.join(INDEX).is_file().then(|| above.to_path_buf())
}

/// Finds the model in such a folder, but for the parts that are known.
///
/// # Errors
/// Another pipeline's model, or files that are missing, all of which are listed.
pub(super) fn find(dir: PathBuf, dit: Option<Weights>, named: Named) -> Result<Layout> {
    let mut missing = Vec::new();
    match dir.join(INDEX) {
        index if index.is_file() => check_pipeline(&index)?,
        _ => missing.push(format!("{INDEX}, {SOURCE}")),
    }
    let [transformer, vae_folder, text_folder] = [TRANSFORMER, VAE, TEXT_ENCODER].map(|folder| dir.join(folder));
    let config = transformer.join(CONFIG);
    if !config.is_file() {
        missing.push(format!("{TRANSFORMER}/{CONFIG}, {SOURCE}"));
    }
    let dit = match dit {
        None => Weights::find(&transformer, STEM, (TRANSFORMER, SOURCE), &mut missing)?,
        given => given,
    };
    let vae = match named.vae {
        None => {
            let weights = Weights::find(&vae_folder, STEM, (VAE, SOURCE), &mut missing)?;
            let config = vae_folder.join(CONFIG);
            if !config.is_file() {
                missing.push(format!("{VAE}/{CONFIG}, {SOURCE}"));
            }
            weights.map(|weights| Autoencoder { weights, config: Some(config) })
        }
        given => given,
    };
    let text = match named.text_encoder {
        None => TextEncoder::find(&text_folder, (TEXT_ENCODER, SOURCE), named.tower.as_deref(), &mut missing)?,
        given => given,
    };
    match (dit, vae, text) {
        (Some(dit), Some(vae), Some(text)) if missing.is_empty() => {
            Ok(Layout::of(LayoutKind::Diffusers, dir, dit, Some(config), vae, text))
        }
        _ => {
            let places = [(&dir, Component::Dit), (&transformer, Component::Dit), (&vae_folder, Component::Vae)];
            let places = places.into_iter().chain([(&text_folder, Component::Qwen)]);
            let places: Vec<(&Path, Component)> = places.map(|(path, wanted)| (path.as_path(), wanted)).collect();
            Err(incomplete(&dir, &places, &missing))
        }
    }
}

/// Refuses the folders of other pipelines, by the name of their class.
fn check_pipeline(index: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct Pipeline {
        #[serde(rename = "_class_name")]
        class: String,
    }
    let Pipeline { class } = read_json(index, CONFIG_BYTES)?;
    let fault = match class.as_str() {
        PIPELINE => return Ok(()),
        PIPELINE_V1_2 => "this is Step1X-Edit 1.2, which is not read yet; use version 1.1 or 1.0 (docs/models.md)".to_string(),
        _ => format!("this is a model of {}, not of {PIPELINE}; use the files of Step1X-Edit (docs/models.md)", shown(&class)),
    };
    Err(ModelError::new(fault).at(index))
}
