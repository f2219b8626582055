//! Which driver and libraries there are: versions, and the files that they were loaded from.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cudarc::{cublaslt, driver, nvrtc};

use super::library::{load_cublaslt, load_driver, load_nvrtc};

/// A library that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Major and minor number; of the driver, of the newest CUDA that it runs.
    pub version: (u32, u32),
    /// Its file; none where the system does not tell.
    pub file: Option<PathBuf>,
}

impl Found {
    /// The driver.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: there is none.
    pub fn driver() -> Result<Found> {
        load_driver()?;
        let mut version = 0;
        // SAFETY: a place to write to.
        let code = unsafe { driver::sys::cuDriverGetVersion(&mut version) };
        code.result().ok().context("the driver does not give its version")?;
        Ok(Found { version: (version as u32 / 1000, version as u32 % 1000 / 10), file: loaded_from("libcuda.so") })
    }

    /// NVRTC.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`] that says where it was searched.
    pub fn nvrtc(folders: &[PathBuf]) -> Result<Found> {
        load_nvrtc(folders)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places to write to.
        let code = unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
        code.result().ok().context("NVRTC does not give its version")?;
        Ok(Found { version: (major as u32, minor as u32), file: loaded_from("libnvrtc.so") })
    }

    /// cuBLASLt.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`] that says where it was searched.
    pub fn cublaslt(folders: &[PathBuf]) -> Result<Found> {
        load_cublaslt(folders)?;
        // SAFETY: takes nothing.
        let version = unsafe { cublaslt::sys::cublasLtGetVersion() } as u32;
        Ok(Found { version: (version / 10_000, version % 10_000 / 100), file: loaded_from("libcublasLt.so") })
    }
}

/// The file of a loaded library whose name begins so, by the kernel's table of the process's mappings.
fn loaded_from(stem: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    paths.map(PathBuf::from).find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stem)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaded_library_is_found_by_its_name() {
        if fs::metadata("/proc/self/maps").is_err() {
            eprintln!("skipped: no /proc here");
            return;
        }
        assert!(loaded_from("libc.").is_some_and(|path| path.is_absolute()));
        assert_eq!(loaded_from("libno-such-library"), None);
    }
}
