//! Flags of `gedit`.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};

use super::edits::{EditsArgs, Own};
use crate::commands::batch::Input;
use crate::commands::gedit::GeditJob;
use crate::error::usage;

/// Flags of `gedit`.
#[derive(Debug, Args)]
pub struct GeditArgs {
    /// Folder of GEdit-Bench, as save_to_disk or as Parquet, or one of its files
    #[arg(value_name = "DATA", required_unless_present = "summary")]
    data: Option<PathBuf>,
    /// Folder for results: they go to MODEL_NAME/fullset/TASK/LANGUAGE below it
    #[arg(short, long, value_name = "DIR", required_unless_present = "summary")]
    output: Option<PathBuf>,
    /// What the scorers call the model
    #[arg(long, value_name = "NAME", required_unless_present = "summary")]
    model_name: Option<String>,
    /// Language of the instructions
    #[arg(long, value_enum, default_value = "all")]
    language: LanguageArg,
    /// Only these tasks, such as color_alter,subject-add [default: all]
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    task: Vec<String>,
    /// Put KEY_SRCIMG.png beside each result, for the scorer of May 2025
    #[arg(long)]
    source_copies: bool,
    /// Read the scorers' files below a folder and print the table instead
    #[arg(long, value_name = "DIR", conflicts_with_all = ["data", "output", "model_name"])]
    pub summary: Option<PathBuf>,
    #[command(flatten)]
    pub(super) edits: EditsArgs,
}

/// Languages of the benchmark.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LanguageArg {
    En,
    #[value(alias = "zh")]
    Cn,
    All,
}

impl GeditArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error: flags that do not fit each other.
    pub fn job(&self) -> Result<GeditJob> {
        let missing = || usage(anyhow!("give the dataset, an output folder (-o) and --model-name"));
        let (data, output) = self.data.clone().zip(self.output.clone()).ok_or_else(missing)?;
        Ok(GeditJob {
            data,
            name: self.model_name.clone().ok_or_else(missing)?,
            language: match self.language {
                LanguageArg::En => Some("en".into()),
                LanguageArg::Cn => Some("cn".into()),
                LanguageArg::All => None,
            },
            tasks: self.task.clone(),
            source_copies: self.source_copies,
            batch: self.edits.job(Input::Items(String::new(), vec![], vec![]), output, Own { seeds: 1, format: None })?,
        })
    }

    /// Print JSON.
    pub fn json(&self) -> bool {
        self.edits.json
    }

    /// Say nothing but what has failed.
    pub fn quiet(&self) -> bool {
        self.edits.quiet
    }

    /// CPU threads.
    pub fn threads(&self) -> Option<usize> {
        self.edits.place.threads
    }
}
