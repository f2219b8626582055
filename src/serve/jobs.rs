//! `/v1/jobs`: edits that are asked for without waiting.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::mpsc::channel;
use tokio::sync::{Notify, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::answer;
use super::ask::Kind;
use super::cancel::{Cancel, Why};
use super::fault::Fault;
use super::images::ordered;
use super::kept::{Facts, Job};
use super::line::Line;
use super::order::{Order, Told};
use super::server::Server;
use super::stamp::{now, unique};

/// An edit without waiting.
pub async fn edits(state: State<Arc<Server>>, line: Extension<Arc<Line>>, request: Request) -> Result<Response, Fault> {
    taken(state.0, line.0, request, Kind::Edit, "edit").await
}

/// A picture from a prompt without waiting.
pub async fn generations(state: State<Arc<Server>>, line: Extension<Arc<Line>>, request: Request) -> Result<Response, Fault> {
    taken(state.0, line.0, request, Kind::Generation, "generation").await
}

async fn taken(
    server: Arc<Server>,
    line: Arc<Line>,
    request: Request,
    kind: Kind,
    name: &'static str,
) -> Result<Response, Fault> {
    let id = format!("job_{}", unique());
    // The job has a line of its own in the log.
    let mut own = None;
    let of_edit = || own.insert(Line::new(&server, "job", line.id(), "JOB", &id)).clone();
    let order = ordered(&server, &line, request, kind, of_edit).await;
    if let (Err(fault), Some(own)) = (&order, &own) {
        own.facts().status = Some(fault.status);
    }
    let (order, own) = (order?, own.ok_or_else(Fault::shutting_down)?);
    let steps = order.ask().wish.steps * order.ask().wish.count;
    let facts = Mutex::new(Facts { steps, ..Facts::default() });
    let job =
        Job { id, kind: name, created: now(), number: order.number(), stop: Notify::new(), facts, events: watch::Sender::new(0) };
    let job = Arc::new(job);
    server.jobs.add(&job);
    let answer = json!({"id": job.id, "object": "job", "status": "queued", "created": job.created, "poll_url": format!("/v1/jobs/{}", job.id)});
    tokio::spawn(async move { run(server, job, order, own).await });
    let mut response = answer::of_json(&answer);
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

async fn run(server: Arc<Server>, job: Arc<Job>, order: Order, line: Arc<Line>) {
    let mut pictures = Vec::new();
    let over = {
        let mut hear = |told: Told| {
            if let Told::Picture(picture, _) = &told {
                pictures.push(picture.clone());
            }
            hear(&job, told);
        };
        let cancel = order.cancel();
        tokio::select! {
            over = order.fulfil(&mut hear) => over,
            () = stopped(&job.stop, &cancel) => Err(Why::Cancelled.fault()),
        }
    };
    line.facts().status = Some(over.as_ref().map_or_else(|fault| fault.status, |_| 200));
    let bytes = pictures.iter().map(|picture| picture.data.len()).sum();
    let over = match over {
        Ok(done) => Ok(answer::pictures(&done, pictures)),
        Err(fault) => {
            (line.facts().code, line.facts().detail) = (Some(fault.code.clone()), fault.detail.clone());
            Err(fault)
        }
    };
    let mut facts = job.facts();
    facts.completed = Some(now());
    facts.over = Some(over);
    // Whoever comes later hears no more than how it ended.
    facts.said.iter_mut().for_each(|said| {
        if said.starts_with(b"event: partial_image") {
            *said = Bytes::new();
        }
    });
    drop(facts);
    job.say(answer::event(job.status(), &job.show(None, false)), true);
    server.jobs.finish(&job, bytes);
}

/// Waits until somebody stops the job, and says why before the order goes.
async fn stopped(stop: &Notify, cancel: &Cancel) {
    stop.notified().await;
    cancel.ask(Why::Cancelled);
}

/// What a job's listeners hear of what its order tells.
fn hear(job: &Job, told: Told) {
    let event = match told {
        Told::Waiting(_) => return,
        Told::Step(step, steps) => {
            let mut facts = job.facts();
            facts.started.get_or_insert_with(now);
            (facts.step, facts.steps) = (step, steps);
            answer::event("step", &json!({"type": "step", "step": step, "steps": steps}))
        }
        Told::Partial(index, data, _) => {
            let data = json!({"type": "partial_image", "partial_image_index": index, "b64_json": data});
            answer::event("partial_image", &data)
        }
        Told::Picture(picture, _) => answer::event("picture", &json!({"type": "picture", "seed": picture.seed})),
    };
    job.say(event, false);
}

/// How a job is.
pub async fn show(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, Fault> {
    let job = server.jobs.get(&id)?;
    Ok(answer::of_json(&job.show(server.queue.position(job.number), true)))
}

/// What a job says, from its beginning to its end.
pub async fn events(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, Fault> {
    let job = server.jobs.get(&id)?;
    let (sender, receiver) = channel::<Result<Bytes, Infallible>>(4);
    tokio::spawn(async move {
        let (mut heard, mut events) = (0, job.events.subscribe());
        loop {
            let (said, over) = {
                let facts = job.facts();
                (facts.said[heard..].to_vec(), facts.ended)
            };
            heard += said.len();
            for said in said.into_iter().filter(|said| !said.is_empty()) {
                if sender.send(Ok(said)).await.is_err() {
                    return;
                }
            }
            if over {
                return;
            }
            tokio::select! {
                changed = events.wait_for(|count| *count > heard) => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    Ok(answer::of_events(Body::from_stream(ReceiverStream::new(receiver))))
}

/// Stops a job, within a node of its edit.
pub async fn cancel(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, Fault> {
    let job = server.jobs.get(&id)?;
    if job.facts().over.is_some() {
        return Err(Fault::new(409, "already_finished", format!("the job is {} already", job.status())));
    }
    job.stop.notify_one();
    let mut events = job.events.subscribe();
    while !job.facts().ended && events.changed().await.is_ok() {}
    Ok(answer::of_json(&job.show(None, false)))
}
