//! What a worker is told, what it tells, and one request's edits on an engine.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::cancel::Cancel;
use super::fault::Fault;
use crate::image::Rgb;
use crate::pipeline::{EditParameters, Encoded, Engine, Material, Place, Progress};

/// What the model is told, but for the picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// What to do.
    pub prompt: String,
    /// What guidance leads away from.
    pub negative_prompt: String,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; none: the model's.
    pub cfg_scale: Option<f32>,
    /// Side of the square whose area the working size has; none: the model's.
    pub size_level: Option<usize>,
    /// Width and height of a picture from the prompt alone.
    pub size: (usize, usize),
    /// Seed of the first picture; each further one has the next.
    pub seed: u64,
    /// How many pictures.
    pub count: usize,
    /// How many partial pictures on the way to the first.
    pub partials: usize,
}

impl Wish {
    /// The seed of a picture.
    pub fn seed_of(&self, index: usize) -> u64 {
        self.seed.wrapping_add(index as u64)
    }

    fn parameters(&self, defaults: &EditParameters) -> EditParameters {
        EditParameters {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            steps: self.steps,
            cfg_scale: self.cfg_scale,
            size_level: self.size_level,
            size: self.size,
            seed: self.seed,
            ..defaults.clone()
        }
    }
}

/// What a worker tells of a request, in this order but for notices.
#[derive(Debug)]
pub enum News {
    /// It begins.
    Begun,
    /// Something the caller should know.
    Notice(String),
    /// So many of all steps are done.
    Step(usize, usize),
    /// What the result would be by now, at the working size.
    Partial(usize, Rgb),
    /// A picture is finished.
    Picture(Made),
    /// It is over.
    Over(Result<(), Fault>),
}

/// A finished picture.
#[derive(Clone, Debug)]
pub struct Made {
    /// Which of the request's.
    pub index: usize,
    /// At the working size.
    pub picture: Rgb,
    /// Tokens of the prompt.
    pub text_tokens: usize,
    /// Tokens of the picture that the encoder saw.
    pub image_tokens: usize,
}

/// Where a worker's news go.
pub type Tell<'t> = dyn FnMut(News) + 't;

/// Makes all pictures of a request, one after another.
///
/// # Errors
/// [`super::cancel::Stopped`] if `cancel` asks, or whatever stops an edit.
pub fn work(
    engine: &mut Engine,
    defaults: &EditParameters,
    wish: &Wish,
    picture: Option<&Rgb>,
    cancel: &Cancel,
    tell: &mut Tell,
) -> Result<()> {
    // Seeds share what the encoders make of picture and prompts.
    let (mut encoded, mut material) = (Encoded::default(), None::<Material>);
    for index in 0..wish.count {
        let mut ears = Ears { cancel, tell, done: index * wish.steps, all: wish.count * wish.steps, quiet: index > 0 };
        let own = match material.take() {
            Some(first) => first.with_seed(wish.seed_of(index)).with_previews(0),
            None => {
                let edit = wish.parameters(defaults).tidied(&mut ears)?;
                Material::new(&edit, &engine.model, picture, &mut ears)?.with_previews(wish.partials)
            }
        };
        let text = &own.spec().text;
        let image_tokens = text.pictures.first().map_or(0, |rows| rows.len());
        let text_tokens = (text.prefix + text.tails.first().unwrap_or(&0)).saturating_sub(image_tokens);
        let edited = match wish.count {
            1 => engine.make(&own, &mut ears)?,
            _ => engine.make_again(&own, &mut encoded, &mut ears)?,
        };
        ears.step(wish.steps);
        (ears.tell)(News::Picture(Made { index, picture: edited.picture, text_tokens, image_tokens }));
        material = Some(own);
    }
    Ok(())
}

/// Hears of one edit's progress.
struct Ears<'a, 't> {
    cancel: &'a Cancel,
    tell: &'a mut Tell<'t>,
    /// Steps of the pictures before this one.
    done: usize,
    /// Steps of all pictures.
    all: usize,
    /// The first picture has said it already.
    quiet: bool,
}

impl Ears<'_, '_> {
    fn step(&mut self, done: usize) {
        (self.tell)(News::Step(self.done + done, self.all));
    }
}

impl Progress for Ears<'_, '_> {
    fn place(&mut self, _: &Place) {}

    fn stage(&mut self, name: &str, run: usize, _: usize) -> Result<()> {
        if name == "step" {
            self.step(run);
        }
        self.node()
    }

    fn node(&mut self) -> Result<()> {
        Ok(self.cancel.check()?)
    }

    fn preview(&mut self, index: usize, picture: Rgb) -> Result<()> {
        (self.tell)(News::Partial(index, picture));
        self.node()
    }

    fn notice(&mut self, text: &str) {
        if !self.quiet {
            (self.tell)(News::Notice(text.into()));
        }
    }
}
