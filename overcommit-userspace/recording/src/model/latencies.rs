//! The latencies of one VM and metric.

use hdrhistogram::Histogram;
use overcommit_ebpf::bucket;
use std::borrow::Cow;

/// The latencies of one VM, metric and interval.
#[derive(Clone, Debug)]
pub struct Latencies {
    distribution: Distribution,
    /// Exact sum, in nanoseconds.
    pub sum_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
    /// How many exceeded the last bucket, in which they count.
    pub over_range: u64,
}

/// Values that are kept one by one, at the most.
const FEW: usize = 256;

/// The same of one that is not to be added to: more would take as much as a histogram.
const SPARSE: usize = bucket::BUCKETS / 4;

/// How often each value. A histogram takes 32 KB, and a recording of many VMs, most of them short,
/// has hundreds of thousands of distributions.
#[derive(Clone, Debug)]
enum Distribution {
    /// By value, in nanoseconds, in order.
    Few(Vec<(u64, u64)>),
    Many(Box<Histogram<u64>>),
}

/// Of nothing.
fn histogram() -> Histogram<u64> {
    let bounds = Histogram::new_with_bounds(1, bucket::MAX_NS, bucket::SIGNIFICANT_DIGITS);
    let Ok(histogram) = bounds else {
        unreachable!("the bounds are constants that the crate accepts")
    };
    histogram
}

/// With these values, which come from buckets, so that they are in range.
fn filled(values: &[(u64, u64)]) -> Histogram<u64> {
    let mut filled = histogram();
    values.iter().for_each(|(value, count)| filled.saturating_record_n(*value, *count));
    filled
}

/// The values of a histogram and how often each came, if they are no more than so many.
fn few(histogram: &Histogram<u64>, most: usize) -> Option<Vec<(u64, u64)>> {
    let values = histogram.iter_recorded();
    let values = values.map(|of| (of.value_iterated_to(), of.count_at_value()));
    let few: Vec<_> = values.take(most + 1).collect();
    (few.len() <= most).then_some(few)
}

impl Latencies {
    /// None.
    pub const fn empty() -> Self {
        Self { distribution: Distribution::Few(Vec::new()), sum_ns: 0, max_ns: 0, over_range: 0 }
    }

    /// Their distribution, in nanoseconds.
    pub fn histogram(&self) -> Cow<'_, Histogram<u64>> {
        match &self.distribution {
            Distribution::Few(values) => Cow::Owned(filled(values)),
            Distribution::Many(histogram) => Cow::Borrowed(histogram),
        }
    }

    /// Has these values instead, which are in order, and so many of each.
    pub fn distribute(&mut self, values: Vec<(u64, u64)>) {
        self.distribution = if values.len() <= FEW {
            Distribution::Few(values)
        } else {
            Distribution::Many(Box::new(filled(&values)))
        };
    }

    /// A copy that takes as little memory as it can, for those that are kept.
    pub fn compacted(&self) -> Self {
        let distribution = match &self.distribution {
            Distribution::Many(histogram) => few(histogram, SPARSE).map(Distribution::Few),
            Distribution::Few(_) => None,
        };
        let distribution = distribution.unwrap_or_else(|| self.distribution.clone());
        Self { distribution, ..*self }
    }

    /// About how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + match &self.distribution {
                Distribution::Few(values) => size_of_val(values.as_slice()),
                Distribution::Many(_) => bucket::BUCKETS * size_of::<u64>(),
            }
    }

    /// Each value that a bucket stands for, in nanoseconds, and how many there are.
    pub fn each(&self, mut take: impl FnMut(u64, u64)) {
        self.find(|value, count| {
            take(value, count);
            false
        });
    }

    /// The first of those values, in order, of which that is so.
    fn find(&self, mut is_it: impl FnMut(u64, u64) -> bool) -> Option<u64> {
        match &self.distribution {
            Distribution::Few(values) => {
                values.iter().find(|(value, count)| is_it(*value, *count)).map(|(value, _)| *value)
            }
            Distribution::Many(histogram) => {
                let mut values = histogram.iter_recorded();
                values
                    .find(|of| is_it(of.value_iterated_to(), of.count_at_value()))
                    .map(|of| of.value_iterated_to())
            }
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        match &self.distribution {
            Distribution::Few(values) => {
                values.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
            }
            Distribution::Many(histogram) => histogram.len(),
        }
    }

    /// The highest value of the quantile's bucket, never above the maximum;
    /// `None` of nothing. In nanoseconds.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let count = self.count();
        match &self.distribution {
            // As the crate rounds it.
            Distribution::Few(_) => self.at(((quantile * count as f64).ceil() as u64).max(1)),
            Distribution::Many(_) if count == 0 => None,
            Distribution::Many(histogram) => {
                Some(histogram.value_at_quantile(quantile).min(self.max_ns))
            }
        }
    }

    /// The one at that place, from 1, among all of them sorted: the highest value of its bucket,
    /// never above the maximum; `None` if there are not so many. In nanoseconds.
    pub fn at(&self, place: u64) -> Option<u64> {
        let mut passed = 0_u64;
        let found = self.find(|_, count| {
            passed = passed.saturating_add(count);
            passed >= place
        });
        found.map(|value| value.min(self.max_ns))
    }

    /// How many exceed a limit.
    pub fn above(&self, limit_ns: u64) -> u64 {
        let mut above = 0_u64;
        self.each(|value, count| {
            if value.min(self.max_ns) > limit_ns {
                above = above.saturating_add(count);
            }
        });
        above
    }

    /// Adds the distribution of another interval.
    pub fn add(&mut self, histogram: &Histogram<u64>) {
        for value in histogram.iter_recorded() {
            self.record(value.value_iterated_to(), value.count_at_value());
        }
    }

    /// Adds others, of the same interval.
    pub fn merge(&mut self, other: &Self) {
        match &other.distribution {
            Distribution::Few(values) => {
                values.iter().for_each(|(value, count)| self.record(*value, *count));
            }
            Distribution::Many(histogram) => self.add(histogram),
        }
        // A recording may claim anything.
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.over_range = self.over_range.saturating_add(other.over_range);
    }

    /// Records that many of a value, in nanoseconds: as the highest of its bucket.
    pub fn record(&mut self, value: u64, count: u64) {
        let value = bucket::highest(bucket::index(value));
        match &mut self.distribution {
            Distribution::Few(values) => {
                match values.binary_search_by_key(&value, |(value, _)| *value) {
                    Ok(at) => values[at].1 = values[at].1.saturating_add(count),
                    Err(at) if values.len() < FEW => values.insert(at, (value, count)),
                    Err(_) => {
                        let mut many = filled(values);
                        many.saturating_record_n(value, count);
                        self.distribution = Distribution::Many(Box::new(many));
                    }
                }
            }
            Distribution::Many(histogram) => histogram.saturating_record_n(value, count),
        }
    }
}

impl PartialEq for Latencies {
    fn eq(&self, other: &Self) -> bool {
        let exact = |of: &Self| (of.sum_ns, of.max_ns, of.over_range);
        exact(self) == exact(other) && self.histogram() == other.histogram()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_are_distributed_alike() {
        let (mut latencies, mut expected) = (Latencies::empty(), histogram());
        assert_eq!((latencies.count(), latencies.quantile(0.5)), (0, None));
        for number in 0..3 * FEW as u64 {
            // Again and again, in no order.
            let value = number * 7_919 % 1_009 * 1_000;
            latencies.record(value, number + 1);
            expected.saturating_record_n(value, number + 1);
            latencies.max_ns = latencies.max_ns.max(value);
            assert_eq!(*latencies.histogram(), expected);
            assert_eq!(latencies.count(), expected.len());
            for quantile in [0.001, 0.5, 0.9, 0.99, 1.0] {
                let expected = expected.value_at_quantile(quantile).min(latencies.max_ns);
                assert_eq!(latencies.quantile(quantile), Some(expected), "{quantile} of {number}");
            }
        }
        assert!(matches!(latencies.distribution, Distribution::Many(_)));
        assert_eq!(*latencies.compacted().histogram(), expected);
        assert!(latencies.compacted().bytes() < latencies.bytes());
        let mut read = Latencies::empty();
        read.distribute(vec![(7_935, 3)]);
        assert!(matches!(&read.distribution, Distribution::Few(few) if few[0] == (7_935, 3)));
        let mut values = Vec::new();
        latencies.each(|value, count| values.push((value, count)));
        read.distribute(values);
        assert!(matches!(read.distribution, Distribution::Many(_)));
        assert_eq!(*read.histogram(), expected);
        let mut sum = Latencies::empty();
        sum.record(5, 2);
        sum.merge(&latencies);
        expected.saturating_record_n(5, 2);
        assert_eq!(*sum.histogram(), expected);
        let few = |value| {
            let mut few = Latencies::empty();
            few.record(value, 1);
            few
        };
        assert!(few(7) == few(7) && few(7) != few(8));
    }
}
