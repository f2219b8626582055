//! What walks a plan. `reference` computes on the CPU and is the oracle of every kernel.

mod reference;

pub use reference::{Observer, Reference};
