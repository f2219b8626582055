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
fn edit_stopped_after(stage: &str, name: &str) {
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
    ended(child, stderr).refused(130, &["interrupted", "nothing was written"]);
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn ctrl_c_stops_an_edit_and_leaves_nothing() {
    edit_stopped_after("vae_encode", "INT");
    edit_stopped_after("conditioning", "INT");
}

#[test]
fn a_request_to_terminate_is_obeyed_likewise() {
    edit_stopped_after("text", "TERM");
}

#[test]
fn ctrl_c_stops_synth_and_leaves_nothing() {
    let place = Place::new();
    let mut child = place.command(&["synth", "--preset", "full", "-o", "model"]).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() && !place.names().iter().any(|name| name.ends_with(".part")) {
        assert!(since.elapsed() < SOON, "nothing written after {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    if child.try_wait().unwrap().is_none() {
        signal(&child, "INT");
    }
    let answer = ended(child, stderr);
    if answer.code == Some(3) && answer.stderr.contains("are free") {
        return skipped("stopping synth", &answer.stderr);
    }
    answer.refused(130, &["interrupted", "nothing was written"]);
    assert!(place.names().is_empty(), "{:?}", place.names());
}
