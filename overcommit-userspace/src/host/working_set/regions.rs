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

/// What lies in both.
pub fn intersection(a: &[AddressRange], b: &[AddressRange]) -> Vec<AddressRange> {
    let mut common = Vec::new();
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        let both = (x.0.max(y.0), x.1.min(y.1));
        if both.0 < both.1 {
            common.push(both);
        }
        if x.1 < y.1 { i += 1 } else { j += 1 }
    }
    common
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
        fn they_are_sets(a in proptest::collection::vec((0u64..60, 0u64..60), 0..8),
                         b in proptest::collection::vec((0u64..60, 0u64..60), 0..8)) {
            let (joined_a, joined_b) = (normalized(a.clone()), normalized(b));
            prop_assert_eq!(members(&a), members(&joined_a));
            prop_assert_eq!(size(&joined_a), members(&a).len() as u64);
            let both: BTreeSet<u64> =
                members(&joined_a).intersection(&members(&joined_b)).copied().collect();
            let common = intersection(&joined_a, &joined_b);
            prop_assert_eq!(size(&common), both.len() as u64);
            prop_assert_eq!(members(&common), both);
        }
    }
}
