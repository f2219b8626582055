//! Batches that end before their end: what they leave is whole, and what goes on from it makes every result once.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::support::*;

/// How a run ends early.
#[derive(Clone, Copy, Debug)]
enum End {
    Kill,
    Term,
    FullDisk,
}

/// Numbers that are the same in every run of the test.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(status.success());
}

/// The library that lets calls of the system fail; none where there is no C compiler.
fn faults(place: &Place) -> Option<PathBuf> {
    let output = place.path("libfaults.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&output).arg(data("faults.c")).status();
    built.is_ok_and(|status| status.success()).then_some(output)
}

/// Ends a batch early again and again, then lets it come to its end.
fn killed_and_resumed(count: usize, kills: usize) {
    let place = Place::new();
    place.items(count);
    let begun = Instant::now();
    place.batch(&["items.jsonl", "-o", "plain"]).ended(0, &[&format!("{count} made")]);
    let took = begun.elapsed();
    let library = faults(&place);
    if library.is_none() {
        eprintln!("skipped: a full disk: there is no C compiler here");
    }
    let mut chance = Chance(20_261_126);
    let mut ended = BTreeMap::<String, usize>::new();
    let args = [&["batch", "items.jsonl", "-o", "killed", "--resume"], &QUICK[..]].concat();
    for turn in 0..kills {
        let how = [End::Kill, End::Term, End::FullDisk][turn % 3];
        let mut command = place.command(&args);
        if let (End::FullDisk, Some(library)) = (how, &library) {
            // All writes fail from one on that lies within the results of this run.
            let at = 3 + chance.below(4 * (count / kills).max(1) as u64);
            command.env("LD_PRELOAD", library).env("FAULT_KIND", "write").env("FAULT_AT", at.to_string()).env("FAULT_LASTS", "1");
        }
        let mut child = command.spawn().unwrap();
        if !matches!(how, End::FullDisk) {
            // The run has a share of the whole left; what is done goes by fast.
            let wait = Duration::from_millis(30 + chance.below(2 * took.as_millis() as u64 / kills as u64 + 1));
            std::thread::sleep(wait);
            let name = if matches!(how, End::Kill) { "KILL" } else { "TERM" };
            if child.try_wait().unwrap().is_none() {
                signal(&child, name);
            }
        }
        let answer = Answer::from(child.wait_with_output().unwrap());
        *ended.entry(format!("{how:?} {:?}", answer.code)).or_default() += 1;
        let fine: &[Option<i32>] = match how {
            End::Kill => &[None, Some(0)],
            End::Term => &[Some(143), Some(0)],
            End::FullDisk => &[Some(1), Some(0)],
        };
        assert!(fine.contains(&answer.code), "{how:?}: {:?} {}", answer.code, answer.stderr);
        assert!(!answer.stderr.contains("panicked"), "{}", answer.stderr);
        for (name, bytes) in place.pictures("killed") {
            assert!(image::load_from_memory(&bytes).is_ok(), "{how:?}: {name} is not whole");
        }
    }
    place.batch(&["items.jsonl", "-o", "killed", "--resume"]).ended(0, &[]);
    eprintln!("{count} edits in {took:?}; ended early: {ended:?}");

    assert!(place.pictures("plain") == place.pictures("killed"), "not the same bytes");
    let lines = place.lines("killed");
    let mut made: Vec<&str> =
        lines.iter().filter(|line| line["status"] == "ok").filter_map(|line| line["output"].as_str()).collect();
    made.sort_unstable();
    let once: Vec<&str> = {
        let mut once = made.clone();
        once.dedup();
        once
    };
    assert_eq!((made.len(), once.len()), (count, count), "every result once");
    let lines = |folder: &str| {
        let lines = place.lines(folder).into_iter().filter(|line| line["status"] == "ok");
        let digest =
            |line: serde_json::Value| (line["output"].to_string(), (line["sha256"].to_string(), line["key"].to_string()));
        lines.map(digest).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(lines("plain"), lines("killed"));
    place.batch(&["items.jsonl", "-o", "killed", "--resume"]).ended(0, &[&format!("0 made, {count} there already")]);
}

#[test]
fn a_batch_that_was_killed_goes_on_and_makes_every_result_once() {
    killed_and_resumed(40, 6);
}

/// `cargo test --release --test batch -- --ignored soak`.
#[test]
#[ignore = "takes minutes"]
fn soak_a_thousand_edits_killed_at_twenty_moments() {
    killed_and_resumed(1000, 20);
}

/// Bytes of memory of a running process that no file backs.
fn resident(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(1024 * line.trim().trim_end_matches(" kB").parse::<u64>().ok()?)
}

/// The most memory while the first results were made, and while the last were, so many of each.
fn memory(count: usize, some: usize) -> (u64, u64) {
    let place = Place::new();
    place.items(count);
    // In the manifest's order all shapes are among the first, and programs come and go all the time.
    let args = [&["batch", "items.jsonl", "-o", "out", "--keep-order"], &QUICK[..]].concat();
    let mut child = place.command(&args).stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let results = place.path("out/results.jsonl");
    let (mut first, mut last) = (Vec::new(), Vec::new());
    while child.try_wait().unwrap().is_none() {
        let done = std::fs::read(&results).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count());
        let now = resident(&child);
        if done <= some {
            first.extend(now);
        } else if done >= count - some {
            last.extend(now);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success());
    let largest = |values: Vec<u64>| values.into_iter().max().expect("a look at the memory");
    (largest(first), largest(last))
}

/// Edits hold nothing of earlier ones: of the lines of 1,000 results some hundred bytes stay each.
fn memory_stays(count: usize) {
    let (first, last) = memory(count, 50);
    eprintln!("{:.1} MB in the first 50 edits, {:.1} MB in the last 50 of {count}", first as f64 / 1e6, last as f64 / 1e6);
    assert!(last < first + first / 10, "{first} bytes in the first 50 edits, {last} in the last 50 of {count}");
}

#[test]
fn memory_after_many_edits_is_that_after_few() {
    memory_stays(150);
}

/// `cargo test --release --test batch -- --ignored soak`.
#[test]
#[ignore = "takes minutes"]
fn soak_memory_after_a_thousand_edits() {
    memory_stays(1000);
}

/// The item that runs is taken back, its line says so, and the code is that of shells.
#[test]
fn signals_cancel_the_item_and_the_next_run_makes_it() {
    let place = Place::new();
    place.items(3);
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let slow = ["batch", "items.jsonl", "-o", name, "--device", "cpu", "--steps", "1000", "--size-level", "128"];
        let child = place.command(&slow).spawn().unwrap();
        let begun = Instant::now();
        while !place.path(name).join("results.jsonl").exists() {
            assert!(begun.elapsed().as_secs() < 60, "it has not begun");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(500));
        signal(&child, name);
        let since = Instant::now();
        let answer = Answer::from(child.wait_with_output().unwrap());
        answer.ended(code, &["0 made", "interrupted, --resume goes on"]);
        assert!(since.elapsed() < Duration::from_secs(10), "stopped after {:?}", since.elapsed());
        let lines = place.lines(name);
        assert_eq!((lines.len(), count(&lines, "cancelled")), (1, 1), "{lines:?}");
        assert!(place.pictures(name).is_empty());
        place.batch(&["items.jsonl", "-o", name, "--resume"]).ended(0, &["3 made"]);
    }
}
