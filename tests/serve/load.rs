//! More clients than the server takes, and clients that go: each accepted request has exactly one answer, the right one.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::support::*;

fn heavy() -> bool {
    std::env::var_os("STEP1X_SERVE_LOAD").is_some()
}

#[test]
fn a_full_queue_refuses_and_serves_the_rest_rightly() {
    let queue = if heavy() { 8 } else { 2 };
    let server = Server::start(&["--queue", &queue.to_string()]);
    let expected: Vec<_> = (0..4).map(|seed| pixels(&command_line(&["--seed", &seed.to_string()], "a.png"))).collect();
    let clients = 10 * (queue + 1);
    let (made, refused, answers) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let before = resident(server.id());
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (server, expected, made, refused, answers) = (&server, &expected, &made, &refused, &answers);
            scope.spawn(move || {
                // One that is refused comes again, as clients do.
                for _ in 0..200 {
                    let answer = server.edit(&[("seed", &(client % 4).to_string())]);
                    answers.fetch_add(1, SeqCst);
                    if answer.status == 200 {
                        assert_eq!(pixels(&answer.pictures()[0]), expected[client % 4], "client {client}");
                        made.fetch_add(1, SeqCst);
                        return;
                    }
                    answer.refused(503, "queue_full", None, "try again");
                    let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                    assert!((1..=120).contains(&after));
                    refused.fetch_add(1, SeqCst);
                    std::thread::sleep(Duration::from_millis(200));
                }
                panic!("client {client} was never served");
            });
        }
    });
    let [made, refused, answers] = [made, refused, answers].map(AtomicUsize::into_inner);
    assert_eq!((made, answers), (clients, made + refused));
    assert!(refused > 0, "the queue was never full");
    assert_eq!(server.metric("step1x_images_total"), made as f64, "no request was made twice");
    let status =
        |status: u16| server.metric(&format!("step1x_requests_total{{endpoint=\"/v1/images/edits\",status=\"{status}\"}}"));
    assert_eq!((status(200), status(503)), (made as f64, refused as f64));
    let grown = resident(server.id()).saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes stay");
    println!("{clients} clients at a queue of {queue}: {made} served, {refused} times refused, {} MB more memory", grown >> 20);
}

#[test]
fn clients_that_go_leave_nothing_behind() {
    let server = Server::start(&["--queue", "4"]);
    let expected = pixels(&command_line(&[], "a.png"));
    let count = if heavy() { 500 } else { 60 };
    let form = Form::edit(&[("steps", "30")]);
    let request =
        [head("POST", "/v1/images/edits", &server.address, &[("content-type", &form.kind())], form.body().len()), form.body()]
            .concat();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |most: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % most
    };
    for _ in 0..count {
        let mut stream = server.connect().unwrap();
        // Some go while they send, some while they wait.
        let sent = if next(3) == 0 { next(request.len() as u64) as usize } else { request.len() };
        stream.write_all(&request[..sent]).unwrap();
        std::thread::sleep(Duration::from_millis(next(120)));
        if next(2) == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    }
    let gone = Instant::now();
    wait("nothing waits or runs", || server.metric("step1x_requests_running") + server.metric("step1x_requests_waiting") == 0.0);
    let took = gone.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?} until the last edit stopped");
    assert!(server.metric("step1x_cancelled_total{reason=\"disconnect\"}") > 0.0);
    assert_eq!(pixels(&server.edit(&[]).pictures()[0]), expected);
    println!("{count} clients went; the server was idle {took:?} after the last");
}

/// A step of this size takes some 50 ms; an edit that ran on would take a minute.
#[test]
fn an_edit_ends_within_a_step_of_its_client() {
    let server = Server::start(&[]);
    let form = Form::edit(&[("steps", "1000"), ("stream", "true")]);
    let mut stream = server.connect().unwrap();
    stream
        .write_all(&head("POST", "/v1/images/edits", &server.address, &[("content-type", &form.kind())], form.body().len()))
        .unwrap();
    stream.write_all(&form.body()).unwrap();
    let mut heard = String::new();
    let mut some = [0; 4096];
    while heard.matches(": step ").count() < 3 {
        let read = stream.read(&mut some).unwrap();
        assert!(read > 0, "{heard}");
        heard += &String::from_utf8_lossy(&some[..read]);
        assert!(heard.len() < 100_000, "{heard}");
    }
    drop(stream);
    let gone = Instant::now();
    wait("nothing runs", || server.metric("step1x_requests_running") == 0.0);
    assert!(gone.elapsed() < Duration::from_secs(2), "{:?}", gone.elapsed());
    wait("its line is written", || server.lines().iter().any(|line| line["status"] == 499));
}
