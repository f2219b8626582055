//! On a device: every op against the reference, whole edits against the CPU, captured against uncaptured, faults.
//!
//! Without a device each test says that it is skipped. Tests of a device run one at a time.

mod choices;
#[path = "../common/mod.rs"]
#[allow(dead_code)]
mod common;
mod edits;
mod engine;
mod faults;
mod instruments;
mod ops;
mod strips;
mod support;
