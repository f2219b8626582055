//! The benchmark's rows, and its pictures where they lie: in Arrow streams or in Parquet files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::arrow::{self, Column};
use super::parquet::{self, Table};
use super::read_range;
use crate::commands::batch::Pictures;

/// Most bytes of `state.json`.
const STATE_BYTES_MAX: u64 = 16 << 20;

/// The picture that is edited, and the one that a scorer compares with.
const RAW: &str = "input_image_raw.bytes";
const SMALL: &str = "input_image.bytes";

/// One row but for its pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) task: String,
    /// Unique within task and language.
    pub(super) key: String,
    pub(super) instruction: String,
    pub(super) language: String,
    /// Whether every compared model gave a picture.
    pub(super) intersection: bool,
}

/// A dataset, open.
pub(super) struct Dataset {
    pub(super) rows: Vec<Row>,
    pub(super) pictures: Store,
    /// What a person should know.
    pub(super) notes: Vec<String>,
}

/// Where the raw and the small picture lie in their file; none: null.
type Places = [Option<Range<u64>>; 2];

/// Where the pictures of each row are.
pub(super) enum Store {
    /// File and places of raw and small picture.
    Arrow(Vec<(Arc<File>, Places)>),
    /// Files, and for each row which file, group and row of the group.
    Parquet { files: Vec<Table>, rows: Vec<(usize, usize, usize)>, last: Mutex<Held> },
}

/// The last groups' columns that were read, by file, group and name: neighbours are mostly of one group.
type Held = BTreeMap<(usize, usize, &'static str), Arc<parquet::Column>>;

/// Groups' columns that are held.
const HELD: usize = 4;

impl Dataset {
    /// Opens a folder of `save_to_disk` (with `state.json`, else its Arrow files by name), a folder of Parquet files, or one file.
    pub(super) fn open(path: &Path) -> Result<Dataset> {
        let found = fs::metadata(path).with_context(|| "it is not there; give the folder of the dataset")?;
        let files = if found.is_dir() { files(path)? } else { vec![path.to_path_buf()] };
        match files.first().and_then(|file| file.extension()).is_some_and(|ending| ending == "parquet") {
            true => of_parquet(&files),
            false => of_arrow(&files),
        }
    }
}

/// The data files of a folder, in their order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let state = folder.join("state.json");
    if state.is_file() {
        ensure!(state.metadata()?.len() <= STATE_BYTES_MAX, "state.json has more than {STATE_BYTES_MAX} bytes");
        let json: Value = serde_json::from_slice(&fs::read(&state)?).context("state.json")?;
        let names = json["_data_files"].as_array().context("state.json lists no _data_files")?;
        let name = |file: &Value| file["filename"].as_str().map(str::to_string);
        let names: Vec<String> = names.iter().map(name).collect::<Option<_>>().context("state.json has a file without a name")?;
        let inside = |name: &String| !name.contains(['/', '\\']) && name != "..";
        ensure!(!names.is_empty() && names.iter().all(inside), "state.json names no files of its folder");
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    // `train` is the only split; a dataset with splits has a folder for each, a clone of the Hub's repository has `data`.
    for inner in ["train", "data"].map(|name| folder.join(name)) {
        if inner.is_dir() {
            return files(&inner);
        }
    }
    for ending in ["arrow", "parquet"] {
        let mut found: Vec<PathBuf> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        found.retain(|path| path.extension().is_some_and(|found| found == ending));
        found.sort();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    bail!("it holds neither state.json nor Arrow nor Parquet files")
}

fn of_arrow(files: &[PathBuf]) -> Result<Dataset> {
    let (mut rows, mut places) = (Vec::new(), Vec::new());
    for path in files {
        let read = || {
            let columns = arrow::read(path)?;
            let file = Arc::new(File::open(path)?);
            let text = |name: &str| match columns.get(name) {
                Some(Column::Text(values)) => Ok(values.clone()),
                _ => bail!("it has no column {name} of texts"),
            };
            let bytes = |name: &str| match columns.get(name) {
                Some(Column::Bytes(values)) => Some(values.clone()),
                _ => None,
            };
            let flags = match columns.get("Intersection_exist") {
                Some(Column::Flag(values)) => values.clone(),
                _ => bail!("it has no column Intersection_exist of flags"),
            };
            let texts = [text("task_type")?, text("key")?, text("instruction")?, text("instruction_language")?];
            let own = rows_of(texts, flags)?;
            let (raw, small) = (bytes(RAW), bytes(SMALL));
            ensure!(raw.is_some() || small.is_some(), "it has no column input_image_raw with pictures");
            let at = |column: &Option<Vec<Option<Range<u64>>>>, row: usize| column.as_ref()?.get(row)?.clone();
            let own_places: Vec<_> = (0..own.len()).map(|row| (file.clone(), [at(&raw, row), at(&small, row)])).collect();
            anyhow::Ok((own, own_places, raw.is_some()))
        };
        let (own, own_places, has_raw) = read().with_context(|| path.display().to_string())?;
        ensure!(has_raw, "{} has no column input_image_raw", path.display());
        rows.extend(own);
        places.extend(own_places);
    }
    ensure!(!rows.is_empty(), "it holds no rows");
    Ok(Dataset { rows, pictures: Store::Arrow(places), notes: vec![] })
}

fn of_parquet(paths: &[PathBuf]) -> Result<Dataset> {
    let (mut rows, mut places, mut files, mut notes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for path in paths {
        let table = Table::open(path).with_context(|| path.display().to_string())?;
        ensure!(table.has(RAW) || table.has(SMALL), "{} has no column input_image_raw with pictures", path.display());
        if !table.has(RAW) {
            notes.push(format!("{} has no input_image_raw; the smaller input_image is edited", path.display()));
        }
        for (group, count) in table.groups().enumerate().collect::<Vec<_>>() {
            let text = |name: &str| {
                let text = |value: Vec<u8>| String::from_utf8(value).with_context(|| format!("{name} is not UTF-8"));
                table.column(group, name)?.into_iter().map(|value| value.map(text).transpose()).collect::<Result<Vec<_>>>()
            };
            let flags = table.column(group, "Intersection_exist")?;
            let flags = flags.into_iter().map(|flag| flag.map(|flag| flag == [1])).collect();
            let texts = [text("task_type")?, text("key")?, text("instruction")?, text("instruction_language")?];
            let own = rows_of(texts, flags).with_context(|| path.display().to_string())?;
            ensure!(own.len() == count, "{}: a group has {} rows of {count}", path.display(), own.len());
            places.extend((0..count).map(|row| (files.len(), group, row)));
            rows.extend(own);
        }
        files.push(table);
    }
    ensure!(!rows.is_empty(), "it holds no rows");
    Ok(Dataset { rows, pictures: Store::Parquet { files, rows: places, last: Mutex::default() }, notes })
}

/// Rows of columns of one length, without nulls.
fn rows_of(texts: [Vec<Option<String>>; 4], flags: Vec<Option<bool>>) -> Result<Vec<Row>> {
    let count = flags.len();
    ensure!(texts.iter().all(|column| column.len() == count), "its columns differ in length");
    let [mut tasks, mut keys, mut instructions, mut languages] = texts;
    let row = |(at, intersection): (usize, Option<bool>)| {
        let mut all = || {
            Some(Row {
                task: tasks[at].take()?,
                key: keys[at].take()?,
                instruction: instructions[at].take()?,
                language: languages[at].take()?,
                intersection: intersection?,
            })
        };
        all().with_context(|| format!("row {at} lacks a value"))
    };
    flags.into_iter().enumerate().map(row).collect()
}

impl Store {
    /// The picture of a row: the first of these columns that has one.
    fn picture(&self, row: usize, names: [&'static str; 2]) -> Result<Vec<u8>> {
        match self {
            Store::Arrow(places) => {
                let (file, places) = places.get(row).context("there is no such row")?;
                let place = names.iter().find_map(|name| places[usize::from(*name == SMALL)].clone());
                let place = place.context("the row has no picture")?;
                read_range(file, place.start, (place.end - place.start) as usize).context("the dataset's file")
            }
            Store::Parquet { files, rows, last } => {
                let &(file, group, at) = rows.get(row).context("there is no such row")?;
                let mut held = last.lock().unwrap_or_else(PoisonError::into_inner);
                for name in names.into_iter().filter(|name| files[file].has(name)) {
                    let key = (file, group, name);
                    if !held.contains_key(&key) {
                        if held.len() >= HELD {
                            held.clear();
                        }
                        held.insert(key, Arc::new(files[file].column(group, name)?));
                    }
                    if let Some(bytes) = held[&key].get(at).cloned().flatten() {
                        return Ok(bytes);
                    }
                }
                bail!("the row has no picture")
            }
        }
    }
}

impl Pictures for Store {
    fn bytes(&self, row: usize) -> Result<Vec<u8>> {
        self.picture(row, [RAW, SMALL])
    }

    fn source_copy(&self, row: usize) -> Result<Vec<u8>> {
        self.picture(row, [SMALL, RAW])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::batch::sha256;

    const MINI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gedit_mini");

    /// What `datasets` wrote, against what its author says is in it.
    #[test]
    fn rows_and_pictures_are_those_that_were_written() {
        let expected = fs::read_to_string(Path::new(MINI).join("expected.jsonl")).unwrap();
        let expected: Vec<Value> = expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for path in [MINI.to_string(), format!("{MINI}/train.parquet")] {
            let dataset = Dataset::open(path.as_ref()).unwrap_or_else(|error| panic!("{path}: {error:#}"));
            assert_eq!((dataset.rows.len(), dataset.notes.len()), (expected.len(), 0), "{path}");
            for (at, (row, expected)) in dataset.rows.iter().zip(&expected).enumerate() {
                for (name, value) in [
                    ("task_type", &row.task),
                    ("key", &row.key),
                    ("instruction", &row.instruction),
                    ("instruction_language", &row.language),
                ] {
                    assert_eq!(expected[name], **value, "{path}, row {at}");
                }
                assert_eq!(expected["Intersection_exist"], row.intersection);
                assert_eq!(
                    expected["input_image_sha256"],
                    sha256(&dataset.pictures.source_copy(at).unwrap()),
                    "{path}, row {at}"
                );
                assert_eq!(expected["input_image_raw_sha256"], sha256(&dataset.pictures.bytes(at).unwrap()), "{path}, row {at}");
            }
        }
    }

    #[test]
    fn the_list_of_files_has_a_limit_and_stays_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let error = || format!("{:#}", Dataset::open(dir.path()).map(drop).unwrap_err());
        assert!(error().contains("neither state.json nor"));
        fs::write(dir.path().join("state.json"), "{\"_data_files\": [{\"filename\": \"../a.arrow\"}]}").unwrap();
        assert!(error().contains("no files of its folder"));
        let state = File::create(dir.path().join("state.json")).unwrap();
        for (length, limit) in [(STATE_BYTES_MAX, false), (STATE_BYTES_MAX + 1, true)] {
            state.set_len(length).unwrap();
            assert_eq!(error().contains("more than"), limit, "{}", error());
        }
    }
}
