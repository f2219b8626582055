//! Values of flags, from text.

use std::num::NonZero;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::commands::synth::LayoutKind;
use crate::image::{Filter, Format};
use crate::model::{Preset, Version};
use crate::ops::H100_GRID_THREADS;
use crate::pipeline::{CFG_SCALES, DeviceChoice, LORA_SCALES, LoraChoice, Rng, Rules, SIDES};
use crate::plan::Precision;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PrecisionArg {
    F32,
    Bf16,
    Int8,
    Fp8,
    Mixed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum FilterArg {
    Lanczos,
    Bicubic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum FormatArg {
    Png,
    #[value(alias = "jpeg")]
    Jpg,
    Webp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PosteriorArg {
    Mean,
    Sample,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RulesArg {
    Official,
    Diffusers,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PresetArg {
    /// The released size: 42 GB.
    Full,
    /// The same parts with few, narrow layers: 51 MB.
    Tiny,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum VersionArg {
    #[value(name = "v1.0", alias = "1.0")]
    V1_0,
    #[value(name = "v1.1", alias = "1.1")]
    V1_1,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LayoutArg {
    Official,
    Diffusers,
}

impl From<RulesArg> for Rules {
    fn from(rules: RulesArg) -> Rules {
        match rules {
            RulesArg::Official => Rules::Official,
            RulesArg::Diffusers => Rules::Diffusers,
        }
    }
}

impl From<LayoutArg> for LayoutKind {
    fn from(layout: LayoutArg) -> LayoutKind {
        match layout {
            LayoutArg::Official => LayoutKind::Official,
            LayoutArg::Diffusers => LayoutKind::Diffusers,
        }
    }
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Precision {
        match precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
            PrecisionArg::Int8 => Precision::Int8,
            PrecisionArg::Fp8 => Precision::Fp8,
            PrecisionArg::Mixed => Precision::Mixed,
        }
    }
}

impl From<FilterArg> for Filter {
    fn from(filter: FilterArg) -> Filter {
        match filter {
            FilterArg::Lanczos => Filter::Lanczos,
            FilterArg::Bicubic => Filter::Bicubic,
        }
    }
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Format {
        match format {
            FormatArg::Png => Format::Png,
            FormatArg::Jpg => Format::Jpeg,
            FormatArg::Webp => Format::WebP,
        }
    }
}

impl From<PresetArg> for Preset {
    fn from(preset: PresetArg) -> Preset {
        match preset {
            PresetArg::Full => Preset::Full,
            PresetArg::Tiny => Preset::Tiny,
        }
    }
}

impl From<VersionArg> for Version {
    fn from(version: VersionArg) -> Version {
        match version {
            VersionArg::V1_0 => Version::V1_0,
            VersionArg::V1_1 => Version::V1_1,
        }
    }
}

pub(super) fn device(text: &str) -> Result<DeviceChoice> {
    let choice = match text.split_once(':').map_or((text, None), |(kind, n)| (kind, Some(n))) {
        ("auto", None) => Some(DeviceChoice::Auto),
        ("cpu", None) => Some(DeviceChoice::Cpu),
        ("cuda", None) => Some(DeviceChoice::Cuda(0)),
        ("cuda", Some(n)) => n.parse::<u16>().ok().map(|n| DeviceChoice::Cuda(n.into())),
        _ => None,
    };
    choice.context("give auto, cpu, cuda or cuda:N")
}

/// Most threads of a GPU's grid; an H100's has 270336.
const GRID_THREADS_MOST: usize = 1 << 24;

pub(super) fn rng(text: &str) -> Result<Rng> {
    let threads = match text.split_once(':') {
        None if text == "cpu" => return Ok(Rng::Cpu),
        None if text == "cuda" => return Ok(Rng::Cuda { grid_threads: H100_GRID_THREADS }),
        Some(("cuda", threads)) => threads.parse::<usize>().ok(),
        _ => bail!("give cpu, cuda or cuda:THREADS"),
    };
    match threads.filter(|&n| (256..=GRID_THREADS_MOST).contains(&n) && n % 256 == 0) {
        Some(grid_threads) => Ok(Rng::Cuda { grid_threads }),
        None => bail!("give THREADS of cuda:THREADS as a multiple of 256, the threads of a block, up to {GRID_THREADS_MOST}"),
    }
}

/// Largest side of a picture that is only planned for, in pixels.
const SIDE_MOST: usize = 65_536;

/// Width and height.
pub(super) fn size(text: &str) -> Result<(usize, usize)> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let (w, h) = sides.context("give WIDTHxHEIGHT, such as 1024x768")?;
    ensure!((1..=SIDE_MOST).contains(&w) && (1..=SIDE_MOST).contains(&h), "give sides of 1 to {SIDE_MOST} pixels");
    Ok((w, h))
}

/// Cores that the process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Most CPU threads where there are fewer cores: more than cores help nobody, but a command may come from a larger machine.
const THREADS_MOST: usize = 64;

pub(super) fn most_threads() -> usize {
    cores().max(THREADS_MOST)
}

pub(super) fn threads(text: &str) -> Result<usize> {
    whole(1, most_threads())(text)
}

/// A number between two others, both included.
pub(super) fn whole(least: usize, most: usize) -> impl Fn(&str) -> Result<usize> + Clone {
    move |text: &str| {
        let number = text.parse().ok().filter(|n| (least..=most).contains(n));
        number.with_context(|| format!("give a whole number from {least} to {most}"))
    }
}

/// A number of a range.
pub(super) fn within(range: &RangeInclusive<usize>) -> impl Fn(&str) -> Result<usize> + Clone {
    whole(*range.start(), *range.end())
}

/// Width or height of what is made from text alone.
pub(super) fn side(text: &str) -> Result<usize> {
    let side = text.parse().ok().filter(|side| SIDES.contains(side) && side % 16 == 0);
    side.with_context(|| format!("give a multiple of 16 from {} to {}", SIDES.start(), SIDES.end()))
}

/// A seed; none: a random one.
pub(super) fn seed(text: &str) -> Result<Option<u64>> {
    let negative = text.strip_prefix('-').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
    let seed = if negative { Some(None) } else { text.parse().ok().map(Some) };
    seed.with_context(|| format!("give a whole number from 0 to {}, or -1 for a random one", u64::MAX))
}

/// A seed that is no random one.
pub(super) fn fixed_seed(text: &str) -> Result<u64> {
    text.parse().ok().with_context(|| format!("give a whole number from 0 to {}", u64::MAX))
}

pub(super) fn count(text: &str) -> Result<usize> {
    text.parse().ok().filter(|&number: &usize| number > 0).context("give a whole number of 1 or more")
}

pub(super) fn cfg_scale(text: &str) -> Result<f32> {
    let (least, most) = CFG_SCALES.into_inner();
    let scale = text.parse().ok().filter(|scale| CFG_SCALES.contains(scale));
    scale.with_context(|| format!("give a number from {least} to {most}, usually 6"))
}

/// A LoRA file with a scale behind the last colon, if what stands there is a number.
pub(super) fn lora(text: &str) -> Result<LoraChoice> {
    let (path, scale) = match text.rsplit_once(':') {
        Some((path, scale)) if scale.parse::<f32>().is_ok() => (path, scale.parse()?),
        _ => (text, 1.0),
    };
    let (least, most) = LORA_SCALES.into_inner();
    ensure!(LORA_SCALES.contains(&scale), "give a scale from {least} to {most} behind the colon, usually 1");
    ensure!(!path.is_empty(), "give the file before the colon");
    Ok(LoraChoice { path: path.into(), scale })
}

pub(super) fn guidance_limit(text: &str) -> Result<f64> {
    text.parse().ok().filter(|time| (0.0..=1.0).contains(time)).context("give a time from 0 to 1, usually 0.93")
}

/// Red, green and blue.
pub(super) fn colour(text: &str) -> Result<[u8; 3]> {
    match text {
        "white" => return Ok([255; 3]),
        "black" => return Ok([0; 3]),
        "grey" | "gray" => return Ok([128; 3]),
        _ => {}
    }
    let digits = text.strip_prefix('#').unwrap_or(text);
    let number = u32::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 6 && !digits.starts_with('+'));
    let [_, red, green, blue] =
        number.context("give white, black, grey or six hexadecimal digits such as #ffcc00")?.to_be_bytes();
    Ok([red, green, blue])
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

/// Most bytes of memory that a flag may name.
const MEMORY_MOST: f64 = 1e15;

pub(super) fn bytes(text: &str) -> Result<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()));
    let unit = if unit.is_empty() { "b".into() } else { unit.trim_start().to_ascii_lowercase() };
    let bytes = UNITS.iter().find(|(name, _)| *name == unit).and_then(|(_, size)| Some(number.parse::<f64>().ok()? * size));
    let bytes = bytes.context("give bytes, such as 22GB, 20.5GB, 20GiB or 22000000000")?;
    ensure!((1.0..=MEMORY_MOST).contains(&bytes), "give 1 byte to 1000 TB");
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_named_or_hexadecimal() {
        for (text, expected) in [("white", [255; 3]), ("#ffCC00", [255, 204, 0]), ("010203", [1, 2, 3])] {
            assert_eq!(colour(text).unwrap(), expected, "{text}");
        }
        for text in ["", "#fff", "whitish", "#+12345", "#1234567"] {
            assert!(colour(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_end_where_they_say() {
        assert!(cfg_scale("-100").is_ok() && cfg_scale("-100.0001").is_err());
        assert!(cfg_scale("100").is_ok() && cfg_scale("100.0001").is_err());
        for (text, right) in [("16", true), ("4096", true), ("0", false), ("4112", false), ("24", false)] {
            assert_eq!(side(text).is_ok(), right, "{text}");
        }
        for (text, right) in [("1x65536", true), ("65536x65536", true), ("1x65537", false), ("65537x1", false), ("0x1", false)] {
            assert_eq!(size(text).is_ok(), right, "{text}");
        }
        let steps = within(&crate::pipeline::STEPS);
        assert!(steps("1").is_ok() && steps("1000").is_ok() && steps("0").is_err() && steps("1001").is_err());
        let levels = within(&crate::pipeline::SIZE_LEVELS);
        assert!(levels("64").is_ok() && levels("4096").is_ok() && levels("63").is_err() && levels("4097").is_err());
        assert!(rng("cuda:16777216").is_ok() && rng("cuda:16777472").is_err());
        assert!(bytes("1000000GB").is_ok() && bytes("1000000.1GB").is_err());
        let most = cores().max(64);
        assert!(threads(&most.to_string()).is_ok() && threads(&(most + 1).to_string()).is_err());
        assert!(device("cuda:65535").is_ok() && device("cuda:65536").is_err());
    }

    #[test]
    fn memory_is_written_as_people_do() {
        for (text, expected) in [
            ("22GB", 22_000_000_000),
            ("20.5gb", 20_500_000_000),
            ("20GiB", 20 << 30),
            ("0.5 MiB", 1 << 19),
            ("22000000000", 22_000_000_000),
            ("7B", 7),
            ("3kb", 3000),
        ] {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        for text in ["", "GB", "22G", "22TB", "-1GB", "1e9", "0", "0.1B", "1.2.3GB", "nan", "inf", "99999999GB", "22 GB s"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
