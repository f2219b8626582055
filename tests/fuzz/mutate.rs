//! Mutations of a seed: of its bytes, and of what looks like JSON in it. A case depends on its number alone.

/// Numbers that parsers trip over.
const NUMBERS: [&str; 40] = [
    "0",
    "1",
    "2",
    "-1",
    "3",
    "7",
    "8",
    "16",
    "28",
    "64",
    "127",
    "128",
    "255",
    "256",
    "1001",
    "65535",
    "65536",
    "100000000",
    "1048577",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551608",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "1.5",
    "-0",
    "1e-400",
    "1e308",
    "\"1\"",
    "null",
    "true",
    "[]",
    "{}",
    "[1]",
    "\"\"",
];

/// Bytes with a meaning somewhere.
const BYTES: [u8; 12] = [0, 0xff, 0x7f, 0x80, b'{', b'}', b'[', b']', b',', b':', b'"', b'\\'];

/// Extremes of binary fields, of one, two or four bytes.
const FIELDS: [u32; 14] = [0, 1, 2, 7, 8, 255, 256, 0x7fff, 0x8000, 0xffff, 10_000, 100_000, 0x7fff_ffff, 0xffff_ffff];

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// One to five mutations of a text; `words` are those of the format.
pub fn text(rng: &mut Rng, seed: &[u8], words: &[&str]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + rng.below(5) {
        match rng.below(10) {
            0..3 => number(rng, &mut bytes),
            3 | 4 => string(rng, &mut bytes, words),
            5 => {
                let at = rng.below(bytes.len() + 1);
                bytes.splice(at..at, rng.of(words).bytes());
            }
            _ => span(rng, &mut bytes),
        }
    }
    bytes
}

/// One to five mutations of a binary file; `others` are files whose ends it may get.
pub fn binary(rng: &mut Rng, seed: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + rng.below(5) {
        match rng.below(8) {
            0..4 => field(rng, &mut bytes),
            4 => {
                let other = &others[rng.below(others.len())];
                let (keep, from) = (rng.below(bytes.len() + 1), rng.below(other.len()));
                bytes.truncate(keep);
                bytes.extend(&other[from..]);
            }
            _ => span(rng, &mut bytes),
        }
    }
    bytes
}

/// Changes, cuts, repeats or swaps bytes.
fn span(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        bytes.push(rng.next() as u8);
    }
    let at = rng.below(bytes.len());
    let length = (1 + rng.below(64)).min(bytes.len() - at);
    match rng.below(7) {
        0 => bytes[at] = rng.next() as u8,
        1 => bytes[at] ^= 1 << rng.below(8),
        2 => drop(bytes.drain(at..at + length)),
        3 => {
            let (copy, to) = (bytes[at..at + length].to_vec(), rng.below(bytes.len() + 1));
            bytes.splice(to..to, copy);
        }
        4 => bytes.truncate(at),
        5 => {
            let to = rng.below(bytes.len() - length + 1);
            (0..length).for_each(|i| bytes.swap(at + i, to + i));
        }
        _ => (0..1 + rng.below(8)).for_each(|_| {
            let at = rng.below(bytes.len());
            bytes[at] = rng.of(&BYTES);
        }),
    }
}

/// Sets a field of one, two or four bytes to an extreme, in either order.
fn field(rng: &mut Rng, bytes: &mut [u8]) {
    let (width, value, at) = (rng.of(&[1, 2, 4]), rng.of(&FIELDS), rng.below(bytes.len() + 1));
    let (little, big) = (value.to_le_bytes(), value.to_be_bytes());
    let chosen = if rng.below(2) == 0 { &little[..width] } else { &big[4 - width..] };
    bytes.iter_mut().skip(at).zip(chosen).for_each(|(byte, new)| *byte = *new);
}

/// Replaces a number in digits.
fn number(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
    if digits.is_empty() {
        return;
    }
    let start = rng.of(&digits);
    let length = bytes[start..].iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count();
    bytes.splice(start..start + length, rng.of(&NUMBERS).bytes());
}

/// Replaces a string in quotes by a word.
fn string(rng: &mut Rng, bytes: &mut Vec<u8>, words: &[&str]) {
    let quotes: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] == b'"').collect();
    if quotes.len() < 2 {
        return;
    }
    let first = rng.below(quotes.len() - 1);
    bytes.splice(quotes[first]..=quotes[first + 1], format!("\"{}\"", rng.of(words)).bytes());
}
