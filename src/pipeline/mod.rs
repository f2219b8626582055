//! One edit, from files to file: open, edit, commit. [`Engine`] is what many edits share.

mod checkpoint;
mod encoded;
mod engine;
mod job;
mod material;
mod memory;
mod place;
mod preview;
mod program;
mod report;
mod rules;
mod run;
mod wording;

use anyhow::Result;

pub use self::checkpoint::{CFG_SCALES, LORA_SCALES, Model, SIZE_LEVELS, Settings, open_loras, parse_settings};
pub use self::encoded::Encoded;
pub use self::engine::{Edited, Engine, Loaded, Made, PROGRAM_BYTES, Purpose, Seconds};
pub use self::job::{Chosen, EditJob, EditParameters, Rng, SIDES, STEPS};
pub use self::material::Material;
pub use self::memory::{anonymous_bytes, check_host_memory, peak_resident_bytes};
pub use self::place::{DeviceChoice, LEAST_CAPABILITY, Place, PlaceChoice};
pub use self::program::{EditInputs, HostInputs, Program, Request};
pub use self::report::{Parameters, Report};
pub use self::rules::Rules;
pub use self::run::{Ended, Ran, run_program};
pub use self::wording::{is_blank, tidy};
use crate::error::{no_thread, usage};
use crate::image::{self, Filter, Output, Rgb, Stream};
pub use crate::weights::{Caches, LoraChoice, ModelPath};

/// What the caller hears while an edit runs; an error stops it.
pub trait Progress {
    /// Where edits run.
    fn place(&mut self, place: &Place);
    /// A stage begins (again): its name and which of how many runs.
    fn stage(&mut self, name: &str, run: usize, runs: usize) -> Result<()>;
    /// A node is done, or something is waited for: then it is called every few milliseconds or more often.
    fn node(&mut self) -> Result<()>;
    /// What the result would be by now, at the working size: as many as [`Material::with_previews`] asks for.
    fn preview(&mut self, _: usize, _: Rgb) -> Result<()> {
        Ok(())
    }
    /// The result is ready and about to get its name: an error stops it, later ones do not.
    fn last_look(&mut self) -> Result<()> {
        self.node()
    }
    /// The result is ready and about to go where it cannot be taken back, and where it may wait for ever: an error stops it.
    fn stream(&mut self) -> Result<()> {
        self.node()
    }
    /// Something worth knowing that is no error.
    fn notice(&mut self, text: &str);
}

/// A [`Progress`] that hears nothing and stops nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn place(&mut self, _: &Place) {}

    fn stage(&mut self, _: &str, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn node(&mut self) -> Result<()> {
        Ok(())
    }

    fn notice(&mut self, _: &str) {}
}

/// Runs one edit from files to file.
///
/// # Errors
/// One of [`crate::error`], a [`crate::weights::ModelError`], or a fault of picture, arithmetic or disk. Nothing is written
/// then.
pub fn run_edit(job: &EditJob, progress: &mut dyn Progress) -> Result<Report> {
    let job = &EditJob { edit: job.edit.tidied(progress)?, ..job.clone() };
    let output = match &job.output {
        Stream::File(path) => Output::reserve(path, job.force),
        Stream::Standard => Output::standard(),
    };
    let output = output.map_err(usage)?;
    let format = job.output_format().map_err(usage)?;
    format.check_alpha(job.reading.alpha).map_err(usage)?;

    // A device takes as long to wake as the files to be read.
    let (place, files) = std::thread::scope(|scope| {
        let place = std::thread::Builder::new().spawn_scoped(scope, || Place::open(&job.place)).map_err(no_thread)?;
        let files = open(job, progress);
        anyhow::Ok((place.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), files))
    })?;
    let (place, (original, model, material)) = (place?, files?);
    let original_size = original.as_ref().map(|original| original.size);
    let last = original_size.filter(|_| !job.keep_working_size).unwrap_or(material.size);
    format.check_size(last.0, last.1).map_err(usage)?;
    progress.place(&place);

    let mut engine = Engine::open(model, place)?;
    let begun = job.started.elapsed().as_secs_f64();
    let edited = engine.make(&material, progress)?;
    let (model, place) = engine.close(); // the device is free before the picture is encoded

    let picture = image::resize(&edited.picture, last.0, last.1, Filter::Bicubic);
    let parameters = Parameters::new(&job.edit, job.image.is_some(), &model, &edited, last)?;
    let alpha = original.and_then(|Original { size, alpha }| Some(image::resize_alpha(alpha?, size, last)));
    let bytes = image::encode(&picture, alpha.as_deref(), format, &parameters.to_string())?;
    output.commit_unless(&bytes, &mut || match &job.output {
        Stream::File(_) => progress.last_look(),
        Stream::Standard => progress.stream(),
    })?;
    Ok(Report::new(job, parameters, &edited, &place, begun, original_size))
}

/// What an edit needs of the picture once the model has taken it in.
struct Original {
    /// Width and height.
    size: (usize, usize),
    /// Opacity of each pixel, if it is kept.
    alpha: Option<Vec<u8>>,
}

/// What is left of the picture, if there is one, the model, and what the model takes of picture and prompts.
fn open(job: &EditJob, progress: &mut dyn Progress) -> Result<(Option<Original>, Model, Material)> {
    let decoded = job.image.as_ref().map(|stream| image::decode_from(stream, &job.reading)).transpose()?;
    for note in decoded.iter().flat_map(|decoded| &decoded.notes) {
        progress.notice(note);
    }
    let model = Model::open_or_demo(job.model.as_ref(), progress)?;
    model.adapt(&job.loras, progress)?;
    let material = Material::new(&job.edit, &model, decoded.as_ref().map(|decoded| &decoded.picture), progress)?;
    let original =
        decoded.map(|decoded| Original { size: (decoded.picture.width, decoded.picture.height), alpha: decoded.alpha });
    Ok((original, model, material))
}
