//! Where edits run: a GPU or the CPU, in which precision, and how much memory they may take.

use std::sync::Arc;

use anyhow::Result;

use crate::cuda::{self, Device, Setup};
use crate::error::{ResourceError, UsageError};
use crate::ops::Arch;
use crate::plan::{Precision, Target};

/// Ten times the least compute capability that has kernels.
pub const LEAST_CAPABILITY: u32 = 80;

/// Which device the caller wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device, or the CPU where there is none.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device.
    Cuda(usize),
}

/// What the caller says of the place.
#[derive(Clone, Debug, Default)]
pub struct PlaceChoice {
    /// Which device.
    pub device: DeviceChoice,
    /// Activations and products; none: bf16 on a GPU, f32 on the CPU.
    pub precision: Option<Precision>,
    /// Most bytes of the GPU's memory to take; none: what is free.
    pub max_vram: Option<usize>,
    /// Most bytes of the host's memory for weights that stream; none: what is free, but for 4 GB.
    pub max_ram: Option<usize>,
    /// Where the GPU's libraries and the cache lie.
    pub setup: Setup,
}

/// Where edits run, opened and found usable.
#[derive(Clone, Debug)]
pub struct Place {
    device: Option<Arc<Device>>,
    why_cpu: Option<String>,
    /// Activations and products.
    pub precision: Precision,
    /// Most bytes of the GPU's memory to take; none: what is free.
    pub max_vram: Option<usize>,
    /// Most bytes of the host's memory for weights that stream; none: what is free, but for 4 GB.
    pub max_ram: Option<usize>,
    /// Where the GPU's libraries and the cache lie.
    pub setup: Setup,
}

impl Place {
    /// Settles where to run.
    ///
    /// # Errors
    /// A [`ResourceError`] if the device asked for cannot be used, a usage error for a precision that a GPU has not.
    pub fn open(choice: &PlaceChoice) -> Result<Place> {
        let PlaceChoice { precision, max_vram, max_ram, setup, .. } = choice.clone();
        let on_cpu = |why_cpu: Option<String>| {
            let precision = precision.unwrap_or(Precision::F32);
            Ok(Place { device: None, why_cpu, precision, max_vram, max_ram, setup: setup.clone() })
        };
        match (choice.device, precision) {
            (DeviceChoice::Cpu, _) => on_cpu(None),
            (DeviceChoice::Auto, Some(precision)) if !precision.runs_on_cuda() => {
                on_cpu(Some(format!("only the CPU runs --precision {precision}")))
            }
            (DeviceChoice::Auto, _) => Place::open_gpu(choice).or_else(|e| match e.is::<UsageError>() {
                true => Err(e),
                false => on_cpu(Some(format!("{e:#}"))),
            }),
            (DeviceChoice::Cuda(_), _) => Place::open_gpu(choice).map_err(|e| match e.downcast_ref::<ResourceError>() {
                Some(_) => ResourceError(format!("{e:#}; use --device cpu to run without a GPU")).into(),
                None => e,
            }),
        }
    }

    /// A GPU, for what nothing else can do: the one that is chosen, or the first; in bf16 unless another precision is asked for.
    ///
    /// # Errors
    /// A [`ResourceError`] if it cannot be used, a usage error for a precision that it has not.
    pub fn open_gpu(choice: &PlaceChoice) -> Result<Place> {
        let ordinal = if let DeviceChoice::Cuda(ordinal) = choice.device { ordinal } else { 0 };
        let PlaceChoice { max_vram, max_ram, setup, .. } = choice.clone();
        let precision = choice.precision.unwrap_or(Precision::Bf16);
        if !precision.runs_on_cuda() {
            precision.check(Arch(LEAST_CAPABILITY))?; // before a device is looked for: none has it
        }
        let device = usable(ordinal, &setup)?;
        precision.check(Arch(device.capability))?;
        Ok(Place { device: Some(device), why_cpu: None, precision, max_vram, max_ram, setup })
    }

    /// The GPU, if it is one.
    pub fn device(&self) -> Option<&Arc<Device>> {
        self.device.as_ref()
    }

    /// Why it is the CPU, if nobody asked for that.
    pub fn why_cpu(&self) -> Option<&str> {
        self.why_cpu.as_deref()
    }

    /// As people call it.
    pub fn name(&self) -> String {
        self.device.as_ref().map_or("cpu".into(), |device| format!("cuda:{} {}", device.ordinal, device.name))
    }

    /// The same, with the precision where it is not what the device has unless another is asked for.
    pub fn measured_name(&self) -> String {
        match (&self.device, self.precision) {
            (Some(_), Precision::Bf16) | (None, Precision::F32) => self.name(),
            (_, precision) => format!("{}, {precision}", self.name()),
        }
    }

    /// What the planner plans for.
    pub fn target(&self) -> Target {
        self.device.as_ref().map_or(Target::Cpu, |device| Target::Cuda(Arch(device.capability)))
    }

    /// Bytes of the GPU's memory in use, by everyone; none on the CPU.
    pub fn device_bytes_in_use(&self) -> Option<usize> {
        self.device.as_ref()?.memory().ok().map(|(free, total)| total - free)
    }
}

/// A device with kernels, and the libraries that they need.
fn usable(ordinal: usize, setup: &Setup) -> Result<Arc<Device>> {
    let device = Device::open(ordinal)?;
    if device.capability < LEAST_CAPABILITY {
        let text = format!(
            "{} has compute capability {}.{}; the kernels need 8.0, the first with bf16",
            device.name,
            device.capability / 10,
            device.capability % 10
        );
        return Err(ResourceError(text).into());
    }
    cuda::load_nvrtc(&setup.libraries)?;
    cuda::load_cublaslt(&setup.libraries)?;
    Ok(device)
}
