//! What driver and cuBLASLt report, in words, and which of it is a lack of memory.

use std::ffi::CStr;
use std::fmt;

use anyhow::{Error, anyhow};
use cudarc::driver::{result, sys};

use crate::error::ResourceError;

/// The device's memory has run out. The cause is a [`ResourceError`] that says how much is free.
#[derive(Debug)]
pub struct OutOfMemory(String);

impl OutOfMemory {
    /// What could not be done, and how much is free.
    pub fn error(doing: String, free: String) -> Error {
        Error::new(ResourceError(free)).context(OutOfMemory(doing))
    }

    /// Whether an error is, or follows from, a lack of the device's memory.
    pub fn is_in(error: &Error) -> bool {
        error.downcast_ref::<OutOfMemory>().is_some()
    }

    /// The same of something that the library `who` could not do, with what it says itself.
    pub(super) fn of(who: &str, doing: &str, fault: &str) -> Error {
        // The context of this thread; without one nobody knows.
        let free = size(result::mem_get_info().map_or(0, |(free, _)| free));
        let why = format!("{free} of the GPU's memory are free; end other programs that use it ({fault})");
        OutOfMemory::error(format!("{who} cannot {doing}"), why)
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bytes as people say them.
pub(super) fn size(bytes: usize) -> String {
    if bytes < 1_000_000_000 { format!("{:.1} MB", bytes as f64 / 1e6) } else { format!("{:.2} GB", bytes as f64 / 1e9) }
}

/// An error of the driver with what was tried.
pub(super) fn of(doing: &'static str) -> impl Fn(result::DriverError) -> Error {
    move |e| match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => OutOfMemory::of("the device", doing, &describe(e)),
        _ => anyhow!("the device cannot {doing}: {}", describe(e)),
    }
}

/// The driver's name and words for an error.
pub(super) fn describe(e: result::DriverError) -> String {
    let text = |t: Result<&CStr, _>| t.map_or_else(|_| String::new(), |t: &CStr| t.to_string_lossy().into_owned());
    match (text(e.error_name()), text(e.error_string())) {
        (name, _) if name.is_empty() => format!("{:?}", e.0),
        (name, words) => format!("{name}, {words}"),
    }
}
