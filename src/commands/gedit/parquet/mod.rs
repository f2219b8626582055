//! Parquet files of texts, binary values and flags, as `datasets` and the Hub write them: one row, one value, no lists.
//!
//! Pages of both versions, plain or by a dictionary, uncompressed, Snappy or gzip. All else is refused by name.

mod pages;
mod thrift;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use self::thrift::Value;
use super::read_range;

/// Most bytes of a file's metadata.
const FOOTER_BYTES_MAX: usize = 64 << 20;
/// Most bytes of a page, unpacked.
const PAGE_BYTES_MAX: usize = 1 << 30;
/// Bytes in which a page's own header is looked for.
const HEADER_BYTES: usize = 64 << 10;

/// A file of rows.
pub(super) struct Table {
    path: PathBuf,
    file: File,
    /// Names of columns, members of structures as `a.b`, and how many levels say that a value is there.
    columns: Vec<(String, i64, u32)>,
    /// Groups of rows: how many, and each column's chunk.
    groups: Vec<(usize, Vec<Chunk>)>,
}

/// A column's values of one group.
#[derive(Clone, Debug)]
struct Chunk {
    start: u64,
    bytes: u64,
    codec: i64,
    values: usize,
}

/// One column's values of a group; none: null.
pub(super) type Column = Vec<Option<Vec<u8>>>;

impl Table {
    /// Opens a file and reads what it holds.
    pub(super) fn open(path: &Path) -> Result<Table> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        ensure!(length >= 12, "it is no Parquet file");
        let tail = read_range(&file, length - 8, 8)?;
        ensure!(&tail[4..] == b"PAR1", "it is no Parquet file, or was cut off");
        let size = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]) as usize;
        ensure!(size <= FOOTER_BYTES_MAX, "its metadata has {size} bytes; at most {FOOTER_BYTES_MAX} can be read");
        ensure!(size as u64 + 12 <= length, "its metadata lies outside the file");
        let (footer, _) = thrift::structure(&read_range(&file, length - 8 - size as u64, size)?)?;
        let columns = columns(footer.list(2).context("it names no columns")?)?;
        let groups = footer.list(4).context("it has no groups of rows")?;
        let groups = groups.iter().map(|group| chunks(group, columns.len(), length)).collect::<Result<_>>()?;
        Ok(Table { path: path.to_path_buf(), file, columns, groups })
    }

    /// Rows of each group.
    pub(super) fn groups(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups.iter().map(|(rows, _)| *rows)
    }

    /// Whether there is a column of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|(column, ..)| column == name)
    }

    /// A group's values of a column.
    ///
    /// # Errors
    /// There is no such column, it is of another kind, or it is damaged.
    pub(super) fn column(&self, group: usize, name: &str) -> Result<Column> {
        let read = || {
            let at = self.columns.iter().position(|(column, ..)| column == name).context("there is none")?;
            let (_, kind, levels) = &self.columns[at];
            let (rows, chunks) = &self.groups[group];
            let chunk = &chunks[at];
            ensure!(chunk.values == *rows, "it has lists");
            let bytes = read_range(&self.file, chunk.start, usize::try_from(chunk.bytes)?)?;
            decode(&bytes, chunk, *kind, *levels)
        };
        read().with_context(|| format!("{}: the column {name}", self.path.display()))
    }
}

/// The columns that a list of schema elements, each before its members, has.
fn columns(elements: &[Value]) -> Result<Vec<(String, i64, u32)>> {
    fn walk(
        elements: &mut std::slice::Iter<Value>,
        within: &str,
        levels: u32,
        found: &mut Vec<(String, i64, u32)>,
    ) -> Result<()> {
        let element = elements.next().context("its list of columns ends early")?;
        let name = element.text(4).context("a column has no name")?;
        let name = if within.is_empty() { name.to_string() } else { format!("{within}.{name}") };
        // A column of lists stays in the list, so that others are found, and is refused if it is read.
        let levels = levels + u32::from(element.number(3) != Some(0));
        match element.number(5).unwrap_or(0) {
            0 => found.push((name, element.number(1).context("a column has no type")?, levels)),
            members => {
                ensure!(levels < 16, "it has too many structures within structures");
                (0..members).try_for_each(|_| walk(elements, &name, levels, found))?;
            }
        }
        Ok(())
    }
    let mut elements = elements.iter();
    let root = elements.next().context("it names no columns")?;
    let mut found = Vec::new();
    let members = root.number(5).unwrap_or(0);
    (0..members).try_for_each(|_| walk(&mut elements, "", 0, &mut found))?;
    Ok(found)
}

/// A group's rows, and where its columns lie.
fn chunks(group: &Value, columns: usize, length: u64) -> Result<(usize, Vec<Chunk>)> {
    let rows = usize::try_from(group.number(3).context("a group has no number of rows")?)?;
    let list = group.list(1).context("a group has no columns")?;
    ensure!(list.len() == columns, "a group has {} columns of {columns}", list.len());
    let chunk = |column: &Value| {
        let about = column.field(3).context("a column has no description")?;
        let number = |field| about.number(field).and_then(|number| u64::try_from(number).ok());
        let data = number(9).context("a column has no pages")?;
        let start = number(11).filter(|dictionary| *dictionary > 0).map_or(data, |dictionary| dictionary.min(data));
        let bytes = number(7).context("a column has no length")?;
        ensure!(start.checked_add(bytes).is_some_and(|end| end <= length), "a column lies outside the file");
        let values = usize::try_from(number(5).context("a column has no number of values")?)?;
        Ok(Chunk { start, bytes, codec: about.number(4).unwrap_or(0), values })
    };
    Ok((rows, list.iter().map(chunk).collect::<Result<_>>()?))
}

/// The values of a column's pages.
fn decode(bytes: &[u8], chunk: &Chunk, kind: i64, levels: u32) -> Result<Column> {
    ensure!(matches!(kind, 0 | 6), "it holds neither texts, nor bytes, nor flags");
    let (mut at, mut dictionary, mut column) = (0, None, Vec::new());
    while column.len() < chunk.values {
        let (header, taken) = thrift::structure(&bytes[at..bytes.len().min(at + HEADER_BYTES)]).context("a page's header")?;
        let size = |field| header.number(field).and_then(|size| usize::try_from(size).ok());
        let (unpacked, packed) = (size(2).context("a page has no size")?, size(3).context("a page has no size")?);
        let page = bytes.get(at + taken..).and_then(|rest| rest.get(..packed)).context("a page ends beyond its column")?;
        at += taken + packed;
        match header.number(1) {
            Some(0) => {
                column.extend(first_version(&header, &unpack(page, chunk.codec, unpacked)?, kind, levels, dictionary.as_ref())?)
            }
            Some(2) => {
                let about = header.field(7).context("a dictionary has no description")?;
                let count = usize::try_from(about.number(1).unwrap_or(0))?;
                dictionary = Some(pages::plain_bytes(&unpack(page, chunk.codec, unpacked)?, count)?);
            }
            Some(3) => column.extend(second_version(&header, page, chunk.codec, unpacked, kind, levels, dictionary.as_ref())?),
            _ => {}
        }
        ensure!(column.len() <= chunk.values, "it has more values than it says");
    }
    Ok(column)
}

fn first_version(header: &Value, bytes: &[u8], kind: i64, levels: u32, dictionary: Option<&pages::Values>) -> Result<Column> {
    let about = header.field(5).context("a page has no description")?;
    let count = count(about)?;
    let (there, taken) = match levels {
        0 => (vec![0; count], 0),
        _ => pages::prefixed_runs(bytes, bits_of(levels), count)?,
    };
    place(&there, levels, |count| values(&bytes[taken..], about.number(2), kind, count, dictionary))
}

fn second_version(
    header: &Value,
    page: &[u8],
    codec: i64,
    unpacked: usize,
    kind: i64,
    levels: u32,
    dictionary: Option<&pages::Values>,
) -> Result<Column> {
    let about = header.field(8).context("a page has no description")?;
    let length = |field| about.number(field).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let (defined, repeated) = (length(5), length(6));
    ensure!(repeated == 0, "it has lists");
    let (own, rest) = page.split_at_checked(defined).context("a page ends early")?;
    let there = if levels == 0 { vec![0; count(about)?] } else { pages::runs(own, bits_of(levels), count(about)?)? };
    let rest = match about.flag(7) {
        Some(false) => rest.to_vec(),
        _ => unpack(rest, codec, unpacked.saturating_sub(defined))?,
    };
    place(&there, levels, |count| values(&rest, about.number(4), kind, count, dictionary))
}

/// The number of values that a page says it has. A value takes a bit of levels or a run at the least, but runs may be long.
fn count(about: &Value) -> Result<usize> {
    let count = usize::try_from(about.number(1).context("a page has no number of values")?)?;
    ensure!(count <= PAGE_BYTES_MAX / 64, "a page claims {count} values");
    Ok(count)
}

/// Puts values where their level says that they are there.
fn place(there: &[u32], levels: u32, values: impl FnOnce(usize) -> Result<pages::Values>) -> Result<Column> {
    let count = there.iter().filter(|level| **level == levels).count();
    let mut values = values(count)?.into_iter();
    Ok(there.iter().map(|level| if *level == levels { values.next() } else { None }).collect())
}

fn values(
    bytes: &[u8],
    encoding: Option<i64>,
    kind: i64,
    count: usize,
    dictionary: Option<&pages::Values>,
) -> Result<pages::Values> {
    match (encoding, kind) {
        (Some(0), 0) => pages::plain_flags(bytes, count),
        (Some(3), 0) => Ok(pages::prefixed_runs(bytes, 1, count)?.0.into_iter().map(|flag| vec![flag as u8]).collect()),
        (Some(0), _) => pages::plain_bytes(bytes, count),
        (Some(2 | 8), _) => pages::by_dictionary(bytes, count, dictionary),
        (other, _) => bail!("it has the encoding {}, which is not read", other.unwrap_or(-1)),
    }
}

/// Bits of a level from 0 to this.
fn bits_of(levels: u32) -> u32 {
    u32::BITS - levels.leading_zeros()
}

fn unpack(bytes: &[u8], codec: i64, length: usize) -> Result<Vec<u8>> {
    ensure!(length <= PAGE_BYTES_MAX, "a page has {length} bytes; at most {PAGE_BYTES_MAX} can be read");
    let unpacked = match codec {
        0 => bytes.to_vec(),
        1 => {
            ensure!(snap::raw::decompress_len(bytes)? == length, "a page has another length than it says");
            snap::raw::Decoder::new().decompress_vec(bytes)?
        }
        2 => {
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(bytes).take(length as u64 + 1).read_to_end(&mut unpacked)?;
            unpacked
        }
        other => {
            let name = match other {
                4 => "Brotli",
                5 | 7 => "LZ4",
                6 => "Zstandard",
                _ => "another way",
            };
            bail!("it is compressed by {name}; write it again with Snappy, gzip or without compression")
        }
    };
    ensure!(unpacked.len() == length, "a page has another length than it says");
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gedit_mini/train.parquet");

    fn read(path: &Path) -> Result<Vec<Column>> {
        let table = Table::open(path)?;
        let names: Vec<String> = table.columns.iter().map(|(name, ..)| name.clone()).collect();
        let groups = 0..table.groups.len();
        groups
            .flat_map(|group| names.iter().map(move |name| (group, name)))
            .map(|(group, name)| table.column(group, name))
            .collect()
    }

    /// Whatever bytes are changed or cut off, it ends in an error or in columns.
    #[test]
    fn damaged_files_are_errors_and_never_panic() {
        let whole = std::fs::read(WHOLE).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.parquet");
        let read_bytes = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path)
        };
        read_bytes(&whole).unwrap();
        let mut refused = 0;
        for at in 0..3000 {
            let mut bytes = whole.clone();
            // The footer, and pages near the beginning.
            let place = if at % 2 == 0 { at * 5 % 4000 } else { whole.len() - 1 - at * 3 % 6000 };
            bytes[place] ^= [0xff, 0x01, 0x80][at % 3];
            refused += usize::from(read_bytes(&bytes).is_err());
        }
        assert!(refused > 100, "{refused}");
        assert!(read_bytes(&whole[..whole.len() - 1]).is_err() && read_bytes(b"").is_err());
    }

    #[test]
    fn metadata_and_pages_have_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.parquet");
        for (size, words) in [(FOOTER_BYTES_MAX as u32, "outside the file"), (FOOTER_BYTES_MAX as u32 + 1, "at most")] {
            std::fs::write(&path, [*b"PAR1", [0; 4], size.to_le_bytes(), *b"PAR1"].concat()).unwrap();
            let error = format!("{:#}", Table::open(&path).map(drop).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
        assert!(unpack(&[], 0, PAGE_BYTES_MAX + 1).unwrap_err().to_string().contains("at most"));
        assert!(!unpack(&[], 0, PAGE_BYTES_MAX).unwrap_err().to_string().contains("at most"));
        assert!(unpack(&[], 6, 1).unwrap_err().to_string().contains("Zstandard"));
    }
}
