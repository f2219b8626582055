//! One file of weights, on disk, or part of the program: of safetensors, or of llama.cpp (`gguf.rs`).
//!
//! Layout of safetensors: u64 little-endian N; N bytes of JSON, `{"name": {"dtype", "shape", "data_offsets"}, …}`, with an
//! optional `__metadata__`; then the tensors, row-major, little-endian, densely packed in the order of their
//! offsets, which count from the end of the header. Accepted only if they fill the file without gap or overlap.

mod blocks;
mod gguf;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use self::blocks::Blocks;
pub use self::gguf::{Notes, parse_gguf};
use super::foreign::{FIRST, what_bytes, what_names};
use super::json::Named;
use super::words::{remark, shown};
use super::{ModelError, Result, heads};
use crate::tensor::{Component, DType, Shape, Spec};

/// Largest header accepted, in bytes; that of the largest released file has about 90,000. A tensor of it takes eight times its text.
const MAX_HEADER_BYTES: u64 = 16_000_000;

/// Bytes of the header's length.
const LENGTH_BYTES: u64 = 8;

const INCOMPLETE: &str = "the download is probably incomplete: fetch the file again";

/// Where a tensor lies in its file, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Element type and extents.
    pub spec: Spec,
    /// Bytes from the start of the file; as many as `spec` needs.
    pub range: Range<usize>,
    /// What the bytes are blocks of; `spec` is then that of the bytes, row by row.
    pub blocks: Option<Blocks>,
}

/// A file of weights, its header validated; tensors are read when they are asked for.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    content: Content,
    entries: BTreeMap<String, Entry>,
    notes: Notes,
}

/// Where the bytes of a file are.
#[derive(Debug)]
enum Content {
    /// On disk, so many when it was opened.
    Disk(File, u64),
    Embedded(&'static [u8]),
}

impl WeightFile {
    /// Opens the file, reads its header and validates it; no tensor is read.
    ///
    /// Fails when it is not a readable regular file, or for any fault of its header (see [`parse_header`]), naming the file.
    pub fn open(path: &Path) -> Result<WeightFile> {
        let (file, len) = regular(path, "a .safetensors file")?;
        let header = read_header(&file, len, path)?;
        let entries = parse_header(&header, len).map_err(|e| e.at(path))?;
        Ok(WeightFile { path: path.to_path_buf(), content: Content::Disk(file, len), entries, notes: Notes::new() })
    }

    /// Opens a GGUF file, reads its header and validates it; no tensor is read.
    ///
    /// Fails when it is not a readable regular file, or for any fault of its header (see [`parse_gguf`]), naming the file.
    pub fn open_gguf(path: &Path) -> Result<WeightFile> {
        let (file, len) = regular(path, "a .gguf file")?;
        let mut header = Vec::new();
        let read = (&file).take(gguf::MAX_HEADER_BYTES).read_to_end(&mut header);
        read.map_err(|e| ModelError::io("read its header", path, &e))?;
        let (entries, notes) = parse_gguf(&header, len).map_err(|e| e.at(path))?;
        Ok(WeightFile { path: path.to_path_buf(), content: Content::Disk(file, len), entries, notes })
    }

    /// Whether names say that tensors of this part of a model are in the file, beside others.
    pub fn has(&self, component: Component) -> bool {
        self.entries.keys().any(|name| heads::part(name) == Some(component))
    }

    /// The file without what its names say are other parts of a model.
    pub fn only(mut self, component: Component) -> WeightFile {
        let own = |name: &str| heads::part(name).is_none_or(|part| part == component && !heads::is_idle(name));
        self.entries.retain(|name, _| own(name));
        self
    }

    /// What a GGUF file says of its model; nothing of a safetensors file.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// What the bytes of a tensor are blocks of, if they are.
    pub fn blocks(&self, name: &str) -> Option<Blocks> {
        self.entries.get(name)?.blocks
    }

    /// A file that is part of the program; `name` stands for its path.
    ///
    /// # Errors
    /// Any fault of its header (see [`parse_header`]), naming the file.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<WeightFile> {
        let entries = parse_header(bytes, bytes.len() as u64).map_err(|e| e.at(Path::new(name)))?;
        Ok(WeightFile { path: name.into(), content: Content::Embedded(bytes), entries, notes: Notes::new() })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file in bytes, header included.
    pub fn bytes(&self) -> u64 {
        match &self.content {
            Content::Disk(_, len) => *len,
            Content::Embedded(bytes) => bytes.len() as u64,
        }
    }

    /// All tensors by stored name, in the names' order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.entries.len()
    }

    /// What the tensor of this stored name is.
    pub fn spec(&self, name: &str) -> Option<&Spec> {
        self.entries.get(name).map(|entry| &entry.spec)
    }

    /// The little-endian bytes of a whole tensor.
    ///
    /// # Errors
    /// As of [`read_at`](WeightFile::read_at).
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.entries.get(name).map_or(0, |entry| entry.range.len())];
        self.read_at(name, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// What the header says beside its tensors.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        #[derive(Deserialize)]
        struct Beside {
            #[serde(rename = "__metadata__", default)]
            metadata: BTreeMap<String, Value>,
        }
        let mut length = [0; LENGTH_BYTES as usize];
        self.read_raw(0, &mut length)?;
        // The header has been read before, so its length is one that is accepted.
        let mut header = vec![0; u64::from_le_bytes(length).min(MAX_HEADER_BYTES) as usize];
        self.read_raw(LENGTH_BYTES as usize, &mut header)?;
        let beside = serde_json::from_slice::<Beside>(&header).map_or(BTreeMap::new(), |beside| beside.metadata);
        Ok(beside.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_string()))).collect())
    }

    /// SHA-256 of the whole file, in hexadecimal digits.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn sha256(&self) -> Result<String> {
        const PART: usize = 4 << 20;
        let (all, mut hash) = (self.bytes() as usize, Sha256::new());
        let mut bytes = vec![0; PART.min(all)];
        for at in (0..all).step_by(PART) {
            let part = &mut bytes[..PART.min(all - at)];
            self.read_raw(at, part)?;
            hash.update(part);
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Reads bytes of a tensor from `offset` on.
    ///
    /// # Errors
    /// No such tensor, bytes beyond its end, or what the file system reports; a file that has been cut off since it was
    /// opened is told from others.
    pub fn read_at(&self, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| ModelError::new(format!("there is no tensor {}", shown(name))).at(&self.path))?;
        if entry.range.len().checked_sub(offset).is_none_or(|left| left < bytes.len()) {
            return Err(ModelError::new(format!("cannot read beyond the end of tensor {}", shown(name))).at(&self.path));
        }
        self.read_raw(entry.range.start + offset, bytes)
    }

    /// Lets the system forget what it has in memory of a tensor: it is advice, and nothing depends on it.
    pub fn give_back(&self, name: &str) {
        #[cfg(target_os = "linux")]
        if let (Content::Disk(file, _), Some(entry)) = (&self.content, self.entries.get(name)) {
            let length = std::num::NonZeroU64::new(entry.range.len() as u64);
            let _ = rustix::fs::fadvise(file, entry.range.start as u64, length, rustix::fs::Advice::DontNeed);
        }
    }

    fn read_raw(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        match &self.content {
            Content::Disk(file, len) => read_exact_at(file, at as u64, bytes).map_err(|e| self.unread(file, *len, &e)),
            Content::Embedded(all) => {
                bytes.copy_from_slice(&all[at..at + bytes.len()]);
                Ok(())
            }
        }
    }

    /// Why a read failed: the file has become shorter than the `len` bytes it had, or what the system says.
    fn unread(&self, file: &File, len: u64, error: &std::io::Error) -> ModelError {
        if error.kind() != std::io::ErrorKind::UnexpectedEof {
            return ModelError::io("read it", &self.path, error);
        }
        let now = file.metadata().map_or_else(|e| e.to_string(), |metadata| format!("has {} now", metadata.len()));
        let fault = format!("the file had {len} bytes when it was opened and {now}; something has cut it off; fetch it again");
        ModelError::new(fault).at(&self.path)
    }
}

/// A file that is open, and its length.
fn regular(path: &Path, wanted: &str) -> Result<(File, u64)> {
    let io = |e: std::io::Error| ModelError::io("open it", path, &e);
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(ModelError::new(format!("this is not a regular file; give {wanted}")).at(path));
    }
    Ok((file, metadata.len()))
}

/// The beginning of a file of `len` bytes, up to the end of its header, which is no longer than is accepted.
fn read_header(file: &File, len: u64, path: &Path) -> Result<Vec<u8>> {
    let io = |e: std::io::Error| ModelError::io("read its header", path, &e);
    let mut header = Vec::new();
    file.take(FIRST as u64).read_to_end(&mut header).map_err(io)?;
    if let Some(foreign) = what_bytes(&header) {
        return Err(ModelError::new(foreign.to_string()).at(path));
    }
    let length = *header.first_chunk::<8>().ok_or_else(|| too_short(header.len() as u64).at(path))?;
    let header_len = u64::from_le_bytes(length);
    data_bytes(header_len, len).map_err(|e| e.at(path))?;
    let more = (LENGTH_BYTES + header_len).saturating_sub(header.len() as u64);
    file.take(more).read_to_end(&mut header).map_err(io)?;
    Ok(header)
}

#[cfg(unix)]
fn read_exact_at(file: &File, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut at: u64, mut bytes: &mut [u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        (at, bytes) = (at + read as u64, &mut bytes[read..]);
    }
    Ok(())
}

/// Most extents of a tensor; those of released models have up to 5.
const MAX_EXTENTS: usize = 16;

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    #[serde(deserialize_with = "few")]
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A list of at most [`MAX_EXTENTS`] numbers; of a longer one, no more is kept.
fn few<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u64>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "a list of at most {MAX_EXTENTS} whole numbers")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Vec<u64>, A::Error> {
            let mut extents = Vec::new();
            while let Some(extent) = list.next_element()? {
                if extents.len() == MAX_EXTENTS {
                    return Err(A::Error::invalid_length(MAX_EXTENTS + 1, &self));
                }
                extents.push(extent);
            }
            Ok(extents)
        }
    }

    deserializer.deserialize_seq(Few)
}

/// The tensors of a safetensors file of `file_len` bytes, by name; `bytes` is its beginning, the whole header at least.
///
/// Fails when the file is too short for a header or the header for its tensors, the header exceeds 16 MB
/// or is not JSON, a name appears twice, a field is missing, a dtype is unknown, a shape overflows or
/// differs from its bytes, or the tensors overlap, leave a gap, or end before or past the file's end.
pub fn parse_header(bytes: &[u8], file_len: u64) -> Result<BTreeMap<String, Entry>> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(too_short(file_len));
    };
    let header_len = u64::from_le_bytes(*length);
    let data_len = data_bytes(header_len, file_len)?;
    let header = usize::try_from(header_len).ok().and_then(|n| rest.get(..n)).ok_or_else(|| too_short(bytes.len() as u64))?;
    let Named(raw) = serde_json::from_slice::<Named<RawEntry>>(header).map_err(|e| {
        ModelError::new(format!("its header is not that of a safetensors file: {}; fetch the file again", remark(e)))
    })?;
    let mut entries = BTreeMap::new();
    // A tensor of a type that is not read is first of all a sign of another model.
    let fault = |name: &str, e: String| match what_names(raw.keys().map(String::as_str), None) {
        Some(foreign) if !foreign.is_lora => ModelError::new(foreign.to_string()),
        _ => ModelError::new(format!("tensor \"{}\": {e}", shown(name))),
    };
    for (name, tensor) in &raw {
        let entry = entry(tensor, LENGTH_BYTES + header_len).map_err(|e| fault(name, e))?;
        entries.insert(name.clone(), entry);
    }
    check_packed(&entries, LENGTH_BYTES + header_len, data_len)?;
    Ok(entries)
}

fn too_short(len: u64) -> ModelError {
    ModelError::new(format!("{len} bytes are too short for a safetensors file; {INCOMPLETE}"))
}

/// Bytes that the file has after its header.
fn data_bytes(header_len: u64, file_len: u64) -> Result<u64> {
    let after = file_len.saturating_sub(LENGTH_BYTES);
    if header_len > MAX_HEADER_BYTES {
        return Err(ModelError::new(format!(
            "the file claims a header of {header_len} bytes, where at most {MAX_HEADER_BYTES} are accepted; \
             probably not a safetensors file"
        )));
    }
    after.checked_sub(header_len).ok_or_else(|| {
        ModelError::new(format!(
            "the file claims a header of {header_len} bytes, but {after} follow; it is not a safetensors file, or {INCOMPLETE}"
        ))
    })
}

/// The entry of a tensor whose offsets count from `data_start`; its end is not yet known to be in the file.
fn entry(raw: &RawEntry, data_start: u64) -> std::result::Result<Entry, String> {
    let dtype = dtype(&raw.dtype)?;
    let [begin, end] = raw.data_offsets;
    // Extents of 0 count as 1 here, so that no partial product of a shape accepted can overflow.
    let overflow = || format!("shape {:?} has more elements than can be addressed", raw.shape);
    raw.shape
        .iter()
        .try_fold(dtype.bytes() as u64, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as u64)
        .ok_or_else(overflow)?;
    let shape = Shape(raw.shape.iter().map(|&d| d as usize).collect());
    let spec = Spec { dtype, shape };
    let found = end.checked_sub(begin).ok_or_else(|| format!("its bytes end at {end}, before they begin at {begin}"))?;
    if found != spec.bytes() as u64 {
        return Err(format!("{spec} needs {} bytes, but its offsets {begin}..{end} hold {found}", spec.bytes()));
    }
    let in_file = |offset: u64| {
        data_start
            .checked_add(offset)
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| format!("offset {offset} exceeds any file"))
    };
    Ok(Entry { spec, range: in_file(begin)?..in_file(end)?, blocks: None })
}

fn dtype(name: &str) -> std::result::Result<DType, String> {
    Ok(match name {
        "F32" => DType::F32,
        "BF16" => DType::BF16,
        "F16" => DType::F16,
        "F8_E4M3" => DType::F8E4M3,
        "F8_E5M2" => DType::F8E5M2,
        "I32" => DType::I32,
        "U8" => DType::U8,
        _ => {
            return Err(format!("dtype \"{}\" is unknown; BF16, F16, F32, F8_E4M3, F8_E5M2, I32 and U8 are read", shown(name)));
        }
    })
}

/// The dtype's name in a safetensors header.
pub(super) fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::F8E4M3 => "F8_E4M3",
        DType::F8E5M2 => "F8_E5M2",
        DType::I32 => "I32",
        DType::U8 => "U8",
        DType::S8 => "I8",
    }
}

/// Tensors must lie end to end from `start` and fill `data_len` bytes exactly.
fn check_packed(entries: &BTreeMap<String, Entry>, start: u64, data_len: u64) -> Result<()> {
    let mut order: Vec<_> = entries.iter().collect();
    order.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut end = start as usize;
    for (name, entry) in order {
        let begin = entry.range.start;
        if begin != end {
            let (fault, count) = match begin < end {
                true => ("overlaps the one before it by", end - begin),
                false => ("leaves a gap before it of", begin - end),
            };
            return Err(ModelError::new(format!(
                "tensor \"{}\" {fault} {count} bytes, so the header is damaged; fetch the file again",
                shown(name)
            )));
        }
        end = entry.range.end;
    }
    let (needed, found) = (end as u64, start + data_len);
    if needed > found {
        return Err(ModelError::new(format!(
            "{} bytes are missing: the header needs {needed}, the file has {found}; {INCOMPLETE}",
            needed - found
        )));
    }
    if needed < found {
        return Err(ModelError::new(format!(
            "{} bytes follow the last tensor: the header needs {needed}, the file has {found}; fetch the file again",
            found - needed
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
