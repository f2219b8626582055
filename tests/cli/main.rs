//! The binary, end to end: what it writes, how it refuses, and that a refusal leaves nothing behind.
//!
//! All tests share one tiny synthetic model, which the binary's own `synth` makes; `support.rs` says how.

mod demo;
mod doctor;
mod edit;
mod eight_bits;
mod faults;
mod flags;
mod gguf;
#[cfg(feature = "pull")]
mod hostile;
#[cfg(feature = "pull")]
mod hub;
mod inspect;
mod interrupt;
mod judge;
mod layouts;
mod limits;
mod lora;
mod models;
mod op;
mod output;
mod pictures;
mod pipes;
#[cfg(feature = "pull")]
mod pull;
#[cfg(feature = "pull")]
mod ranges;
mod rules;
mod support;
mod synth;
mod tensors;
mod verify;
