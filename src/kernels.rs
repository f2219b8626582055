//! The CUDA sources of `kernels/`, embedded, so that a kernel compiles without any file beside the binary.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// File name and text of each source and header, by name.
pub const EMBEDDED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A source or header: file name and text.
pub type Source = (String, Cow<'static, str>);

/// The file `name` first, then all that it includes, directly or not. A folder is read instead of what is embedded, whole:
/// nothing is taken from both.
///
/// # Errors
/// A file that is missing, or that the system does not give.
pub fn with_includes(name: &str, folder: Option<&Path>) -> Result<Vec<Source>> {
    let mut found: Vec<Source> = Vec::new();
    let mut wanted = vec![name.to_string()];
    while let Some(name) = wanted.pop() {
        if found.iter().all(|(known, _)| *known != name) {
            let text = text(&name, folder)?;
            wanted.extend(includes(&text).rev().map(String::from)); // the last is taken next
            found.push((name, text));
        }
    }
    Ok(found)
}

fn text(name: &str, folder: Option<&Path>) -> Result<Cow<'static, str>> {
    let Some(folder) = folder else {
        let embedded = EMBEDDED.iter().find(|(known, _)| *known == name);
        return embedded.map(|(_, text)| Cow::Borrowed(*text)).with_context(|| format!("there is no kernel source {name}"));
    };
    let path = folder.join(name);
    let fault =
        || format!("cannot read {}; STEP1X_KERNELS must name a folder with all kernel sources and headers", path.display());
    fs::read_to_string(&path).map(Cow::Owned).with_context(fault)
}

/// What a text includes by `#include "name"`, in order.
fn includes(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    text.lines().filter_map(|line| line.trim_start().strip_prefix("#include \"")?.split('"').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sources: &[Source]) -> Vec<&str> {
        sources.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn what_is_embedded_is_what_lies_in_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), EMBEDDED.len());
        for (name, _) in EMBEDDED {
            assert_eq!(with_includes(name, None).unwrap(), with_includes(name, Some(&folder)).unwrap());
        }
    }

    #[test]
    fn includes_are_followed_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a.cu", "#include \"b.cuh\"\n// #include \"d.cuh\"\n  #include \"c.cuh\"\n#include <cstdint>\n");
        write("b.cuh", "#pragma once\n#include \"c.cuh\"\n");
        write("c.cuh", "#include \"b.cuh\"\n");
        let found = with_includes("a.cu", Some(folder.path())).unwrap();
        assert_eq!(names(&found), ["a.cu", "b.cuh", "c.cuh"]);
        assert_eq!(found[2].1, "#include \"b.cuh\"\n");
    }

    #[test]
    fn a_missing_file_is_named() {
        assert_eq!(with_includes("missing.cu", None).unwrap_err().to_string(), "there is no kernel source missing.cu");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cast.cu"), "#include \"types.cuh\"\n").unwrap();
        let fault = format!("{:#}", with_includes("cast.cu", Some(folder.path())).unwrap_err());
        let path = folder.path().join("types.cuh").display().to_string();
        assert!(fault.contains(&path) && fault.contains("STEP1X_KERNELS"), "{fault}");
    }
}
