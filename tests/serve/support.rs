//! A server of the demo model on the CPU, and a client that can also misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_step1x-edit");

/// The picture that is edited: 128x128 pixels of shapes.
pub const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shapes.png");

/// What each server is started with, unless a test says otherwise. Two steps at the smallest size take a quarter second.
const DEFAULTS: [(&str, &str); 5] =
    [("--listen", "127.0.0.1:0"), ("--steps", "2"), ("--size-level", "64"), ("--drain-delay", "0"), ("--threads", "1")];

/// A running server, which ends with this.
pub struct Server {
    child: Child,
    pub address: String,
    /// What it has written so far.
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// One that is ready, with these flags.
    pub fn start(flags: &[&str]) -> Server {
        let server = Server::start_with(flags, &[]);
        server.until_ready();
        server
    }

    /// One that listens, with these flags and variables.
    pub fn start_with(flags: &[&str], variables: &[(&str, &str)]) -> Server {
        let mut command = Command::new(BINARY);
        command.arg("serve").args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        if !flags.contains(&"--devices") && !flags.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        for (flag, value) in DEFAULTS.iter().filter(|(flag, _)| !flags.contains(flag)) {
            command.args([flag, value]);
        }
        command.env_remove("STEP1X_API_KEY").envs(variables.iter().copied());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, own) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        let (sender, address) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("listening on ") {
                    let _ = sender.send(address.trim_start_matches("http://").to_string());
                }
                own.lock().unwrap().push(line);
            }
        });
        let address = address.recv_timeout(Duration::from_secs(60));
        let address = address.unwrap_or_else(|_| panic!("the server does not listen: {:?}", log.lock().unwrap()));
        Server { child, address, log }
    }

    pub fn until_ready(&self) {
        let begun = Instant::now();
        while self.get("/ready").status != 200 {
            // A model of the released size is 42 GB.
            assert!(begun.elapsed() < Duration::from_secs(600), "the server is not ready");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The lines of the log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The lines of requests, read.
    pub fn lines(&self) -> Vec<Value> {
        self.log().iter().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, form: &Form) -> Answer {
        self.ask("POST", path, &[("content-type", &form.kind())], &form.body())
    }

    /// An edit of the picture.
    pub fn edit(&self, fields: &[(&str, &str)]) -> Answer {
        self.post("/v1/images/edits", &Form::edit(fields))
    }

    /// A request on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_ask(method, path, headers, body).unwrap()
    }

    pub fn try_ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
        let mut stream = self.connect()?;
        stream.write_all(&head(method, path, &self.address, headers, body.len()))?;
        // A server that refuses before it has read everything may have closed its side.
        let sent = stream.write_all(body);
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Err(error) if bytes.is_empty() => Err(error),
            _ if bytes.is_empty() => Err(sent.err().unwrap_or(std::io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(Answer::read(&bytes)),
        }
    }

    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(stream)
    }

    /// A number of `/metrics`; 0 if it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0.0)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit code, soon.
    pub fn code(&mut self) -> Option<i32> {
        let mut code = None;
        wait("the server has ended", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.log().iter().rev().take(20).rev().for_each(|line| eprintln!("server: {line}"));
        }
    }
}

pub fn head(method: &str, path: &str, host: &str, headers: &[(&str, &str)], length: usize) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head += &format!("host: {host}\r\n");
    }
    if method == "POST" {
        head += &format!("content-length: {length}\r\n");
    }
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    (head + "\r\n").into_bytes()
}

/// Waits until something holds; fails after a minute.
pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
        let headers: Vec<(String, String)> =
            lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.into())).collect();
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let rest = &bytes[end + 4..];
        Answer { status, headers, body: if chunked { unchunked(rest) } else { rest.to_vec() } }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The files of the pictures of an answer that must be one.
    pub fn pictures(&self) -> Vec<Vec<u8>> {
        assert_eq!(self.status, 200, "{}", self.text());
        let data = self.json()["data"].as_array().unwrap().clone();
        data.iter().map(|picture| STANDARD.decode(picture["b64_json"].as_str().unwrap()).unwrap()).collect()
    }

    /// Checks an error: its status, code and field, its form, and words of its message.
    pub fn refused(&self, status: u16, code: &str, param: Option<&str>, word: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let json = self.json();
        let error = &json["error"];
        assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some(code), param), "{error}");
        let kind = if status >= 500 { "server_error" } else { "invalid_request_error" };
        assert_eq!(error["type"], kind, "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "no {word:?} in {error}");
        assert_eq!(json.as_object().unwrap().len(), 1);
        assert_eq!(error.as_object().unwrap().len(), 4);
    }

    /// Names and data of events; comments have the name `:`.
    pub fn events(&self) -> Vec<(String, Value)> {
        events(&self.text())
    }
}

pub fn events(text: &str) -> Vec<(String, Value)> {
    let one = |block: &str| match block.strip_prefix(": ") {
        Some(comment) => (":".to_string(), Value::from(comment)),
        None => {
            let (name, data) = block.split_once('\n').unwrap_or_else(|| panic!("no event: {block:?}"));
            let data = data.strip_prefix("data: ").expect("data");
            (name.strip_prefix("event: ").expect("a name").into(), serde_json::from_str(data).unwrap())
        }
    };
    text.split("\n\n").filter(|block| !block.is_empty()).map(one).collect()
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            break;
        }
        body.extend(&rest[end + 2..][..length]);
        rest = &rest[end + 2 + length + 2..];
    }
    body
}

/// A form as `curl -F` sends it.
#[derive(Clone, Default)]
pub struct Form {
    parts: Vec<(String, Option<String>, Vec<u8>)>,
}

impl Form {
    /// An edit of the picture with a seed, and these fields.
    pub fn edit(fields: &[(&str, &str)]) -> Form {
        let mut form = Form::default();
        for (name, text) in [("prompt", "make the circle blue"), ("seed", "42")] {
            if !fields.iter().any(|(own, _)| *own == name) {
                form = form.field(name, text);
            }
        }
        fields.iter().fold(form, |form, (name, text)| form.field(name, text)).file("image", &std::fs::read(PICTURE).unwrap())
    }

    pub fn field(mut self, name: &str, text: &str) -> Form {
        self.parts.push((name.into(), None, text.into()));
        self
    }

    pub fn file(mut self, name: &str, bytes: &[u8]) -> Form {
        self.parts.push((name.into(), Some("upload".into()), bytes.into()));
        self
    }

    pub fn kind(&self) -> String {
        "multipart/form-data; boundary=----border".into()
    }

    pub fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, file, content) in &self.parts {
            let file = file.as_ref().map(|file| format!("; filename=\"{file}\"\r\nContent-Type: application/octet-stream"));
            body.extend(
                format!("------border\r\nContent-Disposition: form-data; name=\"{name}\"{}\r\n\r\n", file.unwrap_or_default())
                    .bytes(),
            );
            body.extend(content);
            body.extend(b"\r\n");
        }
        body.extend(b"------border--\r\n");
        body
    }
}

/// Width, height and 8-bit RGB samples of a picture's file.
pub fn pixels(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
    let picture = image::load_from_memory(bytes).unwrap().to_rgb8();
    (picture.width(), picture.height(), picture.into_raw())
}

/// The file that the command line makes, with the flags that servers have here.
pub fn command_line(flags: &[&str], name: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join(name);
    let mut command = Command::new(BINARY);
    command.args(["edit", "-q", "--device", "cpu", "-p", "make the circle blue", "-i", PICTURE, "-o"]).arg(&output).args(flags);
    for (flag, value) in [("--steps", "2"), ("--size-level", "64"), ("--seed", "42")] {
        if !flags.contains(&flag) {
            command.args([flag, value]);
        }
    }
    let made = command.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(Path::new(&output)).unwrap()
}

/// Bytes of host memory that a process holds.
pub fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
}
