//! How much of a device's memory a plan takes: what may be taken, the residency that fits in it, what lies there while each stage
//! runs, and what it costs that weights stream.

use std::fmt;

use anyhow::Result;

use super::pace::{LINK_GB_PER_S, Pace};
use super::print::bytes;
use super::residency::{Policy, Residency};
use super::{BodyPlan, Plan};
use crate::error::ResourceError;
use crate::graph::BodyId;

/// Device memory of a process's context where it is not measured; 552 MB on an H100.
pub const CONTEXT_BYTES: usize = 560_000_000;
/// Device memory of loaded kernels, cuBLASLt and the ops' tables, 19 MB on an H100, and of the factors of LoRA files on their way, 17 MB.
pub const KERNEL_BYTES: usize = 40_000_000;

/// The driver maps page-locked memory of the host on the device, eight bytes for each page of 4 KiB: of 37 GB 70 MB on an H100.
const MAPPED: usize = 512;

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

/// What of a body's weights stays and what streams, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyMemory {
    /// In places of their own.
    pub kept: usize,
    /// They come for each run of the body.
    pub streamed: usize,
    /// The ring that they pass through.
    pub ring: usize,
}

/// How a body's runs go in an edit after others, as modelled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Passage {
    /// Seconds of all its runs.
    pub seconds: f64,
    /// Of them those in which nodes wait for weights.
    pub stalls: f64,
    /// Bytes that come for it.
    pub bytes: usize,
}

impl Plan {
    /// Bytes of the device's memory that the plan takes itself: activations and weights.
    pub fn device_bytes(&self) -> usize {
        match self.weights.policy {
            Policy::Resident => self.arena_bytes + self.weights.bytes,
            Policy::Streamed { bytes } => bytes,
        }
    }

    /// Bytes of the device's memory that the process takes in all, with driver and kernels: what `nvidia-smi` shows.
    pub fn peak_bytes(&self) -> usize {
        let streams = matches!(self.weights.policy, Policy::Streamed { .. });
        self.device_bytes() + if streams { self.beside_streams() } else { self.context_bytes + KERNEL_BYTES }
    }

    /// Bytes of the device's memory that are not the plan's own where weights stream.
    fn beside_streams(&self) -> usize {
        self.context_bytes + KERNEL_BYTES + self.weight_bytes() / MAPPED
    }

    /// Bytes of the device's memory, all counted, with which the plan can still run.
    pub fn least_peak_bytes(&self) -> usize {
        self.least_bytes() + self.beside_streams()
    }

    /// The plan with every weight resident.
    pub fn resident(self) -> Plan {
        Plan { weights: Residency::resident(&self.graph), ..self }
    }

    /// The plan with activations and weights in so many bytes, and as many weights kept there as it pays. `link`: GB/s of copies.
    ///
    /// # Errors
    /// The least number of bytes, if these are fewer.
    pub fn streamed(mut self, bytes: usize, link: f64) -> Result<Plan, usize> {
        let bodies = || (0..self.graph.bodies.len()).map(BodyId);
        let runs: Vec<usize> = bodies().map(|body| self.itinerary.runs_of(body)).collect();
        let arena: Vec<usize> = bodies().map(|body| self.arena_of(body)).collect();
        self.weights = Residency::streamed(&self.graph, &runs, &arena, bytes, &self.pace(link))?;
        Ok(self)
    }

    /// Bytes of activations and weights with which the plan can still run.
    pub fn least_bytes(&self) -> usize {
        self.clone().streamed(0, LINK_GB_PER_S).err().unwrap_or(0)
    }

    /// The plan with every weight resident if that fits; else weights stream in what fits. `link`: GB/s of copies; `like`: bytes in
    /// which the weights of another plan stream, so that what lies there can be used again.
    ///
    /// # Errors
    /// A [`ResourceError`] with the least number of bytes needed.
    pub fn fit(self, budget: Budget, link: f64, like: Option<usize>) -> Result<Plan> {
        let plan = self.resident();
        let free = budget.bytes().saturating_sub(plan.beside_streams());
        if let Some(bytes) = like.filter(|bytes| *bytes <= free)
            && let Ok(plan) = plan.clone().streamed(bytes, link)
        {
            return Ok(plan);
        }
        if plan.peak_bytes() <= budget.bytes() {
            return Ok(plan);
        }
        plan.clone().streamed(free, link).map_err(|least| ResourceError(plan.refusal(budget, least)).into())
    }

    /// Why not even streamed weights fit.
    fn refusal(&self, budget: Budget, least: usize) -> String {
        let others = self.beside_streams();
        format!(
            "the edit needs at least {} of GPU memory ({} for activations and the weights that one product needs, {} for driver and \
             kernels), but {budget}; use a smaller --size-level, or --device cpu",
            bytes(least + others),
            bytes(least),
            bytes(others)
        )
    }

    /// What takes how long.
    pub fn pace(&self, link: f64) -> Pace {
        Pace::of(&self.graph, &self.kernels, link)
    }

    /// What of each body's weights stays and what streams.
    pub fn memory(&self) -> Vec<BodyMemory> {
        let of = |body: BodyId| {
            let (mut memory, mut seen) = (BodyMemory::default(), std::collections::HashSet::new());
            for &storage in self.weights.segments_of(body).flat_map(|segment| self.weights.reads_of(segment)) {
                let size = self.graph.storages[storage.0].spec.bytes();
                let kind = if self.weights.kept[storage.0] { &mut memory.kept } else { &mut memory.streamed };
                *kind += if seen.insert(storage) { size } else { 0 };
            }
            if memory.streamed > 0 {
                let kept = self.weights.kept.iter().zip(&self.weights.offsets).filter(|(kept, _)| **kept);
                let end = kept.filter_map(|(_, offset)| *offset).min().unwrap_or(self.weights.bytes);
                memory.ring = end - self.weights.arena[self.weights.segments_of(body).start];
            }
            memory
        };
        (0..self.graph.bodies.len()).map(|body| of(BodyId(body))).collect()
    }

    /// How an edit after others goes by the model, body by body, with a link of so many GB/s.
    pub fn passages(&self, link: f64) -> Vec<Passage> {
        let (pace, visits) = (self.pace(link), self.weights.visits(&self.itinerary.visits()));
        let mut there = vec![false; self.graph.storages.len()];
        self.weights.arrivals(&visits, &mut there); // the edit before
        let mut passages = vec![Passage::default(); self.graph.bodies.len()];
        for arrival in self.weights.arrivals(&visits, &mut there.clone()) {
            let body = self.weights.segments[visits[arrival.visit]].body;
            passages[body.0].bytes += self.graph.storages[arrival.storage.0].spec.bytes();
        }
        let mut before = 0.0;
        for (&segment, visit) in visits.iter().zip(self.weights.timeline(&visits, &mut there, &pace)) {
            let passage = &mut passages[self.weights.segments[segment].body.0];
            passage.seconds += visit.ends - before;
            passage.stalls += visit.stalls;
            before = visit.ends;
        }
        passages
    }

    /// The memory in words, and what it costs over the stages.
    pub(super) fn chart(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let others = bytes(self.peak_bytes() - self.device_bytes());
        let (peak, arena) = (bytes(self.peak_bytes()), bytes(self.arena_bytes));
        let memory = self.memory();
        match self.weights.policy {
            Policy::Resident => {
                let least = bytes(self.least_peak_bytes());
                let weights = bytes(self.weights.bytes);
                writeln!(
                    f,
                    "on a device {peak}: {weights} for weights, {arena} for activations, {others} for driver and kernels"
                )?;
                writeln!(f, "weights are resident; with less memory (--max-vram) some stream, {least} are the least")
            }
            Policy::Streamed { bytes: region } => {
                let sum = |of: fn(&BodyMemory) -> usize| bytes(memory.iter().map(of).sum());
                let (kept, streamed, region) = (sum(|m| m.kept), sum(|m| m.streamed), bytes(region));
                writeln!(f, "on a device {peak}: {region} for activations and weights, {others} for driver and kernels")?;
                writeln!(f, "weights are streamed: {kept} stay, {streamed} come from the host whenever they are read")?;
                self.costs(f, &memory)
            }
        }
    }

    /// What streaming costs with links of several rates, each stage with all its runs.
    fn costs(&self, f: &mut fmt::Formatter, memory: &[BodyMemory]) -> fmt::Result {
        const LINKS: [f64; 3] = [55.0, 40.0, 25.0];
        // With each link the plan that is made for it.
        let plan = |link| self.clone().streamed(self.weights.bytes, link).unwrap_or_else(|_| self.clone());
        let passages = LINKS.map(|link| plan(link).passages(link));
        let pace = self.pace(LINK_GB_PER_S);
        writeln!(
            f,
            "{:<14}{:>10}{:>10}{:>10}{:>10}{:>12}   stalls with 55, 40, 25 GB/s of link",
            "stage", "stays", "streams", "ring", "GB/s", "a run"
        )?;
        for (number, (BodyPlan { name, runs, .. }, m)) in self.bodies.iter().zip(memory).enumerate() {
            let nodes: f64 = self.graph.bodies[number].nodes.clone().map(|at| pace.nodes[at]).sum();
            let runs = (*runs).max(1) as f64;
            let needed = passages[0][number].bytes as f64 / runs / nodes / 1e9;
            let [stays, streams, ring] = [m.kept, m.streamed, m.ring].map(bytes);
            let ms = passages[0][number].seconds / runs * 1e3;
            write!(f, "{name:<14}{stays:>10}{streams:>10}{ring:>10}{needed:>10.1}{:>12}  ", format!("{ms:.1} ms"))?;
            passages
                .iter()
                .try_for_each(|passage| write!(f, "{:>10}", format!("{:.1} ms", passage[number].stalls / runs * 1e3)))?;
            writeln!(f)?;
        }
        let all = passages.map(|passages| format!("{:.2}", passages.iter().map(|p| p.seconds).sum::<f64>()));
        writeln!(f, "an edit after others takes {} s with these links, as modelled for an H100", all.join(", "))
    }
}
