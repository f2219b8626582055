//! A product as cuBLASLt is told of it: handles that are destroyed when dropped.

use anyhow::{Result, ensure};
use cudarc::cublaslt::{result, sys};
use sys::cublasComputeType_t as Compute;
use sys::cublasLtMatmulDescAttributes_t as Attribute;
use sys::cublasLtMatmulPreferenceAttributes_t as Wanted;
use sys::cudaDataType as DataType;

use super::fault::OutOfMemory;
use super::launch::{Gemm, Matrix};
use crate::tensor::DType;

/// Of the ways to add up a product that is split along k, `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE` alone: the others round
/// every partial sum to the result's type.
const SUMS_IN_F32: u32 = 2;
/// Bytes that the library's kernels may need.
const KERNELS: usize = 32 << 20;
/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;

/// What a product is: its operation and the layouts of its three matrices.
#[derive(Debug)]
pub(super) struct Description {
    operation: Operation,
    layouts: [Layout; 3],
}

// SAFETY: descriptors are plain data; whoever has one is alone with it.
unsafe impl Send for Description {}

impl Description {
    /// # Errors
    /// Operands of two types, or of one that cuBLASLt does not multiply.
    pub(super) fn new(gemm: &Gemm) -> Result<Description> {
        ensure!(gemm.x.dtype == gemm.w.dtype, "the operands of a matrix product must have one type");
        let layout = |m: &Matrix, rows: usize, cols: usize| Layout::new(data_type(m.dtype)?, cols, rows, m.stride);
        let layouts = [layout(&gemm.w, gemm.n, gemm.k)?, layout(&gemm.x, gemm.m, gemm.k)?, layout(&gemm.y, gemm.m, gemm.n)?];
        Ok(Description { operation: Operation::new(gemm)?, layouts })
    }

    pub(super) fn operation(&self) -> sys::cublasLtMatmulDesc_t {
        self.operation.0
    }

    /// Of w, x and y.
    pub(super) fn layouts(&self) -> [sys::cublasLtMatrixLayout_t; 3] {
        [&self.layouts[0], &self.layouts[1], &self.layouts[2]].map(|layout| layout.0)
    }
}

/// An error of cuBLASLt with what was tried. It loads kernels late, and does not always say that there was no room for them.
pub(super) fn failed(doing: &'static str) -> impl Fn(result::CublasError) -> anyhow::Error {
    move |e| {
        let full = || cudarc::driver::result::mem_get_info().is_ok_and(|(free, _)| free < KERNELS);
        match e.0 == sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED || full() {
            true => OutOfMemory::of("cuBLASLt", doing, &format!("{:?}", e.0)),
            false => anyhow::anyhow!("cuBLASLt cannot {doing}: {:?}", e.0),
        }
    }
}

fn data_type(dtype: DType) -> Result<DataType> {
    Ok(match dtype {
        DType::F32 => DataType::CUDA_R_32F,
        DType::BF16 => DataType::CUDA_R_16BF,
        DType::F16 => DataType::CUDA_R_16F,
        other => anyhow::bail!("a matrix product takes bf16, f16 or f32, not {other}"),
    })
}

#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: DataType, rows: usize, cols: usize, stride: usize) -> Result<Layout> {
        let made = result::create_matrix_layout(dtype, rows as u64, cols as u64, stride as i64);
        Ok(Layout(made.map_err(failed("describe a matrix"))?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

#[derive(Debug)]
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new(gemm: &Gemm) -> Result<Operation> {
        // f32 operands are rounded to TF32 as they are read.
        let compute = match gemm.x.dtype {
            DType::F32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        let made = result::create_matmul_desc(compute, DataType::CUDA_R_32F);
        let operation = Operation(made.map_err(failed("describe a product"))?);
        use sys::cublasLtEpilogue_t as Epilogue;
        let epilogue = match (gemm.bias, gemm.gelu) {
            (Some(_), true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
            (None, true) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (Some(_), false) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (None, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
        };
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        if let Some(bias) = gemm.bias {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(gemm.y.dtype)?)?;
        }
        Ok(operation)
    }

    fn set<T: Copy>(&self, attribute: Attribute, value: T) -> Result<()> {
        let place: *const T = &value;
        // SAFETY: the value is read during the call, with its own size.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, place.cast(), size_of::<T>()) }
            .map_err(failed("describe a product"))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What an algorithm for a product may take.
pub(super) struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    pub(super) fn new(gemm: &Gemm) -> Result<Preference> {
        let wanted = Preference(result::create_matmul_pref().map_err(failed("take a preference"))?);
        wanted.set(Wanted::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, Gemm::WORKSPACE)?;
        wanted.set(Wanted::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, SUMS_IN_F32)?;
        wanted.set(Wanted::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, gemm.w.alignment())?;
        wanted.set(Wanted::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, gemm.x.alignment())?;
        wanted.set(Wanted::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, gemm.y.alignment())?;
        wanted.set(Wanted::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, gemm.y.alignment())?;
        Ok(wanted)
    }

    pub(super) fn handle(&self) -> sys::cublasLtMatmulPreference_t {
        self.0
    }

    fn set<T: Copy>(&self, attribute: Wanted, value: T) -> Result<()> {
        let place: *const T = &value;
        // SAFETY: the value is read during the call, with its own size.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, place.cast(), size_of::<T>()) }
            .map_err(failed("take a preference"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
