//! From items to tasks: names of results, seeds, shards, and what must hold before the first edit.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::item::{Item, Source};
use crate::image::Format;
use crate::pipeline::EditParameters;

/// What names and numbers of all items follow from.
#[derive(Clone, Debug)]
pub struct Naming {
    /// Every item's edit but for what is its own.
    pub edit: EditParameters,
    /// Seeds of each item, counted up from the first.
    pub seeds: usize,
    /// Format of results whose names say none.
    pub format: Format,
    /// Let results lie outside the output folder.
    pub allow_outside: bool,
}

/// One item with everything settled that does not need its picture.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which item of the manifest it is, from 0.
    pub number: usize,
    /// Its name in results.
    pub id: String,
    /// The picture.
    pub source: Source,
    /// The picture as the manifest names it.
    pub image: String,
    /// The edit with its first seed.
    pub edit: EditParameters,
    /// Each seed and where its result goes, below the output folder.
    pub results: Vec<(u64, String)>,
    /// Where a copy of the scorer's source goes, below the output folder.
    pub source_copy: Option<String>,
    /// What the item carries into its results.
    pub extra: Map<String, Value>,
}

/// A part of a manifest: every item whose number leaves `part` over when it is divided by `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub part: usize,
    /// At least 1.
    pub of: usize,
}

impl Naming {
    /// Settles one item.
    ///
    /// # Errors
    /// A name that leads out of the output folder, or says no format.
    pub fn task(&self, number: usize, item: Item) -> Result<Task> {
        let named = || {
            let edit = item.edit(&self.edit);
            let stem = || Path::new(&item.image).file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let name = item.output.clone().or_else(|| item.id.clone()).or_else(stem);
            let name = name.with_context(|| format!("the picture {:?} has no name; give the item an id", item.image))?;
            let path = self.result_path(&name, item.output.is_some())?;
            let id = item.id.clone().unwrap_or_else(|| name.clone());
            let seeds = item.seeds.unwrap_or(self.seeds);
            let seed = |at: usize| edit.seed.wrapping_add(at as u64);
            let results = match seeds {
                1 => vec![(edit.seed, shown(&path)?)],
                _ => (0..seeds).map(|at| Ok((seed(at), shown(&with_seed(&path, seed(at)))?))).collect::<Result<_>>()?,
            };
            anyhow::Ok((edit, id, results))
        };
        let (edit, id, results) = named().with_context(|| item.place.clone())?;
        let Item { source, image, source_copy, extra, .. } = item;
        Ok(Task { number, id, source, image, edit, results, source_copy, extra })
    }

    /// All items of a manifest settled, no two of them writing the same file.
    ///
    /// # Errors
    /// As for [`Naming::task`], or two items that write the same file.
    pub fn tasks(&self, items: Vec<Item>) -> Result<Vec<Task>> {
        let mut names = Names::default();
        let mut tasks = Vec::with_capacity(items.len());
        for (number, item) in items.into_iter().enumerate() {
            let place = item.place.clone();
            let task = self.task(number, item)?;
            names.take(&task, &place)?;
            tasks.push(task);
        }
        Ok(tasks)
    }

    /// The result's path below the output folder. A name that the manifest gives as output says the format if it ends in one.
    fn result_path(&self, name: &str, is_output: bool) -> Result<PathBuf> {
        let mut path = PathBuf::new();
        for part in Path::new(name).components() {
            match part {
                Component::CurDir => {}
                Component::Normal(part) => path.push(part),
                _ if self.allow_outside => path.push(part),
                _ => bail!(
                    "the result {name:?} would lie outside the output folder; name it without \"..\" and without a leading \"/\", \
                     or pass --allow-outside"
                ),
            }
        }
        ensure!(path.file_name().is_some(), "the result {name:?} has no name");
        ensure!(!name.contains('\0'), "the result {name:?} has a NUL in its name");
        if is_output && path.extension().is_some() {
            Format::of(&path)?;
            return Ok(path);
        }
        let ending = match self.format {
            Format::Png => "png",
            Format::Jpeg => "jpg",
            Format::WebP => "webp",
        };
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        // An id may be a picture's name: its ending is not the result's.
        let stem = match Path::new(&*file).extension() {
            Some(_) if Format::of(&path).is_ok() => {
                Path::new(&*file).file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            _ => file.into_owned(),
        };
        path.set_file_name(format!("{stem}.{ending}"));
        Ok(path)
    }
}

/// Results that are taken, and by which item.
#[derive(Debug, Default)]
pub struct Names(HashMap<String, String>);

impl Names {
    /// Takes a task's results.
    ///
    /// # Errors
    /// Another item has one of them.
    pub fn take(&mut self, task: &Task, place: &str) -> Result<()> {
        for (_, output) in &task.results {
            if let Some(other) = self.0.get(output) {
                bail!("{other} and {place} both write {output:?}; give one of them another \"id\" or \"output\"");
            }
        }
        self.0.extend(task.results.iter().map(|(_, output)| (output.clone(), place.to_string())));
        Ok(())
    }
}

impl Shard {
    /// Whether an item is of this part.
    pub fn has(self, number: usize) -> bool {
        number % self.of == self.part
    }
}

/// `a.png` as `a_7.png`.
fn with_seed(path: &Path, seed: u64) -> PathBuf {
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!("{}_{seed}.{}", part(path.file_stem()), part(path.extension())))
}

/// A path as results name it, with `/` between its parts.
fn shown(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("the result {} is not UTF-8", path.display()))?;
    Ok(if std::path::MAIN_SEPARATOR == '/' { text.to_string() } else { text.replace(std::path::MAIN_SEPARATOR, "/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming() -> Naming {
        Naming { edit: EditParameters::new(""), seeds: 1, format: Format::Png, allow_outside: false }
    }

    fn item(json: Value) -> Item {
        let Value::Object(members) = json else { panic!("no object") };
        Item::of("line 1".into(), members, &[]).unwrap()
    }

    fn outputs(naming: &Naming, json: Value) -> Result<Vec<String>> {
        Ok(naming.task(0, item(json))?.results.into_iter().map(|(_, output)| output).collect())
    }

    #[test]
    fn results_are_named_by_output_id_or_picture() {
        use serde_json::json;
        let of = |json| outputs(&naming(), json).unwrap();
        assert_eq!(of(json!({"image": "in/0000.jpg", "prompt": "x"})), ["0000.png"]);
        assert_eq!(of(json!({"image": "in/0000.jpg", "prompt": "x", "id": "a/b.c"})), ["a/b.c.png"]);
        assert_eq!(of(json!({"image": "in/0000.jpg", "prompt": "x", "id": "b.jpg"})), ["b.png"]);
        assert_eq!(of(json!({"image": "0.jpg", "prompt": "x", "output": "./a/b.JPG"})), ["a/b.JPG"]);
        assert_eq!(of(json!({"image": "0.jpg", "prompt": "x", "output": "a"})), ["a.png"]);
        let seeds = of(json!({"image": "0.jpg", "prompt": "x", "seed": u64::MAX, "n": 3}));
        assert_eq!(seeds, ["0_18446744073709551615.png", "0_0.png", "0_1.png"], "seeds begin again behind the last");
        let jpeg = Naming { format: Format::Jpeg, ..naming() };
        assert_eq!(outputs(&jpeg, json!({"image": "0.png", "prompt": "x"})).unwrap(), ["0.jpg"]);
    }

    #[test]
    fn results_stay_in_their_folder_unless_asked() {
        use serde_json::json;
        for (output, words) in [
            ("../a.png", "--allow-outside"),
            ("/a.png", "--allow-outside"),
            ("a/../../b.png", "outside"),
            ("a.gif", ".gif"),
            ("", "no name"),
        ] {
            let json = json!({"image": "0.jpg", "prompt": "x", "output": output});
            let error = format!("{:#}", outputs(&naming(), json).unwrap_err());
            assert!(error.contains(words) && error.contains("line 1"), "{error}");
        }
        let free = Naming { allow_outside: true, ..naming() };
        assert_eq!(outputs(&free, json!({"image": "0.jpg", "prompt": "x", "output": "../a.png"})).unwrap(), ["../a.png"]);
    }

    #[test]
    fn two_items_of_one_result_are_refused() {
        use serde_json::json;
        let items = |second: Value| vec![item(json!({"image": "a/0.jpg", "prompt": "x"})), item(second)];
        let error = naming().tasks(items(json!({"image": "b/0.png", "prompt": "y"}))).unwrap_err().to_string();
        assert!(error.contains("both write \"0.png\""), "{error}");
        assert_eq!(naming().tasks(items(json!({"image": "b/0.png", "prompt": "y", "id": "1"}))).unwrap().len(), 2);
        let with_seeds = naming().tasks(items(json!({"image": "1.png", "prompt": "y", "output": "./0.png"}))).unwrap_err();
        assert!(with_seeds.to_string().contains("both write"), "{with_seeds}");
    }

    #[test]
    fn shards_part_a_manifest() {
        for of in 1..5 {
            for number in 0..20 {
                assert_eq!((0..of).filter(|&part| Shard { part, of }.has(number)).count(), 1);
            }
        }
    }
}
