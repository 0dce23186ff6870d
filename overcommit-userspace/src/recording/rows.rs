//! The rows of a recording's CSV files, read back by column name.

use crate::format::csv::{reader, units_of_seconds, untext};
use crate::model::balloon::BalloonState;
use crate::model::breakdown::Breakdown;
use crate::model::coverage::{Coverage, Seen};
use crate::model::evictions::{Aggressor, AggressorClass, EvictionCounts};
use crate::model::interval::{Stall, StallSource};
use crate::model::memory::{Headroom, OvercommitState, Range};
use crate::model::metric::MetricName;
use crate::model::run::RunFile;
use crate::model::state::State;
use crate::model::swap::SwapState;
use crate::recording::vms;
use anyhow::{Context, Result};
use overcommit_ebpf::layout::{Loss, Part, Taker};
use serde::Serialize;
use std::collections::HashMap;

/// A row of intervals.csv.
#[derive(Debug)]
pub struct Row {
    /// Number of the interval.
    pub interval: u64,
    pub(super) start_us: u64,
    pub(super) length_ns: u64,
    /// As an index into [`RunFile::vms`].
    pub vm: usize,
    /// Which metric.
    pub metric: MetricName,
    /// How much of it was seen.
    pub coverage: Coverage,
    pub(super) sum_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
    pub(super) over_range: u64,
    /// Where the row ends in the file.
    pub(super) end: u64,
}

/// A row of vms.csv.
#[derive(Debug)]
pub struct VmRow {
    /// Number of the interval.
    pub interval: u64,
    pub(super) start_us: u64,
    /// In nanoseconds.
    pub length_ns: u64,
    /// As an index into [`RunFile::vms`].
    pub vm: usize,
    /// `None` if its vCPU threads were not known.
    pub stall: Option<Stall>,
    /// How much swapping hurt it.
    pub swap_state: SwapState,
    /// Its memory.
    pub memory: VmFigures,
    pub(super) fault_time: Breakdown,
    /// `None` without windows of `stall.memory`.
    pub(super) stall_time: Option<Breakdown>,
    pub(super) seen: Seen,
    pub(super) taken_by: [u64; Taker::COUNT],
    pub(super) not_counted: [u64; Loss::COUNT],
    /// Rows of intervals.csv.
    pub(super) metrics: u64,
    pub(super) end: u64,
}

impl VmRow {
    /// Faults of its threads, counted or not.
    pub fn faults(&self) -> u64 {
        self.seen.counted.max(self.seen.kernel)
    }
}

/// A row of host.csv.
#[derive(Debug)]
pub struct HostRow {
    /// Number of the interval.
    pub interval: u64,
    pub(super) start_us: u64,
    /// In nanoseconds.
    pub length_ns: u64,
    /// How much swapping hurt anybody.
    pub swap_state: SwapState,
    /// How hard memory was taken back.
    pub balloon_state: BalloonState,
    /// How near the edge it was.
    pub overcommit_state: OvercommitState,
    /// Its memory.
    pub memory: HostFigures,
    /// Pages that anybody was given, a second; `None` where that was not looked at.
    pub allocated: Option<f64>,
    pub(super) end: u64,
}

/// A row of an interval.
pub(super) trait OfInterval {
    /// Its number, its start in Unix microseconds, and its length in nanoseconds.
    fn interval(&self) -> (u64, u64, u64);
}

macro_rules! of_interval {
    ($($row:ty),*) => {
        $(impl OfInterval for $row {
            fn interval(&self) -> (u64, u64, u64) {
                (self.interval, self.start_us, self.length_ns)
            }
        })*
    };
}

of_interval!(Row, VmRow, HostRow, EvictionRow);

/// Memory of a VM, in bytes; each where it was known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VmFigures {
    /// What it was given.
    pub configured_bytes: Option<u64>,
    /// What it gave back.
    pub ballooned_bytes: Option<u64>,
    /// Who said so.
    pub balloon_source: Option<String>,
    /// In RAM.
    pub resident_bytes: Option<u64>,
    /// On swap.
    pub swapped_bytes: Option<u64>,
    /// What the guest says that its programs could still have.
    pub guest_available_bytes: Option<u64>,
    /// Since when it says so, in seconds.
    pub guest_age_s: Option<f64>,
    /// Whether that says nothing of now.
    pub guest_is_stale: Option<bool>,
    /// What it uses.
    pub working_set_bytes: Option<Range>,
    /// What measured that.
    pub working_set_source: Option<String>,
    /// CPU time that measuring took ÷ time.
    pub working_set_cost_share: Option<f64>,
    /// What its cgroup may hold.
    pub cgroup_limit_bytes: Option<u64>,
    /// What that leaves beside its working set.
    pub cgroup_headroom_bytes: Option<Headroom>,
    /// NUMA nodes to which it is bound.
    pub numa_nodes: Option<String>,
    /// What is left there beside the working sets of all that are.
    pub numa_headroom_bytes: Option<Headroom>,
}

impl VmFigures {
    /// Takes what is known later.
    pub(super) fn update(&mut self, later: &Self) {
        fn take<T: Clone>(now: &mut Option<T>, later: &Option<T>) {
            if later.is_some() {
                now.clone_from(later);
            }
        }
        take(&mut self.configured_bytes, &later.configured_bytes);
        take(&mut self.ballooned_bytes, &later.ballooned_bytes);
        take(&mut self.balloon_source, &later.balloon_source);
        take(&mut self.resident_bytes, &later.resident_bytes);
        take(&mut self.swapped_bytes, &later.swapped_bytes);
        take(&mut self.guest_available_bytes, &later.guest_available_bytes);
        take(&mut self.guest_age_s, &later.guest_age_s);
        take(&mut self.guest_is_stale, &later.guest_is_stale);
        take(&mut self.working_set_bytes, &later.working_set_bytes);
        take(&mut self.working_set_source, &later.working_set_source);
        take(&mut self.working_set_cost_share, &later.working_set_cost_share);
        take(&mut self.cgroup_limit_bytes, &later.cgroup_limit_bytes);
        take(&mut self.cgroup_headroom_bytes, &later.cgroup_headroom_bytes);
        take(&mut self.numa_nodes, &later.numa_nodes);
        take(&mut self.numa_headroom_bytes, &later.numa_headroom_bytes);
    }
}

/// A row of evictions.csv.
#[derive(Clone, Debug)]
pub struct EvictionRow {
    /// Number of the interval.
    pub interval: u64,
    pub(super) start_us: u64,
    pub(super) length_ns: u64,
    /// Whose pages, as an index into [`RunFile::vms`]; `None` of other memory.
    pub victim: Option<usize>,
    /// Who took them.
    pub aggressor: Aggressor,
    /// How much.
    pub counts: EvictionCounts,
    pub(super) end: u64,
}

#[cfg(test)]
impl EvictionRow {
    /// One of an interval alone.
    pub fn of(
        interval: u64,
        victim: Option<usize>,
        aggressor: Aggressor,
        counts: EvictionCounts,
    ) -> Self {
        Self { interval, start_us: 0, length_ns: 0, victim, aggressor, counts, end: 0 }
    }
}

/// Memory of the host, in bytes; each where it was known.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HostFigures {
    /// Of its VMs together.
    pub configured_bytes: Option<u64>,
    /// Without huge pages of the pool.
    pub physical_bytes: Option<u64>,
    /// What the VMs could have.
    pub capacity_bytes: Option<u64>,
    /// What they use.
    pub working_sets_bytes: Option<Range>,
    /// What is left.
    pub headroom_bytes: Option<Headroom>,
    /// What the three that can grow most could still take.
    pub can_grow_bytes: Option<u64>,
    /// What VMs gave back.
    pub ballooned_bytes: Option<u64>,
}

/// Cells of a row by column name.
pub(super) struct Cells<'a> {
    columns: &'a csv::StringRecord,
    row: &'a csv::StringRecord,
}

impl Cells<'_> {
    fn text(&self, column: &str) -> Result<&str> {
        let index = self.columns.iter().position(|name| name == column);
        index.and_then(|index| self.row.get(index)).with_context(|| format!("no column {column}"))
    }

    fn number(&self, column: &str) -> Result<u64> {
        self.optional(column)?.with_context(|| format!("{column} is empty"))
    }

    fn optional(&self, column: &str) -> Result<Option<u64>> {
        let text = self.text(column)?;
        let wrong = || format!("{column} is {text:?}");
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).with_context(wrong) }
    }

    fn units(&self, column: &str, digits: u32) -> Result<u64> {
        let text = self.text(column)?;
        units_of_seconds(text, digits).with_context(|| format!("{column} is {text:?}"))
    }

    /// Unknown also where an older version had no such column.
    fn state<S: State>(&self, column: &str) -> Result<S> {
        let Ok(text) = self.text(column) else { return Ok(S::default()) };
        S::from_name(text).with_context(|| format!("{column} is {text:?}"))
    }

    /// Nothing also where an older version had no such column.
    fn known<T: std::str::FromStr>(&self, column: &str) -> Result<Option<T>> {
        let text = self.text(column).unwrap_or_default();
        let wrong = || format!("{column} is {text:?}");
        if text.is_empty() { Ok(None) } else { text.parse().ok().with_context(wrong).map(Some) }
    }

    fn range(&self, what: &str) -> Result<Option<Range>> {
        let lower = self.known(&format!("{what}_lower_bytes"))?;
        let upper = self.known(&format!("{what}_upper_bytes"))?;
        Ok(lower.zip(upper).map(|(lower, upper)| Range { lower, upper }))
    }

    fn headroom(&self, what: &str) -> Result<Option<Headroom>> {
        let lower = self.known(&format!("{what}_lower_bytes"))?;
        let upper = self.known(&format!("{what}_upper_bytes"))?;
        Ok(lower.zip(upper).map(|(lower, upper)| Headroom { lower, upper }))
    }

    fn vm(&self, column: &str, indices: &HashMap<&str, usize>) -> Result<usize> {
        let id = self.text(column)?;
        indices.get(id).copied().with_context(|| format!("run.json has no VM {id}"))
    }
}

pub(super) fn row(cells: &Cells<'_>, end: u64, indices: &HashMap<&str, usize>) -> Result<Row> {
    let coverage = cells.text("coverage")?;
    Ok(Row {
        interval: cells.number("interval")?,
        start_us: cells.units("start_unix_s", 6)?,
        length_ns: cells.units("length_s", 9)?,
        vm: cells.vm("vm_id", indices)?,
        metric: MetricName::new(cells.text("metric")?),
        coverage: Coverage::from_name(coverage)
            .with_context(|| format!("coverage is {coverage:?}"))?,
        sum_ns: cells.number("sum_ns")?,
        max_ns: cells.optional("max_ns")?.unwrap_or(0),
        over_range: cells.number("over_range")?,
        end,
    })
}

pub(super) fn vm_row(cells: &Cells<'_>, end: u64, indices: &HashMap<&str, usize>) -> Result<VmRow> {
    let source = StallSource::from_name(cells.text("stall_source")?);
    let stall = cells.optional("stall_ns")?.zip(cells.optional("vcpu_ns")?).zip(source);
    let mut not_counted = [0; Loss::COUNT];
    for cause in Loss::ALL {
        // An older version did not know every cause.
        not_counted[cause as usize] = cells.known(&vms::lost(cause))?.unwrap_or(0);
    }
    let mut taken_by = [0; Taker::COUNT];
    for taker in Taker::ALL {
        taken_by[taker as usize] = cells.number(vms::taken_by(taker))?;
    }
    Ok(VmRow {
        interval: cells.number("interval")?,
        start_us: cells.units("start_unix_s", 6)?,
        length_ns: cells.units("length_s", 9)?,
        vm: cells.vm("vm_id", indices)?,
        stall: stall.map(|((waited_ns, vcpu_ns), source)| Stall { waited_ns, vcpu_ns, source }),
        swap_state: cells.state("swap_state")?,
        memory: vm_figures(cells)?,
        fault_time: breakdown(cells, vms::FAULT)?.unwrap_or_default(),
        stall_time: breakdown(cells, vms::STALL_MEMORY)?,
        seen: Seen {
            counted: cells.number("faults_counted")?,
            kernel: cells.number("faults_kernel")?,
        },
        taken_by,
        not_counted,
        metrics: cells.number("metrics")?,
        end,
    })
}

pub(super) fn host_row(cells: &Cells<'_>, end: u64) -> Result<HostRow> {
    Ok(HostRow {
        interval: cells.number("interval")?,
        start_us: cells.units("start_unix_s", 6)?,
        length_ns: cells.units("length_s", 9)?,
        swap_state: cells.state("swap_state")?,
        balloon_state: cells.state("balloon_state")?,
        overcommit_state: cells.state("overcommit_state")?,
        memory: host_figures(cells)?,
        allocated: cells.known("allocated_pages_per_s")?,
        end,
    })
}

pub(super) fn eviction_row(
    cells: &Cells<'_>,
    end: u64,
    indices: &HashMap<&str, usize>,
) -> Result<EvictionRow> {
    let class = cells.text("aggressor_kind")?;
    let victim = cells.text("victim_id")?;
    Ok(EvictionRow {
        interval: cells.number("interval")?,
        start_us: cells.units("start_unix_s", 6)?,
        length_ns: cells.units("length_s", 9)?,
        victim: if victim.is_empty() { None } else { Some(cells.vm("victim_id", indices)?) },
        aggressor: Aggressor {
            class: AggressorClass::from_name(class)
                .with_context(|| format!("aggressor_kind is {class:?}"))?,
            id: cells.text("aggressor_id")?.to_owned(),
            name: untext(cells.text("aggressor")?).to_owned(),
        },
        counts: EvictionCounts {
            written_folios: cells.number("written_folios")?,
            written_pages: cells.number("written_pages")?,
            dropped_folios: cells.known("dropped_folios")?.unwrap_or(0),
            dropped_pages: cells.known("dropped_pages")?.unwrap_or(0),
        },
        end,
    })
}

fn breakdown(cells: &Cells<'_>, what: &str) -> Result<Option<Breakdown>> {
    let Some(total_ns) = cells.known(&vms::all(what))? else { return Ok(None) };
    let mut time = Breakdown { total_ns, ..Breakdown::default() };
    for part in Part::ALL {
        time.parts_ns[part as usize] = cells.known(&vms::of_part(what, part))?;
    }
    if what == vms::STALL_MEMORY {
        time.kvm_ns = cells.known(vms::KVM)?;
    }
    Ok(Some(time))
}

fn vm_figures(cells: &Cells<'_>) -> Result<VmFigures> {
    Ok(VmFigures {
        configured_bytes: cells.known("configured_bytes")?,
        ballooned_bytes: cells.known("ballooned_bytes")?,
        balloon_source: cells.known("balloon_source")?,
        resident_bytes: cells.known("resident_bytes")?,
        swapped_bytes: cells.known("swapped_bytes")?,
        guest_available_bytes: cells.known("guest_available_bytes")?,
        guest_age_s: cells.known("guest_age_s")?,
        guest_is_stale: cells.known("guest_is_stale")?,
        working_set_bytes: cells.range("working_set")?,
        working_set_source: cells.known("working_set_source")?,
        working_set_cost_share: cells.known("working_set_cost_share")?,
        cgroup_limit_bytes: cells.known("cgroup_limit_bytes")?,
        cgroup_headroom_bytes: cells.headroom("cgroup_headroom")?,
        numa_nodes: cells.known("numa_nodes")?,
        numa_headroom_bytes: cells.headroom("numa_headroom")?,
    })
}

fn host_figures(cells: &Cells<'_>) -> Result<HostFigures> {
    Ok(HostFigures {
        configured_bytes: cells.known("configured_bytes")?,
        physical_bytes: cells.known("physical_bytes")?,
        capacity_bytes: cells.known("capacity_bytes")?,
        working_sets_bytes: cells.range("working_sets")?,
        headroom_bytes: cells.headroom("headroom")?,
        can_grow_bytes: cells.known("can_grow_bytes")?,
        ballooned_bytes: cells.known("ballooned_bytes")?,
    })
}

/// Rows of the intervals that run.json knows, up to the last whole line.
pub(super) fn rows<T>(
    file: &[u8],
    run: &RunFile,
    read: impl Fn(&Cells<'_>, u64) -> Result<T>,
) -> Result<Vec<T>> {
    let mut reader = reader(whole_lines(file));
    let columns = reader.headers()?.clone();
    let mut rows = Vec::new();
    let mut row = csv::StringRecord::new();
    while reader.read_record(&mut row)? {
        let line = || format!("line {}", reader.position().line() - 1);
        let cells = Cells { columns: &columns, row: &row };
        if cells.number("interval").with_context(line)? >= run.recorded.intervals {
            break;
        }
        rows.push(read(&cells, reader.position().byte()).with_context(line)?);
    }
    Ok(rows)
}

pub(super) fn whole_lines(file: &[u8]) -> &[u8] {
    let end = file.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    &file[..end]
}
