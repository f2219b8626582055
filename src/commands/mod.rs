//! The commands besides `edit`. Each takes a job whose every choice is made, whoever made it.

pub mod demo;
pub mod doctor;
pub mod inspect;
pub mod judge;
pub mod measure;
pub mod synth;
pub mod verify;

use crate::cuda::Setup;
use crate::pipeline::DeviceChoice;
use crate::plan::Precision;

/// Where a job runs, and what it may take there.
#[derive(Clone, Debug)]
pub struct PlaceChoice {
    /// A GPU, the CPU, or whichever there is.
    pub device: DeviceChoice,
    /// Element type of activations; none: what suits the device.
    pub precision: Option<Precision>,
    /// Most bytes of the device's memory to take; none: what is free.
    pub max_vram: Option<usize>,
    /// Where the device's libraries and its cache lie.
    pub setup: Setup,
}
