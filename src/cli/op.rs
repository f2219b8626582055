//! Flags of `op`.

use clap::Args;

use super::{setup, values};
use crate::commands::op::OpJob;
use crate::pipeline::{DeviceChoice, PlaceChoice};
use crate::tensor::Shape;

/// Flags of `op`.
#[derive(Debug, Args)]
pub struct OpArgs {
    /// The op, as `inspect` prints it: linear, attention, conv2d, ...
    #[arg(value_name = "NAME", required_unless_present = "list")]
    name: Option<String>,
    /// Run one case, by number, or those whose text contains this [default: all]
    #[arg(long, value_name = "N|TEXT")]
    case: Option<String>,
    /// Extents of the operands instead of those of the first case with as many, such as 4096x3072,9216x3072,9216
    #[arg(long, value_delimiter = ',', value_parser = shape, value_name = "SHAPES")]
    shape: Vec<Shape>,
    /// List the op's cases, or those of all ops, and run nothing
    #[arg(long)]
    list: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// GPU to run on: cuda[:N]
    #[arg(long, default_value = "cuda", value_parser = values::device, help_heading = "Device")]
    device: DeviceChoice,
}

impl OpArgs {
    /// The job, with what the environment says.
    pub fn job(&self) -> OpJob {
        OpJob {
            name: self.name.clone(),
            case: self.case.clone(),
            shapes: self.shape.clone(),
            list: self.list,
            place: PlaceChoice { device: self.device, setup: setup(), ..PlaceChoice::default() },
            json: self.json,
        }
    }
}

/// Largest extent; kernels count elements in 32 bits.
const EXTENT_MOST: usize = u32::MAX as usize;

/// Extents, the outermost first: 4096x3072.
fn shape(text: &str) -> Result<Shape, String> {
    let extents: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    match extents {
        Ok(extents) if extents.iter().all(|&n| (1..=EXTENT_MOST).contains(&n)) => Ok(Shape(extents)),
        _ => Err("extents are whole numbers from 1 on, joined by x, such as 4096x3072".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_positive_extents() {
        assert_eq!(shape("4096x3072").unwrap().0, [4096, 3072]);
        assert_eq!(shape("9216").unwrap().0, [9216]);
        assert!(shape("4294967295").is_ok() && shape("4294967296").is_err());
        assert!(["", "0x4", "4x", "4x-1", "4,4", "99999999999x1"].iter().all(|text| shape(text).is_err()));
    }
}
