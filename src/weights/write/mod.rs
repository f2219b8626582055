//! Synthetic safetensors files and model folders, written as a stream.
//!
//! Memory is two buffers of 64 MiB at any model size: one is filled while the other is being written.
//! A file appears under its name only when complete; a folder that fails is taken back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

use serde_json::{Map, Value, json};

use super::file::dtype_name;
use super::json::METADATA;
use super::splitmix::Splitmix;
use super::{ModelError, Result};
use crate::aside::Aside;
use crate::error::no_thread;
use crate::tensor::{DType, Shape, Spec};

/// Bytes of each of the two buffers.
const BUFFER_BYTES: usize = 64 << 20;

/// Headers are padded to a multiple of this, so that the first tensor is aligned.
const ALIGNMENT: usize = 8;

/// A tensor to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Its name in the file.
    pub name: String,
    /// Its extents and float dtype: bf16 for DiT and Qwen, f32 for the VAE in the released files.
    pub spec: Spec,
    /// The tensor that it has its values of; none if its own name and extents make them.
    pub of: Option<Excerpt>,
}

impl PlannedTensor {
    /// A tensor with values of its own.
    pub fn new(name: impl Into<String>, spec: Spec) -> PlannedTensor {
        PlannedTensor { name: name.into(), spec, of: None }
    }

    /// Its values' generator, and the places in it that they are of, in order.
    fn values(&self, seed: u64) -> (Splitmix, Vec<Range<usize>>) {
        match &self.of {
            None => (Splitmix::new(&self.name, &self.spec.shape, seed), vec![0..self.spec.shape.elements()]),
            Some(Excerpt { name, shape, rows }) => {
                let row: usize = shape.0.iter().skip(1).product();
                (Splitmix::new(name, shape, seed), rows.iter().map(|rows| rows.start * row..rows.end * row).collect())
            }
        }
    }
}

/// Rows of another tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The other tensor's name.
    pub name: String,
    /// Its extents.
    pub shape: Shape,
    /// The rows, in the order in which they are taken.
    pub rows: Vec<Range<usize>>,
}

/// A file of weights to be made, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its path in the model's folder, without `.safetensors`.
    pub stem: &'static str,
    /// What it holds.
    pub tensors: Vec<PlannedTensor>,
    /// Most bytes of a shard, with an index beside them (a larger tensor has its own); none if it is one file.
    pub shard_bytes: Option<u64>,
}

/// Writes a synthetic model: these files of weights, and small files of these paths and bytes.
///
/// `dir` must not exist or be empty, its parent must exist. `progress` is told, now and then, the bytes of tensors done and in
/// all, and says whether to go on.
///
/// Fails, taking back what it wrote, when a name is planned twice, a dtype is not a float, the disk has no
/// room, the system refuses, or `progress` says stop; with a [`crate::error::ResourceError`] when no thread can be started.
pub fn write_model(
    dir: &Path,
    planned: &[PlannedFile],
    small: &[(&str, Vec<u8>)],
    seed: u64,
    progress: &dyn Fn(u64, u64) -> bool,
) -> anyhow::Result<()> {
    check_absent_or_empty(dir)?;
    let (mut files, mut indexes) = (Vec::new(), Vec::new());
    for planned in planned {
        let (shards, index) = plan_file(dir, planned, seed)?;
        files.extend(shards);
        indexes.extend(index);
    }
    check_room(&parent(dir), files.iter().map(FilePlan::bytes).sum())?;

    let mut written = Written::default();
    written.folder(dir)?;
    let small = small.iter().map(|(path, bytes)| (dir.join(path), bytes.clone())).chain(indexes);
    for (path, bytes) in small {
        written.folder(&parent(&path))?;
        written.small(path, &bytes)?;
    }
    let total = files.iter().map(|file| file.data_bytes).sum();
    let mut done = 0;
    for file in &files {
        written.folder(&parent(&file.path))?;
        written.paths.push(file.path.clone());
        file.write(seed, BUFFER_BYTES, &mut |bytes| {
            done += bytes;
            progress(done, total)
        })?;
    }
    written.paths.clear();
    Ok(())
}

/// Whether a model can be made at `dir`: its parent is a folder, and it is an empty one or not there.
pub fn check_absent_or_empty(dir: &Path) -> Result<()> {
    let above = parent(dir);
    if !above.is_dir() {
        return Err(ModelError::new(format!(
            "{}: cannot make a model here, {} is not a folder; create that first",
            dir.display(),
            above.display()
        )));
    }
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let fault = "the folder is not empty; name one that does not exist yet";
            Err(ModelError::new(fault).at(dir))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(ModelError::io("make a model here", dir, &e)),
    }
}

fn parent(path: &Path) -> PathBuf {
    let above = path.parent().filter(|p| !p.as_os_str().is_empty());
    above.unwrap_or(Path::new(".")).to_path_buf()
}

#[cfg(unix)]
fn check_room(dir: &Path, needed: u64) -> Result<()> {
    let disk = rustix::fs::statvfs(dir).map_err(|e| ModelError::io("ask its free space", dir, &e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed > free {
        return Err(ModelError::new(format!(
            "{}: the model takes {needed} bytes, but {free} are free; choose another disk",
            dir.display()
        )));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_room(_dir: &Path, _needed: u64) -> Result<()> {
    Ok(())
}

/// Path and bytes of a file that holds no weights.
type SmallFile = (PathBuf, Vec<u8>);

/// The files of one planned file, and the index if these are shards.
fn plan_file<'a>(dir: &Path, planned: &'a PlannedFile, seed: u64) -> Result<(Vec<FilePlan<'a>>, Option<SmallFile>)> {
    let PlannedFile { stem, tensors, shard_bytes } = planned;
    let mut sorted: Vec<_> = tensors.iter().collect();
    let Some(limit) = *shard_bytes else {
        return Ok((vec![synthetic(dir.join(format!("{stem}.safetensors")), sorted, seed)?], None));
    };
    sorted.sort_by_key(|t| &t.name);
    let mut shards: Vec<Vec<&PlannedTensor>> = Vec::new();
    let mut room = 0;
    for tensor in sorted {
        let bytes = tensor.spec.bytes() as u64;
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                shard.push(tensor);
                room -= bytes;
            }
            _ => {
                shards.push(vec![tensor]);
                room = limit.saturating_sub(bytes);
            }
        }
    }
    let (count, plain) = (shards.len(), stem.rsplit('/').next().unwrap_or(stem));
    let mut weight_map = Map::new();
    let mut files = Vec::new();
    for (i, shard) in shards.into_iter().enumerate() {
        let name = format!("{plain}-{:05}-of-{count:05}.safetensors", i + 1);
        for tensor in &shard {
            weight_map.insert(tensor.name.clone(), Value::from(name.as_str()));
        }
        files.push(synthetic(parent(&dir.join(stem)).join(name), shard, seed)?);
    }
    let total_size: u64 = files.iter().map(|file| file.data_bytes).sum();
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    Ok((files, Some((dir.join(format!("{stem}.safetensors.index.json")), index.to_string().into_bytes()))))
}

/// A file's plan with metadata that tells how it was made.
fn synthetic(path: PathBuf, tensors: Vec<&PlannedTensor>, seed: u64) -> Result<FilePlan<'_>> {
    let seed = seed.to_string();
    let metadata = [("format", "pt"), ("synthetic", "splitmix-v1"), ("seed", &seed)];
    FilePlan::new(path, tensors, &metadata)
}

/// Folders and files made so far; on drop, unless cleared, they are removed again.
#[derive(Default)]
struct Written {
    paths: Vec<PathBuf>,
}

impl Written {
    fn folder(&mut self, dir: &Path) -> Result<()> {
        match fs::create_dir(dir) {
            Ok(()) => self.paths.push(dir.to_path_buf()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(ModelError::io("create it", dir, &e)),
        }
        Ok(())
    }

    fn small(&mut self, path: PathBuf, bytes: &[u8]) -> Result<()> {
        self.paths.push(path.clone());
        fs::write(&path, bytes).map_err(|e| ModelError::io("write it", &path, &e))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for path in self.paths.iter().rev() {
            let _ = match path.is_dir() {
                true => fs::remove_dir(path),
                false => fs::remove_file(path),
            };
        }
    }
}

/// A file about to be written.
struct FilePlan<'a> {
    path: PathBuf,
    /// Length field, JSON and padding.
    header: Vec<u8>,
    /// In the order of their names and bytes.
    tensors: Vec<&'a PlannedTensor>,
    data_bytes: u64,
}

impl<'a> FilePlan<'a> {
    fn new(path: PathBuf, mut tensors: Vec<&'a PlannedTensor>, metadata: &[(&str, &str)]) -> Result<Self> {
        tensors.sort_by_key(|t| &t.name);
        let mut header = Map::new();
        if !metadata.is_empty() {
            let text = metadata.iter().map(|&(k, v)| (k.to_string(), v.into()));
            header.insert(METADATA.to_string(), Value::Object(text.collect()));
        }
        let mut end = 0;
        for PlannedTensor { name, spec, .. } in &tensors {
            if matches!(spec.dtype, DType::I32 | DType::U8) {
                let fault = format!("cannot make {name} synthetic: {spec} is not of a float type");
                return Err(ModelError::new(fault).at(&path));
            }
            let begin = end;
            end += spec.bytes() as u64;
            let entry = json!({
                "dtype": dtype_name(spec.dtype), "shape": spec.shape.0, "data_offsets": [begin, end]
            });
            if name == METADATA || header.insert(name.clone(), entry).is_some() {
                let fault = format!("cannot write {name:?}: the name is taken");
                return Err(ModelError::new(fault).at(&path));
            }
        }
        let mut json = Value::Object(header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        Ok(FilePlan { path, header, tensors, data_bytes: end })
    }

    /// Length of the file.
    fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }

    /// Writes it aside, then renames; `progress` gets the bytes of each buffer.
    fn write(&self, seed: u64, buffer: usize, progress: &mut dyn FnMut(u64) -> bool) -> anyhow::Result<()> {
        let mut aside = Aside::create(&parent(&self.path)).map_err(|e| self.fault(e))?;
        aside.file().write_all(&self.header).map_err(|e| self.fault(e))?;
        self.stream(aside.file(), seed, buffer, progress)?;
        Ok(aside.rename(&self.path).map_err(|e| self.fault(e))?)
    }

    fn fault(&self, error: io::Error) -> ModelError {
        ModelError::io("write it", &self.path, &error)
    }

    /// Fills buffers on this thread, and rayon's, while another writes them.
    fn stream(&self, file: &mut File, seed: u64, buffer: usize, progress: &mut dyn FnMut(u64) -> bool) -> anyhow::Result<()> {
        let (full, to_write) = sync_channel::<(Vec<u8>, usize)>(1);
        let (written, empty) = channel();
        let capacity = usize::try_from(self.data_bytes).map_or(buffer, |n| n.min(buffer));
        thread::scope(|scope| {
            let write = move || -> io::Result<()> {
                for (bytes, filled) in to_write {
                    file.write_all(&bytes[..filled])?;
                    // The filler may have all it needs and be gone.
                    let _ = written.send(bytes);
                }
                Ok(())
            };
            let writer = thread::Builder::new().spawn_scoped(scope, write).map_err(no_thread)?;
            let mut filler =
                Filler { full, empty, spare: Some(vec![0; capacity]), buffer: vec![0; capacity], filled: 0, progress };
            let filled = filler.fill(&self.tensors, seed);
            drop(filler);
            let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.map_err(|e| self.fault(e))?;
            // The writer has not failed, so whoever watches the progress has said to stop.
            filled.ok_or_else(|| self.fault(io::Error::new(io::ErrorKind::Interrupted, "stopped")).into())
        })
    }
}

/// The filling side of a stream; its steps give `None` once nobody writes what they fill, or the progress says stop.
struct Filler<'a> {
    full: SyncSender<(Vec<u8>, usize)>,
    empty: Receiver<Vec<u8>>,
    spare: Option<Vec<u8>>,
    buffer: Vec<u8>,
    filled: usize,
    progress: &'a mut dyn FnMut(u64) -> bool,
}

impl Filler<'_> {
    fn fill(&mut self, tensors: &[&PlannedTensor], seed: u64) -> Option<()> {
        for tensor in tensors {
            let (values, ranges) = tensor.values(seed);
            ranges.into_iter().try_for_each(|range| self.fill_from(&values, range, tensor.spec.dtype))?;
        }
        self.flush()
    }

    /// Puts these elements behind what the buffer holds.
    fn fill_from(&mut self, values: &Splitmix, range: Range<usize>, dtype: DType) -> Option<()> {
        let (size, mut next) = (dtype.bytes(), range.start);
        while next < range.end {
            let room = (self.buffer.len() - self.filled) / size;
            if room == 0 {
                self.flush()?;
                continue;
            }
            let count = room.min(range.end - next);
            let end = self.filled + count * size;
            values.fill(next as u64, dtype, &mut self.buffer[self.filled..end]);
            (self.filled, next) = (end, next + count);
        }
        Some(())
    }

    /// Hands the buffer on and takes the other one.
    fn flush(&mut self) -> Option<()> {
        let full = std::mem::take(&mut self.buffer);
        let filled = std::mem::take(&mut self.filled);
        self.full.send((full, filled)).ok()?;
        self.buffer = match self.spare.take() {
            Some(buffer) => buffer,
            None => self.empty.recv().ok()?,
        };
        (self.progress)(filled as u64).then_some(())
    }
}

#[cfg(test)]
pub(super) mod tests;
