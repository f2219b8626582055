//! What an op asks of the device, as plain data: addresses are known before a stage runs, so a launch is made once and
//! replayed as it is.

use std::fmt;

use crate::tensor::DType;

/// One piece of work for a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Launch {
    /// A kernel of the source that `select` chose.
    Kernel(KernelLaunch),
    /// A matrix product through cuBLASLt.
    Gemm(Gemm),
    /// Bytes set to zero.
    Zero {
        /// First byte.
        address: u64,
        /// How many.
        bytes: usize,
    },
}

/// A kernel with its grid and its parameter struct.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelLaunch {
    /// The `extern "C"` function of the source.
    pub entry: &'static str,
    /// Blocks; of a persistent kernel, the most that have work.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Blocks stay and take work after work: no more are launched than there are multiprocessors.
    pub persistent: bool,
    /// Blocks of a cluster, of which whole ones are launched; 1: there are none.
    pub cluster: u32,
    /// The first members of the argument, which the driver encodes.
    pub maps: Vec<TensorMap>,
    /// The one argument, by value; without the maps.
    pub params: Vec<u8>,
}

/// What the tensor memory accelerator copies boxes of: a matrix or a picture of elements of 16 or 8 bits, the innermost extent first. In
/// shared memory a row of a box takes 128 bytes, whose 16-byte chunks are swapped by the row number modulo 8. What a box has outside
/// comes as zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorMap {
    /// Bytes of an element: 2 or 1.
    pub element: u32,
    /// First element; a multiple of 16.
    pub address: u64,
    /// 2: the last extents and strides are not used.
    pub rank: u32,
    /// Elements; a map with a 0 is never used.
    pub extents: [u32; 3],
    /// Bytes from one row to the next, from one plane to the next; multiples of 16.
    pub stride_bytes: [u64; 2],
    /// Of a box, steps included: at most 256, the innermost one at most 128 bytes.
    pub box_extents: [u32; 3],
    /// A box takes every element, or every second.
    pub steps: [u32; 3],
}

impl TensorMap {
    /// Size of an encoded map.
    pub const BYTES: usize = 128;

    /// Of a row-major matrix of bytes.
    pub fn bytes(address: u64, extents: [u32; 2], stride_bytes: u64, box_extents: [u32; 2]) -> TensorMap {
        TensorMap { element: 1, ..TensorMap::matrix(address, extents, stride_bytes, box_extents) }
    }

    /// Of a row-major matrix of 16-bit elements.
    pub fn matrix(address: u64, [columns, rows]: [u32; 2], stride_bytes: u64, [box_columns, box_rows]: [u32; 2]) -> TensorMap {
        let (extents, box_extents) = ([columns, rows, 1], [box_columns, box_rows, 1]);
        TensorMap { element: 2, address, rank: 2, extents, stride_bytes: [stride_bytes, 0], box_extents, steps: [1; 3] }
    }

    /// Of a picture [height, width, channels] without gaps; `step`: every how many rows and columns a box takes.
    pub fn picture(address: u64, [height, width, channels]: [u32; 3], box_extents: [u32; 3], step: u32) -> TensorMap {
        let stride = 2 * channels as u64;
        let (extents, stride_bytes) = ([channels, width, height], [stride, stride * width as u64]);
        TensorMap { element: 2, address, rank: 3, extents, stride_bytes, box_extents, steps: [1, step, step] }
    }
}

impl Launch {
    /// A kernel whose one argument is `params`.
    pub fn kernel(
        entry: &'static str,
        grid: [u32; 3],
        block: u32,
        shared_bytes: u32,
        params: &impl bytemuck::NoUninit,
    ) -> Launch {
        let params = bytemuck::bytes_of(params).to_vec();
        Launch::Kernel(KernelLaunch { entry, grid, block, shared_bytes, persistent: false, cluster: 1, maps: vec![], params })
    }

    /// A kernel whose blocks share out the work of `blocks` among themselves, and whose one argument is `maps`, then `params`.
    pub fn persistent(
        entry: &'static str,
        blocks: u32,
        block: u32,
        shared_bytes: u32,
        maps: Vec<TensorMap>,
        params: &impl bytemuck::NoUninit,
    ) -> Launch {
        Launch::clusters(entry, 1, blocks, block, shared_bytes, maps, params)
    }

    /// The same in clusters of so many blocks, as the kernel's source says; `blocks` is a multiple of it.
    pub fn clusters(
        entry: &'static str,
        cluster: u32,
        blocks: u32,
        block: u32,
        shared_bytes: u32,
        maps: Vec<TensorMap>,
        params: &impl bytemuck::NoUninit,
    ) -> Launch {
        let (grid, params) = ([blocks, 1, 1], bytemuck::bytes_of(params).to_vec());
        Launch::Kernel(KernelLaunch { entry, grid, block, shared_bytes, persistent: true, cluster, maps, params })
    }
}

/// A row-major matrix in device memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix {
    /// First element.
    pub address: u64,
    /// Elements between the starts of rows.
    pub stride: usize,
    /// Element type.
    pub dtype: DType,
}

impl Matrix {
    /// Largest power of two up to 256 that divides its address.
    pub fn alignment(&self) -> u32 {
        1 << (self.address | 256).trailing_zeros()
    }
}

/// `y[m, n] = act(x[m, k] · w[n, k]ᵀ + bias[n])`, accumulated in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of x and y.
    pub m: usize,
    /// Columns of y, rows of w.
    pub n: usize,
    /// Columns of x and w.
    pub k: usize,
    /// Left operand.
    pub x: Matrix,
    /// Right operand, transposed.
    pub w: Matrix,
    /// Added to every row; of y's type.
    pub bias: Option<u64>,
    /// Result.
    pub y: Matrix,
    /// Apply the tanh form of GELU.
    pub gelu: bool,
    /// Working memory of [`Gemm::WORKSPACE`] bytes.
    pub workspace: u64,
}

impl Gemm {
    /// Bytes of working memory; what NVIDIA recommends for Hopper.
    pub const WORKSPACE: usize = 32 << 20;
}

impl fmt::Display for Gemm {
    /// What the choice of an algorithm depends on: extents, then type, row stride and alignment of each operand, and what
    /// is done with the sum. Addresses are not told.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}x{}x{}", self.m, self.n, self.k)?;
        for matrix in [&self.x, &self.w, &self.y] {
            write!(f, " {}/{}@{}", matrix.dtype, matrix.stride, matrix.alignment())?;
        }
        f.write_str(match (self.bias, self.gelu) {
            (None, false) => "",
            (Some(_), false) => " bias",
            (None, true) => " gelu",
            (Some(_), true) => " bias gelu",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_tells_what_its_algorithm_depends_on() {
        let matrix = |address| Matrix { address, stride: 64, dtype: DType::BF16 };
        let gemm =
            Gemm { m: 3, n: 5, k: 7, x: matrix(256), w: matrix(512), bias: None, y: matrix(768), gelu: false, workspace: 0 };
        let moved = Gemm { x: matrix(1024), workspace: 99, ..gemm };
        assert_eq!(gemm.to_string(), moved.to_string());
        for other in
            [Gemm { m: 4, ..gemm }, Gemm { gelu: true, ..gemm }, Gemm { bias: Some(1), ..gemm }, Gemm { y: matrix(8), ..gemm }]
        {
            assert_ne!(gemm.to_string(), other.to_string());
        }
    }
}
