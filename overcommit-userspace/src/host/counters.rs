//! What the kernel counts for the whole host.

use crate::host::memory_use::number;
use crate::host::zfs::Arc;
use anyhow::{Context, Result};
use overcommit_recording::model::swap::Memory;
use procfs::prelude::{FromRead, FromReadSI};
use procfs::{CpuTime, KernelStats, LocalSystemInfo, Meminfo, MemoryPressure, VmStat};
use std::collections::HashMap;
use std::path::Path;

/// Counters since boot, and what memory there is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostCounters {
    /// Pages that came back from swap, zswap, or were all zero.
    pub swapped_in: u64,
    /// Pages that left for it.
    pub swapped_out: u64,
    /// Pages that anybody was given, for anything.
    pub allocated: u64,
    /// Grows whenever the host itself reclaims, for want of free memory: pages that kswapd took
    /// and allocations that had to reclaim. What a cgroup reclaims for its own limit is in
    /// neither (`shrink_inactive_list` and `do_try_to_free_pages`, mm/vmscan.c, 6.1 to 7.3);
    /// `pgsteal_direct` holds it in 7.3, not in 6.12.
    pub reclaims: u64,
    /// PSI's `some` of memory, in microseconds; `None` where it is off.
    pub stalled_us: Option<u64>,
    /// PSI's `full` of memory, likewise.
    pub fully_stalled_us: Option<u64>,
    /// Processes that were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Mappings of transparent huge pages that were split (`__split_huge_pmd_locked`,
    /// mm/huge_memory.c); `None` where the kernel has no such pages.
    pub huge_mappings_split: Option<u64>,
    /// CPU time waited for I/O, and all CPU time, in ticks.
    pub io_wait: (u64, u64),
    /// Memory now.
    pub memory: Memory,
    /// What ZFS gives back of its cache, in bytes.
    pub zfs_evictable: u64,
}

impl HostCounters {
    /// Reads them below `proc`, and what zswap wrote back below `sys` where the kernel is older
    /// than 6.8 and has no counter of it in vmstat: those pages are in `zswpout` and again in
    /// `pswpout`.
    ///
    /// # Errors
    /// A file is missing, or is not what it should be.
    pub fn read(proc: &Path, sys: &Path) -> Result<Self> {
        let failed = |name: &str| format!("cannot read {}", proc.join(name).display());
        let vmstat = VmStat::from_file(proc.join("vmstat")).with_context(|| failed("vmstat"))?;
        let mut vmstat = vmstat.0;
        if !vmstat.contains_key("zswpwb") {
            let pages = number(&sys.join("kernel/debug/zswap/written_back_pages")).unwrap_or(0);
            vmstat.insert("zswpwb".to_owned(), pages.cast_signed());
        }
        let stat = KernelStats::from_file(proc.join("stat"), &LocalSystemInfo);
        let memory = Meminfo::from_file(proc.join("meminfo")).with_context(|| failed("meminfo"))?;
        let psi = MemoryPressure::from_file(proc.join("pressure/memory")).ok();
        let used = memory.mem_total.saturating_sub(memory.mem_available.unwrap_or(0));
        let cpus = stat.with_context(|| failed("stat"))?.total;
        Ok(Self {
            swapped_in: swapped_in(&counter_of(&vmstat)).with_context(|| failed("vmstat"))?,
            swapped_out: swapped_out(&counter_of(&vmstat)).with_context(|| failed("vmstat"))?,
            allocated: sum_of(&vmstat, "pgalloc_"),
            reclaims: sum_of(&vmstat, "allocstall_") + sum_of(&vmstat, "pgsteal_kswapd"),
            stalled_us: psi.as_ref().map(|psi| psi.some.total),
            fully_stalled_us: psi.as_ref().map(|psi| psi.full.total),
            oom_kills: counter_of(&vmstat)("oom_kill"),
            huge_mappings_split: counter_of(&vmstat)("thp_split_pmd"),
            io_wait: (cpus.iowait.unwrap_or(0), all_ticks(&cpus)),
            memory: Memory {
                total: memory.mem_total,
                available: memory.mem_available,
                swap_total: memory.swap_total,
                swap_free: memory.swap_free,
            },
            zfs_evictable: Arc::read(proc, used).evictable,
        })
    }

    /// What is available, and what ZFS gives back of its cache, in bytes.
    pub fn available(&self) -> Option<u64> {
        Some(self.memory.available?.saturating_add(self.zfs_evictable))
    }
}

/// PSI's `some` of a file, in microseconds; `None` where it is off or not there.
pub fn stalled_us(file: &Path) -> Option<u64> {
    Some(MemoryPressure::from_file(file).ok()?.some.total)
}

/// Pages swapped in. What zswap has, or was all zero, is given back before `pswpin` is
/// counted (`swap_read_folio`, mm/page_io.c). `None` without `pswpin`.
pub fn swapped_in(counter: &impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let other = |name| counter(name).unwrap_or(0);
    Some(counter("pswpin")? + other("zswpin") + other("swpin_zero"))
}

/// Pages swapped out, those that zswap passes on counted once. `None` without `pswpout`.
pub fn swapped_out(counter: &impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let other = |name| counter(name).unwrap_or(0);
    let written = counter("pswpout")?.saturating_sub(other("zswpwb"));
    Some(written + other("zswpout") + other("swpout_zero"))
}

/// Sum of the counters whose names begin so: one of each zone.
fn sum_of(vmstat: &HashMap<String, i64>, prefix: &str) -> u64 {
    let zones = vmstat.iter().filter(|(name, _)| name.starts_with(prefix));
    zones.map(|(_, count)| u64::try_from(*count).unwrap_or(0)).sum()
}

/// Counters by name.
pub fn counter_of(counters: &HashMap<String, i64>) -> impl Fn(&str) -> Option<u64> {
    |name| u64::try_from(*counters.get(name)?).ok()
}

fn all_ticks(cpus: &CpuTime) -> u64 {
    let others = [cpus.iowait, cpus.irq, cpus.softirq, cpus.steal];
    let others = others.into_iter().flatten().sum::<u64>();
    cpus.user + cpus.nice + cpus.system + cpus.idle + others
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fs;

    /// A made-up /proc.
    pub(in crate::host) fn write_proc(proc: &Path, vmstat: &str, available_kib: u64) {
        fs::create_dir_all(proc.join("pressure")).unwrap();
        fs::write(proc.join("vmstat"), vmstat).unwrap();
        fs::write(
            proc.join("stat"),
            "cpu  10 0 10 70 10 0 0 0 0 0\nctxt 1\nbtime 1\nprocesses 1\n\
             procs_running 1\nprocs_blocked 0\n",
        )
        .unwrap();
        let zero = ["MemFree", "Buffers", "Cached", "SwapCached", "Active", "Inactive", "Dirty"]
            .into_iter()
            .chain(["Writeback", "Mapped", "Slab", "VmallocTotal", "VmallocUsed", "VmallocChunk"])
            .chain(["Committed_AS", "SwapFree", "SwapTotal"])
            .map(|name| format!("{name}: 0 kB\n"))
            .collect::<String>();
        let memory = format!("MemTotal: 1000 kB\nMemAvailable: {available_kib} kB\n{zero}");
        fs::write(proc.join("meminfo"), memory).unwrap();
    }

    #[test]
    fn what_zswap_holds_counts_once() {
        let [proc, sys] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let vmstat = "pswpin 5\npswpout 9\nzswpin 7\nzswpout 20\nzswpwb 4\nswpin_zero 1\n\
            swpout_zero 2\nallocstall_normal 3\nallocstall_dma 1\npgsteal_kswapd 40\n\
            pgsteal_direct 500\n";
        write_proc(proc.path(), vmstat, 500);
        let counters = HostCounters::read(proc.path(), sys.path()).unwrap();
        assert_eq!((counters.swapped_in, counters.swapped_out), (13, 27));
        assert_eq!(counters.reclaims, 44);
        write_proc(proc.path(), &vmstat.replace("zswpwb 4\n", ""), 500);
        let written = || HostCounters::read(proc.path(), sys.path()).unwrap().swapped_out;
        assert_eq!(written(), 31, "nobody says");
        let zswap = sys.path().join("kernel/debug/zswap");
        fs::create_dir_all(&zswap).unwrap();
        fs::write(zswap.join("written_back_pages"), "4\n").unwrap();
        assert_eq!(written(), 27, "Linux 6.1");
        assert_eq!((counters.io_wait, counters.stalled_us), ((10, 100), None));
        assert_eq!(counters.memory.available, Some(500 << 10));
        let some = "some avg10=0.00 avg60=0.00 avg300=0.00 total=42\n";
        let full = some.replace("some", "full");
        fs::write(proc.path().join("pressure/memory"), format!("{some}{full}")).unwrap();
        assert_eq!(HostCounters::read(proc.path(), sys.path()).unwrap().stalled_us, Some(42));
        fs::remove_file(proc.path().join("vmstat")).unwrap();
        let error = format!("{:#}", HostCounters::read(proc.path(), sys.path()).unwrap_err());
        assert!(error.contains("vmstat"), "{error}");
    }
}
