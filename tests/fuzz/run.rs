//! Running cases of a target, one after another, with an eye on panics, time and memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use super::mutate::Rng;

/// Cases of each target where `STEP1X_FUZZ_CASES` says nothing else.
const CASES: u64 = 2_000;
/// A case that takes more of the processors' time counts as a hang. A busy machine does not make one.
const LONGEST: Duration = Duration::from_secs(5);
/// So does one that takes longer by the clock, which may wait for what never comes.
const LONGEST_BY_CLOCK: Duration = Duration::from_secs(120);
/// Most bytes that a case may hold at once.
const MOST: usize = 1 << 30;

/// The system's allocator, which also counts what is held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    PEAK.fetch_max(HELD.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: asked of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: asked of the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: asked of the caller.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > layout.size() {
            grow(size - layout.size());
        } else {
            HELD.fetch_sub(layout.size() - size, Relaxed);
        }
        // SAFETY: asked of the caller.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Targets take turns, so that memory and time are those of one.
static TURN: Mutex<()> = Mutex::new(());

/// The case that runs, when it began by the clock, and what the process had used by then.
static CASE: Mutex<Option<(u64, Instant, Duration)>> = Mutex::new(None);

/// What the process has used of the processors' time.
#[cfg(unix)]
fn used() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The clock, where nothing better is known.
#[cfg(not(unix))]
fn used() -> Duration {
    static START: Mutex<Option<Instant>> = Mutex::new(None);
    START.lock().unwrap().get_or_insert_with(Instant::now).elapsed()
}

/// Ends the process when a case does not end: nothing else could.
fn watch() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // Also of a panic that the program catches.
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            eprintln!("case {:?}", CASE.lock().unwrap_or_else(PoisonError::into_inner).map(|(case, ..)| case));
            print(panic);
        }));
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_millis(200));
                let Some((case, began, before)) = *CASE.lock().unwrap() else { continue };
                if used() - before > LONGEST || began.elapsed() > LONGEST_BY_CLOCK {
                    eprintln!("case {case} takes longer than {LONGEST:?}");
                    std::process::abort();
                }
            }
        });
    });
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, which is no number")))
}

/// Runs cases: `make` gives the input of a case, `accepts` whether the program took it, and checks what it made of it.
///
/// `STEP1X_FUZZ_CASES` and `STEP1X_FUZZ_FIRST` say how many and from which on. A failure names the case and keeps its input.
pub fn fuzz(target: &str, make: impl Fn(&mut Rng) -> Vec<u8>, accepts: impl Fn(&[u8]) -> bool) {
    cases(target, number("STEP1X_FUZZ_CASES").unwrap_or(CASES), make, accepts);
}

/// [`fuzz`] with a hundredth of the cases, for a target that takes milliseconds.
pub fn fuzz_slowly(target: &str, make: impl Fn(&mut Rng) -> Vec<u8>, accepts: impl Fn(&[u8]) -> bool) {
    cases(target, number("STEP1X_FUZZ_CASES").map_or(CASES / 10, |count| count.div_ceil(100)), make, accepts);
}

fn cases(target: &str, count: u64, make: impl Fn(&mut Rng) -> Vec<u8>, accepts: impl Fn(&[u8]) -> bool) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    watch();
    let first = number("STEP1X_FUZZ_FIRST").unwrap_or(0);
    let (mut accepted, mut slowest, mut most) = (0u64, (Duration::ZERO, 0), (0, 0));
    let start = Instant::now();
    for case in first..first + count {
        let input = make(&mut Rng::new(case));
        let held = HELD.load(Relaxed);
        PEAK.store(held, Relaxed);
        let before = used();
        *CASE.lock().unwrap() = Some((case, Instant::now(), before));
        let ended = catch_unwind(AssertUnwindSafe(|| accepts(&input)));
        let (took, peak) = (used() - before, PEAK.load(Relaxed).saturating_sub(held));
        *CASE.lock().unwrap() = None;
        if ended.is_err() || peak > MOST {
            let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{target}-{case}"));
            std::fs::write(&kept, &input).unwrap();
            panic!("{target}: case {case} panicked or held {peak} bytes; its input is {}", kept.display());
        }
        accepted += u64::from(ended.is_ok_and(|taken| taken));
        slowest = slowest.max((took, case));
        most = most.max((peak, case));
    }
    println!(
        "{target}: {count} cases from {first}, {accepted} accepted, {:.1} s; slowest {:.3} s (case {}), most memory {:.1} MB (case {})",
        start.elapsed().as_secs_f64(),
        slowest.0.as_secs_f64(),
        slowest.1,
        most.0 as f64 / 1e6,
        most.1
    );
    if count < 100 {
        return; // a case or a few, looked at again
    }
    assert!(accepted > 0, "{target}: no case was accepted, so the mutations hardly reach the program");
    assert!(accepted < count, "{target}: every case was accepted, so the mutations are too tame");
}
