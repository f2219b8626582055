//! Synthetic models.

use std::fs;

use super::support::*;

fn made(place: &Place, args: &[&str]) {
    let answer = place.run(&[&["synth", "--preset", "tiny"], args].concat());
    assert_eq!((answer.code, answer.stdout.as_str(), answer.stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn a_seed_makes_the_same_files_again_and_another_seed_others() {
    let place = Place::new();
    fs::create_dir(place.path("b")).unwrap(); // an empty folder may be there
    made(&place, &["-o", "a", "--seed", "3"]);
    made(&place, &["-o", "b", "--seed", "3"]);
    made(&place, &["-o", "c", "--seed", "4"]);
    let read = |model: &str, file: &str| place.read(&format!("{model}/{file}"));
    for file in MODEL_FILES {
        assert!(read("a", file) == read("b", file), "{file} differs between two runs");
        let weights = file.ends_with(".safetensors");
        assert_eq!(read("a", file) != read("c", file), weights, "{file} and the seed");
    }
    assert_eq!(place.names().len(), 3 * (2 + MODEL_FILES.len()), "{:?}", place.names());
}

#[test]
fn folders_that_cannot_be_made_are_refused() {
    let place = Place::new();
    place.write("file", "");
    fs::create_dir(place.path("used")).unwrap();
    place.write("used/note", "precious");
    let before = place.names();
    let refused = |dir: &str, words: &[&str]| {
        place.run(&["synth", "--preset", "tiny", "-o", dir]).refused(2, words);
        assert_eq!(place.names(), before);
    };
    refused("used", &["used", "not empty"]);
    refused("absent/model", &["absent", "create that first"]);
    refused("file", &["file"]);
    place.run(&["synth", "-o", "model"]).refused(2, &["--preset"]);
    place.run(&["synth", "--preset", "tiny", "--version", "v3", "-o", "model"]).refused(2, &["v1.0", "v1.1"]);
    assert_eq!(place.names(), before);
}
