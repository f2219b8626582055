//! The op laboratory: cases of one op, each held against the reference on a GPU, then timed with a warm and with a cold L2
//! cache, beside what the device could do.

mod bench;
mod choice;
mod table;

use anyhow::{Result, bail};

use super::measure;
use crate::pipeline::PlaceChoice;
use crate::tensor::Shape;

/// What to do in the laboratory.
#[derive(Clone, Debug)]
pub struct OpJob {
    /// The op, by the name that printed graphs show; `list` needs none.
    pub name: Option<String>,
    /// A case's number, or a part of its text; none: all cases.
    pub case: Option<String>,
    /// Extents of the operands instead of the case's; empty: the case's own.
    pub shapes: Vec<Shape>,
    /// List ops and cases instead of running them.
    pub list: bool,
    /// The GPU.
    pub place: PlaceChoice,
    /// Print one JSON object.
    pub json: bool,
}

/// Runs the cases, or lists them, and prints what came of it.
///
/// # Errors
/// A usage error: an op or case that there is not, or shapes that do not fit; a [`crate::error::ResourceError`]: no GPU, or too
/// little memory; cases that are farther from the reference than they may be, after the table.
pub fn run(job: &OpJob, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let chosen = choice::choose(job)?;
    if job.list {
        return print(&if job.json { format!("{}\n", choice::list_json(&chosen)) } else { choice::list(&chosen) });
    }
    let (place, device) = measure::gpu("op", &job.place)?;
    let measured = bench::run(&chosen, &device, &job.place.setup)?;
    let table = table::Table { device: place.name(), measured };
    print(&if job.json { format!("{}\n", table.json()) } else { table.text() })?;
    match table.measured.far() {
        0 => Ok(()),
        far => bail!("{far} of {} cases are farther from the reference than their bound", chosen.len()),
    }
}
