//! Operands and results of the reference arithmetic: dense values on the host.

use half::{bf16, f16};

use crate::tensor::{DType, Spec};

/// Values of an operand, dense.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Float types, widened, and integers of eight bits.
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
pub enum HostValues {
    /// Float types, and integers of eight bits.
    F32(Vec<f32>),
    /// Indices.
    I32(Vec<i32>),
    /// Pixels.
    U8(Vec<u8>),
}

impl HostValues {
    /// The values, borrowed.
    pub fn values(&self) -> Values<'_> {
        match self {
            HostValues::F32(v) => Values::F32(v),
            HostValues::I32(v) => Values::I32(v),
            HostValues::U8(v) => Values::U8(v),
        }
    }
}

/// An output of the reference arithmetic.
#[derive(Clone, Debug)]
pub struct Output {
    /// Type and shape in the graph.
    pub spec: Spec,
    /// Zeros at the start, the results at the end.
    pub values: HostValues,
}

impl Output {
    /// Zeros of this spec.
    pub fn zeros(spec: Spec) -> Output {
        let n = spec.shape.elements();
        let values = match spec.dtype {
            DType::I32 => HostValues::I32(vec![0; n]),
            DType::U8 => HostValues::U8(vec![0; n]),
            _ => HostValues::F32(vec![0.0; n]),
        };
        Output { spec, values }
    }

    /// The results as a tensor of their type holds them.
    pub fn rounded(mut self) -> HostValues {
        let dtype = self.spec.dtype;
        if let HostValues::F32(values) = &mut self.values {
            values.iter_mut().for_each(|v| *v = round(dtype, *v));
        }
        self.values
    }

    /// Float results.
    pub fn f32(&mut self) -> &mut [f32] {
        match &mut self.values {
            HostValues::F32(v) => v,
            _ => panic!("{} is not a float tensor", self.spec),
        }
    }

    /// Index results.
    pub fn i32(&mut self) -> &mut [i32] {
        match &mut self.values {
            HostValues::I32(v) => v,
            _ => panic!("{} is not an index tensor", self.spec),
        }
    }

    /// Pixel results.
    pub fn u8(&mut self) -> &mut [u8] {
        match &mut self.values {
            HostValues::U8(v) => v,
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
