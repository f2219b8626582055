//! Modules of a checkpoint: an op with its weights, found under the module's name.

use super::{Graph, TensorId};
use crate::ops::{Conv2d, GroupNorm, LayerNorm, Linear, RmsNorm};
use crate::tensor::DType;

impl Graph {
    /// The module `name` with `name.weight` [n, k] and, if `bias`, `name.bias` [n].
    pub fn linear(&mut self, name: &str, x: TensorId, n: usize, bias: bool) -> TensorId {
        let operands = self.linear_operands(name, x, n, bias, self.tensor(x).spec.dtype);
        self.op(name, Linear { gelu: false }, &operands)
    }

    /// Like [`Graph::linear`], written to `out`.
    pub fn linear_into(&mut self, name: &str, x: TensorId, bias: bool, out: TensorId) {
        let operands = self.linear_operands(name, x, self.cols_of(out), bias, self.tensor(out).spec.dtype);
        self.op_into(name, Linear { gelu: false }, &operands, &[out]);
    }

    /// The weight is used in x's type, the bias in the result's.
    fn linear_operands(&mut self, name: &str, x: TensorId, n: usize, bias: bool, result: DType) -> Vec<TensorId> {
        let (dtype, k) = (self.tensor(x).spec.dtype, self.cols_of(x));
        let mut operands = vec![x, self.weight(&format!("{name}.weight"), dtype, [n, k])];
        if bias {
            operands.push(self.weight(&format!("{name}.bias"), result, [n]));
        }
        operands
    }

    /// The 3×3 convolution `name` with `name.weight` [channels, C, 3, 3], used in x's type, and `name.bias` [channels], in
    /// the result's.
    pub fn conv3x3(&mut self, name: &str, x: TensorId, channels: usize, how: Conv2d, result: DType) -> TensorId {
        let (dtype, c) = (self.tensor(x).spec.dtype, self.cols_of(x));
        let w = self.weight(&format!("{name}.weight"), dtype, [channels, c, 3, 3]);
        let b = self.weight(&format!("{name}.bias"), result, [channels]);
        self.op_as(result, name, how, &[x, w, b])
    }

    /// The group norm `name` with `name.weight` and `name.bias`.
    pub fn group_norm(&mut self, name: &str, x: TensorId, swish: bool, result: DType) -> TensorId {
        let c = self.cols_of(x);
        let w = self.weight(&format!("{name}.weight"), DType::F32, [c]);
        let b = self.weight(&format!("{name}.bias"), DType::F32, [c]);
        self.op_as(result, name, GroupNorm { swish }, &[x, w, b])
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
