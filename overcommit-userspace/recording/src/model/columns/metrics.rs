//! intervals.csv: one row per interval, VM and metric.

use super::{
    Column, Leaf, OfVm, Row, Unit, column, computed, delayed, length, number, numbered, one,
    partial,
};
use super::{start, who};
use crate::model::coverage::Coverage;
use crate::model::interval::MetricInterval;
use crate::model::latencies::Latencies;
use crate::model::metric::MetricName;

impl MetricInterval {
    /// Nothing, before a row is read into it.
    pub fn none() -> Self {
        let name = MetricName::new("");
        Self { vm: 0, name, coverage: Coverage::Full, latencies: Latencies::empty() }
    }
}

impl OfVm for MetricInterval {
    fn vm(&self) -> usize {
        self.vm
    }

    fn set_vm(&mut self, vm: usize) {
        self.vm = vm;
    }
}

/// Quantiles that files and views have, with their names.
pub const QUANTILES: [(&str, f64); 4] =
    [("p50_ns", 0.5), ("p90_ns", 0.9), ("p99_ns", 0.99), ("p999_ns", 0.999)];

/// Each figure of a metric, in the order of the file.
pub fn metrics() -> Vec<Column<MetricInterval>> {
    let mut columns = vec![start(), length()];
    columns.extend(who());
    columns.extend([
        one!(MetricInterval: "metric", Word, "The metric", name).required(),
        one!(MetricInterval: "coverage", Word, "How much of it is seen: full, partial or absent",
            coverage)
        .required(),
        computed("count", Unit::Count, "How many", |row, _| row.of.latencies.count().value()),
        one!(MetricInterval: "sum_ns", WholeNanoseconds, "Their exact sum", latencies.sum_ns)
            .required(),
    ]);
    columns.extend(QUANTILES.iter().enumerate().map(|(number, (name, quantile))| {
        let about = format!("Quantile {quantile}: the highest value of its bucket");
        let get = |row: &Row<'_, MetricInterval>, number: usize| {
            row.of.latencies.quantile(QUANTILES[number].1).value()
        };
        numbered(number, computed(*name, Unit::WholeNanoseconds, about, get))
    }));
    columns.extend([
        column(
            "max_ns",
            Unit::WholeNanoseconds,
            "The longest, exactly",
            |row: &Row<'_, MetricInterval>, _| {
                let latencies = &row.of.latencies;
                (latencies.count() > 0).then_some(latencies.max_ns).value()
            },
            |draft, _, cell| {
                draft.of.latencies.max_ns = Option::read(cell)?.unwrap_or(0);
                Some(())
            },
        ),
        one!(MetricInterval: "over_range", Count, "How many were longer than the last bucket",
            latencies.over_range)
        .required(),
        partial(),
        number(),
        delayed(),
    ]);
    columns
}
