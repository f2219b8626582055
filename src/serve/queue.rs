//! Requests that wait for a worker: first come, first served, and no more than the queue holds.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::cancel::{Cancel, Why};
use super::fault::Fault;
use super::limits::RETRY_SECONDS_MAX;
use super::work::{News, Wish};
use crate::image::Rgb;

/// A request that was admitted.
pub struct Task {
    /// Its number, by order of arrival.
    pub number: u64,
    /// What is asked.
    pub wish: Wish,
    /// The picture to edit.
    pub picture: Option<Rgb>,
    /// Whether to stop.
    pub cancel: Cancel,
    /// Where the worker's news go.
    pub news: UnboundedSender<News>,
    /// A worker was lost before it began with it: it was given back, which happens once.
    pub given_back: AtomicBool,
}

impl Task {
    /// Tells something to whoever waits; nobody may wait any more.
    pub fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }
}

/// The queue in front of all workers.
pub struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    /// Most that wait.
    capacity: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Task>>,
    running: Vec<(u64, Cancel)>,
    /// Workers that take tasks.
    workers: usize,
    closed: bool,
    next: u64,
    /// Seconds of a request on a worker, the last ones counting most.
    usual: Option<f64>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that a worker has.
    pub running: usize,
    /// Workers.
    pub workers: usize,
}

/// A task as a worker holds it; it is no longer counted as running once this is gone.
pub struct Running<'q> {
    /// The task.
    pub task: Arc<Task>,
    queue: &'q Queue,
    began: Instant,
}

impl Queue {
    /// A queue in which so many may wait.
    pub fn new(capacity: usize) -> Queue {
        Queue { state: Mutex::default(), wake: Condvar::new(), capacity }
    }

    /// Most requests that may wait.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is kept here is right at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what `push` would refuse now.
    ///
    /// # Errors
    /// A [`Fault`] of status 503, with the seconds after which there may be room.
    pub fn check(&self) -> Result<(), Fault> {
        self.state().check(self.capacity)
    }

    /// Admits a request; gives its number.
    ///
    /// # Errors
    /// A [`Fault`] of status 503: the queue is full, or the server goes down.
    pub fn push(&self, wish: Wish, picture: Option<Rgb>, cancel: &Cancel, news: UnboundedSender<News>) -> Result<u64, Fault> {
        let mut state = self.state();
        state.check(self.capacity)?;
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(Arc::new(Task {
            number,
            wish,
            picture,
            cancel: cancel.clone(),
            news,
            given_back: AtomicBool::new(false),
        }));
        drop(state);
        self.wake.notify_one();
        Ok(number)
    }

    /// The next task, as soon as there is one; none: the queue is closed.
    pub fn pop(&self) -> Option<Running<'_>> {
        let mut state = self.state();
        loop {
            if let Some(task) = state.waiting.pop_front() {
                state.running.push((task.number, task.cancel.clone()));
                return Some(Running { task, queue: self, began: Instant::now() });
            }
            if state.closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a request out that nobody waits for any more, if no worker has it yet.
    pub fn remove(&self, number: u64) {
        self.state().waiting.retain(|task| task.number != number);
    }

    /// How many requests are before this one; none: a worker has it, or it is done.
    pub fn position(&self, number: u64) -> Option<usize> {
        self.state().waiting.iter().position(|task| task.number == number)
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        let State { waiting, running, workers, .. } = &*self.state();
        Counts { waiting: waiting.len(), running: running.len(), workers: *workers }
    }

    /// A worker comes.
    pub fn enter(&self) {
        self.state().workers += 1;
    }

    /// A worker goes; gives how many are left.
    pub fn leave(&self) -> usize {
        let mut state = self.state();
        state.workers -= 1;
        state.workers
    }

    /// Admits nothing any more, and refuses what waits; workers finish what they have.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for task in state.waiting.drain(..) {
            task.tell(News::Over(Err(Fault::shutting_down())));
        }
        self.wake.notify_all();
    }

    /// Stops what the workers have.
    pub fn stop(&self, why: Why) {
        self.state().running.iter().for_each(|(_, cancel)| cancel.ask(why));
    }
}

impl State {
    fn check(&self, capacity: usize) -> Result<(), Fault> {
        if self.closed {
            return Err(Fault::shutting_down());
        }
        let (there, room) = (self.waiting.len() + self.running.len(), capacity + self.workers);
        if there < room {
            return Ok(());
        }
        let message = format!("{there} requests wait or run, as many as the server takes; try again later");
        Err(Fault::new(503, "queue_full", message).after(self.retry_after()))
    }

    /// Seconds until the next worker may be free.
    fn retry_after(&self) -> u64 {
        let each = self.usual.unwrap_or(1.0) / self.workers.max(1) as f64;
        (each.ceil() as u64).clamp(1, RETRY_SECONDS_MAX)
    }
}

impl Running<'_> {
    /// Gives the task back to the head of the queue: who took it cannot make it, and has not begun.
    pub fn give_back(self) {
        let mut state = self.queue.state();
        if state.closed {
            self.task.tell(News::Over(Err(Fault::shutting_down())));
        } else {
            state.waiting.push_front(self.task.clone());
            self.queue.wake.notify_one();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.running.retain(|(number, _)| *number != self.task.number);
        let given_back = state.waiting.front().is_some_and(|task| task.number == self.task.number);
        if self.task.cancel.asked().is_none() && !given_back {
            let took = self.began.elapsed().as_secs_f64();
            state.usual = Some(state.usual.map_or(took, |usual| 0.7 * usual + 0.3 * took));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    pub fn wish(prompt: &str) -> Wish {
        Wish {
            prompt: prompt.into(),
            negative_prompt: String::new(),
            steps: 2,
            cfg_scale: None,
            size_level: Some(64),
            size: (64, 64),
            seed: 1,
            count: 1,
            partials: 0,
        }
    }

    fn push(queue: &Queue, prompt: &str) -> Result<(u64, Cancel, UnboundedReceiver<News>), Fault> {
        let (sender, receiver) = unbounded_channel();
        let cancel = Cancel::default();
        Ok((queue.push(wish(prompt), None, &cancel, sender)?, cancel, receiver))
    }

    #[test]
    fn it_holds_what_it_may_and_serves_in_order() {
        let queue = Queue::new(2);
        queue.enter();
        let all: Vec<_> = ["a", "b", "c"].iter().map(|prompt| push(&queue, prompt).unwrap()).collect();
        let full = push(&queue, "d").err().unwrap();
        assert_eq!((full.status, full.code.as_str(), full.retry_after), (503, "queue_full", Some(1)));
        assert_eq!(queue.position(all[2].0), Some(2));
        let first = queue.pop().unwrap();
        assert_eq!((first.task.wish.prompt.as_str(), queue.position(all[0].0), queue.position(all[1].0)), ("a", None, Some(0)));
        assert!(push(&queue, "d").is_err(), "what runs counts");
        queue.remove(all[1].0);
        push(&queue, "d").unwrap();
        drop(first);
        assert_eq!(queue.counts(), Counts { waiting: 2, running: 0, workers: 1 });
        assert_eq!(queue.pop().unwrap().task.wish.prompt, "c");
    }

    #[test]
    fn closing_refuses_what_waits_and_stopping_what_runs() {
        let queue = Queue::new(4);
        queue.enter();
        let (_, cancel, _) = push(&queue, "a").unwrap();
        let running = queue.pop().unwrap();
        let (_, _, mut news) = push(&queue, "b").unwrap();
        queue.close();
        assert!(matches!(news.try_recv(), Ok(News::Over(Err(fault))) if fault.code == "shutting_down"));
        assert!(queue.pop().is_none() && push(&queue, "c").is_err() && cancel.asked().is_none());
        queue.stop(Why::Shutdown);
        assert_eq!(cancel.asked(), Some(Why::Shutdown));
        drop(running);
        assert_eq!(queue.counts().running, 0);
    }

    #[test]
    fn what_is_given_back_comes_first_again() {
        let queue = Queue::new(4);
        queue.enter();
        for prompt in ["a", "b"] {
            push(&queue, prompt).unwrap();
        }
        queue.pop().unwrap().give_back();
        assert_eq!(queue.counts(), Counts { waiting: 2, running: 0, workers: 1 });
        assert_eq!(queue.pop().unwrap().task.wish.prompt, "a");
    }

    #[test]
    fn the_time_to_try_again_follows_what_requests_take() {
        let mut state = State { workers: 2, ..State::default() };
        for (usual, seconds) in [(None, 1), (Some(0.1), 1), (Some(13.7), 7), (Some(1e6), 120)] {
            state.usual = usual;
            assert_eq!(state.retry_after(), seconds);
        }
    }
}
