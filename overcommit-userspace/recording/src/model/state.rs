//! States of a host, as files and views have them.

use crate::model::parts::add;
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// A state. The order is from what is not known to the worst.
pub trait State: Copy + Ord + Default + 'static {
    /// Each, the worst last.
    const ALL: &'static [Self];

    /// The word in files and views.
    fn name(self) -> &'static str;

    /// Its place among all.
    fn place(self) -> usize {
        Self::ALL.iter().take_while(|state| **state < self).count()
    }

    /// What a file calls so.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| state.name() == name)
    }
}

/// Time in each state, in nanoseconds.
pub type Times<S> = BTreeMap<S, u64>;

/// How many states each kind has.
const STATES: usize = 4;

/// Time within an interval in each state, in nanoseconds: of a VM, as long as it was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateTimes<S> {
    ns: [u64; STATES],
    of: PhantomData<S>,
}

impl<S: State> StateTimes<S> {
    /// All of it in one state.
    pub fn of(state: S, length_ns: u64) -> Self {
        let mut times = Self::default();
        *times.at(state.place()) = length_ns;
        times
    }

    /// The time of both.
    pub fn plus(mut self, other: Self) -> Self {
        add(&mut self.ns, other.ns);
        self
    }

    /// In all states.
    pub fn total_ns(&self) -> u64 {
        self.ns.iter().sum()
    }

    /// In the state with that place.
    pub fn at(&mut self, place: usize) -> &mut u64 {
        &mut self.ns[place]
    }

    /// Adds what an interval of that length and worst state holds. Earlier versions looked once
    /// per interval and tell no times.
    pub fn add_to(self, sums: &mut Times<S>, worst: S, length_ns: u64) {
        let times = if self.total_ns() == 0 { Self::of(worst, length_ns) } else { self };
        let each = S::ALL.iter().zip(times.ns);
        for (state, ns) in each.filter(|(_, ns)| *ns > 0) {
            *sums.entry(*state).or_default() += ns;
        }
    }
}
