//! Modules of a checkpoint: an op with its weights, found under the module's name.

use std::ops::Range;

use super::{Graph, TensorId};
use crate::ops::{Conv2d, GroupNorm, GroupStatistics, LayerNorm, Linear, RmsNorm};
use crate::tensor::{DType, Shape};

impl Graph {
    /// The product of x [.., k] with the module `name`: `name.weight` [n, k] and `name.bias` [n]. Nothing is recorded before
    /// [`Product::op`] or [`Product::into`].
    pub fn linear<'g>(&'g mut self, name: &'g str, x: TensorId, n: usize) -> Product<'g> {
        Product { graph: self, name, node: None, x, n, stored: None, bias: true, rows: None, gelu: false, result: None }
    }

    /// The 3×3 convolution `name` with `name.weight` [channels, C, 3, 3], used in x's type, and `name.bias` [channels], in
    /// the result's.
    pub fn conv3x3(&mut self, name: &str, x: TensorId, channels: usize, how: Conv2d, result: DType) -> TensorId {
        let operands = self.conv3x3_operands(name, x, channels, result);
        self.op_as(result, name, how, &operands)
    }

    fn conv3x3_operands(&mut self, name: &str, x: TensorId, channels: usize, result: DType) -> [TensorId; 3] {
        let (dtype, c) = (self.tensor(x).spec.dtype, self.cols_of(x));
        let w = self.weight(&format!("{name}.weight"), dtype, [channels, c, 3, 3]);
        let b = self.weight(&format!("{name}.bias"), result, [channels]);
        [x, w, b]
    }

    /// The group norm `name` with `name.weight` and `name.bias`.
    pub fn group_norm(&mut self, name: &str, x: TensorId, swish: bool, result: DType) -> TensorId {
        let operands = self.group_norm_operands(name, x);
        self.op_as(result, name, GroupNorm { swish }, &operands)
    }

    fn group_norm_operands(&mut self, name: &str, x: TensorId) -> [TensorId; 3] {
        let c = self.cols_of(x);
        let w = self.weight(&format!("{name}.weight"), DType::F32, [c]);
        let b = self.weight(&format!("{name}.bias"), DType::F32, [c]);
        [x, w, b]
    }

    /// The group norm and swish `norm`, its result of type `normed`, then the 3×3 convolution of the same size `conv` into `out`
    /// [H, W, channels]: in strips of `height` rows from the top, so that no more than a strip of x [H, W, C] is there normed.
    /// To the bit as [`Graph::group_norm`] and [`Graph::conv3x3`] of all rows. Nodes are named after a strip's first row.
    ///
    /// `out` may share memory with x: when a strip's rows are written, x is read from the row before its last one on.
    pub fn normed_conv3x3_in_strips(
        &mut self,
        [norm, conv]: [&str; 2],
        x: TensorId,
        normed: DType,
        height: usize,
        out: TensorId,
    ) {
        let statistics = self.op(&format!("{norm}.statistics"), GroupStatistics, &[x]);
        let (rows, channels, result) = (self.shape(x).0[0], self.cols_of(out), self.tensor(out).spec.dtype);
        for top in (0..rows).step_by(height) {
            let bottom = (top + height).min(rows);
            let (above, below) = (top > 0, bottom < rows);
            let read = self.picture_rows(x, top - above as usize..bottom + below as usize);
            let [x, w, b] = self.group_norm_operands(norm, read);
            let n = self.op_as(normed, &format!("{norm}.{top}"), GroupNorm { swish: true }, &[x, w, b, statistics]);
            let operands = self.conv3x3_operands(conv, n, channels, result);
            let written = self.picture_rows(out, top..bottom);
            self.op_into(&format!("{conv}.{top}"), Conv2d::SAME.strip(above, below), &operands, &[written]);
        }
    }

    /// Rows `range` of a dense picture [H, W, C].
    fn picture_rows(&mut self, picture: TensorId, range: Range<usize>) -> TensorId {
        let [h, w, c] = self.shape(picture).0[..] else { panic!("{} is no picture", self.shape(picture)) };
        let lines = self.reshape(picture, [h, w * c]);
        let lines = self.rows(lines, range.clone());
        self.reshape(lines, [range.len(), w, c])
    }

    /// The affine layer norm `name` with `name.weight` and `name.bias`.
    pub fn layer_norm(&mut self, name: &str, x: TensorId) -> TensorId {
        let (dtype, d) = (self.tensor(x).spec.dtype, self.cols_of(x));
        let w = self.weight(&format!("{name}.weight"), dtype, [d]);
        let b = self.weight(&format!("{name}.bias"), dtype, [d]);
        self.op(name, LayerNorm { modulation: None }, &[x, w, b])
    }

    /// The RMS norm `name` with `name.weight`.
    pub fn rms_norm(&mut self, name: &str, x: TensorId) -> TensorId {
        let w = self.weight(&format!("{name}.weight"), self.tensor(x).spec.dtype, [self.cols_of(x)]);
        self.op(name, RmsNorm, &[x, w])
    }
}

/// A product with a module's weight, described before it is recorded: the one door for products. The weight is used in
/// x's type, the bias in the result's.
#[must_use = "a product is recorded by `op` or `into`"]
pub struct Product<'g> {
    graph: &'g mut Graph,
    name: &'g str,
    node: Option<&'g str>,
    x: TensorId,
    n: usize,
    stored: Option<Shape>,
    bias: bool,
    rows: Option<Range<usize>>,
    gelu: bool,
    result: Option<DType>,
}

impl<'g> Product<'g> {
    /// The node has another name than the module.
    pub fn node(self, name: &'g str) -> Self {
        Product { node: Some(name), ..self }
    }

    /// The module has no `name.bias`.
    pub fn without_bias(self) -> Self {
        Product { bias: false, ..self }
    }

    /// The checkpoint has the weight in this shape: a convolution whose kernel is its stride, or 1×1.
    pub fn stored_as(self, shape: impl Into<Shape>) -> Self {
        Product { stored: Some(shape.into()), ..self }
    }

    /// Only these rows of weight and bias; the node is named after the first.
    pub fn rows(self, rows: Range<usize>) -> Self {
        Product { rows: Some(rows), ..self }
    }

    /// The tanh form of GELU, before the one rounding.
    pub fn gelu(self) -> Self {
        Product { gelu: true, ..self }
    }

    /// The result's type, if it is not that of x.
    pub fn result(self, dtype: DType) -> Self {
        Product { result: Some(dtype), ..self }
    }

    /// Records it and gives the newly allocated result.
    pub fn op(self) -> TensorId {
        let result = self.result.unwrap_or(self.graph.tensor(self.x).spec.dtype);
        let (graph, name, op, operands) = self.operands(result);
        graph.op_as(result, &name, op, &operands)
    }

    /// Records it with the result written to `out`.
    pub fn into(self, out: TensorId) {
        let result = self.graph.tensor(out).spec.dtype;
        let (graph, name, op, operands) = self.operands(result);
        graph.op_into(&name, op, &operands, &[out]);
    }

    /// The node's name, op and operands.
    fn operands(self, result: DType) -> (&'g mut Graph, String, Linear, Vec<TensorId>) {
        let Product { graph: g, name, node, x, n, stored, bias, rows, gelu, .. } = self;
        let (dtype, k) = (g.tensor(x).spec.dtype, g.cols_of(x));
        let w = g.weight(&format!("{name}.weight"), dtype, stored.unwrap_or([n, k].into()));
        let mut w = g.reshape(w, [n, k]);
        let mut b = bias.then(|| g.weight(&format!("{name}.bias"), result, [n]));
        let mut node = node.unwrap_or(name).to_string();
        if let Some(rows) = rows {
            w = g.rows(w, rows.clone());
            node = format!("{node}.{}", rows.start);
            b = b.map(|b| g.cols(b, rows));
        }
        (g, node, Linear { gelu, eight_bit: None }, [x, w].into_iter().chain(b).collect())
    }
}
