//! Pictures that are the same or nearly so: time is saved before it is spent.

use std::collections::HashMap;

use super::key::sha256;
use super::ledger::Known;
use crate::image::{self, Filter, Rgb};

/// Bits in which the digests of two pictures may differ that count as near.
const NEAR_BITS: u32 = 6;

/// Digests of a picture's pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Another for every other picture.
    pub exact: String,
    /// 64 bits, each whether a place of the picture, in grey, is darker than the one to its right.
    pub near: u64,
}

impl Digests {
    /// Those of a picture.
    pub fn of(picture: &Rgb) -> Digests {
        let size = [picture.width as u64, picture.height as u64].map(u64::to_le_bytes).concat();
        let small = image::resize(picture, 9, 8, Filter::Bicubic);
        let grey: Vec<u32> =
            small.data.chunks_exact(3).map(|p| 299 * u32::from(p[0]) + 587 * u32::from(p[1]) + 114 * u32::from(p[2])).collect();
        let bits = grey.chunks_exact(9).flat_map(|row| row.windows(2).map(|pair| pair[0] < pair[1]));
        Digests { exact: sha256(&[&size[..], &picture.data].concat()), near: bits.fold(0, |all, bit| all << 1 | u64::from(bit)) }
    }
}

/// The pictures that were seen, with what was to be done with them.
#[derive(Debug, Default)]
pub struct Seen {
    exact: HashMap<(String, String), String>,
    /// By prompt: digests and ids.
    near: HashMap<String, Vec<(u64, String)>>,
}

impl Seen {
    /// Those that earlier runs have made.
    pub fn of<'a>(known: impl Iterator<Item = &'a Known>) -> Seen {
        let mut seen = Seen::default();
        for known in known {
            let prompt = known.line.get("prompt").and_then(|prompt| prompt.as_str());
            let near = known.near.as_deref().and_then(|near| u64::from_str_radix(near, 16).ok());
            if let (Some(prompt), Some(exact), Some(near)) = (prompt, known.pixels.clone(), near) {
                seen.take(&known.id, prompt, &Digests { exact, near });
            }
        }
        seen
    }

    /// The first item whose picture is the same or near and that has the same prompt, and whether it is the same picture. If there is
    /// none this item is remembered.
    pub fn duplicate_of(&mut self, id: &str, prompt: &str, digests: &Digests) -> Option<(String, bool)> {
        let exact = self.exact.get(&(prompt.to_string(), digests.exact.clone()));
        let near = || {
            let near = |other: &&(u64, String)| (other.0 ^ digests.near).count_ones() <= NEAR_BITS;
            Some(self.near.get(prompt)?.iter().find(near)?.1.clone())
        };
        let found = exact.map(|id| (id.clone(), true)).or_else(|| Some((near()?, false)));
        match found {
            Some((other, _)) if other == id => None,
            Some(found) => Some(found),
            None => {
                self.take(id, prompt, digests);
                None
            }
        }
    }

    fn take(&mut self, id: &str, prompt: &str, digests: &Digests) {
        self.exact.entry((prompt.into(), digests.exact.clone())).or_insert_with(|| id.into());
        self.near.entry(prompt.into()).or_default().push((digests.near, id.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(value: impl Fn(usize, usize) -> u8) -> Rgb {
        let data = (0..72).flat_map(|y| (0..90).map(move |x| (x, y))).flat_map(|(x, y)| [value(x, y); 3]).collect();
        Rgb { width: 90, height: 72, data }
    }

    #[test]
    fn the_same_and_similar_pictures_are_found_for_one_prompt() {
        let wave = |x: usize, y: usize| (128.0 + 100.0 * ((x as f64 / 12.0).sin() * (y as f64 / 9.0).cos())) as u8;
        let (first, brighter, other) =
            (picture(wave), picture(|x, y| wave(x, y).saturating_add(9)), picture(|x, y| wave(y + 9, x)));
        let mut seen = Seen::default();
        let mut duplicate = |id: &str, prompt: &str, picture: &Rgb| seen.duplicate_of(id, prompt, &Digests::of(picture));
        assert_eq!(duplicate("0", "red", &first), None);
        assert_eq!(duplicate("1", "red", &first), Some(("0".into(), true)));
        assert_eq!(duplicate("2", "red", &brighter), Some(("0".into(), false)));
        assert_eq!(duplicate("3", "blue", &first), None, "another prompt is another edit");
        assert_eq!(duplicate("4", "red", &other), None);
        assert_eq!(duplicate("0", "red", &first), None, "an item is no duplicate of itself");
    }

    #[test]
    fn a_gradient_has_the_bits_of_its_direction() {
        let near = |value: fn(usize, usize) -> u8| Digests::of(&picture(value)).near;
        assert_eq!((near(|x, _| 2 * x as u8), near(|x, _| 255 - 2 * x as u8)), (u64::MAX, 0));
        let half = near(|x, y| if y < 36 { 2 * x as u8 } else { 255 - 2 * x as u8 });
        assert_eq!(half, 0xffff_ffff_0000_0000);
    }
}
