//! The chunks of a PNG: which are there, whether they are whole, and the picture's own as a stream.
//!
//! Nothing is copied and nothing is kept of what is not used, however many chunks there are and whatever they unpack to.

use std::io::{self, BufRead, Read, Seek, SeekFrom};

use anyhow::{Result, ensure};
use flate2::Crc;
use flate2::read::ZlibDecoder;

use crate::image::read::colour::{PROFILE_BYTES_MAX, Stated};
use crate::image::read::{damaged, orientation::Orientation};

/// What a PNG begins with.
pub(in crate::image::read) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Largest text that is looked at for an orientation, unpacked, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Keywords of texts that are looked at.
const XMP: &[u8] = b"XML:com.adobe.xmp";
const RAW_EXIF: [&[u8]; 2] = [b"Raw profile type exif", b"Raw profile type APP1"];
const EXIF: &[u8] = b"exif";

/// The keyword that the content of a text chunk begins with, if it is such a one.
pub(super) fn used_keyword(content: &[u8]) -> Option<&[u8]> {
    let (keyword, _) = keyword(content)?;
    (keyword == XMP || keyword == EXIF || RAW_EXIF.contains(&keyword)).then_some(keyword)
}

/// The keyword of a chunk and what follows it.
fn keyword(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = content.iter().take(80).position(|byte| *byte == 0)?;
    Some((&content[..end], &content[end + 1..]))
}

/// A chunk of the file.
#[derive(Clone, Copy)]
pub(super) struct Chunk<'a> {
    kind: &'a [u8],
    content: &'a [u8],
    /// Length, kind, content and checksum, as far as they are there.
    whole: &'a [u8],
    /// The file goes on behind it.
    complete: bool,
}

impl Chunk<'_> {
    fn checksum_is_right(&self) -> bool {
        let stored = self.whole.get(8 + self.content.len()..).and_then(|rest| rest.try_into().ok()).map(u32::from_be_bytes);
        let mut crc = Crc::new();
        crc.update(self.kind);
        crc.update(self.content);
        stored == Some(crc.sum())
    }
}

/// The chunks in these bytes of a PNG, up to its end chunk; the last one may be cut.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let kind = rest.get(4..8)?;
        let size = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let (until, complete) = (rest.len().min(12 + size), rest.len() >= 12 + size);
        let chunk = Chunk { kind, content: &rest[8..rest.len().min(8 + size)], whole: &rest[..until], complete };
        rest = if kind == b"IEND" { &[] } else { &rest[until..] };
        Some(chunk)
    })
}

/// What matters of a PNG, but for its pixels.
#[derive(Default)]
pub(super) struct Parts<'a> {
    bytes: &'a [u8],
    header: &'a [u8],
    palette: Option<Chunk<'a>>,
    transparency: Option<Chunk<'a>>,
    cicp: Option<Chunk<'a>>,
    icc: Option<Chunk<'a>>,
    srgb: Option<Chunk<'a>>,
    gamma: Option<Chunk<'a>>,
    chromaticities: Option<Chunk<'a>>,
    exif: Option<&'a [u8]>,
    raw_exif: Option<Vec<u8>>,
    xmp: Option<Vec<u8>>,
    /// Frames that an animation announces.
    pub(super) frames: usize,
    /// Where the first chunk of pixels begins.
    pixels_at: usize,
    /// A chunk of pixels has a wrong checksum.
    pub(super) pixels_suspect: bool,
    /// The end chunk is there.
    pub(super) ended: bool,
}

impl<'a> Parts<'a> {
    /// # Errors
    ///
    /// If the header or the palette is damaged, or there are no pixels.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Parts<'a>> {
        let mut parts = Parts { bytes, ..Parts::default() };
        let mut at = SIGNATURE.len();
        for chunk in chunks(&bytes[SIGNATURE.len()..]) {
            parts.note(chunk, at)?;
            at += chunk.whole.len();
        }
        ensure!(parts.header.len() == 13, damaged("PNG", "header"));
        ensure!(parts.pixels_at > 0, "the PNG ends before its first pixel: the file was cut short; copy or download it again");
        Ok(parts)
    }

    fn note(&mut self, chunk: Chunk<'a>, at: usize) -> Result<()> {
        let known = [
            (b"PLTE", &mut self.palette),
            (b"tRNS", &mut self.transparency),
            (b"cICP", &mut self.cicp),
            (b"iCCP", &mut self.icc),
            (b"sRGB", &mut self.srgb),
            (b"gAMA", &mut self.gamma),
            (b"cHRM", &mut self.chromaticities),
        ];
        if let Some((_, place)) = known.into_iter().find(|(kind, _)| *kind == chunk.kind) {
            // Colours are stated before the pixels; the first word counts.
            if self.pixels_at == 0 && place.is_none() {
                ensure!(!matches!(chunk.kind, b"PLTE" | b"tRNS") || chunk.checksum_is_right(), damaged("PNG", "palette"));
                *place = Some(chunk);
            }
            return Ok(());
        }
        match chunk.kind {
            b"IHDR" => {
                ensure!(self.header.is_empty() && chunk.checksum_is_right(), damaged("PNG", "header"));
                self.header = chunk.content;
            }
            b"IDAT" => {
                self.pixels_suspect |= chunk.complete && !chunk.checksum_is_right();
                if self.pixels_at == 0 {
                    self.pixels_at = at;
                }
            }
            b"IEND" => self.ended = chunk.complete,
            b"acTL" if chunk.content.len() == 8 && self.pixels_at == 0 => {
                self.frames =
                    u32::from_be_bytes([chunk.content[0], chunk.content[1], chunk.content[2], chunk.content[3]]) as usize;
            }
            b"eXIf" => self.exif = self.exif.or(Some(chunk.content)),
            b"tEXt" | b"zTXt" | b"iTXt" => self.note_text(chunk),
            _ => {}
        }
        Ok(())
    }

    /// EXIF and XMP also come as texts, of which the first is unpacked; no others are.
    fn note_text(&mut self, chunk: Chunk<'a>) {
        let Some((keyword, rest)) = keyword(chunk.content) else { return };
        let text = || match chunk.kind {
            b"tEXt" => Some(rest[..rest.len().min(TEXT_BYTES_MAX)].to_vec()),
            // Method of compression.
            b"zTXt" => inflate(rest.get(1..)?, TEXT_BYTES_MAX).ok(),
            // Whether it is compressed and how, language, translated keyword.
            _ => {
                let mut parts = rest.get(2..)?.splitn(3, |byte| *byte == 0);
                let text = parts.nth(2)?;
                if rest[0] == 0 {
                    Some(text[..text.len().min(TEXT_BYTES_MAX)].to_vec())
                } else {
                    inflate(text, TEXT_BYTES_MAX).ok()
                }
            }
        };
        match keyword {
            XMP if self.xmp.is_none() => self.xmp = Some(text().unwrap_or_default()),
            keyword if RAW_EXIF.contains(&keyword) && self.raw_exif.is_none() => {
                self.raw_exif = Some(text().and_then(|text| raw_profile(&text)).unwrap_or_default());
            }
            EXIF if chunk.kind == b"tEXt" => self.exif = self.exif.or(Some(rest)),
            _ => {}
        }
    }

    /// Width and height.
    pub(super) fn size(&self) -> (u32, u32) {
        let number =
            |at: usize| u32::from_be_bytes([self.header[at], self.header[at + 1], self.header[at + 2], self.header[at + 3]]);
        (number(0), number(4))
    }

    pub(super) fn interlaced(&self) -> bool {
        self.header[12] == 1
    }

    pub(super) fn orientation(&self) -> Orientation {
        Orientation::stated(self.exif.or(self.raw_exif.as_deref()), self.xmp.as_deref())
    }

    /// The first of cICP, iCCP, sRGB, and gAMA with cHRM counts.
    pub(super) fn colours(&self) -> Stated {
        if let Some(cicp) = &self.cicp {
            return match <[u8; 4]>::try_from(cicp.content) {
                Ok(code) if cicp.checksum_is_right() => Stated::cicp(code),
                _ => Stated::Unusable("(cICP) is damaged".into()),
            };
        }
        if let Some(icc) = &self.icc {
            return icc_profile(icc);
        }
        if self.srgb.is_some() {
            return Stated::Srgb;
        }
        let numbers = |chunk: &Chunk| chunk.content.as_chunks::<4>().0.iter().map(|n| u32::from_be_bytes(*n)).collect::<Vec<_>>();
        let usable = |chunk: &Option<Chunk>| chunk.filter(Chunk::checksum_is_right).map(|chunk| numbers(&chunk));
        let gamma = usable(&self.gamma).and_then(|numbers| numbers.first().copied());
        let chromaticities = usable(&self.chromaticities).and_then(|numbers| numbers.try_into().ok());
        Stated::gamma(gamma, chromaticities)
    }

    /// A PNG of the header, the palette and the pixels, well ended.
    pub(super) fn picture(&self) -> Picture<'a> {
        let mut head = SIGNATURE.to_vec();
        let header = Chunk { kind: b"IHDR", content: self.header, whole: &[], complete: true };
        for chunk in [Some(header), self.palette, self.transparency].into_iter().flatten() {
            head.extend_from_slice(&(chunk.content.len() as u32).to_be_bytes());
            head.extend_from_slice(chunk.kind);
            head.extend_from_slice(chunk.content);
            // Checksums have been checked.
            head.extend_from_slice(&[0; 4]);
        }
        Picture { rest: &self.bytes[self.pixels_at..], piece: Piece::Own(head), read: 0 }
    }
}

/// The profile of an iCCP chunk: name, method of compression, compressed profile.
fn icc_profile(chunk: &Chunk) -> Stated {
    let packed = keyword(chunk.content).and_then(|(_, rest)| rest.get(1..)).unwrap_or_default();
    match inflate(packed, PROFILE_BYTES_MAX) {
        Ok(profile) if chunk.checksum_is_right() => Stated::icc(&profile),
        Err(Unpacked::TooLarge) => Stated::too_large(),
        _ => Stated::Unusable("is damaged".into()),
    }
}

enum Unpacked {
    TooLarge,
    Damaged,
}

/// Unpacks at most so many bytes.
fn inflate(bytes: &[u8], bytes_max: usize) -> Result<Vec<u8>, Unpacked> {
    let mut unpacked = Vec::new();
    let read = ZlibDecoder::new(bytes).take(bytes_max as u64 + 1).read_to_end(&mut unpacked);
    match read {
        Ok(_) if unpacked.len() > bytes_max => Err(Unpacked::TooLarge),
        Ok(_) => Ok(unpacked),
        Err(_) => Err(Unpacked::Damaged),
    }
}

/// The bytes of a "raw profile": a line of its name, a line of its size, then hexadecimal digits.
fn raw_profile(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.splitn(4, |byte| *byte == b'\n').nth(3)?;
    let digits: Vec<u8> = digits.iter().filter_map(|digit| (*digit as char).to_digit(16)).map(|digit| digit as u8).collect();
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// The bytes of a PNG of nothing but its picture. Checksums in it are not right.
pub(super) struct Picture<'a> {
    /// The file from the next chunk of pixels on.
    rest: &'a [u8],
    piece: Piece<'a>,
    /// Bytes of the piece that have been read.
    read: usize,
}

enum Piece<'a> {
    Own(Vec<u8>),
    File(&'a [u8]),
}

/// An end chunk.
const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";

impl Picture<'_> {
    fn piece(&self) -> &[u8] {
        match &self.piece {
            Piece::Own(bytes) => &bytes[self.read..],
            Piece::File(bytes) => &bytes[self.read..],
        }
    }
}

impl<'a> Picture<'a> {
    /// The next chunk of pixels, or the end; a cut chunk is made a shorter one.
    fn next_piece(&mut self) -> Piece<'a> {
        let mut at = 0;
        for chunk in chunks(self.rest) {
            at += chunk.whole.len();
            if chunk.kind == b"IDAT" && !chunk.content.is_empty() {
                self.rest = &self.rest[at..];
                if chunk.complete {
                    return Piece::File(chunk.whole);
                }
                let size = (chunk.content.len() as u32).to_be_bytes();
                return Piece::Own([&size, chunk.kind, chunk.content, &[0; 4]].concat());
            }
        }
        self.rest = &[];
        Piece::File(END)
    }
}

impl BufRead for Picture<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece().is_empty() {
            self.piece = self.next_piece();
            self.read = 0;
        }
        Ok(self.piece())
    }

    fn consume(&mut self, amount: usize) {
        self.read += amount;
    }
}

impl Read for Picture<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.piece()[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl Seek for Picture<'_> {
    /// The decoder asks for a reader that can seek and reads from beginning to end.
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
