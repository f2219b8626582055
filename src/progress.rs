//! What a person or a log sees while something runs: a bar on a terminal, plain lines elsewhere. Always on stderr.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::error::printable;
use crate::pipeline::{Place, Progress};
use crate::stop::Stop;

/// Progress of an edit, which a flag can stop.
pub struct Display<'a> {
    stop: &'a Stop,
    look: Look,
    start: Instant,
    stage: Option<(String, Instant)>,
}

enum Look {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl<'a> Display<'a> {
    /// Shows progress on stderr unless `quiet`; `stop` is looked at after every node.
    pub fn new(quiet: bool, stop: &'a Stop) -> Display<'a> {
        let look = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Look::Silent,
            (false, true) => {
                let bar = ProgressBar::new(1);
                let style = ProgressStyle::with_template("{msg:>14} {bar:28} {pos}/{len} {elapsed}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                Look::Bar(bar)
            }
            (false, false) => Look::Lines,
        };
        Display { stop, look, start: Instant::now(), stage: None }
    }

    /// Ends the last stage's line or the bar.
    pub fn finish(&mut self) {
        self.end_stage();
        if let Look::Bar(bar) = &self.look {
            bar.finish_and_clear();
        }
    }

    /// A line that `quiet` leaves out.
    fn line(&self, text: &str) {
        match &self.look {
            Look::Bar(bar) => bar.println(printable(text)),
            Look::Lines => say(text),
            Look::Silent => {}
        }
    }

    fn end_stage(&mut self) {
        if let (Some((name, since)), Look::Lines) = (self.stage.take(), &self.look) {
            let (stage, all) = (since.elapsed().as_secs_f64(), self.start.elapsed().as_secs_f64());
            say(&format!("{name:>14} {stage:8.2} s   {all:8.2} s in total"));
        }
    }
}

impl Progress for Display<'_> {
    fn place(&mut self, place: &Place) {
        // Whoever wanted a GPU may wait a hundred times as long.
        match (place.device(), place.why_cpu()) {
            (None, Some(why)) => self.notice(&format!("on the CPU: {why}")),
            (None, None) => self.line("on the CPU"),
            (Some(_), _) => self.line(&format!("on {}", place.name())),
        }
    }

    fn stage(&mut self, name: &str, run: usize, runs: usize) -> Result<()> {
        self.stop.begin();
        if run == 0 {
            self.end_stage();
            self.stage = Some((name.to_string(), Instant::now()));
        }
        if let Look::Bar(bar) = &self.look {
            bar.set_length(runs as u64);
            bar.set_message(name.to_string());
            bar.set_position(run as u64);
        }
        Ok(())
    }

    fn node(&mut self) -> Result<()> {
        Ok(self.stop.check()?)
    }

    fn stream(&mut self) -> Result<()> {
        Ok(self.stop.stream()?)
    }

    fn last_look(&mut self) -> Result<()> {
        Ok(self.stop.end()?)
    }

    fn notice(&mut self, text: &str) {
        match &self.look {
            Look::Bar(bar) => bar.println(printable(&format!("note: {text}"))),
            _ => say(&format!("note: {text}")),
        }
    }
}

/// A line on stderr, as a terminal may have it. That nobody reads it any more is no reason to stop, as `eprintln!` would.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(line));
}

/// A bar of bytes for `synth` and `pull`; nothing if `quiet` or where there is no terminal.
pub fn byte_bar(quiet: bool) -> ProgressBar {
    bar(quiet, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}")
}

/// A bar of edits for `judge` and `demo`; nothing if `quiet` or where there is no terminal.
pub fn case_bar(quiet: bool) -> ProgressBar {
    bar(quiet, "{bar:40} {pos}/{len} {elapsed}, {eta} left")
}

fn bar(quiet: bool, template: &str) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
