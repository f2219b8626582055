//! step1x-edit
pub mod exec;
pub mod graph;
pub mod image;
pub mod model;
pub mod ops;
pub mod plan;
pub mod prompt;
pub mod tensor;
pub mod weights;
