//! Loaded kernels, launches of them, and launches captured to be replayed.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use anyhow::{Context, Result};
use cudarc::driver::{result, sys};

use super::device::{Device, Stream};
use super::fault::of;
use super::launch::{KernelLaunch, TensorMap};

/// Dynamic shared memory that a block may have without asking.
const SHARED_UNASKED: u32 = 48 << 10;

/// A cubin on the device.
#[derive(Debug)]
pub struct Module {
    device: Arc<Device>,
    handle: sys::CUmodule,
}

// SAFETY: modules and their functions may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: the driver's calls are thread-safe.
unsafe impl Sync for Module {}

/// An entry of a module.
#[derive(Clone, Debug)]
pub struct Function {
    _module: Arc<Module>,
    handle: sys::CUfunction,
}

// SAFETY: functions may be used from any thread.
unsafe impl Send for Function {}

impl Module {
    /// Loads a cubin.
    ///
    /// # Errors
    /// What the driver reports: a cubin for another architecture, say.
    pub fn load(device: &Arc<Device>, image: &[u8]) -> Result<Arc<Module>> {
        // SAFETY: the driver reads the image, whose header says its length; `Compiler` checked that it is whole.
        let handle = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(of("load a kernel"))?;
        Ok(Arc::new(Module { device: device.clone(), handle }))
    }

    /// The entry `name`, ready for blocks of `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// No such entry, or more shared memory than a block can have.
    pub fn function(self: &Arc<Module>, name: &str, shared_bytes: u32) -> Result<Function> {
        let entry = CString::new(name)?;
        // SAFETY: the module is loaded.
        let handle = unsafe { result::module::get_function(self.handle, entry) }.map_err(of("find a kernel"));
        let handle = handle.with_context(|| name.to_string())?;
        if shared_bytes > SHARED_UNASKED {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was just found.
            unsafe { result::function::set_function_attribute(handle, attribute, shared_bytes as i32) }
                .map_err(of("reserve a kernel's shared memory"))
                .with_context(|| format!("{name}: {shared_bytes} bytes"))?;
        }
        Ok(Function { _module: self.clone(), handle })
    }
}

impl KernelLaunch {
    /// The launch as a device takes it: maps encoded, blocks counted.
    ///
    /// # Errors
    /// A map that the driver refuses.
    pub fn ready(mut self, device: &Device) -> Result<KernelLaunch> {
        if self.persistent {
            self.grid[0] = self.grid[0].min(device.multiprocessors / self.cluster * self.cluster);
        }
        let maps: Vec<[u8; TensorMap::BYTES]> = self.maps.iter().map(encode).collect::<Result<_>>()?;
        self.params.splice(0..0, maps.concat());
        self.maps.clear();
        Ok(self)
    }
}

/// A map in the driver's form; zeros if it has no elements.
fn encode(map: &TensorMap) -> Result<[u8; TensorMap::BYTES]> {
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    if map.extents.iter().all(|&n| n > 0) {
        let extents = map.extents.map(u64::from);
        // What lies beside a box's row is needed soon, unless the box skips it.
        let promotion = match map.steps {
            [1, 1, 1] => sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            _ => sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
        };
        let element = match map.element {
            1 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        // SAFETY: every array has as many elements as three dimensions ask for; the driver does not follow the address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut encoded,
                element,
                map.rank,
                map.address as *mut c_void,
                extents.as_ptr(),
                map.stride_bytes.as_ptr(),
                map.box_extents.as_ptr(),
                map.steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                promotion,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(of("encode a tensor map"))
        .with_context(|| format!("{map:?}"))?;
    }
    Ok(bytemuck::cast(encoded.opaque))
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: loaded by `load`; every function holds self.
        let _ = unsafe { result::module::unload(self.handle) };
    }
}

impl Stream {
    /// Launches a kernel.
    ///
    /// # Safety
    /// The addresses in the launch's parameters are valid for what the kernel does with them.
    pub unsafe fn launch(&self, function: &Function, launch: &KernelLaunch) -> Result<()> {
        let [x, y, z] = launch.grid;
        // The driver copies the parameters before it returns, but asks for a mutable pointer to them.
        let mut arguments = [launch.params.as_ptr() as *mut c_void];
        // SAFETY: the parameters are those of the entry, whose size both sides assert; the rest is asked of the caller.
        unsafe {
            let (grid, block) = ((x, y, z), (launch.block, 1, 1));
            result::launch_kernel(function.handle, grid, block, launch.shared_bytes, self.handle, &mut arguments)
        }
        .map_err(of("launch a kernel"))
        .with_context(|| format!("kernel {}", launch.entry))
    }

    /// Records what `work` asks of this stream instead of running it.
    ///
    /// # Errors
    /// What `work` returns, or what the driver reports.
    pub fn capture(&self, device: &Arc<Device>, work: impl FnOnce() -> Result<()>) -> Result<Captured> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive; a capture that was begun is ended on every path.
        unsafe { result::stream::begin_capture(self.handle, mode) }.map_err(of("begin a capture"))?;
        let done = work();
        // SAFETY: a capture is under way.
        let graph = unsafe { result::stream::end_capture(self.handle) }.map(Recorded).map_err(of("end a capture"));
        done?;
        let graph = graph?;
        // SAFETY: the graph was just made.
        let executable = unsafe { result::graph::instantiate(graph.0, sys::CUgraphInstantiate_flags(0)) };
        Ok(Captured { _device: device.clone(), handle: executable.map_err(of("instantiate a graph"))? })
    }
}

/// What was recorded; it may go once it is instantiated.
struct Recorded(sys::CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by the end of a capture.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}

/// Recorded work of a stream.
#[derive(Debug)]
pub struct Captured {
    _device: Arc<Device>,
    handle: sys::CUgraphExec,
}

// SAFETY: a graph may be used from any thread, by one at a time.
unsafe impl Send for Captured {}

impl Captured {
    /// Runs it.
    ///
    /// # Safety
    /// What it was recorded from is still there.
    pub unsafe fn replay(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { result::graph::launch(self.handle, stream.handle) }.map_err(of("replay a graph"))
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: made by `capture`.
        let _ = unsafe { result::graph::exec_destroy(self.handle) };
    }
}
