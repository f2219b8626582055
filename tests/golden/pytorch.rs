//! The stages against another implementation of the networks, `tools/demo_model/goldens.py`, which is held against the official
//! files itself: other seeds, grids and text lengths.

use std::path::Path;
use std::process::Command;

/// The tests whose files it writes.
const TESTS: [&str; 9] = [
    "dit::every_tensor_of_a_forward",
    "dit::each_saving_alone_keeps_the_velocity",
    "dit::positions_are_those_of_the_official_ids",
    "qwen::one_text_without_a_shared_prefix",
    "qwen::two_branches_behind_a_shared_prefix",
    "sampler::latents_after_every_step",
    "sampling::sampler_times",
    "vae::encode",
    "vae::decode",
];

#[test]
fn another_implementation_agrees() {
    // The folder is read from the environment, which is a process's.
    let folders = [env!("CARGO_MANIFEST_DIR"), "."].map(|root| Path::new(root).join("tests/data/golden_pytorch"));
    let folder = folders.iter().find(|folder| folder.is_dir()).expect("tests/data/golden_pytorch");
    let tests = std::env::current_exe().unwrap();
    let run = Command::new(tests).args(["--exact"]).args(TESTS).env("STEP1X_GOLDEN", folder).output().unwrap();
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && text.contains(&format!("{} passed", TESTS.len())), "{text}");
}
