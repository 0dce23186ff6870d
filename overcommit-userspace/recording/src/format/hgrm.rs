//! METRIC.hgrm: HdrHistogram's percentile distribution, in milliseconds, for its
//! plotters.

use crate::model::latencies::Latencies;
use std::fmt::Write;

/// Lines for each halving of the distance to 100 %.
const TICKS_PER_HALF: u32 = 5;
/// Nanoseconds in the unit of the file.
const UNIT_NS: f64 = 1e6;
/// HdrHistogram's sub-buckets at two digits.
const SUB_BUCKETS: u32 = 256;
/// Doublings that cover the range of the histogram.
const BUCKETS: u32 = 30;

/// The file.
pub fn file(latencies: &Latencies) -> String {
    let mut text = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let histogram = latencies.histogram();
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        let value = step.value_iterated_to().min(latencies.max_ns) as f64 / UNIT_NS;
        let quantile = step.quantile_iterated_to();
        // Writing to a String cannot fail.
        let _ = if quantile < 1.0 {
            let inverse = 1.0 / (1.0 - quantile);
            writeln!(text, "{value:12.6} {quantile:2.12} {total:10} {inverse:14.2}")
        } else {
            writeln!(text, "{value:12.6} {quantile:2.12} {total:10}")
        };
    }
    let count = latencies.count();
    let mean = if count == 0 { 0.0 } else { latencies.sum_ns as f64 / count as f64 } / UNIT_NS;
    let deviation = histogram.stdev() / UNIT_NS;
    let max = latencies.max_ns as f64 / UNIT_NS;
    let _ = write!(
        text,
        "#[Mean    = {mean:12.6}, StdDeviation   = {deviation:12.6}]\n\
         #[Max     = {max:12.6}, Total count    = {count:12}]\n\
         #[Buckets = {BUCKETS:12}, SubBuckets     = {SUB_BUCKETS:12}]\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_is_the_maximum_and_has_three_columns() {
        let mut latencies = Latencies::empty();
        latencies.record(1_000_000, 99);
        latencies.record(50_000_000, 1);
        (latencies.sum_ns, latencies.max_ns) = (149_000_000, 50_000_000);
        let text = file(&latencies);
        let rows: Vec<&str> = text.lines().skip(2).filter(|line| !line.starts_with('#')).collect();
        let last: Vec<&str> = rows.last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["50.000000", "1.000000000000", "100"]);
        assert_eq!(rows[0].split_whitespace().count(), 4);
        assert!(text.contains("#[Mean    =     1.490000,"), "{text}");
    }
}
