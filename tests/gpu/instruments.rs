//! What `doctor`, `profile` and `bench` say of a real device. The tiny model is all launches: numbers are held against each
//! other, not against speed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use step1x_edit::cuda::{Ceilings, Link, Nvml};
use step1x_edit::plan::{CONTEXT_BYTES, KERNEL_BYTES};
use step1x_edit::tensor::DType;

use crate::support::gpu;

/// The binary where it was built, or, if the build was copied to another machine, beside the tests.
fn binary() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_step1x-edit"));
    if built.exists() {
        return built;
    }
    let tests = std::env::current_exe().unwrap();
    tests.ancestors().nth(2).expect("a build's folder").join("step1x-edit")
}

/// Runs the binary, which must succeed, in a folder; gives what it prints.
fn run(folder: &Path, args: &[&str]) -> String {
    let output = Command::new(binary()).args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn ceilings_are_rates_of_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let mut ceilings = Ceilings::new(&gpu.device, &gpu.setup).unwrap();
    let copy = ceilings.copy_gb_per_s().unwrap();
    assert!((100.0..20_000.0).contains(&copy), "{copy} GB/s");
    let (bf16, tf32) = (ceilings.tflops(DType::BF16).unwrap(), ceilings.tflops(DType::F32).unwrap());
    assert!(tf32 > 10.0 && bf16 > tf32 && bf16 < 5_000.0, "{bf16} and {tf32} TFLOP/s");
    let (small, large) = (ceilings.copy_milliseconds(64).unwrap(), ceilings.copy_milliseconds(1 << 30).unwrap());
    assert!(small > 0.0 && small < 0.1 && small < large, "{small} and {large} ms");
    assert!(ceilings.tflops(DType::U8).is_err());
}

#[test]
fn the_link_is_measured_and_its_memory_is_given_back() {
    let Some(gpu) = gpu() else { return };
    for _ in 0..2 {
        let link = Link::new(&gpu.device).unwrap();
        let [small, large] = [1 << 20, 1 << 28].map(|piece| link.upload_gb_per_s(piece).unwrap());
        assert!(small > 0.5 && large > 0.8 * small && large < 1000.0, "{small} and {large} GB/s");
        assert!((1e-3..10.0).contains(&link.touch_s_per_gb) && (1e-5..10.0).contains(&link.lock_s_per_gb));
    }
    let dir = tempfile::tempdir().unwrap();
    let report = json_of(&run(dir.path(), &["bench", "--link", "--json"]));
    assert!(number(&report["copies"][2]["gb_per_s"]) > 0.5, "{report}");
}

#[test]
fn the_energy_meter_counts_upwards() {
    let Some(gpu) = gpu() else { return };
    let Some(meter) = Nvml::open().and_then(|nvml| nvml.energy_meter(&gpu.device.bus().ok()?)) else {
        eprintln!("skipped: no energy meter on {}", gpu.device.name);
        return;
    };
    let before = meter.millijoules().unwrap();
    let mut ceilings = Ceilings::new(&gpu.device, &gpu.setup).unwrap();
    for _ in 0..3 {
        ceilings.tflops(DType::BF16).unwrap();
    }
    assert!(meter.millijoules().unwrap() > before);
}

#[test]
fn the_instruments_agree_with_each_other() {
    let Some(gpu) = gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let doctor = json_of(&run(folder, &["doctor", "--json"]));
    assert_eq!((&doctor["missing"], &doctor["exit_code"]), (&json!([]), &json!(0)));

    run(folder, &["synth", "--preset", "tiny", "-o", "model", "-q"]);
    let common = ["-m", "model", "--size", "64x64", "--steps", "5", "--json"];
    let args = [&["profile"][..], &common, &["--stage", "step,vae_decode", "--trace", "trace.json"]].concat();
    let profile = json_of(&run(folder, &args));
    let trace = json_of(&fs::read_to_string(folder.join("trace.json")).unwrap());
    let slices = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").count();
    let mut nodes = 0;
    for name in ["step", "vae_decode"] {
        let stage = &profile["stages"][name];
        let each = stage["nodes"].as_array().unwrap();
        nodes += each.len();
        let sum: f64 = each.iter().map(|node| number(&node["ms"])).sum();
        assert!((sum - number(&stage["nodes_ms"])).abs() < 1e-6 * sum && sum > 0.0);
        let kinds: f64 = stage["kinds"].as_array().unwrap().iter().map(|kind| number(&kind["ms"])).sum();
        assert!((sum - kinds).abs() < 1e-6 * sum);
        assert!(number(&stage["uncaptured_ms"]) > 0.0 && number(&stage["captured_ms"]) > 0.0);
    }
    assert_eq!(slices, nodes);
    assert_eq!(profile["stages"].as_object().unwrap().len(), 2);

    let bench = json_of(&run(folder, &[&["bench"][..], &common, &["--runs", "2"]].concat()));
    let seconds = &bench["seconds"];
    assert!(number(&seconds["cold"]["edit"]) > number(&seconds["warm"]["edit"]), "{seconds}");
    // The driver's context is there before; kernels take what the plan sets aside for them, or less.
    let bytes = &bench["device_bytes"];
    let (taken, planned) = (number(&bytes["peak"]) - number(&bytes["before"]), number(&bytes["planned"]));
    let most = planned - gpu.device.context_bytes.unwrap_or(CONTEXT_BYTES) as f64;
    assert!((most - KERNEL_BYTES as f64..=most).contains(&taken), "{bytes}");
    assert!(bench["joules"].get("warm").is_some());
    assert!(number(&bench["stages"]["step"]["median_ms"]) > 0.0);
}

/// Run by hand, with the folder of a model of the released size in `STEP1X_MODEL`: the tiny one's weights all fit into the ring.
#[test]
#[ignore = "needs a model of the released size in STEP1X_MODEL"]
fn nodes_and_waits_for_weights_are_all_of_a_turn() {
    let Some(_gpu) = gpu() else { return };
    let (dir, model) =
        (tempfile::tempdir().unwrap(), std::env::var("STEP1X_MODEL").expect("STEP1X_MODEL names a model's folder"));
    let folder = dir.path();
    let args = ["profile", "-m", &model, "--size", "1024x1024", "--steps", "4", "--max-vram", "6GB", "--json"];
    let profile = json_of(&run(folder, &[&args[..], &["--stage", "text,step", "--trace", "trace.json"]].concat()));
    for name in ["text", "step"] {
        let stage = &profile["stages"][name];
        let [marked, nodes, stalls] = ["marked_ms", "nodes_ms", "stalls_ms"].map(|key| number(&stage[key]));
        assert!(nodes > 0.0 && stalls > 0.0 && nodes + stalls <= 1.001 * marked, "{name}: {nodes} and {stalls} of {marked} ms");
        assert!(number(&stage["bytes"]) > 0.0 && !stage["copies"].as_array().unwrap().is_empty(), "{name} streams nothing");
        for copy in stage["copies"].as_array().unwrap() {
            assert!(number(&copy["ends_ms"]) > number(&copy["begins_ms"]) && number(&copy["gb_per_s"]) < 1000.0, "{copy}");
        }
    }
    let step = &profile["stages"]["step"];
    let [turn, sum] = [number(&step["turn_ms"]), number(&step["nodes_ms"]) + number(&step["stalls_ms"])];
    assert!((sum / turn - 1.0).abs() < 0.03, "nodes and waits take {sum} ms, a turn without marks {turn} ms");
    let trace = fs::read_to_string(folder.join("trace.json")).unwrap();
    assert!(trace.contains(r#""name":"copies""#) && trace.contains("waits for weights"));
}
