//! Weights that fail to come, come too late or never.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use step1x_edit::error::Interrupted;
use step1x_edit::exec::{Cuda, Executor, Gpu};
use step1x_edit::graph::{Node, StorageId};
use step1x_edit::tensor::{Component, Spec};
use step1x_edit::weights::{ModelError, Result, WeightSource};

use crate::common::SyntheticWeights;
use crate::common::tiny::TinyEdit;
use crate::support::{StandIn, plans, stand_in};

/// What happens to a reader of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    Fails,
    Panics,
    Hangs,
}

/// Weights that give trouble after so many reads.
pub struct Troubled {
    weights: SyntheticWeights,
    left: AtomicUsize,
    trouble: Trouble,
    hangs: Mutex<bool>,
    answers: Condvar,
}

impl Troubled {
    pub fn new(edit: &TinyEdit, reads: usize, trouble: Trouble) -> Arc<Troubled> {
        let (left, hangs, answers) = (reads.into(), Mutex::new(true), Condvar::new());
        Arc::new(Troubled { weights: edit.weights(), left, trouble, hangs, answers })
    }

    /// Trouble after so many more reads.
    pub fn trouble_after(&self, reads: usize) {
        self.left.store(reads, Ordering::Relaxed);
    }

    /// How many more reads there may be.
    pub fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// No trouble any more.
    pub fn mend(&self) {
        self.left.store(usize::MAX, Ordering::Relaxed);
    }

    /// Who hangs goes on.
    pub fn answer(&self) {
        *self.hangs.lock().unwrap() = false;
        self.answers.notify_all();
    }
}

impl WeightSource for Troubled {
    fn spec(&self, component: Component, name: &str) -> Option<Spec> {
        self.weights.spec(component, name)
    }

    fn read_at(&self, component: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let take = |left: usize| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            match self.trouble {
                Trouble::Fails => return Err(ModelError::new("the disk is gone")),
                Trouble::Panics => panic!("a reader panics, as this test wants"),
                // Others than the upload's own threads have more to do.
                Trouble::Hangs if !std::thread::current().name().is_some_and(|name| name.starts_with("upload")) => {}
                Trouble::Hangs => drop(self.answers.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs).unwrap()),
            }
        }
        self.weights.read_at(component, name, offset, bytes)
    }
}

pub fn reads(edit: &TinyEdit) -> usize {
    edit.plan().graph.weights().count()
}

/// Waits for what other threads do in their own time.
pub fn soon(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: not after 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn after_an_upload_that_failed_the_next_edit_has_the_right_bytes() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let all = reads(&edit);
    for plan in plans(&edit) {
        let sound = stand_in.region_of(&edit, &plan);
        for (trouble, words) in [(Trouble::Fails, "the disk is gone"), (Trouble::Panics, "an upload thread panicked")] {
            for reads in [0, 1, 10, all / 2, all - 1] {
                let weights = Troubled::new(&edit, reads, trouble);
                let mut exec = stand_in.executor(&plan, weights.clone());
                let error = edit.run(&mut exec).expect_err("not all weights can be read");
                assert!(format!("{error:#}").contains(words), "{error:#}");
                assert_eq!(error.is::<ModelError>(), trouble == Trouble::Fails);
                if reads == 10 {
                    continue; // everything goes at once
                }
                weights.mend();
                edit.run(&mut exec).unwrap();
                let again = stand_in.block(plan.weights.bytes);
                assert!(again == sound, "{trouble:?} after {reads} of {all} reads, {:?}", plan.weights.policy);
            }
        }
    }
    assert_eq!(stand_in.mistakes(), 0, "buffers went while the device read them");
    soon("buffers are given back", || stand_in.pinned() == 0);
}

#[test]
fn what_an_upload_brought_is_there_for_the_next_edit() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    for plan in plans(&edit) {
        let gpu = stand_in.open(Arc::new(edit.weights()));
        let mut exec = Cuda::load(&gpu, plan.clone()).unwrap();
        let first = (edit.run(&mut exec).unwrap(), stand_in.block(plan.weights.bytes));
        let uploaded = gpu.made().uploaded_bytes;
        let second = (edit.run(&mut exec).unwrap(), stand_in.block(plan.weights.bytes));
        assert!(first.1 == second.1, "{:?}", plan.weights.policy);
        let again = gpu.made().uploaded_bytes - uploaded;
        assert_eq!(again == 0, plan.weights.keeps_all(), "{again} bytes came again, {:?}", plan.weights.policy);
    }
}

/// When a node runs, its weights lie in their places, whatever came there before: in the first edit, and in those after it, which find
/// what streams in the host's store. The device copies as late as it may.
#[test]
fn every_node_finds_its_weights() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let truth = stand_in.truth(&edit, Arc::new(edit.weights()));
    let graph = &edit.plan().graph;
    for plan in plans(&edit) {
        let gpu = stand_in.open(Arc::new(edit.weights()));
        let mut exec = Cuda::load(&gpu, plan.clone()).unwrap().without_capture();
        let mut sent = vec![];
        for run in 0..3 {
            let watch = &mut |node: Option<&Node>, exec: &dyn Executor| {
                node.map_or(Ok(()), |node| truth.check(&stand_in, exec, node, &format!("run {run}")))
            };
            edit.run_watched(&mut exec, watch).unwrap();
            sent.push(gpu.made().uploaded_bytes);
        }
        // What comes again and again is in the host's store.
        let visits = plan.weights.visits(&plan.itinerary.visits());
        let mut there = vec![false; graph.storages.len()];
        let mut again = std::collections::BTreeSet::new();
        for _ in 0..3 {
            again = plan.weights.arrivals(&visits, &mut there).iter().map(|arrival| arrival.storage).collect();
        }
        let bytes: usize = again.iter().map(|storage| graph.storages[storage.0].spec.bytes()).sum();
        assert_eq!(gpu.stored_bytes(), bytes, "{:?}", plan.weights.policy);
        assert_eq!((sent[2] > sent[1], bytes > 0), (!plan.weights.keeps_all(), !plan.weights.keeps_all()));
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// With poison a weight that nobody needs any more is gone, and every node still finds its own.
#[test]
fn weights_that_nobody_needs_can_be_overwritten() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let truth = stand_in.truth(&edit, Arc::new(edit.weights()));
    for plan in plans(&edit) {
        let mut exec = stand_in.executor(&plan, Arc::new(edit.weights())).without_capture().with_poison();
        let visits = plan.weights.visits(&plan.itinerary.visits());
        let mut there = vec![false; plan.graph.storages.len()];
        for run in 0..3 {
            let watch = &mut |node: Option<&Node>, exec: &dyn Executor| {
                node.map_or(Ok(()), |node| truth.check(&stand_in, exec, node, &format!("poisoned run {run}")))
            };
            edit.run_watched(&mut exec, watch).unwrap();
            plan.weights.arrivals(&visits, &mut there);
            let last = plan.weights.reads_of(*visits.last().unwrap());
            for id in (0..there.len()).map(StorageId).filter(|id| !there[id.0] && !last.contains(id)) {
                assert!(!truth.lies(&stand_in, &plan, id), "{:?}, run {run}: {} is still there", plan.weights.policy, id.0);
            }
        }
    }
    assert_eq!(stand_in.mistakes(), 0);
}

/// Runs an edit on weights of which one read hangs, asks it to stop, and gives how long stopping and dropping took.
fn stop_hanging(stand_in: &StandIn, edit: &TinyEdit, gpu: &Arc<Gpu>) -> Duration {
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Mutex::new(None));
    let mut exec = Cuda::load(gpu, edit.plan().clone()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            *asked.lock().unwrap() = Some(Instant::now());
            stop.store(true, Ordering::Relaxed);
        });
        let watch = &mut |_: Option<&Node>, _: &dyn Executor| match stop.load(Ordering::Relaxed) {
            true => Err(Interrupted.into()),
            false => Ok(()),
        };
        let error = edit.run_watched(&mut exec, watch).expect_err("it hangs until it is stopped");
        assert!(error.is::<Interrupted>(), "{error:#}");
        drop(exec);
    });
    assert_eq!(stand_in.mistakes(), 0);
    asked.into_inner().unwrap().expect("a stop").elapsed()
}

#[test]
fn a_file_that_does_not_answer_hinders_nobody_from_stopping() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    // The next edit has its weights elsewhere in the same region.
    let streamed = plans(&edit).swap_remove(1);
    let sound = stand_in.region_of(&edit, &streamed);
    for reads in [0, reads(&edit) / 2] {
        soon("buffers of others", || stand_in.pinned() == 0);
        let weights = Troubled::new(&edit, reads, Trouble::Hangs);
        let gpu = stand_in.open(weights.clone());
        let took = stop_hanging(&stand_in, &edit, &gpu);
        assert!(took < Duration::from_secs(1), "{took:?} after {reads} reads");
        assert!(stand_in.pinned() > 0, "whoever still reads has a buffer");
        weights.mend();
        let mut exec = Cuda::load(&gpu, streamed.clone()).unwrap();
        edit.run(&mut exec).unwrap();
        // The file answers too late: nobody may copy what comes now.
        let (readers, uploads) = (Arc::strong_count(&weights), stand_in.uploads());
        weights.answer();
        soon("readers end", || Arc::strong_count(&weights) < readers);
        assert_eq!(stand_in.uploads(), uploads, "after {reads} reads");
        let region = stand_in.block(edit.plan().weights.bytes);
        // Activations are nobody's: kernels compute nothing here.
        let height = streamed.arena_bytes;
        assert!(region[height..sound.len()] == sound[height..], "after {reads} reads");
        drop((exec, gpu));
        soon("buffers are given back", || stand_in.pinned() == 0);
        assert_eq!(stand_in.mistakes(), 0);
    }
}
