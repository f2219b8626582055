//! What a signal asks of the program, and when that is obeyed: the one state that signal handlers and the work share.

use std::sync::atomic::{AtomicI32, AtomicU8, Ordering::SeqCst};

use crate::error::{INTERRUPTED, INTERRUPTED_AND_KEPT, Interrupted};

/// How far the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Reads what it needs, perhaps from a pipe that nobody writes to. There is nothing to take back.
    Reading,
    /// Writes what a later run goes on from, so it may end anywhere.
    Keeping,
    /// Looks now and then whether to stop, and takes back what it has written.
    Working,
    /// Writes to a pipe that perhaps nobody reads from.
    Streaming,
    /// The result gets its name: it is too late to stop.
    Ending,
}

/// A request to stop that a signal makes.
#[derive(Debug)]
pub struct Stop {
    /// The signal that asked first; 0: none.
    signal: AtomicI32,
    phase: AtomicU8,
}

impl Stop {
    /// Nobody has asked, and the first who does is obeyed at once.
    pub const fn new() -> Stop {
        Stop { signal: AtomicI32::new(0), phase: AtomicU8::new(Phase::Reading as u8) }
    }

    /// A signal asks. Some: the process must end now, after this text. A handler may call this: it only changes numbers.
    pub fn ask(&self, signal: i32) -> Option<&'static str> {
        let again = self.signal.compare_exchange(0, signal, SeqCst, SeqCst).is_err();
        match self.phase.load(SeqCst) {
            phase if phase == Phase::Reading as u8 => Some(INTERRUPTED),
            phase if phase == Phase::Keeping as u8 => Some(INTERRUPTED_AND_KEPT),
            phase if phase == Phase::Streaming as u8 || phase == Phase::Working as u8 && again => Some(""),
            _ => None,
        }
    }

    /// Whether somebody has asked.
    pub fn asked(&self) -> bool {
        self.signal.load(SeqCst) != 0
    }

    /// From now on what is written stays, and a request ends the process.
    pub fn keep(&self) {
        self.phase.store(Phase::Keeping as u8, SeqCst);
    }

    /// From now on the work looks for requests itself; a second one ends the process all the same.
    pub fn begin(&self) {
        self.phase.store(Phase::Working as u8, SeqCst);
    }

    /// From now on bytes go where they cannot be taken back, and may wait there for ever; a request ends the process.
    ///
    /// # Errors
    /// Somebody has asked.
    pub fn stream(&self) -> Result<(), Interrupted> {
        self.phase.store(Phase::Streaming as u8, SeqCst);
        self.check()
    }

    /// The last look. From now on the work ends as if nobody asked, so that the exit code is true to what was written.
    ///
    /// # Errors
    /// Somebody has asked.
    pub fn end(&self) -> Result<(), Interrupted> {
        self.phase.store(Phase::Ending as u8, SeqCst);
        self.check()
    }

    /// Whether the last look was taken: the result may have its name.
    pub fn ends(&self) -> bool {
        self.phase.load(SeqCst) == Phase::Ending as u8
    }

    /// Looks for a request.
    ///
    /// # Errors
    /// Somebody has asked.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.asked() { Err(Interrupted) } else { Ok(()) }
    }

    /// The exit code of a process that was stopped, as shells have it: 128 and the signal's number; that of Ctrl-C unless
    /// a signal has asked.
    pub fn exit_code(&self) -> u8 {
        const SIGINT: i32 = 2;
        let signal = self.signal.load(SeqCst);
        128 + if signal == 0 { SIGINT } else { signal } as u8
    }
}

impl Default for Stop {
    fn default() -> Stop {
        Stop::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT: i32 = 2;
    const TERM: i32 = 15;

    #[test]
    fn the_first_request_ends_what_waits_and_the_second_what_works() {
        let stop = Stop::new();
        assert!(stop.ask(TERM).unwrap().contains("nothing was written"));
        let stop = Stop::new();
        stop.keep();
        assert!(stop.ask(INT).unwrap().contains("goes on from there"));
        let stop = Stop::new();
        stop.begin();
        assert_eq!((stop.check().is_ok(), stop.ask(TERM), stop.check().is_err()), (true, None, true));
        assert_eq!(stop.ask(INT), Some(""));
        assert_eq!(stop.exit_code(), 143, "the first signal says the code");
        let stop = Stop::new();
        stop.begin();
        stop.stream().unwrap();
        assert_eq!(stop.ask(INT), Some(""));
        assert_eq!(stop.exit_code(), 130);
    }

    #[test]
    fn nothing_stops_what_ends_and_a_request_before_it_does() {
        let stop = Stop::new();
        stop.end().unwrap();
        assert_eq!((stop.ask(INT), stop.ask(INT), stop.ends()), (None, None, true));
        for last in [Stop::end, Stop::stream] {
            let stop = Stop::new();
            stop.begin();
            stop.ask(INT);
            assert!(last(&stop).is_err());
        }
    }
}
