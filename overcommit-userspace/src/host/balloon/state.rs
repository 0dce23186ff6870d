//! Normal, pressure or crisis? One VM with a balloon is somebody's choice; several that
//! are held down, on a host that swaps all the same, are a host that has run out.

use crate::host::overcommit::total;
use overcommit_recording::model::balloon::BalloonState;
use overcommit_recording::model::swap::SwapState;
use std::collections::{BTreeMap, VecDeque};

/// A VM as of now.
#[derive(Clone, Copy, Debug)]
pub struct Inflated {
    /// In bytes; `None` where nobody says.
    pub configured: Option<u64>,
    /// In bytes; `None` where nobody says.
    pub ballooned: Option<u64>,
}

/// Ballooned from this share of what is configured, and from so many bytes.
const SHARE: f64 = 0.01;
const BYTES: f64 = (64 << 20) as f64;
/// For so long, in nanoseconds.
const HELD_NS: u64 = 30_000_000_000;
/// Share of all configured memory by which a crisis grows in a minute.
const RISE: f64 = 0.02;
const MINUTE_NS: u64 = 60_000_000_000;
/// Share of a VM's memory whose loss is a crisis.
const MUCH: f64 = 0.40;

/// Follows the state of a host.
#[derive(Debug, Default)]
pub struct BalloonStates {
    vms: BTreeMap<usize, Followed>,
    /// Time and sum of what is taken back over the last minute.
    sums: VecDeque<(u64, u64)>,
}

#[derive(Debug)]
struct Followed {
    at_first: u64,
    /// Since when it is ballooned, without a break.
    since_ns: Option<u64>,
    now: u64,
    configured: u64,
}

impl Followed {
    fn least(&self) -> f64 {
        (self.configured as f64 * SHARE).max(BYTES)
    }

    fn is_held(&self, now_ns: u64) -> bool {
        self.since_ns.is_some_and(|since| now_ns.saturating_sub(since) >= HELD_NS)
    }

    fn is_as_at_first(&self) -> bool {
        (self.now.abs_diff(self.at_first) as f64) < self.configured as f64 * SHARE
    }
}

impl BalloonStates {
    /// The state at `now_ns` (`CLOCK_MONOTONIC`), of VMs by any number of theirs, among so many
    /// that run.
    pub fn advance(
        &mut self,
        now_ns: u64,
        vms: &BTreeMap<usize, Inflated>,
        running: usize,
        swap: SwapState,
    ) -> BalloonState {
        self.follow(now_ns, vms);
        let held: Vec<&Followed> = self.vms.values().filter(|vm| vm.is_held(now_ns)).collect();
        let is_known = !vms.is_empty() && self.vms.len() == vms.len();
        if held.is_empty() || (held.len() == 1 && running > 1) {
            return if is_known { BalloonState::Normal } else { BalloonState::Unknown };
        }
        match swap {
            SwapState::Healthy if is_known && held.iter().all(|vm| vm.is_as_at_first()) => {
                BalloonState::Normal
            }
            SwapState::Pressure | SwapState::Thrashing if self.rises() || is_much(&held) => {
                BalloonState::Crisis
            }
            _ => BalloonState::Pressure,
        }
    }

    fn follow(&mut self, now_ns: u64, vms: &BTreeMap<usize, Inflated>) {
        let known = vms.iter().filter_map(|(id, vm)| Some((*id, vm.configured?, vm.ballooned?)));
        let known: Vec<_> = known.collect();
        let there = self.vms.len();
        self.vms.retain(|id, _| known.iter().any(|(known, ..)| known == id));
        // A VM that comes or goes changes the sum and is no change of balloons.
        let mut is_other = self.vms.len() != there;
        for (id, configured, now) in known {
            let vm = self.vms.entry(id).or_insert_with(|| {
                is_other = true;
                Followed { at_first: now, since_ns: None, now, configured }
            });
            (vm.now, vm.configured) = (now, configured);
            let is_ballooned = now as f64 > vm.least();
            vm.since_ns = is_ballooned.then(|| vm.since_ns.unwrap_or(now_ns));
        }
        if is_other {
            self.sums.clear();
        }
        self.sums.push_back((now_ns, total(self.vms.values().map(|vm| vm.now))));
        while self.sums.get(1).is_some_and(|(time, _)| now_ns - time >= MINUTE_NS) {
            self.sums.pop_front();
        }
    }

    /// By its own pace over the last minute, or what there is of it.
    fn rises(&self) -> bool {
        let (Some((begin, first)), Some((end, last))) = (self.sums.front(), self.sums.back())
        else {
            return false;
        };
        let configured = total(self.vms.values().map(|vm| vm.configured));
        let minutes = (end - begin) as f64 / MINUTE_NS as f64;
        last.saturating_sub(*first) as f64 >= RISE * configured as f64 * minutes && last > first
    }
}

fn is_much(held: &[&Followed]) -> bool {
    held.iter().any(|vm| vm.now as f64 >= vm.configured as f64 * MUCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use BalloonState::{Crisis, Normal, Pressure, Unknown};

    const GIB: u64 = 1 << 30;

    fn vms(sizes: &[(u64, u64)]) -> BTreeMap<usize, Inflated> {
        let vm = |(configured, ballooned): &(u64, u64)| Inflated {
            configured: Some(*configured),
            ballooned: Some(*ballooned),
        };
        sizes.iter().map(vm).enumerate().collect()
    }

    /// The state after so many seconds of always the same.
    fn after(
        states: &mut BalloonStates,
        at_s: &mut u64,
        sizes: &[(u64, u64)],
        swap: SwapState,
    ) -> BalloonState {
        let mut state = Unknown;
        for _ in 0..31 {
            *at_s += 1;
            state = states.advance(*at_s * 1_000_000_000, &vms(sizes), sizes.len(), swap);
        }
        state
    }

    /// 2, 4 and 5 GiB taken back of 16, 16 and 8.
    const ESSAY: [(u64, u64); 3] = [(16 * GIB, 2 * GIB), (16 * GIB, 4 * GIB), (8 * GIB, 5 * GIB)];

    #[test]
    fn the_same_balloons_on_a_host_that_swaps_and_on_one_that_does_not() {
        let once = |swap| after(&mut BalloonStates::default(), &mut 0, &ESSAY, swap);
        assert_eq!(once(SwapState::Thrashing), Crisis);
        assert_eq!(once(SwapState::Pressure), Crisis);
        assert_eq!(once(SwapState::Healthy), Normal, "it was so at the start");
        assert_eq!(once(SwapState::Unknown), Pressure);
    }

    #[test]
    fn one_of_several_is_somebodys_choice_and_a_moment_is_nothing() {
        let one = [(16 * GIB, 8 * GIB), (16 * GIB, 0)];
        let swap = SwapState::Pressure;
        assert_eq!(after(&mut BalloonStates::default(), &mut 0, &one, swap), Normal);
        assert_eq!(after(&mut BalloonStates::default(), &mut 0, &one[..1], swap), Crisis);
        // The only one that is recorded is one of many.
        let mut states = BalloonStates::default();
        let recorded =
            (1..=31).map(|s| states.advance(s * 1_000_000_000, &vms(&one[..1]), 50, swap));
        assert_eq!(recorded.last(), Some(Normal));
        let little = [(16 * GIB, 100 << 20); 2];
        assert_eq!(after(&mut BalloonStates::default(), &mut 0, &little, swap), Normal);
        let state = BalloonStates::default().advance(1, &vms(&ESSAY), ESSAY.len(), swap);
        assert_eq!(state, Normal, "not yet for 30 s");
    }

    #[test]
    fn what_grows_is_pressure_and_where_the_host_swaps_a_crisis() {
        let (mut states, mut at_s) = (BalloonStates::default(), 0);
        let grown = |gib| [(16 * GIB, gib * GIB), (16 * GIB, gib * GIB)];
        assert_eq!(after(&mut states, &mut at_s, &grown(0), SwapState::Healthy), Normal);
        assert_eq!(after(&mut states, &mut at_s, &grown(1), SwapState::Healthy), Pressure);
        assert_eq!(after(&mut states, &mut at_s, &grown(2), SwapState::Pressure), Crisis);
        let mut state = Unknown;
        for _ in 0..3 {
            state = after(&mut states, &mut at_s, &grown(2), SwapState::Pressure);
        }
        assert_eq!(state, Pressure, "it has stopped growing");
        assert_eq!(after(&mut states, &mut at_s, &grown(0), SwapState::Pressure), Normal);
    }

    #[test]
    fn a_vm_of_which_nobody_says_anything_is_not_normal() {
        let mut some = vms(&[(16 * GIB, 0)]);
        some.insert(7, Inflated { configured: Some(GIB), ballooned: None });
        assert_eq!(BalloonStates::default().advance(1, &some, 2, SwapState::Healthy), Unknown);
        assert_eq!(
            BalloonStates::default().advance(1, &BTreeMap::new(), 0, SwapState::Healthy),
            Unknown
        );
    }
}
