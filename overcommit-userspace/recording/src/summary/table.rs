//! summary.csv: the figures of each metric of each VM, then those of the VM and the run, the same in
//! all rows of a VM, so that many runs can be put into one table.

use crate::format::csv::{self, optional, text};
use crate::model::exit::Exit;
use crate::model::state::State;
use crate::model::swap::SwapState;
use crate::slo::Verdict;
use crate::summary::{Summary, SummaryMetric, SummaryVm};
use anyhow::Result;
use serde::Serialize;

/// The columns of summary.csv, and what each holds; only ever appended to.
pub const COLUMNS: [(&str, &str); 48] = [
    ("vm_id", "The VM: process id and start time, which no other has"),
    ("vm", "Its name; not unique"),
    ("uuid", "Its UUID, where its command line has one"),
    ("pid", "Its process id"),
    ("metric", "The metric"),
    ("coverage", "How much of it is seen: full, partial or absent"),
    ("count", "How many"),
    ("rate_per_s", "How many per second that the VM was recorded"),
    ("sum_ns", "Their exact sum"),
    ("mean_ns", "Their mean"),
    ("p50_ns", "Quantile 0.5: the highest value of its bucket"),
    ("p90_ns", "Quantile 0.9"),
    ("p99_ns", "Quantile 0.99"),
    ("p999_ns", "Quantile 0.999"),
    ("max_ns", "The longest, exactly"),
    ("over_range", "How many were longer than the last bucket"),
    ("run_id", "The recording"),
    ("host", "Host name"),
    ("kernel", "Kernel release"),
    ("backend", "Where faults were seen"),
    ("start_unix_s", "Start of the recording, in Unix time"),
    ("run_length_s", "How long was recorded"),
    ("vm_length_s", "How long the VM was recorded"),
    ("verdict", "How the VM fared: ok, unseen, slowed, thrashed or killed"),
    ("cause", "Why; empty if it is ok or unseen"),
    ("stall_share", "Time that its vCPUs waited for memory ÷ their time"),
    ("cpu_wait_share", "Time that its vCPUs were runnable but had no CPU ÷ their time"),
    ("swap_pressure_s", "Time under swap pressure"),
    ("swap_thrashing_s", "Time in which it thrashed"),
    ("resident_bytes", "In RAM, at the end"),
    ("swapped_bytes", "On swap, at the end"),
    ("working_set_lower_bytes", "What it uses, at least"),
    ("working_set_upper_bytes", "What it uses, at most"),
    ("cgroup_limit_bytes", "What its memory cgroup may hold"),
    ("end_unix_s", "End of the recording, in Unix time"),
    ("labels", "`--label`: K=V, separated by spaces"),
    ("command", "COMMAND, with its arguments"),
    ("command_status", "How COMMAND ended, as a shell has it"),
    ("ballooned_bytes", "What it gave back to the host"),
    ("evicted_bytes", "What reclaim took of it"),
    ("evicted_by", "Who took most of that"),
    ("objectives_broken", "Objectives that it broke"),
    ("objectives_not_judged", "Its objectives that could not be judged"),
    ("ended_s", "When it ended, in seconds after the recording's start"),
    ("ended_status", "How its process ended, as a shell has it: 128 + N by signal N"),
    ("from_mark", "`--from`: the mark that the summary begins at"),
    ("to_mark", "`--to`: the mark that it ends at"),
    (
        "stopped_by",
        "Why the recording ended: `duration`, `command`, `interrupt`, `hangup`, `terminate`",
    ),
];

/// The whole file.
///
/// # Errors
/// See [`csv::rows`].
pub(super) fn csv(summary: &Summary) -> Result<Vec<u8>> {
    let mut file = csv::header(&COLUMNS.map(|(name, _)| name));
    let rows = summary.vms.iter().flat_map(|vm| {
        let of_vm = of_vm(summary, vm);
        vm.metrics.iter().map(move |metric| [of_metric(vm, metric), of_vm.clone()].concat())
    });
    file.extend(csv::rows(rows)?);
    Ok(file)
}

fn of_metric(vm: &SummaryVm, metric: &SummaryMetric) -> Vec<String> {
    vec![
        vm.vm_id.clone(),
        text(&vm.vm),
        text(vm.uuid.as_deref().unwrap_or_default()),
        vm.pid.to_string(),
        metric.metric.as_str().to_owned(),
        metric.coverage.name().to_owned(),
        metric.count.to_string(),
        format!("{:.3}", metric.rate_per_s),
        metric.sum_ns.to_string(),
        optional(metric.mean_ns),
        optional(metric.p50_ns),
        optional(metric.p90_ns),
        optional(metric.p99_ns),
        optional(metric.p999_ns),
        optional(metric.max_ns),
        metric.over_range.to_string(),
    ]
}

fn of_vm(summary: &Summary, vm: &SummaryVm) -> Vec<String> {
    let (run, memory) = (&summary.run, &vm.memory);
    let labels: Vec<String> =
        run.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let by = vm.evictions.as_ref().and_then(|evictions| evictions.by.first());
    let judged = |verdict| {
        let its = summary.objectives.iter().filter(|of| of.vm_id.as_ref() == Some(&vm.vm_id));
        its.filter(|of| of.verdict == verdict).count()
    };
    let seconds = |value: f64| format!("{value:.3}");
    let share = |share: f64| format!("{share:.6}");
    let in_state = |state: SwapState| {
        let found = vm.swap.seconds.iter().find(|(name, _)| *name == state.name());
        seconds(found.map_or(0.0, |(_, seconds)| *seconds))
    };
    vec![
        summary.run_id.clone(),
        text(&run.host),
        text(&run.kernel),
        text(&run.backend),
        seconds(summary.start_unix_s),
        seconds(summary.length_s),
        seconds(vm.length_s),
        word(&vm.verdict.fared),
        vm.verdict.cause.as_ref().map_or_else(String::new, word),
        optional(vm.stall.as_ref().map(|stall| share(stall.share))),
        optional(vm.cpu_wait.as_ref().map(|cpu| share(cpu.share))),
        in_state(SwapState::Pressure),
        in_state(SwapState::Thrashing),
        optional(memory.resident_bytes),
        optional(memory.swapped_bytes),
        optional(memory.working_set_bytes.map(|set| set.lower)),
        optional(memory.working_set_bytes.map(|set| set.upper)),
        optional(memory.cgroup_limit_bytes),
        seconds(summary.start_unix_s + summary.length_s),
        text(&labels.join(" ")),
        text(&run.command.join(" ")),
        optional(run.command_status),
        optional(memory.ballooned_bytes),
        optional(vm.evictions.as_ref().map(|evictions| evictions.bytes)),
        text(by.map_or("", |by| by.aggressor.name.as_str())),
        judged(Verdict::Broken).to_string(),
        judged(Verdict::NotJudged).to_string(),
        optional(vm.ended_s.map(seconds)),
        optional(vm.exit.map(Exit::code)),
        text(summary.marks.from.as_deref().unwrap_or_default()),
        text(summary.marks.to.as_deref().unwrap_or_default()),
        run.stopped_by.as_ref().map_or_else(String::new, word),
    ]
}

/// As in summary.json.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}
