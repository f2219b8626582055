//! What is computed and what is copied, on one clock. The stand-in's copies take time, 10 GB/s, and its kernels none.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use step1x_edit::error::ResourceError;
use step1x_edit::exec::{Cuda, Executor, unwatched};
use step1x_edit::graph::{BodyId, StorageId};

use crate::support::{Program, plans, stand_in};

/// Bytes of a copy that the stand-in makes in a millisecond.
const BYTES_PER_MS: f64 = 1e7;
/// What the times lose as 32-bit floats, and what a mark takes.
const NEAR: f64 = 0.01;

#[test]
fn every_copy_and_every_wait_of_a_run_is_timed() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    for plan in plans(&edit) {
        let gpu = stand_in.open(Arc::new(edit.weights()));
        let mut exec = Cuda::load(&gpu, plan.clone()).unwrap();
        edit.run(&mut exec).unwrap();
        edit.run(&mut exec).unwrap();
        let before = gpu.made().uploaded_bytes;
        edit.write_inputs(&mut exec).unwrap();
        exec.begin_timed(&plan.itinerary).unwrap();
        plan.itinerary.visits().into_iter().try_for_each(|body| exec.run(body, &mut unwatched)).unwrap();
        let lanes = exec.lanes().unwrap();
        let policy = plan.weights.policy;

        // Every run of every body, whole and in order.
        assert!(lanes.spans.is_sorted_by(|one, next| one.ends <= next.waits), "{policy:?}");
        for (number, body) in plan.graph.bodies.iter().enumerate() {
            let runs = lanes.runs_of(&body.nodes);
            assert_eq!(runs.len(), plan.itinerary.runs_of(BodyId(number)), "{}", body.name);
            for run in runs {
                let nodes: Vec<usize> = run.iter().flat_map(|span| span.nodes.clone()).collect();
                assert_eq!(nodes, body.nodes.clone().collect::<Vec<_>>(), "{} {policy:?}", body.name);
                assert!(run.iter().all(|span| span.waits < span.begins && span.begins < span.ends), "{}", body.name);
            }
        }

        // Every copy, as long as it takes, and never while its weight is read.
        let mut copied: BTreeMap<StorageId, usize> = BTreeMap::new();
        for copy in &lanes.copies {
            *copied.entry(copy.weight).or_default() += copy.bytes;
            let took = copy.ends - copy.begins;
            assert!((took - copy.bytes as f64 / BYTES_PER_MS).abs() < NEAR, "{took} ms for {} bytes", copy.bytes);
            for span in lanes.spans.iter().filter(|span| copy.begins < span.ends && span.begins < copy.ends) {
                let mut read = plan.graph.nodes[span.nodes.clone()].iter().flat_map(|node| &node.inputs);
                assert!(read.all(|&id| plan.graph.tensor(id).storage != copy.weight), "{policy:?} {copy:?} during {span:?}");
            }
        }
        let bytes: usize = copied.values().sum();
        assert_eq!(bytes as u64, gpu.made().uploaded_bytes - before, "{policy:?}");
        assert_eq!(bytes == 0, plan.weights.keeps_all());

        // The stand-in copies when somebody waits: all waits together are as long as all copies, but for what others asked for.
        let waits: f64 = lanes.spans.iter().map(|span| span.begins - span.waits).sum();
        let copies = bytes as f64 / BYTES_PER_MS;
        assert!(waits <= 2.0 * copies + NEAR * lanes.spans.len() as f64, "{waits} ms, copies take {copies} ms");
        assert!(plan.weights.keeps_all() || waits > 0.1 * copies, "{waits} ms, copies take {copies} ms");

        // It is told once, and not of a run that is not timed.
        assert!(exec.lanes().unwrap_err().to_string().contains("nothing was timed"));
        edit.run(&mut exec).unwrap();
        assert!(exec.lanes().is_err());
    }
    assert_eq!(stand_in.mistakes(), 0);
}

#[test]
fn stages_whose_weights_stream_are_not_timed_again_and_again() {
    let Some(stand_in) = stand_in() else { return };
    let edit = stand_in.tiny();
    let (step, plans) = (edit.program.tensors.bodies.step, plans(&edit));
    for plan in &plans[1..] {
        let mut exec = stand_in.executor(plan, Arc::new(edit.weights()));
        edit.write_inputs(&mut exec).unwrap();
        exec.begin(&plan.itinerary).unwrap();
        let refused = [
            exec.time_runs(step, 2).map(drop).unwrap_err(),
            exec.time_nodes(step).map(drop).unwrap_err(),
            exec.time_uncaptured(step).map(drop).unwrap_err(),
        ];
        for error in refused {
            assert!(error.is::<ResourceError>() && error.to_string().contains("all weights must be on the GPU"), "{error:#}");
        }
    }
}

/// A number of the program's JSON.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn profile_with_a_budget_shows_copies_as_a_track_of_their_own() {
    let Some(program) = Program::new() else { return };
    let run = |args: &[&str]| {
        let output = program.command(args, &[]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, _, stderr) = run(&["synth", "--preset", "tiny", "-o", "model", "-q"]);
    assert_eq!(code, Some(0), "{stderr}");
    let profile = |budget: &str, more: &[&str]| {
        run(&[&["profile", "-m", "model", "--size", "64x64", "--steps", "5", "--max-vram", budget][..], more].concat())
    };
    let (code, stdout, stderr) = profile("1MB", &[]);
    assert!(code == Some(4) && stdout.is_empty(), "{stderr}");
    let least = stderr.split("at least ").nth(1).and_then(|text| text.split(' ').next()).expect("the least is said");
    let budget = format!("{:.1}MB", least.parse::<f64>().unwrap() + 0.2);

    let more = ["--stage", "text,step", "--json", "--trace", "trace.json"];
    let (code, stdout, stderr) = profile(&budget, &more);
    assert_eq!(code, Some(0), "{budget}: {stderr}");
    let object: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    assert_eq!(object["stages"].as_object().unwrap().len(), 2);
    let trace = std::fs::read_to_string(program.dir.path().join("trace.json")).unwrap();
    let trace: Value = serde_json::from_str(&trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let tracks: Vec<&Value> = events.iter().filter(|e| e["name"] == "thread_name").map(|e| &e["args"]["name"]).collect();
    assert_eq!(tracks, ["compute", "copies"], "one stream copies from the host's store");
    for name in ["text", "step"] {
        let stage = &object["stages"][name];
        let [turn, marked, nodes, stalls] = ["turn_ms", "marked_ms", "nodes_ms", "stalls_ms"].map(|key| number(&stage[key]));
        assert!(turn > 0.0 && nodes > 0.0 && stalls > nodes, "copies alone take time here: {stage}");
        assert!((nodes + stalls) <= marked + 0.01, "{name}: {nodes} ms and {stalls} ms are more than {marked} ms");
        // A turn after others copies what the plan says, at the stand-in's 10 GB/s.
        let (bytes, planned) = (number(&stage["bytes"]), number(&stage["planned"]["bytes"]));
        assert!((bytes / planned - 1.0).abs() < 0.2, "{name}: {bytes} bytes, {planned} planned");
        assert!((number(&stage["gb_per_s_copying"]) / 10.0 - 1.0).abs() < 0.5, "{stage}");
        let of_stage = |track: u64| events.iter().filter(|e| e["cat"] == name && e["tid"] == track).count();
        assert_eq!(of_stage(2), stage["copies"].as_array().unwrap().len());
        assert!(of_stage(1) > stage["segments"].as_array().unwrap().len(), "waits are seen");
    }
    let (code, stdout, stderr) = profile(&budget, &[]);
    assert!(code == Some(0) && stdout.contains("a turn of step") && stdout.contains("weights stream: "), "{stdout}{stderr}");

    // What a budget has room for is timed as without it.
    let (code, stdout, stderr) = profile("2GB", &[]);
    assert!(code == Some(0) && stdout.contains("step, node by node"), "{stdout}{stderr}");
}
