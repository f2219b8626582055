//! The directories of a TIFF file, and the values of their tags.

use std::collections::HashSet;

/// Most pages that are counted.
const PAGES_MAX: usize = 100_000;

/// Most directories below one that are looked at.
const BELOW_MAX: usize = 64;

/// Most entries of a directory: others than BigTIFF count them in 16 bits.
const ENTRIES_MAX: usize = 65_535;

/// Most numbers of a tag, which take 8 bytes each: far more than strips or tiles of any picture that may be read.
const NUMBERS_MAX: usize = 1 << 23;

/// Numbers of the tags that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Tag {
    SubfileType = 254,
    Width = 256,
    Height = 257,
    BitsPerSample = 258,
    Compression = 259,
    Photometric = 262,
    FillOrder = 266,
    StripOffsets = 273,
    Orientation = 274,
    SamplesPerPixel = 277,
    RowsPerStrip = 278,
    StripByteCounts = 279,
    PlanarConfiguration = 284,
    TileOffsets = 324,
    TileByteCounts = 325,
    SubDirectories = 330,
    ColourMap = 320,
    ExtraSamples = 338,
    SampleFormat = 339,
    JpegTables = 347,
    YCbCrSubsampling = 530,
    Xmp = 700,
    IccProfile = 34675,
    DngVersion = 50706,
}

/// How the numbers of a file are written.
#[derive(Clone, Copy)]
struct Notation<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    /// BigTIFF: counts and offsets have 8 bytes.
    wide: bool,
}

impl Notation<'_> {
    fn number(&self, at: usize, size: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(size)?)?;
        let grow = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if self.big_endian { bytes.iter().fold(0, grow) } else { bytes.iter().rev().fold(0, grow) })
    }

    /// Bytes of an offset.
    fn offset(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }
}

/// A directory: the tags of a page.
#[derive(Clone, Copy)]
pub(super) struct Directory<'a> {
    notation: Notation<'a>,
    /// Where the first entry is, and how many there are.
    entries: (usize, usize),
}

impl<'a> Directory<'a> {
    /// The first directory of a file.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Directory<'a>> {
        let big_endian = bytes.starts_with(b"MM");
        let mut notation = Notation { bytes, big_endian, wide: false };
        notation.wide = notation.number(2, 2)? == 43;
        let at = if notation.wide { notation.number(8, 8)? } else { notation.number(4, 4)? };
        Directory::at(notation, at)
    }

    fn at(notation: Notation<'a>, at: u64) -> Option<Directory<'a>> {
        let (at, size) = (usize::try_from(at).ok()?, if notation.wide { 8 } else { 2 });
        let count = usize::try_from(notation.number(at, size)?).ok()?;
        (count <= ENTRIES_MAX).then_some(Directory { notation, entries: (at + size, count) })
    }

    fn entry_size(&self) -> usize {
        4 + 2 * self.notation.offset()
    }

    fn next(&self) -> Option<u64> {
        let (first, count) = self.entries;
        self.notation.number(first + count * self.entry_size(), self.notation.offset()).filter(|at| *at != 0)
    }

    /// How many pages there are, not counting reduced ones and masks of others.
    pub(super) fn pages(&self) -> usize {
        let (mut pages, mut seen, mut next) = (1, HashSet::new(), self.next());
        while let Some(at) = next.filter(|at| pages < PAGES_MAX && seen.insert(*at)) {
            let Some(directory) = Directory::at(self.notation, at) else { break };
            pages += usize::from(directory.number(Tag::SubfileType).is_none_or(|kind| kind & 0b101 == 0));
            next = directory.next();
        }
        pages
    }

    /// The directories that belong to this one.
    pub(super) fn below(&self) -> impl Iterator<Item = Directory<'a>> {
        let (notation, offsets) = (self.notation, self.numbers(Tag::SubDirectories).unwrap_or_default());
        offsets.into_iter().take(BELOW_MAX).filter_map(move |at| Directory::at(notation, at))
    }

    /// Where a tag's value is, the size of one of its numbers, and how many there are.
    fn value(&self, tag: Tag) -> Option<(usize, usize, usize)> {
        let (first, count) = self.entries;
        let places = (0..count).map(|i| first + i * self.entry_size());
        let entry = places
            .take_while(|at| *at < self.notation.bytes.len())
            .find(|at| self.notation.number(*at, 2) == Some(tag as u64))?;
        let size = match self.notation.number(entry + 2, 2)? {
            1 | 2 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 13 => 4,
            16..=18 => 8,
            _ => return None,
        };
        let offset = self.notation.offset();
        let count = usize::try_from(self.notation.number(entry + 4, offset)?).ok()?;
        let inline = entry + 4 + offset;
        let at = if count.checked_mul(size)? <= offset {
            inline
        } else {
            usize::try_from(self.notation.number(inline, offset)?).ok()?
        };
        Some((at, size, count))
    }

    pub(super) fn number(&self, tag: Tag) -> Option<u64> {
        let (at, size, count) = self.value(tag)?;
        self.notation.number(at, size).filter(|_| count > 0)
    }

    pub(super) fn numbers(&self, tag: Tag) -> Option<Vec<u64>> {
        let (at, size, count) = self.value(tag).filter(|(.., count)| *count <= NUMBERS_MAX)?;
        let bytes = self.notation.bytes.get(at..at.checked_add(size * count)?)?;
        Some((0..bytes.len() / size).filter_map(|i| self.notation.number(at + i * size, size)).collect())
    }

    /// The bytes of a value that is no list of numbers.
    pub(super) fn bytes(&self, tag: Tag) -> Option<&'a [u8]> {
        let (at, size, count) = self.value(tag)?;
        self.notation.bytes.get(at..at.checked_add(size * count)?)
    }

    /// Where the bytes of a single number are, and these bytes for another number.
    pub(super) fn patch(&self, tag: Tag, number: u8) -> Option<(usize, Vec<u8>)> {
        let (at, size, _) = self.value(tag)?;
        let mut bytes = vec![0; size];
        bytes[if self.notation.big_endian { size - 1 } else { 0 }] = number;
        Some((at, bytes))
    }
}
