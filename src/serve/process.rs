//! A worker in a process of its own, one for each device: a GPU that is lost takes its process with it, and no more than the edit
//! that it had. Server and worker speak through the worker's standard input and output, in frames: the length of a head of JSON, the
//! length of the pixels behind it, head, pixels.

use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ServeJob;
use super::cancel::{Cancel, Why};
use super::fault::Fault;
use super::queue::{Running, Task};
use super::server::{Server, State};
use super::work::{Made, News, Tell, Wish};
use super::worker::{Hands, Here, Unmade, attend};
use crate::error::{ResourceError, no_thread};
use crate::image::Rgb;
use crate::pipeline::{DeviceChoice, Model, Silent};
use crate::progress::say;
use crate::stop::Stop;

/// How often a worker that computes is asked to stop, if it should.
const LOOK: Duration = Duration::from_millis(10);
/// A worker that has not stopped after so long never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// Starts in a row that may fail before a device is given up.
const TRIES: u32 = 3;
/// Bytes that a frame's head, or its pixels, cannot have.
const TOO_LONG: u64 = 1 << 32;

/// What a server says.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Make this of the picture of this size that follows.
    Make(Wish, Option<(usize, usize)>),
    /// Stop what you make.
    Stop,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// It can make edits: the device's name, and its place on the bus.
    Ready(String, Option<String>),
    Notice(String),
    Step(usize, usize),
    /// Its number, width and height; the pixels follow.
    Partial(usize, usize, usize),
    /// Number, width, height, tokens of prompt and picture; the pixels follow.
    Picture(usize, usize, usize, usize, usize),
    /// It is done with what it was told; and why it can make nothing more, if so.
    Over(Option<Fault>, Option<String>),
}

fn send(to: &mut impl Write, head: &impl Serialize, pixels: &[u8]) -> Result<()> {
    let head = serde_json::to_vec(head)?;
    to.write_all(&(head.len() as u64).to_le_bytes())?;
    to.write_all(&(pixels.len() as u64).to_le_bytes())?;
    to.write_all(&head)?;
    to.write_all(pixels)?;
    Ok(to.flush()?)
}

/// The next frame; none: there is no other.
fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<(T, Vec<u8>)>> {
    let mut lengths = [0; 16];
    let mut got = 0;
    while got < lengths.len() {
        match from.read(&mut lengths[got..])? {
            0 if got == 0 => return Ok(None),
            0 => bail!("a frame ends early"),
            more => got += more,
        }
    }
    let (head, pixels) = lengths.split_at(8);
    let part = |length: &[u8], from: &mut dyn Read| -> Result<Vec<u8>> {
        let length = length.try_into().map(u64::from_le_bytes)?;
        ensure!(length < TOO_LONG, "a frame of {length} bytes is none");
        let mut bytes = vec![0; length as usize];
        from.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let (head, pixels) = (part(head, from)?, part(pixels, from)?);
    Ok(Some((serde_json::from_slice(&head)?, pixels)))
}

/// Be the worker of another process until it closes standard input.
///
/// # Errors
/// Model files, device or memory; a device that is lost.
pub fn work_for_another(job: &ServeJob, stop: &Stop) -> Result<()> {
    let model = Model::open_or_demo(job.model.as_ref(), &mut Silent)?;
    model.adapt(&job.loras, &mut Silent)?;
    let mut here = Here::open(&Arc::new(job.clone()), model)?;
    // The server says when to end; a signal that reaches both is the server's affair.
    stop.begin();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let place = here.place()?;
    let ready = Report::Ready(place.name(), place.device().and_then(|device| device.bus().ok()));
    send(&mut out, &ready, &[])?;

    // Another thread listens, so that an edit can be stopped.
    let (orders, told) = sync_channel(1);
    let current: Arc<Mutex<Cancel>> = Arc::default();
    let cancel = current.clone();
    let listen = move || {
        let mut input = BufReader::new(std::io::stdin().lock());
        while let Ok(Some((order, pixels))) = receive(&mut input) {
            let cancel = &mut *cancel.lock().unwrap_or_else(PoisonError::into_inner);
            match order {
                Order::Stop => cancel.ask(Why::Gone),
                Order::Make(wish, size) => {
                    *cancel = Cancel::default();
                    let _ = orders.send((wish, size, pixels, cancel.clone()));
                }
            }
        }
        // Nobody wants what is under way.
        cancel.lock().unwrap_or_else(PoisonError::into_inner).ask(Why::Gone);
    };
    std::thread::Builder::new().name("orders".into()).spawn(listen).map_err(no_thread)?;
    while let Ok((wish, size, data, cancel)) = told.recv() {
        let picture = size.map(|(width, height)| Rgb { width, height, data });
        let mut broken = None;
        let made = here.make_wish(&wish, picture.as_ref(), &cancel, &mut |news| {
            if let Err(error) = report(&mut out, news) {
                broken.get_or_insert(error);
                cancel.ask(Why::Gone);
            }
        });
        let (fault, lost) = made.err().map_or((None, None), |(fault, lost)| (Some(*fault), lost));
        send(&mut out, &Report::Over(fault, lost.clone()), &[])?;
        if let Some(why) = lost {
            // The driver would wait for what never comes.
            std::mem::forget(here);
            return Err(ResourceError(why).into());
        }
    }
    Ok(())
}

fn report(out: &mut impl Write, news: News) -> Result<()> {
    match news {
        News::Notice(text) => send(out, &Report::Notice(text), &[]),
        News::Step(step, steps) => send(out, &Report::Step(step, steps), &[]),
        News::Partial(index, Rgb { width, height, data }) => send(out, &Report::Partial(index, width, height), &data),
        News::Picture(Made { index, picture: Rgb { width, height, data }, text_tokens, image_tokens }) => {
            send(out, &Report::Picture(index, width, height, text_tokens, image_tokens), &data)
        }
        // The server says and knows these itself.
        News::Begun | News::Over(_) => Ok(()),
    }
}

/// What came from a worker: a report with its pixels, or that nothing more comes.
type Heard = Option<(Report, Vec<u8>)>;

/// A worker in another process.
struct There {
    child: Child,
    orders: BufWriter<ChildStdin>,
    heard: Receiver<Heard>,
}

impl There {
    /// Starts a worker and waits until it is ready; gives its device's name and place on the bus.
    fn start(job: &ServeJob, device: DeviceChoice) -> Result<(There, String, Option<String>)> {
        let (program, arguments) = job.arguments.split_first().context("the program's own path is not known")?;
        let device = match device {
            DeviceChoice::Cuda(ordinal) => format!("cuda:{ordinal}"),
            DeviceChoice::Cpu => "cpu".into(),
            DeviceChoice::Auto => "auto".into(),
        };
        let mut command = Command::new(program);
        command.args(arguments).args(["--worker", &device]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A terminal's Ctrl-C is the server's to obey.
        let mut child = command.process_group(0).spawn().context("a worker process cannot be started")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { bail!("a worker has no pipes") };
        let (sender, heard) = sync_channel(4);
        let listen = move || {
            let mut input = BufReader::new(stdout);
            while let Ok(Some(frame)) = receive(&mut input) {
                if sender.send(Some(frame)).is_err() {
                    return;
                }
            }
            let _ = sender.send(None);
        };
        std::thread::Builder::new().name("reports".into()).spawn(listen).map_err(no_thread)?;
        let mut there = There { child, orders: BufWriter::new(stdin), heard };
        match there.heard.recv() {
            Ok(Some((Report::Ready(name, bus), _))) => Ok((there, name, bus)),
            _ => Err(ResourceError(format!("the worker of {device} has ended: {}", there.end())).into()),
        }
    }

    /// How the process ended; it is ended if it has not.
    fn end(&mut self) -> String {
        let begun = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) if begun.elapsed() < Duration::from_secs(5) => std::thread::sleep(LOOK),
                _ => {
                    let _ = self.child.kill();
                    return self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                }
            }
        }
    }

    /// Why nothing more comes of it, and what its request is told.
    fn gone(&mut self) -> (Box<Fault>, Option<String>) {
        let how = self.end();
        let message = "the device that made the edit was lost; send the request again";
        let fault = Fault::new(503, "device_lost", message).after(1);
        (Fault { detail: Some(how.clone()), ..fault }.into(), Some(how))
    }
}

impl Drop for There {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hands for There {
    fn alive(&mut self) -> bool {
        // Between edits a worker says nothing; that it says something is its end.
        matches!(self.heard.try_recv(), Err(TryRecvError::Empty))
    }

    fn make(&mut self, running: &Running, tell: &mut Tell) -> Result<(), Unmade> {
        let task = &running.task;
        let mut touched = false;
        let made = self.follow(task, &mut |news| {
            touched = true;
            tell(news);
        });
        made.map_err(|(fault, lost)| match lost {
            // What ends every worker that has it must not go round for ever.
            Some(why) if !touched && !task.given_back.swap(true, SeqCst) => Unmade::Untouched(why),
            Some(why) => Unmade::Lost(fault, why),
            None => Unmade::Failed(fault),
        })
    }
}

impl There {
    /// Has the worker make a task, and tells what it says; as [`Here::make_wish`].
    fn follow(&mut self, task: &Task, tell: &mut Tell) -> Result<(), (Box<Fault>, Option<String>)> {
        let size = task.picture.as_ref().map(|picture| (picture.width, picture.height));
        let pixels = task.picture.as_ref().map_or(&[][..], |picture| &picture.data);
        if send(&mut self.orders, &Order::Make(task.wish.clone(), size), pixels).is_err() {
            return Err(self.gone());
        }
        let mut stopping: Option<Instant> = None;
        loop {
            match (task.cancel.asked(), stopping) {
                (Some(_), None) => {
                    stopping = Some(Instant::now());
                    let _ = send(&mut self.orders, &Order::Stop, &[]);
                }
                (_, Some(since)) if since.elapsed() > PATIENCE => {
                    let _ = self.child.kill();
                    return Err(self.gone());
                }
                _ => {}
            }
            let (report, data) = match self.heard.recv_timeout(LOOK) {
                Ok(Some(heard)) => heard,
                Err(RecvTimeoutError::Timeout) => continue,
                Ok(None) | Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
            };
            match report {
                Report::Notice(text) => tell(News::Notice(text)),
                Report::Step(step, steps) => tell(News::Step(step, steps)),
                Report::Partial(index, width, height) => tell(News::Partial(index, Rgb { width, height, data })),
                Report::Picture(index, width, height, text_tokens, image_tokens) => {
                    tell(News::Picture(Made { index, picture: Rgb { width, height, data }, text_tokens, image_tokens }));
                }
                Report::Over(None, _) => return Ok(()),
                Report::Over(Some(_), Some(_)) => return Err(self.gone()),
                Report::Over(Some(fault), None) => {
                    let fault = task.cancel.asked().map_or(fault, Why::fault);
                    return Err((fault.into(), None));
                }
                Report::Ready(..) => {}
            }
        }
    }
}

/// The life of all workers, each of which is started anew when it ends.
///
/// # Errors
/// No device is left.
pub fn live(server: &Arc<Server>, job: &Arc<ServeJob>) -> Result<()> {
    let mut keepers = Vec::new();
    for (number, &device) in (1..).zip(&job.devices) {
        let (server, job) = (server.clone(), job.clone());
        let keep = move || keep(&server, &job, device, number);
        keepers.push(std::thread::Builder::new().name(format!("worker {number}")).spawn(keep).map_err(no_thread)?);
    }
    let mut last = None;
    for keeper in keepers {
        match keeper.join() {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => last = Some(error),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    let error = last.context("there are no devices")?;
    server.lose(format!("{error:#}"));
    Err(error)
}

/// Keeps a worker of a device until the server goes down; gives up a device on which none starts.
fn keep(server: &Server, job: &ServeJob, device: DeviceChoice, number: usize) -> Result<()> {
    let mut failed = 0;
    while server.state() < State::Closing {
        let (mut there, name, bus) = match There::start(job, device) {
            Ok(started) => started,
            Err(error) => {
                failed += 1;
                say(&format!("worker {number}: {error:#}"));
                if failed == TRIES {
                    say(&format!("worker {number}: given up after {TRIES} starts"));
                    return Err(error);
                }
                std::thread::sleep(Duration::from_secs(failed.into()));
                continue;
            }
        };
        failed = 0;
        say(&format!("worker {number} is ready on {name}"));
        server.add_device(name, bus);
        server.queue.enter();
        server.advance(State::Ready);
        let lost = attend(server, &mut there);
        server.queue.leave();
        if let Some(why) = lost {
            server.metrics.restart();
            say(&format!("worker {number} has ended ({why}); another one is started"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_as_they_go() {
        let mut pipe = Vec::new();
        send(&mut pipe, &Report::Step(1, 28), &[]).unwrap();
        send(&mut pipe, &Report::Partial(0, 2, 1), &[1, 2, 3, 4, 5, 6]).unwrap();
        let mut from = &pipe[..];
        assert!(matches!(receive(&mut from).unwrap(), Some((Report::Step(1, 28), pixels)) if pixels.is_empty()));
        assert!(matches!(receive(&mut from).unwrap(), Some((Report::Partial(0, 2, 1), pixels)) if pixels == [1, 2, 3, 4, 5, 6]));
        assert!(receive::<Report>(&mut from).unwrap().is_none());
        for end in 1..pipe.len() {
            let mut cut = &pipe[..end];
            let whole = std::iter::from_fn(|| receive::<Report>(&mut cut).transpose()).take_while(Result::is_ok).count();
            assert!(whole < 2, "{end}");
        }
        assert!(receive::<Report>(&mut &[255u8; 32][..]).is_err());
    }
}
