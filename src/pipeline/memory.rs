//! The CPU's memory: what an edit takes of it, and what the process has taken.

use anyhow::Result;

use crate::error::ResourceError;
use crate::plan::{Plan, format_bytes};

/// Of the memory that the system could give, the part that programs kept for later edits may hold.
const KEPT: f64 = 0.25;

/// Refuses a plan whose arena is larger than the memory that the system could give. `kept`: arenas of programs that are
/// loaded, the least recently used first; gives how many of them must go.
///
/// # Errors
/// A [`ResourceError`] with both numbers.
pub(super) fn check(plan: &Plan, kept: Vec<usize>) -> Result<usize> {
    let Some(available) = proc_kib("/proc/meminfo", "MemAvailable:") else { return Ok(0) };
    let mut held: usize = kept.iter().sum();
    let available = available as usize + held;
    if available < plan.arena_bytes {
        let (needed, available) = (format_bytes(plan.arena_bytes), format_bytes(available));
        let text =
            format!("the edit needs {needed} of memory for activations, {available} are available; use a smaller --size-level");
        return Err(ResourceError(text).into());
    }
    let mut gone = 0;
    while held > 0 && held as f64 > KEPT * (available - plan.arena_bytes) as f64 {
        held -= kept[gone];
        gone += 1;
    }
    Ok(gone)
}

/// The process's largest resident size so far; none where the kernel keeps no such books.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    proc_kib("/proc/self/status", "VmHWM:")
}

/// A line of one of the kernel's tables of sizes, in bytes.
fn proc_kib(table: &str, name: &str) -> Option<u64> {
    let table = std::fs::read_to_string(table).ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;
    use crate::ops::PixelsIn;
    use crate::plan::{Itinerary, Precision, Target};
    use crate::tensor::DType;

    fn plan_of(pixels: usize) -> Plan {
        let mut g = Graph::new();
        g.body("vae_encode", |g| {
            let x = g.input("rgb", DType::U8, [1, pixels, 3]);
            g.op("pixels_in", PixelsIn(DType::F32), &[x])
        });
        let itinerary = Itinerary::of_all(&g);
        Plan::new(g, itinerary, Precision::F32, Target::Cpu).unwrap()
    }

    #[test]
    fn an_arena_beyond_the_memory_is_refused_with_both_numbers() {
        assert_eq!(check(&plan_of(100), vec![]).unwrap(), 0);
        let error = check(&plan_of(1 << 40), vec![]).unwrap_err();
        let text = error.downcast_ref::<ResourceError>().unwrap().0.clone();
        assert!(text.contains("needs 16492.67 GB") && text.contains("are available"), "{text}");
    }

    #[test]
    fn programs_make_room_the_least_recently_used_first() {
        let available = proc_kib("/proc/meminfo", "MemAvailable:").unwrap() as usize;
        assert_eq!(check(&plan_of(100), vec![1 << 20, 1 << 20]).unwrap(), 0);
        assert_eq!(check(&plan_of(100), vec![available, 1 << 20]).unwrap(), 1);
        assert_eq!(check(&plan_of(100), vec![1 << 20, 4 * available]).unwrap(), 2);
    }
}
