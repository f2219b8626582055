//! Every call of the system fails once, and then always: commands end in words, and what they leave is whole or not there.
//!
//! The calls are counted first. All of them take half an hour, so a part is tried; STEP1X_ALL_FAULTS tries all.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rayon::prelude::*;

use super::support::*;

/// Calls of each kind that are tried, unless all are.
const TRIED: usize = 8;

/// A call of one kind that fails, by its number, and perhaps all after it.
#[derive(Clone, Debug)]
struct Fault {
    kind: String,
    at: usize,
    lasts: bool,
}

/// Some of a kind's calls: the first, the last, and some between.
fn some_of(calls: usize) -> Vec<usize> {
    if calls <= TRIED || std::env::var_os("STEP1X_ALL_FAULTS").is_some() {
        return (1..=calls).collect();
    }
    (0..TRIED).map(|i| 1 + i * (calls - 1) / (TRIED - 1)).collect()
}

/// A command under the library that makes faults.
struct Faulty<'a> {
    library: PathBuf,
    /// The command's arguments within its place, and what it makes there.
    args: Vec<&'a str>,
    makes: &'a str,
    /// Whether what was finished before a fault stays, as the pictures of `judge` do.
    keeps: bool,
    /// Kinds of calls that do not fail.
    spares: &'a [&'a str],
    /// What it finds in the environment.
    variables: Vec<(&'a str, String)>,
}

impl Faulty<'_> {
    fn command(&self, place: &Place) -> Command {
        let mut command = place.command(&self.args);
        // No PATH: the crate of matrix products asks another program for the caches' sizes where it cannot read them.
        command.env("LD_PRELOAD", &self.library).env("RAYON_NUM_THREADS", "1").env("PATH", "").stderr(Stdio::piped());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Calls of each kind in a run without faults, and the files that it makes.
    fn count(&self) -> (BTreeMap<String, usize>, BTreeMap<PathBuf, Vec<u8>>) {
        let (place, count) = (Place::new(), Place::new());
        let answer: Answer = self.command(&place).env("FAULT_COUNT", count.path("count")).output().unwrap().into();
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
        let text = String::from_utf8(count.read("count")).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        (pairs.map(|(kind, calls)| (kind.to_string(), calls.parse().unwrap())).collect(), files(&place.path("")))
    }

    /// Runs the command with a fault; gives its exit code, or what is wrong with how it ended.
    fn run(&self, fault: &Fault, whole: &BTreeMap<PathBuf, Vec<u8>>) -> Result<i32, String> {
        let place = Place::new();
        let mut command = self.command(&place);
        command.env("FAULT_KIND", &fault.kind).env("FAULT_AT", fault.at.to_string());
        if fault.lasts {
            command.env("FAULT_LASTS", "1");
        }
        let answer: Answer = command.output().unwrap().into();
        let (found, stderr) = (files(&place.path("")), answer.stderr);
        let fails = |what: &str| Err(format!("{:?} of {fault:?}: {what}: {:?}: {stderr}", self.args[0], place.names()));
        let Some(code @ 0..=4) = answer.code else { return fails(&format!("ended with {:?}", answer.code)) };
        if stderr.contains("panicked") || (code != 0 && !stderr.contains("error: ")) {
            return fails("no words");
        }
        let is_part = |path: &Path| path.extension().is_some_and(|end| end == "incomplete");
        if found.iter().any(|(path, bytes)| !is_part(path) && whole.get(path) != Some(bytes)) {
            return fails("something is not whole");
        }
        let made = place.path(self.makes).exists();
        // Memory that nobody planned ends the program where it is: the result may just have got its name.
        let too_late = fault.kind == "memory" && stderr.contains("see whether it is there");
        match code == 0 {
            true if found.len() != whole.len() => fails("it ended well without its results"),
            false if !self.keeps && made && !too_late => fails("it ended badly and left something"),
            _ => Ok(code),
        }
    }

    /// Tries faults of every kind and prints how the runs ended.
    fn hold(&self) {
        let (calls, whole) = self.count();
        let faults: Vec<Fault> = calls
            .iter()
            .filter(|(kind, _)| !self.spares.contains(&kind.as_str()))
            .flat_map(|(kind, &calls)| some_of(calls).into_iter().map(move |at| (kind, at)))
            .flat_map(|(kind, at)| [false, true].map(|lasts| Fault { kind: kind.clone(), at, lasts }))
            .collect();
        let ends: Vec<Result<i32, String>> = faults.par_iter().map(|fault| self.run(fault, &whole)).collect();
        let mut counts = BTreeMap::new();
        for (fault, code) in faults.iter().zip(&ends) {
            *counts.entry((&fault.kind, code.as_ref().ok())).or_insert(0) += 1;
        }
        println!("{}: {} runs; calls {calls:?}", self.args[0], faults.len());
        for ((kind, code), runs) in counts {
            println!("  {kind:<8}{:<12}{runs:>5}", code.map_or("wrong".into(), |code| format!("exit {code}")));
        }
        let wrong: Vec<String> = ends.into_iter().filter_map(Result::err).collect();
        assert!(wrong.is_empty(), "{} of {} runs:\n{}", wrong.len(), faults.len(), wrong.join("\n"));
    }
}

/// The files below a folder, and what they hold.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(at) = folders.pop() {
        for path in fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

/// The library, if this system can have it.
fn library_of_faults(place: &Place) -> Option<PathBuf> {
    let library = library(place, "faults.c", "faults")?.join("libfaults.so");
    let runs = place.command(&["--version"]).env("LD_PRELOAD", &library).output().is_ok_and(|output| {
        output.status.success() && output.stderr.is_empty() // the loader says what it cannot load, and goes on
    });
    runs.then_some(library)
}

fn hold(args: Vec<&str>, makes: &str, keeps: bool, spares: &[&str]) {
    let place = Place::new();
    match library_of_faults(&place) {
        Some(library) => Faulty { library, args, makes, keeps, spares, variables: vec![] }.hold(),
        None => skipped("faults of the system", "no C compiler, or another C library"),
    }
}

#[test]
fn an_edit_is_whole_or_not_there() {
    let picture = fixture("colour.jpg");
    let place = Place::new();
    let args = place.edit_args(&["-i", &picture, "--steps", "1", "--device", "cpu", "-q"]);
    hold(args, "out.png", false, &[]);
}

/// Memory is asked for before the first file is written; if it runs out later all the same, what is written stays.
#[test]
fn a_synthetic_model_is_whole_or_not_there() {
    hold(vec!["synth", "--preset", "tiny", "-q", "-o", "made"], "made", false, &["memory"]);
}

#[test]
fn the_pictures_of_judge_are_whole() {
    let cases = format!("{}/tests/data/demo_cases", env!("CARGO_MANIFEST_DIR"));
    let model = model().to_str().unwrap();
    let small = ["--limit", "2", "--steps", "1", "--size-level", "64", "--device", "cpu", "-q"];
    hold([&["judge", "-m", model, "--cases", &cases, "-o", "edited"], &small[..]].concat(), "edited", true, &[]);
}

/// What was fetched before a fault stays, under the name of a part or whole; a model is found only when all of it is there.
#[cfg(feature = "pull")]
#[test]
fn a_fetched_model_is_whole_or_not_found() {
    use super::hub::Hub;
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(|_, usual| usual)));
    let Some(library) = library_of_faults(&place) else {
        return skipped("faults of the system while a model is fetched", "no C compiler, or another C library");
    };
    let variables =
        [("HF_HUB_CACHE", "hub"), ("HF_ENDPOINT", &hub.address), ("HOME", "home"), ("NO_PROXY", "*"), ("SSL_CERT_FILE", "")];
    let variables = variables.map(|(name, value)| (name, value.to_string())).into();
    let (args, makes) = (vec!["pull", "v1.1", "-q"], "hub/models--stepfun-ai--Step1X-Edit/refs/main");
    Faulty { library, args, makes, keeps: false, spares: &[], variables }.hold();
}

/// Two signals, the second of which ends what works. Before the result has its name nothing is left, even of a program that is
/// killed; when it has it, the exit code says so.
#[test]
fn a_stop_comes_in_time_or_not_at_all() {
    let place = Place::new();
    let Some(library) = library_of_faults(&place) else {
        return skipped("signals while the result is stored", "no C compiler, or another C library");
    };
    let picture = fixture("colour.jpg");
    // The first file that is synced is the result, the second its folder.
    for (synced, signals, code) in [(1, &["INT", "INT"][..], Some(130)), (1, &["KILL"], None), (2, &["INT", "TERM"], Some(0))] {
        let place = Place::new();
        let args = place.edit_args(&["-i", &picture, "--steps", "1", "--device", "cpu"]);
        let mut command = place.command(&args);
        command.env("LD_PRELOAD", &library).env("FAULT_KIND", "sync").env("FAULT_AT", synced.to_string()).env("FAULT_SLEEP", "5");
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        // Only the program's own books tell that it sleeps where it should.
        let sleeps = || fs::read_to_string(format!("/proc/{}/wchan", child.id())).is_ok_and(|at| at.contains("nanosleep"));
        while !sleeps() {
            std::thread::sleep(Duration::from_millis(20));
        }
        for signal in signals {
            let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status().unwrap();
            assert!(sent.success());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(child.wait().unwrap().code(), code, "{synced} {signals:?}");
        let left: &[&str] = if code == Some(0) { &["out.png"] } else { &[] };
        assert_eq!(place.names(), left, "{synced} {signals:?}");
    }
}
