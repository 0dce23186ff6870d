//! summary.csv: the figures of each metric of each VM, then those of the VM and the run, the same in
//! all rows of a VM, so that many runs can be put into one table.

use crate::format::csv;
use crate::model::columns::Unit::{
    Bytes, Count, Share, Text, Thousandths as Seconds, WholeNanoseconds as Nanoseconds, Word,
};
use crate::model::columns::{Leaf, Unit, Value};
use crate::model::exit::Exit;
use crate::model::swap::SwapState;
use crate::slo::Verdict;
use crate::summary::{Summary, SummaryMetric, SummaryVm};
use anyhow::Result;
use serde::Serialize;

/// A metric of a VM in a whole run.
struct Row<'a> {
    summary: &'a Summary,
    vm: &'a SummaryVm,
    metric: &'a SummaryMetric,
}

/// A figure of summary.csv.
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// What it is, as half a sentence.
    pub about: &'static str,
    get: fn(&Row<'_>) -> Value,
}

const fn column(
    name: &'static str,
    unit: Unit,
    about: &'static str,
    get: fn(&Row<'_>) -> Value,
) -> Column {
    Column { name, unit, about, get }
}

/// The columns of summary.csv; only ever appended to.
pub const COLUMNS: [Column; 48] = [
    column("vm_id", Word, "The VM: process id and start time, which no other has", |row| {
        row.vm.vm_id.value()
    }),
    column("vm", Text, "Its name; not unique", |row| row.vm.vm.value()),
    column("uuid", Text, "Its UUID, where its command line has one", |row| row.vm.uuid.value()),
    column("pid", Count, "Its process id", |row| i64::from(row.vm.pid).value()),
    column("metric", Word, "The metric", |row| row.metric.metric.value()),
    column("coverage", Word, "How much of it is seen: full, partial or absent", |row| {
        row.metric.coverage.value()
    }),
    column("count", Count, "How many", |row| row.metric.count.value()),
    column("rate_per_s", Unit::PerSecond, "How many per second that the VM was recorded", |row| {
        row.metric.rate_per_s.value()
    }),
    column("sum_ns", Nanoseconds, "Their exact sum", |row| row.metric.sum_ns.value()),
    column("mean_ns", Nanoseconds, "Their mean", |row| row.metric.mean_ns.value()),
    column("p50_ns", Nanoseconds, "Quantile 0.5: the highest value of its bucket", |row| {
        row.metric.p50_ns.value()
    }),
    column("p90_ns", Nanoseconds, "Quantile 0.9", |row| row.metric.p90_ns.value()),
    column("p99_ns", Nanoseconds, "Quantile 0.99", |row| row.metric.p99_ns.value()),
    column("p999_ns", Nanoseconds, "Quantile 0.999", |row| row.metric.p999_ns.value()),
    column("max_ns", Nanoseconds, "The longest, exactly", |row| row.metric.max_ns.value()),
    column("over_range", Count, "How many were longer than the last bucket", |row| {
        row.metric.over_range.value()
    }),
    column("run_id", Word, "The recording", |row| row.summary.run_id.value()),
    column("host", Text, "Host name", |row| row.summary.run.host.value()),
    column("kernel", Text, "Kernel release", |row| row.summary.run.kernel.value()),
    column("backend", Text, "Where faults were seen", |row| row.summary.run.backend.value()),
    column("start_unix_s", Seconds, "Start of the recording, in Unix time", |row| {
        row.summary.start_unix_s.value()
    }),
    column("run_length_s", Seconds, "How long was recorded", |row| row.summary.length_s.value()),
    column("vm_length_s", Seconds, "How long the VM was recorded", |row| row.vm.length_s.value()),
    column(
        "verdict",
        Word,
        "How the VM fared: ok, unseen, starved, slowed, thrashed, crashed or killed",
        |row| word(Some(&row.vm.verdict.fared)),
    ),
    column("cause", Word, "Why; empty if it is ok or unseen", |row| {
        word(row.vm.verdict.cause.as_ref())
    }),
    column("stall_share", Share, "Time that its vCPUs waited for memory ÷ their time", |row| {
        row.vm.stall.as_ref().map(|stall| stall.share).value()
    }),
    column(
        "cpu_wait_share",
        Share,
        "Time that its vCPUs were runnable but had no CPU ÷ their time",
        |row| row.vm.cpu_wait.as_ref().map(|cpu| cpu.share).value(),
    ),
    column("swap_pressure_s", Seconds, "Time under swap pressure", |row| {
        row.vm.swap.seconds_in(SwapState::Pressure).value()
    }),
    column("swap_thrashing_s", Seconds, "Time in which it thrashed", |row| {
        row.vm.swap.seconds_in(SwapState::Thrashing).value()
    }),
    column("resident_bytes", Bytes, "In RAM, at the end", |row| {
        row.vm.memory.resident_bytes.value()
    }),
    column("swapped_bytes", Bytes, "On swap, at the end", |row| {
        row.vm.memory.swapped_bytes.value()
    }),
    column("working_set_lower_bytes", Bytes, "What it uses, at least", |row| {
        row.vm.memory.working_set_bytes.map(|set| set.lower).value()
    }),
    column("working_set_upper_bytes", Bytes, "What it uses, at most", |row| {
        row.vm.memory.working_set_bytes.map(|set| set.upper).value()
    }),
    column("cgroup_limit_bytes", Bytes, "What its memory cgroup may hold", |row| {
        row.vm.memory.cgroup_limit_bytes.value()
    }),
    column("end_unix_s", Seconds, "End of the recording, in Unix time", |row| {
        (row.summary.start_unix_s + row.summary.length_s).value()
    }),
    column("labels", Text, "`--label`: K=V, separated by spaces", |row| labels(row.summary)),
    column("command", Text, "COMMAND, with its arguments", |row| {
        row.summary.run.command.join(" ").value()
    }),
    column("command_status", Count, "How COMMAND ended, as a shell has it", |row| {
        row.summary.run.command_status.map(u64::from).value()
    }),
    column("ballooned_bytes", Bytes, "What it gave back to the host", |row| {
        row.vm.memory.ballooned_bytes.value()
    }),
    column("evicted_bytes", Bytes, "What reclaim took of it", |row| {
        row.vm.evictions.as_ref().map(|evictions| evictions.bytes).value()
    }),
    column("evicted_by", Text, "Who took most of that", |row| evicted_by(row.vm).value()),
    column("objectives_broken", Count, "Objectives that it broke", |row| {
        objectives(row, Verdict::Broken).value()
    }),
    column("objectives_not_judged", Count, "Its objectives that could not be judged", |row| {
        objectives(row, Verdict::NotJudged).value()
    }),
    column("ended_s", Seconds, "When it ended, in seconds after the recording's start", |row| {
        row.vm.ended_s.value()
    }),
    column(
        "ended_status",
        Count,
        "How its process ended, as a shell has it: 128 + N by signal N",
        |row| row.vm.exit.map(Exit::code).value(),
    ),
    column("from_mark", Text, "`--from`: the mark that the summary begins at", |row| {
        row.summary.marks.from.value()
    }),
    column("to_mark", Text, "`--to`: the mark that it ends at", |row| row.summary.marks.to.value()),
    column(
        "stopped_by",
        Word,
        "Why the recording ended: `duration`, `command`, `interrupt`, `hangup`, `terminate`",
        |row| word(row.summary.run.stopped_by.as_ref()),
    ),
];

/// The whole file.
///
/// # Errors
/// See [`csv::rows`].
pub(super) fn csv(summary: &Summary) -> Result<Vec<u8>> {
    let mut file = csv::header(&COLUMNS.each_ref().map(|column| column.name));
    let rows = summary.vms.iter().flat_map(|vm| {
        let row = move |metric| Row { summary, vm, metric };
        vm.metrics.iter().map(move |metric| cells(&row(metric)))
    });
    file.extend(csv::rows(rows)?);
    Ok(file)
}

fn cells(row: &Row<'_>) -> Vec<String> {
    COLUMNS.iter().map(|column| csv::cell(&(column.get)(row), column.unit)).collect()
}

fn labels(summary: &Summary) -> Value {
    let labels = summary.run.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(" ").value()
}

/// Who took most of what reclaim took of the VM.
fn evicted_by(vm: &SummaryVm) -> Option<String> {
    let by = vm.evictions.as_ref()?.by.first()?;
    Some(by.aggressor.name.clone())
}

/// How many of the VM's objectives were judged so.
fn objectives(row: &Row<'_>, verdict: Verdict) -> u64 {
    let its = |vm_id: &Option<String>| vm_id.as_ref() == Some(&row.vm.vm_id);
    let judged = row.summary.objectives.iter();
    judged.filter(|of| its(&of.vm_id) && of.verdict == verdict).count() as u64
}

/// As in summary.json.
fn word(value: Option<&impl Serialize>) -> Value {
    let word = value.and_then(|value| serde_json::to_value(value).ok());
    word.and_then(|word| word.as_str().map(str::to_owned)).value()
}
