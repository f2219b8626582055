//! Just at a limit and just beyond it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::support::*;

/// A form whose body has so many bytes.
fn of_length(bytes: usize) -> Form {
    let form = |padding: usize| Form::edit(&[]).file("image", &vec![0; padding]);
    let rest = form(0).body().len();
    form(bytes - rest)
}

#[test]
fn bodies_have_at_most_so_many_bytes() {
    let server = Server::start(&[]);
    let most = 64 << 20;
    let before = resident(server.id());
    // It is read whole, and then found to have two pictures.
    server.post("/v1/images/edits", &of_length(most)).refused(400, "invalid_value", Some("image"), "one at a time");
    server.post("/v1/images/edits", &of_length(most + 1)).refused(413, "request_too_large", None, "64 MiB");
    // Without a length the excess shows while it comes.
    let form = of_length(most + 1);
    let mut stream = server.connect().unwrap();
    let head = format!(
        "POST /v1/images/edits HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: {}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        server.address,
        form.kind(),
        form.body().len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let _ = stream.write_all(&form.body());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
    let grown = resident(server.id()).saturating_sub(before);
    assert!(grown < 300 << 20, "{grown} bytes stay");
    assert_eq!(server.edit(&[]).status, 200);
}

/// Sends a head and part of a body, and leaves it at that.
fn stalled(server: &Server) -> TcpStream {
    let form = Form::edit(&[]);
    let mut stream = server.connect().unwrap();
    stream
        .write_all(&head("POST", "/v1/images/edits", &server.address, &[("content-type", &form.kind())], form.body().len()))
        .unwrap();
    stream.write_all(&form.body()[..100]).unwrap();
    stream
}

#[test]
fn uploads_at_once_have_a_limit() {
    let server = Server::start(&[]);
    let mut held: Vec<TcpStream> = (0..16).map(|_| stalled(&server)).collect();
    let refused = || server.edit(&[]);
    wait("all uploads are under way", || refused().status == 503);
    refused().refused(503, "queue_full", None, "uploads");
    assert_eq!(refused().header("retry-after"), Some("1"));
    assert_eq!(server.get("/health").status, 200);
    held.pop();
    wait("there is room again", || server.edit(&[]).status == 200);
}

#[test]
fn connections_at_once_have_a_limit() {
    let server = Server::start(&[]);
    let mut held: Vec<TcpStream> = (0..512).map(|_| server.connect().unwrap()).collect();
    let mut late = server.connect().unwrap();
    late.write_all(&head("GET", "/health", &server.address, &[], 0)).unwrap();
    late.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut first = [0; 12];
    assert!(late.read(&mut first).is_err(), "it has to wait");
    held.pop();
    late.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    late.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
}

#[test]
fn deadlines_hold_in_the_queue_and_on_the_worker() {
    let server = Server::start(&[]);
    let late = server.edit(&[("steps", "1000"), ("deadline_ms", "700")]);
    late.refused(504, "timeout", None, "deadline_ms");
    assert_eq!(late.header("x-should-retry"), Some("false"));
    wait("nothing runs", || server.metric("step1x_requests_running") == 0.0);
    assert_eq!(server.metric("step1x_cancelled_total{reason=\"deadline\"}"), 1.0);
    std::thread::scope(|scope| {
        let long = scope.spawn(|| server.edit(&[("steps", "1000"), ("deadline_ms", "3000")]));
        wait("it runs", || server.metric("step1x_requests_running") == 1.0);
        server.edit(&[("deadline_ms", "300")]).refused(504, "timeout", None, "deadline");
        long.join().unwrap().refused(504, "timeout", None, "deadline");
    });
    assert_eq!(server.edit(&[]).status, 200);
}
