//! JSON objects in which a name may appear only once, and JSON files of bounded size.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{ModelError, Result};

/// The key of a safetensors header that holds free text instead of a tensor.
pub(super) const METADATA: &str = "__metadata__";

/// Largest `config.json`, index or settings file accepted, in bytes; released ones are below 1 MB.
const MAX_FILE_BYTES: u64 = 64 << 20;

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
                let value = map.next_value().map_err(|e| A::Error::custom(format_args!("{name:?}: {e}")))?;
                named.insert(name.clone(), value).is_some()
            };
            if repeated {
                return Err(A::Error::custom(format_args!("{name:?} appears twice")));
            }
        }
        Ok(Named(named))
    }
}

/// The file's bytes.
///
/// Fails when it cannot be read or has more than 64 MiB.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| ModelError::io("read it", path, &e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ModelError::new(format!(
            "{}: the file has more than {MAX_FILE_BYTES} bytes, too many for a JSON file of a model; download it again",
            path.display()
        )));
    }
    Ok(bytes)
}

/// The file's JSON as `T`.
///
/// Fails as [`read`] does, or when it is not such JSON.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|e| {
        ModelError::new(format!("{}: this is not the JSON expected here: {e}; download the file again", path.display()))
    })
}
