//! The networks, recorded: what is computed, in the checkpoint's names. Nothing here knows how or where it is executed.

mod config;
mod connector;
mod diffusers;
pub mod dit;
pub mod edit;
mod preset;
pub mod text;
pub mod vae;
pub mod vision;

pub use config::{AbsentTensor, Config, DitConfig, HEAD_WIDTH, ShapeOf, TextConfig, VaeConfig, Version, VisionConfig};
pub use connector::PromptRows;
pub use diffusers::contradiction;
pub use preset::{AXES, LM_HEAD, Preset};
