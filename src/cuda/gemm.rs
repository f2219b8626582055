//! Matrix products through cuBLASLt: the fastest of its suggestions for each shape, found once and remembered.
//!
//! cuBLASLt thinks in columns: a row-major y[m, n] is its D [n, m], so w is its A (transposed) and x its B. An algorithm
//! is chosen by time among the heuristic's first suggestions and kept in the cache folder, by device and library version:
//! the same choice computes the same bytes on every run.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cudarc::cublaslt::{result, sys};
use sys::cublasComputeType_t as Compute;
use sys::cublasLtMatmulDescAttributes_t as Attribute;
use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
use sys::cudaDataType as DataType;

use super::cache::Entry;
use super::device::{Device, Event, Stream};
use super::launch::{Gemm, Matrix};
use super::library::{Setup, load_cublaslt};
use crate::tensor::DType;

/// Suggestions that are timed.
const SUGGESTIONS: usize = 8;
/// Of the ways to add up a product that is split along k, `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE` alone: the others round
/// every partial sum to the result's type.
const SUMS_IN_F32: u32 = 2;
/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;
/// Timed runs of each, after one that is not.
const RUNS: usize = 4;

/// cuBLASLt on one device with the algorithms found so far.
#[derive(Debug)]
pub struct Gemms {
    device: Arc<Device>,
    handle: sys::cublasLtHandle_t,
    entry: Entry,
    known: HashMap<String, [u64; 8]>,
    grown: bool,
}

// SAFETY: a handle of cuBLASLt may be used from any thread.
unsafe impl Send for Gemms {}

/// A product ready to run.
#[derive(Debug)]
pub struct Product {
    gemm: Gemm,
    descriptor: Descriptor,
    layouts: [MatrixLayout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

fn failed(doing: &'static str) -> impl Fn(result::CublasError) -> anyhow::Error {
    move |e| anyhow::anyhow!("cuBLASLt cannot {doing}: {:?}", e.0)
}

impl Gemms {
    /// Opens the library and reads the algorithms that earlier runs chose.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: cuBLASLt is not found; or it does not start.
    pub fn new(device: &Arc<Device>, setup: &Setup) -> Result<Gemms> {
        load_cublaslt(&setup.libraries)?;
        let handle = result::create_handle().map_err(failed("start"))?;
        // SAFETY: takes nothing.
        let version = unsafe { sys::cublasLtGetVersion() };
        let identity = format!("step1x-edit gemm 2: {} cublasLt {version}", device.name);
        let entry = Entry::new(setup.cache.as_deref(), "gemm", "txt", identity);
        let known = entry.read().and_then(|contents| Some(parse(str::from_utf8(&contents).ok()?))).unwrap_or_default();
        Ok(Gemms { device: device.clone(), handle, entry, known, grown: false })
    }

    /// Makes a product ready. A shape that is not known yet is timed with the product's own operands, so its result is
    /// overwritten.
    ///
    /// # Errors
    /// A product that cuBLASLt cannot do.
    ///
    /// # Safety
    /// The product's addresses are valid, and nothing uses its result or workspace meanwhile.
    pub unsafe fn prepare(&mut self, gemm: &Gemm, stream: &Stream) -> Result<Product> {
        let describe = || format!("cannot prepare the matrix product {gemm:?}");
        let key = key(gemm);
        let mut product = Product::new(gemm).with_context(describe)?;
        if let Some(&data) = self.known.get(&key) {
            product.algorithm.data = data;
            if self.check(&product) {
                return Ok(product);
            }
        }
        // SAFETY: asked of the caller.
        let best = unsafe { self.fastest(&mut product, stream) }.with_context(describe)?;
        product.algorithm = best;
        self.known.insert(key, best.data);
        self.grown = true;
        Ok(product)
    }

    /// Writes down the algorithms chosen since the last time. A cache that cannot be written costs time at the next start.
    pub fn save(&mut self) {
        if self.grown {
            let mut lines: Vec<_> = self.known.iter().collect();
            lines.sort();
            let mut text = String::new();
            for (key, data) in lines {
                let words: Vec<String> = data.iter().map(|word| format!("{word:016x}")).collect();
                let _ = writeln!(text, "{key} = {}", words.join(" "));
            }
            self.entry.write(text.as_bytes());
            self.grown = false;
        }
    }

    /// Runs a product.
    ///
    /// # Errors
    /// What cuBLASLt reports.
    ///
    /// # Safety
    /// The product's addresses are valid, and nothing else writes to its operands at that point of the stream.
    pub unsafe fn run(&self, product: &Product, stream: &Stream) -> Result<()> {
        // SAFETY: asked of the caller.
        unsafe { self.run_with(product, &product.algorithm, stream) }.map_err(failed("run a product"))
    }

    unsafe fn run_with(
        &self,
        product: &Product,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        stream: &Stream,
    ) -> Result<(), result::CublasError> {
        let (gemm, [w, x, y]) = (&product.gemm, &product.layouts);
        let (one, zero) = (1f32, 0f32);
        // SAFETY: descriptors live in `product`; the addresses are asked of the caller.
        unsafe {
            result::matmul(
                self.handle,
                product.descriptor.0,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                gemm.w.address as *const c_void,
                w.0,
                gemm.x.address as *const c_void,
                x.0,
                gemm.y.address as *const c_void,
                y.0,
                gemm.y.address as *mut c_void,
                y.0,
                algorithm,
                gemm.workspace as *mut c_void,
                Gemm::WORKSPACE,
                stream.handle.cast(),
            )
        }
    }

    /// Whether this library takes a remembered algorithm for the product.
    fn check(&self, product: &Product) -> bool {
        let [w, x, y] = &product.layouts;
        // SAFETY: all zeros is a value of this plain struct.
        let mut found: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        // SAFETY: descriptors live in `product`.
        let checked = unsafe {
            let algorithm = &raw const product.algorithm;
            sys::cublasLtMatmulAlgoCheck(self.handle, product.descriptor.0, w.0, x.0, y.0, y.0, algorithm, &mut found)
        };
        checked.result().is_ok() && found.workspaceSize <= Gemm::WORKSPACE
    }

    unsafe fn fastest(&self, product: &mut Product, stream: &Stream) -> Result<sys::cublasLtMatmulAlgo_t> {
        let mut best: Option<(f32, sys::cublasLtMatmulAlgo_t)> = None;
        for candidate in self.suggestions(product)? {
            let (start, end) = (Event::new(&self.device, true)?, Event::new(&self.device, true)?);
            // SAFETY: asked of the caller.
            let mut ran = unsafe { self.run_with(product, &candidate, stream) };
            start.record(stream)?;
            for _ in 0..RUNS {
                // SAFETY: asked of the caller.
                ran = ran.and_then(|()| unsafe { self.run_with(product, &candidate, stream) });
            }
            end.record(stream)?;
            end.synchronize()?;
            let time = end.milliseconds_since(&start)?;
            if ran.is_ok() && best.is_none_or(|(least, _)| time < least) {
                best = Some((time, candidate));
            }
        }
        best.map(|(_, algorithm)| algorithm).context("cuBLASLt has no algorithm for this product")
    }

    fn suggestions(&self, product: &Product) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let wanted = PreferenceHandle::new(&product.gemm)?;
        let [w, x, y] = &product.layouts;
        // SAFETY: all zeros is a value of this plain struct.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; SUGGESTIONS] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: descriptors live in `product`; `found` has room for as many as are asked for.
        let asked = unsafe {
            let (descriptor, wanted) = (product.descriptor.0, wanted.0);
            let (most, place) = (SUGGESTIONS as i32, found.as_mut_ptr());
            sys::cublasLtMatmulAlgoGetHeuristic(self.handle, descriptor, w.0, x.0, y.0, y.0, wanted, most, place, &mut count)
        };
        asked.result().map_err(failed("suggest an algorithm"))?;
        let taken = found[..count as usize].iter().filter(|f| f.state.result().is_ok());
        Ok(taken.map(|f| f.algo).collect())
    }
}

impl Drop for Gemms {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// What the choice of an algorithm depends on.
fn key(gemm: &Gemm) -> String {
    let matrix = |m: &Matrix| format!("{}/{}@{}", m.dtype, m.stride, alignment(m.address));
    let epilogue = match (gemm.bias, gemm.gelu) {
        (bias, true) => {
            if bias.is_some() {
                "bias+gelu"
            } else {
                "gelu"
            }
        }
        (Some(_), false) => "bias",
        (None, false) => "none",
    };
    let [x, w, y] = [&gemm.x, &gemm.w, &gemm.y].map(matrix);
    format!("{}x{}x{} {x} {w} {y} {epilogue}", gemm.m, gemm.n, gemm.k)
}

/// Largest power of two up to 256 that divides an address.
fn alignment(address: u64) -> u32 {
    1 << (address | 256).trailing_zeros()
}

/// Key and algorithm of every whole line.
fn parse(text: &str) -> HashMap<String, [u64; 8]> {
    let entry = |line: &str| {
        let (key, words) = line.split_once(" = ")?;
        let words: Vec<u64> = words.split(' ').map(|w| u64::from_str_radix(w, 16)).collect::<Result<_, _>>().ok()?;
        Some((key.to_string(), words.try_into().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

fn data_type(dtype: DType) -> Result<DataType> {
    Ok(match dtype {
        DType::F32 => DataType::CUDA_R_32F,
        DType::BF16 => DataType::CUDA_R_16BF,
        DType::F16 => DataType::CUDA_R_16F,
        other => anyhow::bail!("a matrix product takes bf16, f16 or f32, not {other}"),
    })
}

impl Product {
    fn new(gemm: &Gemm) -> Result<Product> {
        ensure!(gemm.x.dtype == gemm.w.dtype, "the operands of a matrix product must have one type");
        let layout = |m: &Matrix, rows: usize, cols: usize| MatrixLayout::new(data_type(m.dtype)?, cols, rows, m.stride);
        let layouts = [layout(&gemm.w, gemm.n, gemm.k)?, layout(&gemm.x, gemm.m, gemm.k)?, layout(&gemm.y, gemm.m, gemm.n)?];
        let algorithm = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        Ok(Product { gemm: *gemm, descriptor: Descriptor::new(gemm)?, layouts, algorithm })
    }
}

#[derive(Debug)]
struct MatrixLayout(sys::cublasLtMatrixLayout_t);

impl MatrixLayout {
    fn new(dtype: DataType, rows: usize, cols: usize, stride: usize) -> Result<MatrixLayout> {
        let made = result::create_matrix_layout(dtype, rows as u64, cols as u64, stride as i64);
        Ok(MatrixLayout(made.map_err(failed("describe a matrix"))?))
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

#[derive(Debug)]
struct Descriptor(sys::cublasLtMatmulDesc_t);

impl Descriptor {
    fn new(gemm: &Gemm) -> Result<Descriptor> {
        // f32 operands are rounded to TF32 as they are read.
        let compute = match gemm.x.dtype {
            DType::F32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        let made = result::create_matmul_desc(compute, DataType::CUDA_R_32F);
        let descriptor = Descriptor(made.map_err(failed("describe a product"))?);
        use sys::cublasLtEpilogue_t as Epilogue;
        let epilogue = match (gemm.bias, gemm.gelu) {
            (Some(_), true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
            (None, true) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (Some(_), false) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (None, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
        };
        descriptor.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        descriptor.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        if let Some(bias) = gemm.bias {
            descriptor.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
            descriptor.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(gemm.y.dtype)?)?;
        }
        Ok(descriptor)
    }

    fn set<T: Copy>(&self, attribute: Attribute, value: T) -> Result<()> {
        let place: *const T = &value;
        // SAFETY: the value is read during the call, with its own size.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, place.cast(), size_of::<T>()) }
            .map_err(failed("describe a product"))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct PreferenceHandle(sys::cublasLtMatmulPreference_t);

impl PreferenceHandle {
    fn new(gemm: &Gemm) -> Result<PreferenceHandle> {
        let wanted = PreferenceHandle(result::create_matmul_pref().map_err(failed("take a preference"))?);
        wanted.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, Gemm::WORKSPACE)?;
        wanted.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, SUMS_IN_F32)?;
        wanted.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(gemm.w.address))?;
        wanted.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(gemm.x.address))?;
        wanted.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(gemm.y.address))?;
        wanted.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(gemm.y.address))?;
        Ok(wanted)
    }

    fn set<T: Copy>(&self, attribute: Preference, value: T) -> Result<()> {
        let place: *const T = &value;
        // SAFETY: the value is read during the call, with its own size.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, place.cast(), size_of::<T>()) }
            .map_err(failed("take a preference"))
    }
}

impl Drop for PreferenceHandle {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_algorithms_are_whole() {
        let text = "a = 1 2 3 4 5 6 7 8\nb = 1 2\nc = x\nd\ne = 0 0 0 0 0 0 0 ff\n";
        let known = parse(text);
        assert_eq!(known["a"], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(known["e"][7] == 255 && known.len() == 2);
    }

    #[test]
    fn keys_tell_what_matters() {
        let matrix = |address| Matrix { address, stride: 64, dtype: DType::BF16 };
        let gemm =
            Gemm { m: 3, n: 5, k: 7, x: matrix(256), w: matrix(512), bias: None, y: matrix(768), gelu: false, workspace: 0 };
        let moved = Gemm { x: matrix(1024), workspace: 99, ..gemm };
        assert_eq!(key(&gemm), key(&moved));
        for other in
            [Gemm { m: 4, ..gemm }, Gemm { gelu: true, ..gemm }, Gemm { bias: Some(1), ..gemm }, Gemm { y: matrix(8), ..gemm }]
        {
            assert_ne!(key(&gemm), key(&other));
        }
    }
}
