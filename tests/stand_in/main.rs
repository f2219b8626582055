//! The device's side on a machine without a device: driver, NVRTC and cuBLASLt are stand-ins, built from `data/stand_in.c`. Memory,
//! copies, streams and events are real, and of the kernels only the one computes that adds LoRA files to weights. So what is shown here is which bytes lie where and when, how
//! faults are told, and how soon a stop is obeyed; what is computed, `gpu` shows on a real device.

mod budgets;
#[path = "../common/mod.rs"]
#[allow(dead_code)]
mod common;
mod faults;
mod lanes;
mod memory;
mod merged;
mod program;
mod streams;
mod support;
mod uploads;
