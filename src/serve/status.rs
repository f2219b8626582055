//! How the server is, what it has, and the page for people.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use super::answer;
use super::fault::Fault;
use super::metrics::{DeviceGauges, Gauges};
use super::queue::Counts;
use super::server::{self, Server};
use crate::cuda::Nvml;

/// The description of the interface.
pub const OPENAPI: &str = include_str!("openapi.json");

/// The page may load what this server has, and nothing else; nobody may put it into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Shared = State<Arc<Server>>;

/// The page.
pub async fn page() -> Response {
    asset("text/html; charset=utf-8", include_str!("page.html"))
}

/// Its style.
pub async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("page.css"))
}

/// Its script.
pub async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("page.js"))
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let mut response = answer::with(StatusCode::OK, kind, text);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Whether the process can make progress.
pub async fn health(State(server): Shared) -> Result<Response, Fault> {
    match server.lost() {
        None => Ok(answer::of_json(&json!({"status": "ok"}))),
        Some(_) => Err(Fault::new(503, "device_lost", "the server has lost its GPU and ends")),
    }
}

/// Whether a request would be taken now. One that goes down says no while it still takes some.
pub async fn ready(State(server): Shared) -> Result<Response, Fault> {
    server.check()?;
    if server.state() != server::State::Ready {
        return Err(Fault::shutting_down());
    }
    Ok(answer::of_json(&json!({"status": "ready"})))
}

fn model_of(server: &Server, name: &str) -> Value {
    let created = server.started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({"id": name, "object": "model", "created": created, "owned_by": "step1x-edit"})
}

/// The model.
pub async fn models(State(server): Shared) -> Response {
    let data: Vec<Value> = server.offer.names.iter().map(|name| model_of(&server, name)).collect();
    answer::of_json(&json!({"object": "list", "data": data}))
}

/// One of the model's names.
pub async fn model(State(server): Shared, Path(id): Path<String>) -> Result<Response, Fault> {
    if server.offer.names.contains(&id) {
        return Ok(answer::of_json(&model_of(&server, &id)));
    }
    Err(Fault::new(404, "model_not_found", format!("there is no such model; this server has {}", server.offer.names.join(", ")))
        .of("model"))
}

/// What the page and people want to know.
pub async fn version(State(server): Shared) -> Response {
    let defaults = &server.offer.edit;
    answer::of_json(&json!({
        "program": "step1x-edit",
        "version": env!("CARGO_PKG_VERSION"),
        "model": server.offer.names[0],
        "generates": server.offer.generates,
        "devices": server.devices().into_iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "defaults": {"steps": defaults.steps, "cfg_scale": defaults.cfg_scale, "size_level": defaults.size_level},
    }))
}

/// The description of the interface.
pub async fn openapi() -> Response {
    answer::with(StatusCode::OK, "application/json", OPENAPI)
}

/// What was counted.
pub async fn metrics(State(server): Shared) -> Response {
    let Counts { waiting, running, workers } = server.queue.counts();
    let devices = server.devices();
    let asked = tokio::task::spawn_blocking(move || gauges_of(devices)).await.unwrap_or_default();
    let gauges = Gauges {
        running,
        waiting,
        capacity: server.queue.capacity(),
        workers,
        devices: asked,
        build: (env!("CARGO_PKG_VERSION").into(), server.offer.names[0].clone()),
        resident_bytes: resident_bytes(),
        started: server.started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
    };
    answer::with(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", server.metrics.text(&gauges))
}

/// Asked of the driver's management library: it answers while the GPU is busy, and also when it is lost.
fn gauges_of(devices: Vec<(String, Option<String>)>) -> Vec<DeviceGauges> {
    let of = |(name, bus): (String, Option<String>)| {
        let bus = bus?;
        let memory_bytes = Nvml::open().and_then(|nvml| nvml.bytes_in_use(&bus));
        let meter = Nvml::open().and_then(|nvml| nvml.energy_meter(&bus));
        let joules = meter.and_then(|meter| meter.millijoules()).map(|millijoules| millijoules as f64 / 1e3);
        Some(DeviceGauges { name, memory_bytes, joules })
    };
    devices.into_iter().filter_map(of).collect()
}

/// What the process holds of the host's memory; none where the kernel keeps no such books.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kilobytes.trim().parse::<u64>().ok()? << 10)
}
