//! The files with one network's tensors: a single one, or shards with the index that lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::file::WeightFile;
use super::super::json::{INDEX_BYTES, Named, read_json};
use super::super::words::{listed, shown};
use super::super::{ModelError, Result};
use super::{gguf, is_plain_name};

/// Where a network's tensors are.
#[derive(Debug)]
pub(in crate::weights) enum Weights {
    /// In one file.
    Single(PathBuf),
    /// In the files beside this index that it lists.
    Sharded(PathBuf, Index),
    /// Of the text encoder, in two files of llama.cpp: the text model and the vision tower.
    Gguf([PathBuf; 2]),
}

/// Which shard of a folder holds which tensor; shard names are plain file names.
#[derive(Debug)]
pub(in crate::weights) struct Index {
    /// Stored tensor name -> shard.
    pub weight_map: BTreeMap<String, String>,
    /// Every shard named, once.
    pub shards: BTreeSet<String>,
}

impl Weights {
    /// Finds `STEM.safetensors`, or `STEM.safetensors.index.json` and the files it lists. What is not there is added to
    /// `missing`, with the folder and its source as messages call them.
    ///
    /// # Errors
    /// A fault of the index.
    pub fn find(dir: &Path, stem: &str, (folder, source): (&str, &str), missing: &mut Vec<String>) -> Result<Option<Weights>> {
        let single = dir.join(format!("{stem}.safetensors"));
        if single.is_file() {
            return Ok(Some(Weights::Single(single)));
        }
        let path = dir.join(format!("{stem}.safetensors.index.json"));
        if !path.is_file() {
            let index = format!("{folder}/{stem}.safetensors.index.json");
            missing.push(format!("{index} and the files it lists (or {stem}.safetensors), {source}"));
            return Ok(None);
        }
        let index = Index::read(&path)?;
        let absent = index.shards.iter().filter(|shard| !dir.join(shard).is_file());
        missing.extend(absent.map(|shard| format!("{folder}/{shard}, {source}")));
        Ok(Some(Weights::Sharded(path, index)))
    }

    /// The file at a path; all shards, if it is one of several that an index beside it lists.
    ///
    /// # Errors
    /// A fault of the index.
    pub fn at(path: &Path) -> Result<Weights> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let numbers = name.strip_suffix(".safetensors").and_then(|name| name.rsplit_once("-of-"));
        if let Some((stem, _)) = numbers.and_then(|(name, _)| name.rsplit_once('-')) {
            let index_path = path.with_file_name(format!("{stem}.safetensors.index.json"));
            if index_path.is_file() {
                let index = Index::read(&index_path)?;
                if index.shards.contains(name) {
                    return Ok(Weights::Sharded(index_path, index));
                }
            }
        }
        Ok(Weights::Single(path.to_path_buf()))
    }

    /// What messages call it as a whole: the file, or the folder of the shards.
    pub fn path(&self) -> &Path {
        match self {
            Weights::Single(path) | Weights::Gguf([path, _]) => path,
            Weights::Sharded(index, _) => index.parent().unwrap_or(index),
        }
    }

    /// Every file, the index among them.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Weights::Single(path) => vec![path.clone()],
            Weights::Gguf([text, vision]) => vec![text.clone(), vision.clone()],
            Weights::Sharded(path, index) => {
                let shards = index.shards.iter().map(|shard| path.with_file_name(shard));
                [path.clone()].into_iter().chain(shards).collect()
            }
        }
    }

    /// Opens the files in the order of their names.
    ///
    /// # Errors
    /// A fault of a file, or shards that do not hold what the index says.
    pub fn open(&self) -> Result<Vec<WeightFile>> {
        match self {
            Weights::Single(path) => Ok(vec![WeightFile::open(path)?]),
            Weights::Gguf([text, vision]) => Ok(vec![gguf::open_text(text)?, gguf::open_vision(vision)?]),
            Weights::Sharded(path, index) => index.open(path),
        }
    }
}

impl Index {
    /// Opens the shards; each must hold exactly what the index at `path` says. The first that does not is the
    /// last that is opened, so that all their tensors take no more memory than those of an index can.
    fn open(&self, path: &Path) -> Result<Vec<WeightFile>> {
        let mut due: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in &self.weight_map {
            due.entry(shard).or_default().push(tensor);
        }
        let mut shards = Vec::new();
        for (shard, tensors) in due {
            let file = WeightFile::open(&path.with_file_name(shard))?;
            let absent = tensors.iter().filter(|tensor| file.spec(tensor).is_none());
            let absent: Vec<String> = absent.map(|tensor| format!("{}, which should be in {shard}", shown(tensor))).collect();
            let unlisted = file.tensors().filter(|(tensor, _)| self.weight_map.get(*tensor).is_none_or(|s| s != shard));
            let unlisted: Vec<String> = unlisted.map(|(tensor, _)| format!("{} in {shard}", shown(tensor))).collect();
            if !(absent.is_empty() && unlisted.is_empty()) {
                return Err(ModelError::new(format!(
                    "{}: a shard beside it is not the one it describes; fetch all files of one release{}{}",
                    path.display(),
                    listed("listed but not there", &absent),
                    listed("there but not listed", &unlisted)
                )));
            }
            shards.push(file);
        }
        Ok(shards)
    }

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
