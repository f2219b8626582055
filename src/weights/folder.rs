//! All weights of one model under canonical names.
//!
//! Canonical names are those of the official files; for Qwen the ones it was released with
//! (`visual.*`, `model.*`, `lm_head.*`). Shards of a component appear as one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use super::file::{Notes, WeightFile};
use super::foreign::what_names;
use super::inferred::qwen_config as qwen_config_of;
use super::json::{CONFIG_BYTES, TOKENIZER_BYTES, read, read_json};
use super::layout::{Layout, LayoutKind, ModelPath, Weights};
use super::lora::{Lora, Merged};
use super::names::{self, Spelling};
use super::recipe::{Addition, Recipe};
use super::{ModelError, Result, WeightForm, WeightSource};
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
    /// How its files are arranged.
    pub layout: LayoutKind,
    /// The folder the DiT file is in, or what stands for it.
    pub dir: PathBuf,
    /// `config.json` of Qwen, as it is, or what the tensors say where there is none.
    pub qwen_config: Value,
    /// `step1x.json`, as it is, where there is one.
    pub settings: Option<Value>,
    /// `tokenizer.json` of Qwen, as it is.
    pub tokenizer: Vec<u8>,
    /// The configuration files that say what a network's tensors say as well, as they are.
    pub declared: Vec<(Component, PathBuf, Value)>,
    /// DiT, VAE, Qwen, each with its shards.
    files: Vec<Arc<WeightFile>>,
    /// How each tensor comes to be, by canonical name.
    recipes: BTreeMap<Component, BTreeMap<String, Recipe>>,
    /// How each component's files name their tensors.
    spelling: BTreeMap<Component, Spelling>,
    /// What LoRA files make of the transformer; they can change while programs run one after another.
    merged: RwLock<Arc<Merged>>,
}

impl ModelFolder {
    /// Opens the model at `path`: a folder in the official layout or that of diffusers, the folder of a Hugging Face or
    /// ModelScope cache, or the DiT file itself where a folder holds several.
    ///
    /// The files must not be written to while the result lives. Fails when files are missing (all are listed),
    /// when it is open which DiT file is meant, when a file is malformed, or when the shards do not hold what
    /// their index says.
    pub fn open(path: &Path) -> Result<ModelFolder> {
        ModelFolder::open_parts(&path.into())
    }

    /// The same of a model some of whose parts are elsewhere.
    pub fn open_parts(at: &ModelPath) -> Result<ModelFolder> {
        let layout = Layout::find(at)?;
        let kind = layout.kind;
        let open = |weights: &Weights, place| {
            let files: Vec<WeightFile> = weights.open()?.into_iter().map(|file| file.only(place)).collect();
            check_kind(&files, place, weights.path())?;
            Ok(files)
        };
        let dit = open(&layout.dit, Component::Dit)?;
        let vae = open(&layout.vae, Component::Vae)?;
        let qwen = open(&layout.qwen, Component::Qwen)?;
        let declared = layout.declared.into_iter().map(|(component, path)| {
            let json = read_json(&path, CONFIG_BYTES)?;
            Ok((component, path, json))
        });
        let declared = declared.collect::<Result<_>>()?;
        let qwen_config = layout.qwen_config.as_deref().map(|path| read_json(path, CONFIG_BYTES)).transpose()?;
        let settings = layout.settings.as_deref().map(|path| read_json(path, CONFIG_BYTES)).transpose()?;
        let tokenizer = read(&layout.tokenizer, TOKENIZER_BYTES)?;
        let folder = ModelFolder::of(layout.dir, [dit, vae, qwen], (qwen_config, settings, tokenizer))?;
        Ok(ModelFolder { layout: kind, declared, ..folder })
    }

    /// The demo model, which is part of the program: trained by `tools/demo_model` to edit pictures of simple shapes.
    ///
    /// # Errors
    /// The build is damaged.
    pub fn demo() -> Result<ModelFolder> {
        let file = |name: &str, bytes| WeightFile::embedded(&format!("{DEMO}: {name}"), bytes);
        let json = |bytes| serde_json::from_slice(bytes).map_err(|e| ModelError::new(format!("{DEMO}: {e}")));
        let qwen = file("model.safetensors", include_bytes!("../../assets/demo-model/Qwen2.5-VL-7B-Instruct/model.safetensors"))?;
        let dit = file(
            "step1x-edit-v1p1-official.safetensors",
            include_bytes!("../../assets/demo-model/step1x-edit-v1p1-official.safetensors"),
        )?;
        let vae = file("vae.safetensors", include_bytes!("../../assets/demo-model/vae.safetensors"))?;
        let qwen_config = Some(json(include_bytes!("../../assets/demo-model/Qwen2.5-VL-7B-Instruct/config.json"))?);
        let settings = json(include_bytes!("../../assets/demo-model/step1x.json"))?;
        let tokenizer = include_bytes!("../../assets/demo-model/Qwen2.5-VL-7B-Instruct/tokenizer.json").to_vec();
        ModelFolder::of(DEMO.into(), [vec![dit], vec![vae], vec![qwen]], (qwen_config, Some(settings), tokenizer))
    }

    fn of(
        dir: PathBuf,
        files: [Vec<WeightFile>; 3],
        (qwen_config, settings, tokenizer): (Option<Value>, Option<Value>, Vec<u8>),
    ) -> Result<ModelFolder> {
        let components = [Component::Dit, Component::Vae, Component::Qwen].into_iter();
        let (mut recipes, mut spelling, mut all) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let notes: Notes = files[2].iter().flat_map(|file| file.notes().clone()).collect();
        let text_encoder = files[2].first().map_or(dir.clone(), |file| file.path().to_path_buf());
        for (component, files) in components.zip(files) {
            let files: Vec<_> = files.into_iter().map(Arc::new).collect();
            recipes.insert(component, names::recipes(component, &files)?);
            spelling.insert(component, Spelling::of(component, &files));
            all.extend(files);
        }
        let version = match recipes[&Component::Dit].contains_key(ONLY_IN_V1_0) {
            true => Version::V1_0,
            false => Version::V1_1,
        };
        let qwen_config = match qwen_config {
            Some(config) => config,
            None => qwen_config_of(&recipes[&Component::Qwen], &notes).map_err(|e| e.at(&text_encoder))?,
        };
        let merged = RwLock::default();
        Ok(ModelFolder {
            version,
            layout: LayoutKind::Official,
            dir,
            qwen_config,
            settings,
            tokenizer,
            declared: vec![],
            files: all,
            recipes,
            spelling,
            merged,
        })
    }

    /// The tensor of a canonical name, as messages show it: by the names that the component's files have for it.
    pub fn shown(&self, component: Component, name: &str) -> String {
        self.spelling[&component].shown(component, name)
    }

    /// Merges LoRA files into the transformer, in place of those that are merged now: from now on its weights are read with
    /// them. Gives the canonical names of the weights that have other values than before. `before` is called with them when all
    /// is known to be well; nothing changes if it fails.
    ///
    /// # Errors
    /// A file that is not for this model, or what `before` returns.
    pub fn adapt(
        &self,
        loras: Vec<Arc<Lora>>,
        before: &mut dyn FnMut(&BTreeSet<String>) -> anyhow::Result<()>,
    ) -> anyhow::Result<BTreeSet<String>> {
        let merged = Merged::new(self.recipes.get(&Component::Dit).unwrap_or(&BTreeMap::new()), loras)?;
        let differing = merged.differing(&self.merged());
        before(&differing)?;
        *self.merged.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(merged);
        Ok(differing)
    }

    /// The LoRA files that are merged, in the order in which they were named.
    pub fn loras(&self) -> Vec<Arc<Lora>> {
        self.merged().loras.clone()
    }

    fn merged(&self) -> Arc<Merged> {
        self.merged.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the tensor of this canonical name comes to be, without what LoRA files add.
    pub fn recipe(&self, component: Component, name: &str) -> Option<&Recipe> {
        self.recipes.get(&component)?.get(name)
    }

    /// The component's tensors by canonical name, in the names' order.
    pub fn tensors(&self, component: Component) -> impl Iterator<Item = (&str, &Spec)> {
        self.recipes.get(&component).into_iter().flatten().map(|(name, recipe)| (name.as_str(), recipe.spec()))
    }

    /// Path, bytes and number of tensors of each weight file: DiT, VAE, Qwen's shards; of one that holds several parts, once.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64, usize)> {
        let mut files: Vec<(&Path, u64, usize)> = vec![];
        for file in &self.files {
            match files.iter_mut().find(|(path, ..)| *path == file.path()) {
                Some((.., tensors)) => *tensors += file.tensor_count(),
                None => files.push((file.path(), file.bytes(), file.tensor_count())),
            }
        }
        files.into_iter()
    }
}

impl WeightSource for ModelFolder {
    fn spec(&self, component: Component, name: &str) -> Option<Spec> {
        let merged = self.merged();
        let recipe = merged.recipe(component, name).or_else(|| self.recipe(component, name));
        recipe.map(|recipe| recipe.spec().clone())
    }

    fn is_computed(&self, component: Component, name: &str) -> bool {
        self.merged().recipe(component, name).is_some()
    }

    fn addition(&self, component: Component, name: &str, form: WeightForm) -> Option<Addition> {
        match self.merged().recipe(component, name) {
            Some(Recipe::PlusLora(sum)) => Addition::new(sum, form),
            _ => None,
        }
    }

    fn read_at(&self, component: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let merged = self.merged();
        let recipe = merged.recipe(component, name).or_else(|| self.recipe(component, name));
        recipe.ok_or_else(|| ModelError::new(format!("there is no {name}")).at(&self.dir))?.read_at(offset, bytes)
    }

    fn give_back(&self, component: Component, name: &str) {
        if let Some(recipe) = self.recipe(component, name) {
            recipe.give_back();
        }
    }
}

/// Refuses files that are known to be another model; `path` is all of them.
fn check_kind(files: &[WeightFile], wanted: Component, path: &Path) -> Result<()> {
    let names = files.iter().flat_map(WeightFile::tensors).map(|(name, _)| name);
    match what_names(names, Some(wanted)) {
        Some(foreign) => Err(ModelError::new(foreign.to_string()).at(path)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Shape};
    use crate::weights::write::tests::write_safetensors;
    use crate::weights::{Expected, PlannedTensor, check};
    use std::fs;

    fn planned(names: &[&str], dtype: DType) -> Vec<PlannedTensor> {
        let spec = Spec::new(dtype, [4]);
        let plan = |name: &&str| PlannedTensor::new(*name, spec.clone());
        names.iter().map(plan).collect()
    }

    fn write(path: &Path, names: &[&str]) {
        write_safetensors(path, &planned(names, DType::BF16), &[], 0).unwrap();
    }

    const DIT: &str = "step1x-edit-v1p1-official.safetensors";

    /// A model of one tensor a file; Qwen's in two shards unless `qwen` names those of a single file.
    fn model(dir: &Path, qwen: Option<&[&str]>) {
        let qwen_dir = dir.join("Qwen2.5-VL-7B-Instruct");
        fs::create_dir_all(&qwen_dir).unwrap();
        write(&dir.join(DIT), &["img_in.weight"]);
        write(&dir.join("vae.safetensors"), &["decoder.conv_in.weight"]);
        fs::write(qwen_dir.join("config.json"), "{}").unwrap();
        fs::write(qwen_dir.join("tokenizer.json"), "{}").unwrap();
        match qwen {
            Some(names) => write(&qwen_dir.join("model.safetensors"), names),
            None => {
                write(&qwen_dir.join("s1.safetensors"), &["model.norm.weight"]);
                write(&qwen_dir.join("s2.safetensors"), &["visual.w"]);
                index(dir, r#"{"model.norm.weight":"s1.safetensors","visual.w":"s2.safetensors"}"#);
            }
        }
    }

    fn index(dir: &Path, weight_map: &str) {
        let path = dir.join("Qwen2.5-VL-7B-Instruct/model.safetensors.index.json");
        let text = format!(r#"{{"metadata":{{"total_size":16}},"weight_map":{weight_map}}}"#);
        fs::write(path, text).unwrap();
    }

    fn fault(dir: &Path) -> String {
        ModelFolder::open(dir).unwrap_err().to_string()
    }

    fn qwen_names(folder: &ModelFolder) -> Vec<&str> {
        folder.tensors(Component::Qwen).map(|(name, _)| name).collect()
    }

    #[test]
    fn newer_qwen_names_become_the_released_ones() {
        let dir = tempfile::tempdir().unwrap();
        let newer = ["model.visual.w", "model.language_model.norm.weight", "lm_head.weight"];
        model(dir.path(), Some(&newer));
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(qwen_names(&folder), ["lm_head.weight", "model.norm.weight", "visual.w"]);
        assert!(folder.recipe(Component::Qwen, "visual.w").is_some());
        assert!(folder.recipe(Component::Qwen, "model.visual.w").is_none());
        assert_eq!(folder.settings, None);

        let both = tempfile::tempdir().unwrap();
        model(both.path(), Some(&["model.visual.w", "visual.w"]));
        assert!(fault(both.path()).contains("two names of one tensor"));
    }

    #[test]
    fn the_version_is_that_of_the_tensors() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), None);
        assert_eq!(ModelFolder::open(dir.path()).unwrap().version, Version::V1_1);
        write(&dir.path().join(DIT), &["connector.scale_factor"]);
        assert_eq!(ModelFolder::open(dir.path()).unwrap().version, Version::V1_0);
    }

    #[test]
    fn shards_must_hold_what_the_index_says() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), None);
        let folder = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(qwen_names(&folder), ["model.norm.weight", "visual.w"]);

        index(dir.path(), r#"{"model.norm.weight":"s2.safetensors","visual.w":"s2.safetensors"}"#);
        let text = fault(dir.path());
        assert!(text.contains("model.norm.weight, which should be in s2.safetensors"), "{text}");
        index(dir.path(), r#"{"visual.w":"s2.safetensors"}"#);
        assert!(ModelFolder::open(dir.path()).is_ok(), "a shard that no tensor needs is not looked at");
        index(dir.path(), r#"{"visual.w":"s2.safetensors","visual.v":"s1.safetensors"}"#);
        let text = fault(dir.path());
        assert!(text.contains("there but not listed (1):\n  model.norm.weight in s1"), "{text}");
        assert!(text.contains("listed but not there (1):\n  visual.v, which"), "{text}");
        let damaged = dir.path().join("Qwen2.5-VL-7B-Instruct/s2.safetensors");
        fs::write(&damaged, "nothing").unwrap();
        assert_eq!(fault(dir.path()), text, "no shard is opened behind one that is wrong");
    }

    #[test]
    fn truncated_and_malformed_parts_are_named() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), None);
        let shard = dir.path().join("Qwen2.5-VL-7B-Instruct/s2.safetensors");
        let whole = fs::read(&shard).unwrap();
        fs::write(&shard, &whole[..whole.len() - 3]).unwrap();
        let text = fault(dir.path());
        assert!(text.contains("s2.safetensors: 3 bytes are missing"), "{text}");
        fs::write(&shard, whole).unwrap();
        let config = dir.path().join("Qwen2.5-VL-7B-Instruct/config.json");
        fs::write(&config, "{").unwrap();
        assert!(fault(dir.path()).contains("config.json: this is not the JSON expected"));
        fs::write(&config, "{}").unwrap();
        fs::write(dir.path().join("step1x.json"), "nonsense").unwrap();
        assert!(fault(dir.path()).contains("step1x.json: this is not the JSON expected"));
    }

    #[test]
    fn check_lists_every_kind_of_fault() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), Some(&["lm_head.weight", "model.norm.weight"]));
        let folder = ModelFolder::open(dir.path()).unwrap();
        let (four, eight) = (Shape::from([4]), Shape::from([8]));
        let expect = |component, name, shape| Expected { component, name, shape };
        let sound = [
            expect(Component::Dit, "img_in.weight", &four),
            expect(Component::Vae, "decoder.conv_in.weight", &four),
            expect(Component::Qwen, "model.norm.weight", &four),
        ];
        check(&folder, &sound, &[(Component::Qwen, "lm_head.weight")]).unwrap();
        let text = check(&folder, &sound, &[]).unwrap_err().to_string();
        assert!(text.contains("unexpected (1):\n  text encoder: lm_head.weight bf16[4]"), "{text}");

        let names: Vec<String> = (0..12).map(|i| format!("gone{i}")).collect();
        let mut wrong = vec![expect(Component::Dit, "img_in.weight", &eight)];
        wrong.extend(names.iter().map(|name| expect(Component::Vae, name, &four)));
        let text = check(&folder, &wrong, &[]).unwrap_err().to_string();
        assert!(text.contains("missing (12):\n  autoencoder: gone0 [4]"), "{text}");
        assert!(text.contains("and 2 more"), "{text}");
        assert!(text.contains("transformer: img_in.weight is [4], not [8]"), "{text}");
    }

    #[test]
    fn check_takes_floats_only() {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), None);
        let header = r#"{"img_in.weight":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
        let length = (header.len() as u64).to_le_bytes();
        let bytes = [&length[..], header.as_bytes(), &[0; 4]].concat();
        fs::write(dir.path().join(DIT), bytes).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        let shape = Shape::from([1]);
        let expected = [Expected { component: Component::Dit, name: "img_in.weight", shape: &shape }];
        let text = check(&folder, &expected, &[]).unwrap_err().to_string();
        assert!(text.contains("not of a float dtype (1):\n  transformer: img_in.weight is i32"), "{text}");
    }

    #[test]
    fn the_demo_model_is_read_in_parts_as_in_whole() {
        let folder = ModelFolder::demo().unwrap();
        for component in [Component::Dit, Component::Vae, Component::Qwen] {
            let (name, spec) = folder.tensors(component).next().unwrap();
            let mut all = vec![0; spec.bytes()];
            folder.read_at(component, name, 0, &mut all).unwrap();
            let mut part = vec![0; all.len() - 2];
            folder.read_at(component, name, 2, &mut part).unwrap();
            assert!(part == all[2..], "{name}");
            let error = folder.read_at(component, name, 3, &mut part).unwrap_err().to_string();
            assert!(error.contains("beyond the end") && error.contains("demo model"), "{error}");
        }
    }
}
