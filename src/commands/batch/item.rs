//! One item of a manifest: a picture, what to do with it, and what differs from the command line's defaults.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::image::{self, Reading};
use crate::pipeline::{CFG_SCALES, EditParameters, SIZE_LEVELS, STEPS};

/// Most seeds of an item.
pub const SEEDS_MOST: usize = 10_000;

/// Pictures that lie in a dataset's own files.
pub trait Pictures: Send + Sync {
    /// The bytes of a row's picture file.
    ///
    /// # Errors
    /// The dataset cannot be read there.
    fn bytes(&self, row: usize) -> Result<Vec<u8>>;

    /// The bytes of the picture that a scorer compares the result with.
    ///
    /// # Errors
    /// As for [`Pictures::bytes`].
    fn source_copy(&self, row: usize) -> Result<Vec<u8>>;
}

/// Where an item's picture is.
#[derive(Clone)]
pub enum Source {
    /// A picture file.
    File(PathBuf),
    /// A row of a dataset.
    Row(Arc<dyn Pictures>, usize),
}

impl Source {
    /// The bytes of the picture's file, without what is not looked at.
    ///
    /// # Errors
    /// It cannot be read; the message names it.
    pub fn bytes(&self, reading: &Reading) -> Result<Vec<u8>> {
        match self {
            Source::File(path) => {
                image::read_file(path, reading).with_context(|| format!("cannot read the picture {}", path.display()))
            }
            Source::Row(pictures, row) => pictures.bytes(*row),
        }
    }
}

impl Source {
    /// The file, if it is one of its own.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Source::File(path) => Some(path),
            Source::Row(..) => None,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Source::File(path) => path.fmt(f),
            Source::Row(_, row) => write!(f, "row {row}"),
        }
    }
}

/// One item, as the manifest has it.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it stands, for messages: `line 3`, `entry "a.png"`.
    pub place: String,
    /// Its name in results; none: from the output or the picture.
    pub id: Option<String>,
    /// The picture.
    pub source: Source,
    /// The picture as the manifest names it.
    pub image: String,
    /// What to do.
    pub prompt: String,
    /// Where the result goes, below the output folder; none: from the id.
    pub output: Option<String>,
    /// Where a copy of the scorer's source goes, below the output folder.
    pub source_copy: Option<String>,
    /// Seeds; none: as the command line says.
    pub seeds: Option<usize>,
    /// What differs from the command line's edit.
    pub own: Own,
    /// Members that are none of this program's, carried into the result.
    pub extra: Map<String, Value>,
}

/// What an item may have for itself.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// What to lead away from.
    pub negative_prompt: Option<String>,
    /// The first seed.
    pub seed: Option<u64>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale.
    pub cfg_scale: Option<f32>,
    /// Side of the square whose area the working size has.
    pub size_level: Option<usize>,
}

/// Members of an item and the other names that datasets have for them.
const ALIASES: [(&str, &[&str]); 10] = [
    ("id", &[]),
    ("image", &["file_name", "input", "ref_image_path", "input_image"]),
    ("prompt", &["instruction", "caption"]),
    ("output", &[]),
    ("negative_prompt", &[]),
    ("seed", &[]),
    ("steps", &["num_steps"]),
    ("cfg_scale", &["cfg_guidance"]),
    ("size_level", &[]),
    ("n", &[]),
];

/// Members that would change an edit and that a line cannot set.
const REFUSED: [(&str, &str); 3] =
    [("lora", "give --lora, for all items"), ("rules", "give --rules, for all items"), ("mask", "the model takes none")];

/// Whether an object has what makes it an item rather than a list of items.
pub fn is_item(members: &Map<String, Value>) -> bool {
    let has = |wanted: &str| {
        let (name, others) = ALIASES.iter().find(|(name, _)| *name == wanted).expect("a member");
        [*name].iter().chain(*others).any(|name| members.contains_key(*name))
    };
    has("image") && has("prompt")
}

impl Item {
    /// Takes an object's members; `map` has pairs of own and other names. The picture's path is still as it is written.
    ///
    /// # Errors
    /// A member is missing, is there twice under two names, or is no value that it can have.
    pub fn of(place: String, mut members: Map<String, Value>, map: &[(String, String)]) -> Result<Item> {
        let mut taken = Map::new();
        for (name, aliases) in ALIASES {
            let mapped = map.iter().filter(|(own, _)| own == name).map(|(_, other)| other.as_str());
            let mapped: Vec<&str> = mapped.collect();
            let names: Vec<&str> =
                if mapped.is_empty() { [name].into_iter().chain(aliases.iter().copied()).collect() } else { mapped };
            for other in names {
                let Some(value) = members.remove(other).filter(|value| !value.is_null()) else { continue };
                ensure!(!taken.contains_key(name), "it has {name} twice, the second time as {other:?}; leave one out");
                taken.insert(name.into(), value);
            }
        }
        for (name, remedy) in REFUSED {
            ensure!(!members.contains_key(name), "a line cannot set {name:?}; {remedy}");
        }
        let image = text(&taken, "image")?.with_context(|| missing("image", &members))?;
        ensure!(!image.is_empty(), "\"image\" is empty; name a picture file");
        let prompt = text(&taken, "prompt")?.with_context(|| missing("prompt", &members))?;
        let (levels, steps) = (SIZE_LEVELS, STEPS);
        Ok(Item {
            place,
            id: label(&taken, "id")?,
            source: Source::File(PathBuf::from(&image)),
            image,
            prompt,
            output: text(&taken, "output")?,
            source_copy: None,
            seeds: whole(&taken, "n", 1, SEEDS_MOST as u64)?.map(|n| n as usize),
            own: Own {
                negative_prompt: text(&taken, "negative_prompt")?,
                seed: whole(&taken, "seed", 0, u64::MAX)?,
                steps: whole(&taken, "steps", *steps.start() as u64, *steps.end() as u64)?.map(|n| n as usize),
                cfg_scale: scale(&taken)?,
                size_level: whole(&taken, "size_level", *levels.start() as u64, *levels.end() as u64)?.map(|n| n as usize),
            },
            extra: members,
        })
    }

    /// The edit of this item: the command line's, with what is the item's own.
    pub fn edit(&self, defaults: &EditParameters) -> EditParameters {
        let own = &self.own;
        EditParameters {
            prompt: self.prompt.clone(),
            negative_prompt: own.negative_prompt.clone().unwrap_or_else(|| defaults.negative_prompt.clone()),
            seed: own.seed.unwrap_or(defaults.seed),
            steps: own.steps.unwrap_or(defaults.steps),
            cfg_scale: own.cfg_scale.or(defaults.cfg_scale),
            size_level: own.size_level.or(defaults.size_level),
            ..defaults.clone()
        }
    }
}

/// What is missing, and what is there instead.
fn missing(name: &str, members: &Map<String, Value>) -> String {
    let (_, aliases) = ALIASES.iter().find(|(known, _)| *known == name).expect("a member");
    let names: Vec<String> = [name].iter().chain(*aliases).map(|name| format!("{name:?}")).collect();
    let found: Vec<&str> = members.keys().map(String::as_str).take(8).collect();
    let found = if found.is_empty() { "nothing else".into() } else { found.join(", ") };
    format!("it has no {} (it has {found}); --map {name}=NAME says what it is called", names.join(" or "))
}

fn text(members: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(_)) if name == "image" => bail!("{name:?} is a list; the model edits one picture"),
        Some(other) => bail!("{name:?} is {}; it must be a text", kind(other)),
    }
}

/// A text, or a number as it is written.
fn label(members: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    match members.get(name) {
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        _ => text(members, name),
    }
}

fn whole(members: &Map<String, Value>, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
    let Some(value) = members.get(name) else { return Ok(None) };
    let number = value.as_u64().filter(|number| (least..=most).contains(number));
    number.map(Some).with_context(|| format!("{name:?} is {}; it must be a whole number from {least} to {most}", short(value)))
}

fn scale(members: &Map<String, Value>) -> Result<Option<f32>> {
    let Some(value) = members.get("cfg_scale") else { return Ok(None) };
    let (least, most) = CFG_SCALES.into_inner();
    let scale = value.as_f64().map(|scale| scale as f32).filter(|scale| CFG_SCALES.contains(scale));
    scale.map(Some).with_context(|| format!("\"cfg_scale\" is {}; it must be a number from {least} to {most}", short(value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value in few characters.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 { text } else { format!("{}...", text.chars().take(40).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(json: Value) -> Result<Item> {
        let Value::Object(members) = json else { panic!("no object") };
        Item::of("line 1".into(), members, &[])
    }

    #[test]
    fn members_have_the_names_that_datasets_give_them() {
        for (image, prompt) in
            [("image", "prompt"), ("file_name", "instruction"), ("ref_image_path", "caption"), ("input", "prompt")]
        {
            let item = of(json!({image: "a.png", prompt: "red", "task": "color", "n": 3, "seed": u64::MAX, "id": 7})).unwrap();
            assert_eq!((item.image.as_str(), item.prompt.as_str(), item.seeds), ("a.png", "red", Some(3)));
            assert_eq!((item.own.seed, item.id.as_deref()), (Some(u64::MAX), Some("7")));
            assert_eq!(Value::Object(item.extra), json!({"task": "color"}));
        }
        let map = [("prompt".to_string(), "text".to_string())];
        let Value::Object(members) = json!({"image": "a.png", "text": "red", "caption": "a cat"}) else { unreachable!() };
        let item = Item::of(String::new(), members, &map).unwrap();
        assert_eq!((item.prompt.as_str(), Value::Object(item.extra)), ("red", json!({"caption": "a cat"})));
    }

    #[test]
    fn an_edit_has_the_items_own_values_and_else_the_defaults() {
        let defaults =
            EditParameters { steps: 5, negative_prompt: "blur".into(), cfg_scale: Some(4.0), ..EditParameters::new("") };
        let item = of(json!({"image": "a", "prompt": "red", "steps": 9, "negative_prompt": "", "cfg_scale": 1})).unwrap();
        let edit = item.edit(&defaults);
        assert_eq!((edit.steps, edit.negative_prompt.as_str(), edit.cfg_scale, edit.seed), (9, "", Some(1.0), 42));
        let edit = of(json!({"image": "a", "prompt": "red"})).unwrap().edit(&defaults);
        assert_eq!((edit.steps, edit.negative_prompt.as_str(), edit.cfg_scale), (5, "blur", Some(4.0)));
    }

    #[test]
    fn wrong_members_are_told_with_what_they_may_be() {
        for (json, words) in [
            (json!({"prompt": "red", "picture": 1}), "it has no \"image\" or \"file_name\""),
            (json!({"image": "a"}), "it has no \"prompt\""),
            (json!({"image": "a", "input": "b", "prompt": "red"}), "image twice"),
            (json!({"image": ["a", "b"], "prompt": "red"}), "one picture"),
            (json!({"image": "", "prompt": "red"}), "is empty"),
            (json!({"image": "a", "prompt": 3}), "\"prompt\" is a number; it must be a text"),
            (json!({"image": "a", "prompt": "red", "steps": 0}), "\"steps\" is 0; it must be a whole number from 1 to 1000"),
            (json!({"image": "a", "prompt": "red", "steps": 1001}), "from 1 to 1000"),
            (json!({"image": "a", "prompt": "red", "seed": -1}), "\"seed\" is -1"),
            (json!({"image": "a", "prompt": "red", "n": 10_001}), "from 1 to 10000"),
            (json!({"image": "a", "prompt": "red", "cfg_scale": "6"}), "\"cfg_scale\" is \"6\""),
            (json!({"image": "a", "prompt": "red", "size_level": 63}), "from 64 to 4096"),
            (json!({"image": "a", "prompt": "red", "lora": "x"}), "--lora"),
        ] {
            let text = format!("{:#}", of(json.clone()).unwrap_err());
            assert!(text.contains(words), "{json}: {text}");
        }
        assert!(of(json!({"image": "a", "prompt": "red", "n": 10_000})).is_ok());
    }
}
