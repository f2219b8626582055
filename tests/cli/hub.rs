//! A hub on this machine: it lists and sends the files of small repositories as Hugging Face and ModelScope do, writes down what
//! is asked, and does what a test wants instead.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::support::*;

pub const OFFICIAL: &str = "stepfun-ai/Step1X-Edit";
pub const QWEN: &str = "Qwen/Qwen2.5-VL-7B-Instruct";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Repositories, and the bytes of their files.
pub type Repositories = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// A request: `/path?query`, the headers by their names in lower case, and whether it came to the place where files lie.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub elsewhere: bool,
    /// How often the same path was asked for, this time included.
    pub times: usize,
}

impl Asked {
    pub fn range(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    /// The first and the last byte of a range that has both.
    pub fn part(&self) -> Option<(usize, usize)> {
        let (first, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }

    /// The last part of the path of a file on the hub or elsewhere.
    pub fn is_for(&self, file: &str) -> bool {
        self.path.ends_with(&format!("/{file}"))
    }
}

/// An answer, which may end or stop early.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body that are sent.
    pub sent: Option<usize>,
    /// How long the connection stays open then.
    pub then: Duration,
    /// The body comes again and again, of no length that is said, with this pause after each time.
    pub again: Option<Duration>,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn bytes(body: &[u8]) -> Reply {
        Reply { body: body.to_vec(), ..Reply::status(200) }
    }

    pub fn json(value: &Value) -> Reply {
        Reply::bytes(value.to_string().as_bytes())
    }

    pub fn with(mut self, header: &'static str, value: impl ToString) -> Reply {
        self.headers.push((header, value.to_string()));
        self
    }

    fn send(&self, mut to: impl Write) {
        let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", self.status);
        if self.again.is_none() {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        self.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let body = &self.body[..self.sent.unwrap_or(self.body.len())];
        // Who asked may have gone away.
        let _ = to.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| to.write_all(body)).and_then(|()| to.flush());
        while let Some(pause) = self.again
            && to.write_all(body).and_then(|()| to.flush()).is_ok()
        {
            std::thread::sleep(pause);
        }
        std::thread::sleep(self.then);
    }
}

/// Either side of a connection, plain or secret.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn fixture_of(name: &str) -> String {
    format!("{}/tests/data/hub/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The certificate of hubs that speak https, which is made for 127.0.0.1 and trusted by nobody else.
pub fn certificate() -> String {
    fixture_of("certificate.pem")
}

/// What a test wants instead of the usual answer, which it is given.
pub type Twist = Box<dyn Fn(&Asked, Reply) -> Reply + Send + Sync>;

/// The hub, at `http://127.0.0.1:PORT`; files with weights lie at another port. It lives as long as the test process.
pub struct Hub {
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Hub {
    pub fn new(repositories: Repositories, twist: Twist) -> Hub {
        Hub::open(repositories, twist, None)
    }

    /// A hub with the tiny model that speaks https, with the certificate of [`certificate`].
    pub fn secure(twist: Twist) -> Hub {
        let (certificate, key) =
            (CertificateDer::from_pem_file(certificate()), PrivateKeyDer::from_pem_file(fixture_of("key.pem")));
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.unwrap()], key.unwrap());
        Hub::open(repositories(), twist, Some(Arc::new(config.unwrap())))
    }

    fn open(repositories: Repositories, twist: Twist, tls: Option<Arc<ServerConfig>>) -> Hub {
        let (home, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = |listener: &TcpListener| format!("{scheme}://{}", listener.local_addr().unwrap());
        let (asked, elsewhere) = (Arc::new(Mutex::new(Vec::new())), address(&other));
        let hub = Hub { address: address(&home), asked: asked.clone() };
        let answer = move |mut stream: Box<dyn Stream>, is_elsewhere: bool| {
            let Some(mut request) = read(&mut stream, is_elsewhere) else { return };
            let mut all = asked.lock().unwrap();
            request.times = 1 + all.iter().filter(|one: &&Asked| one.path == request.path).count();
            all.push(request.clone());
            drop(all);
            twist(&request, usual(&repositories, &request, &elsewhere)).send(stream);
        };
        let answer = Arc::new(answer);
        for (listener, is_elsewhere) in [(home, false), (other, true)] {
            let (answer, tls) = (answer.clone(), tls.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let (answer, tls) = (answer.clone(), tls.clone());
                    std::thread::spawn(move || {
                        let stream: Box<dyn Stream> = match tls {
                            Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
                            None => Box::new(stream),
                        };
                        answer(stream, is_elsewhere);
                    });
                }
            });
        }
        hub
    }

    /// A hub with the tiny model, as the authors and Qwen's have theirs.
    pub fn with_model(twist: Twist) -> Hub {
        Hub::new(repositories(), twist)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// `pull` with these arguments, with a cache of its own and nothing else of the environment.
    pub fn command(&self, place: &Place, args: &[&str]) -> Command {
        let mut command = place.command(&[&["pull"], args].concat());
        for name in VARIABLES {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.env("HOME", place.path("home")).env("HF_HUB_CACHE", place.path("hub"));
        command.env("MODELSCOPE_CACHE", place.path("scope"));
        command.env("HF_ENDPOINT", &self.address).env("MODELSCOPE_DOMAIN", &self.address);
        command
    }

    pub fn pull(&self, place: &Place, args: &[&str]) -> Answer {
        self.command(place, args).output().unwrap().into()
    }
}

/// Of the machine's own, which a test does without.
const VARIABLES: [&str; 12] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HOME",
    "XDG_CACHE_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DOWNLOAD_TIMEOUT",
];

/// The tiny model in two repositories, among files that are not read.
pub fn repositories() -> Repositories {
    let file = |name: &str| std::fs::read(model().join(name)).unwrap();
    let named = |names: &[(&str, Vec<u8>)]| names.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
    let other = b"not read".to_vec();
    let official = [
        (DIT, file(DIT)),
        ("step1x-edit-i1258.safetensors", other.clone()),
        (VAE, file(VAE)),
        (SETTINGS, file(SETTINGS)),
        ("README.md", other.clone()),
        ("assets/picture.png", other.clone()),
    ];
    let qwen = [
        ("config.json", file(CONFIG)),
        ("tokenizer.json", file(TOKENIZER)),
        ("model.safetensors", file(TEXT)),
        ("vocab.json", other),
    ];
    [(OFFICIAL.to_string(), named(&official)), (QWEN.to_string(), named(&qwen))].into()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn git(bytes: &[u8]) -> String {
    let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    sha1::Sha1::digest(&blob).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(stream: &mut dyn Stream, elsewhere: bool) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_string();
    let headers = lines.take_while(|line| !line.is_empty());
    let pair = |line: String| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string()));
    Some(Asked { path, headers: headers.filter_map(pair).collect(), elsewhere, times: 0 })
}

/// What a hub answers. Weights are kept by LFS, and lie elsewhere.
fn usual(repositories: &Repositories, asked: &Asked, elsewhere: &str) -> Reply {
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let path = path.trim_start_matches('/');
    for (id, files) in repositories {
        let is_lfs = |name: &str| name.ends_with(".safetensors");
        if path.starts_with(&format!("api/models/{id}/revision/")) {
            let file = |(name, bytes): (&String, &Vec<u8>)| match is_lfs(name) {
                true => json!({"rfilename": name, "size": bytes.len(), "blobId": git(b"a pointer"),
                    "lfs": {"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134}}),
                false => json!({"rfilename": name, "size": bytes.len(), "blobId": git(bytes)}),
            };
            let siblings: Vec<Value> = files.iter().map(file).collect();
            return Reply::json(&json!({"sha": COMMIT, "siblings": siblings, "cardData": {"license": "apache-2.0"}, "id": id}));
        }
        if let Some(name) = path.strip_prefix(&format!("{id}/resolve/{COMMIT}/")).filter(|name| files.contains_key(*name)) {
            return match is_lfs(name) {
                true => Reply::status(302).with("Location", format!("{elsewhere}/stored/{id}/{name}")),
                false => ranged(&files[name], asked),
            };
        }
        if let Some(name) = path.strip_prefix(&format!("stored/{id}/")).filter(|_| asked.elsewhere) {
            return ranged(&files[name], asked);
        }
        if path == format!("api/v1/models/{id}/repo/files") {
            let file = |(name, bytes): (&String, &Vec<u8>)| json!({"Path": name, "Name": name, "Size": bytes.len(), "Sha256": sha256(bytes), "Type": "blob"});
            let files = files.iter().map(file).chain([json!({"Path": "assets", "Name": "assets", "Type": "tree"})]);
            return Reply::json(&json!({"Code": 200, "Data": {"Files": files.collect::<Vec<_>>()}}));
        }
        if path == format!("api/v1/models/{id}") {
            return Reply::json(&json!({"Code": 200, "Data": {"Name": id, "License": "Apache License 2.0"}}));
        }
        if path == format!("api/v1/models/{id}/repo") {
            let name = query.split('&').find_map(|part| part.strip_prefix("FilePath=")).unwrap_or_default();
            return ranged(&files[&name.replace("%2F", "/")], asked);
        }
    }
    Reply::status(404)
}

fn ranged(bytes: &[u8], asked: &Asked) -> Reply {
    if let Some((first, last)) = asked.part() {
        let range = format!("bytes {first}-{last}/{}", bytes.len());
        return Reply { status: 206, ..Reply::bytes(&bytes[first..=last]) }.with("Content-Range", range);
    }
    match asked.range() {
        Some(from) if from < bytes.len() => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply { status: 206, ..Reply::bytes(&bytes[from..]) }.with("Content-Range", range)
        }
        Some(_) => Reply::status(416).with("Content-Range", format!("bytes */{}", bytes.len())),
        None => Reply::bytes(bytes),
    }
}
