//! The CUDA sources of `kernels/`, embedded, so that a kernel compiles without any file beside the binary.

/// File name and text of each source and header, by name.
pub const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Hash of all names and texts: part of a compiled kernel's key in the cache.
pub const HASH: &str = env!("KERNELS_HASH");

/// The text of one file.
pub fn source(name: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_is_what_lies_in_the_folder() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        let mut count = 0;
        for path in files {
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            assert_eq!(source(&name), Some(std::fs::read_to_string(&path).unwrap().as_str()), "{name}");
            count += 1;
        }
        assert!(count == SOURCES.len() && count > 0 && HASH.len() == 16);
        assert_eq!(source("missing.cu"), None);
    }
}
