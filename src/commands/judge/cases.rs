//! A folder of cases: the list `cases.json`, and the pictures `ID.source.png` and `ID.target.png` beside it.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::rule;
use crate::image::{self, Filter, Reading, Rgb};
use crate::pipeline::is_blank;

/// Largest `cases.json`; a case takes about 160 bytes.
const LIST_BYTES_MAX: u64 = 16_000_000;

/// An edit with a known result.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Name of its pictures.
    pub id: String,
    /// Of the edit.
    pub kind: String,
    /// Of the instruction.
    pub language: String,
    /// Its wording was kept from training.
    pub held_out: bool,
    /// What to do.
    pub instruction: String,
    /// How large the thing is that is edited; not every set says so.
    pub size: Option<String>,
    /// Which edges are right.
    #[serde(default)]
    pub edges: rule::Edges,
}

/// The cases that a folder lists, at least one; no two have one id.
///
/// # Errors
/// The list cannot be read, is too long or no such list, an id cannot name files, or an instruction is empty.
pub fn read(folder: &Path) -> Result<Vec<Case>> {
    let file = folder.join("cases.json");
    let shown = file.display();
    let text = read_list(&file).with_context(|| format!("cannot read {shown}"))?;
    let cases: Vec<Case> = serde_json::from_slice(&text).with_context(|| format!("{shown} is not a list of cases"))?;
    ensure!(!cases.is_empty(), "{shown} lists no cases; add one");
    let plain = |id: &str| !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if let Some(case) = cases.iter().find(|case| !plain(&case.id)) {
        bail!("{shown}: the id {:?} has other characters than letters, digits, - and _; rename the case", case.id);
    }
    if let Some(case) = cases.iter().find(|case| is_blank(&case.instruction)) {
        bail!("{shown}: the instruction of the case {} is empty; say what to change", case.id);
    }
    let mut seen = HashSet::new();
    if let Some(case) = cases.iter().find(|case| !seen.insert(case.id.as_str())) {
        bail!("{shown} lists the case {} twice; give each its own id", case.id);
    }
    Ok(cases)
}

fn read_list(file: &Path) -> Result<Vec<u8>> {
    let most = LIST_BYTES_MAX / 1_000_000;
    // Devices and pipes have no end, or none that can be known.
    ensure!(file.metadata()?.is_file(), "it is not a regular file; give a list of cases of at most {most} MB");
    let mut text = Vec::new();
    File::open(file)?.take(LIST_BYTES_MAX + 1).read_to_end(&mut text)?;
    ensure!(text.len() as u64 <= LIST_BYTES_MAX, "it has more than {most} MB; list the cases in several folders");
    Ok(text)
}

/// The pictures of a case, of one size.
pub struct Pictures {
    /// What is edited.
    pub source: Rgb,
    /// What should come out.
    pub target: Rgb,
    /// Width and height at which the source is edited and all pictures are compared.
    pub size: (usize, usize),
    edges: rule::Edges,
}

impl Pictures {
    /// Those of a case that is edited at a size level.
    ///
    /// # Errors
    /// They cannot be read, differ in size, cannot be edited at this level, or show no change there.
    pub fn read(folder: &Path, case: &Case, size_level: usize) -> Result<Pictures> {
        let read = |what: &str| {
            let file = folder.join(format!("{}.{what}.png", case.id));
            image::decode(&file, &Reading::default()).map(|decoded| decoded.picture)
        };
        let (source, target) = (read("source")?, read("target")?);
        let shown = |picture: &Rgb| format!("{}x{}", picture.width, picture.height);
        ensure!(
            (source.width, source.height) == (target.width, target.height),
            "case {}: the source is {}, the target {}; both must have one size",
            case.id,
            shown(&source),
            shown(&target)
        );
        let size = image::working_size(source.width, source.height, size_level).with_context(|| format!("case {}", case.id))?;
        ensure!(
            rule::differ(&at(&source, size), &at(&target, size)),
            "case {}: source and target are equal, or nearly so, at {}x{} pixels, where they are compared; give another target or \
             another --size-level",
            case.id,
            size.0,
            size.1
        );
        Ok(Pictures { source, target, size, edges: case.edges })
    }

    /// How far an edited picture of the source's size is from the target.
    pub fn measures(&self, edited: &Rgb) -> rule::Measures {
        rule::Measures::of(&at(&self.source, self.size), &at(&self.target, self.size), &at(edited, self.size), self.edges)
    }
}

/// A picture as the model sees it.
fn at(picture: &Rgb, size: (usize, usize)) -> Rgb {
    image::resize(picture, size.0, size.1, Filter::Lanczos)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The pictures that `tools/demo_model/verdicts.py` makes of a case's source and target, under its names.
    fn made(name: &str, source: &Rgb, target: &Rgb) -> Rgb {
        let (width, height) = (target.width, target.height);
        let of = |picture: &Rgb, x: usize, y: usize, c: usize| picture.data[3 * (y * width + x) + c] as usize;
        let value = |x: usize, y: usize, c: usize| match name {
            "target" => of(target, x, y, c),
            "source" => of(source, x, y, c),
            "between" => (of(source, x, y, c) + 4 * of(target, x, y, c) + 2) / 5,
            "shifted 1" => of(target, x.saturating_sub(1), y, c),
            "shifted 4" => of(target, x.saturating_sub(4), y, c),
            "smoothed" => {
                let (right, down) = ((x + 1).min(width - 1), (y + 1).min(height - 1));
                (of(target, x, y, c) + of(target, x, down, c) + of(target, right, y, c) + of(target, right, down, c) + 2) / 4
            }
            "darker" => of(target, x, y, c) * 31 / 32,
            "noisy 8" => (of(target, x, y, c) + (31 * x + 17 * y + 5 * c) % 8).min(255),
            "noisy 60" => (of(target, x, y, c) + (31 * x + 17 * y + 5 * c) % 60).min(255),
            _ => panic!("{name} is not known"),
        };
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        Rgb { width, height, data: pixels.flat_map(|(x, y)| (0..3).map(move |c| value(x, y, c) as u8)).collect() }
    }

    /// At 128, the demo model's level, for which `tools/demo_model/judge.py`, another implementation, has judged the same.
    #[test]
    fn another_implementation_gives_the_same_verdicts() {
        let (mut right, mut wrong) = (0, 0);
        for name in ["wide_cases", "drawn_cases"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
            let stored: Value = serde_json::from_slice(&std::fs::read(folder.join("verdicts.json")).unwrap()).unwrap();
            let cases = read(&folder).unwrap();
            assert_eq!(cases.len(), stored.as_object().unwrap().len(), "{name}");
            for case in cases {
                let pictures = Pictures::read(&folder, &case, 128).unwrap();
                for (edited, expected) in stored[&case.id].as_object().unwrap() {
                    let found = pictures.measures(&made(edited, &pictures.source, &pictures.target));
                    let same = |name: &str, value: f64| {
                        let known = expected[name].as_f64().unwrap();
                        (value - known).abs() <= 2e-6 * known.max(1.0)
                    };
                    assert!(
                        found.right() == expected["right"].as_bool().unwrap()
                            && same("changed", found.changed)
                            && same("picture", found.picture)
                            && same("outside", found.outside)
                            && same("mean", found.mean),
                        "{name}, {}, {edited}: {found:?} instead of {expected}",
                        case.id
                    );
                    *if found.right() { &mut right } else { &mut wrong } += 1;
                }
            }
        }
        assert!(right > 100 && wrong > 100, "{right} right, {wrong} wrong");
    }

    #[test]
    fn lists_have_at_most_so_many_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let with = |bytes: usize| {
            let list = r#"[{"id": "1", "kind": "k", "language": "en", "held_out": true, "instruction": "make it red"}]"#;
            std::fs::write(folder.path().join("cases.json"), list.to_string() + &" ".repeat(bytes - list.len())).unwrap();
            read(folder.path())
        };
        assert_eq!(with(16_000_000).unwrap().len(), 1);
        assert!(format!("{:#}", with(16_000_001).unwrap_err()).contains("more than 16 MB"));
    }
}
