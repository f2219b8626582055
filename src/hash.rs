//! FNV-1a, 64 bits: the one hash of this program, for names of cached files, checksums and the seeds of synthetic weights.

/// The hash of some bytes, the same on every machine and in every version.
pub fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_published_vectors() {
        let expected = [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)];
        expected.iter().for_each(|(text, hash)| assert_eq!(fnv1a64(text.as_bytes()), *hash, "{text}"));
    }
}
