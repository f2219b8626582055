//! Panics of decoders: they end a picture, not the program, and only its reader hears of them.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Decoders at work. They may have threads, so it is not known which one a panic belongs to.
static DECODING: AtomicUsize = AtomicUsize::new(0);

/// What a decoder makes of its file; none if it panics.
pub(super) fn caught<T>(decode: impl FnOnce() -> T) -> Option<T> {
    DECODING.fetch_add(1, SeqCst);
    let made = catch_unwind(AssertUnwindSafe(decode));
    DECODING.fetch_sub(1, SeqCst);
    made.ok()
}

/// Lets nothing be printed of panics while a picture is decoded, whose error says what a person can use; of all others, what has
/// been printed before. For a program to call once.
pub fn quieten_decoders() {
    let print = take_hook();
    set_hook(Box::new(move |panic| {
        if DECODING.load(SeqCst) == 0 {
            print(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_answers() {
        assert_eq!(caught(|| DECODING.load(SeqCst) > 0), Some(true));
        assert_eq!(caught(|| -> u8 { panic!("of a decoder") }), None);
        assert_eq!(caught(|| 7), Some(7));
    }

    /// In a process of its own, where no other test panics.
    #[test]
    #[ignore = "a part of the next"]
    fn a_decoder_panics_and_then_another_does() {
        quieten_decoders();
        let of_a_thread = || std::thread::spawn(|| panic!("in a decoder")).join().is_err();
        assert_eq!(caught(of_a_thread), Some(true));
        assert_eq!(caught(|| -> u8 { panic!("in a decoder") }), None);
        panic!("elsewhere");
    }

    #[test]
    fn panics_of_decoders_are_not_printed() {
        let part = "image::read::panics::tests::a_decoder_panics_and_then_another_does";
        let mut run = std::process::Command::new(std::env::current_exe().unwrap());
        let run = run.args(["--exact", "--ignored", "--nocapture", part]).output().unwrap();
        let printed = String::from_utf8_lossy(&run.stderr);
        assert!(printed.contains("elsewhere") && !printed.contains("in a decoder"), "{printed}");
    }
}
