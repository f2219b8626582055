//! The program's memory: a request that the system refuses ends it with a message and exit code 4.
//!
//! What a plan knows is checked before it is taken, and refused with a better message. This is for what nobody planned, and for
//! what others have taken since. Without it the process would abort. A result that is not whole has no name, so it goes; what
//! `synth` has written so far stays.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::low_level::exit;
use step1x_edit::reserve::may_be_refused;

struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: every call is handed on to the system's allocator as it is; where that has nothing to give, either nothing is
// returned, as may be, or the process ends.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        granted(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        granted(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        granted(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(old, layout) }
    }
}

#[inline]
fn granted(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() && !may_be_refused() {
        refuse(bytes)
    }
    memory
}

/// Whether a request was refused, so that the process ends.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Ends the process as [`refuse`] would, if that is under way: for the C library, which aborts where it needs memory itself.
pub fn end_if_refused() {
    if REFUSED.load(Ordering::SeqCst) {
        exit(4)
    }
}

/// Says what was refused and ends the process. Nothing may be allocated or locked here.
#[cold]
fn refuse(bytes: usize) -> ! {
    while REFUSED.swap(true, Ordering::SeqCst) {
        std::thread::sleep(Duration::from_secs(1)); // another thread is at it
    }
    let mut text = Cursor::new([0; 256]);
    let help = match crate::STOP.ends() {
        true => "the result was ready; see whether it is there",
        false => "close other programs, raise the limit (ulimit -v), or use a smaller --size-level",
    };
    let _ = writeln!(text, "error: the system refused {bytes} bytes of memory; {help}");
    let length = text.position() as usize;
    crate::write_plainly(&text.get_ref()[..length]);
    exit(4)
}
