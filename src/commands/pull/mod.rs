//! The `pull` command: a model's files from a hub into the cache that the hub's own tools fill, where `-m` finds them.
//!
//! The files are listed first, of the one commit that the hub names; then each is fetched beside its place, compared with the
//! digest that was listed, and given its name. What was fetched stays if a run ends before that, and the next goes on from there.

#[cfg(feature = "pull")]
mod client;
#[cfg(feature = "pull")]
mod fetch;
#[cfg(feature = "pull")]
mod hugging_face;
#[cfg(feature = "pull")]
mod modelscope;
#[cfg(feature = "pull")]
mod place;
#[cfg(feature = "pull")]
mod plan;
#[cfg(feature = "pull")]
mod ranges;
#[cfg(feature = "pull")]
mod remote;
#[cfg(feature = "pull")]
mod report;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use indicatif::ProgressBar;

use crate::error::usage;
use crate::stop::Stop;

/// A model to fetch.
#[derive(Clone, Debug)]
pub struct PullJob {
    /// `org/name`, with a revision after `@`, or a short name.
    pub name: String,
    /// Where from.
    pub source: Source,
    /// Every file of its repository, not only those that are read.
    pub all: bool,
    /// Connections over which a large file is fetched, at most.
    pub connections: usize,
    /// List the files only.
    pub dry_run: bool,
    /// Print one JSON object.
    pub json: bool,
    /// List nothing.
    pub quiet: bool,
    /// What the environment says.
    pub environment: HubEnvironment,
}

/// A hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// huggingface.co, or who stands in for it.
    HuggingFace,
    /// modelscope.cn.
    ModelScope,
}

/// What is said, outside of flags, of hubs, of their caches, and of the way to them.
#[derive(Clone, Debug)]
pub struct HubEnvironment {
    /// The variable that forbids connections, if one does.
    pub offline: Option<&'static str>,
    /// The Hugging Face hub's address, without a slash at the end.
    pub hugging_face: String,
    /// Its cache: the folder of `models--…` folders.
    pub hugging_face_cache: Option<PathBuf>,
    /// What opens private and gated repositories there.
    pub token: Option<Token>,
    /// ModelScope's address, without a slash at the end.
    pub modelscope: String,
    /// Its cache: the folder of `org/name`.
    pub modelscope_cache: Option<PathBuf>,
    /// The proxy of https connections.
    pub https_proxy: Option<String>,
    /// The proxy of http connections.
    pub http_proxy: Option<String>,
    /// The hosts that are reached without a proxy, separated by commas.
    pub no_proxy: Option<String>,
    /// The file of certificates to trust instead of the built-in ones.
    pub certificates: Option<PathBuf>,
    /// How long a server may say nothing.
    pub patience: Duration,
}

/// A secret, and where it was found.
#[derive(Clone)]
pub struct Token {
    /// Never shown.
    pub secret: String,
    /// The variable or the file.
    pub found: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a token from {}", self.found)
    }
}

/// Who hears what.
pub struct Ears<'a> {
    /// Bytes that are there, of all.
    pub bar: &'a ProgressBar,
    /// Lines for a person.
    pub say: &'a (dyn Fn(&str) + Sync),
    /// The result.
    pub print: &'a mut dyn FnMut(&str) -> Result<()>,
}

/// Fetches the model.
///
/// # Errors
/// A [`crate::error::UsageError`]: no name, a name that the hub's cache cannot have, or connections are forbidden. A
/// [`crate::weights::ModelError`]: the hub has no such model, or does not give it, or gives other bytes than it listed. A
/// [`crate::error::ResourceError`]: too little disk. Another: no connection, or what the system reports.
#[cfg(feature = "pull")]
pub fn run(job: &PullJob, stop: &Stop, ears: &mut Ears) -> Result<()> {
    use crate::weights::HubName;

    let Some(name) = HubName::parse(&job.name) else {
        let fault = "is no model's name; give ORG/NAME, ORG/NAME@REVISION, or v1.1, v1.0 or v1.1-diffusers";
        return Err(usage(anyhow!("{} {fault}", job.name)));
    };
    if let Some(variable) = job.environment.offline {
        return Err(usage(anyhow!("{variable} is set, which forbids connections; unset it to fetch a model")));
    }
    let client = client::Client::new(&job.environment, job.source, ears.say)?;
    let plan = plan::Plan::new(job, &name, &client)?;
    if !(job.quiet || job.json) {
        (ears.print)(&report::list(&plan))?;
    }
    if !job.dry_run {
        plan.check_room()?;
        stop.keep();
        fetch::all(&plan, &client, ears, job.connections, job.quiet)?;
    }
    match job.json {
        true => (ears.print)(&format!("{}\n", report::json(&plan, job))),
        false if job.quiet || job.dry_run => Ok(()),
        false => (ears.print)(&report::end(&plan, job)),
    }
}

/// Says that this build cannot.
///
/// # Errors
/// A [`crate::error::UsageError`].
#[cfg(not(feature = "pull"))]
pub fn run(_: &PullJob, _: &Stop, _: &mut Ears) -> Result<()> {
    let fault = "this program was built without downloads; build it with --features pull, or fetch the model with `hf download` or \
                 `modelscope download`, whose caches -m looks into";
    Err(usage(anyhow!(fault)))
}
