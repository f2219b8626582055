//! Flags of `pull`.

use clap::{Args, ValueEnum};

use super::environment;
use crate::commands::pull::{PullJob, Source};

/// Flags of `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Model: v1.1, v1.0, v1.1-diffusers, or ORG/NAME, also with a revision: ORG/NAME@REVISION
    #[arg(value_name = "NAME")]
    name: String,
    /// Hub to fetch it from
    #[arg(long, value_enum, default_value = "hf")]
    source: SourceArg,
    /// Fetch every file of its repository, not only those that are read
    #[arg(long)]
    all: bool,
    /// Connections over which a large file is fetched
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    connections: u8,
    /// List the files with their sizes, and fetch nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// List nothing and show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SourceArg {
    /// huggingface.co, or the mirror of HF_ENDPOINT
    Hf,
    /// modelscope.cn
    Modelscope,
}

impl PullArgs {
    /// The job, with what the environment says.
    pub fn job(&self) -> PullJob {
        let source = match self.source {
            SourceArg::Hf => Source::HuggingFace,
            SourceArg::Modelscope => Source::ModelScope,
        };
        let (all, dry_run, json, quiet) = (self.all, self.dry_run, self.json, self.quiet);
        let (name, connections, environment) = (self.name.clone(), self.connections.into(), environment::hubs());
        PullJob { name, source, all, connections, dry_run, json, quiet, environment }
    }
}
