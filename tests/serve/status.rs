//! Probes, models, metrics, descriptions, and the log.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::support::*;

#[test]
fn probes_and_models_answer() {
    let server = Server::start(&["--served-name", "edits"]);
    for path in ["/health", "/livez", "/ready", "/readyz", "/v2/health/ready"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let models = server.get("/v1/models").json();
    let names: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(
        (&models["object"], names),
        (&json!("list"), vec![json!("edits"), json!("step1x-edit-demo"), json!("step1x-edit")])
    );
    assert_eq!(server.get("/v1/models/edits").json()["object"], "model");
    assert_eq!(server.edit(&[("model", "edits")]).status, 200);
    let version = server.get("/version").json();
    assert_eq!((&version["version"], &version["devices"]), (&json!(env!("CARGO_PKG_VERSION")), &json!(["cpu"])));
    assert_eq!(server.get("/openapi.json").json()["openapi"], "3.1.0");
    let answer = server.ask("GET", "/health", &[("x-request-id", "mine-1")], b"");
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let server = Server::start(&[]);
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
    let all = ["/", "/page.css", "/page.js"].map(|path| server.get(path).text()).concat();
    // A namespace is a name, not an address that is asked.
    let named = all.replace("http://www.w3.org/2000/svg", "");
    assert!(!named.contains("http://") && !named.contains("https://") && !named.contains("@import"), "the page asks elsewhere");
    assert!(!page.text().contains("style=") && !page.text().contains("onclick"), "what the policy forbids");
}

/// A page of metrics by the rules of the exposition format 0.0.4: each family has its help and type before its samples, which lie
/// together; no sample twice; counters end in `_total`; buckets grow up to `+Inf`, which equals the count.
fn check_exposition(text: &str) {
    assert!(text.ends_with('\n'));
    let (mut types, mut helps, mut seen) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let mut order: Vec<String> = vec![];
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helps.insert(name.to_string()) && help.ends_with('.'), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helps.contains(name) && types.insert(name.to_string(), kind.to_string()).is_none(), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
            order.push(name.into());
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(seen.insert(series.to_string()), "twice: {line}");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'), "{line}");
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .filter(|family| types.contains_key(*family));
        let family = family.unwrap_or(name);
        assert_eq!(order.last().map(String::as_str), Some(family), "samples lie apart: {line}");
        let plain: Vec<&str> =
            labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty() && !label.starts_with("le=")).collect();
        let key = format!("{family}{plain:?}");
        if name.ends_with("_bucket") {
            let bound = labels.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
            buckets.entry(key).or_default().push((bound.replace("+Inf", "inf").parse().unwrap(), value));
        } else if name.ends_with("_count") {
            counts.insert(key, value);
        }
    }
    assert!(!buckets.is_empty());
    for (key, buckets) in buckets {
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{key}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, counts[&key])), "{key}");
    }
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let server = Server::start(&[]);
    assert_eq!(server.edit(&[("n", "2")]).status, 200);
    assert_eq!(server.edit(&[("n", "0")]).status, 400);
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    check_exposition(&text);
    for (name, value) in [
        ("step1x_requests_total{endpoint=\"/v1/images/edits\",status=\"200\"}", 1.0),
        ("step1x_requests_total{endpoint=\"/v1/images/edits\",status=\"400\"}", 1.0),
        ("step1x_steps_total", 4.0),
        ("step1x_images_total", 2.0),
        ("step1x_queue_capacity", 8.0),
        ("step1x_workers", 1.0),
        ("step1x_request_seconds_count", 1.0),
        ("step1x_stage_seconds_count{stage=\"edit\"}", 1.0),
    ] {
        assert_eq!(server.metric(name), value, "{name} in\n{text}");
    }
    let resident = server.metric("process_resident_memory_bytes");
    assert!(resident > 1e6 && resident < 1e10, "{resident}");
    // The tool itself, where it is installed.
    let tool = std::process::Command::new("promtool").args(["check", "metrics"]).stdin(std::process::Stdio::piped()).spawn();
    match tool {
        Ok(mut tool) => {
            std::io::Write::write_all(&mut tool.stdin.take().unwrap(), text.as_bytes()).unwrap();
            assert!(tool.wait().unwrap().success());
        }
        Err(_) => println!("SKIPPED: there is no promtool"),
    }
}

#[test]
fn the_log_has_a_line_for_each_request_and_no_prompt() {
    let server = Server::start(&[]);
    server.ask("POST", "/v1/images/edits", &[("content-type", "text/plain"), ("x-request-id", "bad")], b"");
    server.edit(&[("prompt", "make the secret circle blue")]);
    wait("both lines are there", || server.lines().len() == 2);
    let lines = server.lines();
    assert_eq!(
        (&lines[0]["id"], &lines[0]["status"], &lines[0]["code"]),
        (&json!("bad"), &json!(415), &json!("unsupported_content_type"))
    );
    let edit = &lines[1];
    assert_eq!(
        (&edit["status"], &edit["input"], &edit["output"], &edit["seed"]),
        (&json!(200), &json!("128x128"), &json!("128x128"), &json!(42))
    );
    let second = |name: &str| edit[name].as_f64().unwrap_or_else(|| panic!("no {name} in {edit}"));
    let parts: f64 = ["upload", "decode", "wait", "edit", "encode"].map(second).iter().sum();
    let rest = second("total") - parts;
    assert!((-1e-4..0.05).contains(&rest), "{rest} s are nobody's: {edit}");
    assert!(!server.log().join("\n").contains("secret"));
    let open = Server::start(&["--log-prompts"]);
    open.edit(&[("prompt", "make the circle blue")]);
    wait("the line is there", || open.lines().iter().any(|line| line["prompt"] == "make the circle blue"));
}

/// What a request takes beside reading the picture, the edit, and writing the result. `STEP1X_MODEL` names a model of the released
/// size, on a GPU: `cargo test --release --test serve -- --ignored overhead --nocapture`.
#[test]
#[ignore = "needs a GPU and a model of the released size"]
fn overhead() {
    let model = std::env::var("STEP1X_MODEL").expect("STEP1X_MODEL names a model's folder");
    let server = Server::start(&["-m", &model, "--device", "cuda", "--steps", "28", "--size-level", "1024"]);
    for _ in 0..20 {
        assert_eq!(server.edit(&[("size", "1024x1024")]).status, 200);
    }
    wait("every line is there", || server.lines().len() == 20);
    let beside = |line: &serde_json::Value| {
        let second = |name: &str| line[name].as_f64().unwrap();
        second("total") - second("decode") - second("edit") - second("encode")
    };
    let mut all: Vec<f64> = server.lines().iter().map(beside).collect();
    all.sort_by(f64::total_cmp);
    println!("beside decoding, edit and encoding: p50 {:.1} ms, most {:.1} ms", 1e3 * all[10], 1e3 * all[19]);
    assert!(all[10] <= 0.020, "{all:?}");
}
