//! Answers: JSON, errors, and events.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::fault::Fault;
use super::order::{Done, Picture, format_name};
use super::stamp::now;

/// JSON with status 200.
pub fn of_json(value: &Value) -> Response {
    with(StatusCode::OK, "application/json", value.to_string())
}

/// A body of this type.
pub fn with(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A response that is a fault; the log reads it from the response's extensions.
impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = with(status, "application/json", self.body().to_string());
        let headers = response.headers_mut();
        self.retry_after.into_iter().for_each(|seconds| drop(headers.insert(RETRY_AFTER, seconds.into())));
        if self.lasting {
            headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
        if self.status == 401 {
            headers.insert(axum::http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Events as they come.
pub fn of_events(body: Body) -> Response {
    let mut response = with(StatusCode::OK, "text/event-stream", body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// One event; its data has no end of line.
pub fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn usage(done: &Done) -> Value {
    let all = done.text_tokens + done.image_tokens;
    json!({
        "input_tokens": all,
        "output_tokens": 0,
        "total_tokens": all,
        "input_tokens_details": {"text_tokens": done.text_tokens, "image_tokens": done.image_tokens},
    })
}

/// Width and height of the results.
pub fn size(done: &Done) -> String {
    format!("{}x{}", done.size.0, done.size.1)
}

/// The answer with all pictures.
pub fn pictures(done: &Done, pictures: Vec<Picture>) -> Value {
    let data: Vec<Value> =
        pictures.into_iter().map(|Picture { data, .. }| json!({"b64_json": data, "revised_prompt": null})).collect();
    json!({
        "created": now(),
        "data": data,
        "output_format": format_name(done.ask.format),
        "size": size(done),
        "background": "opaque",
        "quality": "auto",
        "usage": usage(done),
        "seed": done.ask.wish.seed,
        "ignored": done.ask.ignored,
        "warnings": done.warnings,
        "metrics": {"queue_s": done.waited, "edit_s": done.edited},
    })
}

/// The last event of one picture.
pub fn completed(name: &str, done: &Done, picture: Picture) -> Value {
    json!({
        "type": name,
        "b64_json": picture.data,
        "created_at": now(),
        "size": size(done),
        "quality": "auto",
        "background": "opaque",
        "output_format": format_name(done.ask.format),
        "usage": usage(done),
        "seed": picture.seed,
        "ignored": done.ask.ignored,
        "warnings": done.warnings,
    })
}
