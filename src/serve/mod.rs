//! `serve`: edits over HTTP, by the interface of OpenAI's images, with jobs, probes, metrics and a page for people.
//!
//! A request goes through [`http`] and `gate`, becomes a [`form::Form`], an [`ask::Ask`] and an `order`, waits in a `queue` and is
//! made by a worker, a plain thread with an engine, or with another process behind it. Everything else is asynchronous and never
//! waits for the GPU. Nothing here opens a connection.

#[cfg(all(feature = "serve", unix))]
mod answer;
#[cfg(all(feature = "serve", unix))]
mod ask;
#[cfg(all(feature = "serve", unix))]
mod body;
#[cfg(all(feature = "serve", unix))]
mod cancel;
#[cfg(all(feature = "serve", unix))]
mod fault;
#[cfg(all(feature = "serve", unix))]
mod form;
#[cfg(all(feature = "serve", unix))]
mod gate;
#[cfg(all(feature = "serve", unix))]
mod http;
#[cfg(all(feature = "serve", unix))]
mod images;
#[cfg(all(feature = "serve", unix))]
mod jobs;
#[cfg(all(feature = "serve", unix))]
mod kept;
#[cfg(all(feature = "serve", unix))]
mod keys;
pub mod limits;
#[cfg(all(feature = "serve", unix))]
mod line;
#[cfg(all(feature = "serve", unix))]
mod listen;
#[cfg(all(feature = "serve", unix))]
mod metrics;
#[cfg(all(feature = "serve", unix))]
mod order;
#[cfg(all(feature = "serve", unix))]
mod process;
#[cfg(all(feature = "serve", unix))]
mod queue;
#[cfg(all(feature = "serve", unix))]
mod server;
#[cfg(all(feature = "serve", unix))]
mod stamp;
#[cfg(all(feature = "serve", unix))]
mod status;
#[cfg(all(feature = "serve", unix))]
mod work;
#[cfg(all(feature = "serve", unix))]
mod worker;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

#[cfg(all(feature = "serve", unix))]
pub use self::ask::{Ask, Kind, Offer};
#[cfg(all(feature = "serve", unix))]
pub use self::fault::Fault;
#[cfg(all(feature = "serve", unix))]
pub use self::form::Form;
#[cfg(all(feature = "serve", unix))]
pub use self::listen::run;
#[cfg(all(feature = "serve", unix))]
pub use self::work::Wish;
use crate::pipeline::{DeviceChoice, EditParameters, LoraChoice, ModelPath, PlaceChoice};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address of this machine and a port; 0: any that is free.
    Tcp(IpAddr, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A server, every choice made.
#[derive(Clone, Debug)]
pub struct ServeJob {
    /// Where to listen.
    pub listen: Address,
    /// The model; none: the demo model.
    pub model: Option<ModelPath>,
    /// LoRA files to merge into it.
    pub loras: Vec<LoraChoice>,
    /// Names under which the model may be asked for, beside its own; the first is the one that is shown.
    pub names: Vec<String>,
    /// Every edit, but for what its request says.
    pub edit: EditParameters,
    /// Where to run.
    pub place: PlaceChoice,
    /// Devices with a process each; empty: one, in this process.
    pub devices: Vec<DeviceChoice>,
    /// Be the worker of this device for another server: requests come on standard input.
    pub worker: bool,
    /// Make an edit before the first request, so that no request waits for kernels and weights.
    pub warm: bool,
    /// Requests that may wait.
    pub queue: usize,
    /// Text with the keys that open the server; none: anybody may ask.
    pub keys: Option<String>,
    /// Anybody may ask from other machines too.
    pub no_auth: bool,
    /// Origins of pages of others that may ask.
    pub origins: Vec<String>,
    /// From a request's arrival to its answer, unless it says otherwise.
    pub deadline: Duration,
    /// How long requests are taken after SIGTERM, while `/ready` says no.
    pub drain_delay: Duration,
    /// How long what runs may take after that.
    pub drain_timeout: Duration,
    /// The log has prompts.
    pub log_prompts: bool,
    /// The log has no lines of requests.
    pub quiet: bool,
    /// The program's path and its arguments, for worker processes.
    pub arguments: Vec<OsString>,
}

#[cfg(all(test, feature = "serve", unix))]
impl ServeJob {
    /// A server of the demo model.
    fn example() -> ServeJob {
        ServeJob {
            listen: Address::Tcp([127, 0, 0, 1].into(), 0),
            model: None,
            loras: vec![],
            names: vec![],
            edit: EditParameters::new(""),
            place: PlaceChoice::default(),
            devices: vec![],
            worker: false,
            warm: false,
            queue: 8,
            keys: None,
            no_auth: false,
            origins: vec![],
            deadline: Duration::from_secs(300),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(60),
            log_prompts: false,
            quiet: true,
            arguments: vec![],
        }
    }
}
