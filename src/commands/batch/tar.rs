//! Archives as WebDataset reads them: plain ustar, the same bytes for the same members.

use std::io::{self, Write};

use anyhow::{Result, ensure};

/// Bytes of a block: a header has one, contents fill up their last.
const BLOCK: usize = 512;

/// Largest member: what eleven octal digits can say.
const MEMBER_BYTES_MAX: u64 = 8_589_934_591;

/// Writes an archive's members one after another.
pub struct Tar<W> {
    out: W,
    /// Bytes so far.
    pub bytes: u64,
}

impl<W: Write> Tar<W> {
    /// An archive without members.
    pub fn new(out: W) -> Tar<W> {
        Tar { out, bytes: 0 }
    }

    /// Adds a member, of no owner and no time.
    ///
    /// # Errors
    /// A name of more than 100 bytes, contents of more than 8 GiB, or what writing reports.
    pub fn add(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        ensure!(name.len() <= 100, "the name {name:?} has more than 100 bytes");
        ensure!(contents.len() as u64 <= MEMBER_BYTES_MAX, "{name:?} has more than {MEMBER_BYTES_MAX} bytes");
        self.write(&header(name, contents.len()))?;
        self.write(contents)?;
        let rest = contents.len().next_multiple_of(BLOCK) - contents.len();
        Ok(self.write(&vec![0; rest])?)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// What writing reports.
    pub fn end(mut self) -> io::Result<W> {
        self.write(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

fn header(name: &str, length: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        "); // the sum is taken with spaces in its own place
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn members_are_what_tar_finds() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = Tar::new(Vec::new());
        let contents = [b"one".to_vec(), vec![7; BLOCK], vec![]];
        for (name, contents) in ["0.source.png", "0.target.png", "0.json"].iter().zip(&contents) {
            tar.add(name, contents).unwrap();
        }
        assert!(tar.add(&"x".repeat(101), b"").is_err() && tar.add(&"x".repeat(100), b"").is_ok());
        let bytes = tar.end().unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);
        let path = dir.path().join("a.tar");
        std::fs::write(&path, bytes).unwrap();
        let ran = Command::new("tar").arg("-xf").arg(&path).arg("-C").arg(dir.path()).output();
        let Ok(ran) = ran else { return eprintln!("skipped: there is no tar here") };
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(std::fs::read(dir.path().join("0.source.png")).unwrap(), contents[0]);
        assert_eq!(std::fs::read(dir.path().join("0.target.png")).unwrap(), contents[1]);
        assert_eq!(std::fs::read(dir.path().join("0.json")).unwrap(), contents[2]);
    }
}
