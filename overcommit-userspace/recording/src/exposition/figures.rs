//! Columns as Prometheus has figures: what an interval counted goes on growing, and what it found
//! is as of the last look.

use crate::model::columns::{Column, Row, Unit, Value};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit as BaseUnit;

/// Time for which a gauge stays that no interval has again: it is looked at once a second.
const KEPT_NS: u64 = 3_000_000_000;

/// Columns that are no figures of their own here.
pub(super) const LEFT_OUT: [&str; 17] = [
    // They say which row it is.
    "partial",
    "interval",
    "delayed",
    "pid",
    "metrics",
    // Sums of histograms.
    "fault_ns",
    "stall_memory_ns",
    // Counters give them over any time.
    "stall_share",
    "cpu_wait_share",
    "memory_stall_share",
    "io_wait_share",
    // What was least in an interval says nothing of the time between two scrapes.
    "memory_least_available_bytes",
    "headroom_least_lower_bytes",
    "headroom_least_upper_bytes",
    // Nothing is missing in any histogram for these.
    "lost_slow_dropped",
    "lost_slow_limited",
    "lost_evictions_full",
];

/// Columns alike that are one figure: how their names begin and end, what that is called, the label
/// that tells them apart, and its sentence.
const ALIKE: [(&str, &str, &str, &str, &str); 10] = [
    ("lost_", "", "not_counted", "cause", "What happened and was not counted"),
    ("fault_", "_ns", "fault_part", "part", "Parts of the time of page faults"),
    (
        "stall_memory_",
        "_ns",
        "stall_memory_part",
        "part",
        "Parts of the time from memory exits to the next entries",
    ),
    (
        "invalidations_",
        "",
        "invalidations",
        "by",
        "How often KVM was told to unmap memory of the VM",
    ),
    ("faults_by_", "", "faults_taken", "by", "Page faults by who took them"),
    ("swapins_from_", "", "swapins", "source", "Swap-ins by where the page was"),
    (
        "file_faults_",
        "",
        "file_faults",
        "page",
        "Faults on pages of files: in the page cache, or read",
    ),
    ("swap_", "_ns", "swap_state", "state", "Time in each swap state"),
    ("balloon_", "_ns", "balloon_state", "state", "Time in each balloon state"),
    ("overcommit_", "_ns", "overcommit_state", "state", "Time in each overcommit state"),
];

/// Columns that need another name, or another sentence, where no other column stands beside them: of
/// the host or of a VM.
const RENAMED: [(&str, &str, &str); 51] = [
    (
        "host.swapped_in_pages_per_s",
        "swapped_in_pages",
        "Pages that came back from swap, zswap and pages of zeros included",
    ),
    (
        "host.configured_bytes",
        "configured",
        "Memory that was given to all VMs, huge pages of the pool left out",
    ),
    ("host.ballooned_bytes", "ballooned", "Memory that all VMs gave back"),
    (
        "host.can_grow_bytes",
        "three_largest_growth",
        "What the three VMs that can grow most could still take",
    ),
    ("host.in_use_share", "memory_in_use_share", "Fraction of the host's memory in use"),
    ("host.allocated_pages_per_s", "allocated_pages", "Pages allocated on the host"),
    (
        "host.ksm_saved_bytes",
        "ksm_saved",
        "What KSM has merged, which is taken again if VMs write to all of that memory",
    ),
    ("host.zram_holds_bytes", "zram_uncompressed", "What zram holds, before compression"),
    ("host.zswap_holds_bytes", "zswap_uncompressed", "What zswap holds, before compression"),
    (
        "host.psi_memory_some_ns",
        "psi_memory_some",
        "Time in which a task waited for memory, by the kernel's PSI",
    ),
    (
        "host.psi_memory_full_ns",
        "psi_memory_full",
        "Time in which all that could run waited for memory, by the kernel's PSI",
    ),
    (
        "host.reclaimed_ns",
        "reclaiming",
        "Time in which the host itself reclaimed memory, not only cgroups at their limits",
    ),
    ("host.zfs_arc_bytes", "zfs_arc", "Size of the ZFS cache (ARC)"),
    (
        "host.zfs_arc_evictable_bytes",
        "zfs_arc_evictable",
        "What ZFS gives back of the ARC when memory is short, which MemAvailable leaves out",
    ),
    (
        "vm.stall_ns",
        "stall",
        "Time for which vCPUs of the VM waited for memory, waits for a CPU in between included",
    ),
    (
        "vm.stall_runq_ns",
        "stall_runq",
        "Part of the stall time in which a vCPU was runnable but had no CPU",
    ),
    ("vm.vcpu_ns", "vcpu_wall", "vCPUs × time"),
    ("vm.vcpus_known_ns", "vcpus_known", "Time for which vCPU threads of the VM were known"),
    (
        "vm.vcpus_unknown_ns",
        "vcpu_wall_unknown",
        "Part of vCPUs × time of vCPUs whose threads were not known",
    ),
    ("vm.cpu_wait_ns", "cpu_wait", "Time for which vCPUs of the VM were runnable but had no CPU"),
    ("vm.recorded_ns", "recorded", "Time for which the VM was measured"),
    (
        "vm.stopped_ns",
        "stopped",
        "Time for which the VM's process was stopped, by SIGSTOP or a debugger",
    ),
    ("vm.faults_counted", "faults_counted", "Page faults of the VM's threads that were counted"),
    (
        "vm.faults_kernel",
        "faults_kernel",
        "Page faults that the kernel accounted to the VM's threads",
    ),
    (
        "vm.swapins_without_fault",
        "khugepaged_swapins",
        "Pages that khugepaged swapped in, which nobody waited for",
    ),
    ("vm.swapped_in_pages_per_s", "swapped_in_pages", "Pages of the VM that came back from swap"),
    (
        "vm.swapped_out_pages_per_s",
        "swapped_out_pages",
        "Pages of the VM's own memory cgroup that went to swap",
    ),
    (
        "vm.fault_swapin_io_ns",
        "fault_swapin_io",
        "Part of the faults' swap-in time in which the thread slept",
    ),
    (
        "vm.stall_memory_swapin_io_ns",
        "stall_memory_swapin_io",
        "Part of the memory exits' swap-in time in which the thread slept",
    ),
    ("vm.configured_bytes", "configured", "Memory that the VM was given"),
    ("vm.current_bytes", "balloon_current", "Memory that the balloon driver says the guest keeps"),
    ("vm.ballooned_bytes", "ballooned", "Memory that the VM gave back"),
    ("vm.resident_bytes", "resident", "What the VM has in RAM, with a part of what is shared"),
    ("vm.swapped_bytes", "swapped", "What the VM has on swap, with a part of what is shared"),
    ("vm.hugetlb_bytes", "hugetlb", "Huge pages of the host's pool that the VM has"),
    ("vm.overhead_bytes", "overhead", "Resident memory of QEMU itself, not of the guest"),
    ("vm.page_cache_bytes", "page_cache", "Resident memory backed by files on a disk"),
    ("vm.huge_pages_bytes", "huge_pages", "What the VM has mapped in transparent huge pages"),
    ("vm.guest_total_bytes", "guest_total", "Memory that the guest manages, by the guest's report"),
    (
        "vm.guest_available_bytes",
        "guest_available",
        "Memory that the guest's programs could still have, by the guest's report",
    ),
    (
        "vm.guest_free_bytes",
        "guest_free",
        "Memory that lies idle in the guest, by the guest's report",
    ),
    ("vm.guest_age_s", "guest_report_age", "How long ago the guest reported"),
    ("vm.working_set_lower_bytes", "working_set_lower", "Memory that the VM uses, at least"),
    ("vm.working_set_upper_bytes", "working_set_upper", "Memory that the VM uses, at most"),
    (
        "vm.working_set_window_s",
        "working_set_window",
        "Time in which memory must be touched to belong to the working set",
    ),
    (
        "vm.working_set_cost_share",
        "working_set_cost_share",
        "CPU time that measuring the working set takes ÷ time",
    ),
    ("vm.cgroup_limit_bytes", "cgroup_limit", "What the VM's memory cgroup may hold"),
    (
        "vm.cgroup_headroom_lower_bytes",
        "cgroup_headroom_lower",
        "What the cgroup's limit leaves beside the VM's working set, at least",
    ),
    (
        "vm.cgroup_headroom_upper_bytes",
        "cgroup_headroom_upper",
        "What the cgroup's limit leaves beside the VM's working set, at most",
    ),
    (
        "vm.numa_headroom_lower_bytes",
        "numa_headroom_lower",
        "What is left on the NUMA nodes that the VM is bound to, beside working sets, at least",
    ),
    (
        "vm.numa_headroom_upper_bytes",
        "numa_headroom_upper",
        "What is left on the NUMA nodes that the VM is bound to, beside working sets, at most",
    ),
];

/// A figure, and the column it is of.
pub(super) struct Figure<T> {
    column: Column<T>,
    /// Without the unit, and without the `_total` of counters.
    pub(super) name: String,
    /// What tells it from others of that name.
    pub(super) label: Option<(&'static str, String)>,
    pub(super) unit: Option<BaseUnit>,
    pub(super) kind: MetricType,
    pub(super) help: String,
    scale: Scale,
}

/// How the column's numbers become the figure's.
#[derive(Clone, Copy, Debug)]
enum Scale {
    /// So many units are one.
    Units(f64),
    /// So many a second, while it was looked at.
    Rate,
}

/// A figure's number, and when an interval had it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) number: f64,
    at_ns: u64,
}

impl<T> Figure<T> {
    /// Of a column of the `host`, or of a `vm`; `None` of what is no number, or none of the interval.
    pub(super) fn of(whose: &str, column: Column<T>) -> Option<Self> {
        if LEFT_OUT.contains(&&*column.name) {
            return None;
        }
        let (unit, kind, scale, end) = kind(column.unit)?;
        let column_name = column.name.as_ref();
        let alike = ALIKE.iter().find_map(|(begin, end, name, label, help)| {
            let member = column_name.strip_prefix(begin)?.strip_suffix(end)?;
            // Without an end of its own, a figure of another unit may begin alike.
            let is_counted = kind == MetricType::Counter;
            is_counted.then(|| (*name, Some((*label, member.to_owned())), *help))
        });
        let full = format!("{whose}.{column_name}");
        let renamed = RENAMED.iter().find(|(column, _, _)| *column == full);
        let (name, label, help) = match (renamed, alike) {
            (Some((_, name, help)), _) => (*name, None, *help),
            (None, Some(alike)) => alike,
            (None, None) => {
                (column_name.strip_suffix(end).unwrap_or(column_name), None, &*column.about)
            }
        };
        // What was not counted has one name, whatever it is of.
        let name = match name {
            "not_counted" => "overcommit_not_counted".to_owned(),
            name => format!("overcommit_{whose}_{}", name.replace("_share", "_ratio")),
        };
        Some(Self { name, label, unit, kind, help: help.to_owned(), scale, column })
    }

    /// Adds what an interval has, or takes it for what was there before. `looked_ns` is the time that
    /// rates are of.
    pub(super) fn update(
        &self,
        so_far: &mut Option<Known>,
        row: &Row<'_, T>,
        looked_ns: u64,
        now_ns: u64,
    ) {
        let value = match self.column.get(row) {
            Value::Count(number) => number as f64,
            Value::Signed(number) => number as f64,
            Value::Ratio(number) => number,
            Value::Absent | Value::Word(_) | Value::Text(_) => {
                let is_kept = |known: &Known| now_ns.saturating_sub(known.at_ns) < KEPT_NS;
                if self.kind == MetricType::Gauge {
                    *so_far = so_far.filter(is_kept);
                }
                return;
            }
        };
        let value = match self.scale {
            Scale::Units(units) => value / units,
            Scale::Rate => value * looked_ns as f64 / 1e9,
        };
        let before = so_far.filter(|_| self.kind == MetricType::Counter);
        let number = before.map_or(0.0, |known| known.number) + value;
        *so_far = Some(Known { number, at_ns: now_ns });
    }
}

/// What a column of that unit is, and how its name ends.
fn kind(unit: Unit) -> Option<(Option<BaseUnit>, MetricType, Scale, &'static str)> {
    let (counter, gauge) = (MetricType::Counter, MetricType::Gauge);
    Some(match unit {
        Unit::Count => (None, counter, Scale::Units(1.0), ""),
        Unit::WholeNanoseconds => (Some(BaseUnit::Seconds), counter, Scale::Units(1e9), "_ns"),
        Unit::PerSecond => (None, counter, Scale::Rate, "_per_s"),
        Unit::Bytes => (Some(BaseUnit::Bytes), gauge, Scale::Units(1.0), "_bytes"),
        Unit::Tenths | Unit::Thousandths => {
            (Some(BaseUnit::Seconds), gauge, Scale::Units(1.0), "_s")
        }
        Unit::Share => (None, gauge, Scale::Units(1.0), ""),
        Unit::Nanoseconds | Unit::Microseconds | Unit::Word | Unit::Text | Unit::Address => {
            return None;
        }
    })
}
