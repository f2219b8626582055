//! Embeds `kernels/*` and a hash of them; nothing else.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

fn main() {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("kernels");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("the folder kernels/").map(|e| e.expect("an entry of kernels/").path()).collect();
    files.sort();

    let mut list = String::from("&[\n");
    let mut hash = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a, over names and contents
    for path in &files {
        let name = path.file_name().and_then(|n| n.to_str()).expect("kernel files have plain names");
        let text = fs::read(path).expect("a readable kernel file");
        for byte in name.bytes().chain([0]).chain(text) {
            hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
        writeln!(list, "    ({name:?}, include_str!({path:?})),").expect("writing to a string");
    }
    list.push(']');
    let out = Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("kernels.rs");
    fs::write(out, list).expect("a writable OUT_DIR");
    println!("cargo::rustc-env=KERNELS_HASH={hash:016x}");
}
