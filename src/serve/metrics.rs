//! What is counted, in Prometheus's text format. No prompt and no caller stands in a label.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Upper bounds of the buckets of all histograms, in seconds.
const BUCKETS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0];

/// What is counted.
#[derive(Default)]
pub struct Metrics(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    /// By endpoint and status.
    requests: BTreeMap<(&'static str, u16), u64>,
    /// By why.
    cancelled: BTreeMap<&'static str, u64>,
    steps: u64,
    images: u64,
    restarts: u64,
    waited: Histogram,
    took: Histogram,
    /// By name.
    stages: BTreeMap<&'static str, Histogram>,
}

#[derive(Clone, Default)]
struct Histogram {
    /// Observations up to each bound, and all.
    counts: [u64; BUCKETS.len() + 1],
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        let first = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.counts[first..].iter_mut().for_each(|count| *count += 1);
        self.sum += seconds;
    }
}

/// What the server is doing just now.
pub struct Gauges {
    /// Requests that a worker has.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that may wait.
    pub capacity: usize,
    /// Workers that take requests.
    pub workers: usize,
    /// By device, as the driver says.
    pub devices: Vec<DeviceGauges>,
    /// Version and model.
    pub build: (String, String),
    /// Resident bytes of the process.
    pub resident_bytes: Option<u64>,
    /// When the process began, in seconds since 1970.
    pub started: f64,
}

/// Of one GPU.
pub struct DeviceGauges {
    /// As people call it.
    pub name: String,
    /// Memory in use, by everyone.
    pub memory_bytes: Option<u64>,
    /// Energy since the driver was loaded.
    pub joules: Option<f64>,
}

impl Metrics {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was answered.
    pub fn request(&self, endpoint: &'static str, status: u16) {
        *self.counted().requests.entry((endpoint, status)).or_default() += 1;
    }

    /// An edit's request was answered with pictures: seconds in the queue and in all.
    pub fn edited(&self, waited: f64, took: f64) {
        let mut counted = self.counted();
        counted.waited.add(waited);
        counted.took.add(took);
    }

    /// A stage of a request took so long.
    pub fn stage(&self, name: &'static str, seconds: f64) {
        self.counted().stages.entry(name).or_default().add(seconds);
    }

    /// An edit was stopped.
    pub fn cancelled(&self, why: &'static str) {
        *self.counted().cancelled.entry(why).or_default() += 1;
    }

    /// So many steps were made.
    pub fn steps(&self, steps: usize) {
        self.counted().steps += steps as u64;
    }

    /// A picture was made.
    pub fn image(&self) {
        self.counted().images += 1;
    }

    /// A worker was started anew.
    pub fn restart(&self) {
        self.counted().restarts += 1;
    }

    /// All of it as text.
    pub fn text(&self, gauges: &Gauges) -> String {
        let counted = self.counted();
        let mut page = Page::default();
        let requests = counted.requests.iter();
        page.counter(
            "requests_total",
            "Answers by endpoint and HTTP status; 499: the client had gone.",
            requests
                .map(|((endpoint, status), count)| (format!("{{endpoint=\"{endpoint}\",status=\"{status}\"}}"), *count as f64)),
        );
        page.gauge("requests_running", "Requests that a worker has.", gauges.running as f64);
        page.gauge("requests_waiting", "Requests that wait for a worker.", gauges.waiting as f64);
        page.gauge("queue_capacity", "Requests that may wait.", gauges.capacity as f64);
        page.gauge("workers", "Workers that take requests.", gauges.workers as f64);
        page.histogram(
            "request_queue_seconds",
            "Time in the queue of requests that were met.",
            [(String::new(), &counted.waited)],
        );
        page.histogram(
            "request_seconds",
            "Time from arrival to answer of requests that were met.",
            [(String::new(), &counted.took)],
        );
        let stages = counted.stages.iter().map(|(name, histogram)| (format!("stage=\"{name}\""), histogram));
        page.histogram("stage_seconds", "Time of a request's parts.", stages);
        page.counter("steps_total", "Denoising steps.", [(String::new(), counted.steps as f64)]);
        page.counter("images_total", "Finished pictures.", [(String::new(), counted.images as f64)]);
        let cancelled = counted.cancelled.iter().map(|(why, count)| (format!("{{reason=\"{why}\"}}"), *count as f64));
        page.counter("cancelled_total", "Edits that were stopped.", cancelled);
        page.counter(
            "worker_restarts_total",
            "Workers that were started anew after a fault.",
            [(String::new(), counted.restarts as f64)],
        );
        let label = |device: &DeviceGauges| format!("{{device=\"{}\"}}", escaped(&device.name));
        let memory = gauges.devices.iter().filter_map(|device| Some((label(device), device.memory_bytes? as f64)));
        page.family("gpu_memory_used_bytes", "Memory of the GPU in use, by everyone.", "gauge", memory);
        let energy = gauges.devices.iter().filter_map(|device| Some((label(device), device.joules?)));
        page.counter("gpu_energy_joules_total", "Energy of the GPU since its driver was loaded.", energy);
        let (version, model) = &gauges.build;
        let build = format!("{{version=\"{}\",model=\"{}\"}}", escaped(version), escaped(model));
        page.family("build_info", "Version of the program, and model.", "gauge", [(build, 1.0)]);
        page.plain(
            "process_resident_memory_bytes",
            "Resident memory of the process.",
            gauges.resident_bytes.map(|bytes| bytes as f64),
        );
        page.plain("process_start_time_seconds", "When the process began, in seconds since 1970.", Some(gauges.started));
        page.0
    }
}

/// A text in a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The page under way.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn family(&mut self, name: &str, help: &str, kind: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.head(&format!("step1x_{name}"), help, kind);
        }
        for (labels, value) in samples {
            let _ = writeln!(self.0, "step1x_{name}{labels} {value}");
        }
    }

    fn counter(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        self.family(name, help, "counter", samples);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help, "gauge", [(String::new(), value)]);
    }

    fn plain(&mut self, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.head(name, help, "gauge");
            let _ = writeln!(self.0, "{name} {value}");
        }
    }

    fn histogram<'h>(&mut self, name: &str, help: &str, histograms: impl IntoIterator<Item = (String, &'h Histogram)>) {
        let mut histograms = histograms.into_iter().peekable();
        if histograms.peek().is_some() {
            self.head(&format!("step1x_{name}"), help, "histogram");
        }
        for (label, Histogram { counts, sum }) in histograms {
            let comma = if label.is_empty() { "" } else { "," };
            let bounds = BUCKETS.iter().map(f64::to_string).chain(["+Inf".into()]);
            for (bound, count) in bounds.zip(counts) {
                let _ = writeln!(self.0, "step1x_{name}_bucket{{{label}{comma}le=\"{bound}\"}} {count}");
            }
            let braced = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
            let all = counts[BUCKETS.len()];
            let _ = write!(self.0, "step1x_{name}_sum{braced} {sum}\nstep1x_{name}_count{braced} {all}\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges() -> Gauges {
        let device = DeviceGauges { name: "a \"card\"".into(), memory_bytes: Some(5), joules: None };
        Gauges {
            running: 1,
            waiting: 2,
            capacity: 8,
            workers: 1,
            devices: vec![device],
            build: ("0.1".into(), "demo".into()),
            resident_bytes: Some(7),
            started: 1.5,
        }
    }

    #[test]
    fn buckets_count_everything_up_to_their_bound() {
        let mut histogram = Histogram::default();
        [0.1, 0.2, 1e9].iter().for_each(|&seconds| histogram.add(seconds));
        assert_eq!((histogram.counts[0], histogram.counts[1], histogram.counts[11], histogram.counts[12]), (1, 2, 2, 3));
    }

    #[test]
    fn the_page_has_what_was_counted() {
        let metrics = Metrics::default();
        metrics.request("/v1/images/edits", 200);
        metrics.request("/v1/images/edits", 200);
        metrics.edited(0.05, 3.0);
        metrics.stage("edit", 2.5);
        metrics.cancelled("disconnect");
        metrics.steps(28);
        metrics.image();
        let text = metrics.text(&gauges());
        for line in [
            "step1x_requests_total{endpoint=\"/v1/images/edits\",status=\"200\"} 2",
            "step1x_requests_waiting 2",
            "step1x_request_queue_seconds_bucket{le=\"0.1\"} 1",
            "step1x_request_seconds_sum 3",
            "step1x_stage_seconds_bucket{stage=\"edit\",le=\"2.5\"} 1",
            "step1x_stage_seconds_count{stage=\"edit\"} 1",
            "step1x_cancelled_total{reason=\"disconnect\"} 1",
            "step1x_steps_total 28",
            "step1x_gpu_memory_used_bytes{device=\"a \\\"card\\\"\"} 5",
            "step1x_build_info{version=\"0.1\",model=\"demo\"} 1",
            "process_resident_memory_bytes 7",
        ] {
            assert!(text.lines().any(|own| own == line), "no {line} in\n{text}");
        }
        assert!(!text.contains("gpu_energy"), "nothing is said of what nobody knows");
    }
}
