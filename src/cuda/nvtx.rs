//! Named ranges for a profiler, by NVTX 3, which has no library: the program loads the one that the profiler names and
//! hands it tables of empty slots, which that one fills with its functions. Without a profiler a range is nothing.
//!
//! The interface takes no context and is there once a process, so this module has statics; nothing else does.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::Library;

/// Slots of each module, the first unused: none, core, CUDA, OpenCL, CUDA runtime, core 2, synchronisation.
const SLOTS: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
const CORE: usize = 1;
/// Slots of the core.
const RANGE_PUSH: usize = 9;
const RANGE_POP: usize = 11;

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;
type Slot = AtomicPtr<c_void>;

/// A module's slots, and the table of their addresses: null first and last.
struct Module {
    slots: Box<[Slot]>,
    table: Box<[*const Slot]>,
}

// SAFETY: the addresses are those of atomics on the heap, which no one moves or frees.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

static MODULES: OnceLock<Vec<Module>> = OnceLock::new();
static ATTACHED: OnceLock<Nvtx> = OnceLock::new();

/// A profiler that listens, or none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nvtx(Option<(Push, Pop)>);

/// A range that ends when dropped, on the thread that began it. Ranges of a thread nest.
#[must_use]
#[derive(Debug)]
pub struct Range(Option<Pop>, PhantomData<*const ()>);

impl Nvtx {
    /// Loads the profiler's library; the first call of the process settles it. One that cannot be loaded, or does not want
    /// ranges, hears of none.
    pub fn attach(profiler: Option<&Path>) -> Nvtx {
        *ATTACHED.get_or_init(|| profiler.and_then(load).unwrap_or_default())
    }

    /// Begins a range on this thread.
    pub fn range(&self, name: &str) -> Range {
        let Some(((push, pop), name)) = self.0.zip(CString::new(name).ok()) else { return Range(None, PhantomData) };
        // SAFETY: the function is the profiler's; the string ends with a NUL.
        unsafe { push(name.as_ptr()) };
        Range(Some(pop), PhantomData)
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(pop) = self.0 {
            // SAFETY: the function is the profiler's; the range was begun on this thread, as it is not Send.
            unsafe { pop() };
        }
    }
}

fn load(profiler: &Path) -> Option<Nvtx> {
    type Initialise = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
    // SAFETY: a profiler's library, which the user runs the program under.
    let library = unsafe { Library::new(profiler) }.ok()?;
    // SAFETY: the type is that of nvtxTypes.h; what it is given stays valid for the whole process.
    let started = unsafe { library.get::<Initialise>(c"InitializeInjectionNvtx2").ok()?(export_table) } != 0;
    if !started {
        return None;
    }
    std::mem::forget(library); // its functions may be called until the process ends
    let slot = |number: usize| {
        let function = modules()[CORE].slots[number].load(Ordering::Acquire);
        (!function.is_null()).then_some(function)
    };
    let (push, pop) = (slot(RANGE_PUSH)?, slot(RANGE_POP)?);
    // SAFETY: the profiler has put functions of these types into these slots.
    Some(Nvtx(Some(unsafe { (std::mem::transmute::<*mut c_void, Push>(push), std::mem::transmute::<*mut c_void, Pop>(pop)) })))
}

fn modules() -> &'static [Module] {
    let module = |slots: usize| {
        let slots: Box<[Slot]> = (0..slots).map(|_| AtomicPtr::new(null_mut())).collect();
        let table = [null()].into_iter().chain(slots.iter().skip(1).map(|slot| slot as *const Slot)).chain([null()]).collect();
        Module { slots, table }
    };
    MODULES.get_or_init(|| SLOTS.map(module).into())
}

/// `NvtxExportTableCallbacks`.
#[repr(C)]
struct Callbacks {
    bytes: usize,
    module_table: extern "C" fn(c_int, *mut *const *const Slot, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`.
#[repr(C)]
struct VersionInfo {
    bytes: usize,
    version: u32,
    reserved: u32,
    set_version: extern "C" fn(u32),
}

/// What the profiler may ask for: `NVTX_ETID_CALLBACKS` and `NVTX_ETID_VERSIONINFO`.
extern "C" fn export_table(id: u32) -> *const c_void {
    static CALLBACKS: Callbacks = Callbacks { bytes: size_of::<Callbacks>(), module_table };
    static VERSION: VersionInfo = VersionInfo { bytes: size_of::<VersionInfo>(), version: 3, reserved: 0, set_version };
    match id {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION).cast(),
        _ => null(),
    }
}

/// Gives a module's table and its number of slots; 1 if there is such a module.
extern "C" fn module_table(module: c_int, table: *mut *const *const Slot, size: *mut c_uint) -> c_int {
    let known = usize::try_from(module).ok().filter(|&module| module >= CORE).and_then(|module| modules().get(module));
    let Some(module) = known else { return 0 };
    // SAFETY: each is null or a place of the profiler's for the answer.
    unsafe {
        if let Some(place) = table.as_mut() {
            *place = module.table.as_ptr();
        }
        if let Some(place) = size.as_mut() {
            *place = module.slots.len() as c_uint;
        }
    }
    1
}

extern "C" fn set_version(_profilers: u32) {}
