//! The host over a whole run.

use crate::model::balloon::BalloonState;
use crate::model::figures::HostFigures;
use crate::model::interval::Interval;
use crate::model::memory::{Headroom, HostPressure, LeastHeadroom, OvercommitState};
use crate::model::run::Run;
use crate::model::state::{State, Times};
use crate::model::swap::{SwapArea, SwapState};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// The host over the whole run.
#[derive(Debug, Serialize)]
pub struct SummaryHost {
    /// How much swapping hurt anybody.
    pub swap: StateSummary<SwapState>,
    /// How hard memory was taken back from VMs.
    pub balloon: StateSummary<BalloonState>,
    /// How near the edge it was.
    pub overcommit: StateSummary<OvercommitState>,
    /// Its memory, as last known.
    pub memory: HostFigures,
    /// How the headroom moved; `null` if it was never known.
    pub headroom: Option<Moved>,
    /// Time in which the host itself reclaimed, in seconds; `null` if no two looks lie in it.
    pub reclaimed_s: Option<f64>,
    /// Where pages could be swapped to when it began; `null` of a version that did not look.
    pub swap_areas: Option<Vec<SwapArea>>,
}

/// The headroom over the run, in bytes. Of the time in which the working set of every recorded
/// VM was measured, if there was any: bounds are no measure of what moved.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Moved {
    /// When it was first known.
    pub first: Headroom,
    /// At its least.
    pub least: Headroom,
    /// When it was last known.
    pub last: Headroom,
}

/// How long it was in which state.
#[derive(Clone, Debug, Serialize)]
#[serde(bound = "S: State")]
pub struct StateSummary<S> {
    /// The worst.
    #[serde(serialize_with = "name")]
    pub worst: S,
    /// Time in each, in seconds; the worst last.
    #[serde(serialize_with = "by_name")]
    pub seconds: BTreeMap<S, f64>,
}

fn name<S: State, W: Serializer>(state: &S, serializer: W) -> Result<W::Ok, W::Error> {
    serializer.serialize_str(state.name())
}

fn by_name<S: State, W: Serializer>(
    seconds: &BTreeMap<S, f64>,
    serializer: W,
) -> Result<W::Ok, W::Error> {
    serializer.collect_map(seconds.iter().map(|(state, seconds)| (state.name(), seconds)))
}

impl<S: State> StateSummary<S> {
    /// Of the time in each.
    pub fn of(times: &Times<S>) -> Self {
        let worst = times.keys().max().copied().unwrap_or_default();
        let seconds = times.iter().map(|(state, ns)| (*state, *ns as f64 / 1e9));
        Self { worst, seconds: seconds.collect() }
    }

    /// Time in that state, in seconds.
    pub fn seconds_in(&self, state: S) -> f64 {
        self.seconds.get(&state).copied().unwrap_or(0.0)
    }
}

/// The host, interval by interval.
#[derive(Debug, Default)]
pub struct HostTotals {
    swap: Times<SwapState>,
    balloon: Times<BalloonState>,
    overcommit: Times<OvercommitState>,
    memory: HostFigures,
    /// The headroom when it was first and last known.
    ends: Option<[Headroom; 2]>,
    /// Whether that is of measured working sets.
    is_measured: bool,
    least: Option<LeastHeadroom>,
    pressure: HostPressure,
}

impl HostTotals {
    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval) {
        let (host, length_ns) = (&interval.host, interval.place.length_ns);
        let overcommit = host.overcommit.map(|sum| sum.state).unwrap_or_default();
        self.pressure = self.pressure.plus(host.pressure);
        host.swap.times.add_to(&mut self.swap, host.swap.state, length_ns);
        host.balloon_times.add_to(&mut self.balloon, host.balloon, length_ns);
        host.overcommit_times.add_to(&mut self.overcommit, overcommit, length_ns);
        // Earlier versions looked once per interval.
        let at_end = host.swap.memory.and_then(|memory| memory.available);
        let available = host.swap.least_available.or(at_end);
        let least = self.memory.least_available_bytes.into_iter().chain(available).min();
        if let Some(memory) = HostFigures::of(host) {
            self.memory = memory;
        }
        self.memory.least_available_bytes = least;
        let is_measured = interval.is_measured();
        let left = host.overcommit.and_then(|sum| sum.headroom());
        if let Some(left) = left.filter(|_| is_measured || !self.is_measured) {
            if is_measured && !self.is_measured {
                (self.ends, self.is_measured) = (None, true);
            }
            self.ends.get_or_insert([left; 2])[1] = left;
        }
        let at_end = left.map(|headroom| LeastHeadroom { headroom, is_measured });
        let least = [self.least, host.least_headroom.or(at_end)].into_iter().flatten();
        self.least = least.reduce(LeastHeadroom::min_with);
    }

    /// As the summary of a recording has it.
    pub fn of(&self, run: &Run) -> SummaryHost {
        SummaryHost {
            swap: StateSummary::of(&self.swap),
            balloon: StateSummary::of(&self.balloon),
            overcommit: StateSummary::of(&self.overcommit),
            memory: self.memory.clone(),
            headroom: self.ends.zip(self.least).map(|([first, last], least)| Moved {
                first,
                least: least.headroom,
                last,
            }),
            reclaimed_s: self.pressure.reclaimed_ns.map(|ns| ns as f64 / 1e9),
            swap_areas: run.host_state.swap_areas.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::interval::{HostInterval, VmInterval};
    use crate::model::memory::{Overcommit, Range, Source, WorkingSet};

    /// An interval of one VM whose working set is that, by that source, on a host of 64 bytes.
    fn interval(source: Source, needed: u64) -> Interval {
        let range = Range { lower: needed, upper: needed };
        let set = WorkingSet { range, source, window_s: 1.0, cost: 0.0 };
        let sum =
            Overcommit { capacity: Some(64), working_sets: Some(range), ..Overcommit::default() };
        Interval {
            host: HostInterval { overcommit: Some(sum), ..HostInterval::default() },
            vms: vec![VmInterval { working_set: Some(set), ..VmInterval::default() }],
            ..Interval::default()
        }
    }

    #[test]
    fn headroom_moves_by_what_is_measured_and_not_by_who_measures() {
        let mut totals = HostTotals::default();
        // Nobody is there yet.
        totals.add(&Interval { vms: Vec::new(), ..interval(Source::Damon, 0) });
        totals.add(&interval(Source::Bounds, 54));
        let moved = totals.of(&Run::default()).headroom.unwrap();
        assert_eq!((moved.first.lower, moved.last.lower), (64, 10), "better than nothing");
        for needed in [24, 34, 30] {
            totals.add(&interval(Source::Damon, needed));
        }
        // A VM that has just started.
        totals.add(&interval(Source::Bounds, 60));
        let moved = totals.of(&Run::default()).headroom.unwrap();
        assert_eq!((moved.first.lower, moved.least.lower, moved.last.lower), (40, 30, 34));
    }
}
