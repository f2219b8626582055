//! All weights of one model under canonical names.
//!
//! Canonical names are those of the official files; for Qwen the ones it was released with
//! (`visual.*`, `model.*`, `lm_head.*`). Shards of a component appear as one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::file::WeightFile;
use super::json::{read, read_json};
use super::layout::{DIT_V1_1, Index, Layout, QWEN_CONFIG, QWEN_INDEX, QWEN_SINGLE, QWEN_TOKENIZER, VAE};
use super::{ModelError, Result, listed};
use crate::model::Version;
use crate::tensor::{Component, Spec};

/// The tensor that v1.0 has and v1.1 has not.
const ONLY_IN_V1_0: &str = "connector.scale_factor";

/// What stands for the path of the model that is part of the program.
const DEMO: &str = "the built-in demo model";

/// The files of one model, mapped, with every header validated; see [`check`](super::check) for its tensors.
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
    dit: WeightFile,
    vae: WeightFile,
    qwen: Vec<WeightFile>,
    /// Canonical name -> place in `qwen`, stored name.
    qwen_names: BTreeMap<String, (usize, String)>,
}

impl ModelFolder {
    /// Opens the model at `path`: a folder in the official layout, the folder of a Hugging Face or
    /// ModelScope cache, or the DiT file itself where a folder holds several.
    ///
    /// The files must not be truncated or written to while the result lives. Fails when files are missing
    /// (all are listed), when it is open which DiT file is meant, when a file is malformed, or when the
    /// shards do not hold what their index says.
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
        let version = match dit.get(ONLY_IN_V1_0) {
            Some(_) => Version::V1_0,
            None => Version::V1_1,
        };
        let qwen_names = canonical_names(&qwen)?;
        Ok(ModelFolder { version, dir, qwen_config, settings, tokenizer, dit, vae, qwen, qwen_names })
    }

    /// What the tensor of this canonical name is, and its little-endian bytes, which may be unaligned.
    pub fn get(&self, component: Component, name: &str) -> Option<(&Spec, &[u8])> {
        let (file, stored) = self.place(component, name)?;
        file.get(stored)
    }

    /// The file that holds a tensor, and its name there.
    pub(super) fn place<'s: 'n, 'n>(&'s self, component: Component, name: &'n str) -> Option<(&'s WeightFile, &'n str)> {
        match component {
            Component::Dit => Some((&self.dit, name)),
            Component::Vae => Some((&self.vae, name)),
            Component::Qwen => {
                let (file, stored) = self.qwen_names.get(name)?;
                Some((&self.qwen[*file], stored))
            }
        }
    }

    /// Checks that no file has been cut off since it was opened: reading the mapping beyond its end would end the process.
    ///
    /// # Errors
    /// The file, with both lengths.
    pub fn check_lengths(&self) -> Result<()> {
        [&self.dit, &self.vae].into_iter().chain(&self.qwen).try_for_each(WeightFile::check_length)
    }

    /// The component's tensors by canonical name, in the names' order.
    pub fn tensors(&self, component: Component) -> Box<dyn Iterator<Item = (&str, &Spec)> + '_> {
        match component {
            Component::Dit => Box::new(self.dit.tensors().map(|(name, e)| (name, &e.spec))),
            Component::Vae => Box::new(self.vae.tensors().map(|(name, e)| (name, &e.spec))),
            Component::Qwen => Box::new(
                self.qwen_names
                    .iter()
                    .filter_map(|(name, (file, stored))| Some((name.as_str(), self.qwen[*file].get(stored)?.0))),
            ),
        }
    }

    /// Path, bytes and number of tensors of each weight file: DiT, VAE, Qwen's shards.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64, usize)> {
        [&self.dit, &self.vae].into_iter().chain(&self.qwen).map(|file| (file.path(), file.bytes(), file.tensor_count()))
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
        .filter(|(tensor, shard)| shards[shard.as_str()].get(tensor).is_none())
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

/// Where each tensor is, by canonical name; two tensors must not share one.
fn canonical_names(files: &[WeightFile]) -> Result<BTreeMap<String, (usize, String)>> {
    let mut names = BTreeMap::new();
    for (place, file) in files.iter().enumerate() {
        for (stored, _) in file.tensors() {
            let name = canonical(stored);
            if let Some((_, other)) = names.insert(name, (place, stored.to_string())) {
                let fault = format!("{stored} and {other} are two names of one tensor; the file must hold one of them");
                return Err(ModelError::new(fault).at(file.path()));
            }
        }
    }
    Ok(names)
}

/// Newer releases of transformers moved the vision tower and the text model below `model`.
fn canonical(stored: &str) -> String {
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
