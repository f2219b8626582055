//! What LoRA files are, and whether they fit a model.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};

use crate::pipeline::LoraChoice;
use crate::plan::format_bytes;
use crate::tensor::Shape;
use crate::weights::{Lora, LoraSummary, shown};

/// A LoRA file that was looked at.
pub(super) struct Looked {
    summary: LoraSummary,
    /// The modules of the model that it changes, or why it does not fit.
    fits: Result<usize>,
}

impl Looked {
    /// Looks at a file, and whether it fits a transformer of these tensors.
    pub fn new<'t>(choice: &LoraChoice, tensors: impl Iterator<Item = (&'t str, &'t Shape)> + Clone) -> Result<Looked> {
        let lora = Lora::open(choice)?;
        Ok(Looked { summary: lora.summary()?, fits: lora.check(tensors).map_err(Into::into) })
    }

    /// As people read it; `model`: what it was compared with.
    pub fn text(&self, model: &str) -> String {
        let LoraSummary { path, bytes, sha256, trainer, base_model, modules, ranks, alphas, unused } = &self.summary;
        let mut text = format!("LoRA {path}: {}, sha256 {sha256}\n", format_bytes(*bytes as usize));
        let mut line = |name: &str, what: String| text.push_str(&format!("  {name:<11} {what}\n"));
        line("trainer", shown(trainer));
        line("base model", base_model.as_deref().map_or("not said".into(), shown));
        let count = |(kind, n): (&String, &usize)| format!("{n} {kind}");
        line("modules", modules.iter().map(count).collect::<Vec<_>>().join(", "));
        let rank =
            |(rank, n): (&usize, &usize)| if ranks.len() == 1 { rank.to_string() } else { format!("{rank} ({n} modules)") };
        line("rank", if ranks.is_empty() { "none".into() } else { ranks.iter().map(rank).collect::<Vec<_>>().join(", ") });
        line(
            "alpha",
            match alphas {
                None => "not said: the rank".into(),
                Some([least, most]) if least == most => least.to_string(),
                Some([least, most]) => format!("{least} to {most}"),
            },
        );
        if *unused > 0 {
            line("not used", format!("{unused} tensors of text encoders"));
        }
        let _ = match &self.fits {
            Ok(n) => writeln!(text, "  {:<11} {n} modules of {model}", "fits"),
            Err(_) => writeln!(text, "  {:<11} no, not {model}", "fits"),
        };
        text
    }

    /// As an object.
    pub fn json(&self) -> Value {
        let mut object = json!(self.summary);
        object["fits"] = json!(self.fits.is_ok());
        object
    }

    /// An error if it does not fit.
    pub fn held(self) -> Result<()> {
        self.fits.map(|_| ())
    }
}
