//! A worker in this process: a plain thread that owns the engine. No edit's end is the end of the thread: a panic costs an engine,
//! and only a device that is lost ends it all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ServeJob;
use super::cancel::Cancel;
use super::fault::Fault;
use super::queue::Running;
use super::server::{Server, State};
use super::work::{News, Tell, Wish, work};
use crate::error::ResourceError;
use crate::image::Rgb;
use crate::pipeline::{Engine, Model, Place, Progress};
use crate::progress::say;

/// Why a request was not made.
pub enum Unmade {
    /// It failed; the next one may not.
    Failed(Box<Fault>),
    /// The hands can make nothing more, and it is why.
    Lost(Box<Fault>, String),
    /// The hands can make nothing more, and it has not begun: others can make it.
    Untouched(String),
}

/// Who makes edits for the queue.
pub trait Hands {
    /// Whether they can make anything.
    fn alive(&mut self) -> bool {
        true
    }

    /// Makes all pictures of a request.
    ///
    /// # Errors
    /// Why not.
    fn make(&mut self, running: &Running, tell: &mut Tell) -> Result<(), Unmade>;
}

/// An engine in this process.
pub struct Here {
    job: Arc<ServeJob>,
    engine: Option<Engine>,
}

/// Says notices of the opening, once for a server.
struct Spoken;

impl Progress for Spoken {
    fn place(&mut self, _: &Place) {}

    fn stage(&mut self, _: &str, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn node(&mut self) -> Result<()> {
        Ok(())
    }

    fn notice(&mut self, text: &str) {
        say(&format!("note: {text}"));
    }
}

/// The model of a job with what is merged into it.
///
/// # Errors
/// Model files.
pub fn open_model(job: &ServeJob) -> Result<Model> {
    let model = Model::open_or_demo(job.model.as_ref(), &mut Spoken)?;
    model.adapt(&job.loras, &mut Spoken)?;
    Ok(model)
}

impl Here {
    /// An engine of a job, warm if it is on a GPU: kernels compiled, weights there, the usual edit planned and captured.
    ///
    /// # Errors
    /// Model files, device or memory.
    pub fn open(job: &Arc<ServeJob>, model: Model) -> Result<Here> {
        let engine = Engine::open(model, Place::open(&job.place)?)?;
        let mut here = Here { job: job.clone(), engine: Some(engine) };
        if here.engine()?.place.device().is_some() && job.warm {
            here.warm().context("the first edit, which makes the engine warm, failed")?;
        }
        Ok(here)
    }

    /// Where the engine runs.
    pub fn place(&mut self) -> Result<&Place> {
        Ok(&self.engine()?.place)
    }

    /// The engine, opened anew after a panic.
    fn engine(&mut self) -> Result<&mut Engine> {
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => Engine::open(open_model(&self.job)?, Place::open(&self.job.place)?)?,
        };
        Ok(self.engine.insert(engine))
    }

    /// An edit of a grey square as requests have it that say nothing else.
    fn warm(&mut self) -> Result<()> {
        let edit = self.job.edit.clone();
        let engine = self.engine()?;
        let side = edit.with(&engine.model)?.size_level;
        let picture = Rgb { width: side, height: side, data: vec![128; 3 * side * side] };
        let wish = Wish {
            prompt: "make it warm".into(),
            negative_prompt: String::new(),
            steps: edit.steps,
            cfg_scale: edit.cfg_scale,
            size_level: edit.size_level,
            size: edit.size,
            seed: 0,
            count: 1,
            partials: 0,
        };
        work(engine, &edit, &wish, Some(&picture), &Cancel::default(), &mut |_| {})
    }

    /// Makes a request's pictures; a panic is a fault, and costs the engine.
    ///
    /// # Errors
    /// What the caller is told, and why these hands can make nothing more, if so.
    pub fn make_wish(
        &mut self,
        wish: &Wish,
        picture: Option<&Rgb>,
        cancel: &Cancel,
        tell: &mut Tell,
    ) -> Result<(), (Box<Fault>, Option<String>)> {
        let defaults = self.job.edit.clone();
        let made = catch_unwind(AssertUnwindSafe(|| {
            let engine = self.engine()?;
            work(engine, &defaults, wish, picture, cancel, tell)
        }));
        match made {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err((Fault::of_edit(&error).into(), self.lost(&error))),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
                // What a panic has left may panic again while it is taken down.
                let _ = catch_unwind(AssertUnwindSafe(|| self.engine.take()));
                Err((Fault::internal(format!("a panic: {}", text.unwrap_or("without words"))).into(), None))
            }
        }
    }

    /// Whether the device answers nothing any more after an error, and why.
    fn lost(&self, error: &anyhow::Error) -> Option<String> {
        let place = &self.engine.as_ref()?.place;
        (place.device().is_some() && place.device_bytes_in_use().is_none())
            .then(|| format!("{} is lost: {error:#}", place.name()))
    }
}

impl Hands for Here {
    fn make(&mut self, running: &Running, tell: &mut Tell) -> Result<(), Unmade> {
        let task = &running.task;
        let made = self.make_wish(&task.wish, task.picture.as_ref(), &task.cancel, tell);
        made.map_err(|(fault, lost)| match lost {
            Some(why) => Unmade::Lost(fault, why),
            None => Unmade::Failed(fault),
        })
    }
}

/// Makes what the queue has until it is closed, or the hands can do no more: then gives why.
pub fn attend(server: &Server, hands: &mut dyn Hands) -> Option<String> {
    while let Some(running) = server.queue.pop() {
        let task = &running.task;
        if let Err(stopped) = task.cancel.check() {
            task.tell(News::Over(Err(stopped.0.fault())));
            continue;
        }
        if !hands.alive() {
            running.give_back();
            return Some("it ended while it had nothing to do".into());
        }
        task.tell(News::Begun);
        let mut steps = 0;
        let made = hands.make(&running, &mut |news| {
            match &news {
                News::Step(done, _) => {
                    server.metrics.steps(done.saturating_sub(steps));
                    steps = *done;
                }
                News::Picture(_) => server.metrics.image(),
                _ => {}
            }
            task.tell(news);
        });
        if let Some(why) = task.cancel.asked() {
            server.metrics.cancelled(why.name());
        }
        let (over, lost) = match made {
            Ok(()) => (Ok(()), None),
            Err(Unmade::Failed(fault)) => (Err(*fault), None),
            Err(Unmade::Lost(fault, why)) => (Err(*fault), Some(why)),
            Err(Unmade::Untouched(why)) => {
                running.give_back();
                return Some(why);
            }
        };
        task.tell(News::Over(over));
        if lost.is_some() {
            return lost;
        }
    }
    None
}

/// The life of the only worker: opens the engine, then makes what the queue has.
///
/// # Errors
/// The engine cannot be opened, or its device is lost.
pub fn live(server: &Server, job: &Arc<ServeJob>, model: Model) -> Result<()> {
    let mut here = Here::open(job, model)?;
    let place = here.place()?;
    let bus = place.device().and_then(|device| device.bus().ok());
    server.add_device(place.name(), bus);
    say(&match (place.device(), place.why_cpu()) {
        (None, Some(why)) => format!("note: on the CPU: {why}"),
        _ => format!("ready on {}", place.name()),
    });
    server.queue.enter();
    server.advance(State::Ready);
    let lost = attend(server, &mut here);
    server.queue.leave();
    match lost {
        Some(why) => {
            server.lose(why.clone());
            // Whoever is told of it has its answer before the process ends.
            std::thread::sleep(Duration::from_millis(200));
            // The driver would wait for what never comes.
            std::mem::forget(here);
            Err(ResourceError(why).into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{DeviceChoice, PlaceChoice};
    use crate::serve::cancel::Why;

    fn here() -> Here {
        let place = PlaceChoice { device: DeviceChoice::Cpu, ..PlaceChoice::default() };
        let job = Arc::new(ServeJob { place, ..ServeJob::example() });
        Here::open(&job, Model::demo().unwrap()).unwrap()
    }

    #[test]
    fn a_panic_costs_an_engine_and_nothing_else() {
        let (mut here, wish) = (here(), crate::serve::queue::tests::wish("make it red"));
        let picture = Rgb { width: 64, height: 64, data: vec![200; 3 * 64 * 64] };
        let mut make = |tell: &mut Tell| here.make_wish(&wish, Some(&picture), &Cancel::default(), tell);
        let mut pixels = Vec::new();
        let mut keep = |news| {
            if let News::Picture(made) = news {
                pixels.push(made.picture);
            }
        };
        make(&mut keep).unwrap();
        let (fault, lost) = make(&mut |_| panic!("by a test")).unwrap_err();
        assert_eq!((fault.status, fault.code.as_str(), lost), (500, "internal", None));
        assert_eq!(fault.detail.as_deref(), Some("a panic: by a test"));
        make(&mut keep).unwrap();
        assert_eq!(pixels[0], pixels[1]);
    }

    #[test]
    fn an_edit_stops_where_it_is_asked_to() {
        let (mut here, cancel) = (here(), Cancel::default());
        let wish = Wish { steps: 1000, ..crate::serve::queue::tests::wish("make it red") };
        let picture = Rgb { width: 64, height: 64, data: vec![200; 3 * 64 * 64] };
        let mut last = 0;
        let made = here.make_wish(&wish, Some(&picture), &cancel, &mut |news| {
            if let News::Step(step, _) = news {
                last = step;
                if step == 3 {
                    cancel.ask(Why::Gone);
                }
            }
        });
        assert_eq!((made.unwrap_err().0.status, last), (499, 3));
    }
}
