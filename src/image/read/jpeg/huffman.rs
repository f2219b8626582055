//! Huffman codes of a JPEG, read bit by bit.

/// Bits that are looked up at once.
const LOOKED_UP: u32 = 9;

/// A code table.
pub(super) struct Table {
    /// For the next 9 bits: length of the code that they begin with, and its symbol; length 0: a longer one.
    short: [(u8, u8); 1 << LOOKED_UP],
    /// For each length of 1 to 16 bits: one more than its last code; 0: there is none.
    end: [u32; 17],
    /// For each length: what is to be added to a code to get the place of its symbol.
    offset: [i32; 17],
    symbols: Vec<u8>,
}

impl Table {
    /// The table at the beginning of these bytes, and what follows it. None if no such codes can exist.
    pub(super) fn read(bytes: &[u8]) -> Option<(Table, &[u8])> {
        let (counts, rest) = bytes.split_first_chunk::<16>()?;
        let total = counts.iter().map(|count| usize::from(*count)).sum();
        let symbols = rest.get(..total).filter(|_| total <= 256)?.to_vec();
        let mut table = Table { short: [(0, 0); 1 << LOOKED_UP], end: [0; 17], offset: [0; 17], symbols };
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=16 {
            let count = usize::from(counts[length - 1]);
            table.offset[length] = place as i32 - code as i32;
            for symbol in &table.symbols[place..place + count] {
                if let Some(free) = LOOKED_UP.checked_sub(length as u32) {
                    let from = (code << free) as usize;
                    table.short.get_mut(from..from + (1 << free))?.fill((length as u8, *symbol));
                }
                code += 1;
            }
            place += count;
            table.end[length] = if count > 0 { code } else { 0 };
            if code > 1 << length {
                return None;
            }
            code <<= 1;
        }
        Some((table, &rest[total..]))
    }
}

/// The data ends before so many bits.
pub(super) struct Missing;

/// The bits of coded data, up to a marker.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, the first at the top; zeros behind them.
    buffer: u64,
    count: u32,
    /// The last byte that was taken into the buffer, and how many equal ones came one after another.
    last: u8,
    run: u32,
}

/// How coded data ends.
pub(super) struct End {
    /// Whole bytes that have not been read.
    pub(super) left_over: usize,
    /// What fills up the last byte.
    pub(super) padding: Padding,
    /// Where the next marker is.
    pub(super) at: usize,
}

/// What fills up the last byte of coded data: ones by the standard, zeros by the habit of some writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Padding {
    None,
    Zeros,
    Ones,
    Mixed,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Bits<'a> {
        Bits { bytes, at, buffer: 0, count: 0, last: 0, run: 0 }
    }

    #[inline]
    fn fill(&mut self) {
        while self.count <= 56 {
            let Some(&byte) = self.bytes.get(self.at) else { return };
            if byte == 0xff {
                // A byte of FF is followed by 00; a marker is not.
                if self.bytes.get(self.at + 1) != Some(&0) {
                    return;
                }
                self.at += 1;
            }
            self.at += 1;
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
            self.run = if byte == self.last { self.run + 1 } else { 0 };
            self.last = byte;
        }
    }

    /// Whether the next bits stand among many equal bytes.
    pub(super) fn in_monotony(&self) -> bool {
        // Some of them may wait in the buffer.
        self.run >= 32
    }

    /// The next bits as a number, at most 16.
    #[inline]
    pub(super) fn take(&mut self, bits: u32) -> Result<u32, Missing> {
        if bits == 0 {
            return Ok(0);
        }
        if self.count < bits {
            self.fill();
        }
        let value = (self.buffer >> (64 - bits)) as u32;
        self.drop(bits)?;
        Ok(value)
    }

    /// The next symbol; none if no code begins so.
    #[inline]
    pub(super) fn symbol(&mut self, table: &Table) -> Result<Option<u8>, Missing> {
        if self.count < 16 {
            self.fill();
        }
        let (length, symbol) = table.short[(self.buffer >> (64 - LOOKED_UP)) as usize];
        if length > 0 {
            self.drop(length.into())?;
            return Ok(Some(symbol));
        }
        for length in LOOKED_UP + 1..=16 {
            let code = (self.buffer >> (64 - length)) as u32;
            if code < table.end[length as usize] {
                self.drop(length)?;
                return Ok(table.symbols.get((code as i32 + table.offset[length as usize]) as usize).copied());
            }
        }
        if self.count < 16 { Err(Missing) } else { Ok(None) }
    }

    #[inline]
    fn drop(&mut self, bits: u32) -> Result<(), Missing> {
        self.count = self.count.checked_sub(bits).ok_or(Missing)?;
        self.buffer <<= bits;
        Ok(())
    }

    /// Ends the data, of which less than a byte should be left.
    pub(super) fn close(mut self) -> End {
        let bits = self.count % 8;
        let rest = self.buffer.checked_shr(64 - bits).unwrap_or(0);
        let padding = match rest.count_ones() {
            _ if bits == 0 => Padding::None,
            0 => Padding::Zeros,
            ones if ones == bits => Padding::Ones,
            _ => Padding::Mixed,
        };
        let mut left_over = self.count as usize / 8;
        while let Some(&byte) = self.bytes.get(self.at) {
            match (byte, self.bytes.get(self.at + 1)) {
                (0xff, Some(0)) => self.at += 2,
                // Any number of FF may precede a marker.
                (0xff, Some(0xff)) => {
                    self.at += 1;
                    continue;
                }
                (0xff, _) => break,
                _ => self.at += 1,
            }
            left_over += 1;
        }
        End { left_over, padding, at: self.at }
    }

    /// Whether nothing follows, not even a marker.
    pub(super) fn at_end_of(&self, bytes: &[u8]) -> bool {
        self.at + 1 >= bytes.len()
    }
}
