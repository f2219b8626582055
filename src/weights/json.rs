//! JSON objects in which a name may appear only once, and JSON files of bounded size.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::words::{remark, shown};
use super::{ModelError, Result};

/// The key of a safetensors header that holds free text instead of a tensor.
pub(super) const METADATA: &str = "__metadata__";

/// Most bytes of a `config.json` or a settings file, which becomes a tree of values: the released one has 1,400.
pub(super) const CONFIG_BYTES: u64 = 256 << 10;
/// Most bytes of an index of shards; the released one has 58,000.
pub(super) const INDEX_BYTES: u64 = 4 << 20;
/// Most bytes of a `tokenizer.json`; released ones have 7 to 11 million.
pub(super) const TOKENIZER_BYTES: u64 = 16 << 20;

/// An object of equal-typed values by name, without `__metadata__`; a repeated name is an error.
pub(super) struct Named<T>(pub BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(NamedVisitor(PhantomData))
    }
}

struct NamedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for NamedVisitor<T> {
    type Value = Named<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut named = BTreeMap::new();
        let mut metadata_seen = false;
        while let Some(name) = map.next_key::<String>()? {
            let repeated = if name == METADATA {
                map.next_value::<IgnoredAny>()?;
                std::mem::replace(&mut metadata_seen, true)
            } else {
                let value = map.next_value().map_err(|e| A::Error::custom(format_args!("\"{}\": {e}", shown(&name))))?;
                named.insert(name.clone(), value).is_some()
            };
            if repeated {
                return Err(A::Error::custom(format_args!("\"{}\" appears twice", shown(&name))));
            }
        }
        Ok(Named(named))
    }
}

/// The file's bytes.
///
/// Fails when it cannot be read, is a pipe or the like, or has more than `most`.
pub(super) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Err(ModelError::new("this is not a regular file; download it again").at(path));
    }
    std::fs::File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .map_err(|e| ModelError::io("read it", path, &e))?;
    if bytes.len() as u64 > most {
        let fault = format!("the file has more than {most} bytes, too many for such a file of a model; download it again");
        return Err(ModelError::new(fault).at(path));
    }
    Ok(bytes)
}

/// The JSON as `T`, of a file of at most `most` bytes.
///
/// Fails as [`read`] does, or when it is not such JSON.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path, most: u64) -> Result<T> {
    serde_json::from_slice(&read(path, most)?).map_err(|e| {
        ModelError::new(format!("this is not the JSON expected here: {}; download the file again", remark(e))).at(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_just_so_many_bytes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        for (most, bytes) in [(CONFIG_BYTES, 262_144), (INDEX_BYTES, 4_194_304), (TOKENIZER_BYTES, 16_777_216)] {
            std::fs::write(&path, "[]".to_string() + &" ".repeat(bytes - 2)).unwrap();
            assert!(read_json::<Vec<u8>>(&path, most).unwrap().is_empty());
            std::fs::write(&path, "[]".to_string() + &" ".repeat(bytes - 1)).unwrap();
            let text = read_json::<Vec<u8>>(&path, most).unwrap_err().to_string();
            assert!(text.contains(&format!("more than {bytes} bytes")), "{text}");
        }
    }
}
