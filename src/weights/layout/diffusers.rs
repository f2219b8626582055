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
use super::{Layout, QWEN_CONFIG, QWEN_STEM, QWEN_TOKENIZER, SETTINGS, Weights, incomplete};
use crate::tensor::Component;

/// What says that a folder has this layout.
const INDEX: &str = "model_index.json";

/// The pipelines of Step1X-Edit: the one whose model is read, and that of version 1.2.
const PIPELINE: &str = "Step1XEditPipeline";
const PIPELINE_V1_2: &str = "Step1XEditPipelineV1P2";

const TRANSFORMER: &str = "transformer";
const VAE: &str = "vae";
const TEXT_ENCODER: &str = "text_encoder";
const CONFIG: &str = "config.json";
const STEM: &str = "diffusion_pytorch_model";

/// Where releases have put the tokenizer.
const TOKENIZERS: [&str; 3] = ["processor", "tokenizer", TEXT_ENCODER];

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

/// Finds the model in such a folder.
///
/// # Errors
/// Another pipeline's model, or files that are missing, all of which are listed.
pub(super) fn find(dir: PathBuf) -> Result<Layout> {
    let mut missing = Vec::new();
    match dir.join(INDEX) {
        index if index.is_file() => check_pipeline(&index)?,
        _ => missing.push(format!("{INDEX}, {SOURCE}")),
    }
    let mut find = |folder: &str, stem| Weights::find(&dir.join(folder), stem, (folder, SOURCE), &mut missing);
    let (dit, vae, qwen) = (find(TRANSFORMER, STEM)?, find(VAE, STEM)?, find(TEXT_ENCODER, QWEN_STEM)?);
    let config = |folder: &str| dir.join(folder).join(CONFIG);
    for folder in [TRANSFORMER, VAE, TEXT_ENCODER] {
        if !config(folder).is_file() {
            missing.push(format!("{folder}/{CONFIG}, {SOURCE}"));
        }
    }
    let mut tokenizers = TOKENIZERS.iter().map(|folder| dir.join(folder).join(QWEN_TOKENIZER));
    let tokenizer = tokenizers.find(|path| path.is_file());
    if tokenizer.is_none() {
        missing.push(format!("{}/{QWEN_TOKENIZER}, {SOURCE}", TOKENIZERS[0]));
    }
    match (dit, vae, qwen, tokenizer) {
        (Some(dit), Some(vae), Some(qwen), Some(tokenizer)) if missing.is_empty() => Ok(Layout {
            dit,
            vae,
            qwen,
            settings: Some(dir.join(SETTINGS)).filter(|p| p.is_file()),
            qwen_config: dir.join(TEXT_ENCODER).join(QWEN_CONFIG),
            tokenizer,
            declared: vec![(Component::Dit, config(TRANSFORMER)), (Component::Vae, config(VAE))],
            dir,
        }),
        _ => {
            let [dit, vae, qwen] = [TRANSFORMER, VAE, TEXT_ENCODER].map(|folder| dir.join(folder));
            let places = [(&dir, Component::Dit), (&dit, Component::Dit), (&vae, Component::Vae), (&qwen, Component::Qwen)];
            Err(incomplete(&dir, &places.map(|(path, wanted)| (path.as_path(), wanted)), &missing))
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
