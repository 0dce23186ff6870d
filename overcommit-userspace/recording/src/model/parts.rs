//! One interval out of several drains: what was counted is added up, what holds at a moment is
//! of the last.

use crate::model::breakdown::Breakdown;
use crate::model::evictions::{Aggressor, Eviction};
use crate::model::interval::{
    FileFaults, HostInterval, Interval, MetricInterval, Stall, StallSource, VmInterval,
};
use crate::model::memory::{LeastHeadroom, Overcommit};
use crate::model::metric::MetricName;
use std::collections::BTreeMap;
use std::mem::{replace, take};

impl Interval {
    /// Adds what came after it, up to the place's end.
    pub fn extend(&mut self, next: Self) {
        self.place = next.place;
        self.host = self.host.followed_by(next.host);
        let mut vms: BTreeMap<usize, VmInterval> =
            self.vms.drain(..).map(|vm| (vm.vm, vm)).collect();
        for next in next.vms {
            match vms.get_mut(&next.vm) {
                Some(vm) => vm.extend(next),
                None => {
                    vms.insert(next.vm, next);
                }
            }
        }
        self.vms = vms.into_values().collect();
        let mut evictions: BTreeMap<(Option<usize>, Aggressor), Eviction> = BTreeMap::new();
        for eviction in self.evictions.drain(..).chain(next.evictions) {
            let key = (eviction.victim, eviction.aggressor.clone());
            match evictions.get_mut(&key) {
                Some(sum) => sum.counts.add(eviction.counts),
                None => {
                    evictions.insert(key, eviction);
                }
            }
        }
        self.evictions = evictions.into_values().collect();
    }
}

impl HostInterval {
    /// Both as one, `next` being the later.
    fn followed_by(self, next: Self) -> Self {
        let worst = self.overcommit.map(|sum| sum.state).unwrap_or_default();
        let of_next = next.overcommit.map(|sum| Overcommit { state: sum.state.max(worst), ..sum });
        let least = [self.least_headroom, next.least_headroom].into_iter().flatten();
        Self {
            swap: self.swap.followed_by(next.swap),
            balloon: self.balloon.max(next.balloon),
            balloon_times: self.balloon_times.plus(next.balloon_times),
            overcommit: of_next.or(self.overcommit),
            overcommit_times: self.overcommit_times.plus(next.overcommit_times),
            least_headroom: least.reduce(LeastHeadroom::min_with),
            ballooned: next.ballooned,
            memory: next.memory,
            pressure: self.pressure.plus(next.pressure),
        }
    }
}

impl VmInterval {
    fn extend(&mut self, next: Self) {
        // By name, so that the compiler asks about a new figure.
        let Self {
            vm: _,
            recorded_ns,
            metrics,
            seen,
            taken_by,
            stall,
            cpu_wait_ns,
            stopped_ns,
            swapins,
            file_faults,
            invalidations,
            fault_time,
            stall_time,
            not_counted,
            swap,
            configured,
            balloon,
            guest_age_s,
            guest_is_stale,
            memory,
            working_set,
            numa_nodes,
            numa_headroom,
        } = replace(self, next);
        self.metrics = merged(metrics, take(&mut self.metrics));
        self.seen.merge(seen);
        add(&mut self.taken_by, taken_by);
        add(&mut self.not_counted, not_counted);
        self.stopped_ns += stopped_ns;
        self.fault_time.add(fault_time);
        self.recorded_ns = both(recorded_ns, self.recorded_ns, |sum, next| *sum += next);
        self.stall = both(stall, self.stall, |sum, next| *sum = sum.plus(next));
        self.cpu_wait_ns = both(cpu_wait_ns, self.cpu_wait_ns, |sum, next| *sum += next);
        self.swapins = both(swapins, self.swapins.take(), |sum, next| sum.add(&next));
        self.file_faults = both(file_faults, self.file_faults, FileFaults::add);
        self.invalidations = both(invalidations, self.invalidations, add);
        self.stall_time = both(stall_time, self.stall_time, Breakdown::add);
        self.swap = swap.followed_by(self.swap);
        // Its last look may have found it gone.
        self.configured = self.configured.or(configured);
        if self.balloon.is_none() {
            (self.balloon, self.guest_age_s, self.guest_is_stale) =
                (balloon, guest_age_s, guest_is_stale);
        }
        self.memory = self.memory.or(memory);
        self.working_set = self.working_set.or(working_set);
        self.numa_nodes = self.numa_nodes.or(numa_nodes);
        self.numa_headroom = self.numa_headroom.or(numa_headroom);
    }
}

/// Both added up where both are known, else the one that is.
fn both<T>(before: Option<T>, next: Option<T>, add: impl FnOnce(&mut T, T)) -> Option<T> {
    match (before, next) {
        (Some(mut sum), Some(next)) => {
            add(&mut sum, next);
            Some(sum)
        }
        (before, next) => before.or(next),
    }
}

impl Stall {
    /// Both, `other` being the later, by the source that sees less if they are of two. Before its
    /// first exit a VM that is seen by its exits has not run, so that nothing was missed.
    pub fn plus(self, other: Self) -> Self {
        let has_not_run = self.waited_ns == 0 && other.source == StallSource::Windows;
        let is_less = |stall: &Self| stall.source == StallSource::Faults;
        let source = if is_less(&other) || has_not_run { other.source } else { self.source };
        Self {
            waited_ns: self.waited_ns + other.waited_ns,
            runq_ns: self.runq_ns + other.runq_ns,
            vcpu_ns: self.vcpu_ns + other.vcpu_ns,
            known_ns: self.known_ns + other.known_ns,
            unknown_vcpu_ns: self.unknown_vcpu_ns + other.unknown_vcpu_ns,
            source,
        }
    }
}

/// By metric; how much of it is seen is as last said.
fn merged(before: Vec<MetricInterval>, next: Vec<MetricInterval>) -> Vec<MetricInterval> {
    let named = |metric: MetricInterval| (metric.name.clone(), metric);
    let mut merged: BTreeMap<MetricName, MetricInterval> = before.into_iter().map(named).collect();
    for mut metric in next {
        if let Some(before) = merged.remove(&metric.name) {
            metric.latencies.merge(&before.latencies);
        }
        merged.insert(metric.name.clone(), metric);
    }
    merged.into_values().collect()
}

/// Adds counts of one kind each.
pub(super) fn add<const N: usize>(sums: &mut [u64; N], more: [u64; N]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::balloon::{Balloon, BalloonState};
    use crate::model::coverage::Coverage;
    use crate::model::evictions::{AggressorClass, EvictionCounts};
    use crate::model::interval::Place;
    use crate::model::latencies::Latencies;
    use crate::model::memory::{Headroom, OvercommitState};
    use crate::model::state::StateTimes;
    use crate::model::swap::{HostSwap, Rates, SwapState, VmSwap};
    use SwapState::{Healthy, Pressure};

    const SECOND_NS: u64 = 1_000_000_000;

    fn metric(name: &str, latency_ns: u64) -> MetricInterval {
        let mut latencies = Latencies::empty();
        latencies.record(latency_ns, 1);
        (latencies.sum_ns, latencies.max_ns) = (latency_ns, latency_ns);
        MetricInterval { vm: 0, name: MetricName::new(name), coverage: Coverage::Full, latencies }
    }

    /// A second after so many of an interval, in which a VM lost so many faults, waited a tenth
    /// of its time and had these metrics.
    fn second(number: u64, lost: u64, state: SwapState, metrics: Vec<MetricInterval>) -> Interval {
        let rates = Rates { length_ns: SECOND_NS, ..Rates::default() };
        let rates = Some(Rates { swapped_in: Some(100.0 * lost as f64), ..rates });
        let times = StateTimes::of(state, SECOND_NS);
        let mut vm = VmInterval {
            metrics,
            stall: Some(Stall {
                waited_ns: 5,
                runq_ns: 4,
                vcpu_ns: 10,
                known_ns: SECOND_NS,
                source: StallSource::Windows,
                ..Stall::default()
            }),
            cpu_wait_ns: (number != 1).then_some(6),
            recorded_ns: Some(SECOND_NS),
            swap: VmSwap { state, times, rates, limit: Some(number) },
            ..VmInterval::default()
        };
        vm.not_counted[0] = lost;
        let swap = HostSwap {
            state,
            times,
            rates,
            allocated: Some(7.0),
            memory: None,
            least_available: Some(9 - number.min(5)),
        };
        let counts = EvictionCounts { written_pages: lost, ..EvictionCounts::default() };
        let (id, name) = ("7-8".to_owned(), "greedy".to_owned());
        let aggressor = Aggressor { class: AggressorClass::Vm, id, name };
        Interval {
            place: Place { length_ns: (number + 1) * SECOND_NS, ..Place::default() },
            host: HostInterval { swap, ..HostInterval::default() },
            vms: vec![vm],
            evictions: vec![Eviction { victim: Some(0), aggressor, counts }],
        }
    }

    #[test]
    fn what_was_counted_is_added_and_what_holds_is_the_last() {
        let mut whole = second(0, 2, Pressure, vec![metric("fault.major", 100)]);
        let both = vec![metric("fault.major", 300), metric("swapin", 5)];
        whole.extend(second(1, 0, Healthy, both));
        whole.extend(second(2, 1, Healthy, Vec::new()));
        assert_eq!(whole.place.length_ns, 3 * SECOND_NS);
        let [vm] = whole.vms.as_slice() else { panic!("{:?}", whole.vms) };
        let metrics = vm.metrics.iter();
        let metrics = metrics.map(|of| (of.name.as_str(), of.latencies.sum_ns));
        assert_eq!(metrics.collect::<Vec<_>>(), [("fault.major", 400), ("swapin", 5)]);
        assert_eq!((vm.not_counted[0], vm.swap.limit), (3, Some(2)));
        assert_eq!(vm.stall.map(|stall| (stall.memory_ns(), stall.vcpu_ns)), Some((3, 30)));
        assert_eq!(vm.cpu_wait_ns, Some(12));
        assert_eq!(whole.evictions.len(), 1);
        assert_eq!(whole.evictions[0].counts.written_pages, 3);
    }

    #[test]
    fn a_vm_that_is_gone_keeps_what_the_look_before_saw() {
        let mut whole = second(0, 0, Healthy, Vec::new());
        whole.vms[0].balloon = Some(Balloon::default());
        (whole.vms[0].guest_age_s, whole.vms[0].guest_is_stale) = (Some(1.5), Some(false));
        whole.vms[0].numa_headroom = Some(Headroom { lower: 1, upper: 2 });
        whole.extend(second(1, 0, Healthy, Vec::new()));
        let vm = &whole.vms[0];
        assert_eq!((vm.guest_age_s, vm.guest_is_stale), (Some(1.5), Some(false)));
        assert_eq!(vm.numa_headroom, Some(Headroom { lower: 1, upper: 2 }));
        assert!(vm.balloon.is_some());
    }

    #[test]
    fn a_row_has_the_worst_state_and_the_time_in_each() {
        let mut whole = second(0, 0, Healthy, Vec::new());
        for number in 1..12 {
            let state = if number == 5 { Pressure } else { Healthy };
            whole.extend(second(number, u64::from(number == 5) * 12, state, Vec::new()));
        }
        let (host, vm) = (whole.host.swap, whole.vms[0].swap);
        let healthy = StateTimes::of(Healthy, 11 * SECOND_NS);
        let times = healthy.plus(StateTimes::of(Pressure, SECOND_NS));
        assert_eq!((host.state, host.times), (Pressure, times));
        assert_eq!((vm.state, vm.times), (Pressure, times));
        assert_eq!(host.rates.and_then(|rates| rates.swapped_in), Some(100.0));
        assert_eq!((host.allocated, host.least_available), (Some(7.0), Some(4)));
    }

    #[test]
    fn an_interval_has_the_worst_of_its_looks_at_the_host() {
        use OvercommitState::{Critical, Safe};
        let look = |state, left| {
            let mut look = second(0, 0, Healthy, Vec::new());
            look.host.overcommit = Some(Overcommit { state, ..Overcommit::default() });
            look.host.overcommit_times = StateTimes::of(state, SECOND_NS);
            look.host.balloon_times = StateTimes::of(BalloonState::Normal, SECOND_NS);
            let headroom = Headroom { lower: left, upper: left };
            let is_measured = left != -9;
            look.host.least_headroom = Some(LeastHeadroom { headroom, is_measured });
            look
        };
        let mut whole = look(Safe, 9);
        whole.extend(look(Critical, -5));
        // Of a VM that has just started nothing is measured.
        whole.extend(look(Safe, -9));
        whole.extend(look(Safe, 8));
        let host = whole.host;
        assert_eq!(host.overcommit.map(|sum| sum.state), Some(Critical));
        let times = StateTimes::of(Safe, 3 * SECOND_NS).plus(StateTimes::of(Critical, SECOND_NS));
        assert_eq!(host.overcommit_times, times);
        assert_eq!(host.balloon_times, StateTimes::of(BalloonState::Normal, 4 * SECOND_NS));
        assert_eq!(host.least_headroom.map(|least| least.headroom.lower), Some(-5));
    }

    #[test]
    fn a_vm_that_ended_within_stays_and_one_that_started_is_there() {
        let mut whole = second(0, 1, Healthy, vec![metric("fault.minor", 3)]);
        let mut next = second(1, 1, Healthy, vec![metric("fault.minor", 4)]);
        next.vms[0].vm = 1;
        whole.extend(next);
        let vms = whole.vms.iter().map(|vm| (vm.vm, vm.metrics[0].latencies.sum_ns));
        assert_eq!(vms.collect::<Vec<_>>(), [(0, 3), (1, 4)]);
        let recorded = whole.vms.iter().map(|vm| vm.recorded_of(2 * SECOND_NS));
        assert_eq!(recorded.collect::<Vec<_>>(), [SECOND_NS, SECOND_NS]);
    }
}
