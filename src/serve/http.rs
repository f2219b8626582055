//! Every route, and what happens to each request before and after its handler: an id, who may ask, a line of the log, and panics
//! that end no more than their request.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};

use super::fault::Fault;
use super::gate;
use super::limits::ID_LETTERS_MAX;
use super::line::Line;
use super::server::Server;
use super::stamp::unique;
use super::{images, jobs, status};

/// Every route: what metrics and `openapi.json` know it by, and who answers.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<Server>>)> {
    vec![
        ("/", get(status::page)),
        ("/page.css", get(status::style)),
        ("/page.js", get(status::script)),
        ("/v1/images/edits", post(images::edits)),
        ("/v1/images/generations", post(images::generations)),
        ("/v1/jobs/edits", post(jobs::edits)),
        ("/v1/jobs/generations", post(jobs::generations)),
        ("/v1/jobs/{id}", get(jobs::show)),
        ("/v1/jobs/{id}/events", get(jobs::events)),
        ("/v1/jobs/{id}/cancel", post(jobs::cancel)),
        ("/v1/models", get(status::models)),
        ("/v1/models/{id}", get(status::model)),
        ("/health", get(status::health)),
        ("/livez", get(status::health)),
        ("/ready", get(status::ready)),
        ("/readyz", get(status::ready)),
        ("/v2/health/ready", get(status::ready)),
        ("/metrics", get(status::metrics)),
        ("/version", get(status::version)),
        ("/openapi.json", get(status::openapi)),
    ]
}

/// The server as what answers requests.
pub fn router(server: &Arc<Server>) -> Router {
    let mut router = Router::new();
    for (path, handler) in routes() {
        router = router.route(path, handler);
    }
    router
        .fallback(|| async {
            Fault::new(404, "not_found", "there is nothing at this address; /openapi.json lists what there is")
        })
        .method_not_allowed_fallback(|method: Method| async move {
            Fault::new(405, "method_not_allowed", format!("this address does not answer {method}; see /openapi.json"))
        })
        .layer(from_fn_with_state(server.clone(), around))
        .with_state(server.clone())
}

/// The route that a path belongs to.
fn endpoint_of(path: &str) -> &'static str {
    let fits = |route: &str| {
        let (route, path) = (route.split('/'), path.split('/'));
        route.clone().count() == path.clone().count() && route.zip(path).all(|(own, given)| own == given || own.starts_with('{'))
    };
    routes().into_iter().map(|(route, _)| route).find(|route| fits(route)).unwrap_or("other")
}

/// What happens around every handler.
async fn around(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response {
    let id = id_of(request.headers());
    let (method, path) = (request.method().as_str().to_string(), request.uri().path().to_string());
    let line = Line::new(&server, endpoint_of(&path), id.clone(), &method, &path);
    request.extensions_mut().insert(line.clone());
    let origin = gate::allowed_origin(&server, request.headers());
    let mut response = match gate::check(&server, &request) {
        Err(fault) => fault.into_response(),
        Ok(()) if request.method() == Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => caught(next.run(request)).await.unwrap_or_else(|text| Fault::internal(text).into_response()),
    };
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(HeaderName::from_static("x-request-id"), id);
    }
    origin.into_iter().for_each(|origin| gate::share(headers, origin));
    let mut facts = line.facts();
    facts.status = Some(response.status().as_u16());
    if let Some(fault) = response.extensions().get::<Fault>() {
        (facts.code, facts.detail) = (Some(fault.code.clone()), fault.detail.clone());
    }
    drop(facts);
    response
}

/// The caller's id of a request if it is plain, otherwise one of our own.
fn id_of(headers: &HeaderMap) -> String {
    let plain = |id: &&str| {
        !id.is_empty()
            && id.len() <= ID_LETTERS_MAX
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let given = headers.get("x-request-id").and_then(|id| id.to_str().ok()).filter(plain);
    given.map_or_else(|| format!("req_{}", unique()), Into::into)
}

/// The output of a future, or the words of its panic.
async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Poll::Ready(Err(format!("a panic: {}", text.unwrap_or("without words"))))
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_description_has_every_route() {
        let description: Value = serde_json::from_str(status::OPENAPI).unwrap();
        let described: BTreeSet<&str> = description["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        // The page is for people.
        let own: BTreeSet<&str> =
            routes().into_iter().map(|(path, _)| path).filter(|path| *path != "/" && !path.starts_with("/page.")).collect();
        assert_eq!(described, own);
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn paths_belong_to_routes() {
        for (path, route) in [
            ("/v1/images/edits", "/v1/images/edits"),
            ("/v1/jobs/abc", "/v1/jobs/{id}"),
            ("/v1/jobs/abc/events", "/v1/jobs/{id}/events"),
            ("/v1/jobs/edits", "/v1/jobs/edits"),
            ("/v1/jobs/a/b/c", "other"),
            ("/wp-login.php", "other"),
        ] {
            assert_eq!(endpoint_of(path), route);
        }
    }

    #[test]
    fn ids_of_callers_are_kept_if_they_are_plain() {
        let of = |id: &str| {
            id_of(&HeaderMap::from_iter([(HeaderName::from_static("x-request-id"), HeaderValue::from_str(id).unwrap())]))
        };
        assert_eq!(of("a-1_b.C"), "a-1_b.C");
        assert_eq!(of(&"a".repeat(64)), "a".repeat(64));
        for id in ["", "a b", "a\"b", &"a".repeat(65)] {
            assert!(of(id).starts_with("req_"), "{id:?}");
        }
        assert_ne!(id_of(&HeaderMap::new()), id_of(&HeaderMap::new()));
    }

    #[test]
    fn a_panic_is_an_answer() {
        let caught =
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(caught(async { panic!("by a test") }));
        assert_eq!(caught, Err::<(), _>("a panic: by a test".into()));
    }
}
