//! The marker segments of a JPEG: its frame, its colours and its metadata.

use std::borrow::Cow;

use anyhow::{Result, bail, ensure};

use crate::image::read::colour::{PROFILE_BYTES_MAX, Stated};
use crate::image::read::{damaged, orientation::Orientation};

pub(super) const SOI: u8 = 0xd8;
pub(super) const EOI: u8 = 0xd9;
pub(super) const SOS: u8 = 0xda;
pub(super) const DQT: u8 = 0xdb;
pub(super) const DNL: u8 = 0xdc;
pub(super) const DRI: u8 = 0xdd;
pub(super) const DHT: u8 = 0xc4;
const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP2: u8 = 0xe2;
const APP14: u8 = 0xee;

/// A marker with its parameters; those of a marker that has none are empty.
pub(super) struct Segment<'a> {
    pub(super) marker: u8,
    pub(super) payload: &'a [u8],
    /// The parameters are cut off by the end of the bytes.
    pub(super) cut: bool,
    /// Where the bytes go on.
    pub(super) end: usize,
}

/// The next segment from `at` on. Bytes that belong to none are passed over, as is what follows a restart marker.
pub(super) fn next(bytes: &[u8], mut at: usize) -> Option<Segment<'_>> {
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xff)? + 1;
        match *bytes.get(at)? {
            0x00 | 0x01 | 0xd0..=0xd7 | SOI => at += 1,
            0xff => {}
            EOI => return Some(Segment { marker: EOI, payload: &[], cut: false, end: at + 1 }),
            marker => {
                let size = bytes.get(at + 1..at + 3).map_or(2, |size| usize::from(u16::from_be_bytes([size[0], size[1]])));
                let (from, until) = ((at + 3).min(bytes.len()), at + 1 + size.max(2));
                let payload = &bytes[from..until.clamp(from, bytes.len())];
                return Some(Segment { marker, payload, cut: until > bytes.len(), end: until.min(bytes.len()) });
            }
        }
    }
}

/// A colour component of the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Blocks of it in a unit, across and down.
    pub(super) sampling: (usize, usize),
    pub(super) table: u8,
}

/// The frame header.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame {
    pub(super) progressive: bool,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) components: Vec<Component>,
}

/// What stands before the first pixels.
#[derive(Default)]
pub(super) struct Header<'a> {
    pub(super) frame: Frame,
    /// A JFIF segment is present, which declares YCbCr.
    pub(super) jfif: bool,
    /// Transform byte of an Adobe segment: 0 none (RGB, CMYK), 1 YCbCr, 2 YCCK.
    pub(super) adobe: Option<u8>,
    profile: Vec<&'a [u8]>,
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
}

impl<'a> Header<'a> {
    /// # Errors
    ///
    /// If there is no frame, or it is of a kind that cannot be decoded; the message names the kind.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Header<'a>> {
        let mut header = Header::default();
        let mut at = 0;
        while let Some(segment) = next(bytes, at).filter(|segment| !matches!(segment.marker, SOS | EOI)) {
            header.note(&segment)?;
            at = segment.end;
        }
        ensure!(
            !header.frame.components.is_empty(),
            "the JPEG ends before its first pixel: the file was cut short; copy or download it again"
        );
        Ok(header)
    }

    fn note(&mut self, segment: &Segment<'a>) -> Result<()> {
        let payload = segment.payload;
        match segment.marker {
            // Tables, and arithmetic conditioning.
            DHT | 0xc8 | 0xcc => {}
            0xc0..=0xcf if self.frame.components.is_empty() && !segment.cut => self.frame = Frame::new(segment.marker, payload)?,
            0xc0..=0xcf if !segment.cut => bail!("the JPEG is damaged: it has two frame headers; copy or download it again"),
            APP0 if payload.starts_with(b"JFIF\0") => self.jfif = true,
            APP1 if payload.starts_with(b"Exif\0\0") => self.exif = self.exif.or(Some(payload)),
            APP1 if payload.starts_with(b"http://ns.adobe.com/xap/1.0/\0") => self.xmp = Some(payload),
            // At most 255 parts can be numbered; one more shows that something is wrong.
            APP2 if payload.starts_with(b"ICC_PROFILE\0") && self.profile.len() < 256 => self.profile.push(&payload[12..]),
            // Version (2), flags (4), transform.
            APP14 if payload.starts_with(b"Adobe") => self.adobe = payload.get(11).copied(),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn orientation(&self) -> Orientation {
        Orientation::stated(self.exif, self.xmp)
    }

    pub(super) fn colours(&self) -> Stated {
        if self.profile.is_empty() {
            return Stated::Srgb;
        }
        match self.joined_profile() {
            Some(profile) if profile.len() <= PROFILE_BYTES_MAX => Stated::icc(&profile),
            Some(_) => Stated::too_large(),
            None => Stated::Unusable("is incomplete".into()),
        }
    }

    /// The parts in order of their numbers, if each is there once.
    fn joined_profile(&self) -> Option<Cow<'a, [u8]>> {
        let mut parts = self.profile.iter().filter(|part| part.len() >= 2).copied().collect::<Vec<_>>();
        parts.sort_by_key(|part| part[0]);
        let count = parts.len();
        let numbered = parts.iter().enumerate().all(|(i, part)| usize::from(part[0]) == i + 1 && usize::from(part[1]) == count);
        match parts[..] {
            [only] if numbered => Some(Cow::Borrowed(&only[2..])),
            _ if numbered => Some(parts.iter().flat_map(|part| &part[2..]).copied().collect()),
            _ => None,
        }
    }
}

impl Frame {
    fn new(marker: u8, payload: &[u8]) -> Result<Frame> {
        let kind = match marker {
            0xc0..=0xc2 => None,
            0xc3 | 0xc7 | 0xcb | 0xcf => Some("lossless"),
            0xc5 | 0xc6 | 0xcd | 0xce => Some("hierarchical"),
            _ => Some("arithmetic-coded"),
        };
        if let Some(kind) = kind {
            bail!("it is {} {kind} JPEG, which cannot be read; {SAVE_AGAIN}", if kind.starts_with('a') { "an" } else { "a" });
        }
        // Precision, height (2), width (2), count, then (id, sampling, table) for each component.
        let header = payload.get(..6).ok_or_else(|| damaged("JPEG", "frame header"))?;
        ensure!(header[0] == 8, "the JPEG has {} bits a sample; 8 can be read; {SAVE_AGAIN}", header[0]);
        let number = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let parts = payload[6..].as_chunks::<3>().0;
        let component = |part: &[u8; 3]| {
            let sampling = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
            Component { id: part[0], sampling, table: part[2] }
        };
        let components: Vec<Component> = parts.iter().take(usize::from(header[5])).map(component).collect();
        ensure!(components.len() == usize::from(header[5]), damaged("JPEG", "frame header"));
        let count = components.len();
        ensure!(
            matches!(count, 1 | 3 | 4),
            "the JPEG has {count} colour components; 1 (grey), 3 (colour) and 4 (CMYK) can be read"
        );
        let valid = |c: &Component| (1..=4).contains(&c.sampling.0) && (1..=4).contains(&c.sampling.1) && c.table < 4;
        ensure!(components.iter().all(valid), damaged("JPEG", "frame header"));
        let frame = Frame { progressive: marker == 0xc2, width: number(3), height: number(1), components };
        let (h_max, v_max) = frame.sampling_max();
        let whole = |c: &Component| h_max % c.sampling.0 == 0 && v_max % c.sampling.1 == 0;
        ensure!(frame.components.iter().all(whole), "the JPEG's colours are sampled at an unusual ratio; {SAVE_AGAIN}");
        ensure!(frame.height > 0, "the JPEG says its height only behind its pixels, which cannot be read; {SAVE_AGAIN}");
        Ok(frame)
    }

    /// Bytes of all coefficients of a progressive file, which are held until its last scan.
    pub(super) fn coefficient_bytes(&self) -> usize {
        let (h_max, v_max) = self.sampling_max();
        let units = self.width.div_ceil(8 * h_max) * self.height.div_ceil(8 * v_max);
        let blocks: usize = self.components.iter().map(|component| component.sampling.0 * component.sampling.1).sum();
        if self.progressive { units * blocks * 64 * 2 } else { 0 }
    }

    /// Blocks of the component that has most of them in a unit, across and down.
    pub(super) fn sampling_max(&self) -> (usize, usize) {
        let most = |side: fn(&Component) -> usize| self.components.iter().map(side).max().unwrap_or(1);
        (most(|c| c.sampling.0), most(|c| c.sampling.1))
    }
}

const SAVE_AGAIN: &str = "convert it first, for example with `djpeg -outfile out.ppm in.jpg` or `magick in.jpg out.png`";
