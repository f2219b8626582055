//! What must be known of a JPEG before its decoder is trusted.
//!
//! The decoder converts four components to RGB its own way, takes three components named R, G, B for YCbCr, and fills
//! the missing part of a cut file with grey. Each would give a picture in wrong colours without a word, so the marker
//! segments are read here first and such files are refused.

use anyhow::{Result, bail, ensure};

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const APP0: u8 = 0xe0;
const APP14: u8 = 0xee;

/// The parts of the marker segments that decide how samples become colours.
#[derive(Debug, Default)]
struct Header {
    /// Component ids in the order of the frame header (SOF); empty before it was seen.
    components: Vec<u8>,
    /// A JFIF segment is present, which declares YCbCr.
    jfif: bool,
    /// Transform byte of an Adobe segment: 0 none (RGB, CMYK), 1 YCbCr, 2 YCCK.
    adobe_transform: Option<u8>,
    /// The end-of-image marker was reached.
    complete: bool,
}

/// Errors for a JPEG that would come out with wrong colours: CMYK, YCCK, contradictory colour declarations, a file cut
/// before its end-of-image marker.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let header = read(bytes);
    let components = header.components.len();
    ensure!(
        header.complete,
        "the JPEG ends before its end-of-image marker ({} bytes found): the file was cut short; copy or download it again",
        bytes.len()
    );
    match components {
        1 => Ok(()),
        3 => check_three_components(&header),
        4 => bail!(
            "the JPEG has 4 colour components (CMYK or YCCK, meant for printing), which are not converted; save it as RGB, \
             for example with `magick in.jpg -colorspace sRGB out.png`"
        ),
        _ => bail!("the JPEG has {components} colour components; 1 (grey) and 3 (colour) can be read"),
    }
}

/// The decoder lets an Adobe segment win and never looks at the ids; libjpeg lets JFIF win, then Adobe, then ids.
fn check_three_components(header: &Header) -> Result<()> {
    let declared_rgb = header.adobe_transform == Some(0);
    ensure!(
        !(header.jfif && declared_rgb),
        "the JPEG declares its colours both as YCbCr (JFIF) and as RGB (Adobe); save it again as PNG or JPEG"
    );
    ensure!(
        header.jfif || header.adobe_transform.is_some() || header.components != *b"RGB",
        "the JPEG stores RGB without an Adobe segment that says so, which is not supported; save it again as PNG"
    );
    Ok(())
}

/// Walks the marker segments up to the end-of-image marker or the end of the bytes, whichever is first.
fn read(bytes: &[u8]) -> Header {
    let mut header = Header::default();
    let mut rest = bytes;
    // Entropy-coded bytes and padding between segments are passed over: their FFs are followed by 00 or a restart marker.
    while let Some(at) = rest.iter().position(|byte| *byte == 0xff) {
        rest = &rest[at + 1..];
        let Some(&marker) = rest.first() else { break };
        match marker {
            EOI => {
                header.complete = true;
                break;
            }
            0x00 | 0x01 | 0xd0..=0xd7 | SOI => rest = &rest[1..],
            0xff => {}
            _ => {
                let Some(length) = rest.get(1..3).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]]))) else {
                    break;
                };
                let Some(payload) = rest.get(3..(1 + length).max(3)) else {
                    break;
                };
                header.note(marker, payload);
                rest = &rest[3 + payload.len()..];
            }
        }
    }
    header
}

impl Header {
    fn note(&mut self, marker: u8, payload: &[u8]) {
        match marker {
            // Start of frame, of any coding process; C4, C8 and CC are tables and an extension.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) && self.components.is_empty() => {
                // precision, height (2), width (2), count, then (id, sampling, table) for each component
                let count = payload.get(5).copied().unwrap_or(0);
                let ids = payload.get(6..).unwrap_or_default().chunks_exact(3).map(|component| component[0]);
                self.components = ids.take(usize::from(count)).collect();
            }
            APP0 if payload.starts_with(b"JFIF\0") => self.jfif = true,
            // version (2), flags (4), transform
            APP14 if payload.starts_with(b"Adobe") => self.adobe_transform = payload.get(11).copied(),
            _ => {}
        }
    }
}
