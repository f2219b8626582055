//! `/v1/images/edits` and `/v1/images/generations`: pictures at once, or events on the way to them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::interval_at;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::answer;
use super::ask::{Ask, Kind};
use super::body::body_of;
use super::fault::Fault;
use super::form::Form;
use super::line::Line;
use super::order::{Order, Told, format_name};
use super::server::Server;
use super::stamp::now;

/// Comments come this often at most, and at least so often that no proxy takes the connection for dead.
const COMMENTS_APART: Duration = Duration::from_millis(100);
const STILL_THERE: Duration = Duration::from_secs(10);

/// Edits a picture.
pub async fn edits(state: State<Arc<Server>>, line: Extension<Arc<Line>>, request: Request) -> Result<Response, Fault> {
    made(state.0, line.0, request, Kind::Edit).await
}

/// Makes a picture from a prompt alone.
pub async fn generations(state: State<Arc<Server>>, line: Extension<Arc<Line>>, request: Request) -> Result<Response, Fault> {
    made(state.0, line.0, request, Kind::Generation).await
}

/// Takes what a request asks for: reads its form and its picture, and gives it a place in the queue. `of_edit` gives the line of the
/// log that the edit's times are written into.
///
/// # Errors
/// A [`Fault`]: the body cannot be read, asks for what is not to be had, or there is no room.
pub async fn ordered(
    server: &Arc<Server>,
    line: &Line,
    request: Request,
    kind: Kind,
    of_edit: impl FnOnce() -> Arc<Line>,
) -> Result<Order, Fault> {
    // Before anything is read: who is refused has not sent for nothing.
    server.check()?;
    let busy =
        |_| Fault::new(503, "queue_full", "many uploads are under way, as many as the server takes; try again later").after(1);
    // Held until the picture is read, so that no more bodies than these are in memory.
    let _permit = server.uploads.try_acquire().map_err(busy)?;
    let (content_type, body) = body_of(line, request).await?;
    let ask = Ask::new(Form::read(&content_type, body)?, kind, &server.offer)?;
    Order::place(server, ask, &of_edit()).await
}

async fn made(server: Arc<Server>, line: Arc<Line>, request: Request, kind: Kind) -> Result<Response, Fault> {
    let order = ordered(&server, &line, request, kind, || line.clone()).await?;
    if order.ask().stream {
        return Ok(streamed(order, kind, line));
    }
    let mut pictures = Vec::new();
    let mut tell = |told: Told| {
        if let Told::Picture(picture, _) = told {
            pictures.push(picture);
        }
    };
    let done = order.fulfil(&mut tell).await?;
    Ok(answer::of_json(&answer::pictures(&done, pictures)))
}

/// The answer in events. The body is what waits: when the client goes, the order goes with it.
fn streamed(order: Order, kind: Kind, line: Arc<Line>) -> Response {
    let (sender, receiver) = unbounded_channel::<Result<Bytes, Infallible>>();
    tokio::spawn(async move {
        let mut events = Events { kind, sender: sender.clone(), spoken: None };
        let fulfilled = async move { order.fulfil(&mut |told| events.tell(told)).await.map(drop) };
        tokio::pin!(fulfilled);
        let mut beat = interval_at((Instant::now() + STILL_THERE).into(), STILL_THERE);
        let over = loop {
            tokio::select! {
                over = &mut fulfilled => break over,
                () = sender.closed() => {
                    line.facts().status = None;
                    return;
                }
                _ = beat.tick() => send(&sender, ": still there\n\n".into()),
            }
        };
        if let Err(fault) = over {
            let mut data = fault.body();
            data["type"] = "error".into();
            send(&sender, answer::event("error", &data));
            let mut facts = line.facts();
            (facts.code, facts.detail) = (Some(fault.code), fault.detail);
        }
    });
    answer::of_events(Body::from_stream(UnboundedReceiverStream::new(receiver)))
}

type Sender = UnboundedSender<Result<Bytes, Infallible>>;

/// Nobody may listen any more.
fn send(sender: &Sender, text: String) {
    let _ = sender.send(Ok(text.into()));
}

/// What clients of OpenAI's interface hear: they know partial and completed pictures; progress is a comment.
struct Events {
    kind: Kind,
    sender: Sender,
    /// When the last comment was sent.
    spoken: Option<Instant>,
}

impl Events {
    fn tell(&mut self, told: Told) {
        let name = |what: &str| format!("{}.{what}", if self.kind == Kind::Edit { "image_edit" } else { "image_generation" });
        match told {
            Told::Waiting(before) => send(&self.sender, format!(": waiting behind {before}\n\n")),
            Told::Step(step, steps) => {
                if step == steps || self.spoken.is_none_or(|spoken| spoken.elapsed() >= COMMENTS_APART) {
                    self.spoken = Some(Instant::now());
                    send(&self.sender, format!(": step {step}/{steps}\n\n"));
                }
            }
            Told::Partial(index, data, done) => {
                let name = name("partial_image");
                let event = json!({
                    "type": name,
                    "b64_json": data,
                    "partial_image_index": index,
                    "created_at": now(),
                    "size": answer::size(done),
                    "quality": "auto",
                    "background": "opaque",
                    "output_format": format_name(done.ask.format),
                });
                send(&self.sender, answer::event(&name, &event));
            }
            Told::Picture(picture, done) => {
                let name = name("completed");
                send(&self.sender, answer::event(&name, &answer::completed(&name, done, picture)));
            }
        }
    }
}
