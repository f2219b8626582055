//! All weights of one model under canonical names.
//!
//! Canonical names are those of the official files; for Qwen the ones it was released with
//! (`visual.*`, `model.*`, `lm_head.*`). Shards of a component appear as one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::file::WeightFile;
use super::json::{read, read_json};
use super::layout::{DIT_V1_1, Index, Layout, QWEN_CONFIG, QWEN_INDEX, QWEN_SINGLE, QWEN_TOKENIZER, VAE};
use super::recipe::{Recipe, Stored};
use super::{ModelError, Result, WeightSource, listed};
use crate::model::Version;
use crate::tensor::{Component, Spec};

/// The tensor that v1.0 has and v1.1 has not.
const ONLY_IN_V1_0: &str = "connector.scale_factor";

/// What stands for the path of the model that is part of the program.
const DEMO: &str = "the built-in demo model";

/// The files of one model, open, with every header validated; see [`check`](super::check) for its tensors.
#[derive(Debug)]
pub struct ModelFolder {
    /// Decided by the tensors, not by file names.
    pub version: Version,
    /// The folder the DiT file is in, or what stands for it.
    pub dir: PathBuf,
    /// `config.json` of Qwen, as it is.
    pub qwen_config: Value,
    /// `step1x.json`, as it is, where there is one.
    pub settings: Option<Value>,
    /// `tokenizer.json` of Qwen, as it is.
    pub tokenizer: Vec<u8>,
    /// DiT, VAE, Qwen's shards.
    files: Vec<Arc<WeightFile>>,
    /// How each tensor comes to be, by canonical name.
    recipes: BTreeMap<Component, BTreeMap<String, Recipe>>,
}

impl ModelFolder {
    /// Opens the model at `path`: a folder in the official layout, the folder of a Hugging Face or
    /// ModelScope cache, or the DiT file itself where a folder holds several.
    ///
    /// The files must not be written to while the result lives. Fails when files are missing (all are listed),
    /// when it is open which DiT file is meant, when a file is malformed, or when the shards do not hold what
    /// their index says.
    pub fn open(path: &Path) -> Result<ModelFolder> {
        let layout = Layout::find(path)?;
        let dit = WeightFile::open(&layout.dit)?;
        let vae = WeightFile::open(&layout.vae)?;
        let qwen = match &layout.index {
            None => vec![WeightFile::open(&layout.qwen.join(QWEN_SINGLE))?],
            Some(index) => open_shards(&layout.qwen, index)?,
        };
        let qwen_config = read_json(&layout.qwen.join(QWEN_CONFIG))?;
        let settings = layout.settings.as_deref().map(read_json).transpose()?;
        let tokenizer = read(&layout.qwen.join(QWEN_TOKENIZER))?;
        ModelFolder::of(layout.dir, (dit, vae, qwen), (qwen_config, settings, tokenizer))
    }

    /// The demo model, which is part of the program: trained by `tools/demo_model` to edit pictures of simple shapes.
    ///
    /// # Errors
    /// The build is damaged.
    pub fn demo() -> Result<ModelFolder> {
        let file = |name: &str, bytes| WeightFile::embedded(&format!("{DEMO}: {name}"), bytes);
        let json = |bytes| serde_json::from_slice(bytes).map_err(|e| ModelError::new(format!("{DEMO}: {e}")));
        let qwen = file(QWEN_SINGLE, include_bytes!("../../assets/demo-model/Qwen2.5-VL-7B-Instruct/model.safetensors"))?;
        let dit = file(DIT_V1_1, include_bytes!("../../assets/demo-model/step1x-edit-v1p1-official.safetensors"))?;
        let vae = file(VAE, include_bytes!("../../assets/demo-model/vae.safetensors"))?;
        let qwen_config = json(include_bytes!("../../assets/demo-model/Qwen2.5-VL-7B-Instruct/config.json"))?;
        let settings = json(include_bytes!("../../assets/demo-model/step1x.json"))?;
        let tokenizer = include_bytes!("../../assets/demo-model/Qwen2.5-VL-7B-Instruct/tokenizer.json").to_vec();
        ModelFolder::of(DEMO.into(), (dit, vae, vec![qwen]), (qwen_config, Some(settings), tokenizer))
    }

    fn of(
        dir: PathBuf,
        (dit, vae, qwen): (WeightFile, WeightFile, Vec<WeightFile>),
        (qwen_config, settings, tokenizer): (Value, Option<Value>, Vec<u8>),
    ) -> Result<ModelFolder> {
        let version = match dit.spec(ONLY_IN_V1_0) {
            Some(_) => Version::V1_0,
            None => Version::V1_1,
        };
        let [dit, vae] = [dit, vae].map(Arc::new);
        let qwen: Vec<_> = qwen.into_iter().map(Arc::new).collect();
        let recipes = BTreeMap::from([
            (Component::Dit, recipes(std::slice::from_ref(&dit), str::to_string)?),
            (Component::Vae, recipes(std::slice::from_ref(&vae), str::to_string)?),
            (Component::Qwen, recipes(&qwen, qwen_name)?),
        ]);
        let files = [dit, vae].into_iter().chain(qwen).collect();
        Ok(ModelFolder { version, dir, qwen_config, settings, tokenizer, files, recipes })
    }

    /// How the tensor of this canonical name comes to be.
    pub fn recipe(&self, component: Component, name: &str) -> Option<&Recipe> {
        self.recipes.get(&component)?.get(name)
    }

    /// The component's tensors by canonical name, in the names' order.
    pub fn tensors(&self, component: Component) -> impl Iterator<Item = (&str, &Spec)> {
        self.recipes.get(&component).into_iter().flatten().map(|(name, recipe)| (name.as_str(), recipe.spec()))
    }

    /// Path, bytes and number of tensors of each weight file: DiT, VAE, Qwen's shards.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64, usize)> {
        self.files.iter().map(|file| (file.path(), file.bytes(), file.tensor_count()))
    }
}

impl WeightSource for ModelFolder {
    fn spec(&self, component: Component, name: &str) -> Option<Spec> {
        self.recipe(component, name).map(|recipe| recipe.spec().clone())
    }

    fn read_at(&self, component: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let recipe = self.recipe(component, name);
        recipe.ok_or_else(|| ModelError::new(format!("there is no {name}")).at(&self.dir))?.read_at(offset, bytes)
    }
}

/// Opens the shards in the order of their names; each must hold exactly what the index says.
fn open_shards(dir: &Path, index: &Index) -> Result<Vec<WeightFile>> {
    let mut shards = BTreeMap::new();
    for name in &index.shards {
        shards.insert(name.as_str(), WeightFile::open(&dir.join(name))?);
    }
    let absent: Vec<String> = index
        .weight_map
        .iter()
        .filter(|(tensor, shard)| shards[shard.as_str()].spec(tensor).is_none())
        .map(|(tensor, shard)| format!("{tensor}, which should be in {shard}"))
        .collect();
    let unlisted: Vec<String> = shards
        .iter()
        .flat_map(|(shard, file)| file.tensors().map(move |(tensor, _)| (*shard, tensor)))
        .filter(|(shard, tensor)| index.weight_map.get(*tensor).is_none_or(|s| s != shard))
        .map(|(shard, tensor)| format!("{tensor} in {shard}"))
        .collect();
    if absent.is_empty() && unlisted.is_empty() {
        return Ok(shards.into_values().collect());
    }
    Err(ModelError::new(format!(
        "{}: the shards beside it are not the ones it describes; fetch all files of one release{}{}",
        dir.join(QWEN_INDEX).display(),
        listed("listed but not there", &absent),
        listed("there but not listed", &unlisted)
    )))
}

/// Each tensor of the files as it is, under its canonical name; two must not share one.
fn recipes(files: &[Arc<WeightFile>], canonical: fn(&str) -> String) -> Result<BTreeMap<String, Recipe>> {
    let mut recipes = BTreeMap::new();
    let mut stored_names = BTreeMap::new();
    for file in files {
        for (stored, _) in file.tensors() {
            let name = canonical(stored);
            if let Some(other) = stored_names.insert(name.clone(), stored) {
                let fault = format!("{stored} and {other} are two names of one tensor");
                return Err(ModelError::new(fault).at(file.path()));
            }
            recipes.insert(name, Recipe::Stored(Stored::new(file, stored)?));
        }
    }
    Ok(recipes)
}

/// Newer releases of transformers moved the vision tower and the text model below `model`.
fn qwen_name(stored: &str) -> String {
    if let Some(rest) = stored.strip_prefix("model.visual.") {
        format!("visual.{rest}")
    } else if let Some(rest) = stored.strip_prefix("model.language_model.") {
        format!("model.{rest}")
    } else {
        stored.to_string()
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
