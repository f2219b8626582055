//! What goes wrong under way ends with an error that says so, soon, and never with a hang.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use indicatif::ProgressBar;
use step1x_edit::commands::synth::{self, LayoutKind, SynthJob};
use step1x_edit::cuda::Device;
use step1x_edit::error::ResourceError;
use step1x_edit::exec::{Cuda, Executor, Reference, unwatched};
use step1x_edit::graph::Graph;
use step1x_edit::model::Preset;
use step1x_edit::model::Version;
use step1x_edit::model::edit::Savings;
use step1x_edit::ops::{Cast, Values};
use step1x_edit::pipeline::Model;
use step1x_edit::plan::{Itinerary, KERNEL_BYTES, Plan, Precision, Target};
use step1x_edit::stop::Stop;
use step1x_edit::tensor::{Component, DType, Spec};
use step1x_edit::weights::{ModelError, Result, WeightSource};

use crate::common::SyntheticWeights;
use crate::common::tiny::TinyEdit;
use crate::support::gpu;

/// Weights that can be read so many times.
struct Failing {
    weights: SyntheticWeights,
    left: AtomicUsize,
}

impl WeightSource for Failing {
    fn spec(&self, component: Component, name: &str) -> Option<Spec> {
        self.weights.spec(component, name)
    }

    fn read_at(&self, component: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let take = |left: usize| left.checked_sub(1);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => self.weights.read_at(component, name, offset, bytes),
            Err(_) => Err(ModelError::new("the disk is gone")),
        }
    }
}

/// Ends the process if `work` hangs: a hung thread cannot be joined.
fn soon<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    let worker = std::thread::spawn(move || drop(done.send(work())));
    match result.recv_timeout(Duration::from_secs(300)) {
        Ok(value) => {
            worker.join().unwrap();
            value
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(worker.join().unwrap_err()),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            eprintln!("{what}: no end after five minutes");
            std::process::abort();
        }
    }
}

#[test]
fn weights_that_cannot_be_read_end_the_run_with_their_error() {
    let Some(gpu) = gpu() else { return };
    let edit = Arc::new(TinyEdit::new(gpu.target(), Version::V1_1, Savings::ALL));
    let all = edit.plan().graph.weights().count();
    let sound = Arc::new(edit.run(&mut gpu.executor(edit.plan(), Arc::new(edit.weights()))).unwrap());
    for reads in [0, 1, 10, all / 2, all - 1] {
        let (edit, sound, gpu) = (edit.clone(), sound.clone(), gpu.parts());
        let text = soon(&format!("{reads} reads"), move || {
            let weights = Arc::new(Failing { weights: edit.weights(), left: reads.into() });
            let mut exec = Cuda::load(&gpu.open(weights.clone()), edit.plan().clone()).unwrap();
            let error = edit.run(&mut exec).expect_err("not all weights can be read");
            assert!(error.downcast_ref::<ModelError>().is_some(), "{error:#} is a fault of the model's files");
            // The same executor, once the disk is back.
            weights.left.store(usize::MAX, Ordering::Relaxed);
            let again = edit.run(&mut exec).expect("what failed to come is fetched again");
            assert!(again == *sound, "a run after a fault is as good as any");
            format!("{error:#}")
        });
        assert!(text.contains("the disk is gone"), "after {reads} of {all} reads: {text}");
    }
}

fn cut(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

#[test]
fn a_file_cut_off_under_way_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    let job =
        SynthJob { output: folder.clone(), preset: Preset::Tiny, version: Version::V1_1, layout: LayoutKind::Official, seed: 0 };
    synth::run(&job, &Stop::new(), &ProgressBar::hidden()).unwrap();
    let model = Model::open(&folder).unwrap();
    let vae = model.folder.files().map(|(path, ..)| path.to_path_buf()).find(|path| path.ends_with("vae.safetensors")).unwrap();
    let edit = TinyEdit::planned(Precision::F32, Target::Cpu, Version::V1_1, Savings::ALL);
    let mut exec = Reference::new(edit.plan().clone(), model.folder.clone()).unwrap();
    cut(&vae);
    let text = format!("{:#}", edit.run(&mut exec).expect_err("half of a file is gone"));
    assert!(text.contains("vae.safetensors") && text.contains("something has cut it off"), "{text}");

    let Some(gpu) = gpu() else { return };
    let (target, gpu) = (gpu.target(), gpu.parts());
    let text = soon("a cut file", move || {
        let edit = TinyEdit::new(target, Version::V1_1, Savings::ALL);
        let mut exec = Cuda::load(&gpu.open(model.folder.clone()), edit.plan().clone()).unwrap();
        format!("{:#}", edit.run(&mut exec).expect_err("half of a file is gone"))
    });
    assert!(text.contains("vae.safetensors"), "{text}");
}

/// A download that was given its size in advance, and ended half way.
#[test]
fn a_matrix_of_zeros_ends_the_run_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    let job =
        SynthJob { output: folder.clone(), preset: Preset::Tiny, version: Version::V1_1, layout: LayoutKind::Official, seed: 0 };
    synth::run(&job, &Stop::new(), &ProgressBar::hidden()).unwrap();
    let dit = folder.join("step1x-edit-v1p1-official.safetensors");
    let mut bytes = std::fs::read(&dit).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0);
    std::fs::write(&dit, bytes).unwrap();
    let model = Model::open(&folder).unwrap();
    let is_named = |error: anyhow::Error| {
        assert!(error.downcast_ref::<ModelError>().is_some(), "{error:#} is a fault of the model's files");
        let text = format!("{error:#}");
        assert!(text.contains("official.safetensors: the tensor ") && text.contains("has only zeros"), "{text}");
    };
    let edit = TinyEdit::planned(Precision::F32, Target::Cpu, Version::V1_1, Savings::ALL);
    let mut exec = Reference::new(edit.plan().clone(), model.folder.clone()).unwrap();
    is_named(edit.run(&mut exec).expect_err("half of the transformer is zero"));

    let Some(gpu) = gpu() else { return };
    let (target, gpu) = (gpu.target(), gpu.parts());
    is_named(soon("zeros", move || {
        let edit = TinyEdit::new(target, Version::V1_1, Savings::ALL);
        let mut exec = Cuda::load(&gpu.open(model.folder.clone()), edit.plan().clone()).unwrap();
        edit.run(&mut exec).expect_err("half of the transformer is zero")
    }));
}

#[test]
fn what_the_driver_shows_is_what_was_planned() {
    let Some(gpu) = gpu() else { return };
    let edit = TinyEdit::new(gpu.target(), Version::V1_1, Savings::ALL);
    let taken = |device: &Device| device.memory().map(|(free, total)| total - free).unwrap();
    let before = taken(&gpu.device);
    let mut exec = gpu.executor(edit.plan(), Arc::new(edit.weights()));
    edit.run(&mut exec).unwrap();
    let more = taken(&gpu.device).saturating_sub(before);
    assert!(more <= edit.plan().device_bytes() + KERNEL_BYTES, "{more} bytes, planned {}", edit.plan().device_bytes());
}

#[test]
fn a_plan_beyond_the_free_memory_is_refused_before_any_is_taken() {
    let Some(gpu) = gpu() else { return };
    let free = |device: &Device| device.memory().unwrap().0;
    let before = free(&gpu.device);
    let mut graph = Graph::new();
    graph.body("large", |g| {
        // Inputs are there from the start; each is as large as a kernel counts.
        for part in 0..before.div_ceil(1 << 33) {
            let x = g.input(&format!("x{part}"), DType::F32, [1 << 25, 64]);
            g.op(&format!("y{part}"), Cast(DType::BF16), &[x]);
        }
    });
    let itinerary = Itinerary::of_all(&graph);
    let plan = Arc::new(Plan::new(graph, itinerary, Precision::Bf16, gpu.target()).unwrap());
    assert!(plan.arena_bytes > before);
    let weights = Arc::new(SyntheticWeights::new(&plan.graph, 0));
    let opened = gpu.open(weights);
    let before = free(&gpu.device);
    let Err(error) = Cuda::load(&opened, plan) else { panic!("there is not so much memory") };
    assert!(error.downcast_ref::<ResourceError>().is_some(), "{error:#}");
    let text = format!("{error:#}");
    assert!(text.contains("needs") && text.contains("free"), "{text}");
    assert_eq!(free(&gpu.device), before, "nothing was taken");
}

/// A copy from the host's memory returns before the last bytes have arrived; no node may run ahead of them.
#[test]
fn what_was_written_is_there_when_a_node_runs() {
    let Some(gpu) = gpu() else { return };
    // The end of a copy, less than 64 KiB, is what the driver leaves to come later.
    let (mut graph, shape) = (Graph::new(), [80, 3424]);
    let (body, (x, y)) = graph.body("copy", |g| {
        let x = g.input("x", DType::F32, shape);
        let y = g.op("y", Cast(DType::BF16), &[x]);
        g.output(y);
        (x, y)
    });
    let itinerary = Itinerary::of_all(&graph);
    let plan = Arc::new(Plan::new(graph, itinerary, Precision::Bf16, gpu.target()).unwrap());
    let mut exec = gpu.executor(&plan, Arc::new(SyntheticWeights::new(&plan.graph, 0)));
    for round in 0..1000 {
        let values = vec![(round % 200) as f32; shape[0] * shape[1]];
        exec.write(x, Values::F32(&values)).unwrap();
        exec.begin(&plan.itinerary).unwrap();
        exec.run(body, &mut unwatched).unwrap();
        assert!(exec.read_f32(y).unwrap() == values, "round {round}: some values are of the round before");
    }
}
