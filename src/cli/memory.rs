//! The flag that bounds a GPU's memory.

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::error::usage;
use crate::pipeline::DeviceChoice;

/// `--max-vram`.
#[derive(Clone, Copy, Debug, Args)]
pub struct MemoryArgs {
    /// Most memory to take on the GPU, the driver's share included: 22GB, 20.5GB, 20GiB or 22000000000 [default: what is free]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = parse_bytes)]
    pub max_vram: Option<usize>,
}

impl MemoryArgs {
    /// Whether a limit means something where it runs.
    ///
    /// # Errors
    /// A usage error: a limit for the CPU.
    pub fn check(&self, device: DeviceChoice) -> Result<()> {
        match self.max_vram {
            Some(_) if device == DeviceChoice::Cpu => {
                Err(usage(anyhow::anyhow!("--max-vram is a GPU's, and --device cpu uses none")))
            }
            _ => Ok(()),
        }
    }
}

/// Units and their bytes; GB is a thousand million.
const UNITS: [(&str, f64); 7] = [
    ("b", 1.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("kib", (1u64 << 10) as f64),
    ("mib", (1u64 << 20) as f64),
    ("gib", (1u64 << 30) as f64),
];

fn parse_bytes(text: &str) -> Result<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()));
    let unit = if unit.is_empty() { "b".into() } else { unit.trim_start().to_ascii_lowercase() };
    let bytes = UNITS.iter().find(|(name, _)| *name == unit).and_then(|(_, size)| Some(number.parse::<f64>().ok()? * size));
    let bytes = bytes.context("memory is written 22GB, 20.5GB, 20GiB or 22000000000")?;
    ensure!((1.0..1e15).contains(&bytes), "memory is 1 byte to 1000 TB");
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_written_as_people_do() {
        for (text, bytes) in [
            ("22GB", 22_000_000_000),
            ("20.5gb", 20_500_000_000),
            ("20GiB", 20 << 30),
            ("0.5 MiB", 1 << 19),
            ("22000000000", 22_000_000_000),
            ("7B", 7),
            ("3kb", 3000),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GB", "22G", "22TB", "-1GB", "1e9", "0", "0.1B", "1.2.3GB", "nan", "inf", "99999999GB", "22 GB s"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
