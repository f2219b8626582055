//! A request to stop one edit, and why. The edit looks at it after every node.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

/// Why an edit stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Why {
    /// The client has gone.
    Gone = 1,
    /// Somebody cancelled the job.
    Cancelled,
    /// The deadline has passed.
    Late,
    /// The server goes down.
    Shutdown,
}

impl Why {
    /// Every reason.
    pub const ALL: [Why; 4] = [Why::Gone, Why::Cancelled, Why::Late, Why::Shutdown];

    /// As metrics and logs name it.
    pub fn name(self) -> &'static str {
        match self {
            Why::Gone => "disconnect",
            Why::Cancelled => "cancel",
            Why::Late => "deadline",
            Why::Shutdown => "shutdown",
        }
    }
}

/// An edit stopped because it was asked to.
#[derive(Debug)]
pub struct Stopped(pub Why);

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the edit was stopped ({})", self.0.name())
    }
}

impl std::error::Error for Stopped {}

/// Whether an edit is to stop; clones speak of the same edit.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicU8>);

impl Cancel {
    /// Asks the edit to stop; who asks first says why.
    pub fn ask(&self, why: Why) {
        let _ = self.0.compare_exchange(0, why as u8, SeqCst, SeqCst);
    }

    /// Why it is to stop; none: it is not.
    pub fn asked(&self) -> Option<Why> {
        let asked = self.0.load(SeqCst);
        Why::ALL.into_iter().find(|&why| why as u8 == asked)
    }

    /// Looks whether to stop.
    ///
    /// # Errors
    /// [`Stopped`], if so.
    pub fn check(&self) -> Result<(), Stopped> {
        self.asked().map_or(Ok(()), |why| Err(Stopped(why)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_first_says_why() {
        let cancel = Cancel::default();
        assert!(cancel.check().is_ok());
        cancel.clone().ask(Why::Late);
        cancel.ask(Why::Gone);
        assert_eq!(cancel.asked(), Some(Why::Late));
        assert!(cancel.check().unwrap_err().to_string().contains("deadline"));
    }
}
