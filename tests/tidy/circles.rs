//! No circle of modules, nor of files inside a module, as far as text tells.
//!
//! In each folder, modules, with all that lies below them, name their siblings. A parent and its children are no edge: the
//! parent is the children's door and common ground. What it imports is followed to the sibling that it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::{ROOT, shipped, sources};

/// A module's path from `src` on, such as `["ops", "add"]`, or that of something in it.
type Name = Vec<String>;

/// Every module's text, without comments and tests.
struct Modules(BTreeMap<Name, String>);

impl Modules {
    fn read() -> Modules {
        let src = Path::new(ROOT).join("src");
        let files = sources(&src).into_iter().filter(|path| !["lib.rs", "main.rs"].iter().any(|root| *path == src.join(root)));
        Modules::new(files.map(|path| {
            let inside = path.strip_prefix(&src).unwrap().with_extension("").display().to_string();
            (inside.trim_end_matches("/mod").to_string(), shipped(&path))
        }))
    }

    fn new(files: impl Iterator<Item = (String, String)>) -> Modules {
        let code = |text: String| text.lines().filter_map(|line| line.split("//").next()).collect::<Vec<_>>().join("\n");
        Modules(files.map(|(name, text)| (name.split('/').map(String::from).collect(), code(text))).collect())
    }

    /// What `module` means by `path`; none for another crate's items and for names of its own.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Name> {
        let ups = path.iter().take_while(|part| *part == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([module, &path[1..]].concat()),
            "super" => Some([&module[..module.len().checked_sub(ups)?], &path[ups..]].concat()),
            _ => self.0.contains_key(&[module, &path[..1]].concat()).then(|| [module, path].concat()),
        }
    }

    /// The module that an item lies in: what a module imports, its children see as if it were its own.
    fn home(&self, item: &[String]) -> Option<Name> {
        let depth = (1..=item.len()).rev().find(|&depth| self.0.contains_key(&item[..depth]))?;
        let module = &item[..depth];
        let imported = imports(&self.0[module]).into_iter().find(|path| path.last() == item.get(depth));
        let origin = imported.and_then(|path| self.home(&self.absolute(module, &path)?));
        origin.or_else(|| Some(module.to_vec()))
    }

    /// Who names which sibling, and in which words.
    fn edges(&self) -> BTreeMap<Name, BTreeMap<Name, String>> {
        let mut edges: BTreeMap<Name, BTreeMap<Name, String>> = BTreeMap::new();
        for (module, text) in &self.0 {
            for path in [imports(text), paths(text)].concat() {
                let Some(home) = self.absolute(module, &path).and_then(|item| self.home(&item)) else { continue };
                let common = module.iter().zip(&home).take_while(|(a, b)| a == b).count();
                if common < module.len().min(home.len()) {
                    let words = format!("{} names {}", module.join("/"), path.join("::"));
                    edges.entry(module[..=common].to_vec()).or_default().insert(home[..=common].to_vec(), words);
                }
            }
        }
        edges
    }

    /// The words that make a circle, if there is one.
    fn circle(&self) -> Option<Vec<String>> {
        let mut edges = self.edges();
        // Who names nobody that is left is in no circle.
        loop {
            let left: BTreeSet<Name> = edges.keys().cloned().collect();
            edges.values_mut().for_each(|named| named.retain(|to, _| left.contains(to)));
            edges.retain(|_, named| !named.is_empty());
            if edges.len() == left.len() {
                break;
            }
        }
        let mut walk = vec![edges.first_key_value()?.0];
        loop {
            let (next, _) = edges[walk[walk.len() - 1]].first_key_value()?;
            if let Some(start) = walk.iter().position(|passed| *passed == next) {
                let steps = walk[start..].iter().zip(walk[start + 1..].iter().chain([&next]));
                return Some(steps.map(|(from, to)| edges[*from][*to].clone()).collect());
            }
            walk.push(next);
        }
    }
}

fn words(path: &str) -> Vec<String> {
    path.split("::").map(|word| word.trim().to_string()).collect()
}

/// The paths of a text's `use` declarations. Of `a as b` it is a's, of `a::self` as well.
fn imports(text: &str) -> Vec<Vec<String>> {
    let trees = text.split("use ").skip(1).filter_map(|rest| rest.split(';').next());
    let plain = |path: String| words(path.split(" as ").next().unwrap_or_default().trim_end_matches("::self"));
    trees.flat_map(branches).map(plain).collect()
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn branches(tree: &str) -> Vec<String> {
    let Some((stem, group)) = tree.split_once('{') else { return vec![tree.trim().to_string()] };
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in group.trim_end().trim_end_matches(',').chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match (c, depth) {
            (',', 0) => parts.push(String::new()),
            (_, 0..) => parts.last_mut().expect("one at least").push(c),
            _ => {} // the brace that closes the group
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| branches(part)).map(|part| format!("{}{part}", stem.trim())).collect()
}

/// All words of a text that are joined by `::`.
fn paths(text: &str) -> Vec<Vec<String>> {
    let found = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    found.filter(|path| path.contains("::") && !path.ends_with(':')).map(words).collect()
}

#[test]
fn no_modules_name_each_other_in_a_circle() {
    let circle = Modules::read().circle().unwrap_or_default();
    assert!(circle.is_empty(), "a circle:\n{}", circle.join("\n"));
}

#[test]
fn circles_are_found() {
    let circle = |texts: &[(&str, &str)]| Modules::new(texts.iter().map(|(n, t)| (n.to_string(), t.to_string()))).circle();
    let door = ("m", "mod a;\nmod b;\npub use b::Item;\nfn f() { a::g() }");
    let a = ("m/a", "use super::{Item, f};\nfn g() {}");
    assert_eq!(circle(&[door, a, ("m/b", "use crate::n::X;"), ("n", "")]), None);
    assert_eq!(circle(&[door, a, ("m/b", "// use super::a;")]), None);
    let expected = Some(vec!["m/a names super::Item".to_string(), "m/b/c names crate::m::a::g".to_string()]);
    assert_eq!(circle(&[door, a, ("m/b", ""), ("m/b/c", "fn h() { crate::m::a::g() }")]), expected);
    assert!(circle(&[door, a, ("m/b", "use super::{\n    X,\n    a::{self as other, Y},\n};")]).is_some());
    assert!(circle(&[("x", "use crate::{z, y};"), ("y", "use crate::z::Z;"), ("z", "fn f(_: crate::x::X) {}")]).is_some());
}
