//! The values of a serialized histogram (HdrHistogram's version 2) of ours, without making one: that takes 30 KB,
//! and longer than all else that is done with a line of a log.

use anyhow::{Context, Result, ensure};
use overcommit_ebpf::bucket::{self, BUCKETS, MAX_NS, SIGNIFICANT_DIGITS};

/// `V2_COOKIE` of HdrHistogram.
const COOKIE: u64 = 0x1c84_9313;
/// Bytes of the head.
pub(super) const HEAD: usize = 40;

/// What the head says.
pub(super) struct Head {
    /// Bytes behind it.
    pub(super) length: u64,
    /// Significant digits.
    pub(super) digits: u64,
    /// The highest value that it may have.
    pub(super) highest: u64,
    is_plain: bool,
}

impl Head {
    /// Reads it; `None` where it is cut off.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..HEAD)?;
        let number = |at: usize, length: usize| {
            head[at..at + length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let is_plain = (number(0, 4), number(8, 4), number(16, 8), number(32, 8))
            == (COOKIE, 0, 1, 1.0_f64.to_bits());
        let (length, digits, highest) = (number(4, 4), number(12, 4), number(24, 8));
        Some(Self { length, digits, highest, is_plain })
    }

    /// Whether its buckets are ours.
    pub(super) fn is_ours(&self) -> bool {
        self.is_plain && self.digits == u64::from(SIGNIFICANT_DIGITS) && self.highest == MAX_NS
    }
}

/// Each value of a histogram of ours, and how often it came, in order. `counts` is what follows its head.
///
/// # Errors
/// It is cut off, or has more buckets than ours.
pub(super) fn values(mut counts: &[u8]) -> Result<Vec<(u64, u64)>> {
    let (mut values, mut index) = (Vec::new(), 0);
    while !counts.is_empty() {
        // A count, or how many buckets are empty.
        let word = signed(&mut counts).context("it is cut off")?;
        let count = word.max(0).unsigned_abs();
        if count > 0 {
            values.push((bucket::highest(index), count));
        }
        index = index.saturating_add(usize::try_from(word.min(-1).unsigned_abs())?);
        ensure!(index <= BUCKETS, "it has more buckets than there are");
    }
    Ok(values)
}

/// A number in at most nine bytes, the lowest seven bits first, its sign in the last bit.
fn signed(bytes: &mut &[u8]) -> Option<i64> {
    let mut number = 0;
    for at in 0..9 {
        let byte = u64::from(*bytes.get(at)?);
        // The ninth has eight.
        let is_last = at == 8 || byte < 0x80;
        number |= (if is_last { byte } else { byte & 0x7f }) << (7 * at);
        if is_last {
            *bytes = &bytes[at + 1..];
            break;
        }
    }
    Some((number >> 1) as i64 ^ -((number & 1) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::{Serializer, V2Serializer};
    use proptest::prelude::*;

    fn serialized(highest: u64, values: &[(u64, u64)]) -> Vec<u8> {
        let mut histogram =
            Histogram::<u64>::new_with_bounds(1, highest, SIGNIFICANT_DIGITS).unwrap();
        values.iter().for_each(|(value, count)| histogram.record_n(*value, *count).unwrap());
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&histogram, &mut bytes).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn they_are_as_the_crate_has_them(
            values in prop::collection::vec((0_u64..MAX_NS, 1_u64..1 << 52), 0..40),
            small in prop::collection::vec((0_u64..600, 1_u64..3), 0..300),
        ) {
            let all = [values, small].concat();
            let bytes = serialized(MAX_NS, &all);
            let head = Head::read(&bytes).unwrap();
            prop_assert!(head.is_ours() && head.length as usize == bytes.len() - HEAD);
            let mut expected = std::collections::BTreeMap::new();
            for (value, count) in all {
                *expected.entry(bucket::highest(bucket::index(value))).or_insert(0) += count;
            }
            let read = super::values(&bytes[HEAD..]).unwrap();
            prop_assert_eq!(read, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_not_ours_or_torn_is_told_apart() {
        assert!(!Head::read(&serialized(MAX_NS / 2, &[])).unwrap().is_ours());
        let bytes = serialized(MAX_NS, &[(MAX_NS, 1 << 60)]);
        assert!(Head::read(&bytes).unwrap().is_ours());
        assert!(!Head::read(&[&[0][..], &bytes[1..]].concat()).unwrap().is_ours(), "its version");
        assert!(Head::read(&bytes[..HEAD - 1]).is_none());
        assert!(values(&bytes[HEAD..bytes.len() - 1]).is_err(), "cut off");
        let many = [&bytes[HEAD..], &bytes[HEAD..]].concat();
        assert!(values(&many).unwrap_err().to_string().contains("more buckets"));
    }
}
