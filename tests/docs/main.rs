//! Keeps the documents true: their links and paths exist, the commands and flags they show are the program's, and the
//! README's two commands are the ones that are run; and so the limits of SECURITY.md.

mod limits;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::{Command, CommandFactory};
use step1x_edit::cli::Cli;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Programs other than this one, whose flags are their own business.
const OTHERS: [&str; 13] = [
    "cargo",
    "curl",
    "export",
    "git",
    "ncu",
    "nsys",
    "pip",
    "pytest",
    "python",
    "python3",
    "rustc",
    "compute-sanitizer",
    "rustup",
];

/// What documents write where a name of the reader's own would stand.
const PLACEHOLDERS: [&str; 3] = ["NAME", "DATE", "COMMAND"];

/// A piece of code in a document, with its line number.
#[derive(Debug, PartialEq)]
enum Code {
    /// A line of a fenced block, continued lines joined.
    Line(usize, String),
    /// Text between backticks.
    Span(usize, String),
}

/// All code in a Markdown text.
fn code(text: &str) -> Vec<Code> {
    let (mut found, mut fenced, mut continued) = (Vec::new(), false, String::new());
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            continued += line.trim_end().trim_end_matches('\\');
            if !line.trim_end().ends_with('\\') {
                found.push(Code::Line(number, std::mem::take(&mut continued)));
            }
        } else {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.map(|span| Code::Span(number, span.to_string())));
        }
    }
    found
}

/// The words of a line as a shell reads them; `#` begins a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (_, Some(end)) if c == end => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What follows the program's name in a line: itself, or `cargo run … --`.
fn arguments(line: &[String]) -> Option<&[String]> {
    let own = line.iter().position(|word| word == "step1x-edit" || word.ends_with("/step1x-edit"));
    let run = line.windows(2).any(|pair| pair[0] == "cargo" && pair[1] == "run");
    let at = own.or_else(|| line.iter().position(|word| word == "--").filter(|_| run))?;
    Some(&line[at + 1..])
}

/// Long and short names of a command's flags, with dashes.
fn flags(command: &Command) -> BTreeSet<String> {
    let mut names = BTreeSet::from(["--help", "--version", "-h", "-V"].map(String::from));
    for flag in command.get_arguments() {
        names.extend(flag.get_long_and_visible_aliases().into_iter().flatten().map(|name| format!("--{name}")));
        names.extend(flag.get_all_aliases().into_iter().flatten().map(|name| format!("--{name}")));
        names.extend(flag.get_short().map(|letter| format!("-{letter}")));
    }
    names
}

/// A word's flag, with `-` for `_` as the program reads it; none for values.
fn flag(word: &str) -> Option<String> {
    let name = word.strip_prefix('-').and(word.split('=').next())?.trim_end_matches([',', '.', ';', ':', ')']).replace('_', "-");
    let letters = name.trim_start_matches('-');
    let plain =
        letters.starts_with(|c: char| c.is_ascii_lowercase()) && letters.chars().all(|c| c == '-' || c.is_ascii_alphanumeric());
    (plain && (name.starts_with("--") || (name.starts_with('-') && letters.len() == 1))).then_some(name)
}

/// Commands and flags of a text that the program does not have, as `line: what`.
fn unknown_commands_and_flags(text: &str, program: &Command) -> Vec<String> {
    let all: BTreeSet<String> = program.get_subcommands().flat_map(flags).collect();
    let mut faults = Vec::new();
    for piece in code(text) {
        let (Code::Line(number, content) | Code::Span(number, content)) = &piece;
        let line = words(content);
        if let Some(arguments) = arguments(&line) {
            faults.extend(unknown_arguments(arguments, program, &all).into_iter().map(|fault| format!("{number}: {fault}")));
        } else if matches!(piece, Code::Span(..)) && !line.first().is_some_and(|word| OTHERS.contains(&word.as_str())) {
            let unknown = line.iter().filter_map(|word| flag(word)).filter(|name| name.starts_with("--") && !all.contains(name));
            faults.extend(unknown.map(|name| format!("{number}: no command has {name}")));
        }
    }
    faults
}

/// What of a call's arguments the program does not know.
fn unknown_arguments(arguments: &[String], program: &Command, all: &BTreeSet<String>) -> Vec<String> {
    let Some(first) = arguments.first() else { return vec![] };
    let known = match program.find_subcommand(first) {
        Some(command) => flags(command),
        None if first.starts_with('-') || PLACEHOLDERS.contains(&first.as_str()) || first == "…" => all.clone(),
        None => return vec![format!("there is no command {first}")],
    };
    let own = arguments.iter().take_while(|word| !["|", "&&", ";", ">"].contains(&word.as_str()));
    let unknown = own.filter_map(|word| flag(word)).filter(|name| !known.contains(name));
    unknown.map(|name| format!("{first} has no {name}")).collect()
}

/// Targets of a text's links and pictures, with line numbers; code is no link.
fn links(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut fenced) = (Vec::new(), false);
    for (number, line) in (1..).zip(text.lines()) {
        fenced ^= line.trim_start().starts_with("```");
        let prose: String = line.split('`').step_by(2).collect();
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        found.extend(targets.filter(|_| !fenced).map(|(target, _)| (number, target.to_string())));
    }
    found
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#'))).collect()
}

/// Folders that a path in backticks may be relative to: the document's own, the repository, the sources.
fn bases(folder: &Path) -> [PathBuf; 3] {
    [folder.to_path_buf(), ROOT.into(), Path::new(ROOT).join("src")]
}

/// Whether text between backticks means a file or folder of the repository.
fn is_path(span: &str, folder: &Path) -> bool {
    let plain = span.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
    let Some((first, _)) = span.split_once('/').filter(|(first, _)| plain && !first.is_empty() && *first != "..") else {
        return false;
    };
    let source = [".rs", ".cu", ".cuh", ".md", ".py"].iter().any(|end| span.ends_with(end));
    !PLACEHOLDERS.iter().any(|name| span.contains(name)) && (source || bases(folder).iter().any(|base| base.join(first).is_dir()))
}

/// Links and paths of a text that lead nowhere, as `line: target`.
fn broken_links_and_paths(text: &str, folder: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, target) in links(text).into_iter().filter(|(_, target)| !target.contains("://")) {
        let (path, heading) = target.split_once('#').unwrap_or((&target, ""));
        let file = folder.join(path);
        let there = match (path, heading) {
            ("", heading) => anchors(text).contains(heading),
            (_, "") => file.exists(),
            (_, heading) => fs::read_to_string(&file).is_ok_and(|other| anchors(&other).contains(heading)),
        };
        faults.extend((!there).then(|| format!("{number}: {target}")));
    }
    for piece in code(text) {
        let Code::Span(number, span) = piece else { continue };
        if is_path(&span, folder) && !bases(folder).iter().any(|base| base.join(&span).exists()) {
            faults.push(format!("{number}: {span}"));
        }
    }
    faults
}

/// The documents: path and text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "tools/demo_model/README.md"]
        .map(|name| Path::new(ROOT).join(name))
        .into();
    for folder in ["docs", "benches"] {
        let entries = fs::read_dir(Path::new(ROOT).join(folder)).unwrap().map(|entry| entry.unwrap().path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|end| end == "md")));
    }
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

/// Fails with the faults of all documents.
fn hold(check: impl Fn(&Path, &str) -> Vec<String>) {
    let mut faults = Vec::new();
    for (path, text) in documents() {
        let name = path.strip_prefix(ROOT).unwrap().display().to_string();
        faults.extend(check(path.parent().unwrap(), &text).into_iter().map(|fault| format!("{name}:{fault}")));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn readme() -> String {
    fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap()
}

/// The README's commands: the lines of its first two blocks.
fn two_commands(text: &str) -> Vec<String> {
    let lines = code(text).into_iter().filter_map(|piece| match piece {
        Code::Line(_, line) => Some(line),
        Code::Span(..) => None,
    });
    lines.take(2).collect()
}

#[test]
fn links_and_paths_lead_somewhere() {
    hold(|folder, text| broken_links_and_paths(text, folder));
}

#[test]
fn commands_and_flags_are_the_programs() {
    let program = Cli::command();
    hold(|_, text| unknown_commands_and_flags(text, &program));
}

#[test]
fn every_command_and_flag_is_documented() {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/cli.md")).unwrap();
    let spans: BTreeSet<String> = code(&text)
        .into_iter()
        .flat_map(|piece| match piece {
            Code::Line(_, content) | Code::Span(_, content) => words(&content),
        })
        .map(|word| word.trim_end_matches(',').to_string())
        .collect();
    for command in Cli::command().get_subcommands() {
        assert!(spans.contains(command.get_name()), "docs/cli.md does not name the command {}", command.get_name());
        for name in command.get_arguments().filter_map(|flag| flag.get_long()) {
            assert!(spans.contains(&format!("--{name}")), "docs/cli.md does not name --{name} of {}", command.get_name());
        }
    }
}

/// Long names of the flags that a text's tables explain: those in the first column.
fn flags_of_tables(text: &str) -> BTreeSet<String> {
    let cells = text.lines().filter(|line| line.starts_with("| `-")).filter_map(|line| line.split('|').nth(1));
    let named = cells.flat_map(|cell| words(&cell.replace('`', " ")));
    named.filter_map(|word| flag(&word)).filter(|name| name.starts_with("--")).collect()
}

#[test]
fn the_readme_explains_the_flags_of_the_short_help() {
    let program = Cli::command();
    let shown = program.find_subcommand("edit").expect("a command").get_arguments().filter(|flag| !flag.is_hide_short_help_set());
    let shown: BTreeSet<String> = shown.filter_map(|flag| Some(format!("--{}", flag.get_long()?))).collect();
    assert_eq!(flags_of_tables(&readme()), shown, "README.md and step1x-edit edit -h");
}

#[test]
fn flags_of_tables_are_found() {
    let text = "| flag | default |\n|---|---|\n| `-m`, `--model` | `--none` |\nSay `--loud`.\n| `--steps` | 28 |\n";
    assert_eq!(flags_of_tables(text), ["--model", "--steps"].map(String::from).into());
}

#[test]
fn the_readme_is_short() {
    let lines = readme().lines().count();
    assert!(lines <= 120, "README.md has {lines} lines, 120 are allowed: details belong into docs/");
}

#[test]
fn the_readmes_first_command_makes_a_picture() {
    let line = words(&two_commands(&readme())[0]);
    let place = tempfile::tempdir().unwrap();
    // Paths of the repository as seen from elsewhere, so that the result does not land in it.
    let absolute = |word: &String| if word.starts_with("examples/") { format!("{ROOT}/{word}") } else { word.clone() };
    let arguments: Vec<String> = arguments(&line).expect("a call of the program").iter().map(absolute).collect();
    let run = Process::new(env!("CARGO_BIN_EXE_step1x-edit"))
        .current_dir(&place)
        .args(&arguments)
        .args(["--device", "cpu"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    let made = fs::read_dir(&place).unwrap().count();
    assert_eq!(made, 1, "{arguments:?}");
}

#[test]
fn the_readmes_second_command_is_what_ci_runs() {
    let command = &two_commands(&readme())[1];
    let ci = fs::read_to_string(Path::new(ROOT).join(".ci/run")).unwrap();
    assert!(ci.lines().any(|line| line.trim_end().ends_with(command.as_str())), ".ci/run does not run {command:?}");
}

#[test]
fn unknown_commands_and_flags_are_found() {
    let text = "Say `--stepps`, `__sync`, `--cfg_guidance` or `cargo test --workspace`.\n\n```sh\nstep1x-edit paint -m MODEL\n\
                step1x-edit edit \\\n  --steps 8 --size 4x4 # --nothing\ncargo run --release -- judge --no-cases\ncargo test --release\n```\n";
    let faults = unknown_commands_and_flags(text, &Cli::command());
    let expected =
        ["1: no command has --stepps", "4: there is no command paint", "6: edit has no --size", "7: judge has no --no-cases"];
    assert_eq!(faults, expected);
}

#[test]
fn broken_links_and_paths_are_found() {
    let text = "# A head, line\n[a](README.md) [b](GONE.md) ![c](#a-head-line) [d](#no) [e](https://example.org/x)\n\
                `src/lib.rs` `src/gone.rs` `ops/gone.cu` `kernels/` `src/ops/NAME.rs` `a/b` `[x](y)`\n";
    let faults = broken_links_and_paths(text, Path::new(ROOT));
    assert_eq!(faults, ["2: GONE.md", "2: #no", "3: src/gone.rs", "3: ops/gone.cu"]);
}

#[test]
fn commands_are_read_as_a_shell_reads_them() {
    assert_eq!(words("edit -p \"make it 'red'\" # why\n"), ["edit", "-p", "make it 'red'"]);
    assert_eq!(two_commands("```sh\na \\\n b\n```\ntext\n```\nc\n```"), ["a  b", "c"]);
}
