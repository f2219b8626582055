//! The `doctor` command: which driver, devices and libraries there are, what is missing and how to get it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cuda::{Compiler, Device, Found, Gemms, Module, Nvml, Pcie, Setup, cache};
use crate::pipeline::LEAST_CAPABILITY;
use crate::plan::format_bytes;

/// A look at what edits on a GPU need.
#[derive(Clone, Debug)]
pub struct DoctorJob {
    /// Where libraries and the cache are looked for.
    pub setup: Setup,
    /// Report as one JSON object.
    pub json: bool,
}

/// Exit code if something is missing, to which the bits of what it is are added.
const MISSING: u8 = 16;
/// No driver, or no device that has kernels.
const DRIVER: u8 = 1;
/// No NVRTC that compiles.
const NVRTC: u8 = 2;
/// No cuBLASLt that starts.
const CUBLASLT: u8 = 4;

/// Looks, and gives the report with the exit code: 0 if a GPU can run edits, otherwise 16 and 1 for the driver or device,
/// 2 for NVRTC, 4 for cuBLASLt.
pub fn run(job: &DoctorJob) -> (String, u8) {
    let findings = Findings::look(&job.setup);
    let text = if job.json { format!("{}\n", findings.json()) } else { findings.text() };
    (text, findings.exit_code())
}

/// A device as the driver describes it.
#[derive(Clone, Debug)]
struct Card {
    ordinal: usize,
    name: String,
    capability: u32,
    multiprocessors: u32,
    free_bytes: usize,
    total_bytes: usize,
    /// How it is linked to the host, by NVML.
    link: Option<Pcie>,
}

/// What is there, or why not, in words.
struct Findings {
    driver: Result<Found, String>,
    /// The driver's own version, by NVML.
    release: Option<String>,
    cards: Result<Vec<Card>, String>,
    nvrtc: Result<Found, String>,
    cublaslt: Result<Found, String>,
    cache: Result<PathBuf, String>,
    searched: Vec<PathBuf>,
}

impl Findings {
    fn look(setup: &Setup) -> Findings {
        let words = |e: anyhow::Error| format!("{e:#}");
        let driver = Found::driver().map_err(words);
        let devices = if driver.is_ok() { devices().map_err(words) } else { Err("not known without a driver".into()) };
        let first = devices.iter().flatten().find(|device| device.capability >= LEAST_CAPABILITY);
        let nvml = Nvml::open();
        Findings {
            release: nvml.as_ref().and_then(Nvml::driver_version),
            driver,
            nvrtc: compiler(setup, first).map_err(words),
            cublaslt: products(setup, first).map_err(words),
            cache: setup.cache.as_deref().map_or_else(
                || Err(words(anyhow::anyhow!("STEP1X_CACHE, XDG_CACHE_HOME and HOME are not set; set one of them"))),
                |folder| cache_folder(folder).map_err(words),
            ),
            searched: setup.libraries.clone(),
            cards: devices.and_then(|devices| devices.iter().map(|device| card(device, nvml.as_ref()).map_err(words)).collect()),
        }
    }

    /// Bits of what is missing.
    fn missing(&self) -> u8 {
        let usable = self.cards.iter().flatten().any(|card| card.capability >= LEAST_CAPABILITY);
        let bit = |there: bool, bit: u8| if there { 0 } else { bit };
        bit(self.driver.is_ok() && usable, DRIVER) | bit(self.nvrtc.is_ok(), NVRTC) | bit(self.cublaslt.is_ok(), CUBLASLT)
    }

    fn exit_code(&self) -> u8 {
        match self.missing() {
            0 => 0,
            bits => MISSING + bits,
        }
    }

    /// How to get what is missing, a line each.
    fn advice(&self) -> Vec<String> {
        let missing = self.missing();
        // Libraries of a CUDA newer than the driver's do not run.
        let of_12 = self.driver.as_ref().is_ok_and(|driver| driver.version.0 == 12);
        let package = |name: &str| format!("pip install {name}{}", if of_12 { "-cu12" } else { "" });
        let mut lines = Vec::new();
        if missing & DRIVER != 0 {
            lines.push(match (&self.driver, &self.cards) {
                (Err(_), _) => {
                    "driver: install an NVIDIA driver of series 575 (CUDA 12.9) or newer; start a container with --gpus all"
                        .into()
                }
                (Ok(_), Ok(cards)) if !cards.is_empty() => {
                    format!(
                        "device: the kernels need compute capability {}.{} or higher; use a newer GPU",
                        LEAST_CAPABILITY / 10,
                        LEAST_CAPABILITY % 10
                    )
                }
                _ => "device: the driver shows none; check CUDA_VISIBLE_DEVICES, and start a container with --gpus all".into(),
            });
        }
        if missing & NVRTC != 0 {
            lines.push(format!("NVRTC: {}, or name its folder in STEP1X_CUDA_LIB", package("nvidia-cuda-nvrtc")));
        }
        if missing & CUBLASLT != 0 {
            lines.push(format!("cuBLASLt: {}, or name its folder in STEP1X_CUDA_LIB", package("nvidia-cublas")));
        }
        lines
    }

    fn text(&self) -> String {
        let library = |found: &Found| {
            let file = found.file.as_ref().map_or_else(String::new, |file| format!(", {}", file.display()));
            format!("{}.{}{file}", found.version.0, found.version.1)
        };
        let release = self
            .release
            .as_ref()
            .map_or_else(|| "energy cannot be measured without NVML".into(), |text| format!("driver {text}"));
        let mut rows =
            vec![("driver".to_string(), self.driver.as_ref().map(|found| format!("CUDA {}, {release}", library(found))))];
        match &self.cards {
            Ok(cards) => rows.extend(cards.iter().map(|card| (format!("device {}", card.ordinal), Ok(card.text())))),
            Err(why) => rows.push(("device".into(), Err(why))),
        }
        rows.push(("NVRTC".into(), self.nvrtc.as_ref().map(library)));
        rows.push(("cuBLASLt".into(), self.cublaslt.as_ref().map(library)));
        rows.push(("cache".into(), self.cache.as_ref().map(|folder| folder.display().to_string())));
        let mut text = String::new();
        for (name, found) in rows {
            let (state, words) = match &found {
                Ok(words) => ("ok", words.as_str()),
                Err(words) => ("missing", words.as_str()),
            };
            text += &format!("{name:<10}{state:<9}{words}\n");
        }
        let advice = self.advice();
        match advice.is_empty() {
            true => text += "edits run on the GPU\n",
            false => {
                text += "edits run only on the CPU; the GPU needs:\n";
                advice.iter().for_each(|line| text += &format!("  {line}\n"));
            }
        }
        text
    }

    fn json(&self) -> Value {
        let library = |found: &Result<Found, String>| match found {
            Ok(found) => json!({"ok": true, "version": format!("{}.{}", found.version.0, found.version.1), "file": found.file}),
            Err(why) => json!({"ok": false, "why": why}),
        };
        let card = |card: &Card| {
            json!({
                "ordinal": card.ordinal, "name": card.name, "capability": format!("{}.{}", card.capability / 10, card.capability % 10),
                "multiprocessors": card.multiprocessors, "free_bytes": card.free_bytes, "total_bytes": card.total_bytes,
                "pcie": card.link,
                "usable": card.capability >= LEAST_CAPABILITY,
            })
        };
        let missing = [(DRIVER, "driver"), (NVRTC, "nvrtc"), (CUBLASLT, "cublaslt")];
        let missing: Vec<&str> = missing.iter().filter(|(bit, _)| self.missing() & bit != 0).map(|(_, name)| *name).collect();
        json!({
            "driver": library(&self.driver), "driver_release": self.release,
            "devices": self.cards.iter().flatten().map(card).collect::<Vec<_>>(),
            "nvrtc": library(&self.nvrtc), "cublaslt": library(&self.cublaslt),
            "cache": match &self.cache {
                Ok(folder) => json!({"ok": true, "folder": folder}),
                Err(why) => json!({"ok": false, "why": why}),
            },
            "searched": self.searched, "missing": missing, "advice": self.advice(), "exit_code": self.exit_code(),
        })
    }
}

impl Card {
    fn text(&self) -> String {
        let old = if self.capability < LEAST_CAPABILITY { "; too old for the kernels" } else { "" };
        let link = self.link.map_or_else(String::new, |link| format!(", {link}"));
        format!(
            "{}, compute capability {}.{}, {} multiprocessors, {} of {} free{link}{old}",
            self.name,
            self.capability / 10,
            self.capability % 10,
            self.multiprocessors,
            format_bytes(self.free_bytes),
            format_bytes(self.total_bytes)
        )
    }
}

fn devices() -> Result<Vec<Arc<Device>>> {
    (0..Device::count()?).map(Device::open).collect()
}

fn card(device: &Arc<Device>, nvml: Option<&Nvml>) -> Result<Card> {
    device.make_current()?;
    let link = nvml.and_then(|nvml| nvml.pcie(&device.bus().ok()?));
    let (free_bytes, total_bytes) = device.memory()?;
    let Device { ordinal, capability, multiprocessors, .. } = **device;
    Ok(Card { ordinal, name: device.name.clone(), capability, multiprocessors, free_bytes, total_bytes, link })
}

/// NVRTC, if it compiles a small kernel and the device, where there is one, loads it. The cache is left out.
fn compiler(setup: &Setup, device: Option<&Arc<Device>>) -> Result<Found> {
    let found = Found::nvrtc(&setup.libraries)?;
    let version = || format!("NVRTC {}.{} was found, but does not work", found.version.0, found.version.1);
    let fresh = Setup { cache: None, ..setup.clone() };
    let compiler = Compiler::new(device.map_or(LEAST_CAPABILITY, |device| device.capability), &fresh)?;
    let cubin = compiler.compile("noise", &[]).with_context(version)?;
    if let Some(device) = device {
        device.make_current()?;
        Module::load(device, &cubin.image).with_context(version)?;
    }
    Ok(found)
}

/// cuBLASLt, if it starts on the device, where there is one.
fn products(setup: &Setup, device: Option<&Arc<Device>>) -> Result<Found> {
    let found = Found::cublaslt(&setup.libraries)?;
    if let Some(device) = device {
        device.make_current()?;
        Gemms::new(device, setup)
            .with_context(|| format!("cuBLASLt {}.{} was found, but does not work", found.version.0, found.version.1))?;
    }
    Ok(found)
}

/// The cache's folder, if it is used and files can be made in it.
fn cache_folder(folder: &Path) -> Result<PathBuf> {
    let cannot = || {
        format!(
            "{} cannot be written, so every start compiles the kernels again; set STEP1X_CACHE to another folder",
            folder.display()
        )
    };
    match cache::refusal(folder) {
        Some(refusal) => bail!("{refusal}"),
        None => cache::probe(folder).with_context(cannot).map(|()| folder.to_path_buf()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn found(major: u32) -> Result<Found, String> {
        Ok(Found { version: (major, 0), file: Some("/lib/some.so".into()) })
    }

    fn h100() -> Card {
        let name = "NVIDIA H100 80GB HBM3".to_string();
        let link = Some(Pcie { generation: 5, width: 16, most_generation: 5, most_width: 16 });
        Card { ordinal: 0, name, capability: 90, multiprocessors: 132, free_bytes: 80 << 30, total_bytes: 81 << 30, link }
    }

    fn findings(missing: u8) -> Findings {
        let library = |bit: u8| if missing & bit == 0 { found(13) } else { Err("not found".to_string()) };
        let driver = missing & DRIVER == 0;
        Findings {
            driver: library(DRIVER),
            release: driver.then(|| "580.65".to_string()),
            cards: if driver { Ok(vec![h100()]) } else { Err("not known without a driver".into()) },
            nvrtc: library(NVRTC),
            cublaslt: library(CUBLASLT),
            cache: Ok("/cache".into()),
            searched: vec![],
        }
    }

    #[test]
    fn the_exit_code_says_what_is_missing() {
        for missing in 0..8 {
            let findings = findings(missing);
            assert_eq!(findings.exit_code(), if missing == 0 { 0 } else { 16 + missing });
            let (text, json, advice) = (findings.text(), findings.json(), findings.advice().join("\n"));
            assert_eq!(json["exit_code"], findings.exit_code());
            for (bit, name, line) in
                [(DRIVER, "driver", "driver: "), (NVRTC, "nvrtc", "NVRTC: "), (CUBLASLT, "cublaslt", "cuBLASLt: ")]
            {
                let lacks = missing & bit != 0;
                assert_eq!(json["missing"].as_array().unwrap().contains(&json!(name)), lacks, "{missing}: {json}");
                assert_eq!(json[name]["ok"], !lacks);
                assert_eq!(advice.contains(line), lacks, "{missing}: {advice}");
            }
            assert_eq!(text.contains("edits run on the GPU"), missing == 0, "{text}");
            assert_eq!(text.lines().filter(|line| line.contains("missing  ")).count() > 0, missing != 0, "{text}");
        }
    }

    #[test]
    fn a_driver_without_a_fitting_device_is_no_driver() {
        let none = Findings { cards: Ok(vec![]), ..findings(0) };
        assert_eq!(none.exit_code(), 17);
        assert!(none.advice()[0].contains("shows none"));
        let old = Findings { cards: Ok(vec![Card { capability: 75, ..h100() }]), ..findings(0) };
        assert_eq!(old.exit_code(), 17);
        assert!(old.advice()[0].contains("8.0") && old.text().contains("too old"), "{}", old.text());
        let both = Findings { cards: Ok(vec![Card { capability: 75, ..h100() }, h100()]), ..findings(0) };
        assert_eq!(both.exit_code(), 0);
    }

    #[test]
    fn a_card_says_how_it_is_linked() {
        let text = findings(0).text();
        assert!(text.contains(" free, PCIe 5 x16\n"), "{text}");
        assert_eq!(findings(0).json()["devices"][0]["pcie"]["width"], 16);
        let unknown = Findings { cards: Ok(vec![Card { link: None, ..h100() }]), ..findings(0) };
        assert!(unknown.text().contains(" free\n") && unknown.json()["devices"][0]["pcie"].is_null());
    }

    #[test]
    fn packages_are_those_of_the_drivers_cuda() {
        let of = |major| Findings { driver: found(major), ..findings(NVRTC | CUBLASLT) }.advice().join("\n");
        assert!(of(12).contains("nvidia-cuda-nvrtc-cu12") && of(12).contains("nvidia-cublas-cu12"), "{}", of(12));
        assert!(!of(13).contains("cu12"), "{}", of(13));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_said_and_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cache_folder(&dir.path().join("new/cache")).unwrap(), dir.path().join("new/cache"));
        assert_eq!(fs::read_dir(dir.path().join("new/cache")).unwrap().count(), 0, "a probe was left");
        fs::write(dir.path().join("file"), "").unwrap();
        let why = format!("{:#}", cache_folder(&dir.path().join("file")).unwrap_err());
        let findings = Findings { cache: Err(why), ..findings(0) };
        assert!(findings.text().contains("cannot be written"));
        assert_eq!(findings.exit_code(), 0);
    }
}
