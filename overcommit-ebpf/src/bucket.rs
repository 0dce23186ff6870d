//! The buckets of `HdrHistogram(1, 2^37 - 1, 2)`: 256 of width 1, then 128 for
//! each doubling. A value differs from any other of its bucket by at most 1/128.
//!
//! The same arithmetic runs in the kernel and in the loader, so a value is
//! rounded once and never again.

/// The largest value that has a bucket of its own, in nanoseconds (137 s).
pub const MAX_NS: u64 = (1 << 37) - 1;
/// Significant decimal digits, HdrHistogram's name for the precision.
pub const SIGNIFICANT_DIGITS: u8 = 2;
/// Number of buckets.
pub const BUCKETS: usize = 3968;
/// Buckets of one doubling.
pub const DOUBLING: usize = 1 << HALF_BITS;

/// log2 of the buckets a doubling: values below `2 << HALF_BITS` are exact.
const HALF_BITS: u32 = 7;
const HALF: u64 = 1 << HALF_BITS;

/// Position of the highest bit set in `value | 1`.
///
/// BPF has no instruction for it, and what the compiler makes of
/// `leading_zeros` costs three times as many.
#[inline(always)]
fn log2(value: u64) -> u32 {
    let mut rest = value;
    let mut log = 0;
    // The steps of a binary search, written out: a loop would have to be
    // unrolled for old verifiers anyway.
    if rest >> 32 != 0 {
        rest >>= 32;
        log += 32;
    }
    if rest >> 16 != 0 {
        rest >>= 16;
        log += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        log += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        log += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        log += 2;
    }
    if rest >> 1 != 0 {
        log += 1;
    }
    log
}

/// The bucket of a latency. Longer ones than [`MAX_NS`] share the last bucket.
#[inline(always)]
pub fn index(ns: u64) -> usize {
    let ns = if ns > MAX_NS { MAX_NS } else { ns };
    let log = log2(ns | (2 * HALF - 1));
    let shift = log - HALF_BITS;
    ((u64::from(shift) << HALF_BITS) + (ns >> shift)) as usize
}

/// The lowest value of a bucket, in nanoseconds.
pub fn lowest(index: usize) -> u64 {
    let (position, shift) = split(index);
    position << shift
}

/// The highest value of a bucket, in nanoseconds: what a quantile reports.
pub fn highest(index: usize) -> u64 {
    let (position, shift) = split(index);
    ((position + 1) << shift) - 1
}

fn split(index: usize) -> (u64, u32) {
    let index = index.min(BUCKETS - 1) as u64;
    if index < 2 * HALF {
        return (index, 0);
    }
    let shift = (index >> HALF_BITS) - 1;
    (index - (shift << HALF_BITS), shift as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use proptest::prelude::*;

    fn reference() -> Histogram<u64> {
        Histogram::new_with_bounds(1, MAX_NS, SIGNIFICANT_DIGITS).unwrap()
    }

    #[test]
    fn as_many_buckets_as_the_crate() {
        assert_eq!(reference().distinct_values(), BUCKETS);
    }

    #[test]
    fn every_bucket_is_the_crates() {
        let reference = reference();
        for i in 0..BUCKETS {
            assert_eq!(index(lowest(i)), i);
            assert_eq!(index(highest(i)), i);
            assert_eq!(reference.lowest_equivalent(lowest(i)), lowest(i));
            assert_eq!(reference.highest_equivalent(lowest(i)), highest(i));
            if i > 0 {
                assert_eq!(lowest(i), highest(i - 1) + 1, "no gap before bucket {i}");
            }
        }
        assert_eq!(lowest(0), 0);
        assert_eq!(highest(BUCKETS - 1), MAX_NS);
    }

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket_within_the_error(ns in any::<u64>(), scale in 0u32..64) {
            let ns = ns >> scale;
            let i = index(ns);
            prop_assert!(i < BUCKETS);
            if ns <= MAX_NS {
                prop_assert!(lowest(i) <= ns && ns <= highest(i));
                prop_assert!((highest(i) - lowest(i)) * 128 <= ns.max(1));
                prop_assert_eq!(highest(i), reference().highest_equivalent(ns));
            } else {
                prop_assert_eq!(i, BUCKETS - 1);
            }
        }

        #[test]
        fn longer_never_comes_before_shorter(a in any::<u64>(), b in any::<u64>(), scale in 0u32..64) {
            let (a, b) = (a >> scale, b >> scale);
            let (a, b) = (a.min(b), a.max(b));
            prop_assert!(index(a) <= index(b));
        }
    }
}
