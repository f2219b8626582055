//! Whether a model's files are those that were published.

use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::plan::format_bytes;
use crate::weights::{ModelError, ModelPath, Published, published_files};

/// A model's files, each with whether it has its published digest; none: nothing says what that is.
pub(super) struct Checked(Vec<(Published, Option<bool>)>);

impl Checked {
    /// Reads every file whose digest is known, several at a time.
    ///
    /// # Errors
    /// No model there, or a file that cannot be read.
    pub(super) fn new(at: &ModelPath, bar: &ProgressBar) -> Result<Checked> {
        let files = published_files(at)?;
        bar.set_length(files.iter().filter(|file| file.known.is_some()).map(|file| file.bytes).sum());
        let checked = files.into_par_iter().map(|file| {
            let verdict = file.is_as_published(&|bytes| bar.inc(bytes))?;
            Ok((file, verdict))
        });
        let checked = checked.collect::<Result<_>>()?;
        bar.finish_and_clear();
        Ok(Checked(checked))
    }

    /// An error that names the files that are not as they were published.
    pub(super) fn held(&self) -> Result<()> {
        let damaged: Vec<String> = self
            .0
            .iter()
            .filter(|(_, verdict)| *verdict == Some(false))
            .map(|(file, _)| file.path.display().to_string())
            .collect();
        match &damaged[..] {
            [] => Ok(()),
            [one] => Err(ModelError::new(format!("{one}: the file is not as it was published; fetch it again")).into()),
            more => {
                let text = format!("{} files are not as they were published; fetch them again:\n  ", more.len());
                Err(ModelError::new(text + &more.join("\n  ")).into())
            }
        }
    }

    pub(super) fn text(&self) -> String {
        let line = |(file, verdict): &(Published, Option<bool>)| {
            let by = file.known.as_ref().map_or("nothing to compare with", |known| known.by);
            let bytes = format_bytes(file.bytes as usize);
            format!("  {:<12} {}: {bytes}; {by}\n", words(*verdict), file.path.display())
        };
        let lines: String = self.0.iter().map(line).collect();
        let hint = match self.0.iter().all(|(_, verdict)| verdict.is_none()) {
            true => {
                "  no digest is known: this is no hub's cache, and there is neither a note of the hub's client nor a file SHA256SUMS\n"
            }
            false => "",
        };
        format!("digests of the files, compared with the published ones\n{lines}{hint}")
    }

    pub(super) fn json(&self) -> Value {
        let file = |(file, verdict): &(Published, Option<bool>)| {
            json!({"path": file.path.display().to_string(), "bytes": file.bytes, "verdict": words(*verdict),
                   "compared_with": file.known.as_ref().map(|known| known.by)})
        };
        self.0.iter().map(file).collect()
    }
}

fn words(verdict: Option<bool>) -> &'static str {
    match verdict {
        Some(true) => "ok",
        Some(false) => "damaged",
        None => "not checked",
    }
}
