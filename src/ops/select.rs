//! What `select` sees of operands and says of kernels, and the requirements that several ops share.

use std::fmt;

use super::Arg;
use crate::tensor::{DType, Spec};

/// A CUDA architecture, as ten times its compute capability: 80, 89, 90.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch(pub u32);

/// What `select` sees of an operand: its spec and where its rows lie.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Element type and extents.
    pub spec: Spec,
    /// Elements between consecutive rows.
    pub row_stride: usize,
    /// Elements before the first; storages start at multiples of 256 bytes.
    pub offset: usize,
}

impl Layout {
    /// A dense operand at a storage's start.
    pub fn dense(spec: &Spec) -> Layout {
        Layout { spec: spec.clone(), row_stride: spec.shape.cols(), offset: 0 }
    }

    /// Largest power of two, at most 16, that divides the byte address of every row.
    pub fn alignment(&self) -> usize {
        let bits = ((self.offset | self.row_stride) * self.spec.dtype.bytes()) | 16;
        1 << bits.trailing_zeros()
    }
}

/// A kernel configuration: which source, with which compile-time constants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Stem of the file in `kernels/`, or `cublaslt`.
    pub source: &'static str,
    /// Constants handed to the compiler.
    pub defines: Vec<(&'static str, usize)>,
    /// Bytes of working memory that a run needs.
    pub scratch: usize,
}

impl Kernel {
    pub(super) fn new(source: &'static str, defines: Vec<(&'static str, usize)>) -> Kernel {
        Kernel { source, defines, scratch: 0 }
    }

    /// Whether it is compiled from `kernels/`, not a library's.
    pub fn is_compiled(&self) -> bool {
        self.source != "cublaslt"
    }

    /// The value of a constant.
    pub(super) fn define(&self, name: &str) -> usize {
        let found = self.defines.iter().find(|(n, _)| *n == name);
        found.unwrap_or_else(|| panic!("{self} has no constant {name}")).1
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.source)?;
        for (name, value) in &self.defines {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
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

/// Kernels number elements in 32 bits.
pub(super) fn countable(operands: &[Layout]) -> Result<(), Unsupported> {
    match operands.iter().find(|l| l.spec.shape.elements() > u32::MAX as usize) {
        Some(l) => Unsupported::new(format!("{} has 2^32 elements or more; the kernel takes fewer", l.spec)),
        None => Ok(()),
    }
}

/// A kernel that numbers elements needs them without gaps.
pub(super) fn dense(operands: &[Layout]) -> Result<(), Unsupported> {
    countable(operands)?;
    match operands.iter().find(|l| l.row_stride != l.spec.shape.cols() && l.spec.shape.rows() > 1) {
        Some(l) => {
            Unsupported::new(format!("rows of {} are {} elements apart; they must follow each other", l.spec, l.row_stride))
        }
        None => Ok(()),
    }
}

/// The selection of an op that streams whole rows: as many elements a thread as the operands' alignment allows.
pub(super) fn row_kernel(source: &'static str, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported> {
    portable(arch)?;
    countable(inputs)?;
    countable(outputs)?;
    let operands = || inputs.iter().chain(outputs).filter(|l| l.spec.shape.elements() > 1);
    let vector = operands().map(|l| (l.alignment() / l.spec.dtype.bytes()).min(largest_divisor(l.spec.shape.cols()))).min();
    let code = |ls: &[Layout]| ls.first().map_or(0, |l| l.spec.dtype.code());
    let defines = vec![("VECTOR", vector.unwrap_or(1).clamp(1, 8)), ("X_TYPE", code(inputs)), ("Y_TYPE", code(outputs))];
    Ok(Kernel::new(source, defines))
}

/// A kernel that copies leaves the element type alone.
pub(super) fn same_type(x: &Layout, y: &Layout) -> Result<(), Unsupported> {
    match x.spec.dtype == y.spec.dtype {
        true => Ok(()),
        false => Unsupported::new(format!("{} is copied to {}; both must have one type", x.spec, y.spec)),
    }
}

/// Checks the element type of an operand of which the kernel takes no other.
pub(super) fn typed(operand: &Layout, dtype: DType) -> Result<(), Unsupported> {
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
    inputs: &[Layout],
    outputs: &[Layout],
) -> Result<Kernel, Unsupported> {
    let mut kernel = row_kernel(source, arch, inputs, outputs)?;
    one_type(inputs)?;
    let (cols, vector) = (inputs[0].spec.shape.cols(), kernel.define("VECTOR"));
    let warps = cols.div_ceil(32 * 16);
    if warps > 16 {
        return Unsupported::new(format!("rows have {cols} elements; the kernel takes at most {}", 16 * 32 * 16));
    }
    kernel.defines.extend([("ROW_WARPS", warps), ("ROW_VECTORS", (cols / vector).div_ceil(32 * warps))]);
    Ok(kernel)
}

/// Refuses operands of several types where a kernel is compiled for one.
pub(super) fn one_type(operands: &[Layout]) -> Result<(), Unsupported> {
    match operands.iter().find(|l| l.spec.dtype != operands[0].spec.dtype) {
        Some(l) => Unsupported::new(format!("the operands are {} and {}; they must have one type", operands[0].spec, l.spec)),
        None => Ok(()),
    }
}

/// Refuses tables whose rows are not equally far apart: they are columns of one table, or rows alone.
pub(super) fn one_stride(tables: &[Layout]) -> Result<(), Unsupported> {
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
pub(super) fn stream_kernel(
    source: &'static str,
    arch: Arch,
    inputs: &[Layout],
    outputs: &[Layout],
) -> Result<Kernel, Unsupported> {
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
    let vectors = (y.rows() * y.cols() / kernel.define("VECTOR")) as u32;
    [vectors.div_ceil(2 * STREAM_THREADS), 1, 1]
}

/// Largest power of two that divides `n`.
pub(super) fn largest_divisor(n: usize) -> usize {
    1 << n.trailing_zeros()
}
