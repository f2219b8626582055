//! The device: libraries, context, memory, kernels, matrix products, captured graphs. Knows nothing of ops or graphs.

mod launch;

pub use launch::{Gemm, KernelLaunch, Launch, Matrix};
