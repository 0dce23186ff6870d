//! What is kept of the last minutes: whole intervals of the last one, from which verdicts and
//! distributions are made, and a few figures of each interval before.

use crate::model::interval::{HostInterval, Interval, Place, VmInterval};
use crate::model::metric::MetricName;
use crate::model::run::Run;
use crate::model::totals::per_second;
use overcommit_ebpf::layout::Metric;
use std::collections::VecDeque;

/// What verdicts and distributions are of, in microseconds.
const WINDOW_US: u64 = 60_000_000;
/// How far back one can look, in microseconds.
const KEPT_US: u64 = 600_000_000;
/// Intervals that are older than the window are kept together, so many microseconds each.
const BLOCK_US: u64 = 10_000_000;
/// Samples from which a quantile of one interval says something: p50, p99.
const LEAST: [u64; 2] = [2, 100];
/// The metrics of which distributions are shown, and those that a verdict takes.
const METRICS: [Metric; 6] = [
    Metric::FaultMajor,
    Metric::StallMemory,
    Metric::Swapin,
    Metric::FaultMinor,
    Metric::Reclaim,
    Metric::MemoryHigh,
];

/// Of which metrics a recording has to be read for a screen.
pub const WANTED: crate::recording::reader::Wanted<'static> =
    &|name| METRICS.iter().any(|metric| *name == MetricName::from(*metric));

/// The last ten minutes.
#[derive(Debug, Default)]
pub struct History {
    /// One by one, the oldest first.
    recent: VecDeque<Interval>,
    /// What came before those, in blocks.
    blocks: VecDeque<Interval>,
    /// A line for each interval.
    lines: VecDeque<Line>,
    /// Which VM has which place.
    ids: Vec<String>,
}

/// A few figures of an interval.
#[derive(Clone, Debug)]
pub struct Line {
    /// When.
    pub place: Place,
    /// Of the host.
    pub host: HostInterval,
    /// Of each VM.
    pub vms: Vec<VmLine>,
}

/// A few figures of a VM in an interval.
#[derive(Clone, Debug, Default)]
pub struct VmLine {
    /// Which, as an index into [`Run::vms`].
    pub vm: usize,
    /// `stall.share`, from 0 to 1.
    pub stall: Option<f64>,
    /// `cpu.share`, from 0 to 1.
    pub cpu: Option<f64>,
    /// Major faults a second.
    pub majors_per_s: Option<f64>,
    /// Their median in nanoseconds; `None` of too few.
    pub p50_ns: Option<u64>,
    /// Their quantile 0.99 in nanoseconds; `None` of too few.
    pub p99_ns: Option<u64>,
    /// The longest in nanoseconds.
    pub max_ns: Option<u64>,
    /// Pages read back from swap, a second.
    pub swapped_in_per_s: Option<f64>,
    /// Pages that were taken from it, a second.
    pub lost_per_s: Option<f64>,
    /// Who took most of them.
    pub lost_to: Option<String>,
}

impl History {
    /// Adds an interval, and forgets what is too old.
    pub fn add(&mut self, run: &Run, interval: &Interval) {
        self.forget_replaced(run);
        self.lines.push_back(Line::of(run, interval));
        self.recent.push_back(slim(interval));
        let end_us = end_us(&interval.place);
        let age = |place: &Place| end_us.saturating_sub(self::end_us(place));
        while self.recent.len() > 1
            && let Some(old) = self.recent.pop_front_if(|old| age(&old.place) > WINDOW_US)
        {
            self.archive(old);
        }
        while self.blocks.pop_front_if(|old| age(&old.place) > KEPT_US).is_some() {}
        while self.lines.len() > 1
            && self.lines.pop_front_if(|old| age(&old.place) > KEPT_US).is_some()
        {}
    }

    /// Nothing is known any more of VMs whose places others have taken.
    fn forget_replaced(&mut self, run: &Run) {
        for (place, vm) in run.vms.iter().enumerate() {
            match self.ids.get_mut(place) {
                None => self.ids.push(vm.vm_id.clone()),
                Some(id) if *id == vm.vm_id => {}
                Some(id) => {
                    id.clone_from(&vm.vm_id);
                    for interval in self.recent.iter_mut().chain(&mut self.blocks) {
                        interval.vms.retain(|of| of.vm != place);
                        interval.evictions.retain(|of| of.victim != Some(place));
                    }
                    self.lines.iter_mut().for_each(|line| line.vms.retain(|of| of.vm != place));
                }
            }
        }
    }

    fn archive(&mut self, interval: Interval) {
        let block = |place: &Place| place.start_us / BLOCK_US;
        match self.blocks.back_mut().filter(|last| block(&last.place) == block(&interval.place)) {
            None => self.blocks.push_back(interval),
            Some(last) => {
                let before = last.place;
                let length_ns = before.length_ns + interval.place.length_ns;
                last.extend(interval);
                last.place = Place { length_ns, ..before };
            }
        }
    }

    /// Each interval, the oldest first.
    pub fn lines(&self) -> &VecDeque<Line> {
        &self.lines
    }

    /// What is known of the minute up to the end of that line: not quite a minute where it is long
    /// ago.
    pub fn window(&self, line: &Line) -> impl Iterator<Item = &Interval> {
        let until_us = end_us(&line.place);
        self.blocks.iter().chain(&self.recent).filter(move |interval| {
            let end_us = end_us(&interval.place);
            end_us <= until_us && until_us - end_us < WINDOW_US
        })
    }

    /// Those lines that end in the time before that line, and it.
    pub fn lines_until(&self, line: &Line) -> impl DoubleEndedIterator<Item = &Line> {
        let until_us = end_us(&line.place);
        self.lines.iter().filter(move |of| end_us(&of.place) <= until_us)
    }
}

fn end_us(place: &Place) -> u64 {
    place.start_us.saturating_add(place.length_ns / 1_000)
}

/// An interval without what no screen shows, which is most of it.
fn slim(interval: &Interval) -> Interval {
    let vms = interval.vms.iter().map(|vm| {
        let metrics = vm.metrics.iter().filter(|metric| WANTED(&metric.name)).cloned();
        let metrics = metrics.map(|mut metric| {
            metric.latencies.compact();
            metric
        });
        VmInterval { metrics: metrics.collect(), ..without_metrics(vm) }
    });
    Interval { vms: vms.collect(), evictions: interval.evictions.clone(), ..*interval }
}

/// The histograms are not copied only to be thrown away.
fn without_metrics(vm: &VmInterval) -> VmInterval {
    VmInterval { metrics: Vec::new(), swapins: vm.swapins.clone(), ..*vm }
}

impl Line {
    fn of(run: &Run, interval: &Interval) -> Self {
        let vms = interval.vms.iter().map(|vm| VmLine::of(run, interval, vm)).collect();
        Self { place: interval.place, host: interval.host, vms }
    }

    /// A VM's figures.
    pub fn vm(&self, vm: usize) -> Option<&VmLine> {
        self.vms.iter().find(|line| line.vm == vm)
    }
}

impl VmLine {
    fn of(run: &Run, interval: &Interval, vm: &VmInterval) -> Self {
        let length_ns = vm.recorded_of(interval.place.length_ns);
        let majors = vm.latencies(Metric::FaultMajor);
        let count = majors.map_or(0, |majors| majors.count());
        let quantile = |quantile, least| majors.filter(|_| count >= least)?.quantile(quantile);
        let [of_p50, of_p99] = LEAST;
        let sees = run.evictions.as_ref().is_some_and(|sight| sight.written_absent.is_none());
        let is_told = sees && run.vms.get(vm.vm).is_some_and(|of| of.evictions_absent.is_none());
        let of_vm = || interval.evictions.iter().filter(|of| of.victim == Some(vm.vm));
        let lost: u64 = of_vm().map(|of| of.counts.pages()).sum();
        let most = of_vm().max_by_key(|of| of.counts.pages()).filter(|of| of.counts.pages() > 0);
        let own = run.vms.get(vm.vm).map(|of| of.vm_id.as_str());
        let lost_to = most.map(|of| {
            let is_itself = own == Some(of.aggressor.id.as_str());
            if is_itself { "itself".to_owned() } else { of.aggressor.name.clone() }
        });
        Self {
            vm: vm.vm,
            stall: vm.stall.and_then(|stall| stall.share()),
            cpu: vm.stall.zip(vm.cpu_wait_ns).and_then(|(stall, ns)| stall.cpu_share(ns)),
            majors_per_s: majors.and_then(|_| per_second(count, length_ns)),
            p50_ns: quantile(0.5, of_p50),
            p99_ns: quantile(0.99, of_p99),
            max_ns: majors.filter(|_| count > 0).map(|majors| majors.max_ns),
            swapped_in_per_s: vm.swap.rates.and_then(|rates| rates.swapped_in),
            lost_per_s: per_second(lost, length_ns).filter(|_| is_told || lost > 0),
            lost_to,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::coverage::Coverage;
    use crate::model::evictions::{Aggressor, AggressorClass, Eviction, EvictionCounts};
    use crate::model::interval::MetricInterval;
    use crate::model::latencies::Latencies;
    use crate::model::run::{EvictionSight, RunVm};

    const SECOND_NS: u64 = 1_000_000_000;

    fn run(ids: &[&str]) -> Run {
        let vm = |id: &&str| RunVm { vm_id: (*id).to_owned(), ..RunVm::default() };
        let evictions = Some(EvictionSight::default());
        Run { vms: ids.iter().map(vm).collect(), evictions, ..Run::default() }
    }

    /// A second in which each VM had so many major faults of a microsecond, and one page was taken of
    /// the first by the second.
    fn second(number: u64, vms: usize, majors: u64) -> Interval {
        let place = Place {
            number,
            start_us: (1_000 + number) * 1_000_000,
            length_ns: SECOND_NS,
            ..Place::default()
        };
        let vm = |vm| {
            let mut latencies = Latencies::with_room();
            latencies.record(1_000, majors);
            latencies.max_ns = 1_000;
            let metric = |name: &str| MetricInterval {
                vm,
                name: MetricName::new(name),
                coverage: Coverage::Full,
                latencies: latencies.clone(),
            };
            let metrics = vec![metric("fault.major"), metric("exit.npf")];
            VmInterval { vm, metrics, recorded_ns: Some(SECOND_NS), ..VmInterval::default() }
        };
        let aggressor =
            Aggressor { class: AggressorClass::Vm, id: "2-2".to_owned(), name: "b".to_owned() };
        let counts = EvictionCounts { written_pages: 1, ..EvictionCounts::default() };
        let evictions = vec![Eviction { victim: Some(0), aggressor, counts }];
        Interval { place, vms: (0..vms).map(vm).collect(), evictions, ..Interval::default() }
    }

    fn majors<'a>(window: impl Iterator<Item = &'a Interval>) -> u64 {
        let of = |interval: &Interval| -> u64 {
            let vms = interval.vms.iter();
            vms.map(|vm| vm.latencies(Metric::FaultMajor).map_or(0, Latencies::count)).sum()
        };
        window.map(of).sum()
    }

    #[test]
    fn a_window_is_a_minute_and_the_past_is_ten() {
        let run = run(&["1-1"]);
        let mut history = History::default();
        for number in 0..1_000 {
            history.add(&run, &second(number, 1, 10));
        }
        assert_eq!(history.lines().len(), 601);
        let last = history.lines().back().unwrap();
        assert_eq!(majors(history.window(last)), 600);
        // Long ago it is of whole blocks, six of them at the most.
        let past = &history.lines()[300];
        let seen = majors(history.window(past));
        assert!((500..=600).contains(&seen), "{seen}");
        assert!(history.recent.len() + history.blocks.len() < 125);
        assert!(history.recent.iter().all(|interval| interval.vms[0].metrics.len() == 1));
    }

    #[test]
    fn quantiles_of_few_are_none_and_who_took_most_is_named() {
        let run = run(&["1-1", "2-2"]);
        let of = |majors| {
            let mut history = History::default();
            history.add(&run, &second(0, 2, majors));
            history.lines()[0].vms.clone()
        };
        let few = of(99);
        assert_eq!((few[0].p50_ns, few[0].p99_ns), (Some(1_000), None));
        assert_eq!(of(100)[0].p99_ns, Some(1_000));
        assert_eq!((few[0].lost_to.as_deref(), few[0].lost_per_s), (Some("b"), Some(1.0)));
        assert_eq!((few[1].lost_to.as_deref(), few[1].lost_per_s), (None, Some(0.0)));
    }

    #[test]
    fn who_takes_anothers_place_has_no_past() {
        let mut history = History::default();
        for number in 0..100 {
            history.add(&run(&["1-1", "2-2"]), &second(number, 2, 1));
        }
        history.add(&run(&["3-3", "2-2"]), &second(100, 2, 1));
        let last = history.lines().back().unwrap();
        assert_eq!(majors(history.window(last)), 60 + 1);
        assert!(history.lines()[50].vm(0).is_none() && history.lines()[50].vm(1).is_some());
    }
}
