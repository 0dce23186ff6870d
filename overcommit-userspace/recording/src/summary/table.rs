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

/// A figure of summary.csv.
pub struct Column<G = ()> {
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: Unit,
    /// What it is, as half a sentence.
    pub about: &'static str,
    get: G,
}

/// A figure of a metric of a VM, and one of the VM or the run.
type OfMetric = fn(&SummaryVm, &SummaryMetric) -> Value;
type OfVm = fn(&Summary, &SummaryVm) -> Value;

const fn column<G: Copy>(name: &'static str, unit: Unit, about: &'static str, get: G) -> Column<G> {
    Column { name, unit, about, get }
}

/// The first columns of summary.csv.
const OF_METRIC: [Column<OfMetric>; 16] = [
    column("vm_id", Word, "The VM: process id and start time, which no other has", |vm, _| {
        vm.vm_id.value()
    }),
    column("vm", Text, "Its name; not unique", |vm, _| vm.vm.value()),
    column("uuid", Text, "Its UUID, where its command line has one", |vm, _| vm.uuid.value()),
    column("pid", Count, "Its process id", |vm, _| i64::from(vm.pid).value()),
    column("metric", Word, "The metric", |_, metric| metric.metric.value()),
    column("coverage", Word, "How much of it is seen: full, partial or absent", |_, metric| {
        metric.coverage.value()
    }),
    column("count", Count, "How many", |_, metric| metric.count.value()),
    column(
        "rate_per_s",
        Unit::PerSecond,
        "How many per second that the VM was recorded",
        |_, metric| metric.rate_per_s.value(),
    ),
    column("sum_ns", Nanoseconds, "Their exact sum", |_, metric| metric.sum_ns.value()),
    column("mean_ns", Nanoseconds, "Their mean", |_, metric| metric.mean_ns.value()),
    column("p50_ns", Nanoseconds, "Quantile 0.5: the highest value of its bucket", |_, metric| {
        metric.p50_ns.value()
    }),
    column("p90_ns", Nanoseconds, "Quantile 0.9", |_, metric| metric.p90_ns.value()),
    column("p99_ns", Nanoseconds, "Quantile 0.99", |_, metric| metric.p99_ns.value()),
    column("p999_ns", Nanoseconds, "Quantile 0.999", |_, metric| metric.p999_ns.value()),
    column("max_ns", Nanoseconds, "The longest, exactly", |_, metric| metric.max_ns.value()),
    column("over_range", Count, "How many were longer than the last bucket", |_, metric| {
        metric.over_range.value()
    }),
];

/// The others, the same in all rows of a VM; only ever appended to.
const OF_VM: [Column<OfVm>; 32] = [
    column("run_id", Word, "The recording", |summary, _| summary.run_id.value()),
    column("host", Text, "Host name", |summary, _| summary.run.host.value()),
    column("kernel", Text, "Kernel release", |summary, _| summary.run.kernel.value()),
    column("backend", Text, "Where faults were seen", |summary, _| summary.run.backend.value()),
    column("start_unix_s", Seconds, "Start of the recording, in Unix time", |summary, _| {
        summary.start_unix_s.value()
    }),
    column("run_length_s", Seconds, "How long was recorded", |summary, _| summary.length_s.value()),
    column("vm_length_s", Seconds, "How long the VM was recorded", |_, vm| vm.length_s.value()),
    column(
        "verdict",
        Word,
        "How the VM fared: ok, unseen, starved, slowed, thrashed, crashed or killed",
        |_, vm| word(Some(&vm.verdict.fared)),
    ),
    column("cause", Word, "Why; empty if it is ok or unseen", |_, vm| {
        word(vm.verdict.cause.as_ref())
    }),
    column("stall_share", Share, "Time that its vCPUs waited for memory ÷ their time", |_, vm| {
        vm.stall.as_ref().map(|stall| stall.share).value()
    }),
    column(
        "cpu_wait_share",
        Share,
        "Time that its vCPUs were runnable but had no CPU ÷ their time",
        |_, vm| vm.cpu_wait.as_ref().map(|cpu| cpu.share).value(),
    ),
    column("swap_pressure_s", Seconds, "Time under swap pressure", |_, vm| {
        vm.swap.seconds_in(SwapState::Pressure).value()
    }),
    column("swap_thrashing_s", Seconds, "Time in which it thrashed", |_, vm| {
        vm.swap.seconds_in(SwapState::Thrashing).value()
    }),
    column("resident_bytes", Bytes, "In RAM, at the end", |_, vm| vm.memory.resident_bytes.value()),
    column("swapped_bytes", Bytes, "On swap, at the end", |_, vm| vm.memory.swapped_bytes.value()),
    column("working_set_lower_bytes", Bytes, "What it uses, at least", |_, vm| {
        vm.memory.working_set_bytes.map(|set| set.lower).value()
    }),
    column("working_set_upper_bytes", Bytes, "What it uses, at most", |_, vm| {
        vm.memory.working_set_bytes.map(|set| set.upper).value()
    }),
    column("cgroup_limit_bytes", Bytes, "What its memory cgroup may hold", |_, vm| {
        vm.memory.cgroup_limit_bytes.value()
    }),
    column("end_unix_s", Seconds, "End of the recording, in Unix time", |summary, _| {
        (summary.start_unix_s + summary.length_s).value()
    }),
    column("labels", Text, "`--label`: K=V, separated by spaces", |summary, _| labels(summary)),
    column("command", Text, "COMMAND, with its arguments", |summary, _| {
        summary.run.command.join(" ").value()
    }),
    column("command_status", Count, "How COMMAND ended, as a shell has it", |summary, _| {
        summary.run.command_status.map(u64::from).value()
    }),
    column("ballooned_bytes", Bytes, "What it gave back to the host", |_, vm| {
        vm.memory.ballooned_bytes.value()
    }),
    column("evicted_bytes", Bytes, "What reclaim took of it", |_, vm| {
        vm.evictions.as_ref().map(|evictions| evictions.bytes).value()
    }),
    column("evicted_by", Text, "Who took most of that", |_, vm| evicted_by(vm).value()),
    column("objectives_broken", Count, "Objectives that it broke", |summary, vm| {
        objectives(summary, vm, Verdict::Broken).value()
    }),
    column(
        "objectives_not_judged",
        Count,
        "Its objectives that could not be judged",
        |summary, vm| objectives(summary, vm, Verdict::NotJudged).value(),
    ),
    column("ended_s", Seconds, "When it ended, in seconds after the recording's start", |_, vm| {
        vm.ended_s.value()
    }),
    column(
        "ended_status",
        Count,
        "How its process ended, as a shell has it: 128 + N by signal N",
        |_, vm| vm.exit.map(Exit::code).value(),
    ),
    column("from_mark", Text, "`--from`: the mark that the summary begins at", |summary, _| {
        summary.marks.from.value()
    }),
    column("to_mark", Text, "`--to`: the mark that it ends at", |summary, _| {
        summary.marks.to.value()
    }),
    column(
        "stopped_by",
        Word,
        "Why the recording ended: `duration`, `command`, `interrupt`, `hangup`, `terminate`, `max_size`, `disk_full`",
        |summary, _| word(summary.run.stopped_by.as_ref()),
    ),
];

/// All columns.
pub fn columns() -> impl Iterator<Item = Column> {
    let of_metric = OF_METRIC.iter().map(Column::described);
    of_metric.chain(OF_VM.iter().map(Column::described))
}

impl<G> Column<G> {
    fn described(&self) -> Column {
        Column { name: self.name, unit: self.unit, about: self.about, get: () }
    }
}

/// The whole file.
///
/// # Errors
/// See [`csv::rows`].
pub(super) fn csv(summary: &Summary) -> Result<Vec<u8>> {
    let names: Vec<&str> = columns().map(|column| column.name).collect();
    let mut file = csv::header(&names);
    let rows = summary.vms.iter().flat_map(|vm| {
        let of_vm = OF_VM.each_ref().map(|of| csv::cell(&(of.get)(summary, vm), of.unit));
        vm.metrics.iter().map(move |metric| {
            let of_metric =
                OF_METRIC.each_ref().map(|of| csv::cell(&(of.get)(vm, metric), of.unit));
            [of_metric.as_slice(), &of_vm].concat()
        })
    });
    file.extend(csv::rows(rows)?);
    Ok(file)
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
fn objectives(summary: &Summary, vm: &SummaryVm, verdict: Verdict) -> u64 {
    let its = |vm_id: &Option<String>| vm_id.as_ref() == Some(&vm.vm_id);
    let judged = summary.objectives.iter();
    judged.filter(|of| its(&of.vm_id) && of.verdict == verdict).count() as u64
}

/// As in summary.json.
pub(crate) fn word(value: Option<&impl Serialize>) -> Value {
    let word = value.and_then(|value| serde_json::to_value(value).ok());
    word.and_then(|word| word.as_str().map(str::to_owned)).value()
}
