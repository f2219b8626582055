//! Faults of the command line itself.

use serde_json::json;

use super::support::*;

fn refused(args: &[&str], code: i32, words: &[&str]) {
    let place = Place::new();
    place.edit_refused(args, code, words);
}

#[test]
fn unknown_and_missing_flags_are_named() {
    refused(&["--strength", "0.5"], 2, &["--strength", "Usage"]);
    let place = Place::new();
    place.run(&["edit", "-m", "model", "-o", "out.png"]).refused(2, &["--prompt"]);
    place.run(&["edit", "-p", "red", "-o", "out.png"]).refused(2, &["demo model", "-i", "-m"]);
    place.run(&["edit", "-p", "red", "-m", "model"]).refused(2, &["--output"]);
    place.run(&["paint"]).refused(2, &["paint"]);
    assert!(place.names().is_empty());
}

#[test]
fn values_out_of_range_are_named_with_the_range() {
    for steps in ["0", "1001", "-1", "2.5", "many", "", "99999999999999999999"] {
        refused(&["--steps", steps], 2, &["--steps", "a whole number from 1 to 1000"]);
    }
    refused(&["--size-level", "8"], 2, &["--size-level", "a whole number from 64 to 4096"]);
    for side in ["0", "100", "8192", "-16", "wide"] {
        refused(&["--width", side], 2, &["--width", "a multiple of 16 from 16 to 4096"]);
        refused(&["--height", side], 2, &["--height", "a multiple of 16 from 16 to 4096"]);
    }
    for scale in ["nan", "inf", "-inf", "1e30", "-101", "high"] {
        refused(&["--cfg-scale", scale], 2, &["--cfg-scale", "from -100 to 100"]);
    }
    for limit in ["nan", "-0.1", "1.1", "inf"] {
        refused(&["--guidance-limit", limit], 2, &["--guidance-limit", "from 0 to 1"]);
    }
    for seed in ["random", "1.5", "18446744073709551616", "-", "--", "1e3", ""] {
        let words = ["--seed", "a whole number from 0 to 18446744073709551615, or -1 for a random one"];
        refused(&["--seed", seed], 2, &words);
    }
    Place::new().run(&["synth", "--preset", "tiny", "-o", "m", "-s", "-1"]).refused(2, &["--seed", "0 to 18446744073709551615"]);
    refused(&["--rng", "xpu"], 2, &["--rng", "cpu, cuda"]);
    for threads in ["100", "0", "16777472", "9223372036854775808", "99999999999999999999"] {
        refused(&["--rng", &format!("cuda:{threads}")], 2, &["--rng", "a multiple of 256", "up to 16777216"]);
    }
    refused(&["--precision", "fp4"], 2, &["f32", "bf16", "int8", "fp8", "mixed"]);
    Place::new().run(&["inspect", "--preset", "full", "--size", "big"]).refused(2, &["WIDTHxHEIGHT"]);
}

#[test]
fn devices() {
    // Without a driver, or with too few devices.
    refused(&["--device", "cuda:999"], 4, &["--device cpu"]);
    for precision in ["f32", "fp8"] {
        let words = [&format!("only the CPU runs --precision {precision}"), "--device cpu"];
        refused(&["--device", "cuda", "--precision", precision], 2, &words);
    }
    refused(&["--device", "tpu"], 2, &["--device <DEVICE>", "auto, cpu, cuda or cuda:N"]);
}

#[test]
fn measuring_commands_say_what_they_lack() {
    let place = Place::new();
    place.run(&["verify", "-m", "nowhere", "--golden", "no-such-folder"]).refused(3, &["full_512_inputs.safetensors"]);
    place.run(&["bench", "-m", "nowhere", "--device", "cpu"]).refused(2, &["bench needs a GPU"]);
    place.run(&["bench", "--device", "cpu"]).refused(2, &["--model <PATH>"]);
    place.run(&["bench", "--link", "--device", "cpu"]).refused(2, &["bench --link needs a GPU"]);
    place.run(&["bench", "--link", "--device", "cuda:999"]).refused(4, &["driver"]);
    place.run(&["bench", "--link", "--runs", "3"]).refused(2, &["--runs", "--link"]);
    place.run(&["compare", "-m", "nowhere", "--device", "cpu"]).refused(2, &["compare needs a GPU"]);
    place.run(&["bench", "-m", "nowhere", "--device", "cuda:999"]).refused(4, &["driver"]);
    place.run(&["profile", "-m", "nowhere", "--device", "cpu"]).refused(2, &["profile needs a GPU"]);
    place.run(&["profile", "-m", "nowhere", "--device", "cuda:999", "--max-vram", "6GB"]).refused(4, &["driver"]);
    place.run(&["profile", "-m", "nowhere", "--max-vram", "6XB"]).refused(2, &["--max-vram <BYTES>"]);
    for limit in ["--max-vram", "--max-ram"] {
        place.run(&["profile", "-m", "nowhere", "--device", "cpu", limit, "6GB"]).refused(2, &[limit, "--device cpu"]);
    }
    place.write("trace.json", "mine");
    let trace = ["profile", "-m", "nowhere", "--device", "cpu", "--trace", "trace.json"];
    place.run(&trace).refused(2, &["trace.json exists", "--force"]);
    place.run(&[&trace[..], &["--force"]].concat()).refused(2, &["profile needs a GPU"]);
    assert_eq!(place.read("trace.json"), b"mine");
}

#[test]
fn a_size_belongs_to_text_alone() {
    refused(&["-i", &fixture("grey.png"), "--width", "64"], 2, &["--width", "--image"]);
}

#[test]
fn tokens_that_stand_for_pictures_are_refused_in_prompts() {
    refused(&["-p", "a <|image_pad|> b", "--width", "64", "--height", "64"], 2, &["<|image_pad|>", "leave it out"]);
    refused(&["-n", "<|video_pad|>", "--width", "64", "--height", "64"], 2, &["<|video_pad|>"]);
}

#[test]
fn a_prompt_that_says_nothing_is_refused_before_anything_is_read() {
    let place = Place::new();
    for blank in ["", " ", "\n\r\t", "\u{feff}", "\u{3000}"] {
        place.edit_refused(&["-m", "absent", "-i", "absent.png", "-p", blank], 2, &["the prompt is empty", "say what to change"]);
    }
    // Text that a shell decodes wrongly, and what is no text.
    #[cfg(unix)]
    for flag in ["-p", "-n", "--seed", "--format", "--device", "--steps"] {
        use std::os::unix::ffi::OsStrExt;
        let mut command = place.command(&place.edit_args(&["-i", "absent.png", "-p", "x"]));
        let answer: Answer = command.arg(flag).arg(std::ffi::OsStr::from_bytes(b"a\xff")).output().unwrap().into();
        answer.refused(2, &[]);
    }
}

/// A path is bytes, of which not all are text; a name that is no path must be text.
#[cfg(unix)]
#[test]
fn no_name_makes_a_panic() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let place = Place::new();
    let run = |args: &str| -> Answer {
        // N stands for a name that is no text.
        let bytes = |arg: &str| {
            OsString::from_vec(arg.bytes().flat_map(|b| if b == b'N' { vec![0xff, 0xfe] } else { vec![b] }).collect())
        };
        place.command(&[]).args(args.split(' ').map(bytes)).output().unwrap().into()
    };
    for (args, code) in [
        ("synth --preset tiny -q -o N", 0),
        ("inspect -m N", 0),
        ("inspect -m N --json", 0),
        ("inspect -m N/step1x-edit-v1p1-official.safetensors", 0),
        ("edit -m N -i N.png -p x -o out.png", 1),
        ("edit -m NN -i N -p x -o N.png", 1),
        ("edit -m NN --width 64 --height 64 -p x -o N.png", 3),
        ("edit -i N -p x -o N", 2),
        ("demo -o N", 2),
        ("judge --cases N", 2),
        ("judge --cases N -o N", 2),
        ("inspect -m NN", 3),
        ("inspect -m absent --preset N", 2),
        ("bench -m NN --device cpu", 2),
        ("profile -m NN --trace N --device cpu", 2),
        ("compare -m NN --stage N --device cpu", 2),
        ("verify -m NN --golden N", 3),
        ("verify -m NN --golden N --name N", 2),
        ("op N", 2),
        ("op linear --case N --list", 2),
        ("N", 2),
        ("--N", 2),
    ] {
        let answer = run(args);
        assert_eq!(answer.code, Some(code), "{args}: {}", answer.stderr);
        assert!(!answer.stderr.contains("panicked"), "{args}: {}", answer.stderr);
    }
    assert!(place.path("").join(OsStr::from_bytes(b"\xff\xfe")).is_dir());
}

/// A name may hold what a terminal obeys; no message hands it on.
#[cfg(unix)]
#[test]
fn no_message_gives_orders_to_the_terminal() {
    let place = Place::new();
    let name = "a\x1b[31m\x07\u{9b}b";
    for args in [
        vec!["edit", "-m", name, "--width", "64", "--height", "64", "-p", "x", "-o", "out.png"],
        vec!["edit", "-i", name, "-p", "x", "-o", "out.png"],
        vec!["edit", "-i", "x", "-p", "x", "-o", name],
        vec!["edit", "-i", "x", "-p", "x", "-o", "x.png", "--seed", name],
        vec!["edit", "-i", "x", "-p", "x", "-o", "x.png", name],
        vec!["inspect", "-m", name],
        vec!["judge", "--cases", name],
        vec!["verify", "-m", "x", "--golden", name],
        vec!["op", name],
        vec!["synth", "--preset", name, "-o", "x"],
        vec![name],
    ] {
        let answer = place.run(&args);
        assert_ne!(answer.code, Some(0));
        let shown = answer.stderr + &answer.stdout;
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{args:?}: {shown:?}");
    }
    // Results too: the name of a file that `edit` wrote.
    let output = format!("{name}.png");
    let answer = place.edited(&["-i", &fixture("grey.png"), "-o", &output]);
    assert!(answer.stderr.contains("wrote a\\u001b[31m\\u0007\\u009bb.png"), "{}", answer.stderr);
}

#[test]
fn official_names_and_underscores_are_accepted() {
    let place = Place::new();
    let args = ["edit", "--model_path", model().to_str().unwrap(), "--prompt", "a_b", "--negative_prompt=blurry_c"];
    let more = ["--cfg_guidance", "4.5", "--size_level=64", "--num_steps", "3", "--output", "o_o.png", "--json"];
    let picture = fixture("grey.png");
    let answer = place.run(&[&args[..], &more[..], &["--image", &picture]].concat());
    assert_eq!(answer.code, Some(0), "{}", answer.stderr);
    let json = answer.json();
    assert_eq!((&json["cfg_scale"], &json["steps"]), (&json!(4.5), &json!(3)));
    assert_eq!((&json["prompt"], &json["negative_prompt"]), (&json!("a_b"), &json!("blurry_c")));
    assert_eq!(place.names(), ["o_o.png"]);
}

#[test]
fn help_goes_to_stdout_and_tells_the_exit_codes() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    assert!(help.stdout.contains("130 interrupted"), "{}", help.stdout);
    let bare = place.run(&[]);
    assert_eq!((bare.code, bare.stdout.as_str()), (Some(2), ""));
    assert!(bare.stderr.contains("edit") && bare.stderr.contains("inspect"), "{}", bare.stderr);
}

/// A build for who wants no connections has the command, which says what to do instead.
#[cfg(not(feature = "pull"))]
#[test]
fn a_build_without_downloads_says_so() {
    let words = ["built without downloads", "--features pull", "hf download"];
    Place::new().run(&["pull", "v1.1"]).refused(2, &words);
}
