//! Products of integers in a graph for CUDA: rows are rounded by a node of their own, once for all products that read them, and
//! weights while they are read, with a scale and a bias for each row ([`Quantized`]).

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use crate::graph::{Graph, Kind, Node, Storage, StorageId, Tensor, TensorId};
use crate::ops::{QuantizeRows, Quantized};
use crate::tensor::{DType, Spec};

/// Lets every product that rounds its operands to integers read rounded ones.
///
/// # Errors
/// A product that is none of whole rows with a module's weight and bias, by its node.
pub(super) fn apply(graph: &mut Graph) -> Result<()> {
    let mut pass = Pass { graph, nodes: vec![], rows: vec![], weights: HashMap::new() };
    let (nodes, mut bodies) = (std::mem::take(&mut pass.graph.nodes), std::mem::take(&mut pass.graph.bodies));
    for body in &mut bodies {
        let start = pass.nodes.len();
        pass.rows.clear();
        for node in &nodes[body.nodes.clone()] {
            pass.node(node).with_context(|| node.name.clone())?;
        }
        body.nodes = start..pass.nodes.len();
    }
    let Pass { nodes, weights, .. } = pass;
    (graph.nodes, graph.bodies) = (nodes, bodies);
    let read = |graph: &Graph, storage: StorageId| {
        graph.nodes.iter().flat_map(|node| &node.inputs).any(|&id| graph.tensor(id).storage == storage)
    };
    // What only the host reads from now on.
    for storage in weights.into_values().flat_map(|weight| weight.made_of) {
        if let Kind::Weight(component) = graph.storages[storage.0].kind
            && !read(graph, storage)
        {
            graph.storages[storage.0].kind = Kind::Table(component);
        }
    }
    Ok(())
}

/// A weight that is rounded.
struct Weight {
    storage: StorageId,
    made_of: [StorageId; 2],
}

struct Pass<'g> {
    graph: &'g mut Graph,
    nodes: Vec<Node>,
    /// Views whose rows were rounded, since they were last written: integers and scales.
    rows: Vec<(Tensor, [TensorId; 2])>,
    weights: HashMap<StorageId, Weight>,
}

impl Pass<'_> {
    fn node(&mut self, node: &Node) -> Result<()> {
        match node.op.of_integers() {
            None => self.nodes.push(node.clone()),
            Some(op) => {
                let [x, w, bias] = node.inputs[..] else { anyhow::bail!("the product has no bias") };
                let ([x, x_scales], [w, columns]) = (self.rows_of(x, &node.name), self.weight_of(w, bias)?);
                self.nodes.push(Node { op, inputs: vec![x, x_scales, w, columns], ..node.clone() });
            }
        }
        let written: Vec<StorageId> = node.outputs.iter().map(|&id| self.graph.tensor(id).storage).collect();
        self.rows.retain(|(view, _)| !written.contains(&view.storage));
        Ok(())
    }

    /// The rounded rows of a view, by a node that is named after the first to ask.
    fn rows_of(&mut self, x: TensorId, name: &str) -> [TensorId; 2] {
        let view = self.graph.tensor(x).clone();
        if let Some((_, rounded)) = self.rows.iter().find(|(known, _)| *known == view) {
            return *rounded;
        }
        let (rows, cols) = (view.spec.shape.rows(), view.spec.shape.cols());
        let integers = self.storage(format!("{name}.rows"), Spec::new(DType::S8, [rows, cols]), Kind::Buffer);
        let scales = self.storage(format!("{name}.scales"), Spec::new(DType::F32, [rows]), Kind::Buffer);
        let rounded = [integers, scales].map(|storage| {
            let spec = self.graph.storages[storage.0].spec.clone();
            self.view(storage, 0, spec)
        });
        let op = std::sync::Arc::new(QuantizeRows);
        self.nodes.push(Node { name: format!("{name}.quantize"), op, inputs: vec![x], outputs: rounded.to_vec() });
        self.rows.push((view, rounded));
        rounded
    }

    /// The same rows of a rounded weight, and their scales with those of the bias.
    fn weight_of(&mut self, w: TensorId, bias: TensorId) -> Result<[TensorId; 2]> {
        let (view, of_bias) = (self.graph.tensor(w).clone(), self.graph.tensor(bias).clone());
        let (stored, beside) = (self.graph.storage_of(w).clone(), &self.graph.storage_of(bias).name);
        let (Kind::Weight(_), [rows, cols]) = (stored.kind, &stored.spec.shape.0[..]) else {
            anyhow::bail!("{} {} is no matrix of the checkpoint", stored.name, stored.spec)
        };
        let lies = Quantized { rows: *rows, cols: *cols };
        let module = stored.name.strip_suffix(".weight").unwrap_or_default();
        ensure!(*beside == format!("{module}.bias"), "{beside} is not the bias of {}", stored.name);
        let (first, count) = (view.offset / lies.cols, view.spec.shape.rows());
        let whole = view.spec.shape.cols() == lies.cols && view.is_dense() && view.offset.is_multiple_of(lies.cols);
        ensure!(whole && of_bias.offset == first, "the product takes other rows of {} than of its bias", stored.name);
        ensure!((lies.rows * lies.cols).is_multiple_of(4), "{} {} cannot have scales behind it", stored.name, stored.spec);
        let storage = match self.weights.get(&view.storage) {
            Some(known) => known.storage,
            None => {
                let spec = Spec::new(DType::S8, [lies.bytes()]);
                let storage = self.storage(stored.name, spec, stored.kind);
                self.weights.insert(view.storage, Weight { storage, made_of: [view.storage, of_bias.storage] });
                storage
            }
        };
        let columns = lies.pairs(first..first + count).start / DType::F32.bytes();
        let w = self.view(storage, first * lies.cols, Spec::new(DType::S8, [count, lies.cols]));
        Ok([w, self.view(storage, columns, Spec::new(DType::F32, [2 * count]))])
    }

    fn storage(&mut self, name: String, spec: Spec, kind: Kind) -> StorageId {
        self.graph.storages.push(Storage { name, spec, kind });
        StorageId(self.graph.storages.len() - 1)
    }

    fn view(&mut self, storage: StorageId, offset: usize, spec: Spec) -> TensorId {
        let row_stride = spec.shape.cols();
        self.graph.tensors.push(Tensor { storage, offset, spec, row_stride });
        TensorId(self.graph.tensors.len() - 1)
    }
}
