//! What tells requests apart: ids, and the time.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A name that nobody can guess.
pub fn unique() -> String {
    // Each state has keys of its own, random ones.
    [0u8, 1].map(|n| format!("{:016x}", RandomState::new().hash_one(n))).concat()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
