//! Reading a PNG file without what is not used of it, so that metadata takes no memory, however much there is.

use std::collections::HashSet;
use std::io::{self, Read};

use super::chunks::{SIGNATURE, used_keyword};

/// Chunks of the picture itself besides its pixels, and the largest of them, in bytes: a palette has 256 colours.
const PICTURE: [&[u8; 4]; 5] = [b"IHDR", b"PLTE", b"tRNS", b"acTL", b"IEND"];
const PICTURE_BYTES_MAX: usize = 3 * 256;

/// Metadata that is used; of texts, those with some keywords.
const METADATA: [&[u8; 4]; 6] = [b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf"];
const TEXTS: [&[u8; 4]; 3] = [b"tEXt", b"zTXt", b"iTXt"];

/// Largest chunk of metadata that is kept, in bytes; one of a kind is.
const METADATA_BYTES_MAX: usize = 8 << 20;

/// The bytes of a PNG file, whose signature begins it, but for chunks that are not used.
///
/// # Errors
///
/// If the file cannot be read. That it ends early is none.
pub(in crate::image::read) fn read(mut file: impl Read) -> io::Result<Vec<u8>> {
    let (mut kept, mut seen) = (Vec::new(), HashSet::new());
    file.by_ref().take(SIGNATURE.len() as u64).read_to_end(&mut kept)?;
    loop {
        let start = kept.len();
        file.by_ref().take(8).read_to_end(&mut kept)?;
        let Some(head) = kept[start..].first_chunk::<8>() else { return Ok(kept) };
        let size = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = [head[4], head[5], head[6], head[7]];
        // Content and checksum.
        let mut rest = file.by_ref().take(size as u64 + 4);
        let is_text = TEXTS.contains(&&kind);
        if kind == *b"IDAT" || (PICTURE.contains(&&kind) && size <= PICTURE_BYTES_MAX) {
            rest.read_to_end(&mut kept)?;
        } else if is_text || METADATA.contains(&&kind) {
            rest.by_ref().take(METADATA_BYTES_MAX as u64 + 4).read_to_end(&mut kept)?;
            let cut = size > METADATA_BYTES_MAX;
            if cut {
                kept[start..start + 4].copy_from_slice(&(METADATA_BYTES_MAX as u32).to_be_bytes());
            }
            let purpose = if is_text { used_keyword(&kept[start + 8..]) } else { Some(&kind[..]) };
            // The beginning of a profile shows that it is too large.
            let used = purpose.is_some_and(|purpose| seen.insert(purpose.to_vec())) && (!cut || kind == *b"iCCP");
            kept.truncate(if used { kept.len() } else { start });
        } else {
            kept.truncate(start);
        }
        io::copy(&mut rest, &mut io::sink())?;
        if kind == *b"IEND" {
            return Ok(kept);
        }
    }
}
