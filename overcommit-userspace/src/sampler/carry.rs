//! Takes what the kernel has summed since the last time.

use overcommit_ebpf::bucket::{self, BUCKETS, DOUBLING};
use overcommit_ebpf::layout::{Chunk, Histogram};
use overcommit_recording::model::latencies::Latencies;
use std::sync::atomic::Ordering::SeqCst;

/// What the kernel was in the middle of adding at the last take.
#[derive(Debug, Default)]
pub struct Carry {
    sum_ns: u64,
    max_ns: u64,
    over_range: u64,
}

impl Carry {
    /// Takes what has been counted and leaves the shared histogram empty.
    ///
    /// A program adds to sum, maximum and bucket in this order and may be between
    /// two of them; so the buckets are taken first, and a maximum that belongs to
    /// no bucket yet waits here for the next take.
    pub fn take<'a>(
        &mut self,
        shared: &Histogram,
        chunk: impl Fn(u32) -> Option<&'a Chunk>,
    ) -> Latencies {
        let mut taken = Latencies::empty();
        let mut top = None;
        for (place, number) in shared.chunks() {
            let buckets = chunk(number).map(|chunk| chunk.buckets.iter()).into_iter().flatten();
            for (index, bucket) in (place * DOUBLING..).zip(buckets) {
                if bucket.load(SeqCst) != 0 {
                    taken.record(bucket::highest(index), bucket.swap(0, SeqCst));
                    top = Some(index);
                }
            }
        }
        let sum_ns = self.sum_ns + shared.sum_ns.swap(0, SeqCst);
        let max_ns = [self.max_ns, shared.max_ns.swap(0, SeqCst)];
        let over_range = self.over_range + shared.over_range.swap(0, SeqCst);
        let Some(top) = top else {
            *self = Self { sum_ns, max_ns: max_ns[0].max(max_ns[1]), over_range };
            return taken;
        };
        let last = if top == BUCKETS - 1 { u64::MAX } else { bucket::highest(top) };
        let belongs = |max: &&u64| (bucket::lowest(top)..=last).contains(*max);
        taken.max_ns = max_ns.iter().filter(belongs).max().copied().unwrap_or(bucket::highest(top));
        taken.sum_ns = sum_ns;
        taken.over_range = over_range;
        let early = max_ns.into_iter().filter(|max| *max > last).max();
        *self = Self { max_ns: early.unwrap_or(0), ..Self::default() };
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_ebpf::layout::CHUNKS;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    /// What the programs fill, and we take.
    struct Shared {
        histogram: Histogram,
        chunks: Vec<Chunk>,
    }

    impl Shared {
        fn new() -> Self {
            let zero = || AtomicU64::new(0);
            let histogram = Histogram {
                sum_ns: zero(),
                max_ns: zero(),
                over_range: zero(),
                chunks: std::array::from_fn(|_| zero()),
            };
            let chunk = || Chunk { buckets: std::array::from_fn(|_| zero()) };
            Self { histogram, chunks: std::iter::repeat_with(chunk).take(CHUNKS).collect() }
        }

        /// The bucket of a latency, in chunks that are taken from the last to the first.
        fn bucket(&self, ns: u64) -> &AtomicU64 {
            let index = bucket::index(ns);
            let number = CHUNKS - 1 - index / DOUBLING;
            self.histogram.chunks[index / DOUBLING].store(number as u64 + 1, SeqCst);
            &self.chunks[number].buckets[index % DOUBLING]
        }

        /// As the program does it, up to the given step.
        fn add(&self, ns: u64, steps: u32) {
            let bucket = self.bucket(ns);
            self.histogram.sum_ns.fetch_add(ns, SeqCst);
            if steps > 1 {
                self.histogram.max_ns.fetch_max(ns, SeqCst);
            }
            if steps > 2 {
                bucket.fetch_add(1, SeqCst);
            }
        }

        fn take(&self, carry: &mut Carry) -> Latencies {
            carry.take(&self.histogram, |number| self.chunks.get(number as usize))
        }
    }

    #[test]
    fn an_interval_is_taken_once() {
        let (shared, mut carry) = (Shared::new(), Carry::default());
        for ns in [100, 1_000, 200_000_000_000] {
            shared.add(ns, 3);
        }
        let taken = shared.take(&mut carry);
        assert_eq!(
            (taken.count(), taken.sum_ns, taken.max_ns),
            (3, 200_000_001_100, 200_000_000_000)
        );
        assert_eq!(taken.quantile(0.5), Some(1003), "the highest value of its bucket");
        assert_eq!(shared.take(&mut carry), Latencies::empty());
    }

    #[test]
    fn a_half_added_fault_waits_for_the_next_interval() {
        let (shared, mut carry) = (Shared::new(), Carry::default());
        shared.add(500, 3);
        shared.add(90_000, 2);
        let first = shared.take(&mut carry);
        assert_eq!((first.count(), first.max_ns), (1, bucket::highest(bucket::index(500))));
        shared.bucket(90_000).fetch_add(1, SeqCst);
        let second = shared.take(&mut carry);
        assert_eq!((second.count(), second.max_ns), (1, 90_000));
        assert_eq!(first.sum_ns + second.sum_ns, 90_500, "no nanosecond is lost");
    }

    #[test]
    fn nothing_counted_claims_no_time() {
        let (shared, mut carry) = (Shared::new(), Carry::default());
        shared.add(90_000, 2);
        let first = shared.take(&mut carry);
        assert_eq!((first.count(), first.sum_ns, first.max_ns), (0, 0, 0));
        shared.bucket(90_000).fetch_add(1, SeqCst);
        let second = shared.take(&mut carry);
        assert_eq!((second.count(), second.sum_ns, second.max_ns), (1, 90_000, 90_000));
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_raw_values(values in proptest::collection::vec(1u64..bucket::MAX_NS, 1..300),
                                                 quantile in 0.0f64..=1.0) {
            let (shared, mut carry) = (Shared::new(), Carry::default());
            values.iter().for_each(|ns| shared.add(*ns, 3));
            let taken = shared.take(&mut carry);
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = ((quantile * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len());
            let exact = sorted[rank - 1];
            let got = taken.quantile(quantile).unwrap();
            prop_assert!(got >= exact && got - exact <= exact / 128, "{got} for {exact}");
            prop_assert!(got <= taken.max_ns);
            prop_assert_eq!(taken.max_ns, *sorted.last().unwrap());
        }
    }
}
