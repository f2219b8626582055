//! LoRA files: what they change of a transformer, whatever trainer wrote them.
//!
//! A file is opened and looked through once: every tensor is a part of a module's change, or is named. The changes become
//! [`Recipe`]s, so that they are merged while a weight is read; there is no second copy of a weight.

mod about;
mod alpha;
mod keys;
mod merged;
mod modules;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use self::alpha::Peft;
use self::keys::{Part, bare, is_of_text_encoder, split};
pub(super) use self::merged::Merged;
use self::modules::{Modules, Target};
use super::file::WeightFile;
use super::foreign::{FIRST, what_bytes};
use super::recipe::{Change, Factor, Magnitudes, Pair, Product, Recipe, Stored};
use super::words::{listed, shown};
use super::{ModelError, Result};
use crate::tensor::Shape;

/// A LoRA file that the user names, and how strongly it is to change the model.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraChoice {
    /// The file.
    pub path: PathBuf,
    /// 1: as it was trained.
    pub scale: f32,
}

/// A LoRA file, open; its values are known to be finite.
#[derive(Debug)]
pub struct Lora {
    /// How strongly it changes the model.
    pub scale: f32,
    file: Arc<WeightFile>,
    metadata: BTreeMap<String, String>,
    peft: Peft,
    /// Tensors by their part, of each module as the file names it.
    modules: BTreeMap<String, BTreeMap<Part, String>>,
    /// Tensors of text encoders, which stay as they are.
    text_encoder: Vec<String>,
    /// Tensors that are no part of a change that is known.
    strangers: Vec<String>,
    digest: OnceLock<Result<String>>,
}

/// A change of a weight.
struct Matched<'m> {
    target: &'m Target,
    change: Change,
}

/// What a LoRA file is, in numbers and words.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LoraSummary {
    /// Where it is.
    pub path: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The program that wrote it, as far as the file tells.
    pub trainer: String,
    /// The model that it was trained on, as far as the file says.
    pub base_model: Option<String>,
    /// Modules that it changes, by kind: LoRA, LoHa, LoKr, with or without DoRA.
    pub modules: BTreeMap<String, usize>,
    /// How many modules have each rank.
    pub ranks: BTreeMap<usize, usize>,
    /// Least and greatest alpha, where one is said.
    pub alphas: Option<[f32; 2]>,
    /// Tensors of text encoders, which are not used.
    pub unused: usize,
}

impl Lora {
    /// Opens a file and reads all of it once.
    ///
    /// # Errors
    /// No such file, another format, a header or values that are damaged.
    pub fn open(LoraChoice { path, scale }: &LoraChoice) -> Result<Arc<Lora>> {
        if let Some(what) = foreign(path) {
            let remedy = "a LoRA is given as a .safetensors file (docs/lora.md)";
            return Err(ModelError::new(format!("this is {what}; {remedy}")).at(path));
        }
        let file = Arc::new(WeightFile::open(path)?);
        let metadata = file.metadata()?;
        let peft = Peft::of(&metadata).map_err(|e| e.at(path))?;
        let mut lora = Lora {
            scale: *scale,
            metadata,
            peft,
            modules: BTreeMap::new(),
            text_encoder: vec![],
            strangers: vec![],
            digest: OnceLock::new(),
            file: file.clone(),
        };
        for (key, _) in file.tensors() {
            match split(key) {
                _ if is_of_text_encoder(key) => lora.text_encoder.push(key.to_string()),
                None => lora.strangers.push(key.to_string()),
                Some((module, part)) => {
                    let parts = lora.modules.entry(module.to_string()).or_default();
                    if let Some(other) = parts.insert(part, key.to_string()) {
                        let fault = format!("{} and {} are two names of one tensor", shown(key), shown(&other));
                        return Err(ModelError::new(fault).at(path));
                    }
                }
            }
        }
        let keys: Vec<&String> = lora.modules.values().flat_map(BTreeMap::values).collect();
        keys.par_iter().try_for_each(|key| Stored::new(&file, key)?.check())?;
        Ok(Arc::new(lora))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// SHA-256 of the file, in hexadecimal digits; it is taken once.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn sha256(&self) -> Result<String> {
        self.digest.get_or_init(|| self.file.sha256()).clone()
    }

    /// Tensors of text encoders, which are not used.
    pub fn unused(&self) -> &[String] {
        &self.text_encoder
    }

    /// Another model that the file says it was trained on.
    pub fn made_for(&self) -> Option<&'static str> {
        let base = about::base_model(&self.metadata)?;
        about::other_model(Some(base), std::iter::empty())
    }

    /// What the file is; whether it fits a model is not asked.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn summary(&self) -> Result<LoraSummary> {
        let (mut modules, mut ranks) = (BTreeMap::new(), BTreeMap::new());
        let mut alphas: Option<[f32; 2]> = None;
        for (module, parts) in &self.modules {
            *modules.entry(kind(parts)).or_insert(0) += 1;
            if let Some(rank) = self.rank(parts) {
                *ranks.entry(rank).or_insert(0) += 1;
            }
            if let Some(alpha) = self.alpha(module, parts)? {
                let [least, most] = alphas.unwrap_or([alpha; 2]);
                alphas = Some([least.min(alpha), most.max(alpha)]);
            }
        }
        Ok(LoraSummary {
            path: self.path().display().to_string(),
            bytes: self.file.bytes(),
            sha256: self.sha256()?,
            trainer: about::trainer(&self.metadata, &self.file.tensors().map(|(name, _)| name).collect::<Vec<_>>()),
            base_model: about::base_model(&self.metadata).map(str::to_string),
            modules,
            ranks,
            alphas,
            unused: self.text_encoder.len(),
        })
    }

    /// Checks that it is a LoRA for a transformer of these tensors, by canonical name; gives the number of modules.
    ///
    /// # Errors
    /// As for [`Lora::matched`].
    pub fn check<'t>(&self, tensors: impl Iterator<Item = (&'t str, &'t Shape)> + Clone) -> Result<usize> {
        let shapes: BTreeMap<&str, &Shape> = tensors.clone().collect();
        Ok(self.matched(&Modules::new(tensors), &|name| shapes.get(name).map(|shape| (*shape).clone()))?.len())
    }

    /// The change of each module.
    ///
    /// # Errors
    /// Nothing that the model has, or anything that it has not or has in another shape; all are named.
    fn matched<'m>(&self, modules: &'m Modules, shape_of: &dyn Fn(&str) -> Option<Shape>) -> Result<Vec<Matched<'m>>> {
        let (mut matched, mut unknown, mut wrong) = (vec![], self.strangers.clone(), vec![]);
        for (module, parts) in &self.modules {
            let target = modules.find(module);
            let found = target.and_then(|target| Some((target, shape_of(&target.weight)?)));
            let Some((target, shape)) = found else {
                unknown.extend(parts.values().cloned());
                continue;
            };
            match self.change(module, parts, target) {
                Err(fault) => wrong.push(format!("{}: {fault}", shown(module))),
                Ok(change) => match change.why_not(&shape) {
                    Some(fault) => wrong.push(format!("{}: {fault}", shown(module))),
                    None => matched.push(Matched { target, change }),
                },
            }
        }
        match unknown.is_empty() && wrong.is_empty() && !matched.is_empty() {
            true => Ok(matched),
            false => Err(self.mismatch(matched.len(), &unknown, &wrong)),
        }
    }

    fn mismatch(&self, matched: usize, unknown: &[String], wrong: &[String]) -> ModelError {
        let names = self.modules.keys().map(|module| bare(module));
        let other = about::other_model(about::base_model(&self.metadata), names);
        let seems = other.map_or(String::new(), |other| format!("; it seems to be for {other}"));
        if self.modules.is_empty() && !self.text_encoder.is_empty() {
            let fault = format!(
                "the LoRA changes only a text encoder ({} tensors), and text encoders are not changed here; give one that changes \
                 the transformer",
                self.text_encoder.len()
            );
            return ModelError::new(fault).at(self.path());
        }
        let names: Vec<String> = unknown.iter().map(|name| shown(name)).collect();
        let lists = [listed("not in this model", &names), listed("not of its shapes", wrong)].concat();
        let fault = match matched {
            0 => format!("nothing of this file changes this model{seems}; give a LoRA that was trained for Step1X-Edit{lists}"),
            n => format!("{n} modules fit this model, the rest of the file does not{seems}; nothing of it is used{lists}"),
        };
        ModelError::new(fault).at(self.path())
    }

    /// The change that the tensors of a module make; whether it fits the weight is not yet known.
    fn change(&self, module: &str, parts: &BTreeMap<Part, String>, target: &Target) -> std::result::Result<Change, String> {
        let text = |e: ModelError| e.to_string();
        let matrix = |part: Part| self.matrix(parts.get(&part).ok_or_else(|| format!("it lacks {part}"))?).map_err(text);
        let has = |part: Part| parts.contains_key(&part);
        let pair = |up: Part, down: Part| Ok::<_, String>(Pair { up: matrix(up)?, down: matrix(down)? });
        let factor = |i: usize| match has(Part::Lokr(i)) {
            true => matrix(Part::Lokr(i)).map(Factor::Whole),
            false => pair(Part::LokrPair(i, 0), Part::LokrPair(i, 1)).map(Factor::Pair),
        };
        let used = |part: &Part| match family(parts) {
            Family::Lora => matches!(part, Part::Down | Part::Up),
            Family::Loha => matches!(part, Part::Hada(..)),
            Family::Lokr => match part {
                Part::Lokr(_) => true,
                Part::LokrPair(i, _) => !has(Part::Lokr(*i)),
                _ => false,
            },
        };
        if let Some(key) = parts.iter().find(|(part, _)| !used(part) && !matches!(part, Part::Alpha | Part::Magnitudes)) {
            return Err(format!("{} does not belong to the rest of it", shown(key.1)));
        }
        let product = match family(parts) {
            Family::Lora => Product::LowRank(pair(Part::Up, Part::Down)?),
            Family::Loha => {
                let of = |i| pair(Part::Hada(i, 0), Part::Hada(i, 1));
                Product::Hadamard([of(0)?, of(1)?])
            }
            Family::Lokr => Product::Kronecker([factor(0)?, factor(1)?]),
        };
        let magnitudes = if has(Part::Magnitudes) { Some(Magnitudes::new(matrix(Part::Magnitudes)?)) } else { None };
        let scale = self.scaling(module, parts).map_err(text)?;
        Ok(Change { rows: target.rows.clone(), product, scale, strength: self.scale, magnitudes })
    }

    /// A factor; those of a 1×1 convolution are matrices.
    fn matrix(&self, key: &str) -> Result<Recipe> {
        let stored = Stored::new(&self.file, key)?;
        let shape = self.file.spec(key).map_or(Shape(vec![]), |spec| spec.shape.clone());
        if shape.0.len() > 2 && shape.0[2..].iter().all(|&extent| extent == 1) {
            return Ok(Recipe::Stored(stored.reshaped(Shape(shape.0[..2].to_vec()))?));
        }
        Ok(Recipe::Stored(stored))
    }
}

/// Which rules the tensors of a module follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Lora,
    Loha,
    Lokr,
}

fn family(parts: &BTreeMap<Part, String>) -> Family {
    if parts.keys().any(|part| matches!(part, Part::Hada(..))) {
        Family::Loha
    } else if parts.keys().any(|part| matches!(part, Part::Lokr(_) | Part::LokrPair(..))) {
        Family::Lokr
    } else {
        Family::Lora
    }
}

fn kind(parts: &BTreeMap<Part, String>) -> String {
    let name = match family(parts) {
        Family::Lora => "LoRA",
        Family::Loha => "LoHa",
        Family::Lokr => "LoKr",
    };
    let dora = if parts.contains_key(&Part::Magnitudes) { " with DoRA" } else { "" };
    format!("{name}{dora}")
}

/// What a file is by its first bytes, if that is known and no safetensors file.
fn foreign(path: &Path) -> Option<String> {
    if !path.is_file() {
        return None; // opening a pipe would wait
    }
    let mut first = Vec::new();
    File::open(path).ok()?.take(FIRST as u64).read_to_end(&mut first).ok()?;
    what_bytes(&first).map(|foreign| foreign.what)
}

#[cfg(test)]
mod tests;
