//! Requests to a hub: redirects, the token and who gets it, what is tried again and when.

use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Error, Proxy};

use super::{HubEnvironment, Source, Token};
use crate::error::usage;
use crate::weights::{ModelError, shown};

/// Bytes of an answer that are read at once.
pub(super) const PIECE: usize = 1 << 20;

/// Most bytes of a list of files; that of a repository with ten thousand has 3 million.
const LIST_BYTES_MAX: u64 = 16 << 20;

/// Times of a server's patience (30 s, if nothing else is said) that a list may take.
const LIST_TIMES_MAX: u32 = 10;

/// Most redirects of a request; the hub takes two.
const REDIRECTS_MAX: usize = 5;

/// Most tries one after another that bring nothing.
const TRIES_MOST: u32 = 5;

/// Most seconds that a server may have itself waited for.
const WAIT_SECONDS_MOST: u64 = 600;

/// Bytes of a file: the first, and the last if it is not the file's.
pub(super) type Bytes = (u64, Option<u64>);

/// What a request comes to that does not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may succeed later: why it did not, the seconds that the server asked for, and whether it brought something.
    Passing { why: String, after: Option<u64>, progressed: bool },
    /// It never will.
    Final(anyhow::Error),
}

impl Failure {
    pub fn passing(why: impl Display) -> Failure {
        Failure::Passing { why: why.to_string(), after: None, progressed: false }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Final(error.into())
    }
}

/// The way to one hub.
pub(super) struct Client<'a> {
    https: Agent,
    http: Agent,
    /// Scheme, host and port of the hub, which alone gets the token.
    home: Uri,
    token: Option<&'a Token>,
    source: Source,
    /// How long a server may say nothing.
    patience: Duration,
    say: &'a (dyn Fn(&str) + Sync),
    /// One request has failed for good, so no other needs to go on.
    pub stopped: AtomicBool,
}

impl<'a> Client<'a> {
    /// # Errors
    /// A usage error: an address, a proxy or a file of certificates that is none.
    pub fn new(environment: &'a HubEnvironment, source: Source, say: &'a (dyn Fn(&str) + Sync)) -> Result<Client<'a>> {
        let (address, variable) = match source {
            Source::HuggingFace => (&environment.hugging_face, "HF_ENDPOINT"),
            Source::ModelScope => (&environment.modelscope, "MODELSCOPE_DOMAIN"),
        };
        let home = web_address(address).map_err(|what| usage(anyhow!("{variable}: {what}")))?;
        let token = environment.token.as_ref().filter(|_| source == Source::HuggingFace);
        let agent = |proxy: &Option<String>, variable: &str| agent(environment, proxy.as_deref(), variable).map_err(usage);
        let (https, http) = (agent(&environment.https_proxy, "HTTPS_PROXY")?, agent(&environment.http_proxy, "HTTP_PROXY")?);
        let patience = environment.patience;
        Ok(Client { https, http, home, token, source, patience, say, stopped: AtomicBool::new(false) })
    }

    /// A line for a person.
    pub fn say(&self, line: &str) {
        (self.say)(line);
    }

    /// The JSON at an address; `what` it is, in words.
    pub fn json<T: DeserializeOwned>(&self, url: &str, what: &str) -> Result<T> {
        let bytes = self.patiently(what, || {
            let mut body = self.get(url, what, None)?.0.into_body().into_reader().take(LIST_BYTES_MAX + 1);
            let (mut bytes, mut piece, since) = (Vec::new(), vec![0; 64 << 10], Instant::now());
            loop {
                match body.read(&mut piece) {
                    Ok(0) => break,
                    Ok(got) => bytes.extend(&piece[..got]),
                    Err(error) => return Err(broken(&error, false)),
                }
                if since.elapsed() > self.patience * LIST_TIMES_MAX {
                    let seconds = (self.patience * LIST_TIMES_MAX).as_secs();
                    return Err(anyhow!("{what}: the answer did not end within {seconds} s; try again later").into());
                }
            }
            if bytes.len() as u64 > LIST_BYTES_MAX {
                return Err(ModelError::new(format!("{what}: the answer has more than {LIST_BYTES_MAX} bytes")).into());
            }
            Ok(bytes)
        })?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let host = self.home.host().unwrap_or_default();
            ModelError::new(format!("{what}: {host} does not answer as a hub: {}", shown(&error.to_string()))).into()
        })
    }

    /// Tries until it succeeds, fails for good, or has brought nothing several times in a row.
    ///
    /// # Errors
    /// The failure, in words.
    pub fn patiently<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T> {
        let mut tries = 0;
        loop {
            let (why, after) = match attempt() {
                Ok(result) => return Ok(result),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { why, after, progressed }) => {
                    tries = if progressed { 1 } else { tries + 1 };
                    (why, after)
                }
            };
            let other = match self.source {
                Source::HuggingFace => "--source modelscope asks the other hub, HF_ENDPOINT names a mirror",
                Source::ModelScope => "--source hf asks the other hub",
            };
            let Some(pause) = pause(tries, after) else {
                bail!("{what}: {why}; given up; the same command goes on from here, {other}");
            };
            if self.stopped.load(Relaxed) {
                bail!("{what}: {why}");
            }
            self.say(&format!("{what}: {why}; trying again in {:.1} s", pause.as_secs_f64()));
            let since = Instant::now();
            while since.elapsed() < pause && !self.stopped.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(50).min(pause));
            }
        }
    }

    /// The answer with the bytes of an address, of all or from one on, up to a last one if there is one, whatever hosts it leads to: 200,
    /// 206 or 416; and the address that gave it.
    ///
    /// # Errors
    /// No connection, or an answer that gives nothing, in words.
    pub fn get(&self, url: &str, what: &str, range: Option<Bytes>) -> Result<(Response<Body>, String), Failure> {
        let mut address = web_address(url).map_err(|fault| ModelError::new(format!("{what}: {fault}")))?;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.ask(&address, range)?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return match status {
                    200 | 206 | 416 => Ok((response, address.to_string())),
                    408 | 429 | 500..=599 => Err(Failure::Passing {
                        why: format!("{} answers {status}", host(&address)),
                        after: header(response.headers(), "retry-after").and_then(|text| text.trim().parse().ok()),
                        progressed: false,
                    }),
                    _ => Err(self.refusal(status, &address, response.headers(), what).into()),
                };
            }
            let location = header(response.headers(), "location").unwrap_or_default();
            let next = redirected(&address, location).map_err(|fault| ModelError::new(format!("{what}: {fault}")))?;
            address = next;
        }
        Err(ModelError::new(format!("{what}: {} leads to more than {REDIRECTS_MAX} others", host(&address))).into())
    }

    fn ask(&self, address: &Uri, range: Option<Bytes>) -> Result<Response<Body>, Failure> {
        let agent = if address.scheme_str() == Some("https") { &self.https } else { &self.http };
        let mut request = agent.get(address.clone());
        if let Some(token) = self.token.filter(|_| self.gets_token(address)) {
            request = request.header("authorization", format!("Bearer {}", token.secret));
        }
        if let Some((from, last)) = range {
            let last = last.map_or(String::new(), |last| last.to_string());
            request = request.header("range", format!("bytes={from}-{last}"));
        }
        request.call().map_err(|error| match error {
            Error::Tls(_) | Error::Rustls(_) | Error::Pem(_) => Failure::Final(no_trust(address, &error)),
            Error::Io(io) if io.get_ref().is_some_and(|inner| inner.to_string().contains("certificate")) => {
                Failure::Final(no_trust(address, &io))
            }
            other => Failure::passing(format!("no answer from {}: {}", host(address), shown(&other.to_string()))),
        })
    }

    /// The hub alone, and nobody who can listen on the way to it.
    fn gets_token(&self, address: &Uri) -> bool {
        let place = |uri: &Uri| {
            let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
            (uri.scheme_str().map(String::from), uri.host().map(str::to_ascii_lowercase), port)
        };
        let here = ["127.0.0.1", "localhost", "[::1]"].contains(&address.host().unwrap_or_default());
        place(address) == place(&self.home) && (here || address.scheme_str() == Some("https"))
    }

    /// What an answer that gives nothing means.
    fn refusal(&self, status: u16, address: &Uri, headers: &HeaderMap, what: &str) -> ModelError {
        let terms = format!("accept its terms at {} with the token's account", self.home.to_string().trim_end_matches('/'));
        let private = match (self.source, self.token) {
            (Source::ModelScope, _) => "it is private, or not there; private ones are for ModelScope's own client".to_string(),
            (_, None) => format!(
                "it is not there, private, or gated: check the name; set HF_TOKEN to a token that may read it; if it is gated, {terms}"
            ),
            (_, Some(token)) => {
                format!(
                    "the token of {} may not read it, or it is not there: check the name; if it is gated, {terms}",
                    token.found
                )
            }
        };
        let means = match status {
            401 | 403 => private,
            404 => "there is no such repository, revision or file; check the name, and the revision behind the @".into(),
            _ => "this is no answer of a hub".into(),
        };
        let said = header(headers, "x-error-message").map_or(String::new(), |text| format!(" (\"{}\")", shown(text)));
        ModelError::new(format!("{what}: {} answers {status}{said}: {means}", host(address)))
    }
}

/// How long to wait before the next of so many tries; none: it is no use.
fn pause(tries: u32, after: Option<u64>) -> Option<Duration> {
    let own = Duration::from_millis(250 << tries.min(16));
    let asked = Duration::from_secs(after.unwrap_or(0).min(WAIT_SECONDS_MOST + 1));
    (tries < TRIES_MOST && asked.as_secs() <= WAIT_SECONDS_MOST).then(|| own.max(asked))
}

fn agent(environment: &HubEnvironment, proxy: Option<&str>, variable: &str) -> Result<Agent> {
    let proxy = proxy.map(|address| with_exceptions(address, environment.no_proxy.as_deref(), variable)).transpose()?;
    let mut tls = TlsConfig::builder();
    if let Some(path) = &environment.certificates {
        let pem = fs::read(path).with_context(|| format!("SSL_CERT_FILE: cannot read {}", path.display()))?;
        let certificates: Vec<_> = parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            bail!("SSL_CERT_FILE: {} holds no certificate", path.display());
        }
        tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
    }
    let patience = Some(environment.patience);
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy)
        .tls_config(tls.build())
        .user_agent(concat!("step1x-edit/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .timeout_connect(patience)
        .timeout_recv_response(patience)
        .timeout_per_read(patience)
        .timeout_per_write(patience);
    Ok(config.build().new_agent())
}

/// A proxy for all hosts but some. Its address may hold a password, so no message repeats it.
fn with_exceptions(address: &str, exceptions: Option<&str>, variable: &str) -> Result<Proxy> {
    let fault = || anyhow!("{variable} is no address of a proxy; write it as http://HOST:PORT");
    let plain = Proxy::new(address).map_err(|_| fault())?;
    let mut proxy = Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
    if let Some(name) = plain.username() {
        proxy = proxy.username(name);
    }
    if let Some(password) = plain.password() {
        proxy = proxy.password(password);
    }
    for host in exceptions.into_iter().flat_map(|list| list.split(',')).map(str::trim).filter(|host| !host.is_empty()) {
        proxy = proxy.no_proxy(host);
    }
    proxy.build().map_err(|_| fault())
}

/// An address of the web.
fn web_address(text: &str) -> Result<Uri, String> {
    let is_web = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    let address = text.parse::<Uri>().ok().filter(is_web);
    address.ok_or_else(|| format!("\"{}\" is no address of the web", shown(text)))
}

/// Where an address leads that answers with another: a whole one, or a path of the same host.
fn redirected(from: &Uri, location: &str) -> Result<Uri, String> {
    let scheme = from.scheme_str().unwrap_or_default();
    let whole = match location {
        path if path.starts_with("//") => format!("{scheme}:{path}"),
        path if path.starts_with('/') => format!("{scheme}://{}{path}", from.authority().map_or("", |host| host.as_str())),
        other => other.to_string(),
    };
    let to = web_address(&whole).map_err(|fault| format!("{} leads elsewhere: {fault}", host(from)))?;
    if scheme == "https" && to.scheme_str() != Some("https") {
        return Err(format!("{} leads from https to {}, which anybody can listen to", host(from), host(&to)));
    }
    Ok(to)
}

/// Host and port, as messages show them: what follows may hold a signature.
fn host(address: &Uri) -> String {
    let authority = address.authority().map_or("", |authority| authority.as_str());
    shown(authority.rsplit('@').next().unwrap_or_default())
}

fn no_trust(address: &Uri, error: &dyn Display) -> anyhow::Error {
    anyhow!(
        "{} is not who it should be: {}; if a proxy stands between, SSL_CERT_FILE names the file of its certificates",
        host(address),
        shown(&error.to_string())
    )
}

/// A header's text.
pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// A text as a part of an address; a slash is one only where `keep` says so.
pub(super) fn quoted(text: &str, keep: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A broken connection, as a failure that may pass.
pub(super) fn broken(error: &io::Error, progressed: bool) -> Failure {
    Failure::Passing { why: format!("the connection broke: {}", shown(&error.to_string())), after: None, progressed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let seconds = |tries, after| pause(tries, after).map(|pause| pause.as_secs_f64());
        assert_eq!([1, 2, 3, 4, 5].map(|tries| seconds(tries, None)), [Some(0.5), Some(1.0), Some(2.0), Some(4.0), None]);
        assert_eq!((seconds(1, Some(600)), seconds(1, Some(601)), seconds(3, Some(1))), (Some(600.0), None, Some(2.0)));
    }

    #[test]
    fn redirects_stay_on_the_web_and_secret() {
        let from = |text: &str| web_address(text).unwrap();
        let to = |start: &str, location: &str| redirected(&from(start), location).map(|uri| uri.to_string());
        assert_eq!(to("https://a.b:8/c", "/d?e=f"), Ok("https://a.b:8/d?e=f".into()));
        assert_eq!(to("http://a/c", "//d/e"), Ok("http://d/e".into()));
        assert_eq!(to("http://a/c", "https://d/e"), Ok("https://d/e".into()));
        for (start, location) in
            [("https://a/c", "http://d/e"), ("http://a/c", "file:///etc/passwd"), ("http://a/c", ""), ("http://a/c", "d")]
        {
            assert!(to(start, location).is_err(), "{start} to {location}");
        }
    }

    #[test]
    fn parts_of_addresses_are_quoted() {
        assert_eq!(quoted("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(quoted("a b/ü.json?x", "/"), "a%20b/%C3%BC.json%3Fx");
    }
}
