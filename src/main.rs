//! `step1x-edit`: parse, run, exit code.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Parser;
use step1x_edit::cli::{Cli, Command, EditArgs, SynthArgs, normalise};
use step1x_edit::pipeline::{Interrupted, ResourceError, UsageError, run_edit};
use step1x_edit::progress::{Display, byte_bar};
use step1x_edit::weights::ModelError;
use step1x_edit::{inspect, synth};

/// Set by Ctrl-C, SIGTERM and SIGHUP.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let cli = Cli::parse_from(normalise(std::env::args_os().collect::<Vec<OsString>>().into_iter()));
    let result = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("cannot watch for Ctrl-C").and_then(|()| {
        match &cli.command {
            Command::Edit(args) => edit(args),
            Command::Inspect(args) => inspect::run(args).map(|text| print!("{text}")),
            Command::Synth(args) => synthesise(args),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn edit(args: &EditArgs) -> Result<()> {
    let job = args.job()?;
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build_global().context("cannot start threads")?;
    }
    let mut progress = Display::new(args.quiet, &STOP);
    let result = run_edit(&job, &mut progress);
    progress.finish();
    let report = result?;
    if args.random_seed() {
        eprintln!("seed {}", job.seed);
    }
    if args.json {
        println!("{}", report.json);
    } else if !args.quiet {
        eprintln!("wrote {}", job.output.display());
    }
    Ok(())
}

fn synthesise(args: &SynthArgs) -> Result<()> {
    synth::write(&args.output, args.preset, args.version(), args.seed, &STOP, &byte_bar(args.quiet))
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Interrupted>().is_some() {
        130
    } else if error.downcast_ref::<UsageError>().is_some() {
        2
    } else if error.downcast_ref::<ModelError>().is_some() {
        3
    } else if error.downcast_ref::<ResourceError>().is_some() {
        4
    } else {
        1
    }
}
