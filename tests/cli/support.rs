//! Running the binary in a folder of its own, and looking at what it left there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_step1x-edit");

/// On one file system, so that models can be hard-linked.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// What an edit is given unless a test gives the flag itself. Two steps at the smallest size take a quarter second.
const DEFAULTS: [(&str, &str); 4] =
    [("-p", "make the sofa leather"), ("-o", "out.png"), ("--steps", "2"), ("--size-level", "64")];

static MODEL: LazyLock<PathBuf> = LazyLock::new(make_model);

/// The tiny model of v1.1 that tests share and do not change.
pub fn model() -> &'static Path {
    &MODEL
}

/// Makes this process's model. Nothing is dropped when a test process ends, so the next one removes what it left.
fn make_model() -> PathBuf {
    const PREFIX: &str = "cli-model-";
    for entry in fs::read_dir(SCRATCH).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let ended = |pid: &str| !Path::new("/proc").join(pid).exists();
        if name.strip_prefix(PREFIX).is_some_and(ended) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let dir = Path::new(SCRATCH).join(format!("{PREFIX}{}", std::process::id()));
    let made = Command::new(BINARY).args(["synth", "--preset", "tiny", "-o"]).arg(&dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    dir
}

/// A picture of `tests/data/images`.
pub fn fixture(name: &str) -> String {
    format!("{}/tests/data/images/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A file of `tests/data/reports`: like one that somebody was in trouble with.
pub fn report(name: &str) -> String {
    format!("{}/tests/data/reports/{name}", env!("CARGO_MANIFEST_DIR"))
}

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
    /// The answer of a command that must succeed, stdout as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// Checks the exit code, that each word is in the message, and that nothing went to stdout or panicked.
    pub fn refused(&self, code: i32, words: &[&str]) {
        let Answer { stdout, stderr, .. } = self;
        assert_eq!(self.code, Some(code), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "no {word:?} in: {stderr}");
        }
        assert!(stderr.lines().any(|line| line.starts_with("error: ")), "{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"), "{stderr}");
        assert_eq!(stdout, "");
    }
}

/// A folder of its own in which commands run, so that tests name their files plainly.
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir_in(SCRATCH).unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// All files and folders below, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut folders = vec![self.dir.path().to_path_buf()];
        let mut names = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                names.push(path.strip_prefix(self.dir.path()).unwrap().display().to_string());
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                }
            }
        }
        names.sort();
        names
    }

    /// A command of the binary, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        for cache in ["HF_HUB_CACHE", "MODELSCOPE_CACHE"] {
            command.env(cache, self.path("no-cache"));
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Answer {
        self.command(args).output().unwrap().into()
    }

    /// The arguments of an edit: these, and the defaults for what they leave out.
    pub fn edit_args<'a>(&self, args: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["edit"];
        if !args.contains(&"-m") {
            all.extend(["-m", model().to_str().unwrap()]);
        }
        all.extend(DEFAULTS.iter().filter(|(flag, _)| !args.contains(flag)).flat_map(|&(flag, value)| [flag, value]));
        all.extend(args);
        all
    }

    pub fn edit(&self, args: &[&str]) -> Answer {
        self.run(&self.edit_args(args))
    }

    /// An edit that must succeed.
    pub fn edited(&self, args: &[&str]) -> Answer {
        let answer = self.edit(args);
        assert_eq!(answer.code, Some(0), "{args:?}: {}", answer.stderr);
        answer
    }

    /// An edit that must be refused with this code and these words, leaving the folder as it was.
    pub fn edit_refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let before = self.names();
        self.edit(args).refused(code, words);
        assert_eq!(self.names(), before, "{args:?}");
    }

    /// A folder `name` with hard links to the shared model's files, but for `without`.
    pub fn linked_model(&self, name: &str, without: &[&str]) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir_all(dir.join(QWEN)).unwrap();
        for file in MODEL_FILES.into_iter().filter(|file| !without.contains(file)) {
            fs::hard_link(model().join(file), dir.join(file)).unwrap();
        }
        dir
    }
}

const QWEN: &str = "Qwen2.5-VL-7B-Instruct";
pub const DIT: &str = "step1x-edit-v1p1-official.safetensors";
pub const VAE: &str = "vae.safetensors";
pub const SETTINGS: &str = "step1x.json";
pub const CONFIG: &str = "Qwen2.5-VL-7B-Instruct/config.json";
pub const TOKENIZER: &str = "Qwen2.5-VL-7B-Instruct/tokenizer.json";
pub const TEXT: &str = "Qwen2.5-VL-7B-Instruct/model.safetensors";
pub const MODEL_FILES: [&str; 6] = [DIT, VAE, SETTINGS, CONFIG, TOKENIZER, TEXT];

/// Width, height and 8-bit RGB samples of a picture file's bytes.
pub fn pixels(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let picture = image::load_from_memory(bytes).unwrap().to_rgb8();
    (picture.width(), picture.height(), picture.into_raw())
}

/// Largest difference of two pictures of one size, in levels.
pub fn difference(a: &[u8], b: &[u8]) -> u8 {
    let ((aw, ah, a), (bw, bh, b)) = (pixels(a), pixels(b));
    assert_eq!((aw, ah), (bw, bh));
    a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// What a PNG says of how it was made.
pub fn parameters(png: &[u8]) -> Value {
    let reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let info = reader.info();
    let ascii = info.uncompressed_latin1_text.iter().find(|t| t.keyword == "parameters").map(|t| t.text.clone());
    let utf8 = info.utf8_text.iter().find(|t| t.keyword == "parameters").map(|t| t.get_text().unwrap());
    serde_json::from_str(&ascii.or(utf8).expect("a text chunk `parameters`")).unwrap()
}

/// Builds the library `lib<name>.so` from a C source of `tests/data` in a folder of its own; none where there is no C compiler.
pub fn library(place: &Place, source: &str, name: &str) -> Option<PathBuf> {
    let folder = place.path(name);
    fs::create_dir_all(&folder).unwrap();
    let source = format!("{}/tests/data/{source}", env!("CARGO_MANIFEST_DIR"));
    let output = folder.join(format!("lib{name}.so"));
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&output).arg(source).arg("-lm").status();
    built.is_ok_and(|status| status.success()).then_some(folder)
}

/// The stand-in of a library of a GPU.
pub fn stand_in(place: &Place, name: &str) -> Option<PathBuf> {
    library(place, "stand_in.c", name)
}

/// A visible word on a case that cannot be tried here.
pub fn skipped(case: &str, reason: &str) {
    eprintln!("skipped: {case}: {reason}");
}
