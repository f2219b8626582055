//! The server goes down in order.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;

use super::support::*;

#[test]
fn what_runs_is_finished_and_what_waits_is_refused() {
    let mut server = Server::start(&[]);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.edit(&[("steps", "40")]));
        wait("it runs", || server.metric("step1x_requests_running") == 1.0);
        let waiting = scope.spawn(|| server.edit(&[]));
        wait("another waits", || server.metric("step1x_requests_waiting") == 1.0);
        server.signal(Signal::TERM);
        waiting.join().unwrap().refused(503, "shutting_down", None, "shutting down");
        assert!(server.try_ask("GET", "/health", &[], b"").is_err(), "nothing new is taken");
        assert_eq!(pixels(&running.join().unwrap().pictures()[0]), pixels(&command_line(&["--steps", "40"], "a.png")));
    });
    assert_eq!(server.code(), Some(0));
}

#[test]
fn balancers_have_time_to_move_on() {
    let mut server = Server::start(&["--drain-delay", "2"]);
    server.signal(Signal::TERM);
    wait("it is not ready", || server.get("/ready").status == 503);
    server.get("/ready").refused(503, "shutting_down", None, "shutting down");
    assert_eq!((server.get("/health").status, server.edit(&[]).status), (200, 200));
    assert_eq!(server.code(), Some(0));
}

#[test]
fn what_takes_too_long_is_stopped() {
    let mut server = Server::start(&["--drain-timeout", "0"]);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.edit(&[("steps", "1000")]));
        wait("it runs", || server.metric("step1x_requests_running") == 1.0);
        server.signal(Signal::TERM);
        running.join().unwrap().refused(503, "shutting_down", None, "shutting down");
    });
    assert_eq!(server.code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut server = Server::start(&["--drain-delay", "60"]);
        server.signal(signal);
        wait("it goes down", || server.log().iter().any(|line| line.starts_with("going down")));
        server.signal(signal);
        assert_eq!(server.code(), Some(code));
    }
}

#[test]
fn a_socket_in_the_file_system_serves_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edits.sock");
    let listen = format!("unix:{}", path.display());
    let ask = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(&head("GET", "/health", "anything", &[], 0)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let mut server = Server::start_with(&["--listen", &listen], &[]);
    assert!(ask().starts_with("HTTP/1.1 200"));
    let second = std::process::Command::new(BINARY).args(["serve", "--device", "cpu", "--listen", &listen]).output().unwrap();
    assert!(second.status.code() == Some(2) && String::from_utf8_lossy(&second.stderr).contains("another program listens"));
    server.signal(Signal::TERM);
    assert_eq!(server.code(), Some(0));
    assert!(!path.exists());
    // What a killed one leaves is taken over; what is no socket stays.
    drop(Server::start_with(&["--listen", &listen], &[]));
    assert!(path.exists());
    drop(Server::start_with(&["--listen", &listen], &[]));
    let file = folder.path().join("mine");
    std::fs::write(&file, "mine").unwrap();
    let refused = std::process::Command::new(BINARY)
        .args(["serve", "--device", "cpu", "--listen"])
        .arg(format!("unix:{}", file.display()))
        .output();
    assert_eq!(refused.unwrap().status.code(), Some(2));
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}
