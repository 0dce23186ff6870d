//! What intervals add up to.

use crate::model::breakdown::Breakdown;
use crate::model::coverage::{Coverage, Seen};
use crate::model::figures::VmFigures;
use crate::model::interval::{FileFaults, Interval, Stall, VmInterval};
use crate::model::latencies::Latencies;
use crate::model::metric::MetricName;
use crate::model::parts::add;
use crate::model::state::Times;
use crate::model::swap::SwapState;
use crate::model::swapins::Swapins;
use overcommit_ebpf::layout::{Invalidator, Loss, Metric, Taker};
use std::collections::BTreeMap;

/// The VMs of a recording over all intervals that were added.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// How many intervals.
    pub intervals: u64,
    /// In the order of [`Run::vms`](crate::model::run::Run::vms).
    pub vms: Vec<VmTotals>,
}

/// What intervals held for one VM.
#[derive(Clone, Debug)]
pub struct VmTotals {
    /// For how long it was recorded, in nanoseconds.
    pub length_ns: u64,
    /// Each metric that it has.
    pub metrics: BTreeMap<MetricName, MetricTotals>,
    /// Measured coverage.
    pub seen: Seen,
    /// Faults by who took them, by [`Taker`].
    pub taken_by: [u64; Taker::COUNT],
    /// `None` if its vCPU threads were never known. Its source is the one that sees less, if it
    /// was not always the same.
    pub stall: Option<Stall>,
    /// Time before they were first known, in nanoseconds.
    stall_lead_ns: u64,
    /// Time without a CPU; `None` if that was never known.
    pub cpu_wait_ns: Option<u64>,
    /// Time for which its process was stopped.
    pub stopped_ns: u64,
    /// Time in each swap state.
    pub swap_states: Times<SwapState>,
    /// Its memory as of the last interval that knew each figure.
    pub memory: VmFigures,
    /// Where swapped pages came from; `None` if no interval tells.
    pub swapins: Option<Swapins>,
    /// Where pages of files came from; `None` if no interval tells.
    pub file_faults: Option<FileFaults>,
    /// How often KVM was told to unmap some of its memory, by [`Invalidator`]; `None` if no interval tells.
    pub invalidations: Option<[u64; Invalidator::COUNT]>,
    /// What the time of its faults went into.
    pub fault_time: Breakdown,
    /// What that of its windows of `stall.memory` did; `None` without such.
    pub stall_time: Option<Breakdown>,
    /// By [`Loss`].
    pub not_counted: [u64; Loss::COUNT],
}

/// A metric of a VM over all intervals.
#[derive(Clone, Debug)]
pub struct MetricTotals {
    /// The least of any interval; of `fault.*`, over all.
    pub coverage: Coverage,
    /// What was counted.
    pub latencies: Latencies,
}

impl Totals {
    /// Nothing yet, of so many VMs.
    pub fn of(vms: usize) -> Self {
        Self { intervals: 0, vms: (0..vms).map(|_| VmTotals::none()).collect() }
    }

    /// Adds an interval.
    pub fn add(&mut self, interval: &Interval) {
        self.intervals += 1;
        for vm in &interval.vms {
            while self.vms.len() <= vm.vm {
                self.vms.push(VmTotals::none());
            }
            self.vms[vm.vm].add(vm, interval.place.length_ns);
        }
    }
}

impl MetricTotals {
    fn none() -> Self {
        Self { coverage: Coverage::Full, latencies: Latencies::empty() }
    }
}

/// So many in that time, a second; `None` of no time.
pub fn per_second(count: u64, length_ns: u64) -> Option<f64> {
    (length_ns > 0).then(|| count as f64 * 1e9 / length_ns as f64)
}

/// Part of a VM's time for which its vCPU threads have to be known, see
/// [`VmTotals::stall_known`].
pub const STALL_KNOWN: f64 = 0.99;
/// Time in which the vCPU threads of a VM that starts are found, in nanoseconds: by one scan, or
/// by the next if they did not have their names yet.
const FOUND_NS: u64 = 2_000_000_000;

impl VmTotals {
    /// The part of its time in which its vCPU threads were known, but for the time in which they
    /// are found.
    pub fn stall_known(&self) -> f64 {
        let expected_ns = self.length_ns - self.stall_lead_ns.min(FOUND_NS);
        let known_ns = self.stall.map_or(0, |stall| stall.known_ns);
        known_ns as f64 / expected_ns.max(1) as f64
    }

    fn none() -> Self {
        let metrics = Metric::FAULTS.map(|metric| (metric.into(), MetricTotals::none()));
        Self {
            length_ns: 0,
            metrics: metrics.into(),
            seen: Seen::default(),
            taken_by: [0; Taker::COUNT],
            stall: None,
            stall_lead_ns: 0,
            cpu_wait_ns: None,
            stopped_ns: 0,
            swap_states: Times::new(),
            memory: VmFigures::default(),
            swapins: None,
            file_faults: None,
            invalidations: None,
            fault_time: Breakdown::default(),
            stall_time: None,
            not_counted: [0; Loss::COUNT],
        }
    }

    fn add(&mut self, vm: &VmInterval, length_ns: u64) {
        let length_ns = vm.recorded_of(length_ns);
        self.length_ns += length_ns;
        self.stopped_ns += vm.stopped_ns;
        self.seen.merge(vm.seen);
        vm.swap.times.add_to(&mut self.swap_states, vm.swap.state, length_ns);
        self.memory.update(vm);
        if let Some(waited_ns) = vm.cpu_wait_ns {
            *self.cpu_wait_ns.get_or_insert_default() += waited_ns;
        }
        if let Some(swapins) = &vm.swapins {
            self.swapins.get_or_insert_default().add(swapins);
        }
        if let Some(files) = vm.file_faults {
            self.file_faults.get_or_insert_default().add(files);
        }
        if let Some(counts) = vm.invalidations {
            add(self.invalidations.get_or_insert_default(), counts);
        }
        self.fault_time.add(vm.fault_time);
        if let Some(time) = vm.stall_time {
            self.stall_time.get_or_insert_default().add(time);
        }
        add(&mut self.taken_by, vm.taken_by);
        self.add_stall(vm.stall, length_ns);
        add(&mut self.not_counted, vm.not_counted);
        for metric in &vm.metrics {
            let total = self.metrics.entry(metric.name.clone());
            let total = total.or_insert_with(MetricTotals::none);
            total.coverage = total.coverage.max(metric.coverage);
            total.latencies.merge(&metric.latencies);
        }
        // Of faults all intervals together say more than the worst of them.
        for metric in Metric::FAULTS {
            if let Some(total) = self.metrics.get_mut(&metric.into()) {
                total.coverage = self.seen.coverage();
            }
        }
    }
}

impl VmTotals {
    fn add_stall(&mut self, stall: Option<Stall>, length_ns: u64) {
        let known_ns = |stall: Stall| if stall.known_ns == 0 { length_ns } else { stall.known_ns };
        if self.stall.is_none() {
            self.stall_lead_ns += length_ns.saturating_sub(stall.map_or(0, known_ns));
        }
        if let Some(stall) = stall {
            let stall = Stall { known_ns: known_ns(stall), ..stall };
            self.stall = Some(self.stall.map_or(stall, |total| total.plus(stall)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::interval::{Place, StallSource};

    const SECOND_NS: u64 = 1_000_000_000;

    /// Of a VM whose vCPU threads were seen so in one second after the other.
    fn totals(seconds: &[Option<StallSource>]) -> VmTotals {
        let mut totals = Totals::of(1);
        for source in seconds {
            let stall = source.map(|source| Stall {
                waited_ns: 1,
                vcpu_ns: 10,
                source,
                ..Stall::default()
            });
            let vms = vec![VmInterval { stall, ..VmInterval::default() }];
            let place = Place { length_ns: SECOND_NS, ..Place::default() };
            totals.add(&Interval { place, vms, ..Interval::default() });
        }
        totals.vms.remove(0)
    }

    #[test]
    fn a_share_is_as_sure_as_its_least_sure_part() {
        let vm = totals(&[Some(StallSource::Faults), None, Some(StallSource::Windows)]);
        assert_eq!(vm.stall_known(), 2.0 / 3.0);
        assert_eq!(vm.stall.map(|stall| stall.source), Some(StallSource::Faults));
    }

    #[test]
    fn a_vm_that_has_not_run_yet_makes_nothing_less_sure() {
        let stall =
            |waited_ns, source| Stall { waited_ns, vcpu_ns: 10, source, ..Stall::default() };
        let [faults, windows] = [StallSource::Faults, StallSource::Windows];
        let source = |first: Stall, next: Stall| first.plus(next).source;
        assert_eq!(source(stall(0, faults), stall(5, windows)), windows);
        assert_eq!(source(stall(1, faults), stall(5, windows)), faults);
        assert_eq!(source(stall(5, windows), stall(0, faults)), faults);
    }

    #[test]
    fn the_threads_of_a_vm_that_starts_may_take_a_moment_to_be_found() {
        let known = Some(StallSource::Faults);
        assert_eq!(totals(&[None, None, known, known]).stall_known(), 1.0);
        assert_eq!(totals(&[None, None, None, known]).stall_known(), 0.5);
        let late = [vec![None; 57], vec![known; 3]].concat();
        assert!(totals(&late).stall_known() < 0.06);
        assert_eq!(totals(&[None; 3]).stall_known(), 0.0);
    }

    /// Of ten seconds in one interval: the vCPU threads were known for so many of them.
    fn of_one_interval(known_s: u64, recorded_s: u64) -> VmTotals {
        let stall = Some(Stall { known_ns: known_s * SECOND_NS, ..Stall::default() });
        let vm = VmInterval {
            recorded_ns: Some(recorded_s * SECOND_NS),
            stall,
            ..VmInterval::default()
        };
        let place = Place { length_ns: 10 * SECOND_NS, ..Place::default() };
        let mut totals = Totals::of(1);
        totals.add(&Interval { place, vms: vec![vm], ..Interval::default() });
        totals.vms.remove(0)
    }

    #[test]
    fn what_is_known_does_not_depend_on_how_long_intervals_are() {
        assert_eq!(of_one_interval(10, 10).stall_known(), 1.0);
        assert_eq!(of_one_interval(9, 10).stall_known(), 1.0, "it was being found");
        assert_eq!(of_one_interval(1, 10).stall_known(), 0.125);
    }

    #[test]
    fn a_vm_that_starts_within_an_interval_is_recorded_from_then_on() {
        let late = of_one_interval(2, 2);
        assert_eq!((late.length_ns, late.stall_known()), (2 * SECOND_NS, 1.0));
    }
}
