//! The ops a graph is made of, one file each.
//!
//! An op file reads: formula and shapes; struct; `infer`; `cost`; `select`, the only statement of what its CUDA kernel
//! requires; `reference`, the CPU arithmetic that every kernel is held against; `launch`, the kernel's grid and arguments
//! as plain data; `cases`, the shapes that tests, parity runs and benches share. Ops know nothing of graphs' storages,
//! plans or executors.

mod activation;
mod add;
mod attention;
mod case;
mod cast;
mod conv2d;
mod gate_residual;
mod gather;
mod group_norm;
mod guidance_euler;
mod layer_norm;
mod linear;
mod noise;
mod patchify;
mod pixels;
mod posterior;
mod qk_norm_rope;
mod rms_norm;
mod rope_half;
mod segment_mean;
mod step_slice;
mod swiglu;
mod timestep_embedding;

use std::fmt;
use std::fmt::Debug;

use anyhow::Result;
use half::{bf16, f16};

pub use activation::Activation;
pub use add::Add;
pub use attention::{Attention, Segment};
pub use case::Case;
use case::ONE_ROUNDING;
pub use cast::Cast;
pub use conv2d::Conv2d;
pub use gate_residual::GateResidual;
pub use gather::Gather;
pub use group_norm::GroupNorm;
pub use guidance_euler::GuidanceEuler;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use noise::{H100_GRID_THREADS, Noise, drawn_at, normal as philox_normal};
pub use patchify::{Pack, Unpack};
pub use pixels::{PixelsIn, PixelsOut};
pub use posterior::{LATENT_SCALE, LATENT_SHIFT, Posterior};
pub use qk_norm_rope::QkNormRope;
pub use rms_norm::RmsNorm;
pub use rope_half::RopeHalf;
pub use segment_mean::SegmentMean;
pub use step_slice::StepSlice;
pub use swiglu::SwiGlu;
pub use timestep_embedding::TimestepEmbedding;

use crate::cuda::Launch;
use crate::tensor::{DType, Spec};

/// Every op's cases: the one list that a new op joins.
pub fn cases() -> Vec<Case> {
    [
        activation::cases,
        add::cases,
        attention::cases,
        cast::cases,
        conv2d::cases,
        gate_residual::cases,
        gather::cases,
        group_norm::cases,
        guidance_euler::cases,
        layer_norm::cases,
        linear::cases,
        noise::cases,
        patchify::cases,
        pixels::cases,
        posterior::cases,
        qk_norm_rope::cases,
        rms_norm::cases,
        rope_half::cases,
        segment_mean::cases,
        step_slice::cases,
        swiglu::cases,
        timestep_embedding::cases,
    ]
    .iter()
    .flat_map(|cases| cases())
    .collect()
}

/// One kind of computation with its attributes.
pub trait Op: Debug + Send + Sync {
    /// The op's name, as printed graphs and messages show it. (Which kernel file computes it, [`Kernel::source`] says.)
    fn kind(&self) -> &'static str;

    /// Attributes as the printed graph shows them; empty if there are none.
    fn attributes(&self) -> String {
        String::new()
    }

    /// Shapes and natural types of the results.
    ///
    /// # Errors
    /// What about the operands does not fit.
    fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>>;

    /// Whether an output may be the very view of an input.
    fn in_place(&self) -> bool {
        false
    }

    /// Arithmetic and memory traffic of one run.
    fn cost(&self, inputs: &[Spec], outputs: &[Spec]) -> Cost;

    /// Chooses the CUDA kernel configuration for these operands.
    ///
    /// # Errors
    /// The requirement that no kernel of this op meets.
    fn select(&self, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported>;

    /// Computes in f32; the caller rounds each output to its type. Operands arrive dense, with the specs of `infer`.
    fn reference(&self, inputs: &[Operand], outputs: &mut [Output]);

    /// How a weight operand lies in device memory; all users of a weight agree on it.
    fn weight_order(&self, _input: usize) -> WeightOrder {
        WeightOrder::AsStored
    }

    /// Row numbers that the kernel reads from device memory, put there once; empty if it needs none.
    fn table(&self) -> Vec<u32> {
        vec![]
    }

    /// The device work of one run with the kernel that `select` gave, in order.
    fn launch(&self, kernel: &Kernel, args: &Args) -> Vec<Launch>;
}

/// Order of a weight's elements in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightOrder {
    /// As in the checkpoint.
    AsStored,
    /// A convolution's [O, C, K, K] as [O, K, K, C], the order of a channels-last patch.
    ChannelsLast,
}

/// An operand in device memory.
#[derive(Clone, Debug)]
pub struct Arg {
    /// Address of the view's first element.
    pub address: u64,
    /// Spec and strides.
    pub layout: Layout,
}

impl Arg {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.layout.spec.dtype
    }

    /// Product of all extents but the innermost.
    pub fn rows(&self) -> usize {
        self.layout.spec.shape.rows()
    }

    /// Innermost extent.
    pub fn cols(&self) -> usize {
        self.layout.spec.shape.cols()
    }

    /// Elements between consecutive rows, as kernels take it.
    pub fn stride(&self) -> u32 {
        self.layout.row_stride as u32
    }
}

/// Where a node's operands lie on the device.
#[derive(Clone, Debug)]
pub struct Args {
    /// Operands read.
    pub inputs: Vec<Arg>,
    /// Operands written.
    pub outputs: Vec<Arg>,
    /// Address of [`Op::table`]'s numbers.
    pub table: u64,
    /// Address of [`Kernel::scratch`] bytes that hold nothing before and after.
    pub scratch: u64,
}

/// Floating-point operations and bytes moved, the two sides of a roofline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: u64,
    /// Bytes read and written once each.
    pub bytes: u64,
}

impl Cost {
    /// The cost of an op that reads its inputs and writes its outputs once, with `flops` operations in all.
    pub fn streaming(flops: usize, inputs: &[Spec], outputs: &[Spec]) -> Cost {
        Cost { flops: flops as u64, bytes: inputs.iter().chain(outputs).map(|s| s.bytes() as u64).sum() }
    }
}

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
    fn new(source: &'static str, defines: Vec<(&'static str, usize)>) -> Kernel {
        Kernel { source, defines, scratch: 0 }
    }

    /// Whether it is compiled from `kernels/`, not a library's.
    pub fn is_compiled(&self) -> bool {
        self.source != "cublaslt"
    }

    /// The value of a constant.
    fn define(&self, name: &str) -> usize {
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
    fn new<T>(reason: impl Into<String>) -> Result<T, Unsupported> {
        Err(Unsupported { reason: reason.into() })
    }
}

/// Portable kernels start at sm_80, where bf16 arithmetic does.
fn portable(arch: Arch) -> Result<(), Unsupported> {
    if arch < Arch(80) { Unsupported::new(format!("sm_{} is below sm_80, the first with bf16", arch.0)) } else { Ok(()) }
}

/// Kernels number elements in 32 bits.
fn countable(operands: &[Layout]) -> Result<(), Unsupported> {
    match operands.iter().find(|l| l.spec.shape.elements() > u32::MAX as usize) {
        Some(l) => Unsupported::new(format!("{} has 2^32 elements or more", l.spec)),
        None => Ok(()),
    }
}

/// A kernel that numbers elements needs them without gaps.
fn dense(operands: &[Layout]) -> Result<(), Unsupported> {
    countable(operands)?;
    match operands.iter().find(|l| l.row_stride != l.spec.shape.cols() && l.spec.shape.rows() > 1) {
        Some(l) => {
            Unsupported::new(format!("rows of {} are {} elements apart; they must follow each other", l.spec, l.row_stride))
        }
        None => Ok(()),
    }
}

/// The selection of an op that streams whole rows: as many elements a thread as the operands' alignment allows.
fn row_kernel(source: &'static str, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported> {
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
fn same_type(x: &Layout, y: &Layout) -> Result<(), Unsupported> {
    match x.spec.dtype == y.spec.dtype {
        true => Ok(()),
        false => Unsupported::new(format!("a copy of {} to {}", x.spec, y.spec)),
    }
}

/// Checks the element type of an operand of which the kernel takes no other.
fn typed(operand: &Layout, dtype: DType) -> Result<(), Unsupported> {
    match operand.spec.dtype == dtype {
        true => Ok(()),
        false => Unsupported::new(format!("{} must be {dtype}", operand.spec)),
    }
}

/// Blocks of `BLOCK` threads for `n` of them.
fn blocks(n: usize) -> [u32; 3] {
    [n.div_ceil(BLOCK as usize) as u32, 1, 1]
}

/// Threads of a block where nothing asks for another number.
const BLOCK: u32 = 256;

/// The selection of an op whose blocks hold a row each in registers, about 16 elements a thread (`row.cuh`).
fn held_row_kernel(source: &'static str, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported> {
    let mut kernel = row_kernel(source, arch, inputs, outputs)?;
    one_type(inputs)?;
    let (cols, vector) = (inputs[0].spec.shape.cols(), kernel.define("VECTOR"));
    let warps = cols.div_ceil(32 * 16);
    if warps > 16 {
        return Unsupported::new(format!("rows of {cols} elements; a block holds {}", 16 * 32 * 16));
    }
    kernel.defines.extend([("ROW_WARPS", warps), ("ROW_VECTORS", (cols / vector).div_ceil(32 * warps))]);
    Ok(kernel)
}

/// Refuses operands of several types where a kernel is compiled for one.
fn one_type(operands: &[Layout]) -> Result<(), Unsupported> {
    match operands.iter().find(|l| l.spec.dtype != operands[0].spec.dtype) {
        Some(l) => Unsupported::new(format!("operands {} and {}; they must be of one type", operands[0].spec, l.spec)),
        None => Ok(()),
    }
}

/// Refuses tables whose rows are not equally far apart: they are columns of one table, or rows alone.
fn one_stride(tables: &[Layout]) -> Result<(), Unsupported> {
    let stride = tables[0].row_stride;
    match tables.iter().find(|l| l.row_stride != stride) {
        Some(l) => {
            Unsupported::new(format!("rows of tables are {stride} and {} elements apart; one distance is needed", l.row_stride))
        }
        None => Ok(()),
    }
}

/// The selection of a pointwise op (`stream.cuh`): all inputs of one type, any number of rows.
fn stream_kernel(source: &'static str, arch: Arch, inputs: &[Layout], outputs: &[Layout]) -> Result<Kernel, Unsupported> {
    let kernel = row_kernel(source, arch, inputs, outputs)?;
    one_type(inputs)?;
    match outputs[0].spec.shape.elements() {
        n if n < 1 << 32 => Ok(kernel),
        n => Unsupported::new(format!("{n} elements; the kernel counts them in 32 bits")),
    }
}

/// Threads of a pointwise kernel's block.
const STREAM_THREADS: u32 = 256;

/// The grid of a pointwise kernel over `y`: a thread takes two vectors.
fn stream_grid(kernel: &Kernel, y: &Arg) -> [u32; 3] {
    let vectors = (y.rows() * y.cols() / kernel.define("VECTOR")) as u32;
    [vectors.div_ceil(2 * STREAM_THREADS), 1, 1]
}

/// Largest power of two that divides `n`.
fn largest_divisor(n: usize) -> usize {
    1 << n.trailing_zeros()
}

/// Values of an operand, dense.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Float types, widened.
    F32(&'a [f32]),
    /// Indices.
    I32(&'a [i32]),
    /// Pixels.
    U8(&'a [u8]),
}

/// An input of the reference arithmetic.
#[derive(Clone, Debug)]
pub struct Operand<'a> {
    /// Type and shape in the graph; the values are already rounded to it.
    pub spec: Spec,
    /// The values.
    pub values: Values<'a>,
}

impl<'a> Operand<'a> {
    /// Float values.
    pub fn f32(&self) -> &'a [f32] {
        match self.values {
            Values::F32(v) => v,
            _ => panic!("{} is not a float tensor", self.spec),
        }
    }

    /// Index values.
    pub fn i32(&self) -> &'a [i32] {
        match self.values {
            Values::I32(v) => v,
            _ => panic!("{} is not an index tensor", self.spec),
        }
    }

    /// Pixel values.
    pub fn u8(&self) -> &'a [u8] {
        match self.values {
            Values::U8(v) => v,
            _ => panic!("{} is not a pixel tensor", self.spec),
        }
    }

    /// Extent of the innermost dimension.
    pub fn cols(&self) -> usize {
        self.spec.shape.cols()
    }

    /// Product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.spec.shape.rows()
    }
}

/// Result values before rounding.
#[derive(Clone, Debug, PartialEq)]
pub enum Buffer {
    /// Float types.
    F32(Vec<f32>),
    /// Indices.
    I32(Vec<i32>),
    /// Pixels.
    U8(Vec<u8>),
}

impl Buffer {
    /// The values, borrowed.
    pub fn values(&self) -> Values<'_> {
        match self {
            Buffer::F32(v) => Values::F32(v),
            Buffer::I32(v) => Values::I32(v),
            Buffer::U8(v) => Values::U8(v),
        }
    }
}

/// An output of the reference arithmetic.
#[derive(Clone, Debug)]
pub struct Output {
    /// Type and shape in the graph.
    pub spec: Spec,
    /// Zeros at the start, the results at the end.
    pub values: Buffer,
}

impl Output {
    /// Zeros of this spec.
    pub fn zeros(spec: Spec) -> Output {
        let n = spec.shape.elements();
        let values = match spec.dtype {
            DType::I32 => Buffer::I32(vec![0; n]),
            DType::U8 => Buffer::U8(vec![0; n]),
            _ => Buffer::F32(vec![0.0; n]),
        };
        Output { spec, values }
    }

    /// Float results.
    pub fn f32(&mut self) -> &mut [f32] {
        match &mut self.values {
            Buffer::F32(v) => v,
            _ => panic!("{} is not a float tensor", self.spec),
        }
    }

    /// Index results.
    pub fn i32(&mut self) -> &mut [i32] {
        match &mut self.values {
            Buffer::I32(v) => v,
            _ => panic!("{} is not an index tensor", self.spec),
        }
    }

    /// Pixel results.
    pub fn u8(&mut self) -> &mut [u8] {
        match &mut self.values {
            Buffer::U8(v) => v,
            _ => panic!("{} is not a pixel tensor", self.spec),
        }
    }

    /// Extent of the innermost dimension.
    pub fn cols(&self) -> usize {
        self.spec.shape.cols()
    }
}

/// `v` as a tensor of `dtype` would hold it.
#[inline]
pub fn round(dtype: DType, v: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(v).to_f32(),
        DType::F16 => f16::from_f32(v).to_f32(),
        _ => v,
    }
}

/// The row of a per-branch table that each row of a stream uses. The stream repeats a period of runs (rows, branch), once
/// a step; the table has one row a step and branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchRows(pub Vec<(usize, usize)>);

impl BranchRows {
    /// One run for each branch, in order.
    pub fn of(rows: &[usize]) -> BranchRows {
        BranchRows(rows.iter().copied().enumerate().map(|(branch, rows)| (rows, branch)).collect())
    }

    /// These runs, then those of `other`.
    pub fn then(&self, other: &BranchRows) -> BranchRows {
        BranchRows([&self.0[..], &other.0].concat())
    }

    /// Rows of one period.
    pub fn period(&self) -> usize {
        self.0.iter().map(|(rows, _)| rows).sum()
    }

    /// Number of branches.
    pub fn branches(&self) -> usize {
        self.0.iter().map(|(_, branch)| branch + 1).max().unwrap_or(0)
    }

    /// Table row for stream row `row`.
    pub fn table_row(&self, row: usize) -> usize {
        let (step, mut within) = (row / self.period(), row % self.period());
        for &(rows, branch) in &self.0 {
            if within < rows {
                return step * self.branches() + branch;
            }
            within -= rows;
        }
        unreachable!("a remainder is less than the period")
    }

    /// Checks that a stream of `rows` rows and a table of `table` rows fit together.
    fn check(&self, rows: usize, table: usize) -> Result<()> {
        let steps = rows / self.period();
        anyhow::ensure!(
            rows == steps * self.period() && table == steps * self.branches(),
            "{rows} rows in periods of {self} need {} table rows, there are {table}",
            steps * self.branches()
        );
        Ok(())
    }
}

/// [`BranchRows`] as kernels take them (`branches.cuh`).
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
struct BranchParams {
    period: u32,
    branches: u32,
    ends: [u32; BranchRows::MOST_RUNS],
    branch: [u32; BranchRows::MOST_RUNS],
}

impl BranchRows {
    /// Runs that a kernel takes.
    const MOST_RUNS: usize = 6;

    /// Refuses what [`BranchRows::params`] cannot hold.
    fn fits(&self) -> Result<(), Unsupported> {
        match self.0.len() {
            n if n <= BranchRows::MOST_RUNS => Ok(()),
            n => Unsupported::new(format!("{n} runs of rows; kernels take {}", BranchRows::MOST_RUNS)),
        }
    }

    fn params(&self) -> BranchParams {
        let period = self.period() as u32;
        let (mut ends, mut branch) = ([period; BranchRows::MOST_RUNS], [0; BranchRows::MOST_RUNS]);
        let mut end = 0;
        for (i, &(rows, b)) in self.0.iter().enumerate() {
            end += rows as u32;
            (ends[i], branch[i]) = (end, b as u32);
        }
        BranchParams { period, branches: self.branches() as u32, ends, branch }
    }
}

impl fmt::Display for BranchRows {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let runs: Vec<String> = self.0.iter().map(|(rows, branch)| format!("{rows}:{branch}")).collect();
        f.write_str(&runs.join(" "))
    }
}

#[cfg(test)]
mod tests;
