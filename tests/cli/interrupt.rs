//! Ctrl-C and other requests to stop.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::*;

/// What a stop may take on a busy machine; a run that is not stopped takes far longer.
const SOON: Duration = Duration::from_secs(10);

fn signal(child: &Child, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(status.success());
}

/// Waits for a stopped command and gives its exit code and the rest of its stderr.
fn ended(mut child: Child, mut stderr: impl Read) -> Answer {
    let since = Instant::now();
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    let code = child.wait().unwrap().code();
    assert!(since.elapsed() < SOON, "stopped after {:?}: {text}", since.elapsed());
    Answer { code, stdout: String::new(), stderr: text }
}

/// The line of a stage appears when it ends, so the signal comes in the one after it.
fn edit_stopped_after(stage: &str, name: &str, code: i32) {
    let place = Place::new();
    let picture = fixture("colour.jpg");
    let args = place.edit_args(&["-i", &picture, "--steps", "1000", "--size-level", "128"]);
    let mut child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains(stage) {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "ended before {stage}");
    }
    assert!(place.names().is_empty(), "nothing lies beside the result while it is made, so even SIGKILL leaves nothing");
    signal(&child, name);
    ended(child, stderr).refused(code, &["interrupted", "nothing was written"]);
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn ctrl_c_stops_an_edit_and_leaves_nothing() {
    edit_stopped_after("vae_encode", "INT", 130);
    edit_stopped_after("conditioning", "INT", 130);
}

/// The exit code is that of shells: 128 and the signal's number.
#[test]
fn other_requests_to_stop_are_obeyed_likewise() {
    edit_stopped_after("text", "TERM", 143);
    edit_stopped_after("vision", "HUP", 129);
}

/// Before the work begins nothing needs to be taken back, so one request is enough, whatever the program waits for.
#[test]
fn one_request_ends_an_edit_that_waits_for_its_picture() {
    let place = Place::new();
    let made = Command::new("mkfifo").arg(place.path("pipe")).status();
    if !made.is_ok_and(|status| status.success()) {
        return skipped("a pipe without a writer", "no mkfifo");
    }
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut child = place.command(&place.edit_args(&["-i", "pipe"])).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "nobody has written to the pipe");
        signal(&child, name);
        ended(child, stderr).refused(code, &["interrupted", "nothing was written"]);
        assert_eq!(place.names(), ["pipe"]);
    }
}

#[test]
fn ctrl_c_stops_synth_and_leaves_nothing() {
    let place = Place::new();
    let mut child = place.command(&["synth", "--preset", "full", "-o", "model"]).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() && !place.path("model/Qwen2.5-VL-7B-Instruct/tokenizer.json").exists() {
        assert!(since.elapsed() < SOON, "nothing written after {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    if child.try_wait().unwrap().is_none() {
        signal(&child, "INT");
    }
    let answer = ended(child, stderr);
    if answer.code == Some(1) && answer.stderr.contains("are free") {
        return skipped("stopping synth", &answer.stderr);
    }
    answer.refused(130, &["interrupted", "nothing was written"]);
    assert!(place.names().is_empty(), "{:?}", place.names());
}
