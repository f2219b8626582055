//! A profile as a trace that Perfetto and chrome://tracing open: a thread a stage, a slice a node.

use serde_json::{Value, json};

use super::report::Profile;
use super::roofline::Sum;

/// The one process of the trace.
pub(super) const PROCESS: u32 = 1;

/// The trace-event object. Times are microseconds; each stage begins where the one before ends.
pub(super) fn trace(profile: &Profile) -> Value {
    let title = format!("step1x-edit {} on {}", profile.size_text(), profile.device);
    let mut events = vec![name("process_name", 0, &title)];
    let mut now = 0.0;
    for (number, stage) in profile.stages.iter().enumerate() {
        let thread = number as u32 + 1;
        events.extend(self::thread(thread, stage.name));
        for node in &stage.nodes {
            let sum = Sum::of([node], &profile.rates);
            let duration = 1e3 * node.ms;
            events.push(json!({
                "ph": "X", "name": node.name, "cat": node.kind, "pid": PROCESS, "tid": thread, "ts": now, "dur": duration,
                "args": {
                    "kernel": node.kernel, "shapes": node.shapes, "tflops": sum.tflops(), "gb_per_s": sum.gb_per_s(),
                    "roofline": sum.of_roofline(), "bound": sum.bound().name(),
                },
            }));
            now += duration;
        }
    }
    json!({"displayTimeUnit": "ms", "traceEvents": events})
}

/// What names a thread, and keeps threads in the order of their numbers.
pub(super) fn thread(thread: u32, title: &str) -> [Value; 2] {
    let order = json!({"ph": "M", "name": "thread_sort_index", "pid": PROCESS, "tid": thread, "args": {"sort_index": thread}});
    [name("thread_name", thread, title), order]
}

/// What gives a process or a thread its name.
pub(super) fn name(what: &str, thread: u32, text: &str) -> Value {
    json!({"ph": "M", "name": what, "pid": PROCESS, "tid": thread, "args": {"name": text}})
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde::Deserialize;

    use super::super::report::tests::profile;
    use super::*;

    /// What Perfetto's importer reads of a trace file; anything else, or anything missing, is refused here.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Trace {
        #[serde(rename = "displayTimeUnit")]
        unit: String,
        #[serde(rename = "traceEvents")]
        events: Vec<Event>,
    }

    #[derive(Deserialize)]
    #[serde(tag = "ph", deny_unknown_fields)]
    enum Event {
        X { name: String, cat: String, pid: u32, tid: u32, ts: f64, dur: f64, args: Slice },
        M { name: String, pid: u32, tid: u32, args: HashMap<String, Value> },
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Slice {
        kernel: String,
        shapes: String,
        tflops: f64,
        gb_per_s: f64,
        roofline: f64,
        bound: String,
    }

    #[test]
    fn the_trace_is_one_that_perfetto_opens() {
        let profile = profile();
        let text = trace(&profile).to_string();
        assert!(text.contains(r#"odd \"name\"\\\u0001"#), "not escaped: {text}");
        let trace: Trace = serde_json::from_str(&text).unwrap();
        assert!(["ms", "ns"].contains(&trace.unit.as_str()));
        let (mut ends, mut named, mut slices) = (BTreeMap::new(), HashMap::new(), Vec::new());
        for event in trace.events {
            match event {
                Event::M { name, pid, tid, args } => {
                    assert_eq!(pid, PROCESS);
                    assert!(args.contains_key(if name == "thread_sort_index" { "sort_index" } else { "name" }), "{name}");
                    named.insert((name, tid), args);
                }
                Event::X { name, cat, pid, tid, ts, dur, args } => {
                    assert_eq!(pid, PROCESS);
                    assert!(named.contains_key(&("thread_name".into(), tid)), "a slice before its thread's name");
                    let numbers = [ts, dur, args.tflops, args.gb_per_s, args.roofline];
                    assert!(numbers.iter().all(|n| n.is_finite() && *n >= 0.0), "{name}: {numbers:?}");
                    let end = ends.insert(tid, ts + dur).unwrap_or(0.0);
                    assert!(ts >= end - 1e-6, "{name} begins at {ts}, before {end}");
                    assert!(!args.kernel.is_empty() && !args.shapes.is_empty() && !args.bound.is_empty());
                    slices.push((tid, name, cat, dur));
                }
            }
        }
        let nodes = profile.stages.iter().enumerate().flat_map(|(at, stage)| {
            stage.nodes.iter().map(move |node| (at as u32 + 1, node.name.clone(), node.kind.to_string(), 1e3 * node.ms))
        });
        assert_eq!(slices, nodes.collect::<Vec<_>>());
        let process = &named[&("process_name".to_string(), 0)]["name"];
        assert!(process.as_str().unwrap().contains(&profile.device));
    }
}
