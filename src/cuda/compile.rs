//! Kernel sources to cubins, by NVRTC, kept on disk.
//!
//! An entry of the cache is one file: a line with everything the cubin depends on (compiler, architecture, options,
//! hash of all sources and headers), a line with the compiler's word on spills, its length and checksum, the bytes. A
//! file that is anything else is made again. Written aside and renamed, so that processes can share a folder.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cudarc::nvrtc::{result, sys};

use super::library::{Setup, load_nvrtc};
use crate::kernels;

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
    version: (i32, i32),
    cache: Option<PathBuf>,
}

impl Compiler {
    /// For a compute capability (ten times it). Hopper's kernels may use what only sm_90a has.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: NVRTC is not found.
    pub fn new(capability: u32, setup: &Setup) -> Result<Compiler> {
        load_nvrtc(&setup.libraries)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places to write to.
        unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(|e| failed("give its version", e))?;
        let suffix = if capability == 90 { "a" } else { "" };
        Ok(Compiler { architecture: format!("sm_{capability}{suffix}"), version: (major, minor), cache: setup.cache.clone() })
    }

    /// The cubin of `kernels/<source>.cu` with these constants: from the cache, or made and put there. A cache that cannot
    /// be written costs time at the next start, nothing else.
    ///
    /// # Errors
    /// An unknown source, or the compiler's log.
    pub fn compile(&self, source: &str, defines: &[(&str, usize)]) -> Result<Cubin> {
        let options = self.options(defines);
        let identity = format!(
            "step1x-edit cubin 1: {source} nvrtc {}.{} kernels {} {}",
            self.version.0,
            self.version.1,
            kernels::HASH,
            options.join(" ")
        );
        let file = self.cache.as_ref().map(|folder| folder.join(format!("{source}-{:016x}.cubin", hash(identity.as_bytes()))));
        if let Some(cubin) = file.as_deref().and_then(|file| decode(&fs::read(file).ok()?, &identity)) {
            return Ok(cubin);
        }
        let cubin = build(source, &options).with_context(|| format!("kernels/{source}.cu for {}", options.join(" ")))?;
        if let Some(file) = file {
            let _ = write_aside(&file, &encode(&cubin, &identity));
        }
        Ok(cubin)
    }

    fn options(&self, defines: &[(&str, usize)]) -> Vec<String> {
        let fixed = [format!("--gpu-architecture={}", self.architecture)];
        let fixed = fixed.into_iter().chain(["--std=c++17", "--generate-line-info", "--ptxas-options=-v"].map(String::from));
        fixed.chain(defines.iter().map(|(name, value)| format!("-D{name}={value}"))).collect()
    }
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

fn build(source: &str, options: &[String]) -> Result<Cubin> {
    let text = kernels::source(&format!("{source}.cu")).context("there is no kernel source of this name")?;
    let text = CString::new(text).context("the kernel source contains a NUL byte")?;
    let name = CString::new(format!("{source}.cu"))?;
    let headers: Vec<(CString, CString)> = kernels::SOURCES
        .iter()
        .filter(|(name, _)| name.ends_with(".cuh"))
        .map(|(name, text)| Ok((CString::new(*name)?, CString::new(*text)?)))
        .collect::<Result<_>>()?;
    let names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
    let texts: Vec<*const c_char> = headers.iter().map(|(_, text)| text.as_ptr()).collect();

    let mut handle = std::ptr::null_mut();
    // SAFETY: all strings end with a NUL and outlive the program.
    let created = unsafe {
        sys::nvrtcCreateProgram(&mut handle, text.as_ptr(), name.as_ptr(), headers.len() as c_int, texts.as_ptr(), names.as_ptr())
    };
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

fn encode(cubin: &Cubin, identity: &str) -> Vec<u8> {
    let head = format!("{identity}\n{} {} {:016x}\n", cubin.spilled, cubin.image.len(), hash(&cubin.image));
    [head.as_bytes(), &cubin.image].concat()
}

fn decode(file: &[u8], identity: &str) -> Option<Cubin> {
    let rest = file.strip_prefix(identity.as_bytes())?.strip_prefix(b"\n")?;
    let end = rest.iter().position(|&b| b == b'\n')?;
    let numbers: Vec<&str> = std::str::from_utf8(&rest[..end]).ok()?.split(' ').collect();
    let (image, &[spilled, length, checksum]) = (&rest[end + 1..], &numbers[..]) else { return None };
    let whole = length.parse() == Ok(image.len()) && u64::from_str_radix(checksum, 16) == Ok(hash(image));
    whole.then_some(())?;
    Some(Cubin { image: image.to_vec(), spilled: spilled.parse().ok()? })
}

/// Writes a file that others see whole or not at all.
pub(super) fn write_aside(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let thread = hash(format!("{:?}", std::thread::current().id()).as_bytes());
    let aside = folder.join(format!(".{name}.{}.{thread:x}", std::process::id()));
    let written = fs::write(&aside, bytes).and_then(|()| fs::rename(&aside, file));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

/// FNV-1a.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_entry_is_no_entry() {
        let cubin = Cubin { image: vec![1, 2, 3, 10, 255], spilled: 8 };
        let file = encode(&cubin, "what it is");
        assert_eq!(decode(&file, "what it is"), Some(cubin));
        assert_eq!(decode(&file, "what it was"), None);
        for cut in 0..file.len() {
            assert_eq!(decode(&file[..cut], "what it is"), None, "cut to {cut}");
        }
        for at in "what it is\n8 ".len()..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&damaged, "what it is"), None, "byte {at}");
        }
    }

    #[test]
    fn spills_are_summed() {
        let log =
            "ptxas . 8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n0 bytes spill stores, 0 bytes spill loads";
        assert_eq!(spilled(log), 16);
    }

    #[test]
    fn writing_leaves_nothing_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/entry.cubin");
        write_aside(&file, b"one").unwrap();
        write_aside(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        assert!(write_aside(&file.join("below a file"), b"x").is_err());
    }
}
