//! A graceful story for every bad request: status, code, field and words as clients of OpenAI's interface know them.

use serde_json::json;

use super::support::*;

fn without(name: &str) -> Form {
    let form = Form::default();
    match name {
        "prompt" => form.file("image", &std::fs::read(PICTURE).unwrap()),
        _ => form.field("prompt", "make it red"),
    }
}

#[test]
fn every_field_is_checked_and_named() {
    let server = Server::start(&[]);
    for (fields, status, code, param, word) in [
        (&[("prompt", "")][..], 400, "invalid_value", Some("prompt"), "empty"),
        (&[("prompt", "<|image_pad|>")], 400, "invalid_value", None, "<|image_pad|>"),
        (&[("model", "gpt-image-1")], 404, "model_not_found", Some("model"), "step1x-edit-demo"),
        (&[("n", "11")], 400, "invalid_value", Some("n"), "1 to 10"),
        (&[("size", "1x1")], 400, "invalid_value", Some("size"), "16 to 4096"),
        (&[("response_format", "url")], 400, "unsupported_parameter", Some("response_format"), "b64_json"),
        (&[("output_format", "gif")], 400, "invalid_value", Some("output_format"), "png, jpeg or webp"),
        (&[("background", "transparent")], 400, "unsupported_parameter", Some("background"), "opaque"),
        (&[("num_inference_steps", "0")], 400, "invalid_value", Some("num_inference_steps"), "1 to 1000"),
        (&[("seed", "7"), ("seed", "8")], 400, "invalid_value", Some("seed"), "twice"),
    ] {
        server.edit(fields).refused(status, code, param, word);
    }
    let post = |form: Form| server.post("/v1/images/edits", &form);
    post(without("prompt")).refused(400, "missing_required_parameter", Some("prompt"), "missing");
    post(without("image")).refused(400, "missing_required_parameter", Some("image"), "missing");
    post(Form::edit(&[]).file("image[]", b"x")).refused(400, "invalid_value", Some("image"), "one at a time");
    post(Form::edit(&[]).file("mask", b"x")).refused(400, "unsupported_parameter", Some("mask"), "no mask");
    post(without("image").file("image", b"not a picture")).refused(400, "invalid_image", Some("image"), "picture");
    let cut = &std::fs::read(PICTURE).unwrap()[..200];
    post(without("image").file("image", cut)).refused(400, "invalid_image", Some("image"), "ends early");
    post(without("image").file("image", b"")).refused(400, "invalid_image", Some("image"), "picture");
    let generation = json!({"prompt": "a cat"}).to_string();
    let answer = server.ask("POST", "/v1/images/generations", &[("content-type", "application/json")], generation.as_bytes());
    answer.refused(400, "unsupported_operation", None, "only edits pictures");
    // None of it has harmed the server.
    assert_eq!(server.edit(&[]).status, 200);
}

#[test]
fn bodies_that_are_no_forms_are_refused() {
    let server = Server::start(&[]);
    let post = |kind: &str, body: &[u8]| server.ask("POST", "/v1/images/edits", &[("content-type", kind)], body);
    post("text/plain", b"hello").refused(415, "unsupported_content_type", None, "multipart/form-data");
    post("multipart/form-data", b"hello").refused(400, "invalid_form", None, "boundary");
    post("multipart/form-data; boundary=b", b"hello").refused(400, "invalid_form", None, "form");
    post("application/json", b"[]").refused(400, "invalid_json", None, "object");
    let json = |body: &str| post("application/json", body.as_bytes());
    json(r#"{"prompt": "a", "images": [{"image_url": "http://127.0.0.1/a.png"}]}"#).refused(
        400,
        "unsupported_parameter",
        Some("images"),
        "fetches no addresses",
    );
    json(r#"{"prompt": "a", "images": [{"file_id": "f"}]}"#).refused(400, "unsupported_parameter", Some("images"), "file_id");
    json(r#"{"prompt": "a"}"#).refused(400, "missing_required_parameter", Some("image"), "missing");
    server.get("/v1/images/edits").refused(405, "method_not_allowed", None, "GET");
    server.get("/v1/pictures").refused(404, "not_found", None, "/openapi.json");
    server.get("/v1/jobs/job_0").refused(404, "not_found", None, "no such job");
    server.get("/v1/models/gpt").refused(404, "model_not_found", Some("model"), "step1x-edit");
}

#[test]
fn keys_open_the_server_and_nothing_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "# keys\n0123456789abcdef\n").unwrap();
    let server = Server::start(&["--api-key-file", file.to_str().unwrap()]);
    server.get("/v1/models").refused(401, "invalid_api_key", None, "Bearer");
    server.edit(&[]).refused(401, "invalid_api_key", None, "Bearer");
    let with = |key: &str| server.ask("GET", "/v1/models", &[("authorization", key)], b"").status;
    assert_eq!((with("Bearer 0123456789abcdef"), with("Bearer 0123456789abcdeF"), with("0123456789abcdef")), (200, 401, 401));
    assert_eq!(["/health", "/ready", "/", "/metrics"].map(|path| server.get(path).status), [200, 200, 200, 401]);
    assert_eq!(server.get("/v1/models").header("www-authenticate"), Some("Bearer"));
    assert!(!server.log().join("").contains("0123456789abcdef"));

    let by_variable = Server::start_with(&[], &[("STEP1X_API_KEY", "0123456789abcdef,fedcba9876543210")]);
    let status = |key: &str| by_variable.ask("GET", "/version", &[("authorization", key)], b"").status;
    assert_eq!((status("Bearer fedcba9876543210"), status("Bearer other")), (200, 401));
}

#[test]
fn pages_of_others_are_not_let_in() {
    let server = Server::start(&["--cors-origin", "https://friend.example"]);
    let with = |name: &str, value: &str| server.ask("GET", "/v1/models", &[(name, value)], b"");
    with("host", "rebound.example").refused(403, "invalid_host", None, "localhost");
    with("origin", "https://evil.example").refused(403, "invalid_origin", None, "--cors-origin");
    with("origin", "null").refused(403, "invalid_origin", None, "--cors-origin");
    let own = format!("http://{}", server.address);
    assert_eq!((with("origin", &own).status, with("host", "localhost:1").status), (200, 200));
    let friend = with("origin", "https://friend.example");
    assert_eq!(friend.header("access-control-allow-origin"), Some("https://friend.example"));
    assert_eq!((friend.status, friend.header("access-control-allow-credentials")), (200, None));
    let preflight = server.ask("OPTIONS", "/v1/images/edits", &[("origin", "https://friend.example")], b"");
    assert_eq!((preflight.status, preflight.header("access-control-allow-methods")), (204, Some("GET, POST")));
    // A form that a page sends across without asking.
    let form = Form::edit(&[]);
    let sent = server.ask(
        "POST",
        "/v1/images/edits",
        &[("content-type", &form.kind()), ("origin", "https://evil.example")],
        &form.body(),
    );
    sent.refused(403, "invalid_origin", None, "other origins");
}

#[test]
fn a_server_for_others_needs_a_key() {
    let refused = |flags: &[&str], words: &[&str]| {
        let run = std::process::Command::new(BINARY).arg("serve").args(flags).env_remove("STEP1X_API_KEY").output().unwrap();
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(run.status.code(), Some(2), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "no {word} in {text}"));
    };
    refused(&["--listen", "0.0.0.0:0"], &["0.0.0.0", "--api-key-file", "--no-auth"]);
    refused(&["--listen", "example.org:80"], &["--listen", "127.0.0.1"]);
    refused(&["--listen", "127.0.0.1:0", "--api-key-file", "/nowhere/keys"], &["/nowhere/keys"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "short\n").unwrap();
    refused(&["--api-key-file", file.to_str().unwrap()], &["at least 16"]);
    let taken = Server::start(&[]);
    refused(&["--device", "cpu", "--listen", &taken.address], &["cannot listen", "--listen"]);
    let open = Server::start(&["--listen", "0.0.0.0:0", "--no-auth"]);
    assert!(open.address.starts_with("0.0.0.0:"));
}
