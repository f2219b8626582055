//! Flags of `edit`, and of the savings it shares with `inspect`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use super::PlaceArgs;
use super::model::PartsArgs;
use super::picture::PictureArgs;
use super::place::{LoraArgs, RulesArgs};
use super::values::{self, FilterArg, FormatArg, PosteriorArg};
use crate::error::usage;
use crate::image::Stream;
use crate::model::edit::Savings;
use crate::pipeline::{EditJob, EditParameters, Rng, SIZE_LEVELS, STEPS};
use crate::sampling::random_seed;

/// Flags that turn an exact saving off.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct SavingsArgs {
    /// Compute every padding row of a prompt instead of one that counts for all
    #[arg(long, help_heading = "Exact savings", hide_short_help = true)]
    no_collapse_padding: bool,
    /// Compute the whole last block instead of the rows that are read
    #[arg(long, help_heading = "Exact savings", hide_short_help = true)]
    no_trim_last_block: bool,
    /// Run template and picture through the text model once for each prompt instead of once
    #[arg(long, help_heading = "Exact savings", hide_short_help = true)]
    no_share_prefix: bool,
    /// Compute connector and modulations in every step instead of once
    #[arg(long, help_heading = "Exact savings", hide_short_help = true)]
    no_condition_once: bool,
}

impl From<SavingsArgs> for Savings {
    fn from(args: SavingsArgs) -> Savings {
        Savings {
            collapse_padding: !args.no_collapse_padding,
            trim_last_block: !args.no_trim_last_block,
            share_prefix: !args.no_share_prefix,
            condition_once: !args.no_condition_once,
        }
    }
}

/// A seed; none: a random one. (clap takes an `Option` for a flag that may be missing.)
type Seed = Option<u64>;

/// Flags of `edit`.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// Model folder, a transformer file in it, or a name such as v1.1 [default: the demo model]
    ///
    /// The folder has the official layout or that of diffusers, or is the model's place in a hub's cache, where names are looked for. The demo model is built in.
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    model: Option<PathBuf>,
    #[command(flatten)]
    parts: PartsArgs,
    #[command(flatten)]
    lora: LoraArgs,
    /// What to change, in English or Chinese
    ///
    /// One that begins with a dash is given as -p=TEXT.
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt")]
    prompt: String,
    /// What to lead the result away from
    #[arg(short, long, value_name = "TEXT", default_value = "", help_heading = "Prompt", hide_short_help = true)]
    negative_prompt: String,
    /// Picture to edit, - is standard input; without it a picture is made from the prompt alone
    ///
    /// JPEG, PNG, WebP, GIF, BMP, TIFF and JPEG XL can be read. v1.1 can make a picture from a prompt alone, v1.0 was not trained to.
    #[arg(short, long, value_name = "FILE", help_heading = "Picture")]
    image: Option<PathBuf>,
    /// Side of the square whose area the picture is given [default: the model's]
    ///
    /// Unless the model's step1x.json says otherwise, it is 512 with the official rules and 1024 with those of diffusers.
    #[arg(long, value_parser = values::within(&SIZE_LEVELS), allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Picture")]
    size_level: Option<usize>,
    /// Width without -i, a multiple of 16 [default: 1024]
    #[arg(long, conflicts_with = "image", value_parser = values::side, allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Picture", hide_short_help = true)]
    width: Option<usize>,
    /// Height without -i, a multiple of 16 [default: 1024]
    #[arg(long, conflicts_with = "image", value_parser = values::side, allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Picture", hide_short_help = true)]
    height: Option<usize>,
    /// How to bring the picture to the working size; the first official code: bicubic
    #[arg(long, value_enum, default_value = "lanczos", help_heading = "Picture", hide_short_help = true)]
    resize_filter: FilterArg,
    /// Leave the result at the working size
    #[arg(long, help_heading = "Picture", hide_short_help = true)]
    keep_working_size: bool,
    #[command(flatten)]
    picture: PictureArgs,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = values::within(&STEPS), allow_negative_numbers = true, help_heading = "Sampling")]
    steps: usize,
    /// Guidance scale: how far the result is led away from the negative prompt [default: the model's, usually 6]
    #[arg(
        long,
        alias = "cfg-guidance",
        value_parser = values::cfg_scale,
        allow_hyphen_values = true,
        help_heading = "Sampling",
        hide_short_help = true
    )]
    cfg_scale: Option<f32>,
    #[command(flatten)]
    rules: RulesArgs,
    /// Times above this use the norm-limited guidance rule; 1.0: never (the first official code) [default: as the rules say, 0.93 of the official ones]
    #[arg(
        long,
        value_parser = values::guidance_limit,
        value_name = "T",
        allow_hyphen_values = true,
        help_heading = "Sampling",
        hide_short_help = true
    )]
    guidance_limit: Option<f64>,
    /// Seed of the noise, up to 2^64 - 1; a negative one is random
    ///
    /// A random seed is printed. It is below 2^53, so that every program keeps it exactly.
    #[arg(short, long, default_value = "42", value_parser = values::seed, allow_hyphen_values = true, help_heading = "Sampling")]
    seed: Seed,
    /// Generator of the noise as PyTorch has it: cpu, cuda (an H100's grid), or cuda:THREADS for another grid
    #[arg(long, default_value = "cuda", value_parser = values::rng, help_heading = "Sampling", hide_short_help = true)]
    rng: Rng,
    /// Latent of the input picture: the posterior's mean, or a sample by the seed [default: as the rules say, mean with the official ones]
    #[arg(long, value_enum, help_heading = "Sampling", hide_short_help = true)]
    posterior: Option<PosteriorArg>,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// File to write; .png, .jpg or .webp says the format; - is standard output
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: PathBuf,
    /// Format of the result, where its name says none [default for standard output: png]
    #[arg(long, value_enum, help_heading = "Output", hide_short_help = true)]
    format: Option<FormatArg>,
    /// Replace the output if it exists
    #[arg(short, long, help_heading = "Output", hide_short_help = true)]
    force: bool,
    /// Print one JSON object with parameters, sizes, seconds and peak bytes
    #[arg(long, help_heading = "Output", hide_short_help = true)]
    pub json: bool,
    /// Show no progress
    #[arg(short, long, help_heading = "Output", hide_short_help = true)]
    pub quiet: bool,
    #[command(flatten)]
    savings: SavingsArgs,
}

impl EditArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error that names flag, value and range.
    pub fn job(&self) -> Result<EditJob> {
        let usage_unless = |ok: bool, text: String| if ok { Ok(()) } else { Err(usage(anyhow::anyhow!(text))) };
        usage_unless(
            self.model.is_some() || self.image.is_some(),
            "the built-in demo model only edits pictures; give one with -i, or another model with -m".into(),
        )?;
        let (output, edit) = (Stream::from(self.output.clone()), self.parameters()?);
        usage_unless(
            output != Stream::Standard || !self.json,
            "standard output takes the picture or its JSON; leave out --json, or name a file with -o".into(),
        )?;
        Ok(EditJob {
            started: Instant::now(),
            model: self.model.as_deref().map(|model| self.parts.of(model)).transpose()?,
            loras: self.lora.lora.clone(),
            image: self.image.clone().map(Stream::from),
            reading: self.picture.into(),
            edit,
            format: self.format.map(Into::into),
            output,
            force: self.force,
            keep_working_size: self.keep_working_size,
            place: self.place.choice()?,
        })
    }

    fn parameters(&self) -> Result<EditParameters> {
        Ok(EditParameters {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            steps: self.steps,
            cfg_scale: self.cfg_scale,
            rules: self.rules.choice(),
            guidance_limit: self.guidance_limit,
            seed: self.seed.unwrap_or_else(random_seed),
            size_level: self.size_level,
            size: (self.width.unwrap_or(1024), self.height.unwrap_or(1024)),
            filter: self.resize_filter.into(),
            rng: self.rng,
            sample_posterior: self.posterior.map(|posterior| posterior == PosteriorArg::Sample),
            savings: self.savings.into(),
        })
    }

    /// Whether the seed was left to chance and should be shown.
    pub fn random_seed(&self) -> bool {
        self.seed.is_none()
    }
}
