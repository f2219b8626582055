//! Manifests: files that name pictures and what to do with them, in the forms that people have.
//!
//! | form | what |
//! |---|---|
//! | official | one JSON object, `{file name: prompt}` |
//! | training metadata | one JSON object, `{target: {"ref_image_path": .., "caption": ..}}` |
//! | list | one JSON list of items |
//! | JSONL | one item a line |
//! | folder | `metadata.jsonl` in it, else its pictures, all with one prompt |

mod object;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use self::object::{Members, PAIRS};
use super::item::{Item, Source, is_item};

/// Most bytes of a manifest: a million items of a thousand bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// What a folder of the Hugging Face `datasets` library has beside its pictures.
const METADATA: &str = "metadata.jsonl";

/// Endings of files that are taken for pictures in a folder.
const PICTURES: [&str; 10] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "jxl", "jpe"];

/// How a manifest is to be read.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// The folder that pictures' paths are relative to; none: the manifest's.
    pub input_dir: Option<PathBuf>,
    /// Pairs of own and other names of members.
    pub map: Vec<(String, String)>,
    /// The prompt of all pictures of a folder.
    pub prompt: Option<String>,
}

/// What a manifest holds.
#[derive(Debug)]
pub struct Manifest {
    /// The last part of its path.
    pub name: String,
    /// What its digest is taken of.
    pub bytes: Vec<u8>,
    /// In its order; at least one.
    pub items: Vec<Item>,
}

impl Reader {
    /// Reads a manifest.
    ///
    /// # Errors
    /// It cannot be read, is of no known form, or holds no items; the message names the line.
    pub fn read(&self, path: &Path) -> Result<Manifest> {
        let shown = path.display();
        let found = fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => anyhow!("there is no manifest {shown}; give a JSON or JSONL file, or a folder of pictures"),
            _ => anyhow!("cannot read the manifest {shown}: {error}"),
        })?;
        let name = fs::canonicalize(path).ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let name = name.unwrap_or_else(|| shown.to_string());
        let metadata = path.join(METADATA);
        let (bytes, items) = match found.is_dir() {
            true if metadata.is_file() => self.file(&metadata)?,
            true => self.folder(path)?,
            false => self.file(path)?,
        };
        ensure!(!items.is_empty(), "the manifest {shown} holds no items");
        Ok(Manifest { name, bytes, items })
    }

    /// One line of JSONL; none: it is blank. The picture's path is relative to `folder`.
    ///
    /// # Errors
    /// No JSON object, or no item.
    pub fn line(&self, number: usize, line: &str, folder: &Path) -> Result<Option<Item>> {
        if line.trim().is_empty() {
            return Ok(None);
        }
        let place = format!("line {number}");
        let item = || {
            let value: Value = serde_json::from_str(line).map_err(|error| anyhow!("it is no JSON ({})", words(&error)))?;
            let Value::Object(members) = value else { bail!("it is no JSON object; write one object a line") };
            self.item(place.clone(), members, folder)
        };
        item().map(Some).context(place.clone())
    }

    fn file(&self, path: &Path) -> Result<(Vec<u8>, Vec<Item>)> {
        let shown = path.display();
        ensure!(self.prompt.is_none(), "-p is for a folder of pictures; {shown} says itself what to do");
        let read = || {
            let length = fs::metadata(path)?.len();
            ensure!(length <= MANIFEST_BYTES_MAX, "it has {length} bytes; at most {MANIFEST_BYTES_MAX} can be read; split it");
            let bytes = fs::read(path)?;
            let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
            let items = self.text(utf8(&bytes)?, &folder, is_lines(path))?;
            Ok((bytes, items))
        };
        read().with_context(|| format!("cannot read the manifest {shown}"))
    }

    /// The items of a text: `lines` if its name says JSONL.
    fn text(&self, text: &str, folder: &Path, lines: bool) -> Result<Vec<Item>> {
        let text = text.trim_start_matches('\u{feff}');
        ensure!(!text.trim().is_empty(), "it is empty");
        let first = text.trim_start().chars().next();
        if first == Some('[') {
            return self.list(text, folder);
        }
        ensure!(
            first == Some('{'),
            "it begins with {}; a manifest is a JSON object, a JSON list or JSONL (tables such as CSV are not read)",
            text.trim_start().chars().take(20).collect::<String>().escape_debug()
        );
        // One object may be a list of items by name, or the only line of JSONL.
        let whole = if lines { None } else { Some(serde_json::from_str::<Members>(text)) };
        match whole {
            Some(Ok(Members(members))) if !is_item(&members.iter().cloned().collect()) => self.object(members, folder),
            Some(Err(error)) if error.is_data() || !looks_like_lines(text) => Err(anyhow!("it is no JSON ({})", words(&error))),
            _ => self.lines(text, folder),
        }
    }

    fn lines(&self, text: &str, folder: &Path) -> Result<Vec<Item>> {
        (1..).zip(text.lines()).filter_map(|(number, line)| self.line(number, line, folder).transpose()).collect()
    }

    fn list(&self, text: &str, folder: &Path) -> Result<Vec<Item>> {
        let entries: Vec<Value> = serde_json::from_str(text).map_err(|error| anyhow!("it is no JSON ({})", words(&error)))?;
        let item = |(number, entry): (usize, Value)| {
            let place = format!("entry {number}");
            let item = match entry {
                Value::Object(members) => self.item(place.clone(), members, folder),
                _ => Err(anyhow!("it is no object")),
            };
            item.context(place)
        };
        (1..).zip(entries).map(item).collect()
    }

    /// Items by name: a prompt for each picture, or an object for each.
    fn object(&self, members: Vec<(String, Value)>, folder: &Path) -> Result<Vec<Item>> {
        let item = |(name, value): (String, Value)| {
            let place = format!("entry {name:?}");
            let item = match value {
                Value::String(prompt) => {
                    let pair =
                        PAIRS.iter().map(|own| own.to_string()).zip([Value::String(name), Value::String(prompt)]).collect();
                    self.item(place.clone(), pair, folder)
                }
                Value::Object(mut members) => {
                    let target = Path::new(&name).file_stem().map(|stem| stem.to_string_lossy().into_owned());
                    members.entry("id").or_insert(Value::String(target.unwrap_or(name)));
                    self.item(place.clone(), members, folder)
                }
                _ => Err(anyhow!("it is neither a prompt nor an object with a picture and a prompt")),
            };
            item.context(place)
        };
        members.into_iter().map(item).collect()
    }

    fn item(&self, place: String, members: Map<String, Value>, folder: &Path) -> Result<Item> {
        let mut item = Item::of(place, members, &self.map)?;
        item.source = Source::File(self.input_dir.as_deref().unwrap_or(folder).join(&item.image));
        Ok(item)
    }

    fn folder(&self, folder: &Path) -> Result<(Vec<u8>, Vec<Item>)> {
        let shown = folder.display();
        let prompt = self.prompt.as_ref().with_context(|| {
            format!("{shown} is a folder without {METADATA}; say with -p what to do with its pictures, or name a manifest")
        })?;
        ensure!(
            self.input_dir.is_none(),
            "--input-dir says where a manifest's pictures are; {shown} is a folder of pictures itself"
        );
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read the folder {shown}"))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.with_context(|| format!("cannot read the folder {shown}"))?.file_name();
            let ending = Path::new(&name).extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
            if ending.is_some_and(|ending| PICTURES.contains(&ending.as_str())) && folder.join(&name).is_file() {
                let text = name.to_str().map(str::to_string);
                names.push(text.with_context(|| format!("{shown}: the name {name:?} is not UTF-8; rename the picture"))?);
            }
        }
        names.sort_unstable();
        ensure!(!names.is_empty(), "the folder {shown} holds no pictures ({})", PICTURES.join(", "));
        let bytes = format!("{prompt}\n{}", names.join("\n")).into_bytes();
        let item = |name: String| {
            let pair = PAIRS.iter().map(|own| own.to_string()).zip([Value::String(name.clone()), Value::String(prompt.clone())]);
            self.item(format!("picture {name:?}"), pair.collect(), folder)
        };
        Ok((bytes, names.into_iter().map(item).collect::<Result<_>>()?))
    }
}

fn is_lines(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "jsonl" || ending == "ndjson")
}

/// Whether a text has an object at the beginning of more than one line, or one that ends where the line does.
fn looks_like_lines(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.next().is_some_and(|line| line.trim_end().ends_with('}')) || lines.any(|line| line.starts_with('{'))
}

/// The text of a file.
fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        let other = if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) { " (it is UTF-16)" } else { "" };
        anyhow!("line {line} is not UTF-8{other}; save the file as UTF-8")
    })
}

/// What a parser says, without what it says of itself.
fn words(error: &serde_json::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
