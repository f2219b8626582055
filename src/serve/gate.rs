//! Who may ask: keys, and pages of which origins. A page of somebody else, open in a browser of this machine, is not let in by
//! the browser's being here: names that point to this machine by a trick, and forms that it sends across, are refused.

use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, AUTHORIZATION, HOST, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::fault::Fault;
use super::server::Server;

/// What needs no key: probes, and the page, which holds nothing secret.
const OPEN: [&str; 8] = ["/", "/page.css", "/page.js", "/health", "/livez", "/ready", "/readyz", "/v2/health/ready"];

/// Refuses a request that may not be made.
///
/// # Errors
/// A [`Fault`] of status 401 or 403.
pub fn check(server: &Server, request: &Request) -> Result<(), Fault> {
    let headers = request.headers();
    if let Some(hosts) = &server.hosts
        && let Some(host) = text(headers, &HOST)
        && !hosts.iter().any(|own| own == host_name(host))
    {
        let message = format!("this server answers as {}, not as {host:?}", hosts.join(", "));
        return Err(Fault::new(403, "invalid_host", message));
    }
    if text(headers, &ORIGIN).is_some() && !same_origin(headers) && allowed_origin(server, headers).is_none() {
        return Err(Fault::new(403, "invalid_origin", "pages of other origins may not ask; --cors-origin lets one in"));
    }
    // Browsers ask what they may ask without a key.
    let open = OPEN.contains(&request.uri().path()) || request.method() == Method::OPTIONS;
    if open || server.keys.allow(text(headers, &AUTHORIZATION)) {
        return Ok(());
    }
    let message = "the key is missing or wrong; send one of the server's keys as Authorization: Bearer KEY";
    Err(Fault::new(401, "invalid_api_key", message))
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The name in `Host`, without its port.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whether a browser's page comes from this server.
fn same_origin(headers: &HeaderMap) -> bool {
    let (Some(origin), Some(host)) = (text(headers, &ORIGIN), text(headers, &HOST)) else { return false };
    origin.split_once("://").is_some_and(|(_, own)| own.eq_ignore_ascii_case(host))
}

/// The request's origin, if it is one of another page that may ask.
pub fn allowed_origin(server: &Server, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    server.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

/// Lets a page of this origin read the answer; without cookies, of which there are none.
pub fn share(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type, x-request-id"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    headers.append(VARY, HeaderValue::from_static("origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_without_their_port() {
        for (host, name) in [("localhost:8000", "localhost"), ("127.0.0.1", "127.0.0.1"), ("[::1]:8000", "::1"), ("a.b:1", "a.b")]
        {
            assert_eq!(host_name(host), name);
        }
    }

    #[test]
    fn an_origin_is_ours_if_its_host_is() {
        let of = |origin: &str, host: &str| {
            same_origin(&HeaderMap::from_iter([(ORIGIN, origin.parse().unwrap()), (HOST, host.parse().unwrap())]))
        };
        assert!(of("http://localhost:8000", "localhost:8000") && of("https://edits.example", "edits.example"));
        assert!(!of("http://localhost:8001", "localhost:8000") && !of("null", "localhost:8000"));
        assert!(!of("http://evil.example", "localhost:8000"));
    }
}
