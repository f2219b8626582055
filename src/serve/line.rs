//! One line of the log for each request, when it is over: JSON on stderr, without prompts unless they are asked for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;

use super::server::Server;
use crate::progress::say;

/// The status of a request whose client had gone before the answer, as nginx has it.
const CLIENT_GONE: u16 = 499;

/// What the log says of a request. It is written when the last holder lets go of it: the answer's body is one.
pub struct Line {
    server: Arc<Server>,
    endpoint: &'static str,
    begun: Instant,
    facts: Mutex<Facts>,
}

/// What is known of a request so far.
#[derive(Default, Serialize)]
pub struct Facts {
    id: String,
    method: String,
    path: String,
    /// None: there was no answer.
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// The code of the fault.
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// What only the log may say of it.
    pub detail: Option<String>,
    #[serde(flatten)]
    /// What an edit took.
    pub seconds: Seconds,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Width and height of the picture.
    pub input: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Width and height of the result.
    pub output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// Of the first picture.
    pub seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    /// If prompts are logged.
    pub prompt: Option<String>,
}

/// Seconds of a request's parts.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Seconds {
    /// Reading the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<f64>,
    /// Reading the picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode: Option<f64>,
    /// In the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<f64>,
    /// On a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edit: Option<f64>,
    /// Writing the pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode: Option<f64>,
}

impl Line {
    /// The line of a request that has just come.
    pub fn new(server: &Arc<Server>, endpoint: &'static str, id: String, method: &str, path: &str) -> Arc<Line> {
        let facts = Facts { id, method: method.into(), path: path.into(), ..Facts::default() };
        Arc::new(Line { server: server.clone(), endpoint, begun: Instant::now(), facts: Mutex::new(facts) })
    }

    /// The request's id.
    pub fn id(&self) -> String {
        self.facts().id.clone()
    }

    /// When the request came.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// What is known, to be added to.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let begun = self.begun;
        let total = begun.elapsed().as_secs_f64();
        let facts = self.facts.get_mut().unwrap_or_else(PoisonError::into_inner);
        let status = *facts.status.get_or_insert(CLIENT_GONE);
        self.server.metrics.request(self.endpoint, status);
        let Seconds { upload, decode, wait, edit, encode } = facts.seconds;
        for (name, seconds) in [("upload", upload), ("decode", decode), ("wait", wait), ("edit", edit), ("encode", encode)] {
            seconds.into_iter().for_each(|seconds| self.server.metrics.stage(name, seconds));
        }
        // Probes come every few seconds and say nothing as long as all is well.
        let probe = status == 200 && ["/health", "/ready", "/metrics"].contains(&self.endpoint);
        if !self.server.quiet && !probe {
            let mut line = json!(facts);
            line["total"] = total.into();
            line.as_object_mut().into_iter().flat_map(|line| line.values_mut()).for_each(round);
            say(&line.to_string());
        }
    }
}

/// Microseconds are enough.
fn round(value: &mut serde_json::Value) {
    if let Some(number) = value.as_f64().filter(|_| value.is_f64()) {
        *value = ((number * 1e6).round() / 1e6).into();
    }
}
