//! A GPU: its context, memory, streams and events.

use std::ffi::{CStr, c_void};
use std::ops::{Range, RangeInclusive};
use std::ptr::null_mut;
use std::sync::Arc;

use anyhow::{Error, Result, ensure};
use cudarc::driver::{result, sys};
use memmap2::MmapMut;
use sys::CUdevice_attribute_enum as Attribute;

use super::fault::{OutOfMemory, describe, of, size};
use super::library::load_driver;
use super::nvml::Nvml;
use super::wait::{self, KeepOn};
use crate::error::ResourceError;

/// What a context can take; 552 MB on an H100.
const CONTEXT_RANGE: RangeInclusive<usize> = 200_000_000..=900_000_000;

/// A GPU with its primary context, which is current on the thread that opened it.
#[derive(Debug)]
pub struct Device {
    handle: sys::CUdevice,
    context: sys::CUcontext,
    /// Number of the device.
    pub ordinal: usize,
    /// As the driver calls it.
    pub name: String,
    /// Ten times the compute capability.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of its memory that the process's context takes, before anything else does; none where NVML does not tell.
    pub context_bytes: Option<usize>,
}

// SAFETY: contexts may be used from any thread that makes them current.
unsafe impl Send for Device {}
// SAFETY: the driver's calls are thread-safe.
unsafe impl Sync for Device {}

impl Device {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// A [`ResourceError`]: no driver, no such device, or one that does not open: another program has it to itself, say.
    pub fn open(ordinal: usize) -> Result<Arc<Device>> {
        Device::try_open(ordinal).map_err(|e| match e.downcast_ref::<ResourceError>() {
            Some(_) => e,
            None => ResourceError(format!("{e:#}")).into(),
        })
    }

    fn try_open(ordinal: usize) -> Result<Arc<Device>> {
        let count = Device::count()?;
        if ordinal >= count {
            let text = format!("there is no CUDA device {ordinal}: the driver shows {count}");
            return Err(ResourceError(text).into());
        }
        let handle = result::device::get(ordinal as i32).map_err(of("find the device"))?;
        let name = result::device::get_name(handle).map_err(of("name the device"))?;
        // SAFETY: the handle is that of a device of this driver.
        let attribute = |a| unsafe { result::device::get_attribute(handle, a) }.map_err(of("read the device's properties"));
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let nvml = Nvml::open().and_then(|nvml| Some((nvml, bus_of(handle).ok()?)));
        let in_use = || nvml.as_ref().and_then(|(nvml, bus)| nvml.bytes_in_use(bus));
        let before = in_use();
        // SAFETY: as above; released when the device is dropped.
        let context = unsafe { result::primary_ctx::retain(handle) }.map_err(of("be opened"))?;
        // A context that was there already, or another process that comes or goes meanwhile, gives other differences.
        let taken = before.zip(in_use()).map(|(before, after)| after.saturating_sub(before) as usize);
        let context_bytes = taken.filter(|bytes| CONTEXT_RANGE.contains(bytes));
        let capability = (10 * major + minor) as u32;
        let device = Device { handle, context, ordinal, name, capability, multiprocessors, context_bytes };
        device.make_current()?;
        Ok(Arc::new(device))
    }

    /// How many devices the driver shows.
    ///
    /// # Errors
    /// A [`ResourceError`]: no driver, or one that does not start.
    pub fn count() -> Result<usize> {
        load_driver()?;
        let not_started = |e| ResourceError(format!("the NVIDIA driver does not start ({})", describe(e)));
        result::init().map_err(not_started)?;
        Ok(result::device::get_count().map_err(of("count the devices"))? as usize)
    }

    /// Its place on the bus, as NVML takes it: domain:bus:device.function.
    pub fn bus(&self) -> Result<String> {
        bus_of(self.handle)
    }

    /// Makes the context current on the calling thread.
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the context lives as long as self.
        unsafe { result::ctx::set_current(self.context) }.map_err(of("use the device"))
    }

    /// Free and total bytes of the device's memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.make_current()?;
        result::mem_get_info().map_err(of("read the free memory"))
    }

    /// Waits for all that was asked of the device.
    ///
    /// # Errors
    /// A fault of anything that ran.
    pub fn synchronize(&self) -> Result<()> {
        result::ctx::synchronize().map_err(of("finish its work"))
    }
}

/// A device's place on the bus: domain:bus:device.function.
fn bus_of(handle: sys::CUdevice) -> Result<String> {
    let mut text = [0u8; 32];
    // SAFETY: it writes at most as many bytes as it is told, with a NUL.
    let code = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, handle) };
    code.result().map_err(of("give its place on the bus"))?;
    Ok(CStr::from_bytes_until_nul(&text)?.to_string_lossy().into_owned())
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained when opened; everything made in it holds the device and is gone.
        let _ = unsafe { result::primary_ctx::release(self.handle) };
    }
}

/// Whether something has come.
fn come(queried: sys::CUresult) -> Result<bool> {
    match queried {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        code => code.result().map(|()| true).map_err(of("finish its work")),
    }
}

/// A run of device memory.
#[derive(Debug)]
pub struct Memory {
    device: Arc<Device>,
    /// Address of the first byte.
    pub address: u64,
    /// Length.
    pub bytes: usize,
}

impl Memory {
    /// Takes memory.
    ///
    /// # Errors
    /// [`OutOfMemory`] with the number asked for and the number free.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Memory> {
        // SAFETY: freed when dropped.
        let address = unsafe { result::malloc_sync(bytes.max(1)) };
        let address = address.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                OutOfMemory::of("the device", &format!("give {} of memory", size(bytes)), &describe(e))
            }
            _ => of("give memory")(e),
        })?;
        Ok(Memory { device: device.clone(), address, bytes })
    }

    /// Sets every byte of a range, in the order of a stream.
    ///
    /// # Errors
    /// A range outside, or what the driver reports.
    pub fn fill(&self, byte: u8, range: Range<usize>, stream: &Stream) -> Result<()> {
        ensure!(range.end <= self.bytes, "cannot fill bytes {range:?} of {}", self.bytes);
        let (address, bytes) = (self.address + range.start as u64, range.len());
        // SAFETY: the range was just checked.
        unsafe { result::memset_d8_async(address, byte, bytes, stream.handle) }.map_err(of("fill memory"))
    }

    /// Copies bytes to `offset`, and waits until they are there. (The driver's call returns once it has read them; streams that
    /// do not wait for the default one could run ahead of the rest.)
    ///
    /// # Errors
    /// A range outside, or what the driver reports.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        ensure!(offset + bytes.len() <= self.bytes, "cannot write {} bytes at {offset} of {} bytes", bytes.len(), self.bytes);
        // SAFETY: the range was just checked.
        unsafe { result::memcpy_htod_sync(self.address + offset as u64, bytes) }.map_err(of("read bytes from the host"))?;
        // SAFETY: null is the default stream, which the copy is in.
        unsafe { result::stream::synchronize(null_mut()) }.map_err(of("read bytes from the host"))
    }

    /// Copies bytes from `offset`, and waits.
    ///
    /// # Errors
    /// A range outside, or what the driver reports.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        ensure!(offset + bytes.len() <= self.bytes, "cannot read {} bytes at {offset} of {} bytes", bytes.len(), self.bytes);
        // SAFETY: the range was just checked.
        unsafe { result::memcpy_dtoh_sync(bytes, self.address + offset as u64) }.map_err(of("copy bytes to the host"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: taken by `new`; whoever uses the address holds self.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// Work in order.
#[derive(Debug)]
pub struct Stream {
    _device: Arc<Device>,
    pub(super) handle: sys::CUstream,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: the driver's calls are thread-safe.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream that does not wait for the default one.
    pub fn new(device: &Arc<Device>) -> Result<Stream> {
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(of("open a stream"))?;
        Ok(Stream { _device: device.clone(), handle })
    }

    /// A number that no other open stream has.
    pub(super) fn number(&self) -> usize {
        self.handle as usize
    }

    /// Lets what follows wait for an event.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(self.handle, event.handle, flags) }.map_err(of("wait for an event"))
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// A fault of anything that ran.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.handle) }.map_err(of("finish its work"))
    }

    /// Waits until all is done, or `keep_on` no more.
    ///
    /// # Errors
    /// A fault of anything that ran, or what `keep_on` returns.
    pub fn wait_idle(&self, keep_on: &mut KeepOn) -> Result<()> {
        wait::until(|| self.is_idle(), keep_on)
    }

    /// Whether all is done.
    ///
    /// # Errors
    /// A fault of anything that ran.
    pub fn is_idle(&self) -> Result<bool> {
        // SAFETY: the stream is alive.
        come(unsafe { sys::cuStreamQuery(self.handle) })
    }

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// The range is memory that nothing else uses at that point of the stream.
    pub unsafe fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: asked of the caller.
        unsafe { result::memset_d8_async(address, 0, bytes, self.handle) }.map_err(of("clear memory"))
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// The ranges are memory, do not overlap, and nothing else uses them at that point of the stream.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: asked of the caller.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.handle) }.map_err(of("copy memory"))
    }

    /// Copies from page-locked memory without waiting.
    ///
    /// # Safety
    /// Source and destination stay valid and untouched until an event recorded after it has come.
    pub unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: asked of the caller.
        unsafe { result::memcpy_htod_async(address, bytes, self.handle) }.map_err(of("read bytes from the host"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::stream::destroy(self.handle) };
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    _device: Arc<Device>,
    handle: sys::CUevent,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: the driver's calls are thread-safe.
unsafe impl Sync for Event {}

impl Event {
    /// A mark that nothing has reached yet; `timed` ones can be subtracted.
    pub fn new(device: &Arc<Device>, timed: bool) -> Result<Event> {
        let flags = if timed { sys::CUevent_flags::CU_EVENT_DEFAULT } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let handle = result::event::create(flags).map_err(of("make an event"))?;
        Ok(Event { _device: device.clone(), handle })
    }

    /// Comes when all before it in the stream is done.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.handle, stream.handle) }.map_err(of("record an event"))
    }

    /// Waits until it has come.
    ///
    /// # Errors
    /// A fault of anything before it.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.handle) }.map_err(of("finish its work"))
    }

    /// Waits until it has come, or `keep_on` no more.
    ///
    /// # Errors
    /// A fault of anything before it, or what `keep_on` returns.
    pub fn wait(&self, keep_on: &mut KeepOn) -> Result<()> {
        wait::until(|| self.has_come(), keep_on)
    }

    /// Whether it has come.
    ///
    /// # Errors
    /// A fault of anything before it.
    pub fn has_come(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        come(unsafe { sys::cuEventQuery(self.handle) })
    }

    /// Milliseconds from `earlier` to this; both timed and come.
    pub fn milliseconds_since(&self, earlier: &Event) -> Result<f32> {
        // SAFETY: both are alive.
        unsafe { result::event::elapsed(earlier.handle, self.handle) }.map_err(of("measure time"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::event::destroy(self.handle) };
    }
}

/// Page-locked host memory, from which the device copies by itself.
#[derive(Debug)]
pub struct Pinned {
    device: Arc<Device>,
    pointer: *mut c_void,
    pub(super) bytes: usize,
}

// SAFETY: plain memory, owned.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Takes memory; it holds anything.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Pinned> {
        // SAFETY: freed when dropped; zeroed below before it is lent out.
        let pointer = unsafe { result::malloc_host(bytes, 0) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::new(ResourceError(format!(
                "the system does not lock {} of memory for uploads ({}); end other programs",
                size(bytes),
                describe(e)
            ))),
            _ => of("lock host memory")(e),
        })?;
        // SAFETY: just taken, of this length.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes) };
        Ok(Pinned { device: device.clone(), pointer, bytes })
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: owned, initialised, of this length.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: taken by `new`; no copy from it is under way, as `Stream::upload` asks.
        let _ = unsafe { result::free_host(self.pointer) };
    }
}

/// Memory of the process, page-locked where it lies, so that the device copies from it by itself.
#[derive(Debug)]
pub struct Locked {
    device: Arc<Device>,
    map: MmapMut,
}

impl Locked {
    /// Locks memory that is there already; what was never touched is fetched first, by one thread.
    ///
    /// # Errors
    /// A [`ResourceError`] if the system does not lock so much.
    pub fn new(device: &Arc<Device>, mut map: MmapMut) -> Result<Locked> {
        // SAFETY: the range is the map's, which stays where it is until it is unlocked.
        let code = unsafe { sys::cuMemHostRegister_v2(map.as_mut_ptr().cast(), map.len(), 0) };
        code.result().map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY | sys::CUresult::CUDA_ERROR_NOT_PERMITTED => Error::new(ResourceError(format!(
                "the system does not lock {} of memory for copies ({}); end other programs, or raise the limit of the container",
                size(map.len()),
                describe(e)
            ))),
            _ => of("lock host memory")(e),
        })?;
        Ok(Locked { device: device.clone(), map })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Where they begin.
    pub(super) fn pointer(&mut self) -> *mut u8 {
        self.map.as_mut_ptr()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: locked by `new`; no copy from it is under way, as `Stream::upload` asks. It is unmapped after this.
        let _ = unsafe { sys::cuMemHostUnregister(self.map.as_mut_ptr().cast()) };
    }
}
