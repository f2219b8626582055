//! What computes a product, and so its last bits, depends on device and libraries alone: not on what a cache holds, not on a time
//! that was measured, not on the process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use step1x_edit::commands::inspect::{PlanJob, plan_edit};
use step1x_edit::commands::synth::PresetModel;
use step1x_edit::cuda::Trials;
use step1x_edit::exec::products;
use step1x_edit::graph::BodyId;
use step1x_edit::image::Rgb;
use step1x_edit::model::edit::Savings;
use step1x_edit::model::{Preset, Version};
use step1x_edit::pipeline::{DeviceChoice, EditParameters, Engine, Model, Place, PlaceChoice, Silent};
use step1x_edit::plan::Precision;

use crate::support::{Gpu, gpu};

/// The file that a process of this test writes its suggestions to.
const FILE: &str = "STEP1X_TEST_SUGGESTIONS";

/// What cuBLASLt suggests for every product of an edit of the released size, and for the demo model's few.
fn suggestions(gpu: &Gpu) -> String {
    let trials = Trials::new(&gpu.device, &gpu.setup).unwrap();
    let mut text = String::new();
    for (preset, size) in [(Preset::Full, 512), (Preset::Tiny, 64)] {
        let model = PresetModel::new(preset, Version::V1_1).unwrap();
        let job = PlanJob {
            prompt: "make it snow".into(),
            rules: None,
            size: (size, size),
            size_level: size,
            steps: 28,
            precision: Precision::Bf16,
            savings: Savings::ALL,
        };
        let program = plan_edit(&model.config, &model.settings, &model.tokenizer, &job).unwrap();
        for body in (0..program.plan.graph.bodies.len()).map(BodyId) {
            for gemm in products(&program.plan, body) {
                text += &format!("{gemm}: {:?}\n", trials.suggestions(&gemm).unwrap());
            }
        }
    }
    text
}

#[test]
fn every_process_is_suggested_the_same() {
    let Some(gpu) = gpu() else { return };
    let own = suggestions(&gpu);
    if let Some(file) = std::env::var_os(FILE) {
        return fs::write(file, own).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    for process in 0..2 {
        let file = dir.path().join(process.to_string());
        let test = ["choices::every_process_is_suggested_the_same", "--exact"];
        let run = Command::new(std::env::current_exe().unwrap()).args(test).env(FILE, &file).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
        let others = fs::read_to_string(&file).unwrap();
        let differing: Vec<_> = own.lines().zip(others.lines()).filter(|(a, b)| a != b).collect();
        assert!(own == others, "{} of {} products, such as {:?}", differing.len(), own.lines().count(), differing.first());
    }
    assert!(own.lines().count() > 500, "{own}");
}

#[test]
fn an_edit_has_the_same_bytes_whatever_the_cache_holds() {
    let Some(gpu) = gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let picture = Rgb { width: 128, height: 128, data: (0..128 * 128 * 3).map(|i| (i * i / 7 + i / 3) as u8).collect() };
    let edit = |cache: Option<&Path>| {
        let setup = step1x_edit::cuda::Setup { cache: cache.map(Into::into), ..gpu.setup.clone() };
        let choice = PlaceChoice { device: DeviceChoice::Cuda(0), setup, ..PlaceChoice::default() };
        let mut engine = Engine::open(Model::demo().unwrap(), Place::open(&choice).unwrap()).unwrap();
        let wanted = EditParameters {
            steps: 4,
            size_level: Some(128),
            cfg_scale: Some(6.0),
            ..EditParameters::new("make the circle blue")
        };
        engine.edit(&wanted, Some(&picture), &mut Silent).unwrap().picture
    };
    let files = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let mode = |mode| fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
    let without = edit(None);
    assert!(edit(Some(&folder)) == without, "a new one");
    assert!(files().iter().all(|file| file.extension().is_some_and(|e| e == "cubin")), "kernels alone are kept: {:?}", files());
    assert!(edit(Some(&folder)) == without, "a full one");
    for file in files() {
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
    }
    assert!(edit(Some(&folder)) == without, "one whose files are damaged");
    mode(0o500);
    assert!(edit(Some(&folder)) == without, "one that cannot be written");
    mode(0o777);
    assert!(edit(Some(&folder)) == without, "one that others can write");
    mode(0o700);
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "a file").unwrap();
    assert!(edit(Some(&folder)) == without, "none");
}
