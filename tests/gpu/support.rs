//! A device to test on.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use step1x_edit::cli;
use step1x_edit::cuda::{Device, Setup};
use step1x_edit::error::ResourceError;
use step1x_edit::exec::{self, Cuda};
use step1x_edit::ops::Arch;
use step1x_edit::plan::{Plan, Target};
use step1x_edit::weights::WeightSource;

/// A device, held by one test at a time, and its libraries.
pub struct Gpu {
    parts: Parts,
    _alone: MutexGuard<'static, ()>,
}

/// A device and its libraries; another thread may use it while the test holds the [`Gpu`].
#[derive(Clone)]
pub struct Parts {
    pub device: Arc<Device>,
    pub setup: Setup,
}

impl std::ops::Deref for Gpu {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// The first device; none, with a line that says so, where there is none.
pub fn gpu() -> Option<Gpu> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    match Device::open(0) {
        Ok(device) => Some(Gpu { parts: Parts { device, setup: cli::setup() }, _alone: alone }),
        Err(error) => {
            assert!(error.downcast_ref::<ResourceError>().is_some(), "{error:#}");
            let test = std::thread::current().name().unwrap_or_default().to_string();
            // Past the harness, which hides what a passing test prints.
            std::io::stderr().write_all(format!("SKIPPED {test}: {error:#}\n").as_bytes()).unwrap();
            None
        }
    }
}

impl Gpu {
    pub fn parts(&self) -> Parts {
        self.parts.clone()
    }
}

impl Parts {
    pub fn target(&self) -> Target {
        Target::Cuda(Arch(self.device.capability))
    }

    /// The device with these weights, for programs to be loaded onto.
    pub fn open(&self, weights: Arc<dyn WeightSource + Send + Sync>) -> Arc<exec::Gpu> {
        exec::Gpu::open(&self.device, &self.setup, weights).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// A plan on a device of its own.
    pub fn executor(&self, plan: &Arc<Plan>, weights: Arc<dyn WeightSource + Send + Sync>) -> Cuda {
        Cuda::load(&self.open(weights), plan.clone()).unwrap_or_else(|e| panic!("{e:#}"))
    }
}
