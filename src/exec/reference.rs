//! The CPU executor: the planned nodes one by one, in f32, each output rounded to its type.
//!
//! Activations live in one arena at the plan's offsets, so a wrong plan gives wrong results here too; the arena starts
//! as NaN. Weights are read and widened when a node needs them, and forgotten.

use std::borrow::Cow;

use anyhow::{Context, Result, bail, ensure};

use super::values::{Loaded, check_count, load, load_weight, store};
use super::{Executor, Watch};
use crate::graph::{Kind, Node, Tensor, TensorId};
use crate::ops::{HostValues, Operand, Output, Values};
use crate::plan::Plan;
use crate::weights::WeightSource;

/// Called after each node with the executor, for progress, interruption and golden tests.
pub type Observer<'o> = dyn FnMut(&Node, &Reference) -> Result<()> + 'o;

/// A plan with its arena and weights.
pub struct Reference<'a> {
    plan: &'a Plan,
    weights: &'a dyn WeightSource,
    /// 16-byte words, so that every aligned offset can be read as any element type.
    arena: Vec<u128>,
}

impl<'a> Reference<'a> {
    /// Takes the arena's memory and poisons it.
    ///
    /// # Errors
    /// A weight of the plan that the source lacks or has with another number of elements.
    pub fn new(plan: &'a Plan, weights: &'a dyn WeightSource) -> Result<Self> {
        for (component, storage) in plan.graph.weights() {
            let found = weights.spec(component, &storage.name);
            let n = found.with_context(|| format!("the {component} weights lack {}", storage.name))?.shape.elements();
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
        check_count(&tensor, &values).and_then(|()| self.store(&tensor, values)).with_context(|| format!("input {name}"))
    }

    /// The values of a tensor, dense, floats widened.
    ///
    /// # Errors
    /// A weight that is read by columns.
    pub fn read(&self, id: TensorId) -> Result<HostValues> {
        Ok(self.load(id)?.into_host_values())
    }

    /// The values of a float tensor, dense, widened.
    ///
    /// # Errors
    /// A tensor of indices or pixels.
    pub fn read_f32(&self, id: TensorId) -> Result<Vec<f32>> {
        match self.read(id)? {
            HostValues::F32(v) => Ok(v),
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
            let values = load_weight(self.weights, component, &storage.name, tensor, self.plan.precision)?;
            return Ok(Loaded::F32(Cow::Owned(values)));
        }
        let offset = self.plan.offsets[tensor.storage.0].context("a storage without a place in the arena")?;
        load(&bytemuck::cast_slice::<u128, u8>(&self.arena)[offset..][..storage.spec.bytes()], tensor)
    }

    fn store(&mut self, tensor: &Tensor, values: Values) -> Result<()> {
        let offset = self.plan.offsets[tensor.storage.0].context("a storage without a place in the arena")?;
        let size = self.plan.graph.storages[tensor.storage.0].spec.bytes();
        store(&mut bytemuck::cast_slice_mut::<u128, u8>(&mut self.arena)[offset..][..size], tensor, values)
    }
}

impl Executor for Reference<'_> {
    fn write(&mut self, id: TensorId, values: Values) -> Result<()> {
        Reference::write(self, id, values)
    }

    fn read(&mut self, id: TensorId) -> Result<HostValues> {
        Reference::read(self, id)
    }

    fn begin(&mut self, stages: &[&str]) -> Result<()> {
        let unknown = stages.iter().find(|s| self.plan.graph.stage_named(s).is_none());
        unknown.map_or(Ok(()), |stage| bail!("the plan has no stage {stage}"))
    }

    fn run(&mut self, stage: &str, watch: &mut Watch) -> Result<()> {
        Reference::run(self, stage, &mut |node, _| watch(node))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn waits(&self) -> bool {
        true
    }
}
