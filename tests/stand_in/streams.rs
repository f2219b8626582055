//! Weights that stream, and what comes between: faults of files, of the host's memory and of the device, stops, other programs, other
//! weights. Each time the next edit finds all of its weights.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::bail;
use step1x_edit::error::ResourceError;
use step1x_edit::exec::{Cuda, Executor, Gpu};
use step1x_edit::graph::{Kind, Node, StorageId, TensorId};
use step1x_edit::ops::{HostValues, Values};
use step1x_edit::pipeline::Model;
use step1x_edit::plan::Plan;
use step1x_edit::tensor::{Component, DType, Spec};
use step1x_edit::weights::{ModelError, Result, WeightSource};

use crate::common::SyntheticWeights;
use crate::common::tiny::TinyEdit;
use crate::support::{ILLEGAL_ADDRESS, NOT_PERMITTED, OUT_OF_MEMORY, StandIn, Truth, stand_in};
use crate::uploads::{Trouble, Troubled, soon};

/// Plans whose weights stream: in as little as it takes, and in more.
fn streamed(edit: &TinyEdit) -> Vec<Arc<Plan>> {
    let plans = edit.residencies();
    let streamed: Vec<_> = plans.into_iter().filter(|plan| !plan.weights.keeps_all()).collect();
    [&streamed[0], &streamed[2], &streamed[4]].map(Arc::clone).into()
}

/// Runs an edit in which every node must find its weights.
fn sound(stand_in: &StandIn, edit: &TinyEdit, exec: &mut Cuda, truth: &Truth, when: &str) {
    let watch =
        &mut |node: Option<&Node>, exec: &dyn Executor| node.map_or(Ok(()), |node| truth.check(stand_in, exec, node, when));
    edit.run_watched(exec, watch).unwrap_or_else(|e| panic!("{when}: {e:#}"));
}

/// Runs an edit that is stopped after so many nodes; gives whether it was.
fn stop_after(edit: &TinyEdit, exec: &mut Cuda, nodes: usize) -> bool {
    let mut left = nodes;
    let watch = &mut |node: Option<&Node>, _: &dyn Executor| match node.map_or(Some(left), |_| left.checked_sub(1)) {
        Some(now) => {
            left = now;
            Ok(())
        }
        None => bail!("enough"),
    };
    edit.run_watched(exec, watch).is_err_and(|e| e.to_string() == "enough")
}

/// A program on a GPU whose host's store is filled.
fn warm(stand_in: &StandIn, edit: &TinyEdit, plan: &Arc<Plan>, weights: Arc<dyn WeightSource + Send + Sync>) -> (Arc<Gpu>, Cuda) {
    let gpu = stand_in.open(weights);
    let mut exec = Cuda::load(&gpu, plan.clone()).unwrap().without_capture();
    for _ in 0..4 {
        edit.run(&mut exec).unwrap();
        std::thread::sleep(Duration::from_millis(20)); // memory is locked meanwhile
    }
    assert!(gpu.stored_bytes() > 0);
    (gpu, exec)
}

/// The inputs as they lie on the device once a run has been announced.
fn inputs(edit: &TinyEdit, exec: &mut Cuda) -> Vec<HostValues> {
    edit.write_inputs(exec).unwrap();
    exec.begin(&edit.plan().itinerary).unwrap();
    let graph = &edit.plan().graph;
    let is_input = |id: &usize| matches!(graph.storage_of(TensorId(*id)).kind, Kind::Input);
    (0..graph.tensors.len()).filter(is_input).map(|id| exec.read(TensorId(id)).unwrap()).collect()
}

/// Tensors that lie apart, each above the activations of some body.
fn high(plan: &Plan) -> Vec<TensorId> {
    let lowest = plan.weights.arena.iter().min().unwrap();
    let (mut high, mut end) = (vec![], 0);
    let mut tensors: Vec<_> = (0..plan.graph.tensors.len()).map(TensorId).collect();
    tensors.sort_by_key(|&id| plan.offsets[plan.graph.tensor(id).storage.0]);
    for id in tensors {
        let (tensor, storage) = (plan.graph.tensor(id), plan.graph.storage_of(id));
        let Some(offset) = plan.offsets[tensor.storage.0] else { continue };
        let whole = tensor.spec.bytes() == storage.spec.bytes() && tensor.spec.dtype == DType::BF16;
        if whole && offset >= end && offset + storage.spec.bytes() > *lowest {
            end = offset + storage.spec.bytes();
            high.push(id);
        }
    }
    high
}

/// What a stopped run has under way comes neither into the next run's inputs nor, believed, into its weights' places.
#[test]
fn after_a_stop_the_next_edit_finds_inputs_and_weights() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let truth = stand_in.truth(&edit, Arc::new(edit.weights()));
    let nodes = edit.plan().graph.nodes.len();
    for plan in streamed(&edit) {
        let expected = inputs(&edit, &mut stand_in.executor(&plan, Arc::new(edit.weights())));
        let (gpu, mut exec) = warm(&stand_in, &edit, &plan, Arc::new(edit.weights()));
        let mut stops = 0;
        for after in (0..2 * nodes).step_by(nodes / 8) {
            stops += usize::from(stop_after(&edit, &mut exec, after));
            assert!(inputs(&edit, &mut exec) == expected, "{:?}, stopped after {after} nodes", plan.weights.policy);
            sound(&stand_in, &edit, &mut exec, &truth, &format!("after a stop at {after}"));
            stop_after(&edit, &mut exec, after);
            for &id in &high(&plan) {
                let ones = vec![1.0; plan.graph.tensor(id).spec.shape.elements()];
                exec.write(id, Values::F32(&ones)).unwrap();
            }
            exec.begin(&plan.itinerary).unwrap();
            for &id in &high(&plan) {
                let whole = exec.read_f32(id).unwrap().iter().all(|&value| value == 1.0);
                assert!(whole, "{:?}, {id:?} after a stop at {after}", plan.weights.policy);
            }
            // The next program on the same region.
            stop_after(&edit, &mut exec, after);
            let mut next = Cuda::load(&gpu, plan.clone()).unwrap().without_capture();
            assert!(inputs(&edit, &mut next) == expected, "{:?}, another after {after} nodes", plan.weights.policy);
            sound(&stand_in, &edit, &mut next, &truth, &format!("another program after a stop at {after}"));
        }
        assert!(stops > 5, "{stops}");
        let begun = Instant::now();
        stop_after(&edit, &mut exec, nodes / 2);
        drop((exec, gpu));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        soon("locked memory is given back", || stand_in.pinned() == 0);
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// A reader that fails, panics or hangs while it fills the host's store.
#[test]
fn what_a_reader_has_not_brought_does_not_count_as_stored() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let truth = stand_in.truth(&edit, Arc::new(edit.weights()));
    for plan in streamed(&edit) {
        for trouble in [Trouble::Fails, Trouble::Panics, Trouble::Hangs] {
            for reads in [0, 7, 20] {
                let weights = Troubled::new(&edit, usize::MAX, trouble);
                let (gpu, mut exec) = warm(&stand_in, &edit, &plan, weights.clone());
                gpu.forget_those(&|_| true).unwrap(); // locked, and to be filled again
                weights.trouble_after(reads);
                let (when, begun) = (format!("{trouble:?} after {reads} reads"), Instant::now());
                let watch = &mut |_: Option<&Node>, _: &dyn Executor| match begun.elapsed() > Duration::from_millis(100) {
                    true => bail!("enough"),
                    false => Ok(()),
                };
                let error = edit.run_watched(&mut exec, watch).expect_err("not all weights can be read");
                assert_eq!(error.is::<ModelError>(), trouble == Trouble::Fails, "{when}: {error:#}");
                weights.mend();
                sound(&stand_in, &edit, &mut exec, &truth, &when);
                weights.answer();
                sound(&stand_in, &edit, &mut exec, &truth, &when);
            }
        }
    }
    assert_eq!(stand_in.mistakes(), 0);
    soon("buffers and locked memory are given back", || stand_in.pinned() == 0);
}

#[test]
fn a_file_that_is_cut_while_the_store_fills_is_an_error_and_whole_again_no_loss() {
    let Some(stand_in) = stand_in() else { return };
    let (edit, dir) = (stand_in.tiny(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("tiny");
    let mut synth = Command::new(env!("CARGO_BIN_EXE_step1x-edit"));
    assert!(synth.args(["synth", "--preset", "tiny", "-q", "-o"]).arg(&folder).status().unwrap().success());
    let open = || Model::open(&folder).unwrap().folder;
    let truth = stand_in.truth(&edit, open());
    let path = open().files().next().expect("the transformer's file").0.to_path_buf();
    let whole = std::fs::read(&path).unwrap();
    for plan in streamed(&edit) {
        let (gpu, mut exec) = warm(&stand_in, &edit, &plan, open());
        for part in [2, 3] {
            gpu.forget_those(&|_| true).unwrap();
            let file: File = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len((whole.len() / part) as u64).unwrap();
            let error = edit.run(&mut exec).expect_err("the file is cut");
            assert!(error.is::<ModelError>() && format!("{error:#}").contains("safetensors"), "{error:#}");
            file.write_all_at(&whole, 0).unwrap();
            for _ in 0..2 {
                sound(&stand_in, &edit, &mut exec, &truth, "after a file that was cut");
            }
        }
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// Memory that cannot be locked: the same bytes come through the buffers, and one note says why.
#[test]
fn without_locked_memory_weights_come_through_buffers() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let truth = stand_in.truth(&edit, Arc::new(edit.weights()));
    for plan in streamed(&edit) {
        // What streams in one edit is locked in one piece, what streams over edits in another.
        let [first, all] = [stored(&plan, true), stored(&plan, false)];
        for (code, skip) in [(OUT_OF_MEMORY, 0), (NOT_PERMITTED, 0), (OUT_OF_MEMORY, 1), (NOT_PERMITTED, 1)] {
            if skip == 1 && (first == 0 || first == all) {
                continue;
            }
            stand_in.mend();
            let gpu = stand_in.open(Arc::new(edit.weights()));
            let mut exec = Cuda::load(&gpu, plan.clone()).unwrap().without_capture();
            stand_in.fault("cuMemHostRegister_v2", code, skip, None);
            let mut told = vec![];
            for run in 0..4 {
                sound(&stand_in, &edit, &mut exec, &truth, &format!("run {run} without locked memory"));
                std::thread::sleep(Duration::from_millis(20));
                told.extend(gpu.store_refused());
            }
            assert!(told.len() == 1 && told[0].contains("does not lock"), "{told:?}");
            assert_eq!(gpu.stored_bytes(), if skip == 0 { 0 } else { first }, "of {all}, code {code}");
        }
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// Bytes that stream more than once: in one edit, or over edits.
fn stored(plan: &Plan, in_one: bool) -> usize {
    let visits = plan.weights.visits(&plan.itinerary.visits());
    let mut there = vec![false; plan.graph.storages.len()];
    let mut times = vec![0; there.len()];
    for _ in 0..if in_one { 1 } else { 2 } {
        plan.weights.arrivals(&visits, &mut there).iter().for_each(|arrival| times[arrival.storage.0] += 1);
    }
    let again = |&id: &usize| times[id] > 1 && !plan.weights.kept[id];
    (0..times.len()).filter(again).map(|id| plan.weights.place(StorageId(id)).unwrap().len()).sum()
}

#[test]
fn a_device_that_fails_while_weights_stream_is_named_and_holds_nobody() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let truth = stand_in.truth(&edit, Arc::new(edit.weights()));
    for plan in streamed(&edit) {
        for (function, skip) in [("cuMemcpyHtoDAsync_v2", 0), ("cuMemcpyHtoDAsync_v2", 40), ("cuEventRecord", 60)] {
            let (gpu, mut exec) = warm(&stand_in, &edit, &plan, Arc::new(edit.weights()));
            // Once refused, nothing is broken: the next edit is right.
            stand_in.fault(function, OUT_OF_MEMORY, skip, Some(1));
            edit.run(&mut exec).expect_err("refused once");
            sound(&stand_in, &edit, &mut exec, &truth, function);
            stand_in.fault(function, ILLEGAL_ADDRESS, skip, None);
            let begun = Instant::now();
            edit.run(&mut exec).expect_err("the device fails");
            let next = gpu.settle(&mut || Ok(())).expect_err("nothing runs any more");
            assert!(next.is::<ResourceError>() && next.to_string().contains("failed in an earlier edit"), "{next:#}");
            drop((exec, gpu));
            assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
            stand_in.mend();
        }
        let (_gpu, mut exec) = warm(&stand_in, &edit, &plan, Arc::new(edit.weights()));
        sound(&stand_in, &edit, &mut exec, &truth, "another process");
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// Weights that become others; one read hangs when it has the old bytes.
struct Changing {
    versions: [SyntheticWeights; 2],
    version: AtomicUsize,
    /// Reads before the one that hangs.
    left: AtomicUsize,
    hangs: Mutex<bool>,
    answers: Condvar,
}

impl WeightSource for Changing {
    fn spec(&self, component: Component, name: &str) -> Option<Spec> {
        self.versions[0].spec(component, name)
    }

    fn read_at(&self, component: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.versions[self.version.load(Ordering::SeqCst)].read_at(component, name, offset, bytes)?;
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            drop(self.answers.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
        }
        Ok(())
    }
}

/// A thread that still reads a weight when it becomes another brings the old one: that must not count as stored.
#[test]
fn a_late_reader_does_not_bring_back_a_weight_that_has_changed() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let made = |seed| SyntheticWeights::new(&edit.plan().graph, seed);
    let truth = stand_in.truth(&edit, Arc::new(made(1)));
    for plan in streamed(&edit) {
        for reads in [0, 9, 30] {
            let (version, left) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
            let (hangs, answers) = (Mutex::new(true), Condvar::new());
            let weights = Arc::new(Changing { versions: [0, 1].map(made), version, left, hangs, answers });
            let (gpu, mut exec) = warm(&stand_in, &edit, &plan, weights.clone());
            gpu.forget_those(&|_| true).unwrap();
            weights.left.store(reads, Ordering::SeqCst);
            let begun = Instant::now();
            let watch = &mut |_: Option<&Node>, _: &dyn Executor| match begun.elapsed() > Duration::from_millis(100) {
                true => bail!("enough"),
                false => Ok(()),
            };
            // The edit is stopped if it waits for the reader that hangs; it need not, if that one fills the store for later.
            assert!(edit.run_watched(&mut exec, watch).err().is_none_or(|error| error.to_string() == "enough"));
            assert!(weights.left.load(Ordering::SeqCst) > reads, "a reader hangs");
            gpu.forget_those(&|_| true).unwrap();
            weights.version.store(1, Ordering::SeqCst);
            sound(&stand_in, &edit, &mut exec, &truth, "beside a late reader");
            let readers = Arc::strong_count(&weights);
            *weights.hangs.lock().unwrap() = false;
            weights.answers.notify_all();
            soon("the late reader ends", || Arc::strong_count(&weights) < readers);
            for _ in 0..2 {
                sound(&stand_in, &edit, &mut exec, &truth, "after a late reader");
            }
        }
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// What streams once in an edit is read once more than its first edit: while a gate is closed, its place in the store is filled.
#[test]
fn the_store_is_filled_while_gates_are_closed() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let truth = stand_in.truth(&edit, Arc::new(edit.weights()));
    for plan in streamed(&edit) {
        let weights = Troubled::new(&edit, usize::MAX, Trouble::Fails);
        let gpu = stand_in.open(weights.clone());
        let mut exec = Cuda::load(&gpu, plan.clone()).unwrap().without_capture();
        edit.run(&mut exec).unwrap();
        // The second edit stays at a node of its first step until nobody has read for half a second: no gate opens meanwhile.
        let step = plan.graph.body_named("step").unwrap();
        let first = &plan.graph.nodes[plan.graph.nodes_of(step).start];
        let mut stayed = false;
        let watch = &mut |node: Option<&Node>, _: &dyn Executor| {
            if !stayed && node.is_some_and(|node| std::ptr::eq(node, first)) {
                stayed = true;
                let mut before = usize::MAX;
                while std::mem::replace(&mut before, weights.left()) != weights.left() {
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
            Ok(())
        };
        edit.run_watched(&mut exec, watch).unwrap();
        weights.trouble_after(0);
        sound(&stand_in, &edit, &mut exec, &truth, "from the store alone");
    }
}

/// Weights that count how often each is given back.
struct Counted {
    weights: SyntheticWeights,
    given: Mutex<HashMap<String, usize>>,
}

impl WeightSource for Counted {
    fn spec(&self, component: Component, name: &str) -> Option<Spec> {
        self.weights.spec(component, name)
    }

    fn read_at(&self, component: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.weights.read_at(component, name, offset, bytes)
    }

    fn give_back(&self, _: Component, name: &str) {
        *self.given.lock().unwrap().entry(name.to_string()).or_default() += 1;
    }
}

/// What the store has whole need not lie in the system's memory of files as well; one edit alone leaves it there for the next process.
#[test]
fn files_of_what_is_stored_are_given_back_once() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    for plan in streamed(&edit) {
        let weights = Arc::new(Counted { weights: edit.weights(), given: Mutex::default() });
        let given = || weights.given.lock().unwrap().clone();
        let gpu = stand_in.open(weights.clone());
        let mut exec = Cuda::load(&gpu, plan.clone()).unwrap().without_capture();
        let mut run = || {
            edit.run(&mut exec).unwrap();
            std::thread::sleep(Duration::from_millis(50)); // memory is locked meanwhile
        };
        run();
        run();
        assert!(given().is_empty());
        (0..4).for_each(|_| run());
        let stays = |name: &String| {
            let storages = plan.graph.storages.iter().zip(&plan.weights.kept);
            storages.filter(|(storage, _)| storage.name == *name).all(|(_, kept)| *kept)
        };
        assert!(!given().is_empty() && given().iter().all(|(name, count)| *count == 1 && !stays(name)), "{:?}", given());
        let before = given();
        gpu.forget_those(&|_| true).unwrap();
        (0..4).for_each(|_| run());
        assert!(before.keys().all(|name| given()[name] == 2), "what is read anew is given back anew");
    }
}
