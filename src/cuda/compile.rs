//! Kernel sources to cubins, by NVRTC, kept on disk.
//!
//! A cubin depends on the compiler, the options, and the source with all that it includes: these are its identity in the
//! cache. Its entry is a line with the compiler's word on spills, its length and checksum, then the bytes. An entry that is
//! anything else is made again.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use cudarc::nvrtc::{result, sys};

use super::cache::Entry;
use super::found::Found;
use super::library::Setup;
use crate::hash::fnv1a64;
use crate::kernels::{Source, with_includes};

/// A compiled kernel source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// The image that the driver loads.
    pub image: Vec<u8>,
    /// Bytes that some thread spills to memory, stores and loads, over all entries.
    pub spilled: usize,
}

/// The compiler for one architecture.
#[derive(Debug)]
pub struct Compiler {
    architecture: String,
    /// Of the compiler.
    version: String,
    cache: Option<PathBuf>,
    kernels: Option<PathBuf>,
}

impl Compiler {
    /// For a compute capability (ten times it). Hopper's kernels may use what only sm_90a has.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: NVRTC is not found.
    pub fn new(capability: u32, setup: &Setup) -> Result<Compiler> {
        let suffix = if capability == 90 { "a" } else { "" };
        let (cache, kernels) = (setup.cache.clone(), setup.kernels.clone());
        Ok(Compiler { architecture: format!("sm_{capability}{suffix}"), version: version(&setup.libraries)?, cache, kernels })
    }

    /// The cubin of `kernels/<source>.cu` with these constants: from the cache, or made and put there.
    ///
    /// # Errors
    /// A source that is missing, or the compiler's log.
    pub fn compile(&self, source: &str, defines: &[(&str, usize)]) -> Result<Cubin> {
        let options = self.options(defines);
        let describe = || format!("kernels/{source}.cu for {}", options.join(" "));
        let sources = with_includes(&format!("{source}.cu"), self.kernels.as_deref()).with_context(describe)?;
        let identity = identity(source, &self.version, &sources, &options);
        let entry = Entry::new(self.cache.as_deref(), source, "cubin", identity);
        if let Some(cubin) = entry.read().and_then(|contents| decode(&contents)) {
            return Ok(cubin);
        }
        let cubin = build(&sources, &options).with_context(describe)?;
        entry.write(&encode(&cubin));
        Ok(cubin)
    }

    fn options(&self, defines: &[(&str, usize)]) -> Vec<String> {
        let fixed = [format!("--gpu-architecture={}", self.architecture)];
        let fixed = fixed.into_iter().chain(["--std=c++17", "--generate-line-info", "--ptxas-options=-v"].map(String::from));
        fixed.chain(defines.iter().map(|(name, value)| format!("-D{name}={value}"))).collect()
    }
}

/// The compiler's version, with the length and time of its file: builds of one version may compile otherwise.
fn version(folders: &[PathBuf]) -> Result<String> {
    let Found { version: (major, minor), file } = Found::nvrtc(folders)?;
    let about = file.and_then(|file| fs::metadata(file).ok());
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let build = about.map(|about| format!(" of {} bytes at {}", about.len(), about.modified().map_or(0, seconds)));
    Ok(format!("{major}.{minor}{}", build.unwrap_or_default()))
}

/// Everything that a cubin depends on.
fn identity(source: &str, version: &str, sources: &[Source], options: &[String]) -> String {
    let bytes: Vec<u8> =
        sources.iter().flat_map(|(name, text)| [name.as_bytes(), &[0], text.as_bytes(), &[0]].concat()).collect();
    format!("step1x-edit cubin 3: {source} nvrtc {version} sources {:016x} {}", fnv1a64(&bytes), options.join(" "))
}

fn failed(doing: &str, e: result::NvrtcError) -> anyhow::Error {
    anyhow::anyhow!("NVRTC cannot {doing}: {:?}", e.0)
}

/// A program that is destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Compiles the first source; the others are what it includes.
fn build(sources: &[Source], options: &[String]) -> Result<Cubin> {
    let strings = |(name, text): &Source| Ok((CString::new(&**name)?, CString::new(&**text)?));
    let strings: Vec<(CString, CString)> =
        sources.iter().map(strings).collect::<Result<_>>().context("a kernel source contains a NUL byte")?;
    let names: Vec<*const c_char> = strings.iter().map(|(name, _)| name.as_ptr()).collect();
    let texts: Vec<*const c_char> = strings.iter().map(|(_, text)| text.as_ptr()).collect();
    let headers = strings.len() as c_int - 1;

    let mut handle = std::ptr::null_mut();
    // SAFETY: all strings end with a NUL and outlive the program.
    let created =
        unsafe { sys::nvrtcCreateProgram(&mut handle, texts[0], names[0], headers, texts[1..].as_ptr(), names[1..].as_ptr()) };
    created.result().map_err(|e| failed("read the source", e))?;
    let program = Program(handle);
    // SAFETY: the program was just created.
    let compiled = unsafe { result::compile_program(program.0, options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program.0) }.map_err(|e| failed("give its log", e))?;
    // SAFETY: the log ends with a NUL.
    let log = unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned();
    if compiled.is_err() {
        bail!("NVRTC cannot compile it:\n{}", log.trim());
    }
    // A warning is a fault of ours, and those on serialised wgmma cost speed silently.
    ensure!(!log.contains("warning") && !log.contains("C75"), "NVRTC warns:\n{}", log.trim());
    let mut size = 0;
    // SAFETY: compiled for a real architecture, so there is a cubin, of the size that is asked first.
    let image = unsafe {
        sys::nvrtcGetCUBINSize(program.0, &mut size).result().map_err(|e| failed("give the size of the cubin", e))?;
        let mut image = vec![0u8; size];
        sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()).result().map_err(|e| failed("give the cubin", e))?;
        image
    };
    Ok(Cubin { image, spilled: spilled(&log) })
}

/// The sum of "N bytes spill stores, N bytes spill loads" in ptxas' words.
fn spilled(log: &str) -> usize {
    let words: Vec<&str> = log.split_whitespace().collect();
    let counts = words.windows(3).filter(|w| w[1] == "bytes" && w[2] == "spill").map(|w| w[0].parse().unwrap_or(0));
    counts.sum()
}

fn encode(cubin: &Cubin) -> Vec<u8> {
    let head = format!("{} {} {:016x}\n", cubin.spilled, cubin.image.len(), fnv1a64(&cubin.image));
    [head.as_bytes(), &cubin.image].concat()
}

fn decode(contents: &[u8]) -> Option<Cubin> {
    let end = contents.iter().position(|&b| b == b'\n')?;
    let numbers: Vec<&str> = std::str::from_utf8(&contents[..end]).ok()?.split(' ').collect();
    let (image, &[spilled, length, checksum]) = (&contents[end + 1..], &numbers[..]) else { return None };
    let whole = length.parse() == Ok(image.len()) && u64::from_str_radix(checksum, 16) == Ok(fnv1a64(image));
    whole.then_some(())?;
    Some(Cubin { image: image.to_vec(), spilled: spilled.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::EMBEDDED;

    #[test]
    fn a_damaged_entry_is_no_entry() {
        let cubin = Cubin { image: vec![1, 2, 3, 10, 255], spilled: 8 };
        let entry = encode(&cubin);
        assert_eq!(decode(&entry), Some(cubin));
        for cut in 0..entry.len() {
            assert_eq!(decode(&entry[..cut]), None, "cut to {cut}");
        }
        for at in "8 ".len()..entry.len() {
            let mut damaged = entry.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged), None, "byte {at}");
        }
    }

    #[test]
    fn an_identity_depends_on_what_is_included_alone() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let of = |source: &str| {
            let sources = with_includes(&format!("{source}.cu"), Some(folder.path())).unwrap();
            identity(source, "13.0", &sources, &["-DHEADS=24".into()])
        };
        EMBEDDED.iter().for_each(|(name, text)| write(name, text));
        let before = ["attention", "noise"].map(of);
        write("noise.cu", "// a word more\n");
        let after = ["attention", "noise"].map(of);
        assert!(after[0] == before[0] && after[1] != before[1]);
        write("types.cuh", "// a word more\n");
        assert_ne!(of("attention"), before[0]);
        assert!(before[0].ends_with(" -DHEADS=24") && !before[0].contains('\n'));
    }

    #[test]
    fn spills_are_summed() {
        let log =
            "ptxas . 8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n0 bytes spill stores, 0 bytes spill loads";
        assert_eq!(spilled(log), 16);
    }
}
