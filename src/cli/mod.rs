//! The command line: flags and environment to validated jobs. Nothing below reads either.

mod batch;
mod demo;
mod edit;
mod edits;
mod environment;
mod gedit;
mod help;
mod judge;
mod look;
mod measure;
mod model;
mod op;
mod picture;
mod place;
mod pull;
mod serve;
mod values;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

pub use self::batch::BatchArgs;
pub use self::demo::DemoArgs;
pub use self::edit::EditArgs;
pub use self::environment::{setup, threads};
pub use self::gedit::GeditArgs;
pub use self::help::parse;
pub use self::judge::JudgeArgs;
pub use self::look::{DoctorArgs, InspectArgs, SynthArgs};
pub use self::measure::{BenchArgs, BenchChoice, CompareArgs, ProfileArgs, VerifyArgs};
pub use self::op::OpArgs;
pub use self::place::PlaceArgs;
pub use self::pull::PullArgs;
pub use self::serve::ServeArgs;

/// Edit pictures with Step1X-Edit.
#[derive(Debug, Parser)]
#[command(name = "step1x-edit", version, after_help = help::EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands; [`help`] groups them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Edit a picture by an instruction, or make one from text alone (without -i; model v1.1)
    #[command(after_help = help::EXAMPLES)]
    Edit(Box<EditArgs>),
    /// Make every edit of a manifest on one loaded model, and go on after any interruption
    #[command(after_help = help::BATCH_EXAMPLES)]
    Batch(Box<BatchArgs>),
    /// Make the edits of GEdit-Bench for both official scorers, or print the table of scores
    #[command(after_help = help::GEDIT_EXAMPLES)]
    Gedit(Box<GeditArgs>),
    /// Make edits for other programs and people: HTTP as OpenAI's images have it, and a page
    #[command(after_help = help::SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Make the gallery of the built-in demo model: pictures, instructions, results
    Demo(DemoArgs),
    /// Fetch a model from Hugging Face or ModelScope into the cache where -m finds it
    #[command(after_help = help::PULL_EXAMPLES)]
    Pull(PullArgs),
    /// Show a model's files, tensors and parameters, and the plan of an edit
    Inspect(InspectArgs),
    /// Look for driver, devices and libraries; say what is missing and how to get it
    #[command(after_help = help::DOCTORS_CODES)]
    Doctor(DoctorArgs),
    /// Time a whole edit on a GPU, cold and warm, and each stage; measure memory and energy
    Bench(BenchArgs),
    /// Time every node of an edit's stages on a GPU, beside what the GPU could do at best
    Profile(ProfileArgs),
    /// Check one op's kernels against the CPU and time them, at its cases or at any shape
    #[command(after_help = help::OP_EXAMPLES)]
    Op(OpArgs),
    /// Check model and program against the official code: repeat an edit that it recorded
    Verify(VerifyArgs),
    /// Check a GPU against the CPU: run an edit on both and name the first node that differs
    Compare(CompareArgs),
    /// Check edits against known results: edit a folder of cases and count the right ones
    Judge(Box<JudgeArgs>),
    /// Write a model folder of synthetic weights
    Synth(SynthArgs),
}

/// Arguments with `_` in flag names read as `-`, as people type the official names.
fn normalise(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
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
    use anyhow::Result;
    use clap::CommandFactory;

    use super::*;
    use crate::image::Stream;
    use crate::pipeline::{DeviceChoice, EditJob, EditParameters, Rng};

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
        assert_eq!((job.edit.cfg_scale, job.edit.size_level, job.edit.steps), (Some(4.5), Some(1024), 8));
        assert_eq!((job.edit.negative_prompt.as_str(), job.image), ("a_b", Some(Stream::File("x_y.jpg".into()))));
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
        assert_eq!(edit(&["--max_vram=20.5GB"]).unwrap().place.max_vram, Some(20_500_000_000));
        assert_eq!(edit(&["--device", "cuda:1"]).unwrap().place.device, DeviceChoice::Cuda(1));
    }

    #[test]
    fn negative_seeds_are_random() {
        assert_ne!(edit(&["-s", "-1"]).unwrap().edit.seed, edit(&["--seed", "-1"]).unwrap().edit.seed);
        assert_eq!(edit(&["-s", "7", "--rng", "cuda:1024"]).unwrap().edit.rng, Rng::Cuda { grid_threads: 1024 });
    }
}
