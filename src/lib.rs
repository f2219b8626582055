//! step1x-edit: a lean inference runtime for the image-editing model Step1X-Edit.
//!
//! Its whole use, here with the built-in demo model on the CPU:
//!
//! ```
//! use step1x_edit::{DeviceChoice, EditParameters, Engine, Model, Place, PlaceChoice, Rgb, Silent};
//!
//! # fn main() -> anyhow::Result<()> {
//! let place = Place::open(&PlaceChoice { device: DeviceChoice::Cpu, ..PlaceChoice::default() })?;
//! let mut engine = Engine::open(Model::demo()?, place)?; // Model::open("folder".as_ref()) for released weights
//! let picture = Rgb { width: 64, height: 64, data: vec![255; 64 * 64 * 3] }; // or image::decode, of a file
//! let edit = EditParameters { steps: 2, size_level: Some(64), ..EditParameters::new("add a blue circle") };
//! let edited = engine.edit(&edit, Some(&picture), &mut Silent)?;
//! assert_eq!(edited.at(&picture).data.len(), picture.data.len());
//! # Ok(())
//! # }
//! ```
//!
//! An [`Engine`] keeps what a second edit can use: plans, and on a GPU kernels, weights and captured steps.
//!
//! # Inside
//!
//! Record once, plan once, run many. Dependencies point down this list; each module's invariant in a sentence:
//!
//! - [`cli`]: flags and environment to validated jobs; nothing below reads a flag or an environment variable.
//! - [`commands`]: the commands besides `edit`; each takes a job.
//! - [`serve`]: edits over HTTP; opens no connection.
//! - [`progress`]: what a person sees while something runs.
//! - [`pipeline`]: the engine, and one edit from files to file.
//! - [`stop`]: what a signal asks, and when it is obeyed.
//! - [`error`]: faults with an exit code of their own; depends on nothing.
//! - [`inputs`]: tokens and patches to the program's spec and input values; pure.
//! - [`exec`]: walks a plan; decides nothing.
//! - [`weights`]: checkpoints, and how each weight comes to be from them; any bytes give an error, never a panic.
//! - [`prompt`], [`image`], [`sampling`]: the host's arithmetic, to the bit as the official code has it.
//! - [`model`]: records the networks; knows nothing of devices, plans or execution.
//! - [`plan`]: a pure function from graph to decisions; every check happens here, before memory is touched.
//! - [`graph`]: storages, views and nodes in program order; knows nothing of what will run them.
//! - [`ops`]: one file an op; knows nothing of storages.
//! - [`cuda`]: the device: libraries, memory, kernels, matrix products, captured graphs; knows nothing of ops.
//! - [`kernels`]: the embedded CUDA sources.
//! - [`hash`], [`aside`], [`reserve`]: the one hash; files that appear whole or not at all; memory that may be refused; depend on
//!   nothing.
//! - [`tensor`]: element types and shapes; depends on nothing.

pub use error::{Interrupted, ResourceError, UsageError};
pub use image::Rgb;
pub use pipeline::{
    DeviceChoice, EditJob, EditParameters, Edited, Engine, Model, Place, PlaceChoice, Progress, Report, Rules, Silent, run_edit,
};
pub use weights::ModelError;

pub mod aside;
pub mod cli;
pub mod commands;
pub mod cuda;
pub mod error;
pub mod exec;
pub mod graph;
pub mod hash;
pub mod image;
pub mod inputs;
pub mod kernels;
pub mod model;
pub mod ops;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod prompt;
pub mod reserve;
pub mod sampling;
pub mod serve;
pub mod stop;
pub mod tensor;
pub mod weights;
