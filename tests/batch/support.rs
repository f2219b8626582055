//! Running batches of the demo model in a folder of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_step1x-edit");

/// What makes an edit of the demo model quick.
pub const QUICK: [&str; 6] = ["--device", "cpu", "--steps", "1", "--size-level", "64"];

/// A file of `tests/data`.
pub fn data(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A folder of its own.
pub struct Place(TempDir);

/// How a command ended and what it printed.
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Answer {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Answer { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Answer {
    /// Checks that it ended so, with these words, and that nothing panicked.
    #[track_caller]
    pub fn ended(&self, code: i32, words: &[&str]) -> &Answer {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A picture of its own for each number: 60x40 or 40x60, a rectangle on a colour.
    pub fn picture(&self, name: &str, number: usize) {
        let (width, height) = if number.is_multiple_of(3) { (40, 60) } else { (60, 40) };
        let colour = |at: usize| [(at * 83 % 256) as u8, (at * 151 % 256) as u8, (at * 37 % 256) as u8];
        let picture = image::RgbImage::from_fn(width, height, |x, y| {
            let inside = (10..30).contains(&x) && (8..25).contains(&y);
            image::Rgb(colour(if inside { 7 * number + 3 } else { number }))
        });
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture.save(path).unwrap();
    }

    /// Pictures `in/0.png` and so on and a manifest `items.jsonl` of them, with a few different prompts.
    pub fn items(&self, count: usize) {
        const PROMPTS: [&str; 4] = ["make it blue", "remove the square", "把它变成红色", "turn the picture into a drawing"];
        let mut text = String::new();
        for number in 0..count {
            self.picture(&format!("in/{number}.png"), number);
            let prompt = PROMPTS[number % PROMPTS.len()];
            text += &format!("{{\"image\": \"in/{number}.png\", \"prompt\": \"{prompt}\", \"task\": \"t{}\"}}\n", number % 2);
        }
        self.write("items.jsonl", text);
    }

    /// A command of the binary in this folder, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        self.command(args).output().unwrap().into()
    }

    /// A quick batch.
    pub fn batch(&self, args: &[&str]) -> Answer {
        self.run(&[&["batch"], args, &QUICK].concat())
    }

    /// Names and bytes of all files below a folder.
    pub fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let (root, mut found) = (self.path(folder), BTreeMap::new());
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.insert(path.strip_prefix(&root).unwrap().display().to_string(), fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    /// The same without the files of results.
    pub fn pictures(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        self.files(folder).into_iter().filter(|(name, _)| !name.ends_with(".jsonl")).collect()
    }

    /// The lines of results, without head and summaries.
    pub fn lines(&self, folder: &str) -> Vec<Value> {
        lines(&self.path(folder).join("results.jsonl"))
    }
}

/// The lines of a file of results, without head and summaries.
pub fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}")));
    lines.filter(|line| line.get("id").is_some()).collect()
}

/// How many lines have this status.
pub fn count(lines: &[Value], status: &str) -> usize {
    lines.iter().filter(|line| line["status"] == status).count()
}
