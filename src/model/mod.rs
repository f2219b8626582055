//! The networks, recorded: what is computed, in the checkpoint's names. Nothing here knows how or where it is executed.

mod config;
mod connector;
pub mod dit;
pub mod edit;
mod preset;
pub mod text;
pub mod vae;
pub mod vision;

pub use config::{Config, DitConfig, HEAD_WIDTH, ShapeOf, TextConfig, VaeConfig, Version, VisionConfig};
pub use connector::PromptRows;
pub use preset::{AXES, LM_HEAD, Preset};
