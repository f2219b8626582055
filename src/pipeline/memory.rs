//! The host's memory: what may still be taken, what an edit on the CPU takes of it, and what the process has taken.

use std::fmt;
use std::path::Path;

use anyhow::Result;

use crate::error::ResourceError;
use crate::graph::{Graph, Kind, Node};
use crate::plan::{Plan, format_bytes};
use crate::tensor::DType;

/// Of the memory that the system could give, the part that programs kept for later edits may hold.
const KEPT: f64 = 0.25;

/// What an edit takes beside its arena and the values of a node: the op's own buffers, pictures, tables. On two cores it is 20
/// to 30 MB for the demo model and the tiny one, from 64x64 to 1024x1024 pixels.
const WORK_BYTES: usize = 32_000_000;

/// Refuses a plan that needs more memory than may still be taken. `kept`: arenas of programs that are loaded, the least
/// recently used first; gives how many of them must go.
///
/// # Errors
/// A [`ResourceError`] with both numbers.
pub(super) fn check(plan: &Plan, kept: Vec<usize>) -> Result<usize> {
    let Some(free) = Free::now() else { return Ok(0) };
    let (needed, mut held) = (needed(plan), kept.iter().sum::<usize>());
    let available = free.bytes + held;
    if available < needed {
        let free = Free { bytes: available, ..free };
        let needed = format_bytes(needed);
        return Err(ResourceError(format!("the edit needs {needed} of memory, {free}, or use a smaller --size-level")).into());
    }
    let mut gone = 0;
    while held > 0 && held as f64 > KEPT * (available - needed) as f64 {
        held -= kept[gone];
        gone += 1;
    }
    Ok(gone)
}

/// Bytes that may still be taken; none where the kernel keeps no such books.
pub(super) fn free_bytes() -> Option<usize> {
    Free::now().map(|free| free.bytes)
}

/// Refuses work that needs more memory than may still be taken.
///
/// # Errors
/// A [`ResourceError`] with both numbers.
pub fn check_host_memory(what: &str, needed: usize) -> Result<()> {
    match Free::now().filter(|free| free.bytes < needed) {
        Some(free) => Err(ResourceError(format!("{what} needs {} of memory, {free}", format_bytes(needed))).into()),
        None => Ok(()),
    }
}

/// Bytes that an edit on the CPU takes: the arena, and what the largest node has beside it. A node's results are made beside
/// the arena, and some ops gather them once more; weights are widened, and convolutions turn them.
fn needed(plan: &Plan) -> usize {
    let beside = plan.graph.nodes.iter().map(|node| node_bytes(&plan.graph, node)).max();
    plan.arena_bytes + beside.unwrap_or(0) + WORK_BYTES
}

fn node_bytes(graph: &Graph, node: &Node) -> usize {
    let widened = |elements: usize| size_of::<f32>().saturating_mul(elements);
    let of_input = |&id: &_| {
        let (tensor, storage) = (graph.tensor(id), graph.storage_of(id));
        let as_it_lies = tensor.is_dense() && matches!(tensor.spec.dtype, DType::F32 | DType::I32 | DType::U8);
        match storage.kind {
            Kind::Weight(_) => 2 * widened(tensor.spec.shape.elements()),
            _ if as_it_lies => 0,
            _ => widened(tensor.spec.shape.elements()),
        }
    };
    let outputs = node.outputs.iter().map(|&id| 2 * widened(graph.tensor(id).spec.shape.elements()));
    node.inputs.iter().map(of_input).chain(outputs).sum()
}

/// Memory that the process may still take, and what bounds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Free {
    bytes: usize,
    bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// What the machine has.
    Machine,
    /// A limit of the process that the shell's command with this letter sets.
    Process(char),
    /// The limit of a container or a service: a control group's.
    Group,
}

impl fmt::Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes = format_bytes(self.bytes);
        match self.bound {
            Bound::Machine => write!(f, "{bytes} are available; close other programs"),
            Bound::Process(letter) => write!(f, "{bytes} are available within the process's limit; raise it (ulimit -{letter})"),
            Bound::Group => write!(f, "{bytes} are available within the container's limit; raise it (memory.max)"),
        }
    }
}

impl Free {
    /// What may be taken now; none where the kernel keeps no such books.
    fn now() -> Option<Free> {
        Free::told_by(Path::new("/"))
    }

    /// What the books below a folder say: the least of all bounds.
    fn told_by(root: &Path) -> Option<Free> {
        let machine = kib(root, "proc/meminfo", "MemAvailable:").map(|bytes| Free { bytes, bound: Bound::Machine });
        let processes = [("Max address space", "VmSize:", 'v'), ("Max data size", "VmData:", 'd')];
        let process = processes.into_iter().filter_map(|(limit, taken, letter)| {
            let bytes = limit_of(root, limit)?.saturating_sub(kib(root, "proc/self/status", taken)?);
            Some(Free { bytes, bound: Bound::Process(letter) })
        });
        let groups = groups(root).into_iter().map(|bytes| Free { bytes, bound: Bound::Group });
        machine.into_iter().chain(process).chain(groups).min_by_key(|free| free.bytes)
    }
}

/// What is left of the limits of the process's control groups, of either version, and of those above them. Files that the
/// kernel keeps in memory count as taken there, but make room.
fn groups(root: &Path) -> Vec<usize> {
    const NEW: (&str, [&str; 4]) = ("sys/fs/cgroup", ["memory.max", "memory.current", "inactive_file", "active_file"]);
    const OLD: (&str, [&str; 4]) =
        ("sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file"]);
    let mut found = Vec::new();
    for line in read(root, "proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, [limit, taken, inactive, active]) = match controllers {
            "" => NEW,
            _ if controllers.split(',').any(|name| name == "memory") => OLD,
            _ => continue,
        };
        // Within a container the path may be the host's, of which only the end, or nothing, is there.
        let path = Path::new(path.trim_start_matches('/'));
        found.extend(path.ancestors().filter_map(|group| {
            let group = Path::new(mount).join(group);
            let number = |name: &str| read(root, group.join(name))?.trim().parse::<usize>().ok();
            let stat = read(root, group.join("memory.stat")).unwrap_or_default();
            let files = [inactive, active].into_iter().filter_map(|name| word_after(&stat, name)?.parse::<usize>().ok());
            Some(number(limit)?.saturating_sub(number(taken)?.saturating_sub(files.sum())))
        }));
    }
    found
}

/// The process's largest resident size so far; none where the kernel keeps no such books.
pub fn peak_resident_bytes() -> Option<u64> {
    kib(Path::new("/"), "proc/self/status", "VmHWM:").map(|bytes| bytes as u64)
}

/// Bytes of memory that the process has taken and that no file backs; none where the kernel keeps no such books.
pub fn anonymous_bytes() -> Option<u64> {
    kib(Path::new("/"), "proc/self/status", "RssAnon:").map(|bytes| bytes as u64)
}

/// A line of one of the kernel's tables of sizes, in bytes.
fn kib(root: &Path, table: &str, name: &str) -> Option<usize> {
    word_after(&read(root, table)?, name)?.parse::<usize>().ok()?.checked_mul(1024)
}

/// A limit of the process, in bytes; none if there is no such limit.
fn limit_of(root: &Path, name: &str) -> Option<usize> {
    word_after(&read(root, "proc/self/limits")?, name)?.parse().ok()
}

fn read(root: &Path, file: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(root.join(file)).ok()
}

/// The first word after a line's name.
fn word_after<'a>(table: &'a str, name: &str) -> Option<&'a str> {
    table.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ops::PixelsIn;
    use crate::plan::{Itinerary, Precision, Target};

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
    fn a_plan_beyond_the_memory_is_refused_with_both_numbers() {
        assert_eq!(check(&plan_of(100), vec![]).unwrap(), 0);
        let error = check(&plan_of(1 << 40), vec![]).unwrap_err();
        let text = error.downcast_ref::<ResourceError>().unwrap().0.clone();
        // 3 bytes and 12 of each pixel in the arena, twice 12 beside it, and 32 MB.
        assert!(text.contains("needs 42880.99 GB") && text.contains("are available"), "{text}");
        assert!(check_host_memory("the test", 1).is_ok());
        let text = check_host_memory("the test", 1 << 60).unwrap_err().to_string();
        assert!(text.starts_with("the test needs 1152921504.61 GB of memory, ") && text.contains("are available"), "{text}");
    }

    #[test]
    fn programs_make_room_the_least_recently_used_first() {
        let available = Free::now().unwrap().bytes;
        assert_eq!(check(&plan_of(100), vec![1 << 20, 1 << 20]).unwrap(), 0);
        assert_eq!(check(&plan_of(100), vec![available, 1 << 20]).unwrap(), 1);
        assert_eq!(check(&plan_of(100), vec![1 << 20, 4 * available]).unwrap(), 2);
    }

    /// The kernel's books as files below a folder.
    fn books(files: &[(&str, &str)]) -> Option<Free> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Free::told_by(root.path())
    }

    const MEMORY: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:   8000 kB\n");
    const STATUS: (&str, &str) = ("proc/self/status", "VmSize:\t    3000 kB\nVmData:\t 1000 kB\n");

    #[test]
    fn the_least_of_all_bounds_counts() {
        let of = |bytes, bound| Some(Free { bytes, bound });
        assert_eq!(books(&[]), None);
        assert_eq!(books(&[MEMORY, STATUS]), of(8000 << 10, Bound::Machine));
        let limits = |space: &str, data: &str| {
            let text =
                format!("Max data size             {data}   unlimited  bytes\nMax address space  {space}  unlimited  bytes\n");
            books(&[MEMORY, STATUS, ("proc/self/limits", &text)])
        };
        assert_eq!(limits("unlimited", "unlimited"), of(8000 << 10, Bound::Machine));
        assert_eq!(limits("4096000", "unlimited"), of(4_096_000 - (3000 << 10), Bound::Process('v')));
        assert_eq!(limits("1000", "unlimited"), of(0, Bound::Process('v')));
        assert_eq!(limits("unlimited", "2048000"), of(2_048_000 - (1000 << 10), Bound::Process('d')));
    }

    #[test]
    fn limits_of_containers_count_and_their_files_make_room() {
        let of = |files: &[(&str, &str)]| books(&[&[MEMORY], files].concat()).unwrap();
        let group = |bytes| Free { bytes, bound: Bound::Group };
        let files = ("sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 100\nactive_file 20\n");
        let (max, current) = (("sys/fs/cgroup/memory.max", "5000\n"), ("sys/fs/cgroup/memory.current", "4000\n"));
        // Seen from within: the group is the root, whatever its path is called.
        for path in ["0::/\n", "0::/docker/3f\n"] {
            assert_eq!(of(&[("proc/self/cgroup", path), max, current, files]), group(1120));
        }
        assert_eq!(of(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "max\n"), current]).bound, Bound::Machine);
        // A group's own limit, and that of one above it.
        let own = [("sys/fs/cgroup/a/b/memory.max", "900\n"), ("sys/fs/cgroup/a/b/memory.current", "300\n")];
        let above = [("sys/fs/cgroup/a/memory.max", "700\n"), ("sys/fs/cgroup/a/memory.current", "500\n")];
        let within = ("proc/self/cgroup", "0::/a/b\n");
        assert_eq!(of(&[&[within], &own[..]].concat()), group(600));
        assert_eq!(of(&[&[within], &own[..], &above].concat()), group(200));
        // The older version.
        let old = [
            ("proc/self/cgroup", "3:cpu,cpuacct:/x\n5:memory:/docker/3f\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "4500\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 300\ninactive_file 7\n"),
        ];
        assert_eq!(of(&old), group(800));
    }

    #[test]
    fn what_helps_is_said() {
        for (bound, words) in [
            (Bound::Machine, "1.50 GB are available; close other programs"),
            (Bound::Process('v'), "1.50 GB are available within the process's limit; raise it (ulimit -v)"),
            (Bound::Group, "1.50 GB are available within the container's limit; raise it (memory.max)"),
        ] {
            assert_eq!(Free { bytes: 1_500_000_000, bound }.to_string(), words);
        }
    }
}
