//! `pull` from a hub that means harm: paths, names, sizes, commits and bodies that no honest one has.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::hub::*;
use super::support::*;

/// A hub whose repository `a/b` has empty files of these names.
fn with_files(names: &[&str]) -> Hub {
    let files = names.iter().map(|name| (name.to_string(), vec![])).collect();
    Hub::new([("a/b".to_string(), files)].into(), Box::new(|_, usual| usual))
}

/// A hub whose list of files is another.
fn with_list(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Hub {
    Hub::with_model(Box::new(move |asked, usual| match asked.path.contains("/api/models/") {
        true => {
            let mut list = serde_json::from_slice(&usual.body).unwrap();
            change(&mut list);
            Reply::json(&list)
        }
        false => usual,
    }))
}

#[test]
fn paths_stay_in_their_repository_and_on_the_file_system() {
    let (place, outside) = (Place::new(), Place::new());
    let absolute = outside.path("out").display().to_string();
    let (name, path) = ("n".repeat(241), format!("{}/x", ["d"; 500].join("/")));
    let words = "which is no path of a file";
    for (names, words) in [
        (&["../../../out"][..], words),
        (&["x/../../out"], words),
        (&[&absolute], words),
        (&["a//b"], words),
        (&["a/./b"], words),
        (&["a\\..\\b"], words),
        (&["a\u{1b}[2Jb"], words),
        (&["a\u{9b}2Jb"], words),
        (&["a\nb"], words),
        (&[""], words),
        (&[&name], "has a name longer than 240"),
        (&[&path], "which is longer than 1000 bytes"),
        (&["a", "a/b"], "a/b below a, which is a file"),
    ] {
        let hub = with_files(names);
        for source in ["hf", "modelscope"] {
            let answer = hub.pull(&place, &["a/b", "--all", "--source", source]);
            answer.refused(3, &["a/b: the hub lists ", words]);
            assert!(!answer.stderr.contains(|c: char| c.is_control() && c != '\n'), "{:?}", answer.stderr);
        }
    }
    assert!(place.names().is_empty() && outside.names().is_empty(), "{:?} {:?}", place.names(), outside.names());
    let longest = with_files(&[&name[1..], &format!("{}/xx", ["d"; 499].join("/"))]);
    assert_eq!(longest.pull(&place, &["a/b", "--all", "-q"]).code, Some(0));
}

#[test]
fn names_are_printed_as_a_terminal_may_have_them() {
    let hub = with_files(&["a\u{202e}gnp.exe", "b\u{2066}c"]);
    let answer = hub.pull(&Place::new(), &["a/b", "--all"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    assert!(answer.stdout.contains(r"a\u202egnp.exe") && answer.stdout.contains(r"b\u2066c"), "{}", answer.stdout);
    assert!(!answer.stdout.contains(['\u{202e}', '\u{2066}']) && !answer.stderr.contains(['\u{202e}', '\u{2066}']));
}

/// Of ModelScope, where a part has its file's name: that of one is not written as the other. Of both: one name, two files.
#[test]
fn files_of_one_place_are_refused() {
    let place = Place::new();
    let parts = with_files(&["x", "x.incomplete"]);
    parts.pull(&place, &["a/b", "--all", "--source", "modelscope"]).refused(3, &["lists x and x.incomplete, which cannot both"]);
    assert_eq!(parts.pull(&place, &["a/b", "--all", "--dry-run"]).code, Some(0));
    let twice = with_list(|list| {
        let mut other = list["siblings"][0].clone();
        other["blobId"] = json!(git(b"other"));
        list["siblings"].as_array_mut().unwrap().push(other);
    });
    twice.pull(&place, &["v1.1"]).refused(3, &["README.md and README.md, which cannot both be there"]);
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn a_commit_that_was_asked_for_is_no_other() {
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(|_, usual| usual)));
    let other = "f".repeat(40);
    let words = [&format!("the commit {other} was asked for")[..], COMMIT];
    hub.pull(&place, &[&format!("v1.1@{other}")]).refused(3, &words);
    assert!(place.names().is_empty(), "{:?}", place.names());
    assert_eq!(hub.pull(&place, &[&format!("v1.1@{COMMIT}"), "-q"]).code, Some(0));
    for commit in ["../../../x".to_string(), "0123456789".into(), "g".repeat(40)] {
        let hub = with_list(move |list| list["sha"] = json!(commit));
        hub.pull(&place, &["v1.1"]).refused(3, &["which is none"]);
    }
}

#[test]
fn sizes_of_any_number_are_told_or_refused() {
    for size in [json!(u64::MAX), json!(1e30), json!(-1), json!("1"), Value::Null] {
        let wanted = if size == json!(u64::MAX) { 4 } else { 3 };
        let hub = with_list(move |list| {
            for file in list["siblings"].as_array_mut().unwrap() {
                file["size"] = size.clone();
                if file["lfs"].is_object() {
                    file["lfs"]["size"] = size.clone();
                }
            }
        });
        let place = Place::new();
        hub.pull(&place, &["v1.1", "-q"]).refused(wanted, &["Step1X-Edit"]);
        assert!(place.names().is_empty(), "{:?}", place.names());
    }
}

/// Whoever may write in the cache cannot have another file of the user's written through it, nor have it waited for.
#[test]
fn a_part_is_a_regular_file() {
    let place = Place::new();
    let blobs = "hub/models--stepfun-ai--Step1X-Edit/blobs";
    let part = place.path(&format!("{blobs}/{}.incomplete", sha256(&repositories()[OFFICIAL][DIT])));
    fs::create_dir_all(place.path(blobs)).unwrap();
    place.write("precious", "mine");
    let hub = Hub::with_model(Box::new(|_, usual| usual));
    let pipe = |part: &std::path::Path| assert!(Command::new("mkfifo").arg(part).status().unwrap().success());
    let link = |part: &std::path::Path| symlink(place.path("precious"), part).unwrap();
    for make in [&link as &dyn Fn(&std::path::Path), &pipe] {
        make(&part);
        hub.pull(&place, &["v1.1", "-q"]).refused(1, &[".incomplete is no regular file", "delete it"]);
        fs::remove_file(&part).unwrap();
    }
    assert_eq!(place.read("precious"), b"mine");
    assert_eq!(hub.pull(&place, &["v1.1", "-q"]).code, Some(0));
}

/// The cache of ModelScope's client holds files that the client reads as pickles: no repository may bring them.
#[test]
fn what_modelscopes_client_keeps_for_itself_is_not_fetched() {
    let (place, hub) = (Place::new(), with_files(&[".msc", ".mdl", ".MSC", "folder/.msc", "x"]));
    let answer = hub.pull(&place, &["a/b", "--all", "--source", "modelscope"]);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let names = place.names();
    let is_there = |name: &str| names.contains(&format!("scope/models/a/b/{name}"));
    assert!(is_there("x") && is_there("folder/.msc") && !is_there(".msc") && !is_there(".MSC") && !is_there(".mdl"), "{names:?}");
}

/// A body that is longer than it may be, or never ends, or comes a byte at a time.
#[test]
fn bodies_without_an_end_are_left() {
    let place = Place::new();
    let of_list = |reply: fn(Vec<u8>) -> Reply| {
        Hub::with_model(Box::new(move |asked, usual| if asked.path.contains("/api/") { reply(usual.body) } else { usual }))
    };
    let endless = of_list(|body| Reply { again: Some(Duration::ZERO), ..Reply::bytes(&[&body[..], &[b' '; 1 << 16]].concat()) });
    endless.pull(&place, &["v1.1"]).refused(3, &["the answer has more than 16777216 bytes"]);
    let slow = of_list(|_| Reply { again: Some(Duration::from_millis(200)), ..Reply::bytes(b" ") });
    let since = Instant::now();
    let answer: Answer = slow.command(&place, &["v1.1"]).env("HF_HUB_DOWNLOAD_TIMEOUT", "1").output().unwrap().into();
    answer.refused(1, &["the answer did not end within 10 s"]);
    assert!((10..20).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    assert!(place.names().is_empty(), "{:?}", place.names());

    let file = |again: Option<Duration>| {
        Hub::with_model(Box::new(move |asked, usual| match asked.elsewhere && asked.is_for(DIT) {
            true => Reply { again, ..Reply::bytes(&[&usual.body[..], b"more"].concat()) },
            false => usual,
        }))
    };
    file(None).pull(&place, &["v1.1", "-q"]).refused(3, &[DIT, "the hub lists", "and sends"]);
    assert_eq!(file(Some(Duration::ZERO)).pull(&place, &["v1.1", "-q"]).code, Some(0), "what was listed, and no more");
    let home = "hub/models--stepfun-ai--Step1X-Edit";
    assert!(place.read(&format!("{home}/snapshots/{COMMIT}/{DIT}")) == repositories()[OFFICIAL][DIT]);
}

/// Nothing is unpacked that was not asked for packed: a bomb stays what it is.
#[test]
fn packed_answers_are_not_unpacked() {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&vec![b' '; 256 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    let packed = move |asked: &Asked, usual: Reply| match asked.path.contains("/api/") {
        true => Reply::bytes(&bomb).with("Content-Encoding", "gzip").with("Content-Type", "application/json"),
        false => usual,
    };
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(packed)));
    hub.pull(&place, &["v1.1"]).refused(3, &["127.0.0.1 does not answer as a hub"]);
    assert!(hub.asked().iter().all(|asked| asked.headers.get("accept-encoding").is_none_or(|list| list == "identity")));
    assert!(place.names().is_empty(), "{:?}", place.names());
}
