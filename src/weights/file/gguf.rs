//! The header of a GGUF file, as llama.cpp writes them: what is said of the model, and where its tensors are.
//!
//! Layout: "GGUF"; u32 version; u64 number of tensors, u64 number of notes; the notes, each a name, u32 kind and a value; the tensors,
//! each a name, u32 number of extents, the extents from the innermost on, u32 kind of the elements, u64 offset; then, on a multiple
//! of `general.alignment`, the data, from which the offsets count. All little-endian; a name is a u64 length and UTF-8.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Blocks, Entry, INCOMPLETE, MAX_EXTENTS, shown};
use crate::tensor::{DType, Shape, Spec};
use crate::weights::{ModelError, Result};

/// Most bytes before the data; with the vocabulary of Qwen2.5, which is in the header, there are about 6 million.
pub(super) const MAX_HEADER_BYTES: u64 = 16_000_000;
/// Most tensors, and most notes; Qwen2.5-VL has 858 in two files.
const MOST_ENTRIES: u64 = 16_384;
/// Most bytes of a name; llama.cpp takes 64 for a tensor.
const MOST_NAME_BYTES: usize = 1024;
/// Most elements of a list that is kept; longer ones, such as vocabularies, are passed over.
const MOST_KEPT: u64 = 16;
/// Largest multiple on which data may begin; llama.cpp writes 32.
const ALIGNMENT_MAX: u64 = 65_536;

/// What a file says of its model, by llama.cpp's names; `null` where it is long.
pub type Notes = Map<String, Value>;

/// Validates the header of a GGUF file of `file_len` bytes that begins with `bytes`, the first 16,000,000 of them or all.
///
/// # Errors
/// It is another version or a part of a split file, is damaged, or its tensors do not lie in the file one after another.
pub fn parse_gguf(bytes: &[u8], file_len: u64) -> Result<(BTreeMap<String, Entry>, Notes)> {
    let mut at = Cursor { all: &bytes[..bytes.len().min(MAX_HEADER_BYTES as usize)], at: 0, file_len };
    if at.take(4)? != b"GGUF" {
        return Err(ModelError::new("it does not begin as a GGUF file does; fetch the file again"));
    }
    let version = at.u32()?;
    if !(2..=3).contains(&version) {
        return Err(ModelError::new(format!("it is of GGUF's version {version}; 2 and 3 are read, little-endian")));
    }
    let (tensors, count) = (at.count("tensors")?, at.count("notes")?);
    let mut notes = Notes::new();
    for _ in 0..count {
        let name = at.name()?;
        let kind = at.u32()?;
        let value = at.value(kind).map_err(|e| ModelError::new(format!("note \"{}\": {e}", shown(&name))))?;
        if notes.insert(name.clone(), value).is_some() {
            return Err(ModelError::new(format!("note \"{}\" appears twice; fetch the file again", shown(&name))));
        }
    }
    if let Some(parts) = notes.get("split.count").and_then(Value::as_u64).filter(|parts| *parts > 1) {
        let remedy = "make one of them with `llama-gguf-split --merge`, and give that";
        return Err(ModelError::new(format!("this is one of {parts} parts of a model; {remedy}")));
    }
    let mut found = BTreeMap::new();
    for _ in 0..tensors {
        let (name, entry) = at.tensor()?;
        if found.insert(name.clone(), entry).is_some() {
            return Err(ModelError::new(format!("tensor \"{}\" appears twice; fetch the file again", shown(&name))));
        }
    }
    let alignment = notes.get("general.alignment").map_or(Some(32), Value::as_u64).unwrap_or(0);
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
        let fault = format!("general.alignment must be a power of two up to {ALIGNMENT_MAX}; fetch the file again");
        return Err(ModelError::new(fault));
    }
    place(&mut found, (at.at as u64).next_multiple_of(alignment), alignment, file_len)?;
    Ok((found, notes))
}

/// Counts the tensors' ranges from the file's start. They must lie one after another, with less than a multiple between them and
/// behind the last.
fn place(found: &mut BTreeMap<String, Entry>, start: u64, alignment: u64, file_len: u64) -> Result<()> {
    let mut order: Vec<_> = found.iter_mut().collect();
    order.sort_by_key(|(_, entry)| (entry.range.start, entry.range.end));
    let mut end = start;
    let up = |end: u64| end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    for (name, entry) in order {
        let begin = start.saturating_add(entry.range.start as u64);
        if begin != up(end) {
            let fault = format!("tensor \"{}\" does not begin where the one before it ends", shown(name));
            return Err(ModelError::new(format!("{fault}, so the header is damaged; fetch the file again")));
        }
        end = begin.saturating_add(entry.range.len() as u64);
        if end > file_len {
            return Err(ModelError::new(format!(
                "{} bytes are missing: the header needs {end}, the file has {file_len}; {INCOMPLETE}",
                end - file_len
            )));
        }
        entry.range = begin as usize..end as usize;
    }
    match file_len.saturating_sub(up(end)) {
        0 => Ok(()),
        more => Err(ModelError::new(format!("{more} bytes follow the last tensor; fetch the file again"))),
    }
}

/// What of a header is still to be read.
struct Cursor<'a> {
    all: &'a [u8],
    at: usize,
    file_len: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let taken = self.at.checked_add(count).and_then(|end| self.all.get(self.at..end)).ok_or_else(|| {
            ModelError::new(match self.all.len() as u64 {
                MAX_HEADER_BYTES => format!("its header has more than the {MAX_HEADER_BYTES} bytes that are accepted"),
                _ => format!("the file ends in its header, with {} bytes; {INCOMPLETE}", self.file_len),
            })
        })?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N).map(|bytes| bytes.try_into().expect("as many bytes as were taken"))
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str) -> Result<u64> {
        match self.u64()? {
            count @ 0..=MOST_ENTRIES => Ok(count),
            count => Err(ModelError::new(format!("the header claims {count} {what}, where at most {MOST_ENTRIES} are accepted"))),
        }
    }

    fn text(&mut self) -> Result<&'a [u8]> {
        let length = self.u64()?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn name(&mut self) -> Result<String> {
        let name = self.text()?;
        let fault = |what: &str| Err(ModelError::new(format!("a name in its header {what}; fetch the file again")));
        match std::str::from_utf8(name) {
            _ if name.len() > MOST_NAME_BYTES => fault(&format!("has {} bytes, more than {MOST_NAME_BYTES}", name.len())),
            Ok(name) => Ok(name.to_string()),
            Err(_) => fault("is no UTF-8"),
        }
    }

    /// A value, or `null` for what is too long to be of use here.
    fn value(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => self.array::<1>()?[0].into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            6 => f32::from_le_bytes(self.array()?).into(),
            7 => (self.array::<1>()?[0] != 0).into(),
            8 => match std::str::from_utf8(self.text()?) {
                Ok(text) if text.len() <= MOST_NAME_BYTES => text.into(),
                _ => Value::Null,
            },
            9 => self.list()?,
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => f64::from_le_bytes(self.array()?).into(),
            _ => return Err(ModelError::new(format!("its kind is {kind}, which is not known; fetch the file again"))),
        })
    }

    /// Each element takes a byte of the header at least, so that a list ends where the header does.
    fn list(&mut self) -> Result<Value> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if kind == 9 {
            return Err(ModelError::new("it is a list of lists, which is not read"));
        }
        let mut kept = Vec::new();
        for i in 0..count {
            let value = self.value(kind)?;
            if i < MOST_KEPT {
                kept.push(value);
            }
        }
        Ok(if count > MOST_KEPT { Value::Null } else { kept.into() })
    }

    /// A tensor, its range counted from the first one's.
    fn tensor(&mut self) -> Result<(String, Entry)> {
        let name = self.name()?;
        let fault = |text: String| ModelError::new(format!("tensor \"{}\": {text}; fetch the file again", shown(&name)));
        let extents = self.u32()? as usize;
        if extents > MAX_EXTENTS {
            return Err(fault(format!("it has {extents} extents, more than {MAX_EXTENTS}")));
        }
        let mut shape = (0..extents).map(|_| self.u64()).collect::<Result<Vec<u64>>>()?;
        shape.reverse();
        let (kind, offset) = (self.u32()?, self.u64()?);
        let (blocks, [elements, size]) = match (dtype(kind), Blocks::of(kind)) {
            (Some(dtype), _) => (None, [1, dtype.bytes()]),
            (_, Some(blocks)) => (Some(blocks), [blocks.elements(), blocks.bytes()]),
            _ => {
                let read = "F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_0, Q5_1, Q4_K, Q4_0 and Q4_1 are read";
                return Err(ModelError::new(format!("tensor \"{}\" is of GGML's kind {kind}; {read}", shown(&name))));
            }
        };
        if let (Some(row), Some(kind)) = (shape.last_mut(), blocks) {
            if !row.is_multiple_of(elements as u64) {
                return Err(fault(format!("its rows of {row} are no whole blocks of {kind}")));
            }
            *row = row.checked_div(elements as u64).and_then(|n| n.checked_mul(size as u64)).unwrap_or(u64::MAX);
        } else if let Some(kind) = blocks {
            return Err(fault(format!("it has no rows for blocks of {kind}")));
        }
        let dtype = dtype(kind).unwrap_or(DType::U8);
        // Extents of 0 count as 1 here, so that no partial product of a shape accepted can overflow; nor can that of the values.
        let most = |n: &u64| *n <= isize::MAX as u64 / elements as u64;
        let fits = shape.iter().try_fold(dtype.bytes() as u64, |n, &d| n.checked_mul(d.max(1))).filter(most);
        let (Some(_), Ok(begin)) = (fits, usize::try_from(offset)) else {
            return Err(fault(format!("{shape:?} at {offset} is more than can be addressed")));
        };
        let spec = Spec { dtype, shape: Shape(shape.iter().map(|&d| d as usize).collect()) };
        let end = begin.checked_add(spec.bytes()).ok_or_else(|| fault(format!("offset {offset} exceeds any file")))?;
        Ok((name.clone(), Entry { spec, range: begin..end, blocks }))
    }
}

fn dtype(kind: u32) -> Option<DType> {
    match kind {
        0 => Some(DType::F32),
        1 => Some(DType::F16),
        30 => Some(DType::BF16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::WeightFile;

    const SMALL: &[u8] = include_bytes!("../../../tests/data/gguf/small.gguf");

    fn note(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [&text(name.as_bytes())[..], &kind.to_le_bytes(), value].concat()
    }

    fn text(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
    }

    fn tensor(name: &str, extents: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let extents: Vec<u8> =
            [&(extents.len() as u32).to_le_bytes()[..], &extents.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>()]
                .concat();
        [text(name.as_bytes()), extents, kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
    }

    fn header(notes: &[Vec<u8>], tensors: &[Vec<u8>]) -> Vec<u8> {
        let counts = [(tensors.len() as u64).to_le_bytes(), (notes.len() as u64).to_le_bytes()].concat();
        [&b"GGUF\x03\0\0\0"[..], &counts, &notes.concat(), &tensors.concat()].concat()
    }

    /// A file of this header and as many zeros behind it.
    fn file(notes: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
        let mut bytes = header(notes, tensors);
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    }

    fn parsed(bytes: &[u8]) -> Result<(BTreeMap<String, Entry>, Notes)> {
        parse_gguf(bytes, bytes.len() as u64)
    }

    fn fault(bytes: &[u8]) -> String {
        parsed(bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_file_of_llama_cpps_package_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small.gguf");
        std::fs::write(&path, SMALL).unwrap();
        let file = WeightFile::open_gguf(&path).unwrap();
        let names: Vec<_> = file.tensors().map(|(name, entry)| (name, entry.spec.to_string(), entry.blocks)).collect();
        assert_eq!(
            names,
            [
                ("blk.0.attn_q.weight", "f16[2, 3]".into(), None),
                ("output_norm.weight", "f32[5]".into(), None),
                ("token_embd.weight", "u8[3, 68]".into(), Some(Blocks::Q8_0)),
            ]
        );
        assert_eq!(file.read("output_norm.weight").unwrap(), [0f32, 1.0, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat());
        assert_eq!(file.notes()["general.architecture"], "qwen2vl");
        assert_eq!(file.notes()["qwen2vl.rope.freq_base"], 1e6);
        assert_eq!(file.notes()["qwen2vl.rope.dimension_sections"], serde_json::json!([16, 24, 24, 0]));
        assert!(fault(&SMALL[..SMALL.len() - 40]).contains("bytes are missing: the header needs"));
        assert!(fault(&[SMALL, &[0; 32]].concat()).contains("32 bytes follow the last tensor"));
        assert!(fault(&SMALL[..300]).contains("the file ends in its header, with 300 bytes"));
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let good = tensor("a", &[4], 0, 0);
        assert_eq!(parsed(&file(&[], std::slice::from_ref(&good), 32)).unwrap().0["a"].spec.shape, Shape::from([4]));
        assert!(parsed(&file(&[], std::slice::from_ref(&good), 16)).is_ok(), "the end need not be padded");
        for (bytes, words) in [
            (b"GGUF\0\0\0\x03".to_vec(), "of GGUF's version 50331648; 2 and 3 are read, little-endian"),
            (b"GGUX\x03\0\0\0".to_vec(), "does not begin as a GGUF file"),
            (file(&[note("split.count", 2, &[3, 0])], &[], 0), "one of 3 parts of a model; make one of them with"),
            (file(&[note("a", 4, &[0; 4]), note("a", 4, &[0; 4])], &[], 0), "note \"a\" appears twice"),
            (file(&[note("a", 13, &[])], &[], 0), "note \"a\": its kind is 13"),
            (file(&[note("a", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])], &[], 0), "a list of lists"),
            (file(&[note("a", 9, &[[0, 0, 0, 0].as_slice(), &[255; 8]].concat())], &[], 0), "the file ends in its header"),
            (file(&[], &[good.clone(), tensor("a", &[4], 0, 32)], 64), "tensor \"a\" appears twice"),
            (file(&[], &[good.clone(), tensor("b", &[4], 0, 8)], 64), "tensor \"b\" does not begin where the one before it ends"),
            (file(&[], &[good.clone(), tensor("b", &[4], 0, 64)], 96), "tensor \"b\" does not begin where"),
            (file(&[], &[tensor("a", &[33], 8, 0)], 64), "its rows of 33 are no whole blocks of q8_0"),
            (file(&[], &[tensor("a", &[], 8, 0)], 64), "it has no rows for blocks of q8_0"),
            (file(&[], &[tensor("a", &[256], 10, 0)], 96), "tensor \"a\" is of GGML's kind 10; F32, F16, BF16, Q8_0"),
            (file(&[], &[tensor("a", &[1 << 32, 1 << 32], 0, 0)], 0), "more than can be addressed"),
            (file(&[], &[tensor("a", &[1 << 40, 1 << 22], 12, 0)], 0), "more than can be addressed"),
            (file(&[], &[tensor("a", &[u64::MAX - 31, 0], 2, 0)], 0), "more than can be addressed"),
            (file(&[], &[tensor("a", &[4], 0, u64::MAX)], 0), "exceeds any file"),
        ] {
            assert!(fault(&bytes).contains(words), "{words}: {}", fault(&bytes));
        }
    }

    #[test]
    fn headers_have_their_limits() {
        let padded = |bytes: usize| {
            let empty = header(&[note("a", 8, &text(b""))], &[]).len();
            header(&[note("a", 8, &text(&vec![b'x'; bytes - empty]))], &[])
        };
        assert!(parsed(&padded(16_000_000)).unwrap().1["a"].is_null());
        assert!(fault(&padded(16_000_001)).contains("more than the 16000000 bytes that are accepted"));
        let counted = |count: u64| [&b"GGUF\x03\0\0\0"[..], &[0; 8], &count.to_le_bytes()].concat();
        assert!(fault(&counted(16_384)).contains("the file ends in its header"));
        assert!(fault(&counted(16_385)).contains("claims 16385 notes, where at most 16384 are accepted"));
        let named = |length: usize| file(&[note(&"x".repeat(length), 0, &[1])], &[], 0);
        assert!(parsed(&named(1024)).is_ok());
        assert!(fault(&named(1025)).contains("a name in its header has 1025 bytes, more than 1024"));
        let list = |count: u64| [&[0; 4][..], &count.to_le_bytes(), &vec![1; count as usize]].concat();
        assert_eq!(parsed(&file(&[note("a", 9, &list(16))], &[], 0)).unwrap().1["a"], Value::from(vec![1; 16]));
        assert!(parsed(&file(&[note("a", 9, &list(17))], &[], 0)).unwrap().1["a"].is_null());
        let aligned = |alignment: u32| {
            let mut bytes = header(&[note("general.alignment", 4, &alignment.to_le_bytes())], &[]);
            bytes.resize(bytes.len().next_multiple_of(alignment.max(1) as usize), 0);
            bytes
        };
        assert!(parsed(&aligned(65_536)).is_ok());
        for wrong in [0, 48, 131_072] {
            assert!(fault(&aligned(wrong)).contains("must be a power of two up to 65536"), "{wrong}");
        }
    }
}
