//! The `demo` command: the demo model's gallery, made anew: sources, instructions and what the model makes of them.
//!
//! The template is part of the program (`tools/demo_model/gallery.py` writes it): all but the results.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::json;

use crate::error::usage;
use crate::image::{self, Format, Output, Reading, Rgb};
use crate::pipeline::{EditParameters, Engine, Model, Place, PlaceChoice, Progress};

/// A gallery to make.
#[derive(Clone, Debug)]
pub struct DemoJob {
    /// Picture to write; the extension says the format.
    pub output: PathBuf,
    /// Replace a file that is there.
    pub force: bool,
    /// Denoising steps.
    pub steps: usize,
    /// Where to run.
    pub place: PlaceChoice,
}

/// Where pictures lie in the template: width and height, and x and y of their upper left corners, in pixels.
#[derive(Deserialize)]
struct Cell {
    instruction: String,
    size: (usize, usize),
    source: (usize, usize),
    result: (usize, usize),
}

/// Edits every source of the template and writes it with the results; gives what it did in a line.
///
/// # Errors
/// A [`crate::error::UsageError`] for the output, or whatever stops an edit. Nothing is written then.
pub fn run(job: &DemoJob, progress: &mut dyn Progress, bar: &ProgressBar) -> Result<String> {
    let output = Output::reserve(&job.output, job.force).map_err(usage)?;
    let format = Format::of(&job.output).map_err(usage)?;
    let (cells, mut page) = template().context("the built-in gallery is damaged; build the program again")?;
    let mut engine = Engine::open(Model::demo()?, Place::open(&job.place)?)?;
    progress.place(&engine.place);
    bar.set_length(cells.len() as u64);
    for cell in &cells {
        let source = cut(&page, cell.source, cell.size);
        let edit = EditParameters { steps: job.steps, ..EditParameters::new(&cell.instruction) };
        let edited = engine.edit(&edit, Some(&source), progress);
        let edited = edited.with_context(|| format!("cannot make the edit {:?}", cell.instruction))?;
        paste(&mut page, &edited.at(&source), cell.result);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let precision = engine.place.precision;
    let parameters = json!({"gallery": "demo model", "steps": job.steps, "precision": precision.to_string()});
    output.commit_unless(&image::encode(&page, None, format, &parameters.to_string())?, &mut || progress.last_look())?;
    Ok(format!(
        "wrote {}: {} edits, {} steps, {}, {precision}",
        job.output.display(),
        cells.len(),
        job.steps,
        engine.place.name()
    ))
}

/// The places, all within the page, and the page without results.
fn template() -> Result<(Vec<Cell>, Rgb)> {
    let cells: Vec<Cell> = serde_json::from_slice(include_bytes!("../../assets/gallery/cases.json"))?;
    let page = image::decode_bytes(include_bytes!("../../assets/gallery/template.png"), &Reading::default())?.picture;
    let inside = |(x, y): (usize, usize), (width, height)| x + width <= page.width && y + height <= page.height;
    let whole = |cell: &Cell| inside(cell.source, cell.size) && inside(cell.result, cell.size);
    ensure!(cells.iter().all(whole), "a cell lies outside the page");
    Ok((cells, page))
}

/// The rectangle at `(x, y)`.
fn cut(page: &Rgb, (x, y): (usize, usize), (width, height): (usize, usize)) -> Rgb {
    let row = |line: usize| &page.data[3 * ((y + line) * page.width + x)..][..3 * width];
    Rgb { width, height, data: (0..height).flat_map(row).copied().collect() }
}

/// Puts a picture at `(x, y)`.
fn paste(page: &mut Rgb, picture: &Rgb, (x, y): (usize, usize)) {
    for (line, row) in picture.data.chunks_exact(3 * picture.width).enumerate() {
        page.data[3 * ((y + line) * page.width + x)..][..row.len()].copy_from_slice(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_has_sources_and_room_for_results() {
        let (cells, mut page) = template().unwrap();
        assert!(cells.len() >= 22, "every kind of edit in two languages");
        for cell in &cells {
            let (source, room) = (cut(&page, cell.source, cell.size), cut(&page, cell.result, cell.size));
            assert!(room.data.iter().all(|&value| value == 255), "{}: nothing may be there", cell.instruction);
            assert!(source != room, "{}: no source", cell.instruction);
            paste(&mut page, &source, cell.result);
            assert!(cut(&page, cell.result, cell.size) == source);
        }
    }
}
