//! The table of limits in SECURITY.md: each number is that of its constant, each test is there, and no limit is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Code, ROOT, code};

/// Where what comes from outside is read.
const READERS: [&str; 12] = [
    "src/image/read",
    "src/weights",
    "src/prompt",
    "src/model",
    "src/cli",
    "src/pipeline",
    "src/commands/pull",
    "src/commands/batch",
    "src/commands/gedit",
    "src/serve",
    "src/commands/verify/golden.rs",
    "src/commands/judge/cases.rs",
];

/// Whose constants say what a sound picture looks like, not what is accepted.
const NO_LIMITS: &str = "src/image/read/jpeg/block.rs";

/// A row: the numbers, one or two, then file and name of the constant and of the test.
#[derive(Debug, PartialEq)]
struct Row {
    numbers: Vec<f64>,
    constant: (String, String),
    test: (String, String),
}

/// The rows of the table that names constants and tests.
fn rows(text: &str) -> Vec<Row> {
    let lines = text.lines().skip_while(|line| !line.ends_with("| constant | test |")).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let names = |cell: &str| match &code(cell)[..] {
            [Code::Span(_, file), Code::Span(_, name)] => (file.clone(), name.clone()),
            _ => panic!("no file and name: {line}"),
        };
        Row { numbers: numbers(cells[1]), constant: names(cells[2]), test: names(cells[3]) }
    };
    rows.map(row).collect()
}

/// The numbers of a cell: `1,000 (in words)`, `1 to 1,000`, `5 s`.
fn numbers(cell: &str) -> Vec<f64> {
    let plain = cell.split('(').next().unwrap_or_default().replace(',', "");
    let number = |text: &str| text.trim().trim_end_matches(" s").parse().unwrap_or_else(|_| panic!("{cell:?} is no number"));
    plain.split(" to ").map(number).collect()
}

/// The values of a constant of a file, one or the two of a range.
fn values(text: &str, name: &str) -> Vec<f64> {
    let declared = text.split(&format!("const {name}: ")).nth(1).unwrap_or_else(|| panic!("there is no constant {name}"));
    let value =
        declared.split(';').next().and_then(|line| line.split_once(" = ")).unwrap_or_else(|| panic!("{name} has no value")).1;
    value.split("..=").map(|part| computed(text, part)).collect()
}

/// What a constant expression is: numbers, names of the same file, products and shifts.
fn computed(text: &str, expression: &str) -> f64 {
    let expression = expression.trim();
    if let Some(seconds) = expression.strip_prefix("Duration::from_secs(") {
        return computed(text, seconds.trim_end_matches(')'));
    }
    if let Some((value, shift)) = expression.split_once(" << ") {
        return computed(text, value) * computed(text, shift).exp2();
    }
    if expression.contains(" * ") {
        return expression.split(" * ").map(|factor| computed(text, factor)).product();
    }
    match expression.replace('_', "").parse() {
        Ok(number) => number,
        Err(_) if expression == "u32::MAX as usize" => u32::MAX.into(),
        Err(_) => values(text, expression)[0],
    }
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn table() -> Vec<Row> {
    rows(&read("SECURITY.md"))
}

/// Names of the tests in a file; those of `proptest!` count.
fn tests(text: &str) -> BTreeSet<String> {
    let functions = text.split("#[test]").skip(1).filter_map(|rest| rest.split_once("fn ")?.1.split_once('('));
    functions.map(|(name, _)| name.to_string()).collect()
}

#[test]
fn every_limit_is_that_of_the_source_and_has_its_test() {
    let table = table();
    assert!(table.len() > 50, "{} rows", table.len());
    for Row { numbers, constant: (file, name), test: (tests_file, test) } in table {
        assert_eq!(values(&read(&file), &name), numbers, "SECURITY.md and {name} of {file}");
        assert!(tests(&read(&tests_file)).contains(&test), "SECURITY.md: {tests_file} has no test {test}");
    }
}

/// The constants of a file that are limits: by their names, or by what is said of them.
fn limits(text: &str) -> Vec<String> {
    let mut said = "";
    let mut found = Vec::new();
    for line in text.split("#[cfg(test)]").next().unwrap_or_default().lines().map(str::trim) {
        match line.split_once("const ").filter(|(before, _)| before.is_empty() || before.starts_with("pub")) {
            Some((_, declared)) if !declared.starts_with("fn ") => {
                let name = declared.split(':').next().unwrap_or_default();
                let named = ["MAX", "MOST"].iter().any(|word| name.split('_').any(|part| part == *word));
                let limiting = ["Most", "Largest"].contains(&said.split(' ').next().unwrap_or_default());
                found.extend((named || limiting).then(|| name.to_string()));
                said = "";
            }
            _ => match line.strip_prefix("/// ") {
                Some(words) if said.is_empty() => said = words,
                Some(_) => {}
                None => said = "",
            },
        }
    }
    found
}

fn sources(place: PathBuf) -> Vec<PathBuf> {
    match fs::read_dir(&place) {
        Ok(entries) => entries.flat_map(|entry| sources(entry.unwrap().path())).collect(),
        Err(_) => vec![place],
    }
}

#[test]
fn no_limit_is_left_out() {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Row { constant: (file, name), .. } in table() {
        assert!(named.entry(file).or_default().insert(name.clone()), "SECURITY.md names {name} twice");
    }
    for path in READERS.iter().flat_map(|place| sources(Path::new(ROOT).join(place))) {
        let file = path.strip_prefix(ROOT).unwrap().display().to_string();
        if file.contains("tests") || file == NO_LIMITS {
            continue;
        }
        for name in limits(&read(&file)) {
            let is_named = named.get(&file).is_some_and(|names| names.contains(&name));
            assert!(is_named, "SECURITY.md does not name {name} of {file}");
        }
    }
}

#[test]
fn tables_and_constants_are_read() {
    let text = "| what | most | constant | test |\n|---|---|---|---|\n\
                | a | 4,194,304 (4 MiB) | `src/a.rs` `A` | `src/a.rs` `a` |\n| b | -100 to 1,000 | `b` `B` | `c` `d` |\n";
    let row = |numbers: &[f64], [a, b, c, d]: [&str; 4]| Row {
        numbers: numbers.to_vec(),
        constant: (a.into(), b.into()),
        test: (c.into(), d.into()),
    };
    assert_eq!(
        rows(text),
        [row(&[4_194_304.0], ["src/a.rs", "A", "src/a.rs", "a"]), row(&[-100.0, 1000.0], ["b", "B", "c", "d"])]
    );
    let source = "/// Most of all.\nconst A: usize = 4 << 20;\npub const B: RangeInclusive<f32> = -100.0..=1_000.0;\n\
                  /// One.\nconst C: usize = 2 * D * D;\nconst D: usize = 3;\nconst E_MAX: Duration = Duration::from_secs(5);\n\
                  /// Largest of all.\n/// And more.\npub(super) const F: f64 = 1e15;\n";
    let found = ["A", "B", "C", "E_MAX", "F"].map(|name| values(source, name));
    assert_eq!(found, [vec![4_194_304.0], vec![-100.0, 1000.0], vec![18.0], vec![5.0], vec![1e15]]);
    assert_eq!(limits(source), ["A", "E_MAX", "F"]);
    assert_eq!(tests("#[test]\n#[cfg(unix)]\nfn a() {\n}\nfn b() {}\n"), ["a".to_string()].into());
}
