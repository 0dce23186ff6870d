//! summary.csv: the figures of each metric of each VM, then those of the VM and the run, the same in
//! all rows of a VM, so that many runs can be put into one table.

use crate::format::csv::{self, optional, text};
use crate::model::state::State;
use crate::model::swap::SwapState;
use crate::summary::{Summary, SummaryMetric, SummaryVm};
use anyhow::Result;
use serde::Serialize;

/// The columns of summary.csv; only ever appended to.
const COLUMNS: [&str; 34] = [
    "vm_id",
    "vm",
    "uuid",
    "pid",
    "metric",
    "coverage",
    "count",
    "rate_per_s",
    "sum_ns",
    "mean_ns",
    "p50_ns",
    "p90_ns",
    "p99_ns",
    "p999_ns",
    "max_ns",
    "over_range",
    "run_id",
    "host",
    "kernel",
    "backend",
    "start_unix_s",
    "run_length_s",
    "vm_length_s",
    "verdict",
    "cause",
    "stall_share",
    "cpu_wait_share",
    "swap_pressure_s",
    "swap_thrashing_s",
    "resident_bytes",
    "swapped_bytes",
    "working_set_lower_bytes",
    "working_set_upper_bytes",
    "cgroup_limit_bytes",
];

/// The whole file.
///
/// # Errors
/// See [`csv::rows`].
pub(super) fn csv(summary: &Summary) -> Result<Vec<u8>> {
    let mut file = csv::header(&COLUMNS);
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
    ]
}

/// As in summary.json.
fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}
