//! What a tensor is, apart from its values: element type, shape, and both together.

use std::fmt;

/// Element type of a tensor, in memory or in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// The upper half of a binary32.
    BF16,
    /// IEEE 754 binary16.
    F16,
    /// 4 exponent and 3 mantissa bits, no infinities (e4m3fn), unscaled; appears in files only.
    F8E4M3,
    /// 5 exponent and 2 mantissa bits, the upper half of a binary16; appears in files only.
    F8E5M2,
    /// Signed 32-bit integer: row indices, token ids.
    I32,
    /// Unsigned 8-bit integer: pixels.
    U8,
    /// Signed 8-bit integer: operands of a product, with scales beside; never in a model's files.
    S8,
}

impl DType {
    /// Whether it is one of the two of eight bits, which may have scales.
    pub const fn is_fp8(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2)
    }

    /// Whether values are real numbers, so that a result may be rounded to this type.
    pub const fn is_float(self) -> bool {
        !matches!(self, DType::I32 | DType::U8 | DType::S8)
    }

    /// The number by which kernels know the type (`types.cuh`); none of a type that appears in files only, or that few kernels take.
    pub const fn code(self) -> Option<usize> {
        Some(match self {
            DType::F32 => 0,
            DType::BF16 => 1,
            DType::F16 => 2,
            DType::I32 => 3,
            DType::U8 => 4,
            DType::F8E4M3 | DType::F8E5M2 | DType::S8 => return None,
        })
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::F8E4M3 | DType::F8E5M2 | DType::U8 | DType::S8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::F8E4M3 => "f8_e4m3",
            DType::F8E5M2 => "f8_e5m2",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::S8 => "s8",
        })
    }
}

/// Extents from the outermost to the innermost dimension; row-major.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape(pub Vec<usize>);

impl Shape {
    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// Extent of the innermost dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the innermost.
    pub fn rows(&self) -> usize {
        self.0.iter().rev().skip(1).product()
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Shape(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Element type and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Shape,
}

impl Spec {
    /// A spec from its parts.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Self {
        Spec { dtype, shape: shape.into() }
    }

    /// Bytes of the densely packed tensor.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes() * self.shape.elements()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

/// The checkpoint file a weight belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Diffusion transformer and connector.
    Dit,
    /// Autoencoder.
    Vae,
    /// Qwen2.5-VL vision tower and text model.
    Qwen,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Component::Dit => "transformer",
            Component::Vae => "autoencoder",
            Component::Qwen => "text encoder",
        })
    }
}
