//! intervals.csv: one row an interval, VM and metric.

use crate::format::csv;
use crate::format::csv::{optional, seconds_of_ns, seconds_of_us, text};
use crate::model::interval::Interval;
use crate::model::latencies::Latencies;
use crate::model::run::RunVm;
use anyhow::Result;

/// The columns; only ever appended to.
pub const COLUMNS: [&str; 18] = [
    "start_unix_s",
    "length_s",
    "vm_id",
    "vm",
    "uuid",
    "pid",
    "metric",
    "coverage",
    "count",
    "sum_ns",
    "p50_ns",
    "p90_ns",
    "p99_ns",
    "p999_ns",
    "max_ns",
    "over_range",
    "partial",
    "interval",
];

/// The interval's rows.
///
/// # Errors
/// See [`csv::rows`].
pub fn rows(interval: &Interval, vms: &[RunVm]) -> Result<Vec<u8>> {
    let mut rows = Vec::new();
    for sample in &interval.vms {
        let vm = &vms[sample.member];
        for metric in &sample.metrics {
            let mut row = identity(interval, vm);
            row.push(metric.name.as_str().to_owned());
            row.push(metric.coverage.name().to_owned());
            row.extend(figures(&metric.latencies));
            row.extend(place(interval));
            rows.push(row);
        }
    }
    csv::rows(rows)
}

/// The columns that say when and who.
pub(super) fn identity(interval: &Interval, vm: &RunVm) -> Vec<String> {
    let mut row = vec![seconds_of_us(interval.start_us), seconds_of_ns(interval.length_ns)];
    row.extend(who(vm));
    row
}

/// The columns that say who.
pub(super) fn who(vm: &RunVm) -> [String; 4] {
    let uuid = text(vm.uuid.as_deref().unwrap_or_default());
    [vm.vm_id.clone(), text(&vm.name), uuid, vm.pid.to_string()]
}

/// Whether the interval is partial, and its number.
pub(super) fn place(interval: &Interval) -> [String; 2] {
    [u8::from(interval.partial).to_string(), interval.number.to_string()]
}

/// count, sum, quantiles, max and what was over range.
fn figures(latencies: &Latencies) -> Vec<String> {
    let any = latencies.count() > 0;
    let mut row = vec![latencies.count().to_string(), latencies.sum_ns.to_string()];
    row.extend([0.5, 0.9, 0.99, 0.999].map(|quantile| optional(latencies.quantile(quantile))));
    row.push(optional(any.then_some(latencies.max_ns)));
    row.push(latencies.over_range.to_string());
    row
}
