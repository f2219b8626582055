//! Where results go, and what becomes of that place when something fails.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::support::*;

#[test]
fn the_output_path_is_checked_before_the_work() {
    let place = Place::new();
    fs::create_dir(place.path("folder.png")).unwrap();
    fs::create_dir(place.path("folder")).unwrap();
    place.write("file", "");
    // A model that does not exist shows that the path is looked at first.
    let refused = |output: &str, words: &[&str]| {
        place.edit_refused(&["-m", "absent", "-o", output, "--force"], 2, words);
    };
    refused("absent/out.png", &["absent/out.png", "create it first"]);
    refused("file/out.png", &["file/out.png"]);
    refused("folder.png", &["folder.png is a folder", "file name"]);
    refused("folder", &["folder is a folder", "file name"]);
    refused("out.gif", &["out.gif", ".png, .jpg, .jpeg or .webp"]);
    refused("out", &["no extension", ".png"]);
    refused("", &["--output"]);
}

#[test]
fn an_existing_file_needs_force() {
    let place = Place::new();
    let picture = fixture("grey.png");
    place.write("out.png", "precious");
    place.edit_refused(&["-i", &picture], 2, &["out.png exists", "--force"]);
    assert_eq!(place.read("out.png"), b"precious");
    // A run that fails keeps it even with --force.
    place.edit_refused(&["-i", "absent.png", "--force"], 1, &["absent.png"]);
    assert_eq!(place.read("out.png"), b"precious");
    place.edited(&["-i", &picture, "--force"]);
    assert_eq!(pixels(&place.read("out.png")).0, 13);
    // The picture may replace itself.
    fs::copy(&picture, place.path("same.png")).unwrap();
    place.edited(&["-i", "same.png", "-o", "same.png", "--force"]);
    assert_eq!(parameters(&place.read("same.png"))["steps"], 2);
    assert_eq!(place.names(), ["out.png", "same.png"]);
}

#[test]
fn a_place_where_nobody_can_write() {
    if !Path::new("/proc/self").is_dir() {
        return skipped("writing to /proc", "there is none");
    }
    Place::new().edit_refused(&["-o", "/proc/out.png"], 2, &["/proc/out.png", "choose another folder"]);
}

#[cfg(unix)]
#[test]
fn a_folder_that_is_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let folder = place.path("kept");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(folder.join("probe"), "").is_ok() {
        return skipped("a read-only folder", "permissions do not bind this user, who is probably root");
    }
    place.edit_refused(&["-o", "kept/out.png"], 2, &["kept/out.png", "choose another folder"]);
}

/// Runs an edit by a shell script that ends in `"$@"`.
#[cfg(unix)]
fn edit_in_shell(place: &Place, wrapper: &mut Command, script: &str, args: &[&str]) -> Answer {
    let args = place.edit_args(args);
    wrapper.args(["sh", "-c", script, "sh", BINARY]).args(args).current_dir(place.path("")).output().unwrap().into()
}

/// A limit on the size of files fails a write as a full disk does, for every user, whether its signal is ignored or would end
/// the process.
#[cfg(unix)]
#[test]
fn a_write_that_fails_leaves_nothing() {
    let place = Place::new();
    place.write("old.png", "precious");
    let picture = fixture("colour.jpg");
    for script in ["trap '' XFSZ; ulimit -f 1; exec \"$@\"", "ulimit -f 1; exec \"$@\""] {
        for args in [&["-o", "out.png"][..], &["-o", "old.png", "--force"]] {
            let args = [args, &["-i", &picture, "--keep-working-size"]].concat();
            let answer = edit_in_shell(&place, &mut Command::new("env"), script, &args);
            answer.refused(1, &["cannot write", args[1], "File too large"]);
            assert_eq!(place.names(), ["old.png"]);
            assert_eq!(place.read("old.png"), b"precious");
        }
        let synth = ["-c", script, "sh", BINARY, "synth", "--preset", "tiny", "-o", "model"];
        let answer: Answer = Command::new("sh").args(synth).current_dir(place.path("")).output().unwrap().into();
        answer.refused(1, &["cannot write", "File too large"]);
        assert_eq!(place.names(), ["old.png"]);
    }
}

/// A path is bytes, of which not all are text.
#[cfg(unix)]
#[test]
fn names_that_are_no_text_are_used_as_they_are() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let (name, picture) = (OsStr::from_bytes(b"b\xff.png"), OsStr::from_bytes(b"p\xfe.jpg"));
    fs::copy(fixture("colour.jpg"), place.path("").join(picture)).unwrap();
    let edit = |json: &[&str], output: &OsStr| -> Answer {
        let args = place.edit_args(&["-o", "unused"]);
        let args = args.into_iter().filter(|arg| !["-o", "unused"].contains(arg));
        let mut command = place.command(&args.collect::<Vec<_>>());
        command.args(json).arg("-i").arg(picture).arg("-o").arg(output).output().unwrap().into()
    };
    let answer = edit(&["--json"], name);
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    assert_eq!(answer.json()["output"], "b\u{fffd}.png");
    assert_eq!(pixels(&fs::read(place.path("").join(name)).unwrap()).0, 40);
    edit(&[], name).refused(2, &["b\u{fffd}.png exists"]);
    edit(&[], OsStr::from_bytes(b"\xff/\xfe.png")).refused(2, &["create it first"]);
    edit(&[], OsStr::from_bytes(b"c.\xff")).refused(2, &["which cannot be written"]);
    edit(&["-n", "x"], OsStr::from_bytes(b"\xfe\xff")).refused(2, &["no extension"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() {
    const REFUSED: i32 = 77;
    let place = Place::new();
    fs::create_dir(place.path("disk")).unwrap();
    // The mount is gone when the command ends, so what is left there is listed within.
    let script = "mount -t tmpfs -o size=4k none disk || exit 77; \"$@\"; code=$?; ls -A disk >&2; exit $code";
    let picture = fixture("colour.jpg");
    let args = ["-i", &picture, "-o", "disk/out.png", "--keep-working-size"];
    let mut unshare = Command::new("unshare");
    let answer = match unshare.arg("--version").output() {
        Ok(_) => edit_in_shell(&place, Command::new("unshare").arg("-m"), script, &args),
        Err(e) => return skipped("a full disk", &format!("no unshare: {e}")),
    };
    if answer.code == Some(REFUSED) || answer.stderr.starts_with("unshare:") {
        return skipped("a full disk", &answer.stderr);
    }
    answer.refused(1, &["cannot write", "disk/out.png", "No space left"]);
    assert!(!answer.stderr.contains(".part") && !answer.stderr.ends_with("out.png\n"), "{}", answer.stderr);
}

#[cfg(unix)]
#[test]
fn readers_that_go_away_are_no_fault() {
    let place = Place::new();
    // More than a pipe holds, so that the writer meets its end.
    let mut child = place
        .command(&["inspect", "--preset", "full", "--tensors"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let answer: Answer = child.wait_with_output().unwrap().into();
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""));
    // A progress line that nobody reads does not stop the work.
    let picture = fixture("grey.png");
    let args = place.edit_args(&["-i", &picture]);
    let mut child = place.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(place.names(), ["out.png"]);
}

#[cfg(target_os = "linux")]
#[test]
fn json_that_cannot_be_printed_is_a_fault() {
    let place = Place::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let picture = fixture("grey.png");
    let args = place.edit_args(&["-i", &picture, "--json"]);
    let answer: Answer =
        place.command(&args).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap().into();
    answer.refused(1, &["out.png is written", "standard output", "No space left"]);
    assert_eq!(place.names(), ["out.png"]);
}
