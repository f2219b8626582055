//! NVTX ranges as a profiler hears them: a small one, built from C, attaches and writes down what it is told.
//!
//! A process attaches once, so this is one test in a file of its own.

use std::ffi::{c_char, c_int};
use std::process::Command;

use libloading::Library;
use step1x_edit::cuda::Nvtx;

#[test]
fn a_profiler_hears_ranges_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/profiler.c"), dir.path().join("profiler.so"));
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no C compiler");
        return;
    }
    let nvtx = Nvtx::attach(Some(&library));
    {
        let _stage = nvtx.range("step");
        drop(nvtx.range("blocks.0.attention"));
        drop(nvtx.range("not a C\0string"));
        drop(Nvtx::attach(None).range("blocks.0.mlp"));
    }
    drop(Nvtx::default().range("nobody listens"));
    // SAFETY: the library is loaded already; the functions are those of profiler.c.
    let heard = unsafe {
        let library = Library::new(&library).unwrap();
        let heard = library.get::<unsafe extern "C" fn() -> *const c_char>(c"heard").unwrap()();
        assert_eq!(library.get::<unsafe extern "C" fn() -> c_int>(c"modules").unwrap()(), 6);
        std::ffi::CStr::from_ptr(heard).to_str().unwrap().to_string()
    };
    assert_eq!(heard, "step(blocks.0.attention()blocks.0.mlp())");
}
