//! How much memory does each VM hold, and what takes memory beside them? Each page
//! counted once.

use crate::host::zfs::Arc;
use crate::vm::maps;
use crate::vm::memory::{figure, is_in, ram};
use anyhow::{Context, Result, ensure};
use overcommit_recording::model::memory::Compressed;
use overcommit_recording::model::memory::HostMemory;
use overcommit_recording::model::memory::MemoryUse;
use procfs::Meminfo;
use procfs::prelude::FromRead;
use procfs::process::{
    MMPermissions, MMapPath, MemoryMap, MountInfo, MountInfos, Process, Status, VmFlags,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is read of smaps.
const FIGURES: [&str; 9] = [
    "Pss",
    "Anonymous",
    "Swap",
    "SwapPss",
    "AnonHugePages",
    "ShmemPmdMapped",
    "FilePmdMapped",
    "Private_Hugetlb",
    "Shared_Hugetlb",
];

/// A file of shared memory, by device and inode.
type Inode = (i32, i32, u64);

/// What smaps tells of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    own: MemoryUse,
    shared: BTreeMap<Inode, Shared>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shared {
    /// Its blocks: in RAM and on swap, mapped or not; `None` if that cannot be told.
    held: Option<u64>,
    /// Mapped pages in RAM, those that others map divided among all.
    mapped: u64,
    swapped: u64,
}

impl ProcessMemory {
    /// Whether others can fill and swap out some of it, which its process's own counters do not show.
    pub fn is_shared(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Reads /proc/PID/smaps, for which the kernel walks the page tables under the
    /// mmap lock: not for every interval.
    ///
    /// # Errors
    /// The process is gone.
    pub fn read(proc: &Path, pid: i32) -> Result<Self> {
        let dir = proc.join(pid.to_string());
        let process = Process::new_with_root(dir.clone())?;
        let maps = maps::read_with(&process, &FIGURES)?;
        // So it is while a process starts or ends.
        ensure!(maps.iter().next().is_some(), "process {pid} has no memory");
        let mounts =
            MountInfos::from_file(dir.join("mountinfo")).map(|mounts| mounts.0).unwrap_or_default();
        let mut memory = Self::default();
        let ram = ram(maps.iter());
        for map in maps {
            if !is_in(&map, &ram) {
                memory.own.overhead += figure(&map, "Pss");
            }
            memory.add(&map, &mounts, |map| {
                let (start, end) = map.address;
                let file = dir.join(format!("map_files/{start:x}-{end:x}"));
                // Blocks are of 512 bytes whatever the file system's are.
                fs::metadata(file).ok().map(|file| file.blocks() * 512)
            });
        }
        Ok(memory)
    }

    fn add(
        &mut self,
        map: &MemoryMap,
        mounts: &[MountInfo],
        held: impl FnOnce(&MemoryMap) -> Option<u64>,
    ) {
        let bytes = |name| figure(map, name);
        self.own.hugetlb += bytes("Private_Hugetlb") + bytes("Shared_Hugetlb");
        let transparent = ["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"].map(bytes);
        self.own.huge_pages += transparent.iter().sum::<u64>();
        // Neither resident nor swapped, and its file's blocks are the pool's.
        if map.extension.vm_flags.contains(VmFlags::HT) {
            return;
        }
        if is_shared_memory(map, mounts) {
            let shared = self.shared.entry((map.dev.0, map.dev.1, map.inode));
            // `Swap` of shared memory is the object's, whoever maps it
            // (`smap_gather_stats`, fs/proc/task_mmu.c); one that is mapped in pieces
            // has it piece by piece.
            let shared = shared.or_insert_with(|| Shared { held: held(map), ..Shared::default() });
            shared.mapped += bytes("Pss");
            shared.swapped += bytes("Swap");
        } else {
            self.own.resident += bytes("Pss");
            if map.inode != 0 && !is_on_tmpfs(map, mounts) {
                // What was written in a private mapping is the process's own.
                self.own.page_cache += bytes("Pss").saturating_sub(bytes("Anonymous"));
            }
            self.own.swapped += bytes("SwapPss");
        }
    }
}

/// Memory that others can map as well: a memfd, a file on tmpfs, shared anonymous memory.
pub(super) fn is_shared_memory(map: &MemoryMap, mounts: &[MountInfo]) -> bool {
    map.perms.contains(MMPermissions::SHARED) && is_on_tmpfs(map, mounts)
}

/// Whether it is of a file that has its pages nowhere but in memory and on swap.
fn is_on_tmpfs(map: &MemoryMap, mounts: &[MountInfo]) -> bool {
    let device = format!("{}:{}", map.dev.0, map.dev.1);
    let path = match &map.pathname {
        MMapPath::Path(path) => path.to_string_lossy(),
        _ => return false,
    };
    path.starts_with("/memfd:")
        || path.starts_with("/dev/zero")
        || mounts.iter().any(|mount| mount.fs_type == "tmpfs" && mount.majmin == device)
}

/// What each holds, shared memory divided among those that map it.
pub fn divide<K: Ord + Copy>(processes: &BTreeMap<K, ProcessMemory>) -> BTreeMap<K, MemoryUse> {
    let mut sharers: BTreeMap<Inode, u64> = BTreeMap::new();
    for inode in processes.values().flat_map(|process| process.shared.keys()) {
        *sharers.entry(*inode).or_default() += 1;
    }
    let divided = processes.iter().map(|(key, process)| {
        let mut sum = process.own;
        for (inode, shared) in &process.shared {
            let parts = sharers[inode];
            sum.swapped += shared.swapped / parts;
            sum.resident += match shared.held {
                Some(held) => held.saturating_sub(shared.swapped) / parts,
                None => shared.mapped,
            };
        }
        (*key, sum)
    });
    divided.collect()
}

/// What part of what is held is a notable one, and how many bytes at the least.
const NOTABLE: u64 = 64;
const NOTABLE_BYTES: u64 = 16 << 20;

/// What a process has in RAM, without a walk over its page tables, in bytes; each sharer has
/// all of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Pages of files, but for those of shared memory.
    file: u64,
    /// All others.
    other: u64,
    /// Private memory of it on swap, which is not in RAM.
    swapped: u64,
    /// Huge pages of the pool, which are counted as neither.
    hugetlb: u64,
}

impl Held {
    /// As its status file has it; `None` of a process that is gone.
    pub fn read(proc: &Path, pid: i32) -> Option<Self> {
        // By hand: every VM's is read every two seconds, and few of its lines are needed.
        let text = fs::read(proc.join(pid.to_string()).join("status")).ok()?;
        let (mut all, mut held) = (None, Self::default());
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((name, rest)) = line.split_once(':') else { continue };
            let bytes =
                || rest.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10);
            match name {
                "VmRSS" => all = bytes(),
                "RssFile" => held.file = bytes().unwrap_or(0),
                "VmSwap" => held.swapped = bytes().unwrap_or(0),
                "HugetlbPages" => held.hugetlb = bytes().unwrap_or(0),
                _ => {}
            }
        }
        Some(Self { other: all?.saturating_sub(held.file), ..held })
    }

    /// Whether so much of it came or went that its page tables tell something new.
    pub fn differs(self, then: Self) -> bool {
        let differs =
            |now: u64, then: u64| now.abs_diff(then) > (then / NOTABLE).max(NOTABLE_BYTES);
        differs(self.file, then.file)
            || differs(self.other, then.other)
            || differs(self.swapped, then.swapped)
            || differs(self.hugetlb, then.hugetlb)
    }

    /// All of it that is in RAM, huge pages of the pool left out.
    pub fn bytes(self) -> u64 {
        self.file + self.other
    }

    /// Private memory of it that is on swap.
    pub fn swapped(self) -> u64 {
        self.swapped
    }

    /// So much private memory.
    #[cfg(test)]
    pub(super) fn private(other: u64) -> Self {
        Self { other, ..Self::default() }
    }
}

/// What the kernel says of a process in its status file.
pub(super) fn status(proc: &Path, pid: i32) -> Option<Status> {
    Process::new_with_root(proc.join(pid.to_string())).ok()?.status().ok()
}

/// What is resident and swapped now of what was at the last walk, by what the process held then and
/// now; what of shared memory is on swap is as of the walk. A walk may be minutes old, and memory that a
/// VM took since is no longer available.
pub fn as_of_now(memory: MemoryUse, then: Option<Held>, now: Option<Held>) -> MemoryUse {
    let Some((then, now)) = then.zip(now) else { return memory };
    let grown = |bytes: u64, then: u64, now: u64| match then {
        0 => bytes,
        _ => (bytes as f64 * now as f64 / then as f64) as u64,
    };
    let page_cache = grown(memory.page_cache, then.file, now.file);
    let resident = page_cache + grown(memory.freed(), then.other, now.other);
    let moved = |bytes: u64, then: u64, now: u64| (bytes + now).saturating_sub(then);
    let swapped = moved(memory.swapped, then.swapped, now.swapped);
    let hugetlb = moved(memory.hugetlb, then.hugetlb, now.hugetlb);
    MemoryUse { resident, page_cache, swapped, hugetlb, ..memory }
}

/// Memory of the host, without huge pages of the pool.
///
/// # Errors
/// /proc/meminfo is missing, or is not what it should be.
pub fn host(proc: &Path, sys: &Path, page_size: u64) -> Result<HostMemory> {
    let path = proc.join("meminfo");
    let memory = Meminfo::from_file(&path);
    let memory = memory.with_context(|| format!("cannot read {}", path.display()))?;
    // Before Linux 4.20 only the pool of the default size is told.
    let pool = memory.hugepages_total.unwrap_or(0) * memory.hugepagesize.unwrap_or(0);
    let used = memory.mem_total.saturating_sub(memory.mem_available.unwrap_or(0));
    let arc = Arc::read(proc, used);
    let merged = ["pages_sharing", "ksm_zero_pages"]
        .map(|name| number(&sys.join("kernel/mm/ksm").join(name)).unwrap_or(0));
    Ok(HostMemory {
        total: memory.mem_total,
        available: memory.mem_available,
        hugetlb_pools: memory.hugetlb.unwrap_or(pool),
        ksm_saved: merged.iter().sum::<u64>() * page_size,
        zfs_arc: arc.size,
        zfs_arc_evictable: arc.evictable,
        zram: zram(sys),
        zswap: Compressed {
            taken: memory.z_swap.unwrap_or(0),
            held: memory.z_swapped.unwrap_or(0),
        },
    })
}

pub(super) fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// All devices together: the first and the third figure of mm_stat.
fn zram(sys: &Path) -> Compressed {
    let mut sum = Compressed::default();
    for entry in fs::read_dir(sys.join("block")).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("zram") {
            continue;
        }
        let text = fs::read_to_string(entry.path().join("mm_stat")).unwrap_or_default();
        let figures: Vec<u64> =
            text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        if let [held, _, taken, ..] = figures[..] {
            sum.held += held;
            sum.taken += taken;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A made-up process.
    fn process(proc: &Path, pid: i32, smaps: &str) -> ProcessMemory {
        let dir = proc.join(pid.to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("smaps"), smaps).unwrap();
        fs::write(dir.join("mountinfo"), "30 1 0:25 / /dev/shm rw - tmpfs tmpfs rw\n").unwrap();
        ProcessMemory::read(proc, pid).unwrap()
    }

    fn map(line: &str, figures: &str) -> String {
        format!("{line}\n{figures}VmFlags: rd wr mr mw me ac \n")
    }

    #[test]
    fn what_a_vm_takes_after_the_walk_is_resident() {
        let gib = 1 << 30;
        let held =
            |file: u64, other: u64| Some(Held { file: file * gib, ..Held::private(other * gib) });
        let walked = MemoryUse { resident: 21 * gib, page_cache: gib, ..MemoryUse::default() };
        let swaps = |then, now| {
            let swapped = |gibs: u64| Some(Held { swapped: gibs * gib, ..held(2, 24).unwrap() });
            let walked = MemoryUse { swapped: 3 * gib, ..walked };
            as_of_now(walked, swapped(then), swapped(now)).swapped / gib
        };
        // Of the three, one is shared memory's.
        assert_eq!((swaps(2, 5), swaps(2, 1), swaps(4, 0)), (6, 2, 0));
        let now = |then, now| {
            let memory = as_of_now(walked, then, now);
            (memory.resident / gib, memory.page_cache / gib)
        };
        assert_eq!(now(held(2, 24), held(2, 60)), (51, 1));
        assert_eq!(now(None, held(2, 60)), (21, 1));
        assert_eq!(now(held(0, 0), held(1, 1)), (21, 1));
        // A guest that is read from a snapshot's file: those pages stay available.
        assert_eq!(now(held(1, 20), held(4, 20)), (24, 4));
        let own = Held::read(Path::new("/proc"), std::process::id().cast_signed()).unwrap();
        assert!(own.file > 0 && own.other > 0, "{own:?}");
        let more = |bytes| Held { other: own.other + bytes, ..own };
        assert!(!more(NOTABLE_BYTES).differs(own) && more(gib).differs(own));
        assert!(!held(1, 100).unwrap().differs(held(1, 101).unwrap()), "a hundredth");
    }

    #[test]
    fn two_vms_on_one_memfd_hold_one_copy() {
        let proc = tempfile::tempdir().unwrap();
        let smaps = map(
            "7f0000000000-7f0040000000 rw-s 00000000 00:01 77 /memfd:ram (deleted)",
            "Pss: 51200 kB\nSwap: 20480 kB\nSwapPss: 0 kB\n",
        ) + &map(
            "7f0050000000-7f0060000000 rw-p 00000000 00:00 0 ",
            "Pss: 1024 kB\nSwap: 2048 kB\nSwapPss: 2048 kB\n",
        ) + &map(
            "55d000000000-55d000400000 rw-p 00000000 00:00 0 [heap]",
            "Pss: 2048 kB\nSwap: 0 kB\nSwapPss: 0 kB\n",
        );
        let mut processes: BTreeMap<i32, ProcessMemory> =
            [1, 2].map(|pid| (pid, process(proc.path(), pid, &smaps))).into();
        let each = divide(&processes);
        assert_eq!((each[&1].resident, each[&1].swapped), (53 * MIB, 12 * MIB));
        assert_eq!(each[&1].overhead, 2 * MIB, "the heap, which is no guest's memory");
        let sum: u64 = each.values().map(|held| held.swapped).sum();
        assert_eq!(sum, 20 * MIB + 2 * 2 * MIB, "the shared part once");
        // A page that nobody maps is held all the same.
        for process in processes.values_mut() {
            process.shared.values_mut().for_each(|shared| shared.held = Some(220 * MIB));
        }
        assert_eq!(divide(&processes)[&2].resident, 103 * MIB);
    }

    #[test]
    fn huge_pages_and_private_files_are_no_shared_memory() {
        let proc = tempfile::tempdir().unwrap();
        let smaps = map(
            "7f0000000000-7f0040000000 rw-s 00000000 00:0f 9 /memfd:ram (deleted)",
            "Pss: 0 kB\nShared_Hugetlb: 1048576 kB\nSwap: 0 kB\n",
        )
        .replace(" ac ", " ac ht ")
            + &map(
                "7f0050000000-7f0060000000 rw-p 00000000 00:19 5 /dev/shm/image",
                "Pss: 1024 kB\nSwap: 0 kB\nSwapPss: 512 kB\nPrivate_Hugetlb: 2048 kB\n\
                 AnonHugePages: 512 kB\nShmemPmdMapped: 256 kB\nFilePmdMapped: 128 kB\n",
            )
            + &map(
                "7f0070000000-7f0080000000 rw-s 00000000 00:19 6 /dev/shm/ram",
                "Pss: 4096 kB\nSwap: 8192 kB\nSwapPss: 0 kB\n",
            );
        let memory = process(proc.path(), 1, &smaps);
        // Each of these is large enough to be a guest's.
        let own = MemoryUse {
            resident: MIB,
            swapped: MIB / 2,
            hugetlb: 1026 * MIB,
            overhead: 0,
            page_cache: 0,
            huge_pages: 896 << 10,
        };
        assert_eq!((memory.own, memory.shared.len()), (own, 1));
    }

    #[test]
    fn pages_of_a_snapshot_are_in_the_page_cache_and_what_was_written_is_not() {
        let proc = tempfile::tempdir().unwrap();
        let snapshot = |perms: &str, anonymous: u32| {
            let line = format!("7f0000000000-7f0100000000 {perms} 00000000 08:01 12 /snapshot/ram");
            let figures = format!("Pss: 3145728 kB\nAnonymous: {anonymous} kB\nSwap: 0 kB\n");
            process(proc.path(), 1, &map(&line, &figures)).own
        };
        let (shared, private) = (snapshot("rw-s", 0), snapshot("rw-p", 1 << 20));
        assert_eq!((shared.resident, shared.freed()), (3072 * MIB, 0));
        assert_eq!((private.resident, private.freed()), (3072 * MIB, 1024 * MIB));
    }

    #[test]
    fn what_the_host_has_beside_vms() {
        let root = tempfile::tempdir().unwrap();
        let (proc, sys) = (root.path().join("proc"), root.path().join("sys"));
        crate::host::counters::tests::write_proc(&proc, "pswpin 0\npswpout 0\n", 500);
        let text = fs::read_to_string(proc.join("meminfo")).unwrap();
        let more = "HugePages_Total: 2\nHugepagesize: 2048 kB\nZswap: 10 kB\nZswapped: 30 kB\n";
        fs::write(proc.join("meminfo"), text + more).unwrap();
        fs::create_dir_all(sys.join("kernel/mm/ksm")).unwrap();
        fs::write(sys.join("kernel/mm/ksm/pages_sharing"), "100\n").unwrap();
        for (name, figures) in [("zram0", "4096 70 8192 0"), ("zram1", "1 1 1 1"), ("sda", "9")] {
            fs::create_dir_all(sys.join("block").join(name)).unwrap();
            fs::write(sys.join("block").join(name).join("mm_stat"), figures).unwrap();
        }
        let memory = host(&proc, &sys, 4096).unwrap();
        assert_eq!((memory.hugetlb_pools, memory.ksm_saved), (4 * MIB, 409_600));
        assert_eq!(memory.zram, Compressed { taken: 8193, held: 4097 });
        assert_eq!(memory.zswap, Compressed { taken: 10 << 10, held: 30 << 10 });
    }
}
