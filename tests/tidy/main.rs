//! Rules of the source tree, enforced: who may name whom, sizes of files and functions, an op's files.

mod circles;
mod functions;

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Each module and what it may name, from the bottom up.
const LAYERS: [(&str, &[&str]); 23] = [
    ("tensor", &[]),
    ("hash", &[]),
    ("aside", &[]),
    ("reserve", &[]),
    ("kernels", &[]),
    ("error", &[]),
    ("stop", &["error"]),
    ("cuda", &["aside", "error", "hash", "kernels", "tensor"]),
    ("ops", &["cuda", "tensor"]),
    ("graph", &["ops", "tensor"]),
    ("plan", &["error", "graph", "ops", "tensor"]),
    ("model", &["graph", "ops", "tensor"]),
    ("sampling", &["ops", "tensor"]),
    ("image", &["aside", "error", "reserve"]),
    ("prompt", &["image"]),
    ("weights", &["aside", "error", "hash", "model", "ops", "tensor"]),
    ("exec", &["cuda", "error", "graph", "ops", "plan", "tensor", "weights"]),
    ("inputs", &["model", "prompt"]),
    (
        "pipeline",
        &["cuda", "error", "exec", "graph", "image", "inputs", "model", "ops", "plan", "prompt", "sampling", "tensor", "weights"],
    ),
    ("progress", &["error", "pipeline", "stop"]),
    ("serve", &["cuda", "error", "image", "model", "pipeline", "progress", "sampling", "stop"]),
    (
        "commands",
        &[
            "aside", "cuda", "error", "exec", "graph", "image", "model", "ops", "pipeline", "plan", "prompt", "sampling",
            "serve", "stop", "tensor", "weights",
        ],
    ),
    ("cli", &["commands", "cuda", "error", "image", "model", "ops", "pipeline", "plan", "sampling", "serve", "tensor"]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs" || e == "cu" || e == "cuh") {
            found.push(path);
        }
    }
    found
}

fn module_files(module: &str) -> Vec<PathBuf> {
    let src = Path::new(ROOT).join("src");
    let (file, folder) = (src.join(format!("{module}.rs")), src.join(module));
    if folder.is_dir() { sources(&folder) } else { vec![file] }
}

/// The part of a file that ships: unit tests may reach further.
fn shipped(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let is_tests = path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
    if is_tests { String::new() } else { text.split("#[cfg(test)]").next().unwrap_or_default().to_string() }
}

/// The crate modules that a text names by `crate::module`, also within braces.
fn named(text: &str) -> Vec<String> {
    let word = |s: &str| s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut modules = Vec::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(group.split('}').next().unwrap_or_default().split(',').map(word)),
            None => modules.push(word(rest)),
        }
    }
    modules
}

#[test]
fn dependencies_point_down() {
    for (i, (module, allowed)) in LAYERS.into_iter().enumerate() {
        let below = |name: &&str| LAYERS[..i].iter().any(|(lower, _)| *lower == *name);
        assert!(allowed.iter().all(below), "{module} may name {allowed:?}, not all of which lie below it");
        let files = module_files(module);
        assert!(!files.is_empty(), "{module} has no files");
        for path in files {
            for name in named(&shipped(&path)) {
                let fine = name == module || allowed.contains(&name.as_str());
                assert!(fine, "{} names crate::{name}; {module} may name {allowed:?}", path.display());
            }
        }
    }
}

#[test]
fn every_module_has_its_layer() {
    let lib = fs::read_to_string(Path::new(ROOT).join("src/lib.rs")).unwrap();
    let mut declared: Vec<&str> = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut layered = LAYERS.map(|(module, _)| module);
    declared.sort_unstable();
    layered.sort_unstable();
    assert_eq!(declared, layered);
}

#[test]
fn only_the_top_reads_arguments_and_environment() {
    for path in sources(&Path::new(ROOT).join("src")) {
        let top = ["main.rs", "cli/environment.rs"].iter().any(|name| path.ends_with(name));
        assert!(top || !shipped(&path).contains("env::"), "{} names std::env", path.display());
    }
}

/// Who audits what leaves the machine has one folder to read, and a build without it is one without connections; who audits what
/// comes in has another. The server connects to nothing but a socket of its own path, to see whether somebody listens there.
#[test]
fn only_pull_opens_connections_and_only_serve_listens() {
    let src = Path::new(ROOT).join("src");
    for path in sources(&src) {
        let pull = path.starts_with(src.join("commands/pull"));
        let text = shipped(&path);
        let connects = ["ureq", "rustls", "std::net::T", "std::net::U", "TcpStream", "UdpSocket", "UnixStream::"]
            .into_iter()
            .find(|way| text.contains(way));
        let serve = path.starts_with(src.join("serve"));
        assert!(serve || !["Listener", "hyper", "axum"].iter().any(|way| text.contains(way)), "{} listens", path.display());
        let own =
            path.ends_with("serve/listen.rs") && connects == Some("UnixStream::") && text.matches("::connect(").count() == 1;
        assert!(
            pull || own || connects.is_none(),
            "{} names {}; only `pull` opens connections",
            path.display(),
            connects.unwrap_or_default()
        );
    }
    let manifest = fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).unwrap();
    let optional = |line: &str| !line.starts_with("ureq") || line.contains("optional = true");
    assert!(manifest.lines().all(optional), "ureq is of the feature `pull` alone");
}

#[test]
fn only_cli_knows_flags() {
    let src = Path::new(ROOT).join("src");
    for path in sources(&src) {
        let cli = path.starts_with(src.join("cli"));
        assert!(cli || !shipped(&path).contains("clap"), "{} names clap; commands take jobs", path.display());
    }
}

#[test]
fn names_are_found_in_paths_and_groups() {
    assert_eq!(named("use crate::exec::Reference;\nuse crate::{graph, plan};"), ["exec", "graph", "plan"]);
}

#[test]
fn files_stay_readable() {
    for path in [sources(&Path::new(ROOT).join("src")), sources(&Path::new(ROOT).join("kernels"))].concat() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines; does it hold two ideas?", path.display());
        assert!(!text.contains("TODO") && !text.contains("FIXME"), "{} has unfinished work", path.display());
    }
}

/// The rust files of `ops`, with their paths below it.
fn op_files() -> Vec<(String, String)> {
    let ops = Path::new(ROOT).join("src/ops");
    let named = |path: PathBuf| {
        let name = path.strip_prefix(&ops).unwrap().to_string_lossy().into_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    module_files("ops").into_iter().map(named).collect()
}

/// Checks that a file has these parts in this order.
fn in_order(name: &str, text: &str, parts: &[&str]) {
    let place = |part: &&str| text.find(part).unwrap_or_else(|| panic!("{name} lacks {part}"));
    assert!(parts.iter().map(place).is_sorted(), "{name} is not in the order {parts:?}");
}

#[test]
fn modules_lie_where_cargo_looks() {
    let files = ["src", "tests", "benches"].map(|folder| sources(&Path::new(ROOT).join(folder))).concat();
    let texts = files.iter().map(|path| fs::read_to_string(path).unwrap());
    let count: usize = texts.map(|text| text.lines().filter(|line| line.trim_start().starts_with("#[path")).count()).sum();
    assert!(count <= 3, "{count} times #[path]: three targets share tests/common, the rest needs none");
    let beside = files.iter().find(|file| file.with_extension("").is_dir());
    assert!(beside.is_none(), "{} lies beside its folder; it is the folder's mod.rs", beside.unwrap().display());
}

#[test]
fn every_op_file_is_listed_and_reads_alike() {
    let list = fs::read_to_string(Path::new(ROOT).join("src/ops/mod.rs")).unwrap();
    let list = list.split("\nops! {").nth(1).expect("the list of ops");
    for (name, text) in op_files() {
        let op = match name.split_once('/') {
            None if ["mod.rs", "branches.rs", "case.rs", "product.rs", "select.rs", "tests.rs", "values.rs"]
                .contains(&name.as_str()) =>
            {
                continue;
            }
            None => name.strip_suffix(".rs").unwrap(),
            Some((op, "mod.rs")) => op,
            Some(_) => {
                in_order(&name, &text, &["//!", "VARIANT", "fn fits", "fn launch"]);
                continue;
            }
        };
        assert!(list.contains(&format!("\n    {op} {{")), "{op} is missing in the list of ops");
        in_order(&name, &text, &["//!", "impl Op for", "fn infer", "fn cost", "fn select", "fn reference", "fn cases"]);
    }
}

/// A kernel and the Rust file that launches it name each other; an op with one kernel has its name.
#[test]
fn every_kernel_has_its_rust_file() {
    let files = op_files();
    for path in sources(&Path::new(ROOT).join("kernels")).into_iter().filter(|path| path.extension().is_some_and(|e| e == "cu")) {
        let (stem, text) = (path.file_stem().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap());
        let named = text.split("as in src/ops/").nth(1).and_then(|rest| rest.split('"').next());
        let named = named.unwrap_or_else(|| panic!("{stem}.cu does not name the Rust file of its parameters"));
        let (_, rust) = files.iter().find(|(name, _)| name == named).unwrap_or_else(|| panic!("{stem}.cu names {named}"));
        assert!(rust.contains(&format!("\"{stem}\"")), "{named} does not launch {stem}.cu");
        assert!(named.contains('/') || named == format!("{stem}.rs"), "{stem}.cu belongs to {named}");
    }
    let chosen = |text: &str| -> Vec<String> {
        let calls = ["Kernel::new(\"", "_kernel(\""].into_iter().flat_map(|call| text.split(call).skip(1));
        calls.filter_map(|rest| rest.split('"').next()).map(Into::into).collect()
    };
    for (name, text) in &files {
        for stem in chosen(text) {
            assert!(Path::new(ROOT).join(format!("kernels/{stem}.cu")).is_file(), "{name} chooses {stem}, which has no source");
        }
    }
}

/// `cargo fmt` does not look into the macro that lists the ops.
#[test]
fn ops_are_formatted() {
    let files = module_files("ops");
    let run = std::process::Command::new("rustfmt").arg("--check").args(files).current_dir(ROOT).output();
    let Ok(run) = run else { return println!("SKIPPED: there is no rustfmt") };
    assert!(run.status.success(), "run rustfmt src/ops/*.rs src/ops/*/*.rs\n{}", String::from_utf8_lossy(&run.stdout));
}
