//! Columns as Prometheus has figures: what an interval counted goes on growing, and what it found
//! is as of the last look.

use crate::model::columns::{Column, Row, Unit, Value};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit as BaseUnit;

/// Time for which a gauge stays that no interval has again: it is looked at once a second.
const KEPT_NS: u64 = 3_000_000_000;

/// Columns that are no figures of their own here.
const LEFT_OUT: [&str; 17] = [
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
    // What was least in an interval says nothing of the time between two scrapes.
    "memory_least_available_bytes",
    "headroom_least_lower_bytes",
    "headroom_least_upper_bytes",
    // Nothing is missing in any histogram for these.
    "lost_slow_dropped",
    "lost_slow_limited",
    "lost_evictions_full",
    "lost_backing_full",
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

/// Columns that need another name or sentence where no other column stands beside them.
const RENAMED: [(&str, &str, &str); 21] = [
    ("vcpu_ns", "vcpu_wall", "vCPUs × time"),
    ("vcpus_known_ns", "vcpus_known", "Time for which vCPU threads of the VM were known"),
    (
        "vcpus_unknown_ns",
        "vcpu_wall_unknown",
        "Part of vCPUs × time of vCPUs whose threads were not known",
    ),
    (
        "stall_runq_ns",
        "stall_runq",
        "Part of the stall time in which a vCPU was runnable but had no CPU",
    ),
    ("recorded_ns", "recorded", "How long the VM was recorded"),
    ("configured_bytes", "configured", "Memory that was given to VMs"),
    ("current_bytes", "balloon_current", "What the balloon driver says that the guest keeps"),
    ("ballooned_bytes", "ballooned", "Memory that balloons gave back"),
    ("guest_age_s", "guest_report_age", "How long ago the guest reported its memory"),
    (
        "cgroup_headroom_lower_bytes",
        "cgroup_headroom_lower",
        "What the cgroup's limit leaves beside the VM's working set, at least",
    ),
    (
        "cgroup_headroom_upper_bytes",
        "cgroup_headroom_upper",
        "What the cgroup's limit leaves beside the VM's working set, at most",
    ),
    (
        "can_grow_bytes",
        "three_largest_growth",
        "What the three VMs that can grow most could still take",
    ),
    ("in_use_share", "memory_in_use_share", "Part of the host's memory that is in use"),
    ("zram_holds_bytes", "zram_uncompressed", "What zram holds, before it was compressed"),
    ("zswap_holds_bytes", "zswap_uncompressed", "What zswap holds, before it was compressed"),
    (
        "psi_memory_some_ns",
        "psi_memory_some",
        "Time in which a task waited for memory, by the kernel's PSI",
    ),
    (
        "psi_memory_full_ns",
        "psi_memory_full",
        "Time in which all that could run waited for memory, by the kernel's PSI",
    ),
    (
        "reclaimed_ns",
        "reclaiming",
        "Time in which the host itself reclaimed memory, not only cgroups at their limits",
    ),
    (
        "swapins_without_fault",
        "khugepaged_swapins",
        "Pages that khugepaged swapped in, which nobody waited for",
    ),
    (
        "numa_headroom_lower_bytes",
        "numa_headroom_lower",
        "What is left on the NUMA nodes that the VM is bound to, beside working sets, at least",
    ),
    (
        "numa_headroom_upper_bytes",
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
    /// `None` of what is no number, or none of the interval.
    pub(super) fn of(prefix: &str, column: Column<T>) -> Option<Self> {
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
        let renamed = RENAMED.iter().find(|(column, _, _)| *column == column_name);
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
            name => format!("{prefix}_{}", name.replace("_share", "_ratio")),
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
