//! Matrix products through cuBLASLt.
//!
//! cuBLASLt thinks in columns: a row-major y[m, n] is its D [n, m], so w is its A (transposed) and x its B. For a product it
//! suggests algorithms, the one that it takes for the fastest first. Which of them computes depends on device, library and
//! product alone, never on a time that is measured as the program runs: equal machines give equal bytes.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cudarc::cublaslt::{result, sys};

use super::algorithms::{Configuration, choose};
use super::device::{Device, Stream};
use super::fault::OutOfMemory;
use super::launch::Gemm;
use super::library::{Setup, load_cublaslt};
use super::matmul::{Description, Preference, failed};
use crate::error::ResourceError;

/// Suggestions that are asked for: how many is a part of the question, so it may change the first one.
const SUGGESTIONS: usize = 8;

/// cuBLASLt on one device with the algorithms chosen so far.
#[derive(Debug)]
pub struct Gemms {
    device: Arc<Device>,
    handle: sys::cublasLtHandle_t,
    /// Of the library.
    pub(super) version: usize,
    chosen: HashMap<String, Algorithm>,
}

// SAFETY: a handle of cuBLASLt may be used from any thread.
unsafe impl Send for Gemms {}

/// An algorithm of cuBLASLt, with all that its library has to know of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Algorithm(sys::cublasLtMatmulAlgo_t);

/// A product ready to run.
#[derive(Debug)]
pub struct Product {
    gemm: Gemm,
    description: Description,
    algorithm: Algorithm,
}

impl Gemms {
    /// Opens the library.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: cuBLASLt is not found, or it does not start.
    pub fn new(device: &Arc<Device>, setup: &Setup) -> Result<Gemms> {
        load_cublaslt(&setup.libraries)?;
        let handle = result::create_handle().map_err(|e| match failed("start")(e) {
            full if OutOfMemory::is_in(&full) => full,
            other => ResourceError(other.to_string()).into(),
        })?;
        // SAFETY: takes nothing.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(Gemms { device: device.clone(), handle, version, chosen: HashMap::new() })
    }

    /// Makes a product ready.
    ///
    /// # Errors
    /// A product that cuBLASLt cannot do.
    pub fn prepare(&mut self, gemm: &Gemm) -> Result<Product> {
        let describe = || format!("cannot prepare the matrix product {gemm}");
        let description = Description::new(gemm).with_context(describe)?;
        let algorithm = match self.chosen.get(&gemm.to_string()) {
            Some(&algorithm) => algorithm,
            None => {
                let (suggestions, chosen) = self.suggestions(gemm, &description).with_context(describe)?;
                *self.chosen.entry(gemm.to_string()).or_insert(suggestions[chosen])
            }
        };
        Ok(Product { gemm: *gemm, description, algorithm })
    }

    /// A product ready to run by each algorithm that is suggested for it, with its configuration, the library's favourite first;
    /// and the number of the one that computes it in an edit.
    pub(super) fn prepare_all(&self, gemm: &Gemm) -> Result<(Vec<(Configuration, Product)>, usize)> {
        let (suggestions, chosen) = self.suggestions(gemm, &Description::new(gemm)?)?;
        let product = |algorithm: Algorithm| {
            Ok((algorithm.configuration(), Product { gemm: *gemm, description: Description::new(gemm)?, algorithm }))
        };
        Ok((suggestions.into_iter().map(product).collect::<Result<_>>()?, chosen))
    }

    /// Runs a product.
    ///
    /// # Errors
    /// What cuBLASLt reports.
    ///
    /// # Safety
    /// The product's addresses are valid, and nothing else writes to its operands at that point of the stream.
    pub unsafe fn run(&self, product: &Product, stream: &Stream) -> Result<()> {
        let Product { gemm, description, algorithm } = product;
        let (one, zero) = (1f32, 0f32);
        let [w, x, y] = description.layouts();
        // SAFETY: descriptors live in `product`; the addresses are asked of the caller.
        let ran = unsafe {
            result::matmul(
                self.handle,
                description.operation(),
                (&raw const one).cast(),
                (&raw const zero).cast(),
                gemm.w.address as *const c_void,
                w,
                gemm.x.address as *const c_void,
                x,
                gemm.y.address as *const c_void,
                y,
                gemm.y.address as *mut c_void,
                y,
                &raw const algorithm.0,
                gemm.workspace as *mut c_void,
                Gemm::WORKSPACE,
                stream.handle.cast(),
            )
        };
        ran.map_err(failed("run a product"))
    }

    /// What the library suggests, its favourite first, and the number of the one that computes the product.
    fn suggestions(&self, gemm: &Gemm, description: &Description) -> Result<(Vec<Algorithm>, usize)> {
        let preference = Preference::new(gemm)?;
        let [w, x, y] = description.layouts();
        // SAFETY: all zeros is a value of this plain struct.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; SUGGESTIONS] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: descriptors live in `description`; `found` has room for as many as are asked for.
        let asked = unsafe {
            let (operation, wanted) = (description.operation(), preference.handle());
            let (most, place) = (SUGGESTIONS as i32, found.as_mut_ptr());
            sys::cublasLtMatmulAlgoGetHeuristic(self.handle, operation, w, x, y, y, wanted, most, place, &mut count)
        };
        asked.result().map_err(failed("suggest an algorithm"))?;
        let taken = found[..count as usize].iter().filter(|f| f.state.result().is_ok());
        let suggested: Vec<Algorithm> = taken.map(|f| Algorithm(f.algo)).collect();
        ensure!(!suggested.is_empty(), "cuBLASLt has no algorithm for it");
        let configurations: Vec<Configuration> = suggested.iter().map(Algorithm::configuration).collect();
        let chosen = choose(&self.device.name, self.version, gemm, &configurations);
        Ok((suggested, chosen))
    }
}

impl Drop for Gemms {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Algorithm {
    pub(super) fn configuration(&self) -> Configuration {
        use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
        const ATTRIBUTES: [(Attribute, usize); 9] = [
            (Attribute::CUBLASLT_ALGO_CONFIG_ID, 4),
            (Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID, 4),
            (Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID, 4),
            (Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 4),
            (Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 4),
            (Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, 4),
            (Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, 4),
            (Attribute::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, 2),
            (Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 2),
        ];
        ATTRIBUTES.map(|(attribute, size)| {
            let (mut value, mut written) = (0u32, 0);
            let place = (&raw mut value).cast();
            // SAFETY: `value` has room for the attribute's size; what an algorithm does not know of stays zero.
            let _ = unsafe { sys::cublasLtMatmulAlgoConfigGetAttribute(&self.0, attribute, place, size, &mut written) };
            value
        })
    }
}
