//! Finding the driver, NVRTC and cuBLASLt at run time, so that the program starts on a machine without them.
//!
//! The loader's own path comes first, then the given folders in order. A library found in a folder is opened by its
//! path; whoever asks the loader for the name inside it (`libnvrtc.so.13`) is then given that one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use cudarc::{cublaslt, driver, nvrtc};
use libloading::Library;

use crate::error::ResourceError;

/// Where the device's libraries are searched and what is compiled is kept.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Folders that may hold `libnvrtc.so.*` and `libcublasLt.so.*`, in order.
    pub libraries: Vec<PathBuf>,
    /// Folder of compiled kernels; none: they are made anew each time.
    pub cache: Option<PathBuf>,
    /// Folder of kernel sources that are read instead of the embedded ones, while kernels are being written.
    pub kernels: Option<PathBuf>,
    /// A profiler's library that hears of stages and nodes by NVTX.
    pub profiler: Option<PathBuf>,
}

/// Loads the driver.
///
/// # Errors
/// A [`ResourceError`]: there is none.
pub fn load_driver() -> Result<()> {
    // SAFETY: opening the driver's library runs its initialisers, nothing else.
    match unsafe { driver::sys::is_culib_present() } {
        true => Ok(()),
        false => missing("no NVIDIA driver: libcuda.so.1 is not installed"),
    }
}

/// Loads NVRTC.
///
/// # Errors
/// A [`ResourceError`] that says where it was searched.
pub fn load_nvrtc(folders: &[PathBuf]) -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    // SAFETY: as for the driver.
    let present = || unsafe { nvrtc::sys::is_culib_present() };
    let load = || present() || (open_in(folders, &["libnvrtc-builtins.so", "libnvrtc.so"]) && present());
    found(*LOADED.get_or_init(load), "NVRTC (libnvrtc.so.12 or .13, the kernels' compiler)", "nvidia-cuda-nvrtc", folders)
}

/// Loads cuBLASLt.
///
/// # Errors
/// A [`ResourceError`] that says where it was searched.
pub fn load_cublaslt(folders: &[PathBuf]) -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    // SAFETY: as for the driver.
    let present = || unsafe { cublaslt::sys::is_culib_present() };
    let load = || present() || (open_in(folders, &["libcublasLt.so"]) && present());
    found(*LOADED.get_or_init(load), "cuBLASLt (libcublasLt.so.12 or .13, the matrix products)", "nvidia-cublas", folders)
}

fn found(loaded: bool, what: &str, package: &str, folders: &[PathBuf]) -> Result<()> {
    if loaded {
        return Ok(());
    }
    let listed: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    let searched = if listed.is_empty() { String::new() } else { format!(" nor in {}", listed.join(", ")) };
    missing(&format!(
        "{what} is not on the loader's path{searched}; install the PyPI package {package}, or name the library's folder in \
         STEP1X_CUDA_LIB"
    ))
}

fn missing<T>(text: &str) -> Result<T> {
    Err(ResourceError(text.into()).into())
}

/// Opens, from the first folder that has them all, the libraries of these stems, for the rest of the process.
fn open_in(folders: &[PathBuf], stems: &[&str]) -> bool {
    folders.iter().any(|folder| {
        let files: Option<Vec<PathBuf>> = stems.iter().map(|stem| versioned(folder, stem)).collect();
        files.is_some_and(|files| files.iter().all(|file| open(file).is_ok()))
    })
}

/// The file `stem.N` of a folder with the highest N this program knows (12 or 13; the builtins add a minor number).
fn versioned(folder: &Path, stem: &str) -> Option<PathBuf> {
    let known = |name: &str| {
        let version = name.strip_prefix(stem)?.strip_prefix('.')?;
        let major: u32 = version.split('.').next()?.parse().ok()?;
        (12..=13).contains(&major).then(|| (major, version.len(), name.to_string()))
    };
    let names = fs::read_dir(folder).ok()?.flatten().filter_map(|entry| known(entry.file_name().to_str()?));
    // Of `.so.13` and `.so.13.0.1`, usually one file, the shorter.
    names.max_by_key(|(major, length, _)| (*major, std::cmp::Reverse(*length))).map(|(_, _, name)| folder.join(name))
}

fn open(file: &Path) -> Result<()> {
    // SAFETY: opening a library of NVIDIA's runs its initialisers, nothing else.
    let library = unsafe { Library::new(file) }.with_context(|| file.display().to_string())?;
    std::mem::forget(library); // it stays loaded under its name
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_known_version_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(versioned(dir.path(), "libnvrtc.so"), None);
        for name in ["libnvrtc.so.11", "libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so.13.0.88", "libnvrtc.so.99", "libnvrtc.so"]
        {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(versioned(dir.path(), "libnvrtc.so"), Some(dir.path().join("libnvrtc.so.13")));
        assert_eq!(versioned(dir.path(), "libnvrtc-builtins.so"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_where_it_was_searched() {
        let error = found(false, "NVRTC", "nvidia-cuda-nvrtc", &[PathBuf::from("somewhere")]).unwrap_err();
        let text = &error.downcast_ref::<ResourceError>().unwrap().0;
        assert!(text.contains("NVRTC") && text.contains("somewhere") && text.contains("STEP1X_CUDA_LIB"), "{text}");
    }
}
