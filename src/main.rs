//! `step1x-edit`: parse, run, exit code.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};
use step1x_edit::cli::{self, Command, EditArgs};
use step1x_edit::commands::{demo, doctor, inspect, judge, measure, op, synth, verify};
use step1x_edit::error::{Interrupted, ResourceError, UsageError};
use step1x_edit::pipeline::run_edit;
use step1x_edit::progress::{Display, byte_bar, case_bar, say};
use step1x_edit::weights::ModelError;

fn main() -> ExitCode {
    let cli = cli::parse(std::env::args_os());
    let result = watch_signals().context("cannot watch for Ctrl-C").and_then(|stop| run(&cli.command, &stop));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Runs a command and gives its exit code.
fn run(command: &Command, stop: &AtomicBool) -> Result<u8> {
    let silent = &mut Display::new(true, stop);
    match command {
        Command::Edit(args) => edit(args, stop)?,
        Command::Demo(args) => {
            use_threads(args.place.threads)?;
            let done = demo::run(&args.job()?, silent, &case_bar(args.quiet))?;
            if !args.quiet {
                say(&done);
            }
        }
        Command::Inspect(args) => print(&inspect::run(&args.job()?)?)?,
        Command::Doctor(args) => {
            let (text, code) = doctor::run(&args.job());
            print(&text)?;
            return Ok(code);
        }
        Command::Bench(args) => measure::bench(&args.job()?, silent, &mut print)?,
        Command::Profile(args) => measure::profile(&args.job(), silent, &mut print)?,
        Command::Op(args) => op::run(&args.job(), &mut print)?,
        Command::Verify(args) => {
            let (text, held) = verify::run(&args.job()?, silent)?;
            print(&text)?;
            held?;
        }
        Command::Compare(args) => measure::compare(&args.job()?, &mut print)?,
        Command::Judge(args) => {
            use_threads(args.place.threads)?;
            print(&judge::run(&args.job()?, silent, &case_bar(args.quiet))?)?
        }
        Command::Synth(args) => synth::run(&args.job(), stop, &byte_bar(args.quiet))?,
    }
    Ok(0)
}

/// A flag that Ctrl-C, SIGTERM and a lost terminal set, so that work in hand is taken back; a second signal ends at once.
fn watch_signals() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    if !hangup_is_ignored() {
        signals.push(signal_hook::consts::SIGHUP);
    }
    for signal in signals {
        register_conditional_shutdown(signal, 130, stop.clone())?;
        register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Whether `nohup` or a service manager has asked to outlive the terminal: bit 0 of the ignored signals is SIGHUP's.
#[cfg(unix)]
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

fn edit(args: &EditArgs, stop: &AtomicBool) -> Result<()> {
    let job = args.job()?;
    if args.random_seed() {
        say(&format!("seed {}", job.edit.seed));
    }
    use_threads(args.place.threads)?;
    let mut progress = Display::new(args.quiet, stop);
    let result = run_edit(&job, &mut progress);
    progress.finish();
    let report = result?;
    if args.json {
        print(&format!("{report}\n"))
            .with_context(|| format!("{} is written, but its JSON cannot be printed", job.output.display()))?;
    } else if !args.quiet {
        say(&format!("wrote {}", job.output.display()));
    }
    Ok(())
}

/// Bounds the CPU threads, if a number is given.
fn use_threads(threads: Option<u32>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads as usize)
        .build_global()
        .with_context(|| format!("cannot start {threads} CPU threads; give fewer with --threads"))
}

/// Prints a result. A reader that has gone away, such as `head`, has had what it wanted.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
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
