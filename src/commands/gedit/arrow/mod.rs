//! Arrow IPC streams, as `datasets` writes them with `save_to_disk`: texts, flags, and where in the file binary values lie.
//!
//! Read are streams (not files that begin with `ARROW1`) without compression and dictionaries, of texts, binary values, flags, numbers
//! and structures of these. All else is refused by name.

mod flat;

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use self::flat::Table;
use super::read_range;

/// Most bytes of a message's metadata.
const METADATA_BYTES_MAX: usize = 16 << 20;
/// Most structures within structures.
const DEPTH_MAX: usize = 8;

/// What stands before each message.
const CONTINUES: u32 = 0xffff_ffff;

/// The values of a column, one for each row; none: null.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Column {
    /// Texts.
    Text(Vec<Option<String>>),
    /// Flags.
    Flag(Vec<Option<bool>>),
    /// Where in the file the bytes lie.
    Bytes(Vec<Option<Range<u64>>>),
}

/// What a field's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Bytes,
    Flag,
    /// Of fixed width: passed over.
    Number,
    Structure,
    Null,
    /// With offsets of 64 bits.
    LargeText,
    LargeBytes,
}

struct Field {
    name: String,
    kind: Kind,
    children: Vec<Field>,
}

/// The columns of all batches in a file, by name; members of structures as `a.b`.
pub(super) fn read(path: &Path) -> Result<HashMap<String, Column>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let (mut at, mut fields, mut columns) = (0, None, HashMap::new());
    while let Some((metadata, body)) = message(&file, at, length)? {
        let metadata = read_range(&file, metadata.start, (metadata.end - metadata.start) as usize)?;
        let root = Table::root(&metadata)?;
        let body_length = u64::try_from(root.long(3)?)?;
        let end = body.checked_add(body_length).filter(|end| *end <= length).context("a message ends beyond the file")?;
        let header = root.table(2)?.context("a message has no header")?;
        match root.byte(1)? {
            1 => fields = Some(header.tables(1)?.into_iter().map(|field| Field::of(field, 0)).collect::<Result<Vec<_>>>()?),
            3 => {
                let fields = fields.as_ref().context("rows come before the columns are named")?;
                Batch::new(&file, header, body..end)?.read(fields, &mut columns)?;
            }
            2 => bail!("it has dictionaries, which are not read"),
            other => bail!("it has a message of kind {other}, which is not read"),
        }
        at = end;
    }
    ensure!(fields.is_some(), "it holds no message");
    Ok(columns)
}

/// Where the metadata of the message at a place lies, and where its body begins; none: the stream has ended.
fn message(file: &File, at: u64, length: u64) -> Result<Option<(Range<u64>, u64)>> {
    if at + 8 > length {
        return Ok(None);
    }
    let prefix = read_range(file, at, 8)?;
    ensure!(!prefix.starts_with(b"ARROW1"), "it is an Arrow file, not a stream; write it with datasets' save_to_disk");
    let [first, size] = [0, 4].map(|i| u32::from_le_bytes([prefix[i], prefix[i + 1], prefix[i + 2], prefix[i + 3]]));
    ensure!(first == CONTINUES, "it is no Arrow stream");
    if size == 0 {
        return Ok(None);
    }
    ensure!(
        size as usize <= METADATA_BYTES_MAX,
        "a message's metadata has {size} bytes; at most {METADATA_BYTES_MAX} can be read"
    );
    let (start, end) = (at + 8, at + 8 + u64::from(size));
    ensure!(end <= length, "a message ends beyond the file");
    Ok(Some((start..end, end)))
}

impl Field {
    fn of(field: Table, depth: usize) -> Result<Field> {
        ensure!(depth <= DEPTH_MAX, "it has more than {DEPTH_MAX} structures within structures");
        let name = field.text(0)?.unwrap_or_default().to_string();
        ensure!(field.table(4)?.is_none(), "the column {name} has a dictionary, which is not read");
        let kind = match field.byte(2)? {
            1 => Kind::Null,
            2 | 3 | 7..=11 | 15 | 18 => Kind::Number,
            4 => Kind::Bytes,
            5 => Kind::Text,
            6 => Kind::Flag,
            13 => Kind::Structure,
            19 => Kind::LargeBytes,
            20 => Kind::LargeText,
            other => bail!("the column {name} is of the Arrow type {other}, which is not read"),
        };
        let children = field.tables(5)?.into_iter().map(|child| Field::of(child, depth + 1)).collect::<Result<_>>()?;
        Ok(Field { name, kind, children })
    }
}

/// A batch of rows: its nodes and buffers come in the order of the fields, those of structures before their members.
struct Batch<'a> {
    file: &'a File,
    body: Range<u64>,
    rows: usize,
    nodes: std::vec::IntoIter<[i64; 2]>,
    buffers: std::vec::IntoIter<[i64; 2]>,
}

impl<'a> Batch<'a> {
    fn new(file: &'a File, header: Table, body: Range<u64>) -> Result<Batch<'a>> {
        ensure!(header.table(3)?.is_none(), "its rows are compressed; write them without compression");
        let rows = usize::try_from(header.long(0)?)?;
        // A row takes a bit of some buffer at the least.
        ensure!(rows as u64 <= 8 * (body.end - body.start), "a batch claims {rows} rows, which do not fit in it");
        let (nodes, buffers) = (header.pairs(1)?.into_iter(), header.pairs(2)?.into_iter());
        Ok(Batch { file, body, rows, nodes, buffers })
    }

    fn read(mut self, fields: &[Field], columns: &mut HashMap<String, Column>) -> Result<()> {
        let all = vec![true; self.rows];
        fields.iter().try_for_each(|field| self.field(field, "", &all, columns))
    }

    /// Reads a field's values of the rows whose structure is there.
    fn field(&mut self, field: &Field, within: &str, there: &[bool], columns: &mut HashMap<String, Column>) -> Result<()> {
        let name = if within.is_empty() { field.name.clone() } else { format!("{within}.{}", field.name) };
        let [length, nulls] = self.nodes.next().context("a batch lacks columns")?;
        ensure!(usize::try_from(length)? == self.rows, "the column {name} has {length} rows of {}", self.rows);
        if field.kind == Kind::Null {
            return Ok(());
        }
        let valid = self.buffer()?;
        let mut there = there.to_vec();
        if nulls > 0 {
            let bits = self.bits(&valid).with_context(|| format!("the column {name}"))?;
            there.iter_mut().zip(bits).for_each(|(there, bit)| *there &= bit);
        }
        let column = match field.kind {
            Kind::Structure => {
                return field.children.iter().try_for_each(|child| self.field(child, &name, &there, columns));
            }
            Kind::Number | Kind::Null => {
                self.buffer()?;
                return Ok(());
            }
            Kind::Flag => {
                let buffer = self.buffer()?;
                let bits = self.bits(&buffer)?;
                Column::Flag(there.iter().zip(bits).map(|(there, bit)| there.then_some(bit)).collect())
            }
            kind => {
                let large = matches!(kind, Kind::LargeText | Kind::LargeBytes);
                let places = self.places(large, &there).with_context(|| format!("the column {name}"))?;
                match kind {
                    Kind::Bytes | Kind::LargeBytes => Column::Bytes(places),
                    _ => Column::Text(places.into_iter().map(|place| self.text(place)).collect::<Result<_>>()?),
                }
            }
        };
        match (columns.get_mut(&name), column) {
            (Some(Column::Text(all)), Column::Text(more)) => all.extend(more),
            (Some(Column::Flag(all)), Column::Flag(more)) => all.extend(more),
            (Some(Column::Bytes(all)), Column::Bytes(more)) => all.extend(more),
            (None, column) => drop(columns.insert(name, column)),
            (Some(_), _) => bail!("the column {name} is there twice"),
        }
        Ok(())
    }

    /// Where the next buffer lies in the file.
    fn buffer(&mut self) -> Result<Range<u64>> {
        let [offset, length] = self.buffers.next().context("a batch lacks buffers")?;
        let (offset, length) = (u64::try_from(offset)?, u64::try_from(length)?);
        let start = self.body.start.checked_add(offset);
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        range.filter(|range| range.end <= self.body.end).context("a buffer lies outside its message")
    }

    fn bits(&self, buffer: &Range<u64>) -> Result<Vec<bool>> {
        let needed = self.rows.div_ceil(8);
        ensure!(buffer.end - buffer.start >= needed as u64, "a buffer of flags is too short");
        let bytes = read_range(self.file, buffer.start, needed)?;
        Ok((0..self.rows).map(|row| bytes[row / 8] >> (row % 8) & 1 == 1).collect())
    }

    /// Where each row's value lies: from its own offset to the next one.
    fn places(&mut self, large: bool, there: &[bool]) -> Result<Vec<Option<Range<u64>>>> {
        let (offsets, values) = (self.buffer()?, self.buffer()?);
        if self.rows == 0 {
            return Ok(vec![]);
        }
        let width = if large { 8 } else { 4 };
        let needed = (self.rows + 1) * width;
        ensure!(offsets.end - offsets.start >= needed as u64, "a buffer of offsets is too short");
        let bytes = read_range(self.file, offsets.start, needed)?;
        let ends: Vec<u64> = bytes
            .chunks_exact(width)
            .map(|chunk| chunk.iter().rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte)))
            .collect();
        let place = |(pair, there): (&[u64], &bool)| {
            let end = values.start.checked_add(pair[1]).filter(|end| pair[0] <= pair[1] && *end <= values.end);
            let range = values.start.saturating_add(pair[0])..end.context("a value lies outside its buffer")?;
            Ok(there.then_some(range))
        };
        ends.windows(2).zip(there).map(place).collect()
    }

    fn text(&self, place: Option<Range<u64>>) -> Result<Option<String>> {
        let Some(place) = place else { return Ok(None) };
        let bytes = read_range(self.file, place.start, (place.end - place.start) as usize)?;
        Ok(Some(String::from_utf8(bytes).context("a text is not UTF-8")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gedit_mini/data-00000-of-00002.arrow");

    /// Whatever bytes are changed or cut off, it ends in an error or in columns whose places lie in the file.
    #[test]
    fn damaged_streams_are_errors_and_never_panic() {
        let whole = std::fs::read(SHARD).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.arrow");
        let read_bytes = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path)
        };
        let sound = read_bytes(&whole).unwrap();
        assert!(sound.len() >= 7, "{:?}", sound.keys());
        let mut refused = 0;
        for at in 0..2000 {
            let mut bytes = whole.clone();
            let place = at * 7 % 6000.min(bytes.len());
            bytes[place] ^= [0xff, 0x01, 0x80][at % 3];
            match read_bytes(&bytes) {
                Err(_) => refused += 1,
                Ok(columns) => {
                    for column in columns.values() {
                        if let Column::Bytes(places) = column {
                            assert!(places.iter().flatten().all(|place| place.end <= bytes.len() as u64));
                        }
                    }
                }
            }
        }
        assert!(refused > 100, "{refused}");
        for length in (8..whole.len()).step_by(97) {
            let _ = read_bytes(&whole[..length]);
        }
        let error = |bytes: &[u8]| format!("{:#}", read_bytes(bytes).unwrap_err());
        assert!(error(b"ARROW1\0\0rest").contains("not a stream"));
        assert!(error(b"something else").contains("no Arrow stream"));
        assert!(error(b"").contains("no message"));
    }

    /// So many structures within each other: tables of a kind and a list of one member, behind the list of their fields.
    fn nested(count: usize) -> Vec<u8> {
        let fields = [16u16, 12, 0, 0, 4, 0, 0, 8];
        let mut bytes = 20u32.to_le_bytes().to_vec();
        bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        for level in 0..count {
            let table = bytes.len() as i32;
            bytes.extend((table - 4).to_le_bytes());
            bytes.extend([13, 0, 0, 0]);
            bytes.extend(4u32.to_le_bytes());
            bytes.extend(u32::from(level + 1 < count).to_le_bytes());
            bytes.extend(4u32.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn structures_within_structures_have_a_limit() {
        let field = |count: usize| Field::of(Table::root(&nested(count)).unwrap(), 0);
        let outermost = field(DEPTH_MAX + 1).unwrap();
        let mut innermost = &outermost;
        for _ in 0..DEPTH_MAX {
            innermost = &innermost.children[0];
        }
        assert!(innermost.children.is_empty());
        let error = field(DEPTH_MAX + 2).map(drop).unwrap_err().to_string();
        assert!(error.contains("structures within structures"), "{error}");
    }

    #[test]
    fn metadata_has_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.arrow");
        for (size, words) in [(METADATA_BYTES_MAX as u32, "ends beyond the file"), (METADATA_BYTES_MAX as u32 + 1, "at most")] {
            std::fs::write(&path, [CONTINUES.to_le_bytes(), size.to_le_bytes(), [0; 4]].concat()).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
