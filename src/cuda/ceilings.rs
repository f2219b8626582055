//! What a device can do, measured on it: the rates that a kernel is held against.

use std::sync::Arc;

use anyhow::{Result, ensure};
use half::bf16;

use super::device::{Device, Event, Memory, Stream};
use super::gemm::Gemms;
use super::launch::{Gemm, Matrix};
use super::library::Setup;
use crate::tensor::DType;

/// Largest copy, in bytes; far beyond any cache.
const COPY: usize = 1 << 30;
/// Sides of the products' matrices.
const SIDE: usize = 8192;
/// Timed runs of each thing, after [`WARM_UPS`] that are not.
const RUNS: usize = 15;
const WARM_UPS: usize = 5;

/// Measures rates of a device, with memory of its own.
pub struct Ceilings {
    device: Arc<Device>,
    stream: Stream,
    memory: Memory,
    gemms: Gemms,
}

impl Ceilings {
    /// Takes two gibibytes.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: not so much is free, or cuBLASLt is missing.
    pub fn new(device: &Arc<Device>, setup: &Setup) -> Result<Ceilings> {
        device.make_current()?;
        let (stream, memory) = (Stream::new(device)?, Memory::new(device, 2 * COPY)?);
        Ok(Ceilings { device: device.clone(), stream, memory, gemms: Gemms::new(device, setup)? })
    }

    /// Gigabytes a second, read and written, of the fastest large copy: what a kernel bound by memory can hope for.
    pub fn copy_gb_per_s(&self) -> Result<f64> {
        let times = self.times(|_| self.copy(0, COPY))?;
        Ok((2 * COPY) as f64 / times[0] / 1e6)
    }

    /// Milliseconds of a copy that reads and writes `bytes` together, with an event on each side: what a launch with so
    /// little to do takes. The runs walk through the memory, so that nothing is in a cache. The median of some.
    pub fn copy_milliseconds(&self, bytes: u64) -> Result<f64> {
        let each = (bytes as usize / 2).clamp(1, COPY);
        let apart = each.next_multiple_of(256);
        let times = self.times(|run| self.copy(run % (COPY / apart) * apart, each))?;
        let beyond = (bytes as f64 / (2 * each) as f64).max(1.0); // a copy of more takes longer by as much
        Ok(times[times.len() / 2] * beyond)
    }

    /// TFLOP/s of the fastest large product of bf16 matrices, or of f32 ones multiplied as TF32: what a kernel bound by tensor
    /// cores can hope for. Power, so speed, depends on the values: these are uniform between -1 and 1.
    ///
    /// # Errors
    /// What cuBLASLt or the driver reports.
    pub fn tflops(&mut self, dtype: DType) -> Result<f64> {
        ensure!(matches!(dtype, DType::BF16 | DType::F32), "a rate is measured for bf16 and f32, not for {dtype}");
        let bytes = SIDE * SIDE * dtype.bytes();
        self.fill(2 * bytes, dtype)?;
        let matrix = |n: usize| Matrix { address: self.memory.address + (n * bytes) as u64, stride: SIDE, dtype };
        let (x, w, y, workspace) = (matrix(0), matrix(1), matrix(2), matrix(3).address);
        let gemm = Gemm { m: SIDE, n: SIDE, k: SIDE, x, w, bias: None, y, gelu: false, workspace };
        let product = self.gemms.prepare(&gemm)?;
        // SAFETY: the operands, of at most 256 MiB each, and the workspace lie in the memory one after another.
        let times = self.times(|_| unsafe { self.gemms.run(&product, &self.stream) })?;
        Ok(2.0 * (SIDE as f64).powi(3) / times[0] / 1e9)
    }

    fn copy(&self, offset: usize, bytes: usize) -> Result<()> {
        let from = self.memory.address + offset as u64;
        // SAFETY: the two halves of the memory, which nothing else uses.
        unsafe { self.stream.copy(from + COPY as u64, from, bytes) }
    }

    /// Milliseconds of each run, the least first. The memory's first half is copied to the second.
    fn times(&self, run: impl Fn(usize) -> Result<()>) -> Result<Vec<f64>> {
        let marks: Vec<Event> = (0..=RUNS).map(|_| Event::new(&self.device, true)).collect::<Result<_>>()?;
        (0..WARM_UPS).try_for_each(&run)?;
        self.copy(0, COPY)?; // keeps the device busy while the host enqueues
        marks[0].record(&self.stream)?;
        for (number, mark) in marks[1..].iter().enumerate() {
            run(WARM_UPS + number)?;
            mark.record(&self.stream)?;
        }
        self.stream.synchronize()?;
        let each = marks.windows(2).map(|pair| Ok(pair[1].milliseconds_since(&pair[0])? as f64));
        let mut times = each.collect::<Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    /// Fills the memory's first bytes with values between -1 and 1, a megabyte of them again and again.
    fn fill(&self, bytes: usize, dtype: DType) -> Result<()> {
        let value = |i: u32| {
            (i.wrapping_mul(0x9e37_79b9) ^ i.wrapping_mul(0x85eb_ca6b).rotate_left(15)) as f32 / (1u32 << 31) as f32 - 1.0
        };
        let bits = |i: u32| match dtype {
            DType::F32 => value(i).to_le_bytes().to_vec(),
            _ => bf16::from_f32(value(i)).to_le_bytes().to_vec(),
        };
        let some: Vec<u8> = (0..1 << 20).flat_map(bits).collect();
        (0..bytes).step_by(some.len()).try_for_each(|at| self.memory.write(at, &some[..some.len().min(bytes - at)]))
    }
}
