//! `step1x-edit`: parse, run, exit code.

mod allocator;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::register;
use signal_hook::low_level::exit;
use step1x_edit::cli::{self, BatchArgs, BenchChoice, Command, EditArgs, GeditArgs};
use step1x_edit::commands::{batch, demo, doctor, gedit, inspect, judge, measure, op, pull, serve, synth, verify};
use step1x_edit::error::{Interrupted, ResourceError, UsageError, no_thread, printable};
use step1x_edit::image::{Stream, quieten_decoders};
use step1x_edit::pipeline::run_edit;
use step1x_edit::progress::{Display, byte_bar, case_bar, say};
use step1x_edit::stop::Stop;
use step1x_edit::weights::ModelError;

/// What signals ask.
static STOP: Stop = Stop::new();

fn main() -> ExitCode {
    quieten_decoders();
    let cli = cli::parse(std::env::args_os());
    let result = watch_signals().context("cannot watch for Ctrl-C").and_then(|()| run(&cli.command));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Runs a command and gives its exit code.
fn run(command: &Command) -> Result<u8> {
    start_threads(command)?;
    let silent = &mut Display::new(true, &STOP);
    match command {
        Command::Edit(args) => edit(args)?,
        Command::Batch(args) => return batch(args, silent),
        Command::Gedit(args) => return gedit(args, silent),
        Command::Serve(args) => serve::run(&args.job(itself())?, &STOP)?,
        Command::Demo(args) => {
            let done = demo::run(&args.job()?, silent, &case_bar(args.quiet))?;
            if !args.quiet {
                say(&done);
            }
        }
        Command::Pull(args) => {
            let bar = byte_bar(args.quiet);
            let say = |line: &str| bar.suspend(|| say(line));
            pull::run(&args.job(), &STOP, &mut pull::Ears { bar: &bar, say: &say, print: &mut print })?;
        }
        Command::Inspect(args) => {
            let (text, held) = inspect::run(&args.job()?, &byte_bar(false))?;
            print(&text)?;
            held?;
        }
        Command::Doctor(args) => {
            let (text, code) = doctor::run(&args.job());
            print(&text)?;
            return Ok(code);
        }
        Command::Bench(args) => match args.job()? {
            BenchChoice::Edits(job) => measure::bench(&job, silent, &mut print)?,
            BenchChoice::Link(job) => measure::link(&job, &mut print)?,
        },
        Command::Profile(args) => measure::profile(&args.job()?, silent, &mut print)?,
        Command::Op(args) => op::run(&args.job(), &mut print)?,
        Command::Verify(args) => {
            let (text, held) = verify::run(&args.job()?, silent)?;
            print(&text)?;
            held?;
        }
        Command::Compare(args) => measure::compare(&args.job()?, &mut print)?,
        Command::Judge(args) => print(&judge::run(&args.job()?, silent, &case_bar(args.quiet))?)?,
        Command::Synth(args) => synth::run(&args.job(), &STOP, &byte_bar(args.quiet))?,
    }
    Ok(0)
}

/// Has [`STOP`] hear of Ctrl-C, SIGTERM and a lost terminal. A file that may grow no further is a fault of the write, which
/// takes back what it has written, and not the end of the process.
fn watch_signals() -> std::io::Result<()> {
    let mut signals = vec![SIGINT, SIGTERM];
    #[cfg(unix)]
    {
        register(signal_hook::consts::SIGXFSZ, Arc::default())?;
        // SAFETY: a handler may read atomics and end the process; this one does nothing else.
        unsafe { signal_hook::low_level::register(signal_hook::consts::SIGABRT, allocator::end_if_refused)? };
        if !hangup_is_ignored() {
            signals.push(signal_hook::consts::SIGHUP);
        }
    }
    for signal in signals {
        let obey = move || {
            if let Some(text) = STOP.ask(signal) {
                if !text.is_empty() {
                    ["error: ", text, "\n"].iter().for_each(|part| write_plainly(part.as_bytes()));
                }
                exit(128 + signal);
            }
        };
        // SAFETY: a handler may change atomics, write to a descriptor and end the process; this one does nothing else.
        unsafe { signal_hook::low_level::register(signal, obey)? };
    }
    Ok(())
}

/// Writes to stderr where nothing may be allocated or locked.
fn write_plainly(text: &[u8]) {
    #[cfg(unix)]
    let _ = rustix::io::write(std::io::stderr(), text);
}

/// Whether `nohup` or a service manager has asked to outlive the terminal: bit 0 of the ignored signals is SIGHUP's.
#[cfg(unix)]
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

/// The program's path and the arguments that it was given, to start it again.
fn itself() -> Vec<std::ffi::OsString> {
    let program = std::env::current_exe().map(Into::into);
    program.into_iter().chain(std::env::args_os().skip(1)).collect()
}

fn edit(args: &EditArgs) -> Result<()> {
    let job = args.job()?;
    if args.random_seed() {
        say(&format!("seed {}", job.edit.seed));
    }
    let mut progress = Display::new(args.quiet, &STOP);
    let result = run_edit(&job, &mut progress);
    progress.finish();
    let report = result?;
    if args.json {
        print(&format!("{report}\n")).with_context(|| format!("{} is written, but its JSON cannot be printed", job.output))?;
    } else if !args.quiet {
        let where_to =
            if job.output == Stream::Standard { "the picture to standard output".into() } else { job.output.to_string() };
        say(&format!("wrote {where_to} ({})", report.sizes()));
    }
    Ok(())
}

/// Makes a manifest's edits, or brings the results of shards together.
fn batch(args: &BatchArgs, progress: &mut Display) -> Result<u8> {
    if let Some(job) = args.merge() {
        let (words, whole) = batch::merge(&job)?;
        print(&format!("{words}\n"))?;
        return Ok(u8::from(!whole));
    }
    batch::run(&args.job()?, &ears(args.quiet()), progress)
}

/// Makes the benchmark's edits, or prints the table of scores.
fn gedit(args: &GeditArgs, progress: &mut Display) -> Result<u8> {
    if let Some(folder) = &args.summary {
        print(&gedit::summary(folder, args.json())?)?;
        return Ok(0);
    }
    gedit::run(&args.job()?, &ears(args.quiet()), progress)
}

fn ears(quiet: bool) -> batch::Ears {
    batch::Ears { stop: &STOP, bar: case_bar(quiet), say, print, quiet }
}

/// Starts the CPU's threads: as many as the flag says, else the environment, else one for each core.
fn start_threads(command: &Command) -> Result<()> {
    let asked = match command {
        // They compute nothing, and say what is wrong even where no thread starts.
        Command::Doctor(_) | Command::Pull(_) => return Ok(()),
        Command::Edit(args) => args.place.threads,
        Command::Batch(args) => args.threads(),
        Command::Gedit(args) => args.threads(),
        Command::Serve(args) => args.place.threads,
        Command::Demo(args) => args.place.threads,
        Command::Judge(args) => args.place.threads,
        _ => None,
    };
    let threads = asked.unwrap_or_else(|| {
        let (threads, note) = cli::threads();
        note.iter().for_each(|note| say(&format!("note: {note}")));
        threads
    });
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(no_thread)?;
    Ok(())
}

/// Prints a result, as a terminal may have it. A reader that has gone away, such as `head`, has had what it wanted.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(printable(text).as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Interrupted>().is_some() {
        STOP.exit_code()
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
