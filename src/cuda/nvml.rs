//! The driver's books, by NVML: its own version, and the energy that a device has taken. Loaded at run time; a machine
//! without it measures no energy, nothing else is lost.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::fmt;

use libloading::Library;
use serde::Serialize;

/// `NVML_SUCCESS`.
const SUCCESS: c_int = 0;
/// `NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE`.
const VERSION_BYTES: usize = 80;

/// NVML, initialised.
#[derive(Debug)]
pub struct Nvml(Library);

/// A device's meter.
#[derive(Debug)]
pub struct EnergyMeter {
    nvml: Nvml,
    device: *mut c_void,
}

/// A PCIe link, as it is now and as device and slot allow. A device with nothing to do may have slowed its link down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pcie {
    /// Generation, which sets the rate of a lane.
    pub generation: u32,
    /// Lanes.
    pub width: u32,
    /// Highest generation.
    pub most_generation: u32,
    /// Most lanes.
    pub most_width: u32,
}

impl fmt::Display for Pcie {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Pcie { generation, width, most_generation, most_width } = *self;
        write!(f, "PCIe {generation} x{width}")?;
        match (generation, width) == (most_generation, most_width) {
            true => Ok(()),
            false => write!(f, " (of {most_generation} x{most_width})"),
        }
    }
}

impl Nvml {
    /// Loads and initialises it; none where there is none or it does not start.
    pub fn open() -> Option<Nvml> {
        // SAFETY: opening a library of the driver runs its initialisers, nothing else.
        let library = unsafe { Library::new("libnvidia-ml.so.1") }.ok()?;
        // SAFETY: the type is that of nvml.h.
        let init = unsafe { library.get::<unsafe extern "C" fn() -> c_int>(c"nvmlInit_v2") }.ok()?;
        // SAFETY: takes nothing.
        let started = unsafe { init() } == SUCCESS;
        started.then(|| Nvml(library))
    }

    /// The driver's version, such as 580.65.06.
    pub fn driver_version(&self) -> Option<String> {
        type Get = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
        let mut text = [0u8; VERSION_BYTES];
        // SAFETY: the type is that of nvml.h; it writes at most as many bytes as it is told, with a NUL.
        let code =
            unsafe { self.0.get::<Get>(c"nvmlSystemGetDriverVersion").ok()?(text.as_mut_ptr().cast(), text.len() as c_uint) };
        let text = CStr::from_bytes_until_nul(&text).ok()?.to_str().ok()?;
        (code == SUCCESS).then(|| text.to_string())
    }

    /// Bytes in use of the memory of the device at this place on the bus, by everyone.
    pub fn bytes_in_use(&self, bus: &str) -> Option<u64> {
        type Get = unsafe extern "C" fn(*mut c_void, *mut [c_ulonglong; 3]) -> c_int;
        let (handle, mut total_free_used) = (self.find(bus)?, [0; 3]);
        // SAFETY: the type is that of nvml.h, whose nvmlMemory_t has three numbers; the handle is this library's.
        let code = unsafe { self.0.get::<Get>(c"nvmlDeviceGetMemoryInfo").ok()?(handle, &mut total_free_used) };
        (code == SUCCESS).then_some(total_free_used[2])
    }

    /// The link of the device at this place on the bus; none where the driver does not tell.
    pub fn pcie(&self, bus: &str) -> Option<Pcie> {
        type Get = unsafe extern "C" fn(*mut c_void, *mut c_uint) -> c_int;
        let handle = self.find(bus)?;
        let number = |name: &CStr| {
            let mut number = 0;
            // SAFETY: the type is that of nvml.h for these functions; the handle is this library's.
            let code = unsafe { self.0.get::<Get>(name).ok()?(handle, &mut number) };
            (code == SUCCESS).then_some(number)
        };
        Some(Pcie {
            generation: number(c"nvmlDeviceGetCurrPcieLinkGeneration")?,
            width: number(c"nvmlDeviceGetCurrPcieLinkWidth")?,
            most_generation: number(c"nvmlDeviceGetMaxPcieLinkGeneration")?,
            most_width: number(c"nvmlDeviceGetMaxPcieLinkWidth")?,
        })
    }

    /// The handle of the device at a place on the bus, since NVML may count devices otherwise than the driver.
    fn find(&self, bus: &str) -> Option<*mut c_void> {
        type Find = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
        let (bus, mut handle) = (CString::new(bus).ok()?, std::ptr::null_mut());
        // SAFETY: the type is that of nvml.h; the string ends with a NUL.
        let code = unsafe { self.0.get::<Find>(c"nvmlDeviceGetHandleByPciBusId_v2").ok()?(bus.as_ptr(), &mut handle) };
        (code == SUCCESS).then_some(handle)
    }

    /// The meter of the device at this place on the bus; none if it has no meter.
    pub fn energy_meter(self, bus: &str) -> Option<EnergyMeter> {
        let handle = self.find(bus)?;
        let meter = EnergyMeter { nvml: self, device: handle };
        meter.millijoules().is_some().then_some(meter)
    }
}

impl EnergyMeter {
    /// Energy that the whole device has taken since the driver was loaded.
    pub fn millijoules(&self) -> Option<u64> {
        type Get = unsafe extern "C" fn(*mut c_void, *mut c_ulonglong) -> c_int;
        let mut energy = 0;
        // SAFETY: the type is that of nvml.h; the handle is this library's.
        let code = unsafe { self.nvml.0.get::<Get>(c"nvmlDeviceGetTotalEnergyConsumption").ok()?(self.device, &mut energy) };
        (code == SUCCESS).then_some(energy)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: the type is that of nvml.h; the library was initialised.
        let _ = unsafe { self.0.get::<unsafe extern "C" fn() -> c_int>(c"nvmlShutdown").map(|shutdown| shutdown()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_slower_than_it_could_be_says_so() {
        let link = |generation, width| Pcie { generation, width, most_generation: 5, most_width: 16 }.to_string();
        assert_eq!([link(5, 16), link(5, 8), link(1, 16)], ["PCIe 5 x16", "PCIe 5 x8 (of 5 x16)", "PCIe 1 x16 (of 5 x16)"]);
    }
}
