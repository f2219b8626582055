//! A form as an edit that is asked for: OpenAI's fields, our own, and what of them has no effect here.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use hyper::body::Bytes;

use super::fault::Fault;
use super::form::Form;
use super::limits::{COUNT_MAX, DEADLINE_SECONDS_MAX, PARTIALS_MAX, PROMPT_CHARACTERS_MAX, RESULT_SIDE_MAX};
use super::work::Wish;
use crate::image::{Format, JPEG_QUALITY};
use crate::pipeline::{CFG_SCALES, EditParameters, SIDES, SIZE_LEVELS, STEPS, is_blank};
use crate::sampling::random_seed;

/// What is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An edit of a picture.
    Edit,
    /// A picture from a prompt alone.
    Generation,
}

/// What a server says to requests that leave something open.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Names under which the model may be asked for.
    pub names: Vec<String>,
    /// The model can make a picture from a prompt alone.
    pub generates: bool,
    /// Every edit, but for what its request says.
    pub edit: EditParameters,
    /// From a request's arrival to its answer.
    pub deadline: Duration,
}

/// An edit that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What the model is told.
    pub wish: Wish,
    /// The picture's file; none: a picture from the prompt alone.
    pub picture: Option<Bytes>,
    /// Width and height into which the result must fit; none: the input's own.
    pub size: Option<(usize, usize)>,
    /// Format of the results.
    pub format: Format,
    /// Quality of a JPEG, 1 to 100.
    pub quality: u8,
    /// The answer comes in events.
    pub stream: bool,
    /// Time for it all.
    pub deadline: Duration,
    /// Fields that have no effect.
    pub ignored: Vec<String>,
    /// What the caller should know.
    pub warnings: Vec<String>,
}

/// Names of one field, the first ours.
type Names = &'static [&'static str];

const STEPS_NAMES: Names = &["num_inference_steps", "steps"];
const SCALE_NAMES: Names = &["true_cfg_scale", "guidance_scale", "cfg_scale", "cfg_guidance"];

/// Fields of OpenAI's interface that choose nothing here. Those in the second list are about the caller, not the picture.
const WITHOUT_EFFECT: [&str; 9] =
    ["quality", "input_fidelity", "moderation", "style", "background", "complexity", "frame_count", "frame_duration_ms", "svg"];
const ABOUT_THE_CALLER: [&str; 2] = ["user", "safety_identifier"];

impl Ask {
    /// What a form asks for.
    ///
    /// # Errors
    /// A [`Fault`] that names the field.
    pub fn new(form: Form, kind: Kind, offer: &Offer) -> Result<Ask, Fault> {
        let mut fields = Fields::new(form.fields)?;
        check_model(fields.take(&["model"])?, offer)?;
        let picture = picture_of(form.files, kind, offer)?;
        refuse_what_is_missing_here(&mut fields)?;
        let mut warnings = Vec::new();
        let prompt = prompt_of(&mut fields, kind, &mut warnings)?;
        let size = size_of(&mut fields, kind)?;
        let seed = seed_of(&mut fields)?;
        let defaults = &offer.edit;
        let wish = Wish {
            prompt,
            negative_prompt: short(fields.take(&["negative_prompt"])?.unwrap_or_default(), "negative_prompt")?,
            steps: fields.number(STEPS_NAMES, *STEPS.start(), *STEPS.end())?.unwrap_or(defaults.steps),
            cfg_scale: fields.number(SCALE_NAMES, *CFG_SCALES.start(), *CFG_SCALES.end())?.or(defaults.cfg_scale),
            size_level: fields.number(&["size_level"], *SIZE_LEVELS.start(), *SIZE_LEVELS.end())?.or(defaults.size_level),
            size: size.unwrap_or(defaults.size),
            seed,
            count: fields.number(&["n"], 1, COUNT_MAX)?.unwrap_or(1),
            partials: fields.number(&["partial_images"], 0, PARTIALS_MAX)?.unwrap_or(0),
        };
        let format = format_of(&mut fields)?;
        let stream = fields.flag("stream")?;
        let quality = fields.number(&["output_compression"], 0, 100)?.map_or(JPEG_QUALITY, |quality: u8| quality.max(1));
        let most = 1000 * DEADLINE_SECONDS_MAX;
        let deadline = fields.number(&["deadline_ms"], 1, most)?.map_or(offer.deadline, Duration::from_millis);
        let ignored = fields.rest();
        Ok(Ask { wish, picture, size, format, quality, stream, deadline, ignored, warnings })
    }
}

/// The fields of a form by name, each once.
struct Fields(BTreeMap<String, String>);

impl Fields {
    fn new(fields: Vec<(String, String)>) -> Result<Fields, Fault> {
        let mut by_name = BTreeMap::new();
        for (name, text) in fields {
            if by_name.contains_key(&name) {
                return Err(Fault::invalid(&name, format!("{name} is given twice; give it once")));
            }
            by_name.insert(name, text);
        }
        Ok(Fields(by_name))
    }

    /// A field under any of its names.
    fn take(&mut self, names: &[&str]) -> Result<Option<String>, Fault> {
        let mut found = None;
        for name in names {
            let Some(text) = self.0.remove(*name) else { continue };
            if found.replace(text).is_some() {
                return Err(Fault::invalid(name, format!("{} are names of one field; give one of them", names.join(", "))));
            }
        }
        Ok(found)
    }

    /// A number of a range.
    fn number<T: FromStr + PartialOrd + Display>(&mut self, names: &[&str], least: T, most: T) -> Result<Option<T>, Fault> {
        let name = names.iter().find(|name| self.0.contains_key(**name)).unwrap_or(&names[0]).to_string();
        let Some(text) = self.take(names)? else { return Ok(None) };
        match text.trim().parse() {
            Ok(number) if number >= least && number <= most => Ok(Some(number)),
            _ => Err(Fault::invalid(&name, format!("{name} is {}; give a number from {least} to {most}", shown(&text)))),
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool, Fault> {
        match self.take(&[name])?.map(|text| text.trim().to_ascii_lowercase()).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(Fault::invalid(name, format!("{name} is {}; give true or false", shown(other)))),
        }
    }

    /// Names of what is left and has no effect, though who sent it may think so.
    fn rest(self) -> Vec<String> {
        let silent = |name: &str, text: &str| {
            ABOUT_THE_CALLER.contains(&name) || WITHOUT_EFFECT.contains(&name) && matches!(text, "auto" | "opaque" | "standard")
        };
        self.0.into_iter().filter(|(name, text)| !silent(name, text)).map(|(name, _)| cut(&name, 64)).collect()
    }
}

/// A value as a message shows it: quoted, and not longer than a line.
fn shown(text: &str) -> String {
    format!("{:?}", cut(text, 80))
}

fn cut(text: &str, most: usize) -> String {
    let mut cut: String = text.chars().take(most).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

fn check_model(asked: Option<String>, offer: &Offer) -> Result<(), Fault> {
    let Some(model) = asked.filter(|model| !model.is_empty() && !offer.names.contains(model)) else { return Ok(()) };
    let message = format!("there is no model {}; this server has {}", shown(&model), offer.names.join(", "));
    Err(Fault::new(404, "model_not_found", message).of("model"))
}

fn picture_of(files: Vec<(String, Bytes)>, kind: Kind, offer: &Offer) -> Result<Option<Bytes>, Fault> {
    if let Some((name, _)) = files.iter().find(|(name, _)| name != "image") {
        let message = match name.as_str() {
            "mask" => "this model takes no mask: say in the prompt what to change, and leave the mask out".to_string(),
            _ => format!("the file {} is not known; send one picture as image", shown(name)),
        };
        return Err(Fault::unsupported(&cut(name, 64), message));
    }
    let mut pictures = files.into_iter().map(|(_, bytes)| bytes);
    match (kind, pictures.next(), pictures.next()) {
        (Kind::Generation, None, _) if offer.generates => Ok(None),
        (Kind::Generation, None, _) => {
            let message = "this model only edits pictures; send one to /v1/images/edits";
            Err(Fault::new(400, "unsupported_operation", message))
        }
        (Kind::Generation, ..) => Err(Fault::unsupported("image", "generations take no picture; send it to /v1/images/edits")),
        (Kind::Edit, Some(picture), None) => Ok(Some(picture)),
        (Kind::Edit, None, _) => {
            Err(Fault::new(400, "missing_required_parameter", "the picture is missing; send it as the file image").of("image"))
        }
        (Kind::Edit, _, Some(_)) => Err(Fault::invalid("image", "several pictures were sent; this model edits one at a time")),
    }
}

/// Refuses what would change the result if it could be done.
fn refuse_what_is_missing_here(fields: &mut Fields) -> Result<(), Fault> {
    if let Some(form) = fields.take(&["response_format"])?.filter(|form| form != "b64_json") {
        let message = format!("response_format is {}; this server answers with b64_json alone", shown(&form));
        return Err(Fault::unsupported("response_format", message));
    }
    if fields.0.get("background").is_some_and(|background| background == "transparent") {
        return Err(Fault::unsupported("background", "results are opaque; leave background out"));
    }
    for name in ["mask", "markup", "mask_image", "reference_image", "url"] {
        if fields.0.contains_key(name) {
            return Err(Fault::unsupported(name, format!("{name} cannot be used with this model; send one picture as image")));
        }
    }
    Ok(())
}

fn short(text: String, name: &str) -> Result<String, Fault> {
    let characters = text.chars().count();
    if characters <= PROMPT_CHARACTERS_MAX {
        return Ok(text);
    }
    Err(Fault::invalid(name, format!("{name} has {characters} characters; it may have {PROMPT_CHARACTERS_MAX}")))
}

fn prompt_of(fields: &mut Fields, kind: Kind, warnings: &mut Vec<String>) -> Result<String, Fault> {
    let what = if kind == Kind::Edit { "what to change" } else { "what to show" };
    let missing = |message: String| Fault::new(400, "missing_required_parameter", message).of("prompt");
    let prompt = fields.take(&["prompt"])?.ok_or_else(|| missing(format!("the prompt is missing; say {what}")))?;
    if is_blank(&prompt) {
        return Err(Fault::invalid("prompt", format!("the prompt is empty; say {what}")));
    }
    let inner =
        ['"', '\''].iter().find_map(|&quote| prompt.trim().strip_prefix(quote)?.strip_suffix(quote).map(|inner| (quote, inner)));
    if inner.is_some_and(|(quote, inner)| !inner.is_empty() && !inner.contains(quote)) {
        let text = "the whole prompt stands in quotes, which this model reads as text to write into the picture; leave them out \
                    unless you mean that";
        warnings.push(text.into());
    }
    short(prompt, "prompt")
}

fn size_of(fields: &mut Fields, kind: Kind) -> Result<Option<(usize, usize)>, Fault> {
    let Some(text) = fields.take(&["size"])?.filter(|text| !text.is_empty() && text != "auto") else { return Ok(None) };
    let sides = text.split_once('x').and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    let fits = |side: usize| match kind {
        Kind::Edit => (*SIDES.start()..=RESULT_SIDE_MAX).contains(&side),
        Kind::Generation => SIDES.contains(&side) && side.is_multiple_of(16),
    };
    if let Some((width, height)) = sides.filter(|&(width, height)| fits(width) && fits(height)) {
        return Ok(Some((width, height)));
    }
    let multiples = if kind == Kind::Generation { ", in multiples of 16" } else { "" };
    let message = format!(
        "size is {}; give auto or WIDTHxHEIGHT with sides from {} to {RESULT_SIDE_MAX} pixels{multiples}",
        shown(&text),
        SIDES.start()
    );
    Err(Fault::invalid("size", message))
}

/// A seed that is left open or negative is random.
fn seed_of(fields: &mut Fields) -> Result<u64, Fault> {
    let Some(text) = fields.take(&["seed"])? else { return Ok(random_seed()) };
    match text.trim().parse::<i128>() {
        Ok(seed) if seed < 0 => Ok(random_seed()),
        Ok(seed) if seed <= u64::MAX.into() => Ok(seed as u64),
        _ => Err(Fault::invalid(
            "seed",
            format!("seed is {}; give a whole number from 0 to {}, or -1 for a random one", shown(&text), u64::MAX),
        )),
    }
}

fn format_of(fields: &mut Fields) -> Result<Format, Fault> {
    match fields.take(&["output_format"])?.as_deref() {
        None | Some("png") => Ok(Format::Png),
        Some("jpeg" | "jpg") => Ok(Format::Jpeg),
        Some("webp") => Ok(Format::WebP),
        Some(other) => Err(Fault::invalid("output_format", format!("output_format is {}; give png, jpeg or webp", shown(other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        let names = vec!["step1x-edit".into()];
        Offer { names, generates: true, edit: EditParameters::new(""), deadline: Duration::from_secs(300) }
    }

    fn edit(fields: &[(&str, &str)]) -> Result<Ask, Fault> {
        ask(Kind::Edit, &[&[("prompt", "make it red")], fields].concat(), &["image"])
    }

    fn ask(kind: Kind, fields: &[(&str, &str)], files: &[&str]) -> Result<Ask, Fault> {
        let fields = fields.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        let files = files.iter().map(|name| (name.to_string(), Bytes::from_static(b"picture"))).collect();
        Ask::new(Form { fields, files }, kind, &offer())
    }

    #[test]
    fn what_is_left_open_is_as_the_command_line_has_it() {
        let ask = edit(&[("seed", "42")]).unwrap();
        let EditParameters { steps, cfg_scale, size_level, size, .. } = EditParameters::new("");
        assert_eq!(
            (ask.wish.steps, ask.wish.cfg_scale, ask.wish.size_level, ask.wish.size),
            (steps, cfg_scale, size_level, size)
        );
        assert_eq!((ask.wish.seed, ask.wish.count, ask.wish.partials, ask.size), (42, 1, 0, None));
        assert_eq!((ask.format, ask.quality, ask.stream), (Format::Png, 95, false));
        assert_ne!(edit(&[]).unwrap().wish.seed, edit(&[]).unwrap().wish.seed);
        assert_ne!(edit(&[("seed", "-1")]).unwrap().wish.seed, edit(&[("seed", "-1")]).unwrap().wish.seed);
    }

    #[test]
    fn other_programs_names_are_understood_once() {
        for name in ["num_inference_steps", "steps"] {
            assert_eq!(edit(&[(name, "8")]).unwrap().wish.steps, 8);
        }
        for name in ["true_cfg_scale", "guidance_scale", "cfg_scale", "cfg_guidance"] {
            assert_eq!(edit(&[(name, "4.5")]).unwrap().wish.cfg_scale, Some(4.5));
        }
        assert_eq!(edit(&[("steps", "8"), ("num_inference_steps", "8")]).unwrap_err().code, "invalid_value");
        assert_eq!(edit(&[("seed", "1"), ("seed", "2")]).unwrap_err().param.as_deref(), Some("seed"));
    }

    #[test]
    fn what_has_no_effect_is_named() {
        let ask =
            edit(&[("quality", "high"), ("user", "me"), ("input_fidelity", "high"), ("steeps", "8"), ("moderation", "auto")]);
        assert_eq!(ask.unwrap().ignored, ["input_fidelity", "quality", "steeps"]);
        assert_eq!(edit(&[("quality", "auto"), ("background", "opaque")]).unwrap().ignored, [""; 0]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_field() {
        for (fields, param, code, word) in [
            (&[("model", "other")][..], "model", "model_not_found", "step1x-edit"),
            (&[("n", "0")], "n", "invalid_value", "1 to 10"),
            (&[("n", "11")], "n", "invalid_value", "1 to 10"),
            (&[("partial_images", "4")], "partial_images", "invalid_value", "0 to 3"),
            (&[("size", "big")], "size", "invalid_value", "WIDTHxHEIGHT"),
            (&[("size", "15x99")], "size", "invalid_value", "16 to 4096"),
            (&[("size", "4097x16")], "size", "invalid_value", "16 to 4096"),
            (&[("steps", "1001")], "steps", "invalid_value", "1 to 1000"),
            (&[("cfg_scale", "nan")], "cfg_scale", "invalid_value", "-100 to 100"),
            (&[("size_level", "63")], "size_level", "invalid_value", "64 to 4096"),
            (&[("seed", "18446744073709551616")], "seed", "invalid_value", "18446744073709551615"),
            (&[("stream", "perhaps")], "stream", "invalid_value", "true or false"),
            (&[("output_format", "gif")], "output_format", "invalid_value", "png, jpeg or webp"),
            (&[("output_compression", "101")], "output_compression", "invalid_value", "0 to 100"),
            (&[("response_format", "url")], "response_format", "unsupported_parameter", "b64_json"),
            (&[("background", "transparent")], "background", "unsupported_parameter", "opaque"),
            (&[("mask_image", "x")], "mask_image", "unsupported_parameter", "cannot be used"),
            (&[("deadline_ms", "86400001")], "deadline_ms", "invalid_value", "86400000"),
        ] {
            let fault = edit(fields).unwrap_err();
            assert_eq!((fault.param.as_deref(), fault.code.as_str()), (Some(param), code), "{fields:?}");
            assert!(fault.message.contains(word), "{fields:?}: {}", fault.message);
        }
        assert!(edit(&[("deadline_ms", "86400000"), ("size", "4096x16"), ("n", "10"), ("partial_images", "3")]).is_ok());
    }

    #[test]
    fn an_edit_takes_one_picture_and_a_generation_none() {
        let of = |kind, files: &[&str]| ask(kind, &[("prompt", "a cat")], files).map_err(|fault| (fault.param, fault.code));
        let some = |text: &str| Some(text.to_string());
        assert!(of(Kind::Edit, &["image"]).is_ok() && of(Kind::Generation, &[]).is_ok());
        assert_eq!(of(Kind::Edit, &[]).unwrap_err(), (some("image"), "missing_required_parameter".into()));
        assert_eq!(of(Kind::Edit, &["image", "image"]).unwrap_err(), (some("image"), "invalid_value".into()));
        assert_eq!(of(Kind::Edit, &["image", "mask"]).unwrap_err(), (some("mask"), "unsupported_parameter".into()));
        assert_eq!(of(Kind::Generation, &["image"]).unwrap_err(), (some("image"), "unsupported_parameter".into()));
        let blind = Offer { generates: false, ..offer() };
        let form = Form { fields: vec![("prompt".into(), "a cat".into())], files: vec![] };
        assert_eq!(Ask::new(form, Kind::Generation, &blind).unwrap_err().code, "unsupported_operation");
        assert!(ask(Kind::Generation, &[("prompt", "a"), ("size", "1024x1000")], &[]).is_err());
    }

    #[test]
    fn prompts_are_there_short_and_not_in_quotes_unless_meant() {
        let of = |prompt: &str| ask(Kind::Edit, &[("prompt", prompt)], &["image"]);
        assert_eq!(ask(Kind::Edit, &[], &["image"]).unwrap_err().code, "missing_required_parameter");
        assert_eq!(of(" \n").unwrap_err().code, "invalid_value");
        assert!(of(&"红".repeat(32_000)).is_ok() && of(&"红".repeat(32_001)).is_err());
        for (prompt, warned) in [("'make it red'", true), ("\"STOP\"", true), ("write \"STOP\"", false), ("'a' and 'b'", false)] {
            assert_eq!(!of(prompt).unwrap().warnings.is_empty(), warned, "{prompt}");
        }
    }
}
