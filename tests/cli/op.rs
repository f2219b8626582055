//! `op` without a GPU: its list, its usage errors, and what it says where there is no device.

use super::support::*;

/// What the binary answers where no device is to be seen.
fn op(place: &Place, args: &[&str]) -> Answer {
    let args = [&["op"], args].concat();
    place.command(&args).env("CUDA_VISIBLE_DEVICES", "-1").output().unwrap().into()
}

#[test]
fn ops_and_cases_are_listed() {
    let place = Place::new();
    let all = op(&place, &["--list"]).stdout;
    for words in ["\nlinear\n", "\nattention\n", "\ncount_faults\n", " timed  ", "(gelu_tanh) bf16[33, 3072]"] {
        assert!(all.contains(words), "no {words:?} in:\n{all}");
    }
    let one = op(&place, &["conv2d", "--list", "--json"]).json();
    let cases = one.as_array().unwrap();
    assert!(cases.len() > 10 && cases.iter().all(|case| case["op"] == "conv2d"), "{one}");
    assert!(cases.iter().any(|case| case["timed"] == true) && cases.iter().any(|case| case["timed"] == false));
}

#[test]
fn what_does_not_fit_is_a_usage_error() {
    let place = Place::new();
    op(&place, &[]).refused(2, &["<NAME"]);
    op(&place, &["lineal"]).refused(2, &["there is no op lineal", "linear"]);
    op(&place, &["linear", "--case", "999"]).refused(2, &["--case 999", "--list"]);
    op(&place, &["linear", "--shape", "4x0"]).refused(2, &["4x0", "4096x3072"]);
    op(&place, &["linear", "--shape", "4x64,8x63,8"]).refused(2, &["linear does not take these shapes", "does not fit rows"]);
}

#[test]
fn without_a_device_it_says_so() {
    op(&Place::new(), &["linear", "--case", "1"]).refused(4, &["error: "]);
}
