//! The recorded program: storages, views into them, and a flat list of nodes in program order.
//!
//! Model code calls a [`Graph`]'s recording methods; nothing is computed. A *storage* is a run of memory (a buffer of
//! the arena, a weight, a host input). A *tensor* is a view into a storage: a row range, a column range, or all of it;
//! views cost nothing, so several nodes may fill one buffer in parts and nobody concatenates. Nodes are grouped into
//! named *bodies*; in which order and how often bodies run is not the graph's to say (`plan::Itinerary`).

mod modules;
mod print;
mod verify;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use self::modules::Product;
use crate::ops::Op;
use crate::tensor::{Component, DType, Shape, Spec};

/// Index of a view in [`Graph::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorId(pub usize);

/// Index of a memory run in [`Graph::storages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageId(pub usize);

/// Index of a body in [`Graph::bodies`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyId(pub usize);

/// What a storage holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Given by the host before the first body; a node that updates in place may write to it (state).
    Input,
    /// Read from a checkpoint; never written. Of type s8: a matrix of the checkpoint whose rows are integers, with a scale and a bias for
    /// each behind them.
    Weight(Component),
    /// Read from a checkpoint by the host alone, which gives rows of it as an input or makes a weight of it; takes no memory of a
    /// plan.
    Table(Component),
    /// Lives in the arena between its first writer and its last reader.
    Buffer,
    /// A buffer that the host reads after the last body.
    Output,
}

/// A run of memory.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Scoped name; of a weight, the checkpoint's own name.
    pub name: String,
    /// Element type and full shape.
    pub spec: Spec,
    /// What it holds.
    pub kind: Kind,
}

/// A view: `shape.rows()` runs of `shape.cols()` elements, `row_stride` elements apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Where the elements live.
    pub storage: StorageId,
    /// First element, counted from the storage's start.
    pub offset: usize,
    /// Element type and extents of the view.
    pub spec: Spec,
    /// Distance between the starts of consecutive rows, in elements.
    pub row_stride: usize,
}

impl Tensor {
    /// Whether the rows follow each other without gaps.
    pub fn is_dense(&self) -> bool {
        self.row_stride == self.spec.shape.cols() || self.spec.shape.rows() == 1
    }
}

/// One op applied to views.
#[derive(Clone, Debug)]
pub struct Node {
    /// Scoped name, after the checkpoint's module where there is one.
    pub name: String,
    /// What is computed.
    pub op: Arc<dyn Op>,
    /// Views read.
    pub inputs: Vec<TensorId>,
    /// Views written.
    pub outputs: Vec<TensorId>,
}

/// A run of nodes between two meetings with the host: a stage of an edit, as progress and profile call it.
#[derive(Clone, Debug)]
pub struct Body {
    /// Name, as progress and profile show it.
    pub name: &'static str,
    /// Its nodes in [`Graph::nodes`].
    pub nodes: Range<usize>,
}

/// A recorded program.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// All memory runs.
    pub storages: Vec<Storage>,
    /// All views.
    pub tensors: Vec<Tensor>,
    /// All nodes in program order.
    pub nodes: Vec<Node>,
    /// Consecutive, gapless ranges of nodes.
    pub bodies: Vec<Body>,
    scope: Vec<String>,
    weights: HashMap<(Component, String), TensorId>,
    component: Option<Component>,
}

impl Graph {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a body; gives its id and what `record` gives.
    pub fn body<R>(&mut self, name: &'static str, record: impl FnOnce(&mut Self) -> R) -> (BodyId, R) {
        let start = self.nodes.len();
        let result = record(self);
        self.bodies.push(Body { name, nodes: start..self.nodes.len() });
        (BodyId(self.bodies.len() - 1), result)
    }

    /// Records under `name.`, which prefixes the names of nodes, buffers and weights.
    pub fn scoped<R>(&mut self, name: impl fmt::Display, record: impl FnOnce(&mut Self) -> R) -> R {
        self.scope.push(name.to_string());
        let result = record(self);
        self.scope.pop();
        result
    }

    /// Records with weights taken from `component`.
    pub fn with_weights<R>(&mut self, component: Component, record: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.component.replace(component);
        let result = record(self);
        self.component = outer;
        result
    }

    fn scoped_name(&self, name: &str) -> String {
        let mut path = self.scope.join(".");
        if !path.is_empty() && !name.is_empty() {
            path.push('.');
        }
        path + name
    }

    fn storage(&mut self, name: String, spec: Spec, kind: Kind) -> TensorId {
        let storage = StorageId(self.storages.len());
        self.storages.push(Storage { name, spec: spec.clone(), kind });
        let row_stride = spec.shape.cols();
        self.view(Tensor { storage, offset: 0, spec, row_stride })
    }

    fn view(&mut self, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        TensorId(self.tensors.len() - 1)
    }

    /// A tensor that the host fills before the first body runs.
    pub fn input(&mut self, name: &str, dtype: DType, shape: impl Into<Shape>) -> TensorId {
        let name = self.scoped_name(name);
        self.storage(name, Spec::new(dtype, shape), Kind::Input)
    }

    /// A buffer that nodes fill, whole or in parts.
    pub fn buffer(&mut self, name: &str, dtype: DType, shape: impl Into<Shape>) -> TensorId {
        let name = self.scoped_name(name);
        self.storage(name, Spec::new(dtype, shape), Kind::Buffer)
    }

    /// The checkpoint tensor `scope.name`, of which the host gives rows as an input: no node reads it.
    pub fn table(&mut self, name: &str, dtype: DType, shape: impl Into<Shape>) {
        let component = self.component.expect("tables are recorded inside with_weights");
        self.storage(self.scoped_name(name), Spec::new(dtype, shape), Kind::Table(component));
    }

    /// The checkpoint tensor `scope.name`, used in `dtype`; the same name gives the same storage again.
    pub fn weight(&mut self, name: &str, dtype: DType, shape: impl Into<Shape>) -> TensorId {
        let component = self.component.expect("weights are recorded inside with_weights");
        let (name, spec) = (self.scoped_name(name), Spec::new(dtype, shape));
        if let Some(&known) = self.weights.get(&(component, name.clone())) {
            assert_eq!(self.tensor(known).spec, spec, "{name} is recorded with two shapes or types");
            return known;
        }
        let id = self.storage(name.clone(), spec, Kind::Weight(component));
        self.weights.insert((component, name), id);
        id
    }

    /// Keeps a buffer until the program's end, for the host to read.
    pub fn output(&mut self, tensor: TensorId) {
        let storage = self.tensor(tensor).storage;
        self.storages[storage.0].kind = Kind::Output;
    }

    /// Records `op` and gives its single, newly allocated result.
    pub fn op(&mut self, name: &str, op: impl Op + 'static, inputs: &[TensorId]) -> TensorId {
        let result = self.result_of(name, &op, inputs);
        self.op_as(result.dtype, name, op, inputs)
    }

    /// Like [`Graph::op`], with a result of another type than the op's natural one.
    pub fn op_as(&mut self, dtype: DType, name: &str, op: impl Op + 'static, inputs: &[TensorId]) -> TensorId {
        let result = Spec { dtype, ..self.result_of(name, &op, inputs) };
        let output = self.storage(self.scoped_name(name), result, Kind::Buffer);
        self.op_into(name, op, inputs, &[output]);
        output
    }

    fn result_of(&self, name: &str, op: &impl Op, inputs: &[TensorId]) -> Spec {
        let specs: Vec<Spec> = inputs.iter().map(|&t| self.tensor(t).spec.clone()).collect();
        let results = op.infer(&specs).unwrap_or_else(|e| panic!("{}: {e}", self.scoped_name(name)));
        let [result] = &results[..] else { panic!("{}: {} has several results, use op_into", self.scoped_name(name), op.kind()) };
        result.clone()
    }

    /// Records `op` with its results written to existing views.
    ///
    /// # Panics
    /// If the op cannot take these operands: a fault of the model code, named with node, shapes and requirement.
    pub fn op_into(&mut self, name: &str, op: impl Op + 'static, inputs: &[TensorId], outputs: &[TensorId]) {
        let name = self.scoped_name(name);
        let node = Node { name, op: Arc::new(op), inputs: inputs.to_vec(), outputs: outputs.to_vec() };
        if let Err(e) = verify::node(self, &node) {
            panic!("{e}");
        }
        self.nodes.push(node);
    }

    /// The view behind an id.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// The memory run behind a view.
    pub fn storage_of(&self, id: TensorId) -> &Storage {
        &self.storages[self.tensor(id).storage.0]
    }

    /// Shape of a view.
    pub fn shape(&self, id: TensorId) -> &Shape {
        &self.tensor(id).spec.shape
    }

    /// Rows of a view: the product of all its dimensions but the innermost.
    pub fn rows_of(&self, id: TensorId) -> usize {
        self.shape(id).rows()
    }

    /// Columns of a view: its innermost dimension.
    pub fn cols_of(&self, id: TensorId) -> usize {
        self.shape(id).cols()
    }

    /// Rows `range` of a matrix.
    pub fn rows(&mut self, id: TensorId, range: Range<usize>) -> TensorId {
        let t = self.tensor(id).clone();
        assert!(t.spec.shape.0.len() == 2 && range.end <= t.spec.shape.rows(), "rows {range:?} of {}", t.spec);
        let shape = [range.len(), t.spec.shape.cols()];
        let offset = t.offset + range.start * t.row_stride;
        self.view(Tensor { offset, spec: Spec::new(t.spec.dtype, shape), ..t })
    }

    /// Columns `range` of a matrix, or elements `range` of a vector.
    pub fn cols(&mut self, id: TensorId, range: Range<usize>) -> TensorId {
        let t = self.tensor(id).clone();
        assert!(t.spec.shape.0.len() <= 2 && range.end <= t.spec.shape.cols(), "columns {range:?} of {}", t.spec);
        let mut shape = t.spec.shape.clone();
        *shape.0.last_mut().expect("a matrix or a vector") = range.len();
        self.view(Tensor { offset: t.offset + range.start, spec: Spec { shape, ..t.spec }, ..t })
    }

    /// The same elements of a dense tensor in another shape.
    pub fn reshape(&mut self, id: TensorId, shape: impl Into<Shape>) -> TensorId {
        let t = self.tensor(id).clone();
        let shape = shape.into();
        assert!(t.is_dense() && shape.elements() == t.spec.shape.elements(), "reshape of {} to {shape}", t.spec);
        let row_stride = shape.cols();
        self.view(Tensor { spec: Spec { shape, ..t.spec }, row_stride, ..t })
    }

    /// Every weight of the checkpoint that the program reads, tables too, in the order of first use.
    pub fn weights(&self) -> impl Iterator<Item = (Component, &Storage)> {
        self.storages.iter().filter_map(|s| match s.kind {
            // Made of such weights, which are tables then.
            Kind::Weight(_) if s.spec.dtype == DType::S8 => None,
            Kind::Weight(component) | Kind::Table(component) => Some((component, s)),
            _ => None,
        })
    }

    /// The node's operands' specs: inputs, outputs.
    pub fn specs(&self, node: &Node) -> (Vec<Spec>, Vec<Spec>) {
        let of = |ids: &[TensorId]| ids.iter().map(|&t| self.tensor(t).spec.clone()).collect();
        (of(&node.inputs), of(&node.outputs))
    }

    /// The nodes of a body.
    pub fn nodes_of(&self, body: BodyId) -> Range<usize> {
        self.bodies[body.0].nodes.clone()
    }

    /// The body of that name.
    pub fn body_named(&self, name: &str) -> Option<BodyId> {
        self.bodies.iter().position(|body| body.name == name).map(BodyId)
    }
}
