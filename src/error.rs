//! Faults that have an exit code of their own; those of model files are `ModelError` of the weights.

use std::fmt;

/// A request that cannot be met as asked; the message says what would help.
#[derive(Debug)]
pub struct UsageError(pub String);

/// A device or memory that was asked for and cannot be had.
#[derive(Debug)]
pub struct ResourceError(pub String);

/// The user stopped the run.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("interrupted; nothing was written")
    }
}

impl std::error::Error for UsageError {}
impl std::error::Error for ResourceError {}
impl std::error::Error for Interrupted {}

/// A fault of how something was asked for.
pub fn usage(error: anyhow::Error) -> anyhow::Error {
    UsageError(format!("{error:#}")).into()
}
