//! Tensors as bytes of an arena, and as dense values on the host.

use std::borrow::Cow;

use anyhow::{Result, bail, ensure};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::graph::{Storage, Tensor};
use crate::ops::{HostValues, Values, WeightOrder, round};
use crate::plan::Precision;
use crate::tensor::{Component, DType};
use crate::weights::{WeightForm, WeightKey, WeightSource, read_f32};

/// Values of one task of a parallel loop.
const CHUNK: usize = 4096;

/// Dense values of a tensor, borrowed from where they lie if they already are dense f32, i32 or u8.
pub(super) enum Loaded<'a> {
    F32(Cow<'a, [f32]>),
    I32(Cow<'a, [i32]>),
    U8(Cow<'a, [u8]>),
}

impl Loaded<'_> {
    pub(super) fn values(&self) -> Values<'_> {
        match self {
            Loaded::F32(v) => Values::F32(v),
            Loaded::I32(v) => Values::I32(v),
            Loaded::U8(v) => Values::U8(v),
        }
    }

    pub(super) fn into_host_values(self) -> HostValues {
        match self {
            Loaded::F32(v) => HostValues::F32(v.into_owned()),
            Loaded::I32(v) => HostValues::I32(v.into_owned()),
            Loaded::U8(v) => HostValues::U8(v.into_owned()),
        }
    }
}

/// Checks that there is a value for each element.
pub(super) fn check_count(tensor: &Tensor, values: &Values) -> Result<()> {
    let n = match values {
        Values::F32(v) => v.len(),
        Values::I32(v) => v.len(),
        Values::U8(v) => v.len(),
    };
    ensure!(n == tensor.spec.shape.elements(), "{n} values were given for {}; give one for each element", tensor.spec);
    Ok(())
}

/// The view's elements from its storage's bytes, which are aligned for any type.
pub(super) fn load<'a>(storage: &'a [u8], tensor: &Tensor) -> Result<Loaded<'a>> {
    Ok(match tensor.spec.dtype {
        DType::F32 => Loaded::F32(dense(bytemuck::cast_slice(storage), tensor)),
        DType::I32 => Loaded::I32(dense(bytemuck::cast_slice(storage), tensor)),
        DType::U8 => Loaded::U8(dense(storage, tensor)),
        DType::S8 => widened(&dense::<i8>(bytemuck::cast_slice(storage), tensor), |&v| v.into()),
        DType::BF16 => widened(&dense::<bf16>(bytemuck::cast_slice(storage), tensor), |v| v.to_f32()),
        DType::F16 => widened(&dense::<f16>(bytemuck::cast_slice(storage), tensor), |v| v.to_f32()),
        other => bail!("the arena holds no {other}"),
    })
}

fn widened<T: Sync>(values: &[T], widen: impl Fn(&T) -> f32 + Sync + Send) -> Loaded<'static> {
    Loaded::F32(Cow::Owned(values.par_iter().with_min_len(CHUNK).map(widen).collect()))
}

/// Writes dense values to the view's elements, rounded to its type.
pub(super) fn store(storage: &mut [u8], tensor: &Tensor, values: Values) -> Result<()> {
    match (tensor.spec.dtype, values) {
        (DType::F32, Values::F32(v)) => scatter(bytemuck::cast_slice_mut(storage), tensor, v, |v| v),
        (DType::BF16, Values::F32(v)) => scatter(bytemuck::cast_slice_mut(storage), tensor, v, bf16::from_f32),
        (DType::F16, Values::F32(v)) => scatter(bytemuck::cast_slice_mut(storage), tensor, v, f16::from_f32),
        (DType::S8, Values::F32(v)) => scatter(bytemuck::cast_slice_mut(storage), tensor, v, |v| v as i8),
        (DType::I32, Values::I32(v)) => scatter(bytemuck::cast_slice_mut(storage), tensor, v, |v| v),
        (DType::U8, Values::U8(v)) => scatter(storage, tensor, v, |v| v),
        (dtype, _) => bail!("the tensor holds {dtype}; give values of that kind"),
    }
    Ok(())
}

/// A dense part of a weight, widened; in bf16 precision rounded to the type in which the graph uses it. Of one whose rows are
/// integers with scales and biases beside, what lies on the device.
pub(super) fn load_weight(
    weights: &dyn WeightSource,
    component: Component,
    storage: &Storage,
    tensor: &Tensor,
    precision: Precision,
) -> Result<Vec<f32>> {
    let name = &storage.name[..];
    if storage.spec.dtype == DType::S8 {
        let form = WeightForm { dtype: DType::S8, order: WeightOrder::AsStored };
        let mut words = vec![0u32; storage.spec.bytes().div_ceil(4)];
        let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..storage.spec.bytes()];
        WeightKey { component, name: name.into(), form }.fill(weights, 0, bytes)?;
        return match load(bytes, tensor)? {
            Loaded::F32(values) => Ok(values.into_owned()),
            _ => bail!("{name} holds no {}", tensor.spec),
        };
    }
    ensure!(tensor.is_dense(), "weights are read by whole rows, not by columns");
    let Some(spec) = weights.spec(component, name) else { bail!("the {component} weights lack {name}") };
    let mut values = vec![0.0; tensor.spec.shape.elements()];
    read_f32(weights, component, name, tensor.offset, &mut values)?;
    if precision.dtype() == DType::BF16 && spec.dtype != tensor.spec.dtype {
        values.par_iter_mut().with_min_len(CHUNK).for_each(|v| *v = round(tensor.spec.dtype, *v));
    }
    Ok(values)
}

/// The view's elements without gaps.
fn dense<'a, T: Copy>(storage: &'a [T], tensor: &Tensor) -> Cow<'a, [T]> {
    let (rows, cols) = (tensor.spec.shape.rows(), tensor.spec.shape.cols());
    if tensor.is_dense() {
        return Cow::Borrowed(&storage[tensor.offset..][..rows * cols]);
    }
    let mut values = Vec::with_capacity(rows * cols);
    (0..rows).for_each(|row| values.extend_from_slice(&storage[tensor.offset + row * tensor.row_stride..][..cols]));
    Cow::Owned(values)
}

fn scatter<S: Copy, T>(storage: &mut [T], tensor: &Tensor, values: &[S], convert: impl Fn(S) -> T) {
    let cols = tensor.spec.shape.cols();
    for (row, values) in values.chunks_exact(cols).enumerate() {
        let start = tensor.offset + row * tensor.row_stride;
        storage[start..start + cols].iter_mut().zip(values).for_each(|(to, &from)| *to = convert(from));
    }
}
