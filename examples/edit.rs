//! Edits a picture with the built-in demo model, as a program of its own:
//!
//! ```sh
//! cargo run --release --example edit -- examples/shapes.png "make the circle blue" out.png
//! ```

use std::path::Path;

use anyhow::{Result, bail};
use step1x_edit::image::{Format, Output, Reading, decode, encode};
use step1x_edit::{EditParameters, Engine, Model, Place, PlaceChoice, Silent};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [picture, prompt, result] = &words[..] else { bail!("usage: edit PICTURE PROMPT RESULT") };
    let (format, output) = (Format::of(Path::new(result))?, Output::reserve(Path::new(result), false)?);
    let picture = decode(Path::new(picture), &Reading::default())?.picture;

    let mut engine = Engine::open(Model::demo()?, Place::open(&PlaceChoice::default())?)?;
    let edited = engine.edit(&EditParameters::new(prompt), Some(&picture), &mut Silent)?;
    output.commit(&encode(&edited.at(&picture), None, format, "{}")?)
}
