//! Who may ask: keys, of which only digests are kept, compared in constant time.

use std::fmt;

use anyhow::{Result, bail, ensure};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Least letters of a key: what is shorter can be guessed.
const LEAST: usize = 16;

/// Digests of the keys; none at all: anybody may ask.
#[derive(Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// Keys, one a line or separated by commas; what follows `#` on a line is left out.
    ///
    /// # Errors
    /// No key, or one that is too short or has letters that no header can hold.
    pub fn parse(text: &str) -> Result<Keys> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let keys: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).filter(|key| !key.is_empty()).collect();
        ensure!(!keys.is_empty(), "there is no key in it; write one a line");
        for (number, key) in (1..).zip(&keys) {
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                bail!("key {number} has spaces or letters that no header can hold; use plain ones");
            }
            ensure!(key.len() >= LEAST, "key {number} has {} letters; use at least {LEAST} (openssl rand -hex 32)", key.len());
        }
        Ok(Keys(keys.into_iter().map(digest).collect()))
    }

    /// Whether anybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `Authorization` has one of the keys.
    pub fn allow(&self, authorization: Option<&str>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Some((scheme, given)) = authorization.and_then(|text| text.split_once(' ')) else { return false };
        let given = digest(given.trim());
        let found = self.0.iter().fold(subtle::Choice::from(0), |found, key| found | key.ct_eq(&given));
        scheme.eq_ignore_ascii_case("bearer") && bool::from(found)
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_key_of_the_list_opens() {
        let keys = Keys::parse("# of the team\naaaaaaaaaaaaaaaa # hers\nbbbbbbbbbbbbbbbb,cccccccccccccccc\n").unwrap();
        for key in ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"] {
            assert!(keys.allow(Some(&format!("Bearer {key}"))) && keys.allow(Some(&format!("bearer  {key}"))));
            assert!(!keys.allow(Some(&format!("Basic {key}"))) && !keys.allow(Some(key)));
        }
        for given in [None, Some(""), Some("Bearer "), Some("Bearer aaaaaaaaaaaaaaab"), Some("Bearer aaaaaaaaaaaaaaaa1")] {
            assert!(!keys.allow(given), "{given:?}");
        }
        assert!(Keys::default().allow(None));
        assert!(!format!("{keys:?}").contains("aaaa"));
    }

    #[test]
    fn keys_that_protect_nothing_are_refused() {
        for (text, word) in [("", "no key"), ("# none\n", "no key"), ("short", "at least 16"), ("aaaaaaaa aaaaaaaaaaa", "spaces")]
        {
            assert!(Keys::parse(text).unwrap_err().to_string().contains(word), "{text:?}");
        }
    }
}
