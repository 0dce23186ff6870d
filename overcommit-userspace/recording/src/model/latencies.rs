//! The latencies of one VM and metric.

use hdrhistogram::Histogram;
use overcommit_ebpf::bucket;

/// The latencies of one VM, metric and interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Latencies {
    /// Their distribution, in nanoseconds.
    pub histogram: Histogram<u64>,
    /// Exact sum, in nanoseconds.
    pub sum_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
    /// How many exceeded the last bucket, in which they count.
    pub over_range: u64,
}

impl Latencies {
    /// None.
    pub fn empty() -> Self {
        let bounds = Histogram::new_with_bounds(1, bucket::MAX_NS, bucket::SIGNIFICANT_DIGITS);
        let Ok(histogram) = bounds else {
            unreachable!("the bounds are constants that the crate accepts")
        };
        Self { histogram, sum_ns: 0, max_ns: 0, over_range: 0 }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The highest value of the quantile's bucket, never above the maximum;
    /// `None` of nothing. In nanoseconds.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let value = self.histogram.value_at_quantile(quantile);
        (self.count() > 0).then(|| value.min(self.max_ns))
    }

    /// The one at that place, from 1, among all of them sorted: the highest value of its bucket,
    /// never above the maximum; `None` if there are not so many. In nanoseconds.
    pub fn at(&self, place: u64) -> Option<u64> {
        let mut passed = 0;
        let found = self.histogram.iter_recorded().find(|value| {
            passed += value.count_at_value();
            passed >= place
        });
        found.map(|value| value.value_iterated_to().min(self.max_ns))
    }

    /// Adds the distribution of another interval.
    pub fn add(&mut self, histogram: &Histogram<u64>) {
        for value in histogram.iter_recorded() {
            self.record(value.value_iterated_to(), value.count_at_value());
        }
    }

    /// Adds others, of the same interval.
    pub fn merge(&mut self, other: &Self) {
        self.add(&other.histogram);
        // A recording may claim anything.
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.over_range = self.over_range.saturating_add(other.over_range);
    }

    /// Records that many of a value that a bucket stands for, in nanoseconds.
    pub fn record(&mut self, value: u64, count: u64) {
        // Values come from buckets, so they are in range.
        self.histogram.saturating_record_n(value, count);
    }
}
