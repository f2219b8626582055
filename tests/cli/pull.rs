//! `pull` from a hub on this machine: what it fetches and where that lies, what goes wrong on the way, and that it goes on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::hub::*;
use super::support::*;

const HOME: &str = "hub/models--stepfun-ai--Step1X-Edit";
const QWEN_HOME: &str = "hub/models--Qwen--Qwen2.5-VL-7B-Instruct";

fn plain() -> Twist {
    Box::new(|_, usual| usual)
}

/// The files below the cache that are no locks and no links.
fn bytes_in(place: &Place) -> Vec<String> {
    let is_file = |name: &String| place.path(name).symlink_metadata().unwrap().is_file() && !name.contains(".lock");
    place.names().into_iter().filter(is_file).collect()
}

fn snapshot(place: &Place, home: &str, file: &str) -> Vec<u8> {
    place.read(&format!("{home}/snapshots/{COMMIT}/{file}"))
}

fn fetched(answer: &Answer) {
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
}

#[test]
fn a_model_is_listed_fetched_and_found() {
    let (place, hub) = (Place::new(), Hub::with_model(plain()));
    let answer = hub.pull(&place, &["v1.1"]);
    fetched(&answer);
    let lines: Vec<String> = (1..=10).map(|tenth| format!("{} % of ", tenth * 10)).collect();
    assert!(answer.stderr.lines().count() <= 10 && answer.stderr.contains(&lines[9]), "{}", answer.stderr);
    let listed = ["stepfun-ai/Step1X-Edit at main, commit 01234567; licence apache-2.0", DIT, VAE, "tokenizer.json", "in all"];
    listed.iter().for_each(|word| assert!(answer.stdout.contains(word), "no {word} in {}", answer.stdout));
    assert!(answer.stdout.ends_with("it is there: -m v1.1 finds it\n"), "{}", answer.stdout);
    for other in ["i1258", "README", "assets", "vocab"] {
        assert!(!answer.stdout.contains(other) && hub.asked().iter().all(|asked| !asked.path.contains(other)), "{other}");
    }

    let repositories = repositories();
    assert_eq!(place.read(&format!("{HOME}/refs/main")), COMMIT.as_bytes());
    assert_eq!(bytes_in(&place).len(), 6 + 2, "{:?}", place.names());
    for (home, id, names) in
        [(HOME, OFFICIAL, &[DIT, VAE, SETTINGS][..]), (QWEN_HOME, QWEN, &["config.json", "tokenizer.json", "model.safetensors"])]
    {
        for name in names {
            let bytes = &repositories[id][*name];
            assert!(snapshot(&place, home, name) == *bytes, "{name}");
            let digest = if name.ends_with(".safetensors") { sha256(bytes) } else { git(bytes) };
            let leads = fs::read_link(place.path(&format!("{home}/snapshots/{COMMIT}/{name}"))).unwrap();
            assert_eq!(leads, Path::new("../../blobs").join(digest), "{name}");
        }
    }
    for args in [&["inspect", "-m", "v1.1", "--verify"][..], &place.edit_args(&["-m", OFFICIAL])] {
        let mut command = place.command(args);
        let answer: Answer = command.env("HF_HUB_CACHE", place.path("hub")).output().unwrap().into();
        assert_eq!(answer.code, Some(0), "{args:?}: {}", answer.stderr);
    }
    assert!(place.path("out.png").is_file());

    let before = hub.asked().len();
    let again = hub.pull(&place, &["v1.1"]);
    fetched(&again);
    assert_eq!(hub.asked().len(), before + 2, "two lists and no file");
    assert!(again.stdout.contains(", is there") && again.stdout.contains(" 0 B to fetch"), "{}", again.stdout);
}

/// What is fetched by names is what is read: a folder of diffusers, among files that its other programs read.
#[test]
fn a_folder_of_diffusers_is_fetched_and_found() {
    let place = Place::new();
    let made = place.run(&["synth", "--preset", "tiny", "--layout", "diffusers", "-q", "-o", "made"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let paths = place.names().into_iter().filter(|name| place.path(name).is_file());
    let mut files: std::collections::BTreeMap<String, Vec<u8>> =
        paths.map(|path| (path.strip_prefix("made/").unwrap().to_string(), place.read(&path))).collect();
    for other in ["tokenizer/tokenizer.json", "vae/diffusion_pytorch_model.fp16.safetensors", "README.md"] {
        files.insert(other.into(), b"not read".to_vec());
    }
    let hub = Hub::new([("stepfun-ai/Step1X-Edit-v1p1-diffusers".to_string(), files)].into(), plain());
    let told = hub.pull(&place, &["v1.1-diffusers", "--json"]).json();
    let fetched_names = told["repositories"][0]["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap());
    let others = ["scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "fp16", "README.md"];
    fetched_names.for_each(|name| assert!(!others.iter().any(|other| name.contains(other)), "{name}"));
    let mut command = place.command(&["inspect", "-m", "v1.1-diffusers", "--verify"]);
    let inspected: Answer = command.env("HF_HUB_CACHE", place.path("hub")).output().unwrap().into();
    fetched(&inspected);
}

/// The hub's own client for Python finds the same files, if it is installed here.
#[test]
fn python_finds_what_was_fetched() {
    let (place, hub) = (Place::new(), Hub::with_model(plain()));
    fetched(&hub.pull(&place, &["v1.1", "-q"]));
    let code = format!(
        "from huggingface_hub import hf_hub_download, snapshot_download\n\
         print(hf_hub_download('{OFFICIAL}', '{DIT}', local_files_only=True))\n\
         print(snapshot_download('{QWEN}', local_files_only=True))"
    );
    let mut python = Command::new("python3");
    let run = python.args(["-c", &code]).env("HF_HUB_CACHE", place.path("hub")).env("HF_HUB_OFFLINE", "1").output();
    let Ok(answer) = run.map(Answer::from) else {
        return skipped("the cache as Python sees it", "there is no python3");
    };
    if answer.stderr.contains("No module named 'huggingface_hub'") {
        return skipped("the cache as Python sees it", "huggingface_hub is not installed");
    }
    let folder = |home: &str| place.path(&format!("{home}/snapshots/{COMMIT}"));
    let expected = format!("{}\n{}\n", folder(HOME).join(DIT).display(), folder(QWEN_HOME).display());
    assert_eq!(answer.stdout, expected, "{}", answer.stderr);
}

#[test]
fn what_would_be_fetched_is_told_and_nothing_written() {
    let (place, hub) = (Place::new(), Hub::with_model(plain()));
    let answer = hub.pull(&place, &["v1.1", "--dry-run"]);
    fetched(&answer);
    assert!(answer.stdout.contains("are free\ninto ") && answer.stderr.is_empty(), "{}", answer.stdout);
    let told = hub.pull(&place, &["v1.1", "--dry-run", "--json"]).json();
    assert_eq!((&told["dry_run"], &told["fetched_bytes"], &told["bytes"]), (&json!(true), &json!(0), &told["lacking_bytes"]));
    assert!(place.names().is_empty(), "{:?}", place.names());

    let done = hub.pull(&place, &["v1.1", "--json", "-q"]).json();
    assert_eq!((&done["fetched_bytes"], &done["repositories"][0]["commit"]), (&done["bytes"], &json!(COMMIT)));
    let quiet = hub.pull(&place, &[OFFICIAL, "--all", "-q"]);
    assert_eq!((quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()), (Some(0), "", ""));
    assert_eq!(snapshot(&place, HOME, "assets/picture.png"), b"not read");
}

#[test]
fn a_connection_that_breaks_goes_on_from_there() {
    let cut = |asked: &Asked, usual: Reply| match asked.elsewhere && asked.is_for(DIT) && asked.times <= 3 {
        true => Reply { sent: Some(usual.body.len() / 3), ..usual },
        false => usual,
    };
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(cut)));
    let answer = hub.pull(&place, &["v1.1"]);
    fetched(&answer);
    assert_eq!(answer.stderr.matches("the connection broke").count(), 3, "{}", answer.stderr);
    let from: Vec<_> = hub.asked().iter().filter(|asked| asked.elsewhere && asked.is_for(DIT)).map(Asked::range).collect();
    let bytes = snapshot(&place, HOME, DIT);
    let third = bytes.len() / 3;
    assert_eq!(from[..2], [None, Some(third)]);
    assert!(from.len() == 4 && from.is_sorted() && bytes == repositories()[OFFICIAL][DIT], "{from:?}");
}

/// A server without ranges sends all of it again, one that has lost its place is asked again.
#[test]
fn a_server_that_does_not_go_on_starts_again() {
    for status in [200, 206, 416] {
        let twist = move |asked: &Asked, usual: Reply| match (asked.elsewhere && asked.is_for(DIT), asked.times) {
            (true, 1) => Reply { sent: Some(1000), ..usual },
            (true, 2) if status == 200 => Reply::bytes(&repositories()[OFFICIAL][DIT]),
            (true, 2) if status == 206 => Reply { status, ..Reply::bytes(&[1; 100]) }.with("Content-Range", "bytes 5-104/x"),
            (true, 2) => Reply::status(status),
            _ => usual,
        };
        let (place, hub) = (Place::new(), Hub::with_model(Box::new(twist)));
        fetched(&hub.pull(&place, &["v1.1", "-q"]));
        let ranges: Vec<_> = hub.asked().iter().filter(|asked| asked.elsewhere && asked.is_for(DIT)).map(Asked::range).collect();
        let expected: &[Option<usize>] = if status == 200 { &[None, Some(1000)] } else { &[None, Some(1000), None] };
        assert_eq!(ranges, expected, "{status}");
        assert!(snapshot(&place, HOME, DIT) == repositories()[OFFICIAL][DIT], "{status}");
    }
}

#[test]
fn wrong_bytes_are_deleted_and_get_no_name() {
    for name in [DIT, SETTINGS] {
        let twist = move |asked: &Asked, usual: Reply| match asked.is_for(name) && usual.status == 200 && asked.times == 1 {
            true => Reply { body: usual.body.iter().map(|byte| byte ^ 1).collect(), ..usual },
            false => usual,
        };
        let (place, hub) = (Place::new(), Hub::with_model(Box::new(twist)));
        hub.pull(&place, &["v1.1", "-q"]).refused(3, &[name, "has the digest", "the hub lists", "it was deleted"]);
        let is_of = |digest: &str| place.names().iter().any(|path| path.contains(digest) && !path.ends_with(".lock"));
        let bytes = &repositories()[OFFICIAL][name];
        assert!(!is_of(&sha256(bytes)) && !is_of(&git(bytes)), "{:?}", place.names());
        assert!(!place.path(HOME).join("refs").exists(), "half a model is not found");
        fetched(&hub.pull(&place, &["v1.1", "-q"]));
    }
}

#[test]
fn a_busy_hub_is_waited_for() {
    let twist = |asked: &Asked, usual: Reply| match (asked.is_for(VAE) || asked.path.contains("revision"), asked.times) {
        (true, 1) => Reply::status(429).with("Retry-After", 2),
        (true, 2) => Reply::status(503),
        _ => usual,
    };
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(twist)));
    let since = Instant::now();
    let answer = hub.pull(&place, &["v1.1"]);
    fetched(&answer);
    for words in ["answers 429; trying again in 2.0 s", "answers 503; trying again in 1.0 s"] {
        assert!(answer.stderr.contains(words), "{}", answer.stderr);
    }
    assert!(since.elapsed() > Duration::from_secs(9), "two lists and a file: {:?}", since.elapsed());

    let always = Hub::with_model(Box::new(|_, _| Reply::status(503)));
    always.pull(&place, &["v1.1"]).refused(1, &["answers 503", "given up", "--source modelscope", "HF_ENDPOINT"]);
    assert_eq!(always.asked().len(), 5);
    let long = Hub::with_model(Box::new(|_, _| Reply::status(429).with("Retry-After", 601)));
    long.pull(&place, &["v1.1"]).refused(1, &["answers 429", "given up"]);
    assert_eq!(long.asked().len(), 1);
}

#[test]
fn a_server_that_says_nothing_is_asked_again() {
    let twist = |asked: &Asked, usual: Reply| match asked.elsewhere && asked.is_for(DIT) && asked.times == 1 {
        true => Reply { sent: Some(1000), then: Duration::from_secs(20), ..usual },
        false => usual,
    };
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(twist)));
    let answer: Answer = hub.command(&place, &["v1.1"]).env("HF_HUB_DOWNLOAD_TIMEOUT", "1").output().unwrap().into();
    fetched(&answer);
    assert!(answer.stderr.contains("the connection broke: timeout"), "{}", answer.stderr);
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let place = Place::new();
    let refusal = |status| Hub::with_model(Box::new(move |_, _| Reply::status(status).with("X-Error-Message", "Not for\tyou")));
    let none = ["answers 401 (\"", "private, or gated", "set HF_TOKEN"];
    refusal(401).pull(&place, &["v1.1"]).refused(3, &none);
    let mut command = refusal(403).command(&place, &["v1.1"]);
    let answer: Answer = command.env("HF_TOKEN", "hf_secret").output().unwrap().into();
    answer.refused(3, &["answers 403", "the token of HF_TOKEN may not read it", "accept its terms at http://127.0.0.1"]);
    assert!(!answer.stderr.contains("secret"), "{}", answer.stderr);
    refusal(404).pull(&place, &["v1.1@gone"]).refused(3, &["Step1X-Edit at gone", "404", "check the name, and the revision"]);
    refusal(418).pull(&place, &["v1.1"]).refused(3, &["answers 418", "no answer of a hub"]);
    refusal(403).pull(&place, &["v1.1", "--source", "modelscope"]).refused(3, &["answers 403", "ModelScope's own client"]);
    let talk = Hub::with_model(Box::new(|_, _| Reply::bytes(b"<html>sign in</html>")));
    talk.pull(&place, &["v1.1"]).refused(3, &["127.0.0.1 does not answer as a hub"]);
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (place, hub) = (Place::new(), Hub::with_model(plain()));
    place.write("token", "hf_of_a_file\n");
    for (variable, value, expected) in
        [("HF_TOKEN", "hf_of_the_variable".into(), "hf_of_the_variable"), ("HF_TOKEN_PATH", place.path("token"), "hf_of_a_file")]
    {
        let before = hub.asked().len();
        let mut command = hub.command(&place, &["v1.1"]);
        let answer: Answer = command.env("HF_HUB_CACHE", place.path(variable)).env(variable, value).output().unwrap().into();
        fetched(&answer);
        assert!(!answer.stderr.contains(expected) && !answer.stdout.contains(expected));
        let asked = hub.asked().split_off(before);
        for one in &asked {
            let expected = (!one.elsewhere).then(|| format!("Bearer {expected}"));
            assert_eq!(one.headers.get("authorization"), expected.as_ref(), "{}", one.path);
        }
        assert_eq!(asked.iter().filter(|one| one.elsewhere).count(), 3);
    }
}

#[test]
fn too_little_disk_is_told_before_anything_is_written() {
    let twist = |asked: &Asked, usual: Reply| match asked.path.contains("/api/models/") {
        true => {
            let mut list: serde_json::Value = serde_json::from_slice(&usual.body).unwrap();
            for file in list["siblings"].as_array_mut().unwrap() {
                if file["lfs"].is_object() {
                    file["lfs"]["size"] = json!(1_000_000_000_000_000_u64);
                }
            }
            Reply::json(&list)
        }
        false => usual,
    };
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(twist)));
    let answer: Answer = hub.pull(&place, &["v1.1", "-q"]);
    answer.refused(4, &["3000000.00 GB are to fetch (30000000000", "has ", "free", "HF_HUB_CACHE"]);
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[cfg(unix)]
#[test]
fn what_is_interrupted_goes_on_later() {
    let twist = |asked: &Asked, usual: Reply| match asked.elsewhere && asked.is_for(DIT) && asked.times == 1 {
        true => Reply { sent: Some(100_000), then: Duration::from_secs(20), ..usual },
        false => usual,
    };
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(twist)));
    let mut child = hub.command(&place, &["v1.1", "-q"]).stderr(Stdio::piped()).spawn().unwrap();
    let part = place.path(&format!("{HOME}/blobs/{}.incomplete", sha256(&repositories()[OFFICIAL][DIT])));
    let since = Instant::now();
    while fs::metadata(&part).map_or(0, |file| file.len()) < 100_000 {
        assert!(since.elapsed() < Duration::from_secs(10) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    Answer::from(child.wait_with_output().unwrap()).refused(130, &["interrupted; what was fetched stays", "goes on from there"]);
    assert_eq!(fs::metadata(&part).unwrap().len(), 100_000);

    let answer = hub.pull(&place, &["v1.1"]);
    fetched(&answer);
    assert!(answer.stdout.contains(", 100.0 kB of it are there"), "{}", answer.stdout);
    let last = hub.asked().into_iter().rfind(|asked| asked.elsewhere && asked.is_for(DIT)).unwrap();
    assert_eq!(last.range(), Some(100_000));
    assert!(snapshot(&place, HOME, DIT) == repositories()[OFFICIAL][DIT] && !part.exists());
}

#[test]
fn two_pulls_fetch_each_file_once() {
    let slow = |asked: &Asked, usual: Reply| {
        if asked.elsewhere {
            std::thread::sleep(Duration::from_secs(3));
        }
        usual
    };
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(slow)));
    let first = hub.command(&place, &["v1.1", "-q"]).stderr(Stdio::piped()).spawn().unwrap();
    let since = Instant::now();
    while !hub.asked().iter().any(|asked| asked.elsewhere) {
        assert!(since.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = hub.pull(&place, &["v1.1"]);
    fetched(&second);
    fetched(&first.wait_with_output().unwrap().into());
    assert!(second.stderr.contains("another program fetches it; waiting"), "{}", second.stderr);
    assert_eq!(hub.asked().iter().filter(|asked| asked.elsewhere).count(), 3);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let (place, hub) = (Place::new(), Hub::with_model(plain()));
    let refused = |args: &[&str], code, words: &[&str]| hub.pull(&place, args).refused(code, words);
    refused(&["/a/folder"], 2, &["/a/folder is no model's name", "ORG/NAME"]);
    refused(&[OFFICIAL], 3, &["it holds 2 models", "v1.1 or v1.0"]);
    refused(&["v1p2"], 3, &["version 1.2 is not supported yet", "--all"]);
    refused(&["v1.1@main", "--source", "modelscope"], 2, &["leave out the one behind the @"]);
    for (variable, value) in [("HF_HUB_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "Yes")] {
        let answer: Answer = hub.command(&place, &["v1.1"]).env(variable, value).output().unwrap().into();
        answer.refused(2, &[variable, "forbids connections"]);
    }
    for (variable, value) in [("HF_ENDPOINT", "ftp://a"), ("HTTPS_PROXY", "http://me:secret@"), ("SSL_CERT_FILE", "gone")] {
        let answer: Answer = hub.command(&place, &["v1.1"]).env(variable, value).output().unwrap().into();
        answer.refused(2, &[variable]);
        assert!(!answer.stderr.contains("secret"), "{}", answer.stderr);
    }
    let files = |names: &[&str]| names.iter().map(|name| (name.to_string(), b"x".to_vec())).collect();
    let sets = [("a/none", files(&["README.md"])), ("a/out", files(&["../../out", "x"])), ("a/half", files(&[VAE]))];
    let others = Hub::new(sets.into_iter().map(|(id, files)| (id.to_string(), files)).collect(), plain());
    others.pull(&place, &["a/none"]).refused(3, &["a/none: it holds no model that is read", "--all", "README.md"]);
    others.pull(&place, &["a/half"]).refused(3, &["a/half: it holds no model that is read"]);
    others.pull(&place, &["a/out", "--all"]).refused(3, &["../../out, which is no path of a file"]);
    assert_eq!(hub.asked().len(), 1, "only the list of two models was asked for");
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn modelscope_has_its_own_lists_and_its_own_cache() {
    let cut = |asked: &Asked, usual: Reply| match asked.path.contains(DIT) && asked.times == 1 {
        true => Reply { sent: Some(1000), ..usual },
        false => usual,
    };
    let (place, hub) = (Place::new(), Hub::with_model(Box::new(cut)));
    let answer = hub.pull(&place, &["v1.1", "--source", "modelscope"]);
    fetched(&answer);
    let folder = "scope/models/stepfun-ai/Step1X-Edit";
    assert!(place.read(&format!("{folder}/{DIT}")) == repositories()[OFFICIAL][DIT]);
    assert!(place.path("scope/models/Qwen/Qwen2___5-VL-7B-Instruct/model.safetensors").is_file());
    assert_eq!(bytes_in(&place).len(), 6, "{:?}", place.names());
    assert!(hub.asked().iter().any(|asked| asked.range() == Some(1000)));
    let mut command = place.command(&["inspect", "-m", "v1.1"]);
    let inspected: Answer = command.env("MODELSCOPE_CACHE", place.path("scope")).output().unwrap().into();
    fetched(&inspected);

    assert!(answer.stdout.contains("stepfun-ai/Step1X-Edit at master; licence Apache License 2.0\n"), "{}", answer.stdout);
    let silent = Hub::with_model(Box::new(|asked, usual| match asked.path.contains("/repo") {
        true => usual,
        false => Reply::status(404),
    }));
    let silent = silent.pull(&place, &["v1.1", "--source", "modelscope"]);
    fetched(&silent);
    assert!(silent.stdout.contains("stepfun-ai/Step1X-Edit at master; see its page for the licence\n"), "{}", silent.stdout);
}

/// In ModelScope's cache a file has its own name, whatever it holds: one of the same size that is not the hub's is fetched again.
#[test]
fn a_file_that_has_changed_on_modelscope_is_fetched_again() {
    let (place, hub) = (Place::new(), Hub::with_model(plain()));
    let pull = || hub.pull(&place, &["v1.1", "--source", "modelscope"]);
    fetched(&pull());
    let path = format!("scope/models/stepfun-ai/Step1X-Edit/{DIT}");
    let mut older = place.read(&path);
    older[100_000] ^= 1;
    place.write(&path, &older);
    let before = hub.asked().len();
    let answer = pull();
    fetched(&answer);
    assert!(answer.stderr.contains(&format!("{DIT}: the one that is there is not the hub's")), "{}", answer.stderr);
    assert!(place.read(&path) == repositories()[OFFICIAL][DIT]);
    assert_eq!(hub.asked().len(), before + 5, "two lists, two pages and a file");
}

#[test]
fn answers_and_redirects_have_their_limits() {
    for (bytes, code) in [(16 << 20, 0), ((16 << 20) + 1, 3)] {
        let padded = move |asked: &Asked, usual: Reply| match asked.path.contains("/api/") {
            true => Reply::bytes(&[&usual.body[..], &b" ".repeat(bytes - usual.body.len())].concat()),
            false => usual,
        };
        let hub = Hub::with_model(Box::new(padded));
        let answer = hub.pull(&Place::new(), &["v1.1", "--dry-run"]);
        assert_eq!(answer.code, Some(code), "{}", answer.stderr);
    }
    for (redirects, code) in [(5, 0), (6, 3)] {
        let turned = move |asked: &Asked, usual: Reply| match asked.is_for(SETTINGS) && asked.times <= redirects {
            true => Reply::status(307).with("Location", &asked.path),
            false => usual,
        };
        let answer = Hub::with_model(Box::new(turned)).pull(&Place::new(), &["v1.1"]);
        assert_eq!(answer.code, Some(code), "{}", answer.stderr);
    }
}

/// The way to every released model: trusted is who has a known certificate, and it does not lead back to plain http.
#[test]
fn https_is_checked_and_kept() {
    let place = Place::new();
    let ask = |hub: &Hub, trusted: bool| -> Answer {
        let mut command = hub.command(&place, &["v1.1", "-q"]);
        if trusted {
            command.env("SSL_CERT_FILE", certificate());
        }
        command.env("HF_TOKEN", "hf_secret").output().unwrap().into()
    };
    let hub = Hub::secure(plain());
    ask(&hub, false).refused(1, &["127.0.0.1", "is not who it should be", "SSL_CERT_FILE"]);
    assert!(hub.asked().is_empty(), "no token for strangers: {:?}", hub.asked());
    let turned = Hub::secure(Box::new(|asked, usual| match asked.is_for(SETTINGS) {
        true => Reply::status(302).with("Location", "http://127.0.0.1:9/x"),
        false => usual,
    }));
    ask(&turned, true).refused(3, &["leads from https to 127.0.0.1:9, which anybody can listen to"]);
    fetched(&ask(&hub, true));
    assert!(snapshot(&place, HOME, DIT) == repositories()[OFFICIAL][DIT]);
    assert!(hub.asked().iter().all(|asked| asked.headers.contains_key("authorization") != asked.elsewhere));
}

#[test]
fn proxies_are_used_but_for_exceptions() {
    let (place, hub, proxy) = (Place::new(), Hub::with_model(plain()), Hub::new(Repositories::new(), plain()));
    let ask = |exceptions: &str| -> Answer {
        let mut command = hub.command(&place, &["v1.1", "--dry-run"]);
        command.env("HTTP_PROXY", &proxy.address).env("NO_PROXY", exceptions).output().unwrap().into()
    };
    fetched(&ask("example.org, 127.0.0.1"));
    assert!(proxy.asked().is_empty() && hub.asked().len() == 2);
    assert_ne!(ask("example.org").code, Some(0), "this proxy knows no way to anywhere");
    assert!(!proxy.asked().is_empty() && hub.asked().len() == 2);
}

/// Whoever runs it is told of what it waits for while it waits.
#[test]
fn a_hub_that_is_not_there_is_told_at_once() {
    let place = Place::new();
    let mut command = Hub::with_model(plain()).command(&place, &["v1.1"]);
    let mut child = command.env("HF_ENDPOINT", "http://127.0.0.1:9").stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("no answer from 127.0.0.1:9") && line.contains("trying again in 0.5 s"), "{line}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(place.names().is_empty(), "{:?}", place.names());
}
