//! A judge: a program that is kept running, reads what was made as JSON lines, and answers each with a line of scores.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

/// Between two looks at whether the batch is to stop.
const PAUSE: Duration = Duration::from_millis(50);

/// A judge that is told of each result.
pub struct Judge {
    command: String,
    stopped: Box<dyn Fn() -> bool + Send>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    input: ChildStdin,
    answers: Receiver<std::io::Result<String>>,
}

impl Judge {
    /// Starts nothing yet. `stopped`: whether to wait no longer.
    pub fn new(command: &str, stopped: Box<dyn Fn() -> bool + Send>) -> Judge {
        Judge { command: command.into(), stopped, running: None }
    }

    /// Asks for the scores of one result. A judge that has ended is started again for the next.
    ///
    /// # Errors
    /// It cannot be started, ends, or answers with no JSON object.
    pub fn ask(&mut self, result: &Value) -> Result<Value> {
        let answer = self.answer(result);
        if answer.is_err() {
            self.end();
        }
        answer.context("the judge gave no scores")
    }

    fn answer(&mut self, result: &Value) -> Result<Value> {
        let running = match &mut self.running {
            Some(running) => running,
            none => none.insert(Running::start(&self.command)?),
        };
        let asked = running.input.write_all(format!("{result}\n").as_bytes()).and_then(|()| running.input.flush());
        asked.context("it reads no more")?;
        let line = loop {
            match running.answers.recv_timeout(PAUSE) {
                Ok(line) => break line?,
                Err(RecvTimeoutError::Timeout) if (self.stopped)() => bail!("the batch was stopped while it judged"),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("it has ended ({})", running.child.wait()?),
            }
        };
        match serde_json::from_str(&line) {
            Ok(scores @ Value::Object(_)) => Ok(scores),
            _ => Err(anyhow!("it answered {:?}, which is no JSON object", line.chars().take(80).collect::<String>())),
        }
    }

    fn end(&mut self) {
        if let Some(mut running) = self.running.take() {
            kill(&mut running.child);
        }
    }
}

impl Drop for Judge {
    /// It hears the end of its input and may end by itself; then it is waited for.
    fn drop(&mut self) {
        let Some(Running { mut child, input, .. }) = self.running.take() else { return };
        drop(input);
        while matches!(child.try_wait(), Ok(None)) && !(self.stopped)() {
            thread::sleep(PAUSE);
        }
        kill(&mut child);
    }
}

/// Ends a judge with what it has started: all that the shell started is of its group.
fn kill(child: &mut Child) {
    #[cfg(unix)]
    if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()).filter(|_| matches!(child.try_wait(), Ok(None)))
    {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

impl Running {
    fn start(command: &str) -> Result<Running> {
        let mut shell = if cfg!(windows) { Command::new("cmd") } else { Command::new("sh") };
        let shell = shell.arg(if cfg!(windows) { "/C" } else { "-c" }).arg(command);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(shell, 0); // Ctrl-C is the batch's to obey
        let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("it cannot be started")?;
        let (input, output) = (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
        let (lines, answers) = sync_channel(1);
        thread::Builder::new().spawn(move || {
            for line in BufReader::new(output).lines() {
                if lines.send(line).is_err() {
                    break;
                }
            }
        })?;
        Ok(Running { child, input, answers })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use serde_json::json;

    use super::*;

    fn judge(command: &str) -> Judge {
        Judge::new(command, Box::new(|| false))
    }

    #[test]
    fn one_judge_answers_line_by_line() {
        let mut judge = judge("n=0; while read line; do n=$((n+1)); echo \"{\\\"n\\\": $n, \\\"asked\\\": $line}\"; done");
        for n in 1..4 {
            assert_eq!(judge.ask(&json!({"id": n})).unwrap(), json!({"n": n, "asked": {"id": n}}));
        }
    }

    #[test]
    fn a_judge_that_fails_is_told_and_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let flag = dir.path().join("once");
        let command = format!("if [ -e {0} ]; then cat; else touch {0}; exit 3; fi", flag.display());
        let mut judge = judge(&command);
        let error = format!("{:#}", judge.ask(&json!({"a": 1})).unwrap_err());
        assert!(error.contains("the judge gave no scores"), "{error}");
        assert_eq!(judge.ask(&json!({"a": 2})).unwrap(), json!({"a": 2}));
        let error = format!("{:#}", super::Judge::new("echo no", Box::new(|| false)).ask(&json!({})).unwrap_err());
        assert!(error.contains("no scores"), "{error}");
    }

    #[test]
    fn a_judge_that_hangs_is_left_when_the_batch_stops() {
        let mut judge = Judge::new("sleep 1000", Box::new(|| true));
        let error = format!("{:#}", judge.ask(&json!({})).unwrap_err());
        assert!(error.contains("was stopped"), "{error}");
    }
}
