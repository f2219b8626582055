//! The CPU executor: the planned nodes one by one, in f32, each output rounded to its type.
//!
//! Activations live in one arena at the plan's offsets, so a wrong plan gives wrong results here too; the arena starts
//! as NaN. Weights are widened from the mapped file when a node needs them, and forgotten.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::graph::{Kind, Node, Tensor, TensorId};
use crate::ops::{Buffer, Operand, Output, Values, round};
use crate::plan::{Plan, Precision};
use crate::tensor::{Component, DType};
use crate::weights::{WeightSource, decode_f32};

/// Called after each node with the executor, for progress, interruption and golden tests.
pub type Observer<'o> = dyn FnMut(&Node, &Reference) -> Result<()> + 'o;

/// A plan with its arena and weights.
pub struct Reference<'a> {
    plan: &'a Plan,
    weights: &'a dyn WeightSource,
    /// 16-byte words, so that every aligned offset can be read as any element type.
    arena: Vec<u128>,
}

/// Dense values of a tensor, borrowed from where they lie if they already are dense f32, i32 or u8.
enum Loaded<'a> {
    F32(Cow<'a, [f32]>),
    I32(Cow<'a, [i32]>),
    U8(Cow<'a, [u8]>),
}

impl Loaded<'_> {
    fn values(&self) -> Values<'_> {
        match self {
            Loaded::F32(v) => Values::F32(v),
            Loaded::I32(v) => Values::I32(v),
            Loaded::U8(v) => Values::U8(v),
        }
    }
}

impl<'a> Reference<'a> {
    /// Takes the arena's memory and poisons it.
    ///
    /// # Errors
    /// A weight of the plan that the source lacks or has with another number of elements.
    pub fn new(plan: &'a Plan, weights: &'a dyn WeightSource) -> Result<Self> {
        for (component, storage) in plan.graph.weights() {
            let found = weights.weight(component, &storage.name);
            let (spec, _) = found.with_context(|| format!("the {component} weights lack {}", storage.name))?;
            let n = spec.shape.elements();
            ensure!(n == storage.spec.shape.elements(), "{} has {n} elements, not those of {}", storage.name, storage.spec.shape);
        }
        let arena = vec![u128::MAX; plan.arena_bytes.div_ceil(16)]; // all bits set is a NaN in bf16, f16 and f32
        Ok(Reference { plan, weights, arena })
    }

    /// Writes a whole input; floats are rounded to its type.
    ///
    /// # Errors
    /// Values of another kind or number than the input's.
    pub fn write(&mut self, id: TensorId, values: Values) -> Result<()> {
        let tensor = self.plan.graph.tensor(id).clone();
        let name = &self.plan.graph.storage_of(id).name;
        let n = match values {
            Values::F32(v) => v.len(),
            Values::I32(v) => v.len(),
            Values::U8(v) => v.len(),
        };
        ensure!(n == tensor.spec.shape.elements(), "{n} values for the input {name} {}", tensor.spec);
        self.store(&tensor, values).with_context(|| format!("input {name}"))
    }

    /// The values of a tensor, dense, floats widened.
    ///
    /// # Errors
    /// A weight that is read by columns.
    pub fn read(&self, id: TensorId) -> Result<Buffer> {
        Ok(match self.load(id)? {
            Loaded::F32(v) => Buffer::F32(v.into_owned()),
            Loaded::I32(v) => Buffer::I32(v.into_owned()),
            Loaded::U8(v) => Buffer::U8(v.into_owned()),
        })
    }

    /// The values of a float tensor, dense, widened.
    ///
    /// # Errors
    /// A tensor of indices or pixels.
    pub fn read_f32(&self, id: TensorId) -> Result<Vec<f32>> {
        match self.read(id)? {
            Buffer::F32(v) => Ok(v),
            _ => bail!("{} is not a float tensor", self.plan.graph.storage_of(id).name),
        }
    }

    /// Runs a stage once.
    ///
    /// # Errors
    /// An unknown stage, a node that cannot run, by name, or what the observer returns.
    pub fn run(&mut self, stage: &str, observer: &mut Observer) -> Result<()> {
        let plan = self.plan;
        let stage = plan.graph.stage_named(stage).with_context(|| format!("the plan has no stage {stage}"))?;
        for node in &plan.graph.nodes[stage.nodes.clone()] {
            self.execute(node).with_context(|| node.name.clone())?;
            observer(node, self)?;
        }
        Ok(())
    }

    fn execute(&mut self, node: &Node) -> Result<()> {
        let graph = &self.plan.graph;
        let loaded: Vec<Loaded> = node.inputs.iter().map(|&id| self.load(id)).collect::<Result<_>>()?;
        let operands =
            node.inputs.iter().zip(&loaded).map(|(&id, l)| Operand { spec: graph.tensor(id).spec.clone(), values: l.values() });
        let operands: Vec<Operand> = operands.collect();
        let mut outputs: Vec<Output> = node.outputs.iter().map(|&id| Output::zeros(graph.tensor(id).spec.clone())).collect();
        node.op.reference(&operands, &mut outputs);
        drop(operands);
        drop(loaded);
        for (&id, output) in node.outputs.iter().zip(&outputs) {
            self.store(graph.tensor(id), output.values.values())?;
        }
        Ok(())
    }

    fn load(&self, id: TensorId) -> Result<Loaded<'_>> {
        let graph = &self.plan.graph;
        let (tensor, storage) = (graph.tensor(id), graph.storage_of(id));
        if let Kind::Weight(component) = storage.kind {
            return Ok(Loaded::F32(Cow::Owned(self.load_weight(component, &storage.name, tensor)?)));
        }
        let offset = self.plan.offsets[tensor.storage.0].context("a storage without a place in the arena")?;
        let bytes = &bytemuck::cast_slice::<u128, u8>(&self.arena)[offset..][..storage.spec.bytes()];
        Ok(match tensor.spec.dtype {
            DType::F32 => Loaded::F32(dense(bytemuck::cast_slice(bytes), tensor)),
            DType::I32 => Loaded::I32(dense(bytemuck::cast_slice(bytes), tensor)),
            DType::U8 => Loaded::U8(dense(bytes, tensor)),
            DType::BF16 => {
                let values = dense::<bf16>(bytemuck::cast_slice(bytes), tensor);
                Loaded::F32(Cow::Owned(values.par_iter().with_min_len(4096).map(|v| v.to_f32()).collect()))
            }
            DType::F16 => {
                let values = dense::<f16>(bytemuck::cast_slice(bytes), tensor);
                Loaded::F32(Cow::Owned(values.par_iter().with_min_len(4096).map(|v| v.to_f32()).collect()))
            }
            other => bail!("{other} is no type of the arena"),
        })
    }

    /// A dense part of a weight, widened; in bf16 precision rounded to the type in which the graph uses it.
    fn load_weight(&self, component: Component, name: &str, tensor: &Tensor) -> Result<Vec<f32>> {
        ensure!(tensor.is_dense(), "a weight is read by whole rows");
        let (spec, bytes) = self.weights.weight(component, name).context("checked when the executor was made")?;
        let size = spec.dtype.bytes();
        let mut values = vec![0.0; tensor.spec.shape.elements()];
        decode_f32(spec.dtype, &bytes[tensor.offset * size..][..values.len() * size], &mut values);
        if self.plan.precision == Precision::Bf16 && spec.dtype != tensor.spec.dtype {
            values.par_iter_mut().with_min_len(4096).for_each(|v| *v = round(tensor.spec.dtype, *v));
        }
        Ok(values)
    }

    fn store(&mut self, tensor: &Tensor, values: Values) -> Result<()> {
        let offset = self.plan.offsets[tensor.storage.0].context("a storage without a place in the arena")?;
        let size = self.plan.graph.storages[tensor.storage.0].spec.bytes();
        let bytes = &mut bytemuck::cast_slice_mut::<u128, u8>(&mut self.arena)[offset..][..size];
        match (tensor.spec.dtype, values) {
            (DType::F32, Values::F32(v)) => scatter(bytemuck::cast_slice_mut(bytes), tensor, v, |v| v),
            (DType::BF16, Values::F32(v)) => scatter(bytemuck::cast_slice_mut(bytes), tensor, v, bf16::from_f32),
            (DType::F16, Values::F32(v)) => scatter(bytemuck::cast_slice_mut(bytes), tensor, v, f16::from_f32),
            (DType::I32, Values::I32(v)) => scatter(bytemuck::cast_slice_mut(bytes), tensor, v, |v| v),
            (DType::U8, Values::U8(v)) => scatter(bytes, tensor, v, |v| v),
            (dtype, _) => bail!("values of another kind than {dtype}"),
        }
        Ok(())
    }
}

/// The view's elements without gaps.
fn dense<'a, T: Copy>(storage: &'a [T], tensor: &Tensor) -> Cow<'a, [T]> {
    let (rows, cols) = (tensor.spec.shape.rows(), tensor.spec.shape.cols());
    if tensor.is_dense() {
        return Cow::Borrowed(&storage[tensor.offset..][..rows * cols]);
    }
    let mut values = Vec::with_capacity(rows * cols);
    (0..rows).for_each(|row| values.extend_from_slice(&storage[tensor.offset + row * tensor.row_stride..][..cols]));
    Cow::Owned(values)
}

/// Writes dense values to the view's elements.
fn scatter<S: Copy, T>(storage: &mut [T], tensor: &Tensor, values: &[S], convert: impl Fn(S) -> T) {
    let cols = tensor.spec.shape.cols();
    for (row, values) in values.chunks_exact(cols).enumerate() {
        let start = tensor.offset + row * tensor.row_stride;
        storage[start..start + cols].iter_mut().zip(values).for_each(|(to, &from)| *to = convert(from));
    }
}
