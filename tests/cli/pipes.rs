//! Pictures from standard input and to standard output.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use super::support::*;

/// Starts an edit from pipe to pipe.
fn started(place: &Place, args: &[&str]) -> Child {
    let args = place.edit_args(args);
    let mut command = place.command(&args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Code, bytes on standard output, and messages of an edit that is given these bytes.
fn piped(place: &Place, args: &[&str], input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    let mut child = started(place, args);
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(input); // it may be refused before it is read
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), output.stdout, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_picture_goes_through_pipes_as_through_files() {
    let place = Place::new();
    let (picture, bytes) = (fixture("colour.jpg"), fs::read(fixture("colour.jpg")).unwrap());
    for (format, name) in [("png", "a.png"), ("jpg", "a.jpg"), ("webp", "a.webp")] {
        place.edited(&["-i", &picture, "-o", name]);
        let (code, out, messages) = piped(&place, &["-i", "-", "-o", "-", "--format", format], &bytes);
        assert_eq!(code, Some(0), "{messages}");
        assert!(out == place.read(name), "{format}");
        assert!(messages.ends_with("wrote the picture to standard output (40x30, worked on at 64x48)\n"), "{messages}");
    }
    let (code, out, messages) = piped(&place, &["-i", "-", "-o", "-", "-q", "--device", "cpu"], &bytes);
    assert_eq!((code, messages.as_str()), (Some(0), ""), "PNG unless --format says otherwise");
    assert_eq!(pixels(&out), pixels(&place.read("a.png")));
    // A file of that name is another way.
    fs::write(place.path("-"), &bytes).unwrap();
    place.edited(&["-i", "./-", "-o", "dash.png"]);
    assert_eq!(pixels(&place.read("dash.png")), pixels(&place.read("a.png")));
    assert_eq!(place.names(), ["-", "a.jpg", "a.png", "a.webp", "dash.png"]);
}

#[test]
fn what_comes_through_a_pipe_is_refused_in_words() {
    let place = Place::new();
    let refused = |args: &[&str], input: &[u8], code: i32, words: &[&str]| {
        let (found, out, messages) = piped(&place, args, input);
        assert_eq!((found, out.len()), (Some(code), 0), "{args:?}: {messages}");
        words.iter().for_each(|word| assert!(messages.contains(word), "no {word} in {messages}"));
        assert!(place.names().is_empty());
    };
    refused(&["-i", "-", "-o", "-"], b"", 1, &["the picture from standard input", "empty"]);
    refused(&["-i", "-", "-o", "-"], b"no picture", 1, &["the picture from standard input"]);
    refused(&["-i", "-", "-o", "-"], &fs::read(fixture("truncated.jpg")).unwrap(), 1, &["standard input", "cut"]);
    refused(&["-i", "-", "-o", "-", "--json"], b"", 2, &["--json", "name a file"]);
    refused(&["-i", "-", "-o", "-", "--format", "gif"], b"", 2, &["png", "jpg", "webp"]);
}

#[test]
fn the_format_may_be_said_where_the_name_does_not() {
    let place = Place::new();
    let picture = fixture("grey.png");
    for (name, format, begin) in
        [("bare", "jpg", &b"\xff\xd8\xff"[..]), ("same.webp", "webp", b"RIFF"), ("b.jpeg", "jpeg", b"\xff\xd8")]
    {
        place.edited(&["-i", &picture, "-o", name, "--format", format]);
        assert!(place.read(name).starts_with(begin), "{name}");
    }
    place.edit_refused(&["-i", &picture, "-o", "c.png", "--format", "jpg"], 2, &["c.png", "leave out --format"]);
    place.edit_refused(&["-i", &picture, "-o", "c.gif", "--format", "png"], 2, &["c.gif", "cannot be written"]);
}

/// Who leaves has not had the picture.
#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_a_fault() {
    let place = Place::new();
    let mut child = started(&place, &["-i", &fixture("colour.jpg"), "-o", "-"]);
    drop(child.stdout.take());
    let answer: Answer = child.wait_with_output().unwrap().into();
    answer.refused(1, &["bytes of the picture to standard output", "Broken pipe"]);
}

/// Nobody reads, so the program waits, and one request ends it.
#[cfg(unix)]
#[test]
fn a_reader_that_does_not_read_can_be_left() {
    let place = Place::new();
    // More than a pipe holds.
    let args = ["--width", "256", "--height", "256", "--steps", "1", "-o", "-", "--device", "cpu"];
    let mut child = started(&place, &args);
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 8];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"\x89PNG\r\n\x1a\n");
    assert!(child.try_wait().unwrap().is_none(), "the rest waits");
    let sent = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

/// `script` gives a command a terminal.
#[cfg(target_os = "linux")]
#[test]
fn terminals_are_no_pictures() {
    let place = Place::new();
    let picture = fixture("grey.png");
    for (args, words) in [
        (&["-i", &picture, "-o", "-"][..], "standard output is a terminal"),
        (&["-i", "-", "-o", "out.png"], "standard input is a terminal"),
    ] {
        let all = place.edit_args(args).iter().map(|arg| format!("'{arg}'")).collect::<Vec<_>>().join(" ");
        let mut command = Command::new("script");
        command.args(["-qec", &format!("'{BINARY}' {all}"), "/dev/null"]).current_dir(place.path(""));
        let Ok(output) = command.stdin(Stdio::null()).output() else { return skipped("a terminal", "no script") };
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(shown.contains(words), "{shown}");
        assert!(place.names().is_empty());
    }
}
