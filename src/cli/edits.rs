//! Flags of commands that make many edits by one set of choices.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::PlaceArgs;
use super::edit::SavingsArgs;
use super::model::PartsArgs;
use super::picture::PictureArgs;
use super::place::{LoraArgs, RulesArgs};
use super::values::{self, FilterArg, FormatArg, PosteriorArg};
use crate::commands::batch::{BatchJob, Input, Resume, SEEDS_MOST, Shard};
use crate::error::usage;
use crate::image::Format;
use crate::pipeline::{EditParameters, Rng, SIZE_LEVELS, STEPS};

/// Flags of `batch` and `gedit`: how every edit is made.
#[derive(Debug, Args)]
pub struct EditsArgs {
    /// Model folder, a transformer file in it, or a name such as v1.1 [default: the demo model]
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    model: Option<PathBuf>,
    #[command(flatten)]
    parts: PartsArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// What to lead results away from
    #[arg(long, value_name = "TEXT", default_value = "", help_heading = "Edits", hide_short_help = true)]
    negative_prompt: String,
    /// Side of the square whose area pictures are given [default: the model's]
    #[arg(long, value_parser = values::within(&SIZE_LEVELS), allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Edits")]
    size_level: Option<usize>,
    /// How to bring pictures to the working size
    #[arg(long, value_enum, default_value = "lanczos", help_heading = "Edits", hide_short_help = true)]
    resize_filter: FilterArg,
    /// Leave results at the working size
    #[arg(long, help_heading = "Edits", hide_short_help = true)]
    keep_working_size: bool,
    #[command(flatten)]
    picture: PictureArgs,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = values::within(&STEPS), allow_negative_numbers = true, help_heading = "Edits")]
    steps: usize,
    /// Guidance scale [default: the model's, usually 6]
    #[arg(long, alias = "cfg-guidance", value_parser = values::cfg_scale, allow_hyphen_values = true, help_heading = "Edits", hide_short_help = true)]
    cfg_scale: Option<f32>,
    #[command(flatten)]
    rules: RulesArgs,
    /// Times above this use the norm-limited guidance rule [default: as the rules say]
    #[arg(long, value_parser = values::guidance_limit, value_name = "T", allow_hyphen_values = true, help_heading = "Edits", hide_short_help = true)]
    guidance_limit: Option<f64>,
    /// First seed of each item
    #[arg(short, long, default_value_t = 42, value_parser = values::fixed_seed, allow_hyphen_values = true, help_heading = "Edits")]
    seed: u64,
    /// Generator of the noise: cpu, cuda, or cuda:THREADS
    #[arg(long, default_value = "cuda", value_parser = values::rng, help_heading = "Edits", hide_short_help = true)]
    rng: Rng,
    /// Latent of the picture: the posterior's mean, or a sample by the seed [default: as the rules say]
    #[arg(long, value_enum, help_heading = "Edits", hide_short_help = true)]
    posterior: Option<PosteriorArg>,
    #[command(flatten)]
    savings: SavingsArgs,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
    /// Go on with the results in the output folder: make only what is missing or has changed
    #[arg(long, help_heading = "Results")]
    resume: bool,
    /// With --resume: make again what has failed
    #[arg(long, requires = "resume", help_heading = "Results", hide_short_help = true)]
    retry_errors: bool,
    /// With --resume: also compare digests of results that are there
    #[arg(long, requires = "resume", help_heading = "Results", hide_short_help = true)]
    verify: bool,
    /// Only the items whose number leaves I over when it is divided by N: 0/4 to 3/4 are all
    #[arg(long, value_name = "I/N", value_parser = shard, help_heading = "Results")]
    shard: Option<Shard>,
    /// Most items, from the first on [default: all]
    #[arg(long, value_name = "ITEMS", value_parser = values::count, allow_negative_numbers = true, help_heading = "Results")]
    limit: Option<usize>,
    /// Failures after which no more is tried [default: any number]
    #[arg(long, value_name = "FAILURES", value_parser = values::count, allow_negative_numbers = true, help_heading = "Results", hide_short_help = true)]
    max_errors: Option<usize>,
    /// Make items in their own order, instead of those of one size together
    #[arg(long, help_heading = "Results", hide_short_help = true)]
    keep_order: bool,
    /// Replace files that are in the way
    #[arg(short, long, help_heading = "Results", hide_short_help = true)]
    pub(super) force: bool,
    /// Print each result's line as JSON
    #[arg(long, help_heading = "Results", hide_short_help = true)]
    pub(super) json: bool,
    /// Say nothing but what has failed
    #[arg(short, long, help_heading = "Results", hide_short_help = true)]
    pub(super) quiet: bool,
}

/// What only `batch` can choose; the rest is as `gedit` has it.
pub(super) struct Own {
    /// Seeds of each item.
    pub(super) seeds: usize,
    /// Format of results.
    pub(super) format: Option<FormatArg>,
}

impl EditsArgs {
    /// The job of these flags, with nothing that only `batch` has.
    ///
    /// # Errors
    /// A usage error: flags that do not fit each other.
    pub(super) fn job(&self, input: Input, output: PathBuf, own: Own) -> Result<BatchJob> {
        if self.resume && self.force {
            let text = "--resume goes on with results and --force replaces them; leave one out";
            return Err(usage(anyhow::anyhow!(text)));
        }
        Ok(BatchJob {
            input,
            output,
            model: self.model.as_deref().map(|model| self.parts.of(model)).transpose()?,
            loras: self.lora.lora.clone(),
            edit: EditParameters {
                negative_prompt: self.negative_prompt.clone(),
                steps: self.steps,
                cfg_scale: self.cfg_scale,
                rules: self.rules.choice(),
                guidance_limit: self.guidance_limit,
                seed: self.seed,
                size_level: self.size_level,
                filter: self.resize_filter.into(),
                rng: self.rng,
                sample_posterior: self.posterior.map(|posterior| posterior == PosteriorArg::Sample),
                savings: self.savings.into(),
                ..EditParameters::new("")
            },
            seeds: own.seeds,
            reading: self.picture.into(),
            format: own.format.map_or(Format::Png, Into::into),
            keep_working_size: self.keep_working_size,
            place: self.place.choice()?,
            resume: Resume { go_on: self.resume, verify: self.verify, retry: self.retry_errors },
            force: self.force,
            shard: self.shard,
            limit: self.limit,
            max_errors: self.max_errors,
            keep_order: self.keep_order,
            dedup: None,
            triplets: None,
            judge: None,
            allow_outside: false,
            json: self.json,
        })
    }
}

/// A part of a manifest.
pub(super) fn shard(text: &str) -> Result<Shard> {
    let parts = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
    match parts {
        Some((part, of)) if part < of => Ok(Shard { part, of }),
        Some((_, of)) if of > 0 => anyhow::bail!("give 0/{of} to {}/{of}", of - 1),
        _ => anyhow::bail!("give I/N, such as 0/4 for the first of four parts"),
    }
}

/// A number of seeds.
pub(super) fn seeds(text: &str) -> Result<usize> {
    values::whole(1, SEEDS_MOST)(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_count_from_zero() {
        assert_eq!(shard("0/1").unwrap(), Shard { part: 0, of: 1 });
        assert_eq!(shard("3/4").unwrap(), Shard { part: 3, of: 4 });
        assert!(shard("4/4").unwrap_err().to_string().contains("0/4 to 3/4"));
        for text in ["", "1", "/", "0/0", "-1/2", "a/b"] {
            assert!(shard(text).is_err(), "{text}");
        }
        assert!(seeds("10000").is_ok() && seeds("10001").is_err() && seeds("0").is_err());
    }
}
