//! Sets of addresses as sorted, disjoint intervals.

/// From a first address to the one behind the last.
pub type AddressRange = (u64, u64);

/// Sorts and joins them.
pub fn normalized(mut intervals: Vec<AddressRange>) -> Vec<AddressRange> {
    intervals.retain(|(start, end)| start < end);
    intervals.sort_unstable();
    let mut joined: Vec<AddressRange> = Vec::with_capacity(intervals.len());
    for (start, end) in intervals {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// How many addresses.
pub fn size(intervals: &[AddressRange]) -> u64 {
    intervals.iter().map(|(start, end)| end - start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn members(intervals: &[AddressRange]) -> BTreeSet<u64> {
        intervals.iter().flat_map(|(start, end)| *start..*end).collect()
    }

    proptest! {
        #[test]
        fn they_are_sets(a in proptest::collection::vec((0u64..60, 0u64..60), 0..8)) {
            let joined = normalized(a.clone());
            prop_assert_eq!(members(&a), members(&joined));
            prop_assert_eq!(size(&joined), members(&a).len() as u64);
        }
    }
}
