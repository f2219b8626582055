//! The device: libraries, memory, kernels, matrix products, captured launches. Knows nothing of ops or graphs.
//!
//! Where nothing else is said, an error is what the driver reports.

mod algorithms;
pub mod cache;
mod ceilings;
mod compile;
mod device;
mod fault;
mod found;
mod gemm;
mod kernel;
mod launch;
mod library;
mod link;
mod matmul;
mod measured;
mod numa;
mod nvml;
mod nvtx;
mod store;
mod trials;
mod upload;
mod wait;

pub use algorithms::{Configuration, Preference};
pub use ceilings::Ceilings;
pub use compile::{Compiler, Cubin};
pub use device::{Device, Event, Locked, Memory, Pinned, Stream};
pub use fault::OutOfMemory;
pub use found::Found;
pub use gemm::{Gemms, Product};
pub use kernel::{Captured, Function, Module};
pub use launch::{Gemm, KernelLaunch, Launch, Matrix, TensorMap};
pub use library::{Setup, load_cublaslt, load_driver, load_nvrtc};
pub use link::{Link, copies_gb_per_s};
pub use measured::{Measured, Tables, preferences};
pub use nvml::{EnergyMeter, Nvml, Pcie};
pub use nvtx::{Nvtx, Range};
pub use store::{Slot, Store};
pub use trials::{ROUNDS, Trial, Trials};
pub use upload::{Fill, Finish, PIECE, Piece, Staging, TimedCopy, Upload};
pub use wait::KeepOn;
