//! Several workers of one server, here on the CPU.

use rustix::process::{Pid, Signal, kill_process};

use super::support::*;

/// The worker processes of a server.
fn workers(server: &Server) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.id())).unwrap().flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default()).collect::<Vec<_>>();
    lists.join(" ").split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn kill(id: u32) {
    kill_process(Pid::from_raw(id as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn workers_share_a_queue_and_make_the_same_pictures() {
    let mut server = Server::start(&["--devices", "cpu,cpu"]);
    wait("both workers are there", || server.metric("step1x_workers") == 2.0);
    std::thread::scope(|scope| {
        let (server, seeds) = (&server, ["0", "1", "2", "3"]);
        let edits = seeds.map(|seed| scope.spawn(move || server.edit(&[("seed", seed)])));
        for (seed, edit) in seeds.iter().zip(edits) {
            assert_eq!(pixels(&edit.join().unwrap().pictures()[0]), pixels(&command_line(&["--seed", seed], "a.png")));
        }
        let long = [0, 1].map(|_| scope.spawn(move || server.edit(&[("steps", "1000"), ("deadline_ms", "4000")])));
        wait("both run", || server.metric("step1x_requests_running") == 2.0);
        long.into_iter().for_each(|long| long.join().unwrap().refused(504, "timeout", None, "deadline"));
    });
    // What was stopped leaves the workers ready.
    wait("nothing runs", || server.metric("step1x_requests_running") == 0.0);
    server.edit(&[("prompt", "<|image_pad|>")]).refused(400, "invalid_value", None, "<|image_pad|>");
    assert_eq!(server.metric("step1x_worker_restarts_total"), 0.0);
    server.signal(Signal::TERM);
    assert_eq!(server.code(), Some(0));
}

#[test]
fn a_lost_worker_takes_only_its_edit_with_it() {
    let server = Server::start(&["--devices", "cpu,cpu"]);
    wait("both workers are there", || server.metric("step1x_workers") == 2.0);
    let before = workers(&server);
    assert_eq!(before.len(), 2);
    std::thread::scope(|scope| {
        let edits = [0, 1].map(|_| scope.spawn(|| server.edit(&[("steps", "120")])));
        wait("both run", || server.metric("step1x_requests_running") == 2.0);
        // What has not begun would go to the other one.
        wait("both have begun", || server.metric("step1x_steps_total") >= 40.0);
        kill(before[0]);
        let mut answers = edits.map(|edit| edit.join().unwrap());
        answers.sort_by_key(|answer| answer.status);
        assert_eq!(pixels(&answers[0].pictures()[0]), pixels(&command_line(&["--steps", "120"], "a.png")));
        answers[1].refused(503, "device_lost", None, "again");
        assert_eq!(answers[1].header("retry-after"), Some("1"));
    });
    wait("another worker has come", || {
        server.metric("step1x_workers") == 2.0 && server.metric("step1x_worker_restarts_total") == 1.0
    });
    assert_eq!(server.get("/health").status, 200);
    // Those that are lost while nothing runs take nothing with them.
    workers(&server).into_iter().for_each(kill);
    for _ in 0..3 {
        assert_eq!(server.edit(&[]).status, 200);
    }
}

#[test]
fn a_server_without_devices_ends() {
    let mut command = std::process::Command::new(BINARY);
    let run = command.args(["serve", "--listen", "127.0.0.1:0", "--devices", "900,901"]).output().unwrap();
    let text = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(4), "{text}");
    assert!(text.contains("given up after 3 starts") && text.contains("900"), "{text}");
}
