//! What a file is that is not the one wanted: by its first bytes, or by the names of its tensors.
//!
//! Only what people do put in a model's place is known here. What is not known is left to whoever reads it.

mod names;

use std::fmt;

use super::words::shown;

pub use self::names::what_names;

/// First bytes that are looked at: a tar archive says what it is at byte 257.
pub(super) const FIRST: usize = 512;

const OFFICIAL: &str = "use the safetensors file of the official release (docs/models.md)";
const OF_GGUF: &str = "only the text encoder is read of such files, with --text-encoder; use the safetensors file of the official release (docs/models.md)";
const AGAIN: &str = "the download went wrong; fetch the file again";

/// A file that is something else, and what would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// In words.
    pub(super) what: String,
    remedy: &'static str,
    /// It changes a model.
    pub(super) is_lora: bool,
}

impl Foreign {
    fn new(what: impl Into<String>, remedy: &'static str) -> Foreign {
        Foreign { what: what.into(), remedy, is_lora: false }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "this is {}; {}", self.what, self.remedy)
    }
}

/// How formats begin, from a byte on.
const MAGIC: [(usize, &[u8], &str, &str); 20] = [
    (0, b"GGUF", "a GGUF file, as llama.cpp and ComfyUI use", OF_GGUF),
    (0, b"lmgg", "a GGML file, the forerunner of GGUF", OFFICIAL),
    (0, b"tjgg", "a GGML file, the forerunner of GGUF", OFFICIAL),
    (0, b"PK\x03\x04", "a zip archive, as PyTorch's .pt, .pth, .ckpt and .bin files are", OFFICIAL),
    (0, b"version https://", "a Git LFS pointer, not the weights", "run `git lfs pull`"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it, and give the safetensors file in it"),
    (0, b"BZh", "a bzip2 archive", "unpack it, and give the safetensors file in it"),
    (0, b"\xfd7zXZ\0", "an xz archive", "unpack it, and give the safetensors file in it"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it, and give the safetensors file in it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and give the safetensors file in it"),
    (0, b"Rar!", "a RAR archive", "unpack it, and give the safetensors file in it"),
    (257, b"ustar", "a tar archive", "unpack it, and give the safetensors file in it"),
    (0, b"\x89HDF\r\n", "an HDF5 file, as Keras and TensorFlow use", OFFICIAL),
    (4, b"TFL3", "a TensorFlow Lite model", OFFICIAL),
    (0, b"\x08\x01\x12", "a TensorFlow model", OFFICIAL),
    (0, b"\x93NUMPY", "a NumPy array", OFFICIAL),
    (0, b"\x89PNG", "a picture", "give it with -i, and a model with -m"),
    (0, b"\xff\xd8\xff", "a picture", "give it with -i, and a model with -m"),
    (0, b"RIFF", "a picture", "give it with -i, and a model with -m"),
    (0, b"%PDF", "a PDF document", AGAIN),
];

/// What a file is that begins with these bytes, up to 512 of them; none for a safetensors file and for what is not known.
pub fn what_bytes(first: &[u8]) -> Option<Foreign> {
    // Eight bytes of text would be a header's length beyond any file's.
    let header = first.split_first_chunk::<8>().map(|(length, rest)| (u64::from_le_bytes(*length), rest));
    if header.is_some_and(|(length, rest)| length < 1 << 40 && rest.first() == Some(&b'{')) {
        return None;
    }
    let begins = |(at, magic, ..): &&(usize, &[u8], &str, &str)| first.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, what, remedy)) = MAGIC.iter().find(begins) {
        return Some(Foreign::new(*what, remedy));
    }
    match first {
        [0x80, 2..=5, ..] => Some(Foreign::new("a pickled PyTorch file (.pt, .pth, .ckpt, .bin)", OFFICIAL)),
        [0x08, 3..=20, 0x12 | 0x3a, ..] => Some(Foreign::new("an ONNX model", OFFICIAL)),
        _ if first.len() > 8 && first.iter().all(|byte| *byte == 0) => {
            Some(Foreign::new("a file that begins with zeros, as a download that was given its size in advance", AGAIN))
        }
        _ => text(first),
    }
}

/// What a download may have brought instead of a file.
fn text(first: &[u8]) -> Option<Foreign> {
    let bytes = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // A character that the end of the first bytes cuts.
        Err(e) if bytes.len() - e.valid_up_to() < 4 => std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
        Err(_) => return None,
    };
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    if ["<!doctype", "<html", "<head", "<?xml", "<!--"].iter().any(|tag| lower.starts_with(tag)) {
        return Some(Foreign::new("a web page", AGAIN));
    }
    let plain = |c: char| !c.is_control() || c.is_ascii_whitespace();
    if text.is_empty() || !text.chars().all(plain) {
        return None;
    }
    let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    Some(Foreign::new(format!("a text that begins with \"{}\"", shown(&line)), AGAIN))
}

#[cfg(test)]
mod tests;
