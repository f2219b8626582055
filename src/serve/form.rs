//! The body of a request as fields and files, from `multipart/form-data` or JSON. Any bytes give a form or a fault.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use multer::{Field, Multipart};
use serde_json::{Map, Value};
use tokio_stream as stream;

use super::fault::Fault;
use super::limits::{NAME_BYTES_MAX, PARTS_MAX, TEXT_BYTES_MAX};

/// Fields whose values are files, under whatever name of a file they come; `[]` behind a name is left out.
const FILES: [&str; 3] = ["image", "mask", "markup"];

/// What a request brings, in the order in which it came.
#[derive(Debug, Default, PartialEq)]
pub struct Form {
    /// Names and texts.
    pub fields: Vec<(String, String)>,
    /// Names and contents; neither the file's name nor its type is trusted.
    pub files: Vec<(String, Bytes)>,
}

impl Form {
    /// Reads a body of this type.
    ///
    /// # Errors
    /// A [`Fault`] of status 400, 413 or 415.
    pub fn read(content_type: &str, body: Bytes) -> Result<Form, Fault> {
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "multipart/form-data" => Form::of_parts(content_type, body),
            "application/json" => Form::of_json(&body),
            _ => {
                let message = format!("the body is {:?}; send multipart/form-data or application/json", brief(&kind));
                Err(Fault::new(415, "unsupported_content_type", message))
            }
        }
    }

    fn of_parts(content_type: &str, body: Bytes) -> Result<Form, Fault> {
        let malformed = |error: multer::Error| {
            Fault::new(400, "invalid_form", format!("the form cannot be read: {}", brief(&error.to_string())))
        };
        let boundary = multer::parse_boundary(content_type).map_err(malformed)?;
        let mut parts = Multipart::new(stream::once(Ok::<_, Infallible>(body)), boundary);
        let mut form = Form::default();
        for count in 0.. {
            let Some(part) = at_once(parts.next_field()).map_err(malformed)? else { break };
            check_parts(count + 1)?;
            form.take(part)?;
        }
        Ok(form)
    }

    fn take(&mut self, part: Field) -> Result<(), Fault> {
        let Some(name) = part.name().map(plain).transpose()? else {
            return Err(Fault::new(400, "invalid_form", "a part of the form has no name"));
        };
        let is_file = part.file_name().is_some() || FILES.contains(&name.as_str());
        let bytes = at_once(part.bytes()).map_err(|error| {
            Fault::new(400, "invalid_form", format!("the field {name:?} cannot be read: {}", brief(&error.to_string()))).of(&name)
        })?;
        if is_file {
            self.files.push((name, bytes));
            return Ok(());
        }
        check_text(&name, bytes.len())?;
        match String::from_utf8(bytes.into()) {
            Ok(text) => self.fields.push((name, text)),
            Err(_) => return Err(Fault::invalid(&name, format!("{name} is not UTF-8 text"))),
        }
        Ok(())
    }

    fn of_json(body: &[u8]) -> Result<Form, Fault> {
        let json: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|error| Fault::new(400, "invalid_json", format!("the body is no JSON object: {error}")))?;
        check_parts(json.len())?;
        let mut form = Form::default();
        for (name, value) in json {
            match (plain(&name)?.as_str(), value) {
                (_, Value::Null) => {}
                ("image" | "images", value) => {
                    let pictures = if let Value::Array(several) = value { several } else { vec![value] };
                    check_parts(pictures.len())?;
                    for picture in &pictures {
                        form.files.push(("image".into(), picture_of(picture)?));
                    }
                }
                (name @ ("mask" | "markup"), _) => form.files.push((name.into(), Bytes::new())),
                (name, Value::String(text)) => {
                    check_text(name, text.len())?;
                    form.fields.push((name.into(), text));
                }
                (name, value) => form.fields.push((name.into(), value.to_string())),
            }
        }
        Ok(form)
    }
}

/// A picture within JSON: a data URL, alone or as `image_url`.
fn picture_of(value: &Value) -> Result<Bytes, Fault> {
    let refused = |message: &str| Err(Fault::unsupported("images", message));
    if value.get("file_id").is_some_and(|id| !id.is_null()) {
        return refused("this server keeps no files, so it has no file_id; send the picture as a data URL in image_url");
    }
    let url = value.get("image_url").unwrap_or(value);
    let Some(url) = url.get("url").unwrap_or(url).as_str() else {
        return refused("give each picture as {\"image_url\": \"data:image/png;base64,...\"}");
    };
    let Some((kind, data)) = url.strip_prefix("data:").and_then(|rest| rest.split_once(',')) else {
        return refused("this server fetches no addresses; send the picture itself, as a data URL (data:image/png;base64,...)");
    };
    if !kind.ends_with(";base64") {
        return refused("the data URL is not base64; write data:image/png;base64,...");
    }
    let bytes = STANDARD.decode(data.trim());
    bytes.map(Bytes::from).map_err(|error| Fault::invalid("images", format!("the data URL is no base64: {error}")))
}

/// A field's name as lists of values have it, without `[]`.
fn plain(name: &str) -> Result<String, Fault> {
    if name.len() > NAME_BYTES_MAX {
        let message = format!("the field {:?} has a name of more than {NAME_BYTES_MAX} bytes", brief(name));
        return Err(Fault::new(400, "invalid_form", message));
    }
    Ok(name.strip_suffix("[]").unwrap_or(name).to_string())
}

/// The beginning of what others have written.
fn brief(text: &str) -> String {
    text.chars().take(80).collect()
}

fn check_parts(count: usize) -> Result<(), Fault> {
    if count <= PARTS_MAX {
        return Ok(());
    }
    Err(Fault::new(413, "request_too_large", format!("the request has more than {PARTS_MAX} fields")))
}

fn check_text(name: &str, bytes: usize) -> Result<(), Fault> {
    if bytes <= TEXT_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{name} has {bytes} bytes; a field may have {TEXT_BYTES_MAX}");
    Err(Fault::new(413, "request_too_large", message).of(name))
}

/// The output of a future that waits for nothing, since all that it reads is there.
fn at_once<T>(future: impl Future<Output = Result<T, multer::Error>>) -> Result<T, multer::Error> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => Err(multer::Error::IncompleteStream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=B";

    fn parts(parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (head, content) in parts {
            body.extend(format!("--B\r\nContent-Disposition: form-data; {head}\r\n\r\n").bytes());
            body.extend(*content);
            body.extend(b"\r\n");
        }
        body.extend(b"--B--\r\n");
        body
    }

    fn of(kind: &str, body: impl Into<Bytes>) -> Result<Form, Fault> {
        Form::read(kind, body.into())
    }

    #[test]
    fn parts_are_texts_or_files_in_any_order() {
        let body = parts(&[
            ("name=\"image[]\"; filename=\"upload\"", b"\x89PNG"),
            ("name=\"prompt\"", "改成红色".as_bytes()),
            ("name=\"image\"", b"plain"),
        ]);
        let form = of(TYPE, body).unwrap();
        assert_eq!(form.fields, [("prompt".to_string(), "改成红色".to_string())]);
        assert_eq!(
            form.files,
            [
                ("image".into(), Bytes::from("\u{89}PNG".chars().map(|c| c as u8).collect::<Vec<_>>())),
                ("image".into(), "plain".into())
            ]
        );
    }

    #[test]
    fn json_is_a_form_too() {
        let json = r#"{"prompt": "red", "n": 2, "stream": true, "user": null, "images": [{"image_url": "data:image/png;base64,iVBORw=="}]}"#;
        let form = of("application/json; charset=utf-8", json).unwrap();
        let text = |name: &str, value: &str| (name.to_string(), value.to_string());
        assert_eq!(form.fields, [text("n", "2"), text("prompt", "red"), text("stream", "true")]);
        assert_eq!(form.files, [("image".to_string(), Bytes::from_static(b"\x89PNG"))]);
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_field() {
        let fault = |kind: &str, body: Vec<u8>| of(kind, body).unwrap_err();
        assert_eq!(fault("text/plain", vec![]).status, 415);
        assert_eq!(fault("multipart/form-data", vec![]).code, "invalid_form");
        assert_eq!(fault(TYPE, parts(&[])[..3].into()).code, "invalid_form");
        assert_eq!(fault(TYPE, parts(&[("name=\"prompt\"", b"\xff")])).param.as_deref(), Some("prompt"));
        assert_eq!(fault("application/json", b"[1]".into()).code, "invalid_json");
        for (picture, word) in [
            (r#"{"file_id": "file-1"}"#, "file_id"),
            (r#""https://example.org/a.png""#, "fetches no addresses"),
            (r#"{"image_url": "data:image/png,abc"}"#, "not base64"),
            (r#"{"image_url": "data:image/png;base64,!"}"#, "no base64"),
            ("7", "image_url"),
        ] {
            let fault = fault("application/json", format!(r#"{{"images": [{picture}]}}"#).into());
            assert!(fault.param.as_deref() == Some("images") && fault.message.contains(word), "{picture}: {fault:?}");
        }
    }

    #[test]
    fn forms_end_at_their_limits() {
        let many = |count: usize| parts(&vec![("name=\"a\"", &b"1"[..]); count]);
        assert_eq!(of(TYPE, many(64)).unwrap().fields.len(), 64);
        assert_eq!(of(TYPE, many(65)).unwrap_err().status, 413);
        let long = |bytes: usize| parts(&[("name=\"prompt\"", &vec![b'a'; bytes])]);
        assert!(of(TYPE, long(131_072)).is_ok());
        assert_eq!(of(TYPE, long(131_073)).unwrap_err().param.as_deref(), Some("prompt"));
        let named = |bytes: usize| parts(&[(&format!("name=\"{}\"", "a".repeat(bytes)), b"1")]);
        assert!(of(TYPE, named(64)).is_ok());
        assert_eq!(of(TYPE, named(65)).unwrap_err().code, "invalid_form");
        let json = |count: usize| Value::Object((0..count).map(|n| (n.to_string(), Value::from(1))).collect()).to_string();
        assert!(of("application/json", json(64)).is_ok() && of("application/json", json(65)).is_err());
    }
}
