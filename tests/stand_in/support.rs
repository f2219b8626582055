//! The stand-in, in this process and beside the binary.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_long};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use libloading::Library;
use step1x_edit::cuda::{Device, Setup};
use step1x_edit::exec::{self, Cuda, Executor};
use step1x_edit::graph::{Node, Storage, StorageId};
use step1x_edit::model::Version;
use step1x_edit::model::edit::Savings;
use step1x_edit::ops::Arch;
use step1x_edit::plan::{Plan, Target};
use step1x_edit::weights::WeightSource;
use tempfile::TempDir;

use crate::common::tiny::TinyEdit;

pub const OUT_OF_MEMORY: c_int = 2;
pub const NOT_PERMITTED: c_int = 800;
pub const NOT_READY: c_int = 600;
pub const ILLEGAL_ADDRESS: c_int = 700;

const NAMES: [&str; 3] = ["cuda", "nvrtc", "cublasLt"];

/// The stand-in as libraries of each name, in a folder.
static BUILT: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stand-in-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/stand_in.c");
    let build = |name: &str| {
        // Whoever asks the loader for this name is given what this process has loaded already.
        let (file, name) = (folder.join(format!("lib{name}.so")), format!("-Wl,-soname,lib{name}.so"));
        Command::new("cc").args(["-shared", "-fPIC", "-O1", &name, "-o"]).arg(file).arg(source).arg("-lm").status()
    };
    NAMES.iter().all(|name| build(name).is_ok_and(|status| status.success())).then_some(folder)
});

/// The libraries loaded into this process.
static LOADED: LazyLock<Option<Vec<Library>>> = LazyLock::new(|| {
    let folder = BUILT.as_ref()?;
    // SAFETY: the stand-in has no initialisers but one that reads the environment.
    Some(NAMES.iter().map(|name| unsafe { Library::new(folder.join(format!("lib{name}.so"))) }.unwrap()).collect())
});

/// The stand-in in this process, held by one test at a time.
pub struct StandIn {
    pub device: Arc<Device>,
    pub setup: Setup,
    libraries: &'static [Library],
    _cache: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// The stand-in in this process, whole and empty; none, with a line that says so, where there is no C compiler.
pub fn stand_in() -> Option<StandIn> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(libraries) = LOADED.as_ref() else {
        eprintln!("skipped: no C compiler");
        return None;
    };
    let device = Device::open(0).unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(device.name, "Stand-in");
    let cache = tempfile::tempdir().unwrap();
    let setup = Setup { cache: Some(cache.path().join("cache")), ..Setup::default() };
    Some(StandIn { device, setup, libraries, _cache: cache, _alone: alone })
}

impl StandIn {
    /// From now on functions, of names joined by `|`, fail with a code, after so many calls that succeed; how often: none, for ever.
    pub fn fault(&self, functions: &str, code: c_int, skip: c_long, times: Option<c_long>) {
        let functions = CString::new(functions).unwrap();
        for library in self.libraries {
            // SAFETY: the function is stand_in.c's.
            unsafe {
                let arm = library.get::<unsafe extern "C" fn(*const c_char, c_int, c_long, c_long)>(c"stand_in_fault").unwrap();
                arm(functions.as_ptr(), code, skip, times.unwrap_or(-1));
            }
        }
    }

    /// All is well again.
    pub fn mend(&self) {
        self.fault("", 0, 0, None);
    }

    /// The device has so much memory.
    pub fn memory(&self, bytes: usize) {
        // SAFETY: the function is stand_in.c's.
        unsafe {
            self.libraries[0].get::<unsafe extern "C" fn(usize, usize, c_long)>(c"stand_in_memory").unwrap()(bytes, 0, -1);
        }
    }

    fn count(&self, name: &str) -> i64 {
        let name = CString::new(format!("stand_in_{name}")).unwrap();
        // SAFETY: the function is stand_in.c's.
        unsafe { self.libraries[0].get::<unsafe extern "C" fn() -> c_long>(&name).unwrap()() }
    }

    /// Memory that went while something was under way to or from it, and copies beyond what was taken.
    pub fn mistakes(&self) -> i64 {
        self.count("mistakes")
    }

    /// Most bytes of the device's memory that were taken at once since this was asked last.
    pub fn peak(&self) -> usize {
        self.count("peak") as usize
    }

    /// Recorded graphs that nobody has destroyed.
    pub fn graphs(&self) -> i64 {
        self.count("graphs")
    }

    /// Page-locked buffers.
    pub fn pinned(&self) -> i64 {
        self.count("pinned")
    }

    /// Copies from page-locked buffers that were asked for.
    pub fn uploads(&self) -> i64 {
        self.count("uploads")
    }

    /// What lies in the newest piece of the device's memory of so many bytes.
    pub fn block(&self, bytes: usize) -> Vec<u8> {
        self.part_of(bytes, 0..bytes)
    }

    /// A part of it.
    pub fn part_of(&self, bytes: usize, part: Range<usize>) -> Vec<u8> {
        // SAFETY: the function is stand_in.c's, whose memory is this process's own.
        unsafe {
            let find = self.libraries[0].get::<unsafe extern "C" fn(usize) -> *const u8>(c"stand_in_block").unwrap();
            let start = find(bytes);
            assert!(!start.is_null(), "no piece has {bytes} bytes");
            std::slice::from_raw_parts(start, bytes)[part].to_vec()
        }
    }

    /// The tiny edit, planned for this device.
    pub fn tiny(&self) -> TinyEdit {
        TinyEdit::new(Target::Cuda(Arch(self.device.capability)), Version::V1_1, Savings::ALL)
    }

    pub fn open(&self, weights: Arc<dyn WeightSource + Send + Sync>) -> Arc<exec::Gpu> {
        exec::Gpu::open(&self.device, &self.setup, weights).unwrap_or_else(|e| panic!("{e:#}"))
    }

    pub fn executor(&self, plan: &Arc<Plan>, weights: Arc<dyn WeightSource + Send + Sync>) -> Cuda {
        Cuda::load(&self.open(weights), plan.clone()).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// What lies in the weights' region after an edit in which nothing went wrong.
    pub fn region_of(&self, edit: &TinyEdit, plan: &Arc<Plan>) -> Vec<u8> {
        let mut exec = self.executor(plan, Arc::new(edit.weights()));
        edit.run(&mut exec).unwrap();
        self.block(plan.weights.bytes)
    }
}

/// Every weight's bytes as the device has them, by component and name.
pub struct Truth(HashMap<(String, String), Vec<u8>>);

impl StandIn {
    /// The weights of an edit, from a source with which nothing goes wrong.
    pub fn truth(&self, edit: &TinyEdit, weights: Arc<dyn WeightSource + Send + Sync>) -> Truth {
        let plan = Arc::new(Plan::clone(edit.plan()).resident());
        let mut exec = self.executor(&plan, weights);
        edit.run(&mut exec).unwrap();
        Truth::of(self, &plan)
    }
}

impl Truth {
    /// What lies in the region now that a plan with resident weights has run.
    pub fn of(stand_in: &StandIn, plan: &Plan) -> Truth {
        assert!(plan.weights.keeps_all());
        let region = stand_in.block(plan.weights.bytes);
        let of = |(id, storage): (usize, &Storage)| Some((name(storage), region[plan.weights.place(StorageId(id))?].to_vec()));
        Truth(plan.graph.storages.iter().enumerate().filter_map(of).collect())
    }

    /// Looks whether a node finds its weights in their places; waits for the node.
    pub fn check(&self, stand_in: &StandIn, exec: &dyn Executor, node: &Node, when: &str) -> anyhow::Result<()> {
        let plan = exec.plan();
        exec.read(node.outputs[0])?;
        for storage in node.inputs.iter().map(|&id| plan.graph.tensor(id).storage) {
            let lies = plan.weights.place(storage).is_none() || self.lies(stand_in, plan, storage);
            let (policy, weight) = (plan.weights.policy, &plan.graph.storages[storage.0].name);
            assert!(lies, "{policy:?}, {when}: {} without {weight}", node.name);
        }
        Ok(())
    }

    /// Whether a weight lies whole in its place.
    pub fn lies(&self, stand_in: &StandIn, plan: &Plan, weight: StorageId) -> bool {
        let place = plan.weights.place(weight);
        place.is_some_and(|place| stand_in.part_of(plan.weights.bytes, place) == self.0[&name(&plan.graph.storages[weight.0])])
    }
}

fn name(storage: &Storage) -> (String, String) {
    (format!("{:?}", storage.kind), storage.name.clone())
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.mend();
        self.memory(80_000_000_000);
    }
}

/// The edit's plan with each residency.
pub fn plans(edit: &TinyEdit) -> Vec<Arc<Plan>> {
    edit.residencies()
}

/// The binary in a folder of its own, beside a stand-in.
pub struct Program {
    pub dir: TempDir,
}

/// How a program ended, and what it said.
pub struct Answer {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Program {
    /// None, with a line that says so, where there is no C compiler.
    pub fn new() -> Option<Program> {
        match BUILT.as_ref() {
            Some(_) => Some(Program { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }),
            None => {
                eprintln!("skipped: no C compiler");
                None
            }
        }
    }

    /// An edit of the demo model, which writes `out.png`.
    pub fn edit(&self, args: &[&str], variables: &[(&str, &str)]) -> Command {
        let picture = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shapes.png");
        let mut command = self.command(&["edit", "-i", picture, "-p", "make the circle blue", "-o", "out.png"], variables);
        command.args(["-f", "--steps", "4"]).args(args);
        command
    }

    /// Any command.
    pub fn command(&self, args: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_step1x-edit"));
        command.args(args);
        command.current_dir(self.dir.path()).env("LD_LIBRARY_PATH", BUILT.as_ref().unwrap());
        command.env("STEP1X_CACHE", self.dir.path().join("cache")).envs(variables.iter().copied());
        command
    }

    pub fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Answer {
        let output = self.edit(args, variables).output().unwrap();
        Answer { code: output.status.code(), stderr: String::from_utf8(output.stderr).unwrap() }
    }

    pub fn made(&self) -> bool {
        self.dir.path().join("out.png").exists()
    }
}
