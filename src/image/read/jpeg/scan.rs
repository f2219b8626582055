//! Whether the pixel data of a JPEG is all there and can be what its writer wrote.
//!
//! Decoders make up what they lack without a word. So all coded data is walked here first, without making pixels of it:
//! every code must exist, every block must end where blocks end, every restart marker must stand in its place, and nothing
//! may be left over. There is no checksum, so a small change can go unseen; a hole goes so only by a rare chance.

use anyhow::{Result, anyhow, bail, ensure};

use super::block::{Band, Component, Fault};
use super::huffman::{Bits, End, Padding, Table};
use super::segments::{self, DHT, DNL, DQT, DRI, EOI, Frame, SOS, Segment};
use crate::image::read::ends_early;

/// Most scans of a file; the usual ten of a progressive one are far from it.
const SCANS_MAX: usize = 100;

/// What the walk found, where the picture can be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Findings {
    /// The end-of-image marker is there.
    pub(super) ended: bool,
    /// Something is left over, or is what no picture has.
    pub(super) doubtful: bool,
}

/// Walks the coded data of all scans.
///
/// # Errors
///
/// If pixels are missing, or data cannot be right.
pub(super) fn check(bytes: &[u8], frame: &Frame) -> Result<Findings> {
    let mut walk = Walk::new(frame);
    let (mut at, mut ended) = (0, false);
    while let Some(segment) = segments::next(bytes, at).filter(|segment| !segment.cut && !ended) {
        at = segment.end;
        match segment.marker {
            EOI => ended = true,
            SOS => at = walk.scan(bytes, &segment)?,
            DHT => walk.tables(segment.payload)?,
            DQT => walk.quantisation(segment.payload)?,
            DRI => walk.interval = segment.payload.get(..2).map_or(0, |n| usize::from(u16::from_be_bytes([n[0], n[1]]))),
            DNL => bail!("the JPEG is damaged: its height is stated twice; copy or download it again"),
            _ => {}
        }
    }
    let complete = walk.components.iter().all(|component| component.complete(frame.progressive, ended));
    ensure!(complete || ended, ends_early("JPEG"));
    ensure!(complete, "the JPEG is damaged: one of its colours is missing; copy or download it again");
    // A writer may leave out the finest bits, but hardly does.
    walk.doubtful |= !walk.components.iter().all(|component| component.complete(frame.progressive, false));
    Ok(Findings { ended, doubtful: walk.doubtful || walk.components.iter().any(|component| component.doubtful) })
}

/// A component in a scan, and its tables.
#[derive(Clone, Copy)]
struct Part {
    component: usize,
    dc: usize,
    ac: usize,
}

struct Walk<'a> {
    frame: &'a Frame,
    components: Vec<Component>,
    dc_tables: [Option<Table>; 4],
    ac_tables: [Option<Table>; 4],
    /// Steps of each quantisation table, in coded order.
    steps: [[i64; 64]; 4],
    /// Units between restart markers; 0: none.
    interval: usize,
    scans: usize,
    /// How earlier data was filled up.
    padding: Padding,
    doubtful: bool,
}

impl<'a> Walk<'a> {
    fn new(frame: &'a Frame) -> Walk<'a> {
        let (h_max, v_max) = frame.sampling_max();
        let units = (frame.width.div_ceil(8 * h_max), frame.height.div_ceil(8 * v_max));
        let components = frame.components.iter().map(|component| {
            let (h, v) = component.sampling;
            let padded = (units.0 * h, units.1 * v);
            Component {
                sampling: (h, v),
                own: ((frame.width * h).div_ceil(8 * h_max), (frame.height * v).div_ceil(8 * v_max)),
                padded,
                missing_bits: [None; 64],
                nonzero: if frame.progressive { vec![0; padded.0 * padded.1] } else { vec![] },
                steps: [1; 64],
                rounding: 0.0,
                dc: 0,
                ending: 0,
                doubtful: false,
            }
        });
        Walk {
            frame,
            components: components.collect(),
            dc_tables: [const { None }; 4],
            ac_tables: [const { None }; 4],
            steps: [[1; 64]; 4],
            interval: 0,
            scans: 0,
            padding: Padding::None,
            doubtful: false,
        }
    }

    fn tables(&mut self, mut payload: &[u8]) -> Result<()> {
        while let Some((&class, rest)) = payload.split_first() {
            let Some((table, rest)) = Table::read(rest).filter(|_| class & 0xec == 0) else {
                bail!("the JPEG is damaged: one of its code tables is impossible; copy or download it again");
            };
            let tables = if class >> 4 == 0 { &mut self.dc_tables } else { &mut self.ac_tables };
            tables[usize::from(class & 3)] = Some(table);
            payload = rest;
        }
        Ok(())
    }

    fn quantisation(&mut self, mut payload: &[u8]) -> Result<()> {
        while let Some((&class, rest)) = payload.split_first() {
            let size = if class >> 4 == 0 { 1 } else { 2 };
            ensure!(
                rest.len() >= 64 * size,
                "the JPEG is damaged: one of its quantisation tables is cut; copy or download it again"
            );
            let step = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | i64::from(*byte)).max(1);
            for (to, from) in self.steps[usize::from(class & 3)].iter_mut().zip(rest.chunks_exact(size)) {
                *to = step(from);
            }
            payload = &rest[64 * size..];
        }
        Ok(())
    }

    /// Walks a scan whose data begins behind its header; gives where the bytes go on.
    fn scan(&mut self, bytes: &[u8], header: &Segment) -> Result<usize> {
        self.scans += 1;
        ensure!(self.scans <= SCANS_MAX, "the JPEG has more than {SCANS_MAX} scans, which no program writes; it is damaged");
        let Some((parts, band)) = self.parts(header.payload) else {
            bail!("the JPEG is damaged: the header of scan {} is impossible; copy or download it again", self.scans);
        };
        for part in &parts {
            let table = usize::from(self.frame.components[part.component].table);
            self.components[part.component].quantise(self.steps[table]);
        }
        let units = self.units(&parts);
        let count = units.0 * units.1;
        let interval = if self.interval == 0 { count } else { self.interval };
        let (mut done, mut at, mut restarts) = (0, header.end, 0u8);
        while done < count {
            let mut bits = Bits::new(bytes, at);
            self.components.iter_mut().for_each(Component::restart);
            for unit in done..count.min(done + interval) {
                let place = (unit % units.0, unit / units.0);
                self.unit(&mut bits, &parts, band, place).map_err(|fault| self.error(bytes, &bits, &fault, unit, count))?;
            }
            done = count.min(done + interval);
            at = self.close(bits);
            if done < count {
                let expected = [0xff, 0xd0 + restarts % 8];
                ensure!(bytes.len() >= at + 2, self.ends_early(done, count));
                ensure!(bytes[at..].starts_with(&expected), self.impossible(done, count));
                (at, restarts) = (at + 2, restarts.wrapping_add(1));
            }
        }
        // Data behind a restart marker too many.
        while let Some([0xff, 0xd0..=0xd7]) = bytes.get(at..at + 2) {
            at = self.close(Bits::new(bytes, at + 2));
        }
        for part in &parts {
            self.components[part.component].missing_bits[band.first..=band.last].fill(Some(band.after));
        }
        Ok(at)
    }

    /// Ends a stretch of data, with a doubt if it is not all used up; gives where the next marker is.
    fn close(&mut self, bits: Bits) -> usize {
        let End { left_over, padding, at } = bits.close();
        self.doubtful |=
            left_over > 0 || padding == Padding::Mixed || self.components.iter().any(|component| component.ending > 0);
        if padding != Padding::None {
            // A writer has one habit.
            self.doubtful |= self.padding != Padding::None && self.padding != padding;
            self.padding = padding;
        }
        at
    }

    /// Units of a scan, across and down: blocks, if it has one component.
    fn units(&self, parts: &[Part]) -> (usize, usize) {
        let component = &self.components[parts[0].component];
        match parts.len() {
            1 => component.own,
            _ => (component.padded.0 / component.sampling.0, component.padded.1 / component.sampling.1),
        }
    }

    /// What a scan header says, if it can be true.
    fn parts(&self, payload: &[u8]) -> Option<(Vec<Part>, Band)> {
        let count = usize::from(*payload.first()?);
        let listed = payload.get(1..1 + 2 * count)?.as_chunks::<2>().0;
        let &[first, last, bits] = payload.get(1 + 2 * count..4 + 2 * count)?.first_chunk()?;
        let mut parts: Vec<Part> = Vec::new();
        for [id, tables] in listed {
            let component = self.frame.components.iter().position(|component| component.id == *id)?;
            if parts.iter().any(|other| other.component == component) {
                return None;
            }
            parts.push(Part { component, dc: usize::from(tables >> 4 & 3), ac: usize::from(tables & 3) });
        }
        let progressive = self.frame.progressive;
        let band = match progressive {
            true => Band { first: first.into(), last: last.into(), before: bits >> 4, after: bits & 15 },
            false => Band { first: 0, last: 63, before: 0, after: 0 },
        };
        // A progressive scan brings DC values or a band of one component.
        let pure = !progressive || (band.first == 0) == (band.last == 0) && (band.first == 0 || parts.len() == 1);
        let fits = band.first <= band.last && band.last < 64 && band.after < 14;
        let has_tables = parts.iter().all(|part| self.has_tables(part, band));
        (!parts.is_empty() && pure && fits && has_tables).then_some((parts, band))
    }

    fn has_tables(&self, part: &Part, band: Band) -> bool {
        let needs_dc = band.first == 0 && band.before == 0;
        let needs_ac = band.last > 0;
        (!needs_dc || self.dc_tables[part.dc].is_some()) && (!needs_ac || self.ac_tables[part.ac].is_some())
    }

    /// Walks the blocks of a unit at this column and row of units.
    fn unit(&mut self, bits: &mut Bits, parts: &[Part], band: Band, place: (usize, usize)) -> Result<(), Fault> {
        for part in parts {
            let (h, v) = if parts.len() == 1 { (1, 1) } else { self.components[part.component].sampling };
            for (row, column) in (0..v).flat_map(|row| (0..h).map(move |column| (row, column))) {
                let at = (place.0 * h + column) + (place.1 * v + row) * self.components[part.component].padded.0;
                self.block(bits, *part, band, at)?;
            }
        }
        Ok(())
    }

    fn block(&mut self, bits: &mut Bits, part: Part, band: Band, at: usize) -> Result<(), Fault> {
        let component = &mut self.components[part.component];
        let (dc, ac) = (&self.dc_tables[part.dc], &self.ac_tables[part.ac]);
        match (self.frame.progressive, band.first == 0, band.before == 0, dc, ac) {
            (false, .., Some(dc), Some(ac)) => component.whole(bits, dc, ac),
            (true, true, true, Some(dc), _) => component.dc_first(bits, dc, band.after),
            // One more bit of the DC value.
            (true, true, false, ..) => Ok(bits.take(1).map(|_| ())?),
            (true, false, true, _, Some(ac)) => component.ac_first(bits, ac, band, at),
            (true, false, false, _, Some(ac)) => component.ac_refined(bits, ac, band, at),
            _ => Err(Fault::Impossible),
        }
    }

    fn error(&self, bytes: &[u8], bits: &Bits, fault: &Fault, done: usize, count: usize) -> anyhow::Error {
        match fault {
            Fault::Missing if bits.at_end_of(bytes) => self.ends_early(done, count),
            _ => self.impossible(done, count),
        }
    }

    /// "12 % of scan 3", or of the picture if there is but one scan so far.
    fn share(&self, done: usize, count: usize) -> String {
        let whole = if self.scans == 1 { "the picture".to_string() } else { format!("scan {}", self.scans) };
        format!("{} % of {whole}", 100 * done / count)
    }

    fn ends_early(&self, done: usize, count: usize) -> anyhow::Error {
        let share = self.share(done, count);
        anyhow!("the JPEG ends early, after {share}: the file was cut short; copy or download it again")
    }

    fn impossible(&self, done: usize, count: usize) -> anyhow::Error {
        let share = self.share(done, count);
        anyhow!("the JPEG is damaged: its pixel data cannot be right from {share} on; copy or download it again")
    }
}
