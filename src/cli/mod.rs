//! The command line: flags to validated jobs.
//!
//! Nothing below this module reads a flag or an environment variable.

mod demo;
mod environment;
mod judge;
mod measure;
mod memory;
mod place;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::demo::DemoArgs;
pub use self::environment::setup;
pub use self::judge::JudgeArgs;
pub use self::measure::{BenchArgs, CompareArgs, DoctorArgs, ProfileArgs, VerifyArgs};
pub use self::memory::MemoryArgs;
pub use self::place::PlaceArgs;
use crate::error::usage;
use crate::image::Filter;
use crate::model::edit::Savings;
use crate::model::{Preset, Version};
use crate::ops::H100_GRID_THREADS;
use crate::pipeline::{DeviceChoice, EditJob, EditParameters, Rng};
use crate::plan::Precision;
use crate::sampling::random_seed;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the picture could not be read, made or written, 2 usage, 3 model files, \
                          4 no device or not enough memory, 130 interrupted.";
const DOCTORS_CODES: &str = "Exit codes: 0 edits can run on the GPU; otherwise 16 plus 1 without a driver or a device with \
                             kernels, 2 without NVRTC, 4 without cuBLASLt.";

/// Edit pictures with Step1X-Edit.
#[derive(Debug, Parser)]
#[command(name = "step1x-edit", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Edit a picture by an instruction, or make one from text alone (without -i; model v1.1)
    Edit(Box<EditArgs>),
    /// Make the built-in demo model's gallery: pictures, instructions, results
    Demo(DemoArgs),
    /// Show a model's files, tensors and parameters, and the plan of an edit; also without weights (--preset)
    Inspect(InspectArgs),
    /// Write a model folder of synthetic weights in the official layout
    Synth(SynthArgs),
    /// Run a recorded edit of the official code and show how far from it, and from float32, each result is
    Verify(VerifyArgs),
    /// Edit a folder of cases with known results and count the right ones
    Judge(Box<JudgeArgs>),
    /// Run an edit's stages on a GPU and on the CPU, node by node, and name the first that differs
    Compare(CompareArgs),
    /// Seconds, memory and energy of an edit, cold and warm, and milliseconds of each stage, on a GPU
    Bench(BenchArgs),
    /// What each node of an edit's stages takes on a GPU, against what the device could do
    Profile(ProfileArgs),
    /// Say which driver, devices and libraries there are, what is missing and how to get it
    #[command(after_help = DOCTORS_CODES)]
    Doctor(DoctorArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrecisionArg {
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FilterArg {
    Lanczos,
    Bicubic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PosteriorArg {
    Mean,
    Sample,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PresetArg {
    /// The released size: 42 GB.
    Full,
    /// The same parts with few, narrow layers: 51 MB.
    Tiny,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum VersionArg {
    #[value(name = "v1.0", alias = "1.0")]
    V1_0,
    #[value(name = "v1.1", alias = "1.1")]
    V1_1,
}

impl From<VersionArg> for Version {
    fn from(version: VersionArg) -> Version {
        match version {
            VersionArg::V1_0 => Version::V1_0,
            VersionArg::V1_1 => Version::V1_1,
        }
    }
}

impl From<PresetArg> for Preset {
    fn from(preset: PresetArg) -> Preset {
        match preset {
            PresetArg::Full => Preset::Full,
            PresetArg::Tiny => Preset::Tiny,
        }
    }
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Precision {
        match precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
        }
    }
}

/// Flags that turn an exact saving off.
#[derive(Clone, Copy, Debug, Args)]
struct SavingsArgs {
    /// Compute every padding row of a prompt instead of one that counts for all
    #[arg(long, help_heading = "Exact savings")]
    no_collapse_padding: bool,
    /// Compute the whole last block
    #[arg(long, help_heading = "Exact savings")]
    no_trim_last_block: bool,
    /// Run template and picture through the text model once a prompt
    #[arg(long, help_heading = "Exact savings")]
    no_share_prefix: bool,
    /// Compute connector and modulations in every step
    #[arg(long, help_heading = "Exact savings")]
    no_condition_once: bool,
}

impl SavingsArgs {
    fn savings(self) -> Savings {
        Savings {
            collapse_padding: !self.no_collapse_padding,
            trim_last_block: !self.no_trim_last_block,
            share_prefix: !self.no_share_prefix,
            condition_once: !self.no_condition_once,
        }
    }
}

/// Flags of `edit`.
#[derive(Debug, Args)]
pub struct EditArgs {
    /// Model folder (official layout, or its place in a hub's cache), or a transformer file in it [default: the built-in demo model]
    #[arg(short, long, alias = "model-path", value_name = "PATH")]
    model: Option<PathBuf>,
    /// Picture to edit: JPEG, PNG, WebP, BMP, GIF or TIFF; without it a picture is made from the prompt alone
    #[arg(short, long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// What to change, in English or Chinese; -p=TEXT takes one that begins with a dash
    #[arg(short, long)]
    prompt: String,
    /// What the result should be led away from
    #[arg(short, long, default_value = "")]
    negative_prompt: String,
    /// Result; .png, .jpg or .webp says the format
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output if it exists
    #[arg(short, long)]
    force: bool,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Guidance scale
    #[arg(long, alias = "cfg-guidance", default_value_t = 6.0, allow_negative_numbers = true)]
    cfg_scale: f32,
    /// Times above this use the norm-limited guidance rule; 1.0: never (the first official code)
    #[arg(long, default_value_t = 0.93, value_name = "T", allow_negative_numbers = true)]
    guidance_limit: f64,
    /// Seed of the noise; a negative one picks a random seed and prints it
    #[arg(short, long, default_value_t = 42, allow_negative_numbers = true)]
    seed: i64,
    /// Side of the square whose area the picture is brought to, in pixels [default: the model's, 512 unless its step1x.json says otherwise]
    #[arg(long, value_parser = clap::value_parser!(u32).range(64..=4096), value_name = "PIXELS")]
    size_level: Option<u32>,
    /// Width without -i, a multiple of 16 [default: 1024]
    #[arg(long, conflicts_with = "image", value_name = "PIXELS")]
    width: Option<usize>,
    /// Height without -i, a multiple of 16 [default: 1024]
    #[arg(long, conflicts_with = "image", value_name = "PIXELS")]
    height: Option<usize>,
    /// How the picture is brought to the working size; the first official code: bicubic
    #[arg(long, value_enum, default_value = "lanczos")]
    resize_filter: FilterArg,
    /// Generator of the noise as PyTorch has it: cpu, cuda (an H100's grid), or cuda:THREADS for another grid
    #[arg(long, default_value = "cuda", value_parser = parse_rng)]
    rng: Rng,
    /// Latent of the input picture: the posterior's mean, or a sample by the seed
    #[arg(long, value_enum, default_value = "mean")]
    posterior: PosteriorArg,
    /// Leave the result at the working size
    #[arg(long)]
    keep_working_size: bool,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Print one JSON object with parameters, sizes, seconds and peak bytes
    #[arg(long)]
    pub json: bool,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    savings: SavingsArgs,
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Model folder
    #[arg(short, long, value_name = "PATH", conflicts_with = "preset")]
    pub model: Option<PathBuf>,
    /// Networks without weights
    #[arg(long, value_enum)]
    preset: Option<PresetArg>,
    /// Version of the preset
    #[arg(long, value_enum, default_value = "v1.1")]
    version: VersionArg,
    /// Size of the picture to plan for
    #[arg(long, default_value = "1024x1024", value_parser = parse_size, value_name = "WxH")]
    size: (usize, usize),
    /// Side of the square whose area that picture is brought to
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=4096), value_name = "PIXELS")]
    size_level: u32,
    /// Denoising steps
    #[arg(long, alias = "num-steps", default_value_t = 28, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Prompt to plan for
    #[arg(short, long, default_value = "Change the sofa to vintage leather.")]
    pub prompt: String,
    /// Element type of activations
    #[arg(long, value_enum, default_value = "bf16")]
    precision: PrecisionArg,
    /// Memory to take.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print the recorded graph, equal blocks once
    #[arg(long)]
    pub graph: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    savings: SavingsArgs,
}

/// What `inspect` plans.
#[derive(Clone, Copy, Debug)]
pub struct PlanJob {
    /// Version of a preset.
    pub version: Version,
    /// Width and height of the picture.
    pub size: (usize, usize),
    /// Its working area's side.
    pub size_level: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Element type of activations.
    pub precision: Precision,
    /// Savings in use.
    pub savings: Savings,
}

impl InspectArgs {
    /// Networks without weights.
    pub fn preset(&self) -> Option<Preset> {
        self.preset.map(Preset::from)
    }

    /// The edit to plan.
    pub fn job(&self) -> PlanJob {
        PlanJob {
            version: self.version.into(),
            size: self.size,
            size_level: self.size_level as usize,
            steps: self.steps as usize,
            precision: self.precision.into(),
            savings: self.savings.savings(),
        }
    }
}

/// Flags of `synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// Size of the networks
    #[arg(long, value_enum)]
    preset: PresetArg,
    /// Version of the transformer
    #[arg(long, value_enum, default_value = "v1.1")]
    version: VersionArg,
    /// Seed of the weights
    #[arg(short, long, default_value_t = 0)]
    pub seed: u64,
    /// Folder to write; must be new or empty
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// No progress
    #[arg(short, long)]
    pub quiet: bool,
}

impl SynthArgs {
    /// Size of the networks.
    pub fn preset(&self) -> Preset {
        self.preset.into()
    }

    /// Version of the transformer.
    pub fn version(&self) -> Version {
        self.version.into()
    }
}

impl EditArgs {
    /// The validated job.
    ///
    /// # Errors
    /// A usage error that names flag, value and range.
    pub fn job(&self) -> Result<EditJob> {
        let usage_unless = |ok: bool, text: String| if ok { Ok(()) } else { Err(usage(anyhow::anyhow!(text))) };
        usage_unless(self.cfg_scale.is_finite(), format!("--cfg-scale {} is not a number", self.cfg_scale))?;
        usage_unless(self.guidance_limit.is_finite(), format!("--guidance-limit {} is not a number", self.guidance_limit))?;
        usage_unless(
            self.model.is_some() || self.image.is_some(),
            "the built-in demo model only edits; give a picture with -i, or another model with -m".into(),
        )?;
        self.place.check()?;
        let size = (self.width.unwrap_or(1024), self.height.unwrap_or(1024));
        for (flag, side) in [("--width", size.0), ("--height", size.1)] {
            usage_unless(
                (16..=4096).contains(&side) && side % 16 == 0,
                format!("{flag} {side} is not a multiple of 16 up to 4096"),
            )?;
        }
        let edit = EditParameters {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            steps: self.steps as usize,
            cfg_scale: self.cfg_scale,
            guidance_limit: self.guidance_limit,
            seed: u64::try_from(self.seed).unwrap_or_else(|_| random_seed()),
            size_level: self.size_level.map(|side| side as usize),
            size,
            filter: match self.resize_filter {
                FilterArg::Lanczos => Filter::Lanczos,
                FilterArg::Bicubic => Filter::Bicubic,
            },
            rng: self.rng,
            sample_posterior: self.posterior == PosteriorArg::Sample,
            savings: self.savings.savings(),
        };
        Ok(EditJob {
            started: Instant::now(),
            model: self.model.clone(),
            image: self.image.clone(),
            edit,
            output: self.output.clone(),
            force: self.force,
            keep_working_size: self.keep_working_size,
            device: self.place.device,
            max_vram: self.place.memory.max_vram,
            setup: setup(),
            precision: self.place.precision(),
        })
    }

    /// Whether the seed was left to chance and should be shown.
    pub fn random_seed(&self) -> bool {
        self.seed < 0
    }
}

fn parse_device(text: &str) -> Result<DeviceChoice> {
    let choice = match text.split_once(':').map_or((text, None), |(kind, n)| (kind, Some(n))) {
        ("auto", None) => Some(DeviceChoice::Auto),
        ("cpu", None) => Some(DeviceChoice::Cpu),
        ("cuda", None) => Some(DeviceChoice::Cuda(0)),
        ("cuda", Some(n)) => n.parse::<u16>().ok().map(|n| DeviceChoice::Cuda(n.into())),
        _ => None,
    };
    choice.ok_or_else(|| anyhow::anyhow!("devices are auto, cpu and cuda[:N]"))
}

fn parse_rng(text: &str) -> Result<Rng> {
    let threads = match text.split_once(':') {
        None if text == "cpu" => return Ok(Rng::Cpu),
        None if text == "cuda" => return Ok(Rng::Cuda { grid_threads: H100_GRID_THREADS }),
        Some(("cuda", threads)) => threads.parse::<usize>().ok(),
        _ => anyhow::bail!("generators are cpu, cuda and cuda:THREADS"),
    };
    match threads.filter(|&n| n >= 256 && n % 256 == 0) {
        Some(grid_threads) => Ok(Rng::Cuda { grid_threads }),
        None => anyhow::bail!("THREADS of cuda:THREADS is a multiple of 256, the threads of a block"),
    }
}

fn parse_size(text: &str) -> Result<(usize, usize)> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let (w, h) = sides.ok_or_else(|| anyhow::anyhow!("a size is written WIDTHxHEIGHT"))?;
    ensure!((1..=65536).contains(&w) && (1..=65536).contains(&h), "sides are 1 to 65536 pixels");
    Ok((w, h))
}

/// Arguments with `_` in flag names read as `-`, as people type the official names.
pub fn normalise(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut literal = false; // after `--`, nothing is a flag
    args.map(|arg| {
        literal |= arg == "--";
        match arg.to_str() {
            Some(flag) if !literal && flag.starts_with("--") => {
                let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
                (name.replace('_', "-") + value).into()
            }
            _ => arg,
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn edit(flags: &[&str]) -> Result<EditJob> {
        let args =
            ["step1x-edit", "edit", "-m", "model", "-p", "make it red", "-o", "out.png"].iter().chain(flags).map(OsString::from);
        let cli = Cli::try_parse_from(normalise(args))?;
        let Command::Edit(args) = cli.command else { anyhow::bail!("not an edit") };
        args.job()
    }

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_edit_of_nothing_but_a_prompt_has_the_defaults() {
        assert_eq!(format!("{:?}", edit(&[]).unwrap().edit), format!("{:?}", EditParameters::new("make it red")));
    }

    #[test]
    fn official_names_and_underscores_are_accepted() {
        let job = edit(&[
            "--cfg_guidance",
            "4.5",
            "--size_level=1024",
            "--num_steps",
            "8",
            "--negative_prompt",
            "a_b",
            "-i",
            "x_y.jpg",
        ])
        .unwrap();
        assert_eq!((job.edit.cfg_scale, job.edit.size_level, job.edit.steps), (4.5, Some(1024), 8));
        assert_eq!((job.edit.negative_prompt.as_str(), job.image), ("a_b", Some("x_y.jpg".into())));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for flags in [
            &["--steps", "0"][..],
            &["--width", "100"],
            &["--cfg-scale", "nan"],
            &["--rng", "cuda:100"],
            &["--rng", "xpu"],
            &["--device", "tpu"],
            &["--width", "512", "-i", "a.png"],
            &["--max-vram", "little"],
            &["--max-vram", "1GB", "--device", "cpu"],
            &["--nonsense"],
        ] {
            assert!(edit(flags).is_err(), "{flags:?}");
        }
        assert_eq!(edit(&["--max_vram=20.5GB"]).unwrap().max_vram, Some(20_500_000_000));
        assert_eq!(edit(&["--device", "cuda:1"]).unwrap().device, DeviceChoice::Cuda(1));
    }

    #[test]
    fn negative_seeds_are_random() {
        assert_ne!(edit(&["-s", "-1"]).unwrap().edit.seed, edit(&["--seed", "-1"]).unwrap().edit.seed);
        assert_eq!(edit(&["-s", "7", "--rng", "cuda:1024"]).unwrap().edit.rng, Rng::Cuda { grid_threads: 1024 });
    }
}
