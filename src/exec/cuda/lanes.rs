//! What a run computes, what it waits for and what is copied meanwhile, on one clock: the marks of all streams are held against one.
//!
//! A run is timed as it is: replayed in segments, or node by node, with three marks around each.

use std::ops::Range;

use anyhow::{Context, Result};

use super::Cuda;
use crate::cuda::Event;
use crate::exec::{Executor, unwatched};
use crate::graph::StorageId;
use crate::plan::Itinerary;

/// What a run did, in milliseconds from its beginning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lanes {
    /// What was computed, in order.
    pub spans: Vec<Span>,
    /// What was copied, in the order in which it was asked for.
    pub copies: Vec<Copied>,
}

/// Nodes that ran together.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Which of the graph's nodes.
    pub nodes: Range<usize>,
    /// When they began to wait for their weights.
    pub waits: f64,
    /// When their weights were there.
    pub begins: f64,
    /// When they were done.
    pub ends: f64,
}

/// A copy of a weight, or of a piece of it, to the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Copied {
    /// The weight.
    pub weight: StorageId,
    /// How long it is.
    pub bytes: usize,
    /// When it began.
    pub begins: f64,
    /// When it was done.
    pub ends: f64,
}

impl Lanes {
    /// The spans of each run of a body, which has these nodes.
    pub fn runs_of(&self, body: &Range<usize>) -> Vec<&[Span]> {
        let inside = |span: &Span| body.contains(&span.nodes.start);
        let together = |one: &Span, next: &Span| inside(one) == inside(next) && next.nodes.start != body.start;
        self.spans.chunk_by(together).filter(|run| inside(&run[0])).collect()
    }
}

/// The marks of a run that is timed.
pub(super) struct Notes {
    /// All others are held against it.
    start: Event,
    /// Of some nodes: when they wait, begin and end.
    spans: Vec<(Range<usize>, [Event; 3])>,
}

impl Notes {
    /// None yet; `start` is recorded before anything else of the run.
    pub(super) fn new(start: Event) -> Notes {
        Notes { start, spans: vec![] }
    }
}

impl Cuda {
    /// Announces what will run, as [`Executor::begin`] does, and times it until [`Cuda::lanes`] asks.
    ///
    /// # Errors
    /// As for [`Executor::begin`].
    pub fn begin_timed(&mut self, itinerary: &Itinerary) -> Result<()> {
        self.announce(itinerary, true)
    }

    /// Waits for what ran since [`Cuda::begin_timed`], and gives its times. Ask before anything is written: that ends the copies.
    ///
    /// # Errors
    /// Nothing was timed, or a fault of what ran.
    pub fn lanes(&mut self) -> Result<Lanes> {
        let notes = self.notes.take().context("nothing was timed")?;
        self.finish(&mut unwatched)?;
        let copies = self.gpu.with_feed(self.number, |feed| Ok(feed.timed_copies()))?;
        let at = |mark: &Event| mark.milliseconds_since(&notes.start).map(f64::from);
        let span = |(nodes, [waits, begins, ends]): &(Range<usize>, [Event; 3])| {
            Ok(Span { nodes: nodes.clone(), waits: at(waits)?, begins: at(begins)?, ends: at(ends)? })
        };
        let spans = notes.spans.iter().map(span).collect::<Result<_>>()?;
        let copied = copies.iter().map(|(weight, copy)| {
            copy.ends.synchronize()?;
            Ok(Copied { weight: *weight, bytes: copy.bytes, begins: at(&copy.begins)?, ends: at(&copy.ends)? })
        });
        Ok(Lanes { spans, copies: copied.collect::<Result<_>>()? })
    }

    /// A mark, if the run is timed.
    pub(super) fn note(&self) -> Result<Option<Event>> {
        self.notes.as_ref().map(|_| self.mark()).transpose()
    }

    /// Keeps the marks of nodes that end here, if the run is timed.
    pub(super) fn note_end(&mut self, nodes: Range<usize>, waits: Option<Event>, begins: Option<Event>) -> Result<()> {
        if let (Some(waits), Some(begins), Some(ends)) = (waits, begins, self.note()?)
            && let Some(notes) = &mut self.notes
        {
            notes.spans.push((nodes, [waits, begins, ends]));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_body_are_told_apart() {
        let span = |nodes: Range<usize>| Span { nodes, waits: 0.0, begins: 0.0, ends: 0.0 };
        let spans = [0..2, 2..4, 4..6, 2..4, 4..6, 6..7].map(span).to_vec();
        let lanes = Lanes { spans: spans.clone(), copies: vec![] };
        assert_eq!(lanes.runs_of(&(2..6)), [&spans[1..3], &spans[3..5]]);
        assert_eq!(lanes.runs_of(&(6..7)), [&spans[5..]]);
        assert_eq!(lanes.runs_of(&(0..2)), [&spans[..1]]);
        assert!(lanes.runs_of(&(7..9)).is_empty());
    }
}
