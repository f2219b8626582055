//! Every stage against outputs of the official code on synthetic weights.
//!
//! `diffusers` is against outputs of the pipelines in a fork of diffusers.
//!
//! The files lie in `tests/data/golden`, or in the folder that `STEP1X_GOLDEN` names: same file names, other seeds, shapes
//! and prompts. So shapes, seeds, counts and parameters come from the files alone.

#[path = "../common/mod.rs"]
mod common;
mod diffusers;
mod dit;
mod lora;
mod prompt;
mod pytorch;
mod qwen;
mod released;
mod sampler;
mod sampling;
mod vae;
mod whole;
