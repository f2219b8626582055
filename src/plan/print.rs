//! The plan as text: device memory, itinerary, demands by stage, the arena's largest tenants, kernels by number.

use std::collections::BTreeMap;
use std::fmt;

use super::{Plan, Target};

/// A number of bytes, to three digits, in units of 1000.
pub fn bytes(n: usize) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let activations = self.precision.dtype();
        let products = if self.precision.rounds_products() { format!(", {} products", self.precision) } else { String::new() };
        writeln!(
            f,
            "{activations} activations{products}, arena {} ({} bytes), weights {}",
            bytes(self.arena_bytes),
            self.arena_bytes,
            bytes(self.weight_bytes())
        )?;
        if let Target::Cuda(_) = self.target {
            self.chart(f)?;
        }
        writeln!(f, "itinerary: {}", self.itinerary.named(&self.graph))?;
        writeln!(f, "{:<14}{:>7}{:>7}{:>12}{:>12}{:>12}", "stage", "nodes", "runs", "weights", "live", "TFLOP")?;
        for s in &self.bodies {
            let tflop = s.flops as f64 / 1e12;
            writeln!(
                f,
                "{:<14}{:>7}{:>7}{:>12}{:>12}{:>12.3}",
                s.name,
                s.nodes,
                s.runs,
                bytes(s.weight_bytes),
                bytes(s.live_bytes),
                tflop
            )?;
        }
        self.tenants(f)?;
        let mut kernels: BTreeMap<String, usize> = BTreeMap::new();
        self.kernels.iter().for_each(|k| *kernels.entry(k.to_string()).or_default() += 1);
        kernels.iter().try_for_each(|(kernel, count)| writeln!(f, "{count:>6} x {kernel}"))
    }
}

impl Plan {
    /// The twelve largest storages of the arena: offset, size, nodes that they live through, name.
    fn tenants(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let storages = self.graph.storages.iter().enumerate();
        let mut tenants: Vec<_> =
            storages.filter_map(|(i, s)| Some((s.spec.bytes(), self.offsets[i]?, self.lifetimes[i].clone()?, s))).collect();
        tenants.sort_by_key(|(size, offset, life, _)| (std::cmp::Reverse(*size), *life.start(), *offset));
        writeln!(f, "largest of {} storages in the arena (offset, size, nodes):", tenants.len())?;
        for (size, offset, life, s) in tenants.iter().take(12) {
            writeln!(f, "  {offset:>12} {:>10} {:>5}..{:<5} {} {}", bytes(*size), life.start(), life.end(), s.name, s.spec)?;
        }
        Ok(())
    }
}
