//! What makes a graph legal, as rules to read.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};

use super::{Graph, Kind, Node, StorageId, Tensor};

/// Rules for one node, checked when it is recorded.
pub(super) fn node(graph: &Graph, node: &Node) -> Result<()> {
    let (inputs, outputs) = graph.specs(node);
    let results = node
        .op
        .infer(&inputs)
        .map_err(|e| anyhow::anyhow!("{}: {} cannot take {}: {e}", node.name, node.op.kind(), list(&inputs)))?;

    // The views written have the shapes the op computes; the element type may be any float type.
    ensure!(results.len() == outputs.len(), "{}: {} results for {} outputs", node.name, results.len(), outputs.len());
    for (result, output) in results.iter().zip(&outputs) {
        ensure!(
            result.shape == output.shape && result.dtype.is_float() == output.dtype.is_float(),
            "{}: {} gives {result}, the output is {output}",
            node.name,
            node.op.kind()
        );
    }

    for &id in &node.outputs {
        let tensor = graph.tensor(id);
        let storage = graph.storage_of(id);
        ensure!(!matches!(storage.kind, Kind::Weight(_)), "{} writes to the weight {}", node.name, storage.name);
        // An output either is an input, view for view (in place), or shares no element with any input.
        for &input in &node.inputs {
            let read = graph.tensor(input);
            ensure!(
                read == tensor || !overlap(read, tensor),
                "{} reads and writes overlapping parts of {}",
                node.name,
                storage.name
            );
        }
        let in_place = node.inputs.iter().any(|&i| graph.tensor(i) == tensor);
        ensure!(!in_place || node.op.in_place(), "{}: {} cannot work in place", node.name, node.op.kind());
        ensure!(in_place || storage.kind != Kind::Input, "{} overwrites the input {}", node.name, storage.name);
    }
    Ok(())
}

/// Whether two views share an element: exact for rectangles of one pitch; views of two pitches count as overlapping
/// where their spans meet.
fn overlap(a: &Tensor, b: &Tensor) -> bool {
    if a.storage != b.storage {
        return false;
    }
    let span = |t: &Tensor| t.offset..t.offset + (t.spec.shape.rows() - 1) * t.row_stride + t.spec.shape.cols();
    let (sa, sb) = (span(a), span(b));
    if sa.end <= sb.start || sb.end <= sa.start {
        return false;
    }
    if a.row_stride != b.row_stride {
        return true;
    }
    let columns = |t: &Tensor| t.offset % t.row_stride..t.offset % t.row_stride + t.spec.shape.cols();
    let (ca, cb) = (columns(a), columns(b));
    ca.start < cb.end && cb.start < ca.end
}

fn list(specs: &[crate::tensor::Spec]) -> String {
    specs.iter().map(|s| s.to_string()).collect::<Vec<_>>().join(", ")
}

impl Graph {
    /// Checks the whole program: bodies cover all nodes; every element read was written by an earlier node, by the
    /// host or by a checkpoint; no buffer is left unwritten.
    ///
    /// # Errors
    /// The first broken rule, with the node's name.
    pub fn verify(&self) -> Result<()> {
        let mut next = 0;
        for body in &self.bodies {
            ensure!(body.nodes.start == next, "the body {} does not follow the one before", body.name);
            next = body.nodes.end;
        }
        ensure!(next == self.nodes.len(), "{} nodes belong to no body", self.nodes.len() - next);

        let mut written: HashMap<StorageId, Vec<&Tensor>> = HashMap::new();
        for n in &self.nodes {
            node(self, n)?;
            for &id in &n.inputs {
                let tensor = self.tensor(id);
                if matches!(self.storage_of(id).kind, Kind::Buffer | Kind::Output)
                    && !covered(tensor, written.get(&tensor.storage))
                {
                    bail!("{} reads a part of {} that no node has written", n.name, self.storage_of(id).name);
                }
            }
            for &id in &n.outputs {
                written.entry(self.tensor(id).storage).or_default().push(self.tensor(id));
            }
        }
        for (i, storage) in self.storages.iter().enumerate() {
            let unwritten = matches!(storage.kind, Kind::Buffer | Kind::Output) && !written.contains_key(&StorageId(i));
            ensure!(!unwritten, "no node writes the buffer {}", storage.name);
        }
        Ok(())
    }
}

/// Whether views written earlier cover every element of `read`.
fn covered(read: &Tensor, written: Option<&Vec<&Tensor>>) -> bool {
    // Nobody wrote to the storage.
    let Some(written) = written else { return false };

    // One writer wrote it all: the usual case, and a cheap one.
    if written.iter().any(|w| *w == read || (w.is_dense() && encloses(w, read))) {
        return true;
    }

    // Several wrote parts: from each element that is covered, the farthest run leads on, row by row.
    (0..read.spec.shape.rows()).all(|row| {
        let start = read.offset + row * read.row_stride;
        let mut at = start;
        let end = start + read.spec.shape.cols();
        while at < end {
            let reach = written.iter().filter_map(|w| run_end(w, at)).max();
            match reach {
                Some(next) => at = next,
                None => return false,
            }
        }
        true
    })
}

/// Whether the dense view `w` holds all elements of `read`.
fn encloses(w: &Tensor, read: &Tensor) -> bool {
    let last = read.offset + (read.spec.shape.rows() - 1) * read.row_stride + read.spec.shape.cols();
    w.offset <= read.offset && last <= w.offset + w.spec.shape.elements()
}

/// End of the run of elements of `w` that contains element `at` of the storage, if any does.
fn run_end(w: &Tensor, at: usize) -> Option<usize> {
    let from = at.checked_sub(w.offset)?;
    let (row, col) = (from / w.row_stride, from % w.row_stride);
    (row < w.spec.shape.rows() && col < w.spec.shape.cols()).then(|| at + w.spec.shape.cols() - col)
}
