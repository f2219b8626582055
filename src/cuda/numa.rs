//! Memory near a GPU: on a host whose memory is in several nodes, copies from another node than the GPU's are slower.
//!
//! Memory lies in the node of the thread that first writes to it, so whoever makes memory for copies runs on the CPUs of the GPU's
//! node. Where the system says nothing of nodes, or has one, nothing changes.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

/// Has the calling thread, and those that it starts from now on, run near the GPU at an address of the PCI bus, if the host has
/// several nodes.
pub(super) fn stay_near(bus: &str) {
    let cpus = cpus_near(Path::new("/"), bus);
    if !cpus.is_empty() {
        bind(&cpus);
    }
}

#[cfg(target_os = "linux")]
fn bind(cpus: &[RangeInclusive<usize>]) {
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().cloned().flatten().filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| set.set(cpu));
    // A process that may not use them stays where it may run.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

#[cfg(not(target_os = "linux"))]
fn bind(_: &[RangeInclusive<usize>]) {}

/// The CPUs of a GPU's node, as the files below a folder tell; none where there is one node.
fn cpus_near(root: &Path, bus: &str) -> Vec<RangeInclusive<usize>> {
    let read = |path: String| fs::read_to_string(root.join(path)).ok();
    let find = || {
        let online = list(&read("sys/devices/system/node/online".into())?)?;
        let nodes: usize = online.iter().map(|range| range.end() - range.start() + 1).sum();
        let node = read(format!("sys/bus/pci/devices/{}/numa_node", bus.to_lowercase()))?;
        let node: usize = node.trim().parse().ok().filter(|_| nodes > 1)?; // -1: it is not known
        list(&read(format!("sys/devices/system/node/node{node}/cpulist"))?)
    };
    find().unwrap_or_default()
}

/// Numbers as the kernel writes them: `0-15,64-79`.
fn list(text: &str) -> Option<Vec<RangeInclusive<usize>>> {
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => Some(first.parse().ok()?..=last.parse().ok()?),
        None => part.parse().ok().map(|one| one..=one),
    };
    text.trim().split(',').filter(|part| !part.is_empty()).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_are_those_of_the_node_of_the_gpu() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let near = || cpus_near(root.path(), "0000:9B:00.0");
        assert!(near().is_empty(), "nothing is known");
        write("sys/devices/system/node/online", "0-1\n");
        write("sys/devices/system/node/node0/cpulist", "0-3,8-11\n");
        write("sys/devices/system/node/node1/cpulist", "4-7,12\n");
        write("sys/bus/pci/devices/0000:9b:00.0/numa_node", "1\n");
        assert_eq!(near(), [4..=7, 12..=12]);
        write("sys/bus/pci/devices/0000:9b:00.0/numa_node", "-1\n");
        assert!(near().is_empty(), "the node is not known");
        write("sys/bus/pci/devices/0000:9b:00.0/numa_node", "0\n");
        assert_eq!(near(), [0..=3, 8..=11]);
        write("sys/devices/system/node/online", "0\n");
        assert!(near().is_empty(), "there is one node");
        for damaged in ["x", "1-", "-3", "1,,x"] {
            assert_eq!(list(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn a_thread_goes_on_wherever_it_is_bound_to() {
        let cpus = std::thread::available_parallelism().unwrap().get();
        std::thread::spawn(move || {
            bind(&[0..=0]);
            assert_eq!(std::thread::available_parallelism().unwrap().get(), 1);
            bind(&[1 << 20..=1 << 20]);
            stay_near("no such place");
            assert_eq!(std::thread::available_parallelism().unwrap().get(), 1, "what is refused changes nothing");
        })
        .join()
        .unwrap();
        assert_eq!(std::thread::available_parallelism().unwrap().get(), cpus, "other threads stay where they are");
    }
}
