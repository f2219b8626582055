//! How much of a device's memory a plan takes: what may be taken, the residency that fits in it, and what lies there while
//! each stage runs.

use std::fmt;

use anyhow::Result;

use super::print::bytes;
use super::residency::{Policy, Residency};
use super::{BodyPlan, Plan};
use crate::error::ResourceError;

/// Device memory of a process's context where it is not measured; 552 MB on an H100.
pub const CONTEXT_BYTES: usize = 560_000_000;
/// Device memory of loaded kernels, cuBLASLt and the ops' tables; 19 MB on an H100.
pub const KERNEL_BYTES: usize = 40_000_000;

/// How much device memory a plan may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// So many bytes, since the user says so.
    Allowed(usize),
    /// So many bytes, since no more are free; what the process's context takes is among them.
    Free(usize),
}

impl Budget {
    /// The smaller of what the user allows, if anything is said, and what is free.
    pub fn of(allowed: Option<usize>, free: usize) -> Budget {
        allowed.filter(|&allowed| allowed < free).map_or(Budget::Free(free), Budget::Allowed)
    }

    /// How many they are.
    pub fn bytes(self) -> usize {
        match self {
            Budget::Allowed(bytes) | Budget::Free(bytes) => bytes,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Budget::Allowed(n) => write!(f, "--max-vram allows {}", bytes(*n)),
            Budget::Free(n) => write!(f, "{} are free", bytes(*n)),
        }
    }
}

/// What of the weights is on the device while a body runs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyMemory {
    /// There, or there before the body ends.
    pub resident: usize,
    /// Of later bodies, with places that may be written to already.
    pub arriving: usize,
    /// Given up when the body ends.
    pub leaving: usize,
}

impl Plan {
    /// Bytes of the device's memory that the plan takes itself: activations and the weights' region.
    pub fn device_bytes(&self) -> usize {
        self.arena_bytes + self.weights.bytes
    }

    /// Bytes of the device's memory that the process takes in all, with driver and kernels: what `nvidia-smi` shows.
    pub fn peak_bytes(&self) -> usize {
        self.device_bytes() + self.context_bytes + KERNEL_BYTES
    }

    /// The plan with another residency.
    pub fn with(self, policy: Policy) -> Plan {
        Plan { weights: Residency::new(&self.graph, policy), ..self }
    }

    /// The plan with the fastest residency that fits, none faster than `fastest`.
    ///
    /// # Errors
    /// A [`ResourceError`] with the least number of bytes needed.
    pub fn fit(mut self, budget: Budget, fastest: Policy) -> Result<Plan> {
        for policy in Policy::ALL.into_iter().filter(|&policy| policy <= fastest) {
            self = self.with(policy);
            if self.peak_bytes() <= budget.bytes() {
                return Ok(self);
            }
        }
        Err(ResourceError(self.refusal(budget)).into())
    }

    /// Why the last policy does not fit.
    fn refusal(&self, budget: Budget) -> String {
        let of_any_size = self.peak_bytes() - self.arena_bytes;
        let help = match budget.bytes() < of_any_size {
            true => format!("even the smallest picture needs {}; use --device cpu", bytes(of_any_size)),
            false => "use a smaller --size-level, or --device cpu".into(),
        };
        format!(
            "the edit needs at least {} of GPU memory ({} for weights, one stage at a time, {} for activations, {} for driver and \
             kernels), but {budget}; {help}",
            bytes(self.peak_bytes()),
            bytes(self.weights.bytes),
            bytes(self.arena_bytes),
            bytes(self.context_bytes + KERNEL_BYTES)
        )
    }

    /// The peak with each policy.
    pub fn peaks(&self) -> [(Policy, usize); 3] {
        let others = self.peak_bytes() - self.weights.bytes;
        Policy::ALL.map(|policy| (policy, others + Residency::new(&self.graph, policy).bytes))
    }

    /// What lies in the weights' region while each body of a first run runs.
    pub fn memory(&self) -> Vec<BodyMemory> {
        let (graph, count) = (&self.graph, self.weights.segments.len());
        let all: Vec<usize> = (0..count).collect();
        let mut memory = vec![BodyMemory::default(); count];
        let mut come = 0; // pieces go up in order: none overtakes one that waits
        for arrival in self.weights.arrivals(graph, &all, &mut vec![false; graph.storages.len()]) {
            let (size, Some(readers)) =
                (graph.storages[arrival.storage.0].spec.bytes(), &self.weights.readers[arrival.storage.0])
            else {
                continue;
            };
            come = come.max(arrival.gate);
            let last = if self.weights.policy.keeps_all() { count - 1 } else { *readers.end() };
            memory[come.min(*readers.start())..*readers.start()].iter_mut().for_each(|stage| stage.arriving += size);
            memory[*readers.start()..=last].iter_mut().for_each(|stage| stage.resident += size);
            if !self.weights.policy.keeps_all() {
                memory[last].leaving += size;
            }
        }
        memory
    }

    /// The residency in words, each policy's peak, and the memory over the stages as bars.
    pub(super) fn chart(&self, f: &mut fmt::Formatter) -> fmt::Result {
        const WIDTH: usize = 44;
        let peak = self.peak_bytes();
        writeln!(
            f,
            "on a device {}: {} for weights, {} for activations, {} for driver and kernels",
            bytes(peak),
            bytes(self.weights.bytes),
            bytes(self.arena_bytes),
            bytes(self.context_bytes + KERNEL_BYTES)
        )?;
        for (policy, peak) in self.peaks() {
            let mark = if policy == self.weights.policy { '*' } else { ' ' };
            writeln!(f, "{mark} {policy:<12}{:>10}  {}", bytes(peak), policy.meaning())?;
        }
        writeln!(
            f,
            "{:<14}{:>10}{:>10}{:>10}{:>10}  # weights + arriving = live",
            "stage", "weights", "arriving", "leaving", "live"
        )?;
        for (BodyPlan { name, live_bytes, .. }, memory) in self.bodies.iter().zip(self.memory()) {
            let BodyMemory { resident, arriving, leaving } = memory;
            let columns = |n: usize| (WIDTH * n + self.device_bytes() / 2) / self.device_bytes().max(1);
            let (mut bar, mut sum) = (String::new(), 0);
            for (sign, size) in [("#", resident), ("+", arriving), ("=", *live_bytes)] {
                bar += &sign.repeat(columns(sum + size) - columns(sum));
                sum += size;
            }
            let [resident, arriving, leaving, live] = [resident, arriving, leaving, *live_bytes].map(bytes);
            writeln!(f, "{name:<14}{resident:>10}{arriving:>10}{leaving:>10}{live:>10}  {bar}")?;
        }
        Ok(())
    }
}
