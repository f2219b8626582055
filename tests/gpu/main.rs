//! On a device: every op against the reference, whole edits against the CPU, captured against uncaptured, faults.
//!
//! Without a device each test says that it is skipped. Tests of a device run one at a time.

#[path = "golden_tests/common.rs"]
#[allow(dead_code)]
mod common;
#[path = "gpu_tests/edits.rs"]
mod edits;
#[path = "gpu_tests/faults.rs"]
mod faults;
#[path = "gpu_tests/instruments.rs"]
mod instruments;
#[path = "gpu_tests/ops.rs"]
mod ops;
#[path = "gpu_tests/support.rs"]
mod support;
