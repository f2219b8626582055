//! `bench --link`: what the link between host and device carries, and what locking host memory costs.

use std::fmt;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::gpu;
use crate::cuda::{Link, Nvml, Pcie};
use crate::pipeline::PlaceChoice;

/// A look at the link.
#[derive(Clone, Debug)]
pub struct LinkJob {
    /// The GPU.
    pub place: PlaceChoice,
    /// Report as one JSON object.
    pub json: bool,
}

/// Sizes of the copies, in MiB.
const PIECES: [usize; 5] = [1, 8, 32, 128, 1024];

/// Measures the link and hands the report to `print`.
///
/// # Errors
/// No device, or too little memory on either side.
pub fn run(job: &LinkJob, print: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let (place, device) = gpu("bench --link", &job.place)?;
    let link = Link::new(&device)?;
    let copy = |mib: usize| Ok(Copies { piece_mib: mib, gb_per_s: link.upload_gb_per_s(mib << 20)? });
    let copies = PIECES.into_iter().map(copy).collect::<Result<_>>()?;
    // After the copies, which wake a link that slept.
    let pcie = Nvml::open().and_then(|nvml| nvml.pcie(&device.bus().ok()?));
    let threads = rayon::current_num_threads();
    let (touch_s_per_gb, lock_s_per_gb) = (link.touch_s_per_gb, link.lock_s_per_gb);
    let report = Report { device: place.name(), pcie, copies, threads, touch_s_per_gb, lock_s_per_gb };
    print(&if job.json { format!("{}\n", json!(report)) } else { report.to_string() })
}

/// What was measured. It prints as a table and serializes as one JSON object.
#[derive(Serialize)]
struct Report {
    device: String,
    /// As the driver tells it; none without NVML.
    pcie: Option<Pcie>,
    /// From page-locked memory to the device.
    copies: Vec<Copies>,
    /// That touch memory.
    threads: usize,
    touch_s_per_gb: f64,
    lock_s_per_gb: f64,
}

/// Copies of one size, one after another.
#[derive(Serialize)]
struct Copies {
    piece_mib: usize,
    gb_per_s: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let pcie = self.pcie.map_or_else(|| "link not known without NVML".to_string(), |link| link.to_string());
        writeln!(f, "{}, {pcie}", self.device)?;
        writeln!(f, "{:<26}{:>8}", "page-locked to device", "GB/s")?;
        for Copies { piece_mib, gb_per_s } in &self.copies {
            writeln!(f, "{:<26}{gb_per_s:>8.1}", format!("copies of {piece_mib} MiB"))?;
        }
        let Report { threads, touch_s_per_gb, lock_s_per_gb, .. } = self;
        writeln!(f, "host memory: {touch_s_per_gb:.3} s a GB to touch by {threads} threads, {lock_s_per_gb:.3} s a GB to lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_and_object_have_the_same_numbers() {
        let report = |pcie| Report {
            device: "cuda:0 Made-up".into(),
            pcie,
            copies: vec![Copies { piece_mib: 32, gb_per_s: 55.06 }],
            threads: 16,
            touch_s_per_gb: 0.0514,
            lock_s_per_gb: 0.0306,
        };
        let known = report(Some(Pcie { generation: 5, width: 16, most_generation: 5, most_width: 16 }));
        let table = known.to_string();
        assert!(
            table.starts_with("cuda:0 Made-up, PCIe 5 x16\n") && table.contains("copies of 32 MiB              55.1\n"),
            "{table}"
        );
        assert!(table.ends_with("host memory: 0.051 s a GB to touch by 16 threads, 0.031 s a GB to lock\n"), "{table}");
        let object = json!(known);
        assert_eq!((&object["copies"][0]["gb_per_s"], &object["pcie"]["generation"]), (&json!(55.06), &json!(5)));
        assert!(report(None).to_string().starts_with("cuda:0 Made-up, link not known without NVML\n"));
    }
}
