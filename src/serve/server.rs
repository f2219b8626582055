//! What all requests share: the offer, the queue, what is counted, and how the server is.

use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::Semaphore;

use super::ask::Offer;
use super::fault::Fault;
use super::kept::Jobs;
use super::keys::Keys;
use super::limits::{HELD_MEGAPIXELS_MAX, UPLOADS_MAX};
use super::metrics::Metrics;
use super::queue::Queue;

/// Pictures that are read or written at once, beside the edits.
const CODECS: usize = 2;

/// What a request can rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// The model is being loaded.
    Loading,
    /// Edits are made.
    Ready,
    /// Edits are made, but the server goes down: others should be asked.
    Draining,
    /// Nothing new is taken.
    Closing,
}

/// What all requests share.
pub struct Server {
    /// What may be asked for.
    pub offer: Offer,
    /// Who may ask.
    pub keys: Keys,
    /// Origins of pages of others that may ask.
    pub origins: Vec<String>,
    /// Names that `Host` may have; none: any.
    pub hosts: Option<Vec<String>>,
    /// The log has prompts.
    pub log_prompts: bool,
    /// The log has no lines of requests.
    pub quiet: bool,
    /// Requests that wait.
    pub queue: Queue,
    /// What is counted.
    pub metrics: Metrics,
    /// Jobs that are asked for without waiting.
    pub jobs: Jobs,
    /// Uploads that may be read at once.
    pub uploads: Semaphore,
    /// Pictures that may be read or written at once.
    pub codecs: Semaphore,
    /// Megapixels of pictures that may be held.
    pub megapixels: Semaphore,
    /// Devices as workers name them, with their place on the bus.
    devices: Mutex<Vec<(String, Option<String>)>>,
    /// When the process began.
    pub started: SystemTime,
    state: AtomicU8,
    /// A device is gone for good.
    lost: Mutex<Option<String>>,
}

/// What of a server its command line says.
pub struct Settings {
    /// What may be asked for.
    pub offer: Offer,
    /// Who may ask.
    pub keys: Keys,
    /// Origins of pages of others that may ask.
    pub origins: Vec<String>,
    /// Names that `Host` may have; none: any.
    pub hosts: Option<Vec<String>>,
    /// The log has prompts.
    pub log_prompts: bool,
    /// The log has no lines of requests.
    pub quiet: bool,
    /// Requests that may wait.
    pub queue: usize,
}

impl Server {
    /// A server whose model is being loaded.
    pub fn new(settings: Settings) -> Server {
        let Settings { offer, keys, origins, hosts, log_prompts, quiet, queue } = settings;
        Server {
            offer,
            keys,
            origins,
            hosts,
            log_prompts,
            quiet,
            queue: Queue::new(queue),
            metrics: Metrics::default(),
            jobs: Jobs::default(),
            uploads: Semaphore::new(UPLOADS_MAX),
            codecs: Semaphore::new(CODECS),
            megapixels: Semaphore::new(HELD_MEGAPIXELS_MAX),
            devices: Mutex::default(),
            started: SystemTime::now(),
            state: AtomicU8::new(State::Loading as u8),
            lost: Mutex::default(),
        }
    }

    /// How the server is.
    pub fn state(&self) -> State {
        let state = self.state.load(SeqCst);
        [State::Loading, State::Ready, State::Draining, State::Closing]
            .into_iter()
            .find(|&s| s as u8 == state)
            .unwrap_or(State::Closing)
    }

    /// Goes on to a later state; there is no way back.
    pub fn advance(&self, state: State) {
        self.state.fetch_max(state as u8, SeqCst);
        if state == State::Closing {
            self.queue.close();
        }
    }

    /// Devices as workers name them, with their place on the bus.
    pub fn devices(&self) -> Vec<(String, Option<String>)> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A worker has this device.
    pub fn add_device(&self, name: String, bus: Option<String>) {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if bus.is_none() || !devices.iter().any(|(_, other)| *other == bus) {
            devices.push((name, bus));
        }
    }

    /// The last device is gone; says why the process has to end.
    pub fn lose(&self, why: String) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.advance(State::Draining);
        self.queue.close();
    }

    /// Why no edit can be made any more; none: they can.
    pub fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses what cannot be made now.
    ///
    /// # Errors
    /// A [`Fault`] of status 503.
    pub fn check(&self) -> Result<(), Fault> {
        match (self.lost(), self.state()) {
            (Some(_), _) => {
                Err(Fault::new(503, "device_lost", "the server has lost its GPU and ends; ask another one").after(30))
            }
            (None, State::Loading) => Err(Fault::new(503, "not_ready", "the model is being loaded; try again later").after(5)),
            (None, State::Closing) => Err(Fault::shutting_down()),
            (None, State::Ready | State::Draining) => self.queue.check(),
        }
    }
}
