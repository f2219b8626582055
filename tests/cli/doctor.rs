//! `doctor` with every company of driver, NVRTC and cuBLASLt. Driver and cuBLASLt are stand-ins, built from
//! `stand_in.c`, so that all of it is tried on a machine without a GPU; NVRTC is the real one.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::support::*;

/// The folder of the real compiler, if somebody promised one.
fn nvrtc() -> Option<PathBuf> {
    let folders = std::env::var_os("STEP1X_CUDA_LIB")?;
    let holds = |folder: &PathBuf| {
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with("libnvrtc.so"))
    };
    std::env::split_paths(&folders).find(holds)
}

/// The report with these folders on the loader's path, and no Python environment; text's and JSON's exit codes agree.
fn doctor(place: &Place, folders: &[&Path], variables: &[(&str, &Path)]) -> (Value, String) {
    let ask = |args: &[&str]| -> Answer {
        let mut command = place.command(args);
        for name in ["VIRTUAL_ENV", "CONDA_PREFIX", "STEP1X_CUDA_LIB"] {
            command.env_remove(name);
        }
        let folders = std::env::join_paths(folders).unwrap();
        command.env("PATH", "").env("LD_LIBRARY_PATH", folders).env("STEP1X_CACHE", place.path("cache"));
        command.envs(variables.iter().copied()).output().unwrap().into()
    };
    let (text, json) = (ask(&["doctor"]), ask(&["doctor", "--json"]));
    assert_eq!((text.stderr.as_str(), json.stderr.as_str()), ("", ""));
    let report = json.json();
    assert_eq!((text.code, json.code), (report["exit_code"].as_i64().map(|c| c as i32), text.code), "{}", text.stdout);
    (report, text.stdout)
}

#[test]
fn every_company_of_libraries_has_its_exit_code() {
    let place = Place::new();
    let (bare, text) = doctor(&place, &[], &[]);
    if bare["missing"] != json!(["driver", "nvrtc", "cublaslt"]) {
        return skipped("doctor", "the loader finds some of the libraries by itself");
    }
    assert_eq!(bare["exit_code"], 23);
    assert!(text.contains("libcuda.so.1 is not installed") && text.contains("pip install nvidia-cuda-nvrtc"), "{text}");
    let (Some(driver), Some(products)) = (stand_in(&place, "cuda"), stand_in(&place, "cublasLt")) else {
        return skipped("doctor with stand-ins", "no C compiler");
    };
    let compiler = nvrtc();
    if compiler.is_none() {
        skipped("doctor with NVRTC", "STEP1X_CUDA_LIB names no folder with it");
    }
    for bits in 0..8 {
        let there = |bit: u8| bits & bit == 0;
        if there(2) && compiler.is_none() {
            continue;
        }
        let folders: Vec<&Path> =
            [(1, &driver), (4, &products)].iter().filter(|(bit, _)| there(*bit)).map(|(_, folder)| folder.as_path()).collect();
        let named = compiler.as_deref().filter(|_| there(2));
        let variables: Vec<(&str, &Path)> = named.iter().map(|folder| ("STEP1X_CUDA_LIB", *folder)).collect();
        let (report, text) = doctor(&place, &folders, &variables);
        let code = if bits == 0 { 0 } else { 16 + bits };
        assert_eq!(report["exit_code"], code, "{text}");
        for (bit, name) in [(1, "driver"), (2, "nvrtc"), (4, "cublaslt")] {
            assert_eq!(report[name]["ok"], there(bit), "{name}: {text}");
        }
        if there(1) {
            let device = &report["devices"][0];
            assert_eq!((&device["name"], &device["capability"]), (&json!("Stand-in"), &json!("9.0")));
            assert_eq!(report["driver"]["version"], "13.0");
        }
        if let (true, Some(folder)) = (there(2), &compiler) {
            let file = PathBuf::from(report["nvrtc"]["file"].as_str().unwrap());
            assert_eq!(file.parent().unwrap(), folder.canonicalize().unwrap(), "{text}");
        }
    }
}

#[test]
fn a_driver_without_devices_is_of_no_use() {
    let place = Place::new();
    let Some(driver) = stand_in(&place, "cuda") else { return skipped("doctor without devices", "no C compiler") };
    let (report, text) = doctor(&place, &[&driver], &[("STAND_IN_DEVICES", Path::new("0"))]);
    assert_eq!(report["exit_code"].as_u64().unwrap() & 1, 1, "{text}");
    assert_eq!((&report["driver"]["ok"], &report["devices"]), (&json!(true), &json!([])));
    assert!(text.contains("the driver shows none"), "{text}");
}

#[test]
fn the_cache_is_named_and_tried() {
    let place = Place::new();
    place.write("file", "");
    let (report, text) = doctor(&place, &[], &[("STEP1X_CACHE", &place.path("file"))]);
    assert_eq!(report["cache"]["ok"], false);
    assert!(text.contains("cannot be written"), "{text}");
    let (report, _) = doctor(&place, &[], &[]);
    assert_eq!(report["cache"], json!({"ok": true, "folder": place.path("cache")}));
    assert_eq!(place.names(), ["cache", "file"]);
}

#[test]
fn help_tells_the_doctors_exit_codes() {
    let help = Place::new().run(&["doctor", "--help"]);
    assert!(help.code == Some(0) && help.stdout.contains("otherwise 16 plus 1"), "{}", help.stdout);
}
