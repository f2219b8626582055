//! Weights on disk: safetensors files, the model folder around them, and synthetic ones.
//!
//! A [`WeightFile`] is opened, never read into memory as a whole; a [`ModelFolder`] has a [`Recipe`] for each
//! canonical tensor, which makes it from what the files of one model hold; [`check`] compares these with what the
//! model code asks for, so that nothing past it meets a missing or mis-shaped tensor; a [`WeightKey`] fills any part of
//! a weight in the [`WeightForm`] that a device wants. Knows nothing of devices or graphs.
//!
//! Files come from elsewhere: any bytes give a [`ModelError`], never a panic, and nothing is
//! allocated by what a header claims.

mod check;
mod decode;
mod digest;
mod file;
mod folder;
mod foreign;
mod form;
mod heads;
mod hub;
mod inferred;
mod json;
mod layout;
mod lora;
mod names;
mod quantized;
mod recipe;
mod rows;
mod sound;
mod splitmix;
pub mod tokenizer;
mod words;
mod write;

pub use check::{Expected, check};
pub use decode::{decode_f32, e4m3_to_f32, encode_f32, f32_to_e4m3, f32_to_e5m2};
pub use digest::{Known, Published, RunningDigest, published_files};
pub use file::{Blocks, Entry, Notes, WeightFile, parse_gguf, parse_header};
pub use folder::ModelFolder;
pub use foreign::{Foreign, what_bytes, what_names};
pub use form::{WeightForm, WeightKey, read_f32};
pub use hub::{Caches, HubFiles, HubName, TEXT_ENCODER_REPOSITORY};
pub use layout::{LayoutKind, ModelPath, SETTINGS};
pub use lora::{Lora, LoraChoice, LoraSummary};
pub use names::to_diffusers;
pub use recipe::{Addition, Change, Factor, Magnitudes, Pair, PlusLora, Product, Recipe, Rows, Scaled, Stored};
pub use rows::read_rows;
pub use splitmix::{Splitmix, fill};
pub use words::shown;
pub use write::{Excerpt, PlannedFile, PlannedTensor, check_absent_or_empty, write_model};

use std::fmt;
use std::path::Path;

use self::words::bounded;
use crate::tensor::{Component, Spec};

/// Where an executor finds weights: a [`ModelFolder`], or a generator in tests. Names are canonical ones.
pub trait WeightSource: Sync {
    /// Element type and extents in which a weight is read.
    fn spec(&self, component: Component, name: &str) -> Option<Spec>;

    /// Whether its elements are computed in large blocks: then one long read costs less than many short ones.
    fn is_computed(&self, _: Component, _: &str) -> bool {
        false
    }

    /// What a device can add by itself to the weight as files have it, so that it becomes this weight in a form.
    fn addition(&self, _: Component, _: &str, _: WeightForm) -> Option<Addition> {
        None
    }

    /// Reads the little-endian bytes of a weight from `offset` on.
    ///
    /// # Errors
    /// No such weight, bytes beyond its end, or what the file system reports.
    fn read_at(&self, component: Component, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Says that a weight is kept elsewhere: what the system has in memory of its file may go. If it is read again, it comes from the
    /// disk.
    fn give_back(&self, _: Component, _: &str) {}
}

/// A fault of model files: missing, unreadable, malformed, or not what the model needs.
///
/// Every error of this module is one, so that a caller holding an `anyhow::Error` can tell it by
/// `downcast_ref::<ModelError>()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelError(String);

/// Result of this module's functions.
pub type Result<T> = std::result::Result<T, ModelError>;

impl ModelError {
    /// A fault in words: what was asked, what was found, what would help.
    ///
    /// Whatever the text repeats of a file, it becomes one of bounded length that a terminal shows as it is.
    pub fn new(message: impl AsRef<str>) -> Self {
        ModelError(bounded(message.as_ref()))
    }

    /// The same fault, with the file it is about in front.
    fn at(self, path: &Path) -> Self {
        ModelError::new(format!("{}: {}", path.display(), self.0))
    }

    /// An operation on `path` that the system refused.
    fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        ModelError::new(format!("{}: cannot {doing}: {error}", path.display()))
    }
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ModelError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_error_is_told_apart_inside_anyhow() {
        let error = anyhow::Error::from(ModelError::new("bad")).context("while opening");
        assert!(error.downcast_ref::<ModelError>().is_some());
    }

    #[test]
    fn whatever_a_file_holds_a_message_stays_short_and_plain() {
        let error = ModelError::new(format!("\u{1b}[2J {}", "x".repeat(1 << 20))).at(Path::new("a\u{7}"));
        let text = error.to_string();
        assert!(text.starts_with(r"a\u0007: \u001b[2J xxx") && text.len() < 20_000, "{}", text.len());
    }
}
