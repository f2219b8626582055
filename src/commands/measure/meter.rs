//! What the driver says of memory and energy while something runs.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::cuda::{Device, EnergyMeter, Nvml};

/// Between two looks at the memory.
const PAUSE: Duration = Duration::from_millis(20);

/// What a piece of work took.
pub(super) struct Taken {
    /// Most bytes of the device's memory in use, by everyone.
    pub(super) peak_bytes: usize,
    /// Energy of the whole device; none without a meter.
    pub(super) joules: Option<f64>,
}

/// Watches a device.
pub(super) struct Meter {
    device: Arc<Device>,
    energy: Option<EnergyMeter>,
}

impl Meter {
    pub(super) fn new(device: &Arc<Device>) -> Meter {
        Meter { device: device.clone(), energy: Nvml::open().and_then(|nvml| nvml.energy_meter(&device.bus().ok()?)) }
    }

    fn millijoules(&self) -> Option<u64> {
        self.energy.as_ref().and_then(EnergyMeter::millijoules)
    }

    /// Does the work and says what it took; of memory what is in use at its end, since looking now and then disturbs it a little.
    pub(super) fn weigh<T>(&self, work: impl FnOnce() -> T) -> (T, Taken) {
        let before = self.millijoules();
        let result = work();
        let joules = before.zip(self.millijoules()).map(|(before, after)| after.saturating_sub(before) as f64 / 1e3);
        (result, Taken { peak_bytes: self.device.memory().map_or(0, |(free, total)| total - free), joules })
    }

    /// Does the work and says what it took.
    pub(super) fn watch<T>(&self, work: impl FnOnce() -> T) -> (T, Taken) {
        let before = self.millijoules();
        let (done, ended) = channel::<()>();
        let device = self.device.clone();
        let looking = move || {
            let mut peak = 0;
            let mut under_way = true;
            // A failure shows in the work itself, which uses the same device.
            while under_way && device.make_current().is_ok() {
                under_way = ended.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout);
                peak = peak.max(device.memory().map_or(0, |(free, total)| total - free));
            }
            peak
        };
        let (result, peak_bytes) = thread::scope(|scope| {
            let looker = thread::Builder::new().spawn_scoped(scope, looking);
            let result = work();
            drop(done);
            (result, looker.map_or(0, |looker| looker.join().unwrap_or(0)))
        });
        let joules = before.zip(self.millijoules()).map(|(before, after)| after.saturating_sub(before) as f64 / 1e3);
        (result, Taken { peak_bytes, joules })
    }
}
