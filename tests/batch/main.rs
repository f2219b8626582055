//! Batches, end to end: manifests as people have them, what a run that was killed leaves, and what is refused.
//!
//! The built-in demo model makes all edits, with few steps at a small size.

mod bad;
mod gedit;
mod killed;
mod official;
mod support;
mod training;
