//! Every stage against outputs of the official code on synthetic weights.
//!
//! The files lie in `tests/golden`, or in the folder that `STEP1X_GOLDEN` names: same file names, other seeds, shapes and
//! prompts. So shapes, seeds, counts and parameters come from the files alone.

#[path = "golden_tests/common.rs"]
mod common;
#[path = "golden_tests/dit.rs"]
mod dit;
#[path = "golden_tests/prompt.rs"]
mod prompt;
#[path = "golden_tests/pytorch.rs"]
mod pytorch;
#[path = "golden_tests/qwen.rs"]
mod qwen;
#[path = "golden_tests/released.rs"]
mod released;
#[path = "golden_tests/sampler.rs"]
mod sampler;
#[path = "golden_tests/sampling.rs"]
mod sampling;
#[path = "golden_tests/vae.rs"]
mod vae;
#[path = "golden_tests/whole.rs"]
mod whole;
