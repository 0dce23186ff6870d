//! A distribution that only grows, as Prometheus' native histograms have it: buckets of a factor of
//! 2^(2^-schema), of which only those in use are kept.

use crate::model::latencies::Latencies;
use std::collections::BTreeMap;

/// Buckets of a distribution at the most, unless another number is asked for; beyond that each two
/// become one, for good. It is the limit of Mimir and Grafana Cloud, unless theirs is changed.
pub const BUCKETS: u16 = 160;
/// The finest that is used unless another is asked for: 1.1 % a bucket.
pub const SCHEMA: i8 = 6;
/// Doublings whose ends are the bounds of the classic buckets, in seconds: from 2^-21, half a
/// microsecond, to 2^5, half a minute.
const CLASSIC: std::ops::RangeInclusive<i32> = -21..=5;
/// How many those are, with the one for what is longer.
pub(super) const CLASSIC_BUCKETS: usize = (*CLASSIC.end() - *CLASSIC.start()) as usize + 2;
/// Latencies of no nanosecond have a bucket of their own, which ends there: at 2^-128 seconds, as in
/// Prometheus' own libraries.
pub(super) const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;

/// Latencies so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Native {
    schema: i8,
    most: u16,
    /// By bucket. Number i ends at 2^(i × 2^-schema) seconds, which belongs to it.
    buckets: BTreeMap<i32, u64>,
    zero: u64,
    sum_ns: u64,
}

impl Native {
    /// None, in buckets as fine as that, and no more of them.
    pub(super) fn new(schema: i8, most: u16) -> Self {
        Self { schema, most, buckets: BTreeMap::new(), zero: 0, sum_ns: 0 }
    }

    /// Adds others. Each of their buckets counts whole where its highest value belongs.
    pub(super) fn add(&mut self, latencies: &Latencies) {
        self.sum_ns = self.sum_ns.saturating_add(latencies.sum_ns);
        latencies.each(|ns, count| {
            let place = match ns {
                0 => &mut self.zero,
                ns => self.buckets.entry(bucket(ns, self.schema)).or_default(),
            };
            *place = place.saturating_add(count);
        });
        while self.buckets.len() > usize::from(self.most) {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.schema -= 1;
        let fine = std::mem::take(&mut self.buckets);
        for (number, count) in fine {
            // The bucket that ends at the same value, or at the next.
            *self.buckets.entry((number + 1) >> 1).or_default() += count;
        }
    }

    /// How fine it is by now.
    pub(super) fn schema(&self) -> i8 {
        self.schema
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.buckets.values().sum::<u64>() + self.zero
    }

    /// How many took no nanosecond.
    pub(super) fn zero(&self) -> u64 {
        self.zero
    }

    /// Their sum, in seconds.
    pub(super) fn sum_s(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// Runs of buckets: how many free ones lie before each (before the first, its number), and how
    /// long it is. Beside them each bucket's count, less that of the one before.
    pub(super) fn spans(&self) -> (Vec<(i32, u32)>, Vec<i64>) {
        let (mut spans, mut deltas) = (Vec::<(i32, u32)>::new(), Vec::new());
        let (mut next, mut before) = (None::<i32>, 0);
        for (number, count) in &self.buckets {
            match (next, spans.last_mut()) {
                (Some(next), Some((_, length))) if next == *number => *length += 1,
                _ => spans.push((number - next.unwrap_or(0), 1)),
            }
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            deltas.push(count - before);
            (next, before) = (Some(number + 1), count);
        }
        (spans, deltas)
    }

    /// Classic buckets by a factor of 2: where each ends, in seconds, and how many it has alone.
    pub(super) fn classic(&self) -> Vec<(f64, u64)> {
        let mut rest = self.buckets.iter().peekable();
        let mut zero = self.zero;
        let mut classic: Vec<(f64, u64)> = CLASSIC
            .map(|doubling| {
                // Native buckets never straddle a power of two.
                let last = doubling << self.schema;
                let mut count = std::mem::take(&mut zero);
                while let Some((_, of)) = rest.next_if(|(number, _)| **number <= last) {
                    count += of;
                }
                (f64::from(doubling).exp2(), count)
            })
            .collect();
        classic.push((f64::INFINITY, rest.map(|(_, count)| count).sum()));
        classic
    }
}

/// The bucket of that many nanoseconds.
fn bucket(ns: u64, schema: i8) -> i32 {
    let doublings = (ns as f64 / 1e9).log2();
    (doublings * f64::from(1_u32 << schema)).ceil() as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn latencies(values: &[(u64, u64)]) -> Latencies {
        let mut latencies = Latencies::empty();
        for (value, count) in values {
            latencies.record(*value, *count);
            latencies.sum_ns += value * count;
            latencies.max_ns = latencies.max_ns.max(*value);
        }
        latencies
    }

    /// What Prometheus gives: geometrically between the ends of the bucket in which the quantile is
    /// (`bucketQuantile`, promql/quantile.go, since 3.0; linearly before).
    fn quantile(native: &Native, quantile: f64) -> f64 {
        let rank = quantile * native.count() as f64;
        let mut passed = native.zero() as f64;
        for (number, count) in &native.buckets {
            let count = *count as f64;
            if passed + count >= rank {
                let fraction = (rank - passed) / count;
                let place = f64::from(*number) - 1.0 + fraction;
                return (place / f64::from(1_u32 << native.schema)).exp2();
            }
            passed += count;
        }
        f64::NAN
    }

    #[test]
    fn a_bucket_ends_where_prometheus_has_it_end() {
        // A power of two belongs to the bucket that ends there.
        assert_eq!(bucket(500_000_000, 3), -8);
        assert_eq!(bucket(500_000_001, 3), -7);
        assert_eq!((bucket(1_000_000_000, 6), bucket(1_000_000_001, 6)), (0, 1));
    }

    #[test]
    fn spans_and_deltas_are_those_of_the_format() {
        let mut native = Native::new(0, BUCKETS);
        // 0.5 to 1 s, 1 to 2 s, 16 to 32 s, and nothing at all.
        native.add(&latencies(&[
            (0, 3),
            (700_000_000, 5),
            (1_500_000_000, 7),
            (20_000_000_000, 2),
        ]));
        assert_eq!(native.spans(), (vec![(0, 2), (3, 1)], vec![5, 2, -5]));
        assert_eq!((native.zero(), native.count()), (3, 17));
        let classic = native.classic();
        assert_eq!((classic.len(), CLASSIC_BUCKETS), (28, 28));
        assert_eq!(classic[0], (0.5f64.powi(21), 3));
        assert_eq!(
            classic[21..],
            [(1.0, 5), (2.0, 7), (4.0, 0), (8.0, 0), (16.0, 0), (32.0, 2), (f64::INFINITY, 0)]
        );
    }

    #[test]
    fn many_buckets_become_coarser_and_stay_so() {
        let mut native = Native::new(6, BUCKETS);
        let all: Vec<(u64, u64)> = (0..37).map(|doubling| (1 << doubling, 1)).collect();
        native.add(&latencies(&all));
        assert_eq!(native.schema(), 6);
        let spread: Vec<(u64, u64)> = (0..3_000).map(|number| (1_000 + number * 997, 1)).collect();
        native.add(&latencies(&spread));
        let schema = native.schema();
        assert!(schema < 6 && native.buckets.len() <= usize::from(BUCKETS), "{schema}");
        assert_eq!(native.count(), 3_037);
        native.add(&latencies(&[(1_000, 1)]));
        assert_eq!(native.schema(), schema);
        let classic: u64 = native.classic().iter().map(|(_, count)| count).sum();
        assert_eq!(classic, 3_038);
    }

    proptest! {
        /// Of all that a distribution may be as long as it keeps its buckets.
        #[test]
        fn quantiles_are_ours_within_two_percent(
            values in prop::collection::vec((1_000..200_000_000_u64, 1..50_u64), 1..60),
        ) {
            let latencies = latencies(&values);
            let mut native = Native::new(SCHEMA, BUCKETS);
            native.add(&latencies);
            prop_assert_eq!(native.schema(), SCHEMA);
            for of in [0.5, 0.9, 0.99] {
                let ours = latencies.histogram().value_at_quantile(of) as f64 / 1e9;
                let theirs = quantile(&native, of);
                prop_assert!((ours / theirs - 1.0).abs() < 0.02, "{}: {} {}", of, ours, theirs);
            }
        }
    }
}
