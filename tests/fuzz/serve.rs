//! Requests to the server: forms and JSON. What is accepted asks for something that can be made; what is not names its fault.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use step1x_edit::EditParameters;
use step1x_edit::pipeline::{SIDES, STEPS};
use step1x_edit::serve::{Ask, Form, Kind, Offer};

use super::mutate::{self, Rng};
use super::run::fuzz;
use super::{read, words};

/// What stands in front of a case: its content type, and an end of line.
fn with(kind: &str, body: &[u8]) -> Vec<u8> {
    [kind.as_bytes(), b"\n", body].concat()
}

fn multipart(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, content) in parts {
        body.extend(format!("--BORDER\r\nContent-Disposition: form-data; {head}\r\n\r\n").bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--BORDER--\r\n");
    with("multipart/form-data; boundary=BORDER", &body)
}

/// Form or JSON, whole, and changed.
#[test]
fn requests() {
    let words = words(
        "--BORDER --BORDER-- boundary= boundary=\"\" Content-Disposition: form-data; name= filename= image image[] prompt seed steps n size \
         1024x1024 auto png stream true mask partial_images output_format response_format b64_json images image_url file_id \
         data:image/png;base64, multipart/form-data; application/json \\r\\n <|image_pad|> cfg_scale nan inf deadline_ms",
    );
    let picture = read("examples/shapes.png");
    let small = &picture[..picture.len().min(200)];
    let url = format!("data:image/png;base64,{}", STANDARD.encode(small));
    let seeds = [
        multipart(&[
            ("name=\"prompt\"", b"make it red"),
            ("name=\"image\"; filename=\"a.png\"\r\nContent-Type: image/png", small),
        ]),
        multipart(&[
            ("name=\"prompt\"", "改成红色".as_bytes()),
            ("name=\"image[]\"; filename=\"upload\"", b"x"),
            ("name=\"seed\"", b"42"),
            ("name=\"n\"", b"2"),
            ("name=\"size\"", b"1024x768"),
            ("name=\"stream\"", b"true"),
            ("name=\"partial_images\"", b"2"),
            ("name=\"output_format\"", b"jpeg"),
            ("name=\"output_compression\"", b"80"),
            ("name=\"guidance_scale\"", b"4.5"),
            ("name=\"deadline_ms\"", b"1000"),
        ]),
        with(
            "application/json",
            format!(r#"{{"prompt":"red","images":[{{"image_url":"{url}"}}],"n":1,"steps":8,"cfg_scale":6.0}}"#).as_bytes(),
        ),
        with("application/json", br#"{"prompt":"a cat","size":"1024x1024","seed":-1,"quality":"high","user":null}"#),
    ];
    let names = vec!["step1x-edit".into()];
    let offer = Offer { names, generates: true, edit: EditParameters::new(""), deadline: Duration::from_secs(300) };
    let make = |rng: &mut Rng| {
        let seed = rng.below(seeds.len());
        if rng.below(2) == 0 { mutate::text(rng, &seeds[seed], &words) } else { mutate::binary(rng, &seeds[seed], &seeds) }
    };
    fuzz("requests", make, |case| {
        let at = case.iter().position(|&byte| byte == b'\n').unwrap_or(case.len());
        let (kind, body) = (String::from_utf8_lossy(&case[..at]), case.get(at + 1..).unwrap_or_default());
        let mut accepted = false;
        for what in [Kind::Edit, Kind::Generation] {
            let asked = Form::read(&kind, body.to_vec().into()).and_then(|form| Ask::new(form, what, &offer));
            match asked {
                Ok(ask) => {
                    assert!(STEPS.contains(&ask.wish.steps) && (1..=10).contains(&ask.wish.count) && ask.wish.partials <= 3);
                    assert!(ask.picture.is_some() == (what == Kind::Edit) && !ask.wish.prompt.trim().is_empty());
                    assert!(what == Kind::Edit || SIDES.contains(&ask.wish.size.0) && ask.wish.size.0.is_multiple_of(16));
                    assert!((1..=100).contains(&ask.quality) && ask.deadline <= Duration::from_secs(86_400));
                    assert!(ask.wish.cfg_scale.is_none_or(|scale| scale.abs() <= 100.0));
                    accepted = true;
                }
                Err(fault) => {
                    assert!(
                        (400..=415).contains(&fault.status) && !fault.code.is_empty() && fault.message.len() > 10,
                        "{fault:?}"
                    );
                    // An answer is a few lines, whatever was sent.
                    assert!(fault.message.len() < 2000 && fault.param.is_none_or(|param| param.len() < 400), "{}", fault.message);
                }
            }
        }
        accepted
    });
}
