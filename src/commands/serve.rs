//! The `serve` command: edits over HTTP.

use anyhow::Result;

pub use crate::serve::{Address, ServeJob};
use crate::stop::Stop;

/// Serves until a signal comes or the last device is lost.
///
/// # Errors
/// A [`crate::error::UsageError`]: an address that cannot be listened at, or that is open to others without a key; model files;
/// no device, or one that is lost.
#[cfg(all(feature = "serve", unix))]
pub fn run(job: &ServeJob, stop: &Stop) -> Result<()> {
    crate::serve::run(job, stop)
}

/// This build has no server.
///
/// # Errors
/// Always.
#[cfg(not(all(feature = "serve", unix)))]
pub fn run(_: &ServeJob, _: &Stop) -> Result<()> {
    Err(crate::error::usage(anyhow::anyhow!(
        "this program was built without a server; build it with the feature serve, on a Unix system"
    )))
}
