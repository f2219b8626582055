//! Pictures are those of the command line, to the bit.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::support::*;

#[test]
fn an_edit_is_that_of_the_command_line() {
    let server = Server::start(&[]);
    let answer = server.edit(&[]);
    let expected = pixels(&command_line(&[], "a.png"));
    assert_eq!(pixels(&answer.pictures()[0]), expected);
    let json = answer.json();
    assert_eq!((&json["seed"], &json["size"], &json["output_format"]), (&json!(42), &json!("128x128"), &json!("png")));
    assert_eq!((&json["ignored"], &json["warnings"], &json["background"]), (&json!([]), &json!([]), &json!("opaque")));
    let usage = &json["usage"];
    assert!(usage["input_tokens"].as_u64().unwrap() > 20 && usage["output_tokens"] == 0, "{usage}");
    assert_eq!(usage["input_tokens"], usage["total_tokens"]);
    // A second time, on a program that is there already.
    assert_eq!(pixels(&server.edit(&[]).pictures()[0]), expected);

    for (fields, flags) in [
        (&[("steps", "3"), ("seed", "7")][..], &["--steps", "3", "--seed", "7"][..]),
        (&[("true_cfg_scale", "3.5"), ("negative_prompt", "red")], &["--cfg-scale", "3.5", "--negative-prompt", "red"]),
        (&[("guidance_scale", "1")], &["--cfg-scale", "1"]),
        (&[("size_level", "96")], &["--size-level", "96"]),
    ] {
        assert_eq!(pixels(&server.edit(fields).pictures()[0]), pixels(&command_line(flags, "a.png")), "{fields:?}");
    }
}

#[test]
fn several_pictures_have_seeds_in_a_row() {
    let server = Server::start(&[]);
    let pictures = server.edit(&[("n", "3"), ("seed", "5")]).pictures();
    assert_eq!(pictures.len(), 3);
    for (seed, picture) in ["5", "6", "7"].iter().zip(&pictures) {
        assert_eq!(pixels(picture), pixels(&command_line(&["--seed", seed], "a.png")), "seed {seed}");
    }
    let random: Vec<_> = (0..2).map(|_| server.edit(&[("seed", "-1")]).json()["seed"].clone()).collect();
    assert_ne!(random[0], random[1]);
}

#[test]
fn formats_are_those_of_the_command_line() {
    let server = Server::start(&[]);
    for (format, name) in [("png", "a.png"), ("jpeg", "a.jpg"), ("webp", "a.webp")] {
        let answer = server.edit(&[("output_format", format)]);
        assert_eq!(answer.json()["output_format"], format);
        assert_eq!(pixels(&answer.pictures()[0]), pixels(&command_line(&[], name)), "{format}");
    }
    let length = |quality: &str| server.edit(&[("output_format", "jpeg"), ("output_compression", quality)]).pictures()[0].len();
    let lengths = ["0", "50", "95", "100"].map(length);
    assert!(lengths.is_sorted() && lengths[0] < lengths[3], "{lengths:?}");
    assert_eq!(lengths[2], command_line(&[], "a.jpg").len());
}

#[test]
fn a_size_is_a_frame_for_the_result() {
    let server = Server::start(&[]);
    let size = |size: &str| {
        let answer = server.edit(&[("size", size)]);
        let (width, height, _) = pixels(&answer.pictures()[0]);
        assert_eq!(answer.json()["size"], format!("{width}x{height}"));
        (width, height)
    };
    assert_eq!((size("auto"), size("256x256"), size("1024x48")), ((128, 128), (256, 256), (48, 48)));
}

#[test]
fn json_gives_the_same_as_a_form() {
    let server = Server::start(&[]);
    let url = format!("data:image/png;base64,{}", STANDARD.encode(std::fs::read(PICTURE).unwrap()));
    let body = json!({"prompt": "make the circle blue", "seed": 42, "images": [{"image_url": url}], "quality": "high"});
    let answer = server.ask("POST", "/v1/images/edits", &[("content-type", "application/json")], body.to_string().as_bytes());
    assert_eq!(pixels(&answer.pictures()[0]), pixels(&command_line(&[], "a.png")));
    assert_eq!(answer.json()["ignored"], json!(["quality"]));
}

#[test]
fn what_a_caller_should_know_is_said() {
    let server = Server::start(&[]);
    let warnings = |fields: &[(&str, &str)]| server.edit(fields).json()["warnings"].to_string();
    assert!(warnings(&[("prompt", "'make the circle blue'")]).contains("quotes"));
    assert!(warnings(&[("prompt", " make the circle blue\r\n")]).contains("white space"));
    assert!(warnings(&[("cfg_scale", "1"), ("negative_prompt", "red")]).contains("no effect"));
    let long = "make it red ".repeat(400);
    assert!(warnings(&[("prompt", &long), ("n", "2")]).matches("too long").count() == 1);
}

#[test]
fn events_end_with_the_picture() {
    let server = Server::start(&[]);
    let answer = server.edit(&[("stream", "true"), ("n", "2"), ("steps", "4")]);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    let events = answer.events();
    let named = |name: &str| events.iter().filter(|(own, _)| own == name).map(|(_, data)| data.clone()).collect::<Vec<_>>();
    let (comments, completed) = (named(":"), named("image_edit.completed"));
    assert!(comments.contains(&json!("step 8/8")), "{comments:?}");
    assert_eq!(completed.len(), 2);
    for (data, seed) in completed.iter().zip([42, 43]) {
        assert_eq!((&data["type"], &data["seed"]), (&json!("image_edit.completed"), &json!(seed)));
        assert!(data["usage"]["total_tokens"].is_u64() && data["created_at"].is_u64());
        let picture = STANDARD.decode(data["b64_json"].as_str().unwrap()).unwrap();
        let expected = command_line(&["--seed", &seed.to_string(), "--steps", "4"], "a.png");
        assert_eq!(pixels(&picture), pixels(&expected));
    }
}

/// Mean difference of two pictures' samples, in levels.
fn distance(a: &[u8], b: &[u8]) -> f64 {
    let (a, b) = (pixels(a).2, pixels(b).2);
    a.iter().zip(&b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn pictures_on_the_way_come_nearer_and_change_nothing() {
    let server = Server::start(&[]);
    let of = |fields: &[(&str, &str)]| {
        let answer = server.edit(&[&[("stream", "true"), ("size_level", "128")], fields].concat());
        let events = answer.events().into_iter().filter(|(name, _)| name != ":");
        let picture = |(name, data): (String, serde_json::Value)| {
            let file = STANDARD.decode(data["b64_json"].as_str().unwrap()).unwrap();
            (name, data["partial_image_index"].clone(), data["size"].clone(), file)
        };
        events.map(picture).collect::<Vec<_>>()
    };
    let expected = command_line(&["--steps", "8", "--size-level", "128"], "a.png");
    for count in [1, 2, 3] {
        let pictures = of(&[("partial_images", &count.to_string()), ("steps", "8")]);
        let (last, partial) = pictures.split_last().unwrap();
        assert_eq!((last.0.as_str(), partial.len()), ("image_edit.completed", count));
        assert_eq!(pixels(&last.3), pixels(&expected), "the result with {count} pictures on the way");
        for (index, (name, own, size, _)) in partial.iter().enumerate() {
            assert_eq!((name.as_str(), own, size), ("image_edit.partial_image", &json!(index), &json!("128x128")));
        }
        let distances: Vec<f64> = pictures.iter().map(|(.., file)| distance(file, &expected)).collect();
        assert!(distances.is_sorted_by(|a, b| a > b), "{distances:?}");
        assert!(distances[0] < 40.0, "{distances:?}");
    }
    // Fewer where there are few steps.
    assert_eq!(of(&[("partial_images", "3"), ("steps", "1")]).len(), 1);
}
