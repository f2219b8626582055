//! Real clients: the Python package `openai`, `curl`, and the examples of docs/serving.md, where they are installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Python that has the package: that of `STEP1X_PYTHON`, or any that is found.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("STEP1X_PYTHON").map_or("python3".into(), PathBuf::from);
    let found = Command::new(&named).args(["-c", "import openai"]).output().is_ok_and(|run| run.status.success());
    if !found {
        println!("SKIPPED: there is no Python with the package openai (STEP1X_PYTHON names one)");
    }
    found.then_some(named)
}

fn checked(command: &mut Command) -> String {
    let run = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{command:?}: {text}");
    text
}

#[test]
fn the_package_openai_is_served() {
    let Some(python) = python() else { return };
    let (server, folder) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let result = folder.path().join("expected.png");
    std::fs::write(&result, command_line(&[], "a.png")).unwrap();
    let script = format!("{ROOT}/tests/serve/openai_client.py");
    println!("{}", checked(Command::new(python).arg(script).args([&server.address, PICTURE]).arg(result)));
}

/// The blocks of a language in docs/serving.md, as they run here: at this server, with the repository's pictures.
fn examples(language: &str, address: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("{ROOT}/docs/serving.md")).unwrap();
    let fence = format!("```{language}\n");
    let blocks = text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_string());
    blocks.map(|block| block.replace("127.0.0.1:8000", address).replace("examples/", &format!("{ROOT}/examples/"))).collect()
}

#[test]
fn the_documents_examples_run() {
    let (server, folder) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    let (mut ran, shell) = (0, examples("sh", &server.address));
    for example in shell.iter().filter(|example| example.contains("curl ")) {
        if has_curl {
            checked(Command::new("sh").args(["-ec", example]).current_dir(folder.path()));
            ran += 1;
        }
    }
    if has_curl {
        assert!(ran >= 2);
        let answer: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("answer.json")).unwrap()).unwrap();
        assert_eq!((&answer["seed"], &answer["size"]), (&42.into(), &"128x128".into()));
    } else {
        println!("SKIPPED: there is no curl");
    }
    let Some(python) = python() else { return };
    // Later blocks use what the first has made.
    let all = examples("python", &server.address).join("\n");
    let text = checked(Command::new(python).args(["-c", &all]).current_dir(folder.path()));
    assert!(text.contains("128x128 42") && text.contains("image_edit.completed"), "{text}");
    assert_eq!(
        pixels(&std::fs::read(folder.path().join("edited.png")).unwrap()),
        pixels(&command_line(&["--steps", "4"], "a.png"))
    );
}

/// A server behind a socket of the file system, large uploads, and `Expect: 100-continue`, as curl sends it.
#[test]
fn curl_is_served() {
    let curl = |arguments: &[&str]| Command::new("curl").args(["-sS", "-m", "60"]).args(arguments).output();
    let Ok(version) = curl(&["--version"]) else { return println!("SKIPPED: there is no curl") };
    assert!(version.status.success());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edits.sock");
    let server = Server::start_with(&["--listen", &format!("unix:{}", path.display())], &[]);
    let large = folder.path().join("large.png");
    std::fs::write(&large, [std::fs::read(PICTURE).unwrap(), vec![0; 8 << 20]].concat()).unwrap();
    let status = |picture: &Path, prompt: &str| {
        let image = format!("image[]=@{}", picture.display());
        let socket = path.to_str().unwrap();
        let run = curl(&[
            "--unix-socket",
            socket,
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-F",
            &image,
            "-F",
            prompt,
            "http://edits/v1/images/edits",
        ]);
        String::from_utf8(run.unwrap().stdout).unwrap()
    };
    wait("an edit is made", || status(Path::new(PICTURE), "prompt=make the circle blue") == "200");
    assert_eq!(status(&large, "prompt=make the circle blue"), "200");
    assert_eq!(status(Path::new(PICTURE), "prompt="), "400");
    drop(server);
}

/// The page in Chromium. `STEP1X_SHOTS` names a folder that keeps the screenshots.
#[test]
fn the_page_works_in_a_browser() {
    let Some(python) = python() else { return };
    let ready = |command: &mut Command| command.output().is_ok_and(|run| run.status.success());
    if !ready(Command::new("chromium").arg("--version")) || !ready(Command::new(&python).args(["-c", "import websocket"])) {
        return println!("SKIPPED: there is no Chromium, or no Python with the package websocket-client");
    }
    let (server, folder) = (Server::start(&[]), tempfile::tempdir().unwrap());
    let shots = std::env::var_os("STEP1X_SHOTS").map_or(folder.path().into(), PathBuf::from);
    let script = format!("{ROOT}/tests/serve/page.py");
    println!("{}", checked(Command::new(python).arg(script).args([&server.address, PICTURE]).arg(&shots)));
    let result = std::fs::read(shots.join("result.png")).unwrap();
    assert_eq!(pixels(&result), pixels(&command_line(&["--steps", "4"], "a.png")));
}
