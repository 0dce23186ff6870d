//! Plots made of characters.

use crate::top::look::cell;
use overcommit_recording::format::text::readable;
use overcommit_recording::model::latencies::Latencies;

/// A latency or a length in as few columns as can be: `2.09ms`.
pub(super) fn short_latency(ns: u64) -> String {
    readable(ns).replace(' ', "")
}

/// A bar for each value from 0 to `most`, in so many rows, the upper first; nothing of a value that
/// is not known. What is more than nothing is seen.
pub(super) fn bars(values: &[Option<f64>], most: f64, rows: usize) -> Vec<String> {
    let all = rows * 8;
    let eighths = |value: &Option<f64>| {
        let part = value.unwrap_or(0.0) / most.max(f64::MIN_POSITIVE) * all as f64;
        if part > 0.0 { (part.round() as usize).clamp(1, all) } else { 0 }
    };
    let heights: Vec<usize> = values.iter().map(eighths).collect();
    let row = |row: usize| heights.iter().map(|height| cell(*height, row * 8)).collect();
    (0..rows).rev().map(row).collect()
}

/// Columns of a histogram at the least.
const NARROWEST: usize = 10;

/// How often which latency came: both axes are logarithmic.
pub(super) struct Histogram {
    /// The lower end of the axis, as a power of ten of nanoseconds.
    first: f64,
    /// How many powers of ten a column is wide.
    step: f64,
    /// By column.
    counts: Vec<u64>,
}

impl Histogram {
    /// In so many columns; `None` of nothing, and where there is no room.
    pub(super) fn of(latencies: &Latencies, columns: usize) -> Option<Self> {
        if columns < NARROWEST {
            return None;
        }
        let histogram = latencies.histogram();
        let power = |ns: u64| (ns.max(1) as f64).log10();
        let all: Vec<(f64, u64)> = histogram
            .iter_recorded()
            .map(|value| (power(value.value_iterated_to()), value.count_at_value()))
            .collect();
        let ((low, _), (high, _)) = (*all.first()?, *all.last()?);
        // At least a power of ten, whose ends are on the axis.
        let first = (low * 4.0).floor() / 4.0;
        let last = ((high * 4.0).floor() / 4.0 + 0.25).max(first + 1.0);
        let step = (last - first) / columns as f64;
        let mut counts = vec![0; columns];
        for (power, count) in all {
            counts[(((power - first) / step) as usize).min(columns - 1)] += count;
        }
        Some(Self { first, step, counts })
    }

    /// The column of a latency.
    fn column(&self, ns: u64) -> usize {
        let column = ((ns.max(1) as f64).log10() - self.first) / self.step;
        (column.max(0.0) as usize).min(self.counts.len() - 1)
    }

    /// Bars, each row with the count at its top, the uppermost first.
    pub(super) fn rows(&self, rows: usize) -> Vec<(String, String)> {
        let most = self.counts.iter().copied().max().unwrap_or(0).max(1);
        let top = ((most as f64).log10() + 0.15).max(1.0);
        // A single one is seen, and is less than two.
        let height = |count: &u64| (*count > 0).then(|| (*count as f64).log10() + 0.15);
        let values: Vec<Option<f64>> = self.counts.iter().map(height).collect();
        let bars = bars(&values, top, rows);
        let label = |row: usize| {
            let power = top * (rows - row) as f64 / rows as f64;
            let below = top * (rows - row - 1) as f64 / rows as f64;
            let whole = power.floor();
            if whole > below || row + 1 == rows { count(10f64.powf(whole)) } else { String::new() }
        };
        bars.into_iter().enumerate().map(|(row, bar)| (label(row), bar)).collect()
    }

    /// The axis, and a line with the whole powers of ten.
    pub(super) fn axis(&self) -> [String; 2] {
        let mut line: Vec<char> = vec!['─'; self.counts.len()];
        let mut labels = vec![' '; self.counts.len()];
        let mut power = self.first.ceil() as i32;
        let last = self.first + self.step * self.counts.len() as f64;
        while f64::from(power) < last {
            let column = self.column(10u64.saturating_pow(power.unsigned_abs()));
            line[column] = '┴';
            write_at(&mut labels, column, &power_of_ten(power.unsigned_abs()));
            power += 1;
        }
        [line.into_iter().collect(), labels.into_iter().collect()]
    }

    /// A line that says where those latencies are, by name; one that has no room is left out.
    pub(super) fn marks(&self, marks: &[(&str, Option<u64>)]) -> String {
        let mut line = vec![' '; self.counts.len()];
        for (name, ns) in marks.iter().rev() {
            let Some(ns) = ns else { continue };
            let text = format!("▲{name}");
            let (column, length) = (self.column(*ns), text.chars().count());
            // To the left where the right has no room.
            let column = column.min(line.len().saturating_sub(length));
            let end = (column + length + 1).min(line.len());
            if line[column.saturating_sub(1)..end].iter().all(|at| *at == ' ') {
                write_at(&mut line, column, &text);
            }
        }
        line.into_iter().collect()
    }
}

fn write_at(line: &mut [char], column: usize, text: &str) {
    for (at, character) in line.iter_mut().skip(column).zip(text.chars()) {
        *at = character;
    }
}

fn power_of_ten(power: u32) -> String {
    let unit = ["ns", "us", "ms", "s"][(power / 3).min(3) as usize];
    format!("{}{unit}", 10u64.pow(power - 3 * (power / 3).min(3)))
}

/// A count, with k and M.
pub(super) fn count(count: f64) -> String {
    match count {
        1e6.. => format!("{:.0}M", count / 1e6),
        1e3.. => format!("{:.0}k", count / 1e3),
        _ => format!("{count:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(values: &[(u64, u64)]) -> Latencies {
        let mut latencies = Latencies::empty();
        values.iter().for_each(|(ns, count)| latencies.record(*ns, *count));
        latencies
    }

    #[test]
    fn bars_fill_rows_from_below() {
        let values = [Some(0.0), Some(0.001), Some(0.5), Some(1.0), None];
        assert_eq!(bars(&values, 1.0, 2), ["   █ ", " ▁██ "]);
        assert_eq!(bars(&[], 1.0, 1), [""]);
    }

    #[test]
    fn a_histogram_has_both_ends_and_its_powers_of_ten() {
        let all = latencies(&[(1_010, 1), (60_000, 100), (3_000_000, 10)]);
        let histogram = Histogram::of(&all, 35).unwrap();
        let rows = histogram.rows(3);
        assert_eq!(
            rows.iter().map(|(label, _)| label.as_str()).collect::<Vec<_>>(),
            ["100", "10", "1"]
        );
        // A power of ten is ten columns here, from 1 us on.
        let filled = |row: &str| -> Vec<usize> {
            row.chars().enumerate().filter(|(_, at)| *at != ' ').map(|(at, _)| at).collect()
        };
        assert_eq!(filled(&rows[2].1), [0, 17, 34]);
        assert_eq!(filled(&rows[0].1), [17]);
        let [line, labels] = histogram.axis();
        assert_eq!(filled(&line.replace('─', " ")), [0, 10, 20, 30]);
        assert_eq!(labels.split_whitespace().collect::<Vec<_>>(), ["1us", "10us", "100us", "1ms"]);
        let marks =
            histogram.marks(&[("p50", Some(60_000)), ("p99", Some(3_000_000)), ("x", None)]);
        assert_eq!(marks, format!("{}▲p50{}▲p99", " ".repeat(17), " ".repeat(10)));
        assert!(Histogram::of(&latencies(&[]), 10).is_none());
        assert!(Histogram::of(&all, 0).is_none());
        // A single value has a whole power of ten around it.
        assert!(Histogram::of(&latencies(&[(1_000, 5)]), 10).unwrap().axis()[1].contains("1us"));
    }

    #[test]
    fn counts_and_powers_are_short() {
        assert_eq!([1.0, 999.0, 1e4, 2e6].map(count), ["1", "999", "10k", "2M"]);
        assert_eq!([0, 3, 5, 9, 11].map(power_of_ten), ["1ns", "1us", "100us", "1s", "100s"]);
    }
}
