//! What `select` sees of operands and says of kernels, and the requirements that several ops share.

use std::fmt;

use super::{Arg, Args};
use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// A CUDA architecture, as ten times its compute capability: 80, 89, 90.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch(pub u32);

/// What `select` sees of an operand: its spec and where its rows lie.
#[derive(Clone, Debug)]
pub struct View {
    /// Element type and extents.
    pub spec: Spec,
    /// Elements between consecutive rows.
    pub row_stride: usize,
    /// Elements before the first; storages start at multiples of 256 bytes.
    pub offset: usize,
}

impl View {
    /// A dense operand at a storage's start.
    pub fn dense(spec: &Spec) -> View {
        View { spec: spec.clone(), row_stride: spec.shape.cols(), offset: 0 }
    }

    /// Largest power of two, at most 16, that divides the byte address of every row.
    pub fn alignment(&self) -> usize {
        let bits = ((self.offset | self.row_stride) * self.spec.dtype.bytes()) | 16;
        1 << bits.trailing_zeros()
    }
}

/// What computes a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Where it comes from.
    pub how: How,
    /// Bytes of working memory that a run needs.
    pub scratch: usize,
    /// Which of its op's variants it is, in the order in which they were asked.
    pub(super) variant: usize,
    /// What its launch needs to know of the constants.
    pub(super) block: Block,
}

/// Where a kernel comes from, with all that was decided about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It is compiled from a source of our own.
    Compiled {
        /// Stem of the file in `kernels/`.
        source: &'static str,
        /// Constants handed to the compiler.
        defines: Vec<(&'static str, usize)>,
    },
    /// It is a product of cuBLASLt.
    Product(ProductConfig),
}

/// What tells one product of cuBLASLt from another, beside shapes and types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductConfig {
    /// A bias is added to every row.
    pub bias: bool,
    /// The tanh form of GELU is applied at the end.
    pub gelu: bool,
    /// Bytes at whose multiples the operands' rows start; at most 16.
    pub alignment: usize,
}

/// A block of a compiled kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Elements that a thread reads or writes at a time.
    pub(super) vector: usize,
    /// Rows, channels or queries of its results, as the kernel counts them.
    pub(super) tile: usize,
    pub(super) threads: u32,
    /// Dynamic shared memory, in bytes.
    pub(super) shared_bytes: u32,
}

impl Block {
    /// Of a kernel that numbers elements.
    pub(super) const USUAL: Block = Block { vector: 1, tile: 1, threads: BLOCK, shared_bytes: 0 };
}

impl Kernel {
    /// A source of our own, with the usual block.
    pub(super) fn new(source: &'static str, defines: impl Into<Vec<(&'static str, usize)>>) -> Kernel {
        let how = How::Compiled { source, defines: defines.into() };
        Kernel { how, scratch: 0, variant: 0, block: Block::USUAL }
    }

    /// A product of cuBLASLt.
    pub(super) fn product(config: ProductConfig, scratch: usize) -> Kernel {
        Kernel { how: How::Product(config), scratch, variant: 0, block: Block::USUAL }
    }

    /// The same with more constants.
    pub(super) fn with(mut self, more: impl IntoIterator<Item = (&'static str, usize)>) -> Kernel {
        if let How::Compiled { defines, .. } = &mut self.how {
            defines.extend(more);
        }
        self
    }

    /// Stem of its source and the compiler's constants; none of a library's kernel.
    pub fn compiled(&self) -> Option<(&'static str, &[(&'static str, usize)])> {
        match &self.how {
            How::Compiled { source, defines } => Some((source, defines)),
            How::Product(_) => None,
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.how {
            How::Compiled { source, defines } => {
                f.write_str(source)?;
                defines.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
            }
            How::Product(ProductConfig { bias, gelu, alignment }) => {
                write!(f, "cublaslt BIAS={} GELU={} ALIGN={alignment}", *bias as usize, *gelu as usize)
            }
        }
    }
}

/// Whether a variant takes an op's operands and results, and in which configuration.
type Fits<O> = fn(&O, Arch, &[View], &[View]) -> Result<Kernel, Unsupported>;

/// One of several kernels of an op.
pub(super) struct Variant<O> {
    /// What it requires of the operands, and the configuration for them.
    pub(super) fits: Fits<O>,
    /// Its launch.
    pub(super) launch: fn(&O, &Kernel, &Args) -> Launch,
}

/// The first variant that takes the operands. If none does, the last one, which asks least, says why.
pub(super) fn first_fit<O>(
    variants: &[Variant<O>],
    op: &O,
    arch: Arch,
    inputs: &[View],
    outputs: &[View],
) -> Result<Kernel, Unsupported> {
    let mut refused = Unsupported::new("there is no kernel");
    for (variant, asked) in variants.iter().enumerate() {
        match (asked.fits)(op, arch, inputs, outputs) {
            Ok(kernel) => return Ok(Kernel { variant, ..kernel }),
            Err(reason) => refused = Err(reason),
        }
    }
    refused
}

/// Why no kernel takes the operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The requirement, with what was found instead.
    pub reason: String,
}

impl Unsupported {
    pub(super) fn new<T>(reason: impl Into<String>) -> Result<T, Unsupported> {
        Err(Unsupported { reason: reason.into() })
    }
}

/// Portable kernels start at sm_80, where bf16 arithmetic does.
pub(super) fn portable(arch: Arch) -> Result<(), Unsupported> {
    if arch < Arch(80) { Unsupported::new(format!("the GPU is sm_{}; the kernel needs sm_80 or higher", arch.0)) } else { Ok(()) }
}

/// The number by which kernels know an element type.
pub(super) fn code(dtype: DType) -> Result<usize, Unsupported> {
    dtype.code().ok_or_else(|| Unsupported { reason: format!("no kernel takes {dtype}") })
}

/// Kernels number elements in 32 bits.
pub(super) fn countable(operands: &[View]) -> Result<(), Unsupported> {
    match operands.iter().find(|l| l.spec.shape.elements() > u32::MAX as usize) {
        Some(l) => Unsupported::new(format!("{} has 2^32 elements or more; the kernel takes fewer", l.spec)),
        None => Ok(()),
    }
}

/// A kernel that numbers elements needs them without gaps.
pub(super) fn dense(operands: &[View]) -> Result<(), Unsupported> {
    countable(operands)?;
    match operands.iter().find(|l| l.row_stride != l.spec.shape.cols() && l.spec.shape.rows() > 1) {
        Some(l) => {
            Unsupported::new(format!("rows of {} are {} elements apart; they must follow each other", l.spec, l.row_stride))
        }
        None => Ok(()),
    }
}

/// The selection of an op that streams whole rows: as many elements a thread as the operands' alignment allows.
pub(super) fn row_kernel(source: &'static str, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
    portable(arch)?;
    countable(inputs)?;
    countable(outputs)?;
    let operands = || inputs.iter().chain(outputs).filter(|l| l.spec.shape.elements() > 1);
    let vector = operands().map(|l| (l.alignment() / l.spec.dtype.bytes()).min(largest_divisor(l.spec.shape.cols()))).min();
    let vector = vector.unwrap_or(1).clamp(1, 8);
    let code = |views: &[View]| views.first().map_or(Ok(0), |view| code(view.spec.dtype));
    let kernel = Kernel::new(source, [("VECTOR", vector), ("X_TYPE", code(inputs)?), ("Y_TYPE", code(outputs)?)]);
    Ok(Kernel { block: Block { vector, ..kernel.block }, ..kernel })
}

/// A kernel that copies leaves the element type alone.
pub(super) fn same_type(x: &View, y: &View) -> Result<(), Unsupported> {
    match x.spec.dtype == y.spec.dtype {
        true => Ok(()),
        false => Unsupported::new(format!("{} is copied to {}; both must have one type", x.spec, y.spec)),
    }
}

/// Checks the element type of an operand of which the kernel takes no other.
pub(super) fn typed(operand: &View, dtype: DType) -> Result<(), Unsupported> {
    match operand.spec.dtype == dtype {
        true => Ok(()),
        false => Unsupported::new(format!("{} must be {dtype}", operand.spec)),
    }
}

/// Blocks of `BLOCK` threads for `n` of them.
pub(super) fn blocks(n: usize) -> [u32; 3] {
    [n.div_ceil(BLOCK as usize) as u32, 1, 1]
}

/// Threads of a block where nothing asks for another number.
pub(super) const BLOCK: u32 = 256;

/// The selection of an op whose blocks hold a row each in registers, about 16 elements a thread (`row.cuh`).
pub(super) fn held_row_kernel(
    source: &'static str,
    arch: Arch,
    inputs: &[View],
    outputs: &[View],
) -> Result<Kernel, Unsupported> {
    let kernel = row_kernel(source, arch, inputs, outputs)?;
    one_type(inputs)?;
    let (cols, vector) = (inputs[0].spec.shape.cols(), kernel.block.vector);
    let warps = cols.div_ceil(32 * 16);
    if warps > 16 {
        return Unsupported::new(format!("rows have {cols} elements; the kernel takes at most {}", 16 * 32 * 16));
    }
    let kernel = Kernel { block: Block { threads: 32 * warps as u32, ..kernel.block }, ..kernel };
    Ok(kernel.with([("ROW_WARPS", warps), ("ROW_VECTORS", (cols / vector).div_ceil(32 * warps))]))
}

/// Refuses operands of several types where a kernel is compiled for one.
pub(super) fn one_type(operands: &[View]) -> Result<(), Unsupported> {
    match operands.iter().find(|l| l.spec.dtype != operands[0].spec.dtype) {
        Some(l) => Unsupported::new(format!("the operands are {} and {}; they must have one type", operands[0].spec, l.spec)),
        None => Ok(()),
    }
}

/// Refuses tables whose rows are not equally far apart: they are columns of one table, or rows alone.
pub(super) fn one_stride(tables: &[View]) -> Result<(), Unsupported> {
    let stride = tables[0].row_stride;
    match tables.iter().find(|l| l.row_stride != stride) {
        Some(l) => Unsupported::new(format!(
            "rows of tables are {stride} and {} elements apart; they must be equally far apart",
            l.row_stride
        )),
        None => Ok(()),
    }
}

/// The selection of a pointwise op (`stream.cuh`): all inputs of one type, any number of rows.
pub(super) fn stream_kernel(source: &'static str, arch: Arch, inputs: &[View], outputs: &[View]) -> Result<Kernel, Unsupported> {
    let kernel = row_kernel(source, arch, inputs, outputs)?;
    one_type(inputs)?;
    match outputs[0].spec.shape.elements() {
        n if n < 1 << 32 => Ok(kernel),
        n => Unsupported::new(format!("the result has {n} elements; the kernel takes fewer than 2^32")),
    }
}

/// Threads of a pointwise kernel's block.
pub(super) const STREAM_THREADS: u32 = 256;

/// The grid of a pointwise kernel over `y`: a thread takes two vectors.
pub(super) fn stream_grid(kernel: &Kernel, y: &Arg) -> [u32; 3] {
    let vectors = (y.rows() * y.cols() / kernel.block.vector) as u32;
    [vectors.div_ceil(2 * STREAM_THREADS), 1, 1]
}

/// Largest power of two that divides `n`.
pub(super) fn largest_divisor(n: usize) -> usize {
    1 << n.trailing_zeros()
}
