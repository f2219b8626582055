//! Limits of the process: memory and threads that are not there end a command with code 4 and words, never with an abort.
#![cfg(target_os = "linux")]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::*;

/// Runs the program after a line of shell, within the place.
fn after(place: &Place, shell: &str, args: &[&str]) -> Answer {
    let script = format!("{shell} || exit 77; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", BINARY]).args(args).current_dir(place.path(""));
    command.env_remove("RAYON_NUM_THREADS").output().unwrap().into()
}

#[test]
fn memory_that_is_not_there_is_refused_with_the_bytes() {
    let place = Place::new();
    let picture = fixture("colour.jpg");
    let large = place.edit_args(&["-i", &picture, "--steps", "1", "--device", "cpu", "--size-level", "2048"]);
    let answer = after(&place, "ulimit -v 300000", &large);
    answer.refused(4, &["the edit needs", "GB of memory", "MB are available", "ulimit -v", "--size-level"]);
    assert!(place.names().is_empty());
}

/// A picture says how large it is before its memory is taken.
#[test]
fn a_picture_without_memory_is_refused_by_its_size() {
    let place = Place::new();
    image::GrayImage::new(9000, 9000).save(place.path("large.png")).unwrap();
    let args = place.edit_args(&["-i", "large.png", "--steps", "1", "--device", "cpu"]);
    after(&place, "ulimit -v 250000", &args)
        .refused(4, &["picture of 9000x9000 pixels needs", "MB of memory", "scale the picture down"]);
    assert_eq!(place.names(), ["large.png"]);
}

/// However little there is, and wherever it ends.
#[test]
fn no_limit_of_memory_makes_an_abort() {
    let place = Place::new();
    let picture = fixture("colour.jpg");
    let edit = place.edit_args(&["-i", &picture, "--steps", "1", "--device", "cpu"]);
    let synth = ["synth", "--preset", "tiny", "-o", "made"];
    for kib in [20, 40, 50, 60, 80, 100, 130, 150, 200, 300, 400, 800].map(|mega| 1000 * mega) {
        let limit = format!("ulimit -v {kib}");
        if after(&place, &limit, &["--version"]).code != Some(0) {
            continue; // the system does not even start it
        }
        for (args, made) in [(&edit[..], "out.png"), (&synth, "made")] {
            let answer = after(&place, &limit, args);
            match answer.code {
                Some(0) => assert!(place.path(made).exists()),
                _ => answer.refused(4, &["memory"]),
            }
            if answer.code == Some(0) {
                let _ = std::fs::remove_file(place.path(made)).or_else(|_| std::fs::remove_dir_all(place.path(made)));
            }
            assert!(place.names().is_empty(), "{kib} kB: {:?}", place.names());
        }
    }
}

/// `judge` holds the pictures of one case at a time: those of all, 1.2 GB, would not fit.
#[test]
fn many_large_cases_take_the_memory_of_one() {
    let place = Place::new();
    std::fs::create_dir(place.path("cases")).unwrap();
    for (what, red) in [("source", 250), ("target", 20)] {
        let picture = image::RgbImage::from_pixel(2500, 2000, image::Rgb([red, 120, 90]));
        picture.save(place.path(&format!("cases/0.{what}.png"))).unwrap();
        (1..40).for_each(|id| {
            std::fs::hard_link(place.path(&format!("cases/0.{what}.png")), place.path(&format!("cases/{id}.{what}.png"))).unwrap()
        });
    }
    // Checks end at the last case, before anything is edited.
    std::fs::remove_file(place.path("cases/39.target.png")).unwrap();
    let case = |id| format!(r#"{{"id": "{id}", "kind": "", "language": "", "held_out": false, "instruction": "make it red"}}"#);
    place.write("cases/cases.json", format!("[{}]", (0..40).map(case).collect::<Vec<_>>().join(", ")));
    let judge = ["judge", "-m", model().to_str().unwrap(), "--cases", "cases", "--size-level", "64", "--device", "cpu"];
    after(&place, "ulimit -v 500000", &judge).refused(2, &["39.target.png"]);
}

#[test]
fn the_environment_cannot_ask_for_more_threads_than_help() {
    let place = Place::new();
    let picture = fixture("colour.jpg");
    let edit = place.edit_args(&["-i", &picture, "--steps", "1", "--device", "cpu", "-q", "-f"]);
    for (value, noted) in [("100000", true), ("many", true), ("1", false), ("3", false), ("0", false), ("", false)] {
        let since = Instant::now();
        let answer: Answer = place.command(&edit).env("RAYON_NUM_THREADS", value).output().unwrap().into();
        assert_eq!(answer.code, Some(0), "{value}: {}", answer.stderr);
        assert_eq!(answer.stderr.contains("note: RAYON_NUM_THREADS is"), noted, "{value}: {}", answer.stderr);
        assert!(since.elapsed() < Duration::from_secs(60), "{value}: {:?}", since.elapsed());
    }
    for threads in ["0", "100000", "-1", "all", "1.5"] {
        place.edit(&["-i", &picture, "--threads", threads]).refused(2, &["--threads", "a whole number from 1 to "]);
    }
    place.edited(&["-i", &picture, "--threads", "64", "-f"]);
}

/// Processes and threads are counted by user, and not at all for root, so another user tries.
#[test]
fn a_thread_that_does_not_start_is_refused_in_words() {
    let place = Place::new();
    let (binary, picture) = (place.path("program"), place.path("picture.jpg"));
    std::fs::copy(BINARY, &binary).unwrap();
    std::fs::copy(fixture("colour.jpg"), &picture).unwrap();
    std::fs::create_dir(place.path("out")).unwrap();
    std::fs::set_permissions(place.path("out"), PermissionsExt::from_mode(0o777)).unwrap();
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "prlimit"];
    let run = |limit: &str, args: &[&str]| -> Answer {
        let mut command = Command::new("setpriv");
        let found = command.args(user).args([limit, "./program"]).args(args).current_dir(place.path("")).output();
        found.map_or(Answer { code: None, stdout: String::new(), stderr: "no setpriv".into() }, Into::into)
    };
    let (one, many) = ("--nproc=1", "--nproc=100");
    let edit = ["edit", "-i", "picture.jpg", "-p", "red", "--steps", "1", "--device", "cpu", "-o", "out/a.png"];
    let free = run(many, &edit);
    if free.code != Some(0) {
        return skipped("threads of another user", &free.stderr);
    }
    run(one, &[&edit[..], &["-f"]].concat()).refused(4, &["no further thread", "ulimit -u"]);
    assert_eq!(run(one, &["doctor"]).code, run(many, &["doctor"]).code, "doctor needs no thread");
}
