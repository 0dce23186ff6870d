//! States of a host, as files and views have them.

use std::collections::BTreeMap;

/// A state. The order is from what is not known to the worst.
pub trait State: Copy + Ord + Default + 'static {
    /// Each, the worst last.
    const ALL: &'static [Self];

    /// The word in files and views.
    fn name(self) -> &'static str;

    /// What a file calls so.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| state.name() == name)
    }
}

/// Time in each state, in nanoseconds.
pub type Times<S> = BTreeMap<S, u64>;
