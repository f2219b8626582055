//! Edits without waiting.

use serde_json::{Value, json};

use super::support::*;

fn ask(server: &Server, fields: &[(&str, &str)]) -> String {
    let answer = server.post("/v1/jobs/edits", &Form::edit(fields));
    assert_eq!(answer.status, 202, "{}", answer.text());
    let job = answer.json();
    assert_eq!(job["poll_url"], format!("/v1/jobs/{}", job["id"].as_str().unwrap()));
    job["id"].as_str().unwrap().into()
}

fn show(server: &Server, id: &str) -> Value {
    server.get(&format!("/v1/jobs/{id}")).json()
}

#[test]
fn a_job_is_queued_made_and_kept() {
    let server = Server::start(&[]);
    let id = ask(&server, &[]);
    wait("the job is done", || show(&server, &id)["status"] == "completed");
    let job = show(&server, &id);
    assert_eq!((&job["kind"], &job["step"], &job["steps"], &job["error"]), (&json!("edit"), &json!(2), &json!(2), &json!(null)));
    assert!(job["created"].as_u64() <= job["started"].as_u64() && job["started"].as_u64() <= job["completed"].as_u64());
    let answer = Answer { status: 200, headers: vec![], body: job["result"].to_string().into_bytes() };
    assert_eq!(pixels(&answer.pictures()[0]), pixels(&command_line(&[], "a.png")));
    server.ask("POST", &format!("/v1/jobs/{id}/cancel"), &[], b"").refused(409, "already_finished", None, "completed");
    // Its line in the log has the id of the request that asked for it.
    let lines = server.lines();
    let own = lines.iter().find(|line| line["path"] == id.as_str()).unwrap();
    assert!(lines.iter().any(|line| line["id"] == own["id"] && line["status"] == 202) && own["edit"].as_f64() > Some(0.0));
}

#[test]
fn events_tell_a_job_from_its_beginning() {
    let server = Server::start(&[]);
    let id = ask(&server, &[("steps", "3")]);
    for _ in 0..2 {
        let events = server.get(&format!("/v1/jobs/{id}/events")).events();
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["step", "step", "step", "step", "picture", "completed"]);
        assert_eq!((&events[3].1["step"], &events[5].1["status"]), (&json!(3), &json!("completed")));
        assert_eq!(events[5].1["result"], json!(null), "the result is fetched");
    }
}

#[test]
fn jobs_are_cancelled_while_they_wait_and_while_they_run() {
    let server = Server::start(&[]);
    let running = ask(&server, &[("steps", "1000")]);
    wait("the job runs", || show(&server, &running)["status"] == "generating");
    let waiting = ask(&server, &[]);
    assert_eq!(show(&server, &waiting)["queue_position"], 0);
    for id in [&waiting, &running] {
        let answer = server.ask("POST", &format!("/v1/jobs/{id}/cancel"), &[], b"");
        assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("cancelled")), "{}", answer.text());
        let job = show(&server, id);
        assert_eq!((&job["error"]["code"], &job["result"]), (&json!("cancelled"), &json!(null)));
    }
    wait("nothing runs", || server.metric("step1x_requests_running") == 0.0);
    assert_eq!(server.metric("step1x_requests_waiting"), 0.0);
    assert_eq!(server.metric("step1x_cancelled_total{reason=\"cancel\"}"), 1.0);
    assert_eq!(server.edit(&[]).status, 200);
}
