//! The binary, end to end: what it writes, how it refuses, and that a refusal leaves nothing behind.
//!
//! All tests share one tiny synthetic model, which the binary's own `synth` makes; `cli_tests/support.rs` says how.

#[path = "cli_tests/demo.rs"]
mod demo;
#[path = "cli_tests/doctor.rs"]
mod doctor;
#[path = "cli_tests/edit.rs"]
mod edit;
#[path = "cli_tests/flags.rs"]
mod flags;
#[path = "cli_tests/inspect.rs"]
mod inspect;
#[path = "cli_tests/interrupt.rs"]
mod interrupt;
#[path = "cli_tests/judge.rs"]
mod judge;
#[path = "cli_tests/layouts.rs"]
mod layouts;
#[path = "cli_tests/models.rs"]
mod models;
#[path = "cli_tests/output.rs"]
mod output;
#[path = "cli_tests/pictures.rs"]
mod pictures;
#[path = "cli_tests/support.rs"]
mod support;
#[path = "cli_tests/synth.rs"]
mod synth;
