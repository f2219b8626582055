//! Where an edit runs: a device or the CPU, and the executor for it.

use std::sync::Arc;

use anyhow::Result;

use super::Model;
use crate::cuda::{self, Device, Setup};
use crate::error::{ResourceError, usage};
use crate::exec::{Cuda, Executor, Reference};
use crate::ops::Arch;
use crate::plan::{Budget, CONTEXT_BYTES, Plan, Precision, Target, format_bytes};

/// Ten times the least compute capability that has kernels.
pub const OLDEST: u32 = 80;

/// Where the caller wants an edit to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// On the first CUDA device, or on the CPU where there is none.
    Auto,
    /// On the CPU.
    Cpu,
    /// On a CUDA device.
    Cuda(usize),
}

/// Where an edit runs.
#[derive(Clone, Debug)]
pub enum Engine {
    /// On the CPU; if that was not asked for, why.
    Cpu(Option<String>),
    /// On a CUDA device.
    Cuda(Arc<Device>),
}

impl Engine {
    /// Settles where to run. Without a precision a device takes bf16, the CPU f32; f32 is the CPU's alone.
    ///
    /// # Errors
    /// A [`ResourceError`] if the device asked for cannot be used, a usage error for f32 on a device.
    pub fn choose(choice: DeviceChoice, precision: Option<Precision>, setup: &Setup) -> Result<(Engine, Precision)> {
        let usable = |ordinal| {
            let device = Device::open(ordinal)?;
            if device.capability < OLDEST {
                let text = format!(
                    "{} has compute capability {}.{}; kernels need 8.0, the first with bf16; --device cpu runs without it",
                    device.name,
                    device.capability / 10,
                    device.capability % 10
                );
                return Err(ResourceError(text).into());
            }
            cuda::load_nvrtc(&setup.libraries)?;
            cuda::load_cublaslt(&setup.libraries)?;
            anyhow::Ok(device)
        };
        let on_cpu = |why| Ok((Engine::Cpu(why), precision.unwrap_or(Precision::F32)));
        match (choice, precision) {
            (DeviceChoice::Cpu, _) => on_cpu(None),
            (DeviceChoice::Auto, Some(Precision::F32)) => on_cpu(Some("--precision f32 is the CPU's".into())),
            (DeviceChoice::Cuda(_), Some(Precision::F32)) => {
                Err(usage(anyhow::anyhow!("--precision f32 runs on the CPU only: say --device cpu, or --precision bf16")))
            }
            (DeviceChoice::Auto, _) => match usable(0) {
                Ok(device) => Ok((Engine::Cuda(device), Precision::Bf16)),
                Err(e) => on_cpu(Some(format!("{e:#}"))),
            },
            (DeviceChoice::Cuda(ordinal), _) => Ok((Engine::Cuda(usable(ordinal)?), Precision::Bf16)),
        }
    }

    /// As people call it.
    pub fn name(&self) -> String {
        match self {
            Engine::Cpu(_) => "cpu".into(),
            Engine::Cuda(device) => format!("cuda:{} {}", device.ordinal, device.name),
        }
    }

    /// What the planner plans for.
    pub fn target(&self) -> Target {
        match self {
            Engine::Cpu(_) => Target::Cpu,
            Engine::Cuda(device) => Target::Cuda(Arch(device.capability)),
        }
    }

    /// On a device, has the weights of a plan share places as far as needed for it to fit what is free and `allowed` bytes.
    ///
    /// # Errors
    /// A [`ResourceError`] with the least number of bytes needed.
    pub fn fit(&self, plan: &mut Plan, allowed: Option<usize>) -> Result<()> {
        let Engine::Cuda(device) = self else { return Ok(()) };
        plan.fit(Budget::of(allowed, device.memory()?.0 + CONTEXT_BYTES))
    }

    /// An executor with its memory taken and, on a device, its kernels compiled.
    ///
    /// # Errors
    /// A [`ResourceError`] if the plan needs more memory than there is, before any is taken.
    pub fn executor<'a>(&self, plan: &'a Plan, model: &'a Model, setup: &Setup) -> Result<Box<dyn Executor + 'a>> {
        match self {
            Engine::Cpu(_) => {
                check_memory(plan)?;
                Ok(Box::new(Reference::new(plan, &*model.folder)?))
            }
            Engine::Cuda(device) => Ok(Box::new(Cuda::new(plan, model.folder.clone(), device, setup)?)),
        }
    }

    /// Bytes of the device's memory in use, by everyone; none on the CPU.
    pub fn device_bytes_in_use(&self) -> Option<usize> {
        match self {
            Engine::Cpu(_) => None,
            Engine::Cuda(device) => device.memory().ok().map(|(free, total)| total - free),
        }
    }
}

/// Refuses a plan whose arena is larger than the memory that the system could give.
fn check_memory(plan: &Plan) -> Result<()> {
    let available = super::proc_kib("/proc/meminfo", "MemAvailable:");
    if let Some(available) = available.filter(|&a| a < plan.arena_bytes as u64) {
        let (needed, available) = (format_bytes(plan.arena_bytes), format_bytes(available as usize));
        let text = format!(
            "the edit needs {needed} of memory for activations, {available} are available; a smaller --size-level needs less"
        );
        return Err(ResourceError(text).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;
    use crate::ops::PixelsIn;
    use crate::tensor::DType;

    #[test]
    fn an_arena_beyond_the_memory_is_refused_with_both_numbers() {
        let plan_of = |pixels: usize| {
            let mut g = Graph::new();
            g.stage("vae_encode", 1, |g| {
                let x = g.input("rgb", DType::U8, [1, pixels, 3]);
                g.op("pixels_in", PixelsIn(DType::F32), &[x])
            });
            Plan::new(g, Precision::F32, Target::Cpu).unwrap()
        };
        check_memory(&plan_of(100)).unwrap();
        let error = check_memory(&plan_of(1 << 40)).unwrap_err();
        let text = error.downcast_ref::<ResourceError>().unwrap().0.clone();
        assert!(text.contains("needs 16492.67 GB") && text.contains("are available"), "{text}");
    }
}
