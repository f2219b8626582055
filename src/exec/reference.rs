//! The CPU executor: the planned nodes one by one, in f32, each output rounded to its type.
//!
//! Activations live in one arena at the plan's offsets, so a wrong plan gives wrong results here too; the arena starts
//! as NaN. Weights are read and widened when a node needs them, and forgotten.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::values::{Loaded, check_count, load, load_weight, store};
use super::{Executor, Watch};
use crate::graph::{BodyId, Kind, Node, Tensor, TensorId};
use crate::ops::{HostValues, Operand, Output, Values};
use crate::plan::{Itinerary, Plan};
use crate::weights::WeightSource;

/// A plan with its arena and weights.
pub struct Reference {
    plan: Arc<Plan>,
    weights: Arc<dyn WeightSource + Send + Sync>,
    /// 16-byte words, so that every aligned offset can be read as any element type.
    arena: Vec<u128>,
    /// The bodies that were announced.
    announced: Vec<BodyId>,
}

impl Reference {
    /// Takes the arena's memory and poisons it.
    ///
    /// # Errors
    /// A weight of the plan that the source lacks or has with another number of elements.
    pub fn new(plan: Arc<Plan>, weights: Arc<dyn WeightSource + Send + Sync>) -> Result<Self> {
        for (component, storage) in plan.graph.weights() {
            let found = weights.spec(component, &storage.name);
            let n = found.with_context(|| format!("the {component} weights lack {}", storage.name))?.shape.elements();
            ensure!(
                n == storage.spec.shape.elements(),
                "{} has {n} elements, but {} is needed",
                storage.name,
                storage.spec.shape
            );
        }
        let arena = vec![u128::MAX; plan.arena_bytes.div_ceil(16)]; // all bits set is a NaN in bf16, f16 and f32
        Ok(Reference { plan, weights, arena, announced: vec![] })
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
            let tensor = self.plan.graph.tensor(id).clone();
            self.store(&tensor, output.values.values())?;
        }
        Ok(())
    }

    fn load(&self, id: TensorId) -> Result<Loaded<'_>> {
        let graph = &self.plan.graph;
        let (tensor, storage) = (graph.tensor(id), graph.storage_of(id));
        if let Kind::Weight(component) = storage.kind {
            let values = load_weight(&*self.weights, component, storage, tensor, self.plan.precision)?;
            return Ok(Loaded::F32(Cow::Owned(values)));
        }
        let offset = self.plan.offsets[tensor.storage.0].context("the storage has no place in the arena")?;
        load(&bytemuck::cast_slice::<u128, u8>(&self.arena)[offset..][..storage.spec.bytes()], tensor)
    }

    fn store(&mut self, tensor: &Tensor, values: Values) -> Result<()> {
        let offset = self.plan.offsets[tensor.storage.0].context("the storage has no place in the arena")?;
        let size = self.plan.graph.storages[tensor.storage.0].spec.bytes();
        store(&mut bytemuck::cast_slice_mut::<u128, u8>(&mut self.arena)[offset..][..size], tensor, values)
    }
}

impl Executor for Reference {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write(&mut self, id: TensorId, values: Values) -> Result<()> {
        let tensor = self.plan.graph.tensor(id).clone();
        check_count(&tensor, &values)
            .and_then(|()| self.store(&tensor, values))
            .with_context(|| format!("cannot write {}", self.plan.graph.storage_of(id).name))
    }

    fn read(&self, id: TensorId) -> Result<HostValues> {
        Ok(self.load(id)?.into_host_values())
    }

    fn begin(&mut self, itinerary: &Itinerary) -> Result<()> {
        self.plan.itinerary.check_run(itinerary, &self.plan.graph)?;
        self.announced = itinerary.visits();
        Ok(())
    }

    fn run(&mut self, body: BodyId, watch: &mut Watch) -> Result<()> {
        let plan = self.plan.clone();
        let name = plan.graph.bodies[body.0].name;
        ensure!(self.announced.contains(&body), "{name} was not announced to run; begin with an itinerary that has it");
        for node in &plan.graph.nodes[plan.graph.nodes_of(body)] {
            self.execute(node).with_context(|| node.name.clone())?;
            watch(Some(node), self)?;
        }
        Ok(())
    }

    fn finish(&mut self, _: &mut Watch) -> Result<()> {
        Ok(())
    }

    fn waits(&self) -> bool {
        true
    }
}
