//! The driver's books, by NVML: its own version, and the energy that a device has taken. Loaded at run time; a machine
//! without it measures no energy, nothing else is lost.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};

use libloading::Library;

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
