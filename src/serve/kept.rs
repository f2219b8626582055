//! Jobs that are remembered: those that wait or run, and for a while those that are over, with their results.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::cancel::Why;
use super::fault::Fault;
use super::limits::{JOBS_MAX, RESULT_SECONDS_MAX, RESULTS_BYTES_MAX, seconds};

/// Every job that is remembered.
#[derive(Default)]
pub struct Jobs(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    jobs: BTreeMap<String, Arc<Job>>,
    /// Finished ones that still have their results, the oldest first: when each was done, and its bytes.
    finished: VecDeque<(String, Instant, usize)>,
    /// Ids of jobs that were forgotten, the oldest first.
    expired: VecDeque<String>,
}

/// One job.
pub struct Job {
    /// Its id.
    pub id: String,
    /// What is made.
    pub kind: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// Its number in the queue.
    pub number: u64,
    /// Asks it to stop.
    pub stop: Notify,
    /// What is known of it.
    pub facts: Mutex<Facts>,
    /// How many events there are, for those who listen.
    pub events: watch::Sender<usize>,
}

/// What is known of a job so far.
#[derive(Default)]
pub struct Facts {
    /// When its first step began.
    pub started: Option<u64>,
    /// When it was over.
    pub completed: Option<u64>,
    /// Steps that are done.
    pub step: usize,
    /// All steps.
    pub steps: usize,
    /// What came in the end.
    pub over: Option<Result<Value, Fault>>,
    /// What listeners hear.
    pub said: Vec<Bytes>,
    /// The last of it is said.
    pub ended: bool,
}

impl Job {
    /// What is known of it.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells listeners something, perhaps the last of all.
    pub fn say(&self, event: String, last: bool) {
        let mut facts = self.facts();
        facts.said.push(event.into());
        facts.ended = last;
        self.events.send_replace(facts.said.len());
    }

    /// In a word.
    pub fn status(&self) -> &'static str {
        let facts = self.facts();
        match &facts.over {
            Some(Ok(_)) => "completed",
            Some(Err(fault)) if fault.code == Why::Cancelled.fault().code => "cancelled",
            Some(Err(_)) => "failed",
            None if facts.started.is_some() => "generating",
            None => "queued",
        }
    }

    /// The job as callers see it; `position`: how many requests are before it.
    pub fn show(&self, position: Option<usize>, with_result: bool) -> Value {
        let status = self.status();
        let facts = self.facts();
        let result = facts.over.as_ref().and_then(|over| over.as_ref().ok()).filter(|_| with_result);
        let error = facts.over.as_ref().and_then(|over| over.as_ref().err()).map(|fault| fault.body()["error"].clone());
        json!({
            "id": self.id,
            "object": "job",
            "kind": self.kind,
            "status": status,
            "created": self.created,
            "started": facts.started,
            "completed": facts.completed,
            "queue_position": position,
            "step": facts.step,
            "steps": facts.steps,
            "result": result,
            "error": error,
        })
    }
}

impl Jobs {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget(Instant::now());
        kept
    }

    /// Forgets what has been kept long enough.
    pub fn tidy(&self) {
        drop(self.kept());
    }

    /// A job by its id.
    ///
    /// # Errors
    /// A [`Fault`] of status 404, or 410 if it is forgotten.
    pub fn get(&self, id: &str) -> Result<Arc<Job>, Fault> {
        let kept = self.kept();
        let expired = || kept.expired.iter().any(|gone| gone == id);
        match kept.jobs.get(id) {
            Some(job) => Ok(job.clone()),
            None if expired() => Err(Fault::new(410, "expired", "the job's result was kept for a while and is gone; ask again")),
            None => Err(Fault::new(404, "not_found", "there is no such job")),
        }
    }

    /// Remembers a job.
    pub fn add(&self, job: &Arc<Job>) {
        self.kept().jobs.insert(job.id.clone(), job.clone());
    }

    /// Keeps a job that is over and has a result of so many bytes.
    pub fn finish(&self, job: &Job, bytes: usize) {
        let mut kept = self.kept();
        kept.finished.push_back((job.id.clone(), Instant::now(), bytes));
        kept.forget(Instant::now());
    }
}

impl Kept {
    fn forget(&mut self, now: Instant) {
        let mut bytes: usize = self.finished.iter().map(|(_, _, bytes)| bytes).sum();
        while let Some((id, done, own)) = self.finished.front() {
            let old = now.duration_since(*done) > seconds(RESULT_SECONDS_MAX);
            if !old && bytes <= RESULTS_BYTES_MAX && self.finished.len() <= JOBS_MAX {
                break;
            }
            bytes -= own;
            self.jobs.remove(id);
            self.expired.push_back(id.clone());
            self.finished.pop_front();
        }
        let old = self.expired.len().saturating_sub(JOBS_MAX);
        self.expired.drain(..old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(kept: &mut Kept, count: usize, bytes: usize, done: Instant) {
        for n in 0..count {
            kept.finished.push_back((format!("job_{n}"), done, bytes));
        }
    }

    #[test]
    fn results_are_kept_for_a_while_and_as_far_as_memory_goes() {
        let done = Instant::now();
        for (after, bytes, count, left) in [
            (600, 1, 3, 3),
            (601, 1, 3, 0),
            (0, 128 << 20, 2, 2),
            (0, 128 << 20, 3, 2),
            (0, 257 << 20, 1, 0),
            (0, 0, 1000, 1000),
            (0, 0, 1001, 1000),
        ] {
            let mut kept = Kept::default();
            finished(&mut kept, count, bytes, done);
            kept.forget(done + seconds(after));
            assert_eq!((kept.finished.len(), kept.expired.len()), (left, count - left), "{after} s, {bytes} bytes, {count} jobs");
        }
    }
}
