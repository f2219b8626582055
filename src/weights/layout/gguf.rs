//! A text encoder in files of llama.cpp: one has the text model, another beside it, called `mmproj`, the vision tower.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::file::WeightFile;
use super::super::words::{listed, shown};
use super::super::{ModelError, Result};
use super::{MOST_LOOKED_AT, names_in};

const EXTENSION: &str = ".gguf";
/// What is in the names of files with a vision tower.
const VISION: &str = "mmproj";

/// What llama.cpp calls Qwen2.5-VL's text model, a vision tower of any model, and that of Qwen2.5-VL.
const TEXT_MODEL: &str = "qwen2vl";
const TOWER: &str = "clip";
const MERGER: &str = "qwen2.5vl_merger";

/// Whether a file begins as GGUF files do.
pub(super) fn is_at(path: &Path) -> bool {
    use std::io::Read;
    let mut first = [0; 4];
    path.is_file() && std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == *b"GGUF"
}

/// The two files of the text encoder whose text model is in this one: text model, vision tower. `tower`: the one that the user names.
///
/// # Errors
/// It is something else, or there is no vision tower beside it, or several.
pub(super) fn with_tower(text: &Path, tower: Option<&Path>) -> Result<[PathBuf; 2]> {
    open_text(text)?;
    if let Some(tower) = tower {
        return Ok([text.to_path_buf(), tower.to_path_buf()]);
    }
    let folder = text.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let towers: Vec<String> = files(folder)?.into_iter().filter(|name| is_tower(name)).collect();
    match &towers[..] {
        [tower] => Ok([text.to_path_buf(), text.with_file_name(tower)]),
        [] => {
            let fault = "this is the text model alone; put the vision tower beside it, a file such as mmproj-F16.gguf that is published \
                         with it, or name it with --mmproj";
            Err(ModelError::new(fault).at(text))
        }
        _ => {
            let fault =
                format!("several files beside it have a vision tower; choose one with --mmproj{}", listed("there", &towers));
            Err(ModelError::new(fault).at(text))
        }
    }
}

/// The two files of the only text encoder among those of a folder.
///
/// # Errors
/// There are several, or it has no vision tower.
pub(super) fn find(folder: &Path, tower: Option<&Path>) -> Result<Option<[PathBuf; 2]>> {
    let of_text = |path: &PathBuf| is_at(path) && open_text(path).is_ok();
    let names = files(folder)?.into_iter().filter(|name| !is_tower(name)).take(MOST_LOOKED_AT);
    let found: Vec<PathBuf> = names.map(|name| folder.join(name)).filter(of_text).collect();
    match &found[..] {
        [] => Ok(None),
        [only] => with_tower(only, tower).map(Some),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let fault =
                format!("the folder holds several text encoders; choose one with --text-encoder{}", listed("there", &names));
            Err(ModelError::new(fault).at(folder))
        }
    }
}

/// The vision tower that the user names.
///
/// # Errors
/// There is no such file.
pub(super) fn named(tower: &Path) -> Result<()> {
    match tower.is_file() {
        true => Ok(()),
        false => Err(ModelError::new("there is no such file; give --mmproj the vision tower's .gguf (docs/models.md)").at(tower)),
    }
}

fn files(folder: &Path) -> Result<Vec<String>> {
    if !folder.is_dir() {
        return Ok(vec![]);
    }
    let mut names = names_in(folder)?;
    names.retain(|name| name.to_ascii_lowercase().ends_with(EXTENSION));
    Ok(names)
}

fn is_tower(name: &str) -> bool {
    name.to_ascii_lowercase().contains(VISION)
}

/// Opens the file of a text model.
///
/// # Errors
/// A fault of its header, or another model.
pub(super) fn open_text(path: &Path) -> Result<WeightFile> {
    let file = WeightFile::open_gguf(path)?;
    match said(&file, "general.architecture") {
        TEXT_MODEL => Ok(file),
        TOWER => {
            let fault = "this is a vision tower; give --text-encoder the file of the text model, and leave this one beside it";
            Err(ModelError::new(fault).at(path))
        }
        other => {
            let fault = format!("this is a GGUF file of the architecture \"{}\"; of GGUF files", shown(other));
            let read = format!("{fault} the text encoder Qwen2.5-VL, {TEXT_MODEL}, is read (docs/models.md)");
            Err(ModelError::new(read).at(path))
        }
    }
}

/// Opens the file of a vision tower.
///
/// # Errors
/// A fault of its header, or that of another model.
pub(super) fn open_vision(path: &Path) -> Result<WeightFile> {
    let file = WeightFile::open_gguf(path)?;
    let kind = match said(&file, "clip.vision.projector_type") {
        "" => said(&file, "clip.projector_type"),
        kind => kind,
    };
    if kind == MERGER {
        return Ok(file);
    }
    let fault = format!("this is a vision tower of the kind \"{}\", where Qwen2.5-VL has {MERGER}", shown(kind));
    Err(ModelError::new(format!("{fault}; put the one that is published with the text model in its place")).at(path))
}

fn said<'f>(file: &'f WeightFile, note: &str) -> &'f str {
    file.notes().get(note).and_then(Value::as_str).unwrap_or_default()
}
