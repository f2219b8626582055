//! A graph of one op on given values: what parity tests run and the op laboratory times.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;

use crate::graph::{BodyId, Graph, Node, TensorId};
use crate::ops::{Case, Cast, HostValues, Op, WeightOrder};
use crate::tensor::{Component, DType, Shape, Spec};
use crate::weights::{ModelError, WeightSource, encode_f32};

/// How a case's operands lie.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form {
    /// Outputs are inputs where the op allows it.
    pub in_place: bool,
    /// Columns of the buffer before and after the operand's own; they hold NaN.
    pub pad: usize,
}

/// A graph of one node, or of one that is timed, with what it reads.
pub struct OneNode {
    /// The graph, of one body.
    pub graph: Graph,
    /// The body.
    pub body: BodyId,
    /// Operands that are weights.
    pub weights: Arc<HostWeights>,
    /// Buffers to be filled, with their values.
    pub inputs: Vec<(TensorId, HostValues)>,
    /// The node's outputs, and the buffers around them.
    pub outputs: Vec<(TensorId, TensorId)>,
}

/// Weights in memory: operands that the device has in another order than the host.
#[derive(Debug, Default)]
pub struct HostWeights(HashMap<String, (Spec, Vec<u8>)>);

impl WeightSource for HostWeights {
    fn spec(&self, _: Component, name: &str) -> Option<Spec> {
        self.0.get(name).map(|(spec, _)| spec.clone())
    }

    fn read_at(&self, _: Component, name: &str, offset: usize, bytes: &mut [u8]) -> std::result::Result<(), ModelError> {
        let stored = self.0.get(name).and_then(|(_, all)| all.get(offset..offset + bytes.len()));
        bytes.copy_from_slice(stored.ok_or_else(|| ModelError::new(format!("{name} has no such bytes")))?);
        Ok(())
    }
}

impl OneNode {
    /// The node `node` on a case's operands in some form.
    ///
    /// # Errors
    /// What about the operands does not fit.
    pub fn new(case: &Case, operands: &[HostValues], form: Form) -> Result<OneNode> {
        OneNode::record(case, operands, form, None)
    }

    /// Three nodes: `flush`, which fills the L2 cache with so many other bytes, then `cold` and `warm`, which are the same op
    /// on the same dense operands with results of their own.
    ///
    /// # Errors
    /// As for [`OneNode::new`].
    pub fn timed(case: &Case, operands: &[HostValues], flush_bytes: usize) -> Result<OneNode> {
        OneNode::record(case, operands, Form::default(), Some(flush_bytes))
    }

    fn record(case: &Case, operands: &[HostValues], form: Form, flush_bytes: Option<usize>) -> Result<OneNode> {
        let results = case.results()?;
        let mut graph = Graph::new();
        let mut weights = HostWeights::default();
        let (body, (inputs, outputs)) = graph.body("case", |g| {
            if let Some(bytes) = flush_bytes {
                let other = g.input("other bytes", DType::F32, [bytes / 4]);
                let flushed = g.op("flush", Cast(DType::F32), &[other]);
                g.output(flushed);
            }
            let (laid, inputs) = lay_inputs(g, case, operands, form, &mut weights);
            let names: &[&str] = if flush_bytes.is_some() { &["cold", "warm"] } else { &["node"] };
            let mut outputs = Vec::new();
            for name in names {
                let these = lay_outputs(g, case, &results, &laid, form);
                let written = these.iter().map(|(view, _)| *view).collect();
                let views = laid.iter().map(|(view, _)| *view).collect();
                g.nodes.push(Node { name: name.to_string(), op: case.op.clone(), inputs: views, outputs: written });
                these.iter().filter(|output| !laid.contains(output)).for_each(|(_, buffer)| g.output(*buffer));
                outputs = if outputs.is_empty() { these } else { outputs };
            }
            (inputs, outputs)
        });
        Ok(OneNode { graph, body, weights: Arc::new(weights), inputs, outputs })
    }
}

/// Views of tensors, each with the buffer around it.
type Laid = Vec<(TensorId, TensorId)>;

fn lay_inputs(
    g: &mut Graph,
    case: &Case,
    operands: &[HostValues],
    form: Form,
    weights: &mut HostWeights,
) -> (Laid, Vec<(TensorId, HostValues)>) {
    let (mut laid, mut inputs) = (Vec::new(), Vec::new());
    for (i, (spec, values)) in case.inputs.iter().zip(operands).enumerate() {
        let name = format!("operand {i}");
        if case.op.weight_order(i) != WeightOrder::AsStored {
            weights.0.insert(name.clone(), (spec.clone(), encoded(spec.dtype, values)));
            let id = g.with_weights(Component::Vae, |g| g.weight(&name, spec.dtype, spec.shape.clone()));
            laid.push((id, id));
            continue;
        }
        let shape = form.wide(spec).unwrap_or(spec.shape.clone());
        let values = if shape == spec.shape { values.clone() } else { surrounded(values, spec.shape.cols(), form.pad) };
        let buffer = g.input(&name, spec.dtype, shape);
        laid.push((view(g, buffer, spec, form), buffer));
        inputs.push((buffer, values));
    }
    (laid, inputs)
}

fn lay_outputs(g: &mut Graph, case: &Case, results: &[Spec], laid: &Laid, form: Form) -> Laid {
    let mut outputs = Vec::new();
    for (i, spec) in results.iter().enumerate() {
        let alias = aliases(&*case.op).get(i).filter(|&&input| form.in_place && case.inputs[input] == *spec);
        outputs.push(match alias {
            Some(&input) => laid[input],
            None => {
                let buffer = g.buffer(&format!("result {i}"), spec.dtype, form.wide(spec).unwrap_or(spec.shape.clone()));
                (view(g, buffer, spec, form), buffer)
            }
        });
    }
    outputs
}

/// A tensor's own columns of the buffer around it.
fn view(g: &mut Graph, buffer: TensorId, spec: &Spec, form: Form) -> TensorId {
    if form.wide(spec).is_some() { g.cols(buffer, form.pad..form.pad + spec.shape.cols()) } else { buffer }
}

impl Form {
    /// The shape of the buffer around a tensor. Only float matrices of several rows have gaps in real graphs.
    pub fn wide(&self, spec: &Spec) -> Option<Shape> {
        let [rows, cols] = spec.shape.0[..] else { return None };
        (self.pad > 0 && rows > 1 && spec.dtype.is_float()).then(|| Shape(vec![rows, cols + 2 * self.pad]))
    }
}

/// Inputs that the outputs of an op may be.
pub fn aliases(op: &dyn Op) -> &'static [usize] {
    match op.kind() {
        _ if !op.in_place() => &[],
        "guidance_euler" => &[1, 3, 4],
        _ => &[0],
    }
}

fn encoded(dtype: DType, values: &HostValues) -> Vec<u8> {
    let HostValues::F32(values) = values else { panic!("weights are floats") };
    let mut bytes = vec![0; values.len() * dtype.bytes()];
    encode_f32(dtype, values, &mut bytes);
    bytes
}

/// Values with columns of NaN around: who reads those, shows it.
fn surrounded(values: &HostValues, cols: usize, pad: usize) -> HostValues {
    let HostValues::F32(values) = values else { panic!("only floats are surrounded") };
    let gap = vec![f32::NAN; pad];
    HostValues::F32(values.chunks(cols).flat_map(|row| [&gap[..], row, &gap].concat()).collect())
}
