//! Rules of the source tree, enforced: who may name whom, file sizes, an op's files.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Each module and what it may name, as `lib.rs` says.
const LAYERS: [(&str, &[&str]); 11] = [
    ("tensor", &[]),
    ("ops", &["tensor"]),
    ("graph", &["ops", "tensor"]),
    ("plan", &["graph", "ops", "tensor"]),
    ("model", &["graph", "ops", "tensor"]),
    ("weights", &["model", "tensor"]),
    ("exec", &["graph", "ops", "plan", "tensor", "weights"]),
    ("image", &[]),
    ("prompt", &["image"]),
    ("sampling", &["tensor", "ops"]),
    ("inputs", &["model", "prompt"]),
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
    for (module, allowed) in LAYERS {
        let files = module_files(module);
        assert!(!files.is_empty(), "{module} has no files");
        for path in files {
            for name in named(&shipped(&path)) {
                let fine = name == module || allowed.contains(&name.as_str()) || name.is_empty() || name == "image";
                assert!(fine, "{} names crate::{name}; {module} may name {allowed:?}", path.display());
            }
        }
    }
}

#[test]
fn the_rule_above_can_fail() {
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

#[test]
fn every_op_file_is_listed_and_reads_alike() {
    let list = fs::read_to_string(Path::new(ROOT).join("src/ops/mod.rs")).unwrap();
    for path in module_files("ops") {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if ["mod", "tests"].contains(&stem.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(list.contains(&format!("        {stem}::cases,\n")), "{stem} is missing in the list of cases");
        let order = ["//!", "impl Op for", "fn infer", "fn cost", "fn select", "fn reference", "fn cases"];
        let places: Vec<usize> =
            order.iter().map(|part| text.find(part).unwrap_or_else(|| panic!("{stem} lacks {part}"))).collect();
        assert!(places.is_sorted(), "{stem} is not in the order {order:?}");
    }
}
