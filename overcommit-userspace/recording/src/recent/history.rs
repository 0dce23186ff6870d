//! What is kept of the last minutes: whole intervals, from which verdicts and distributions are
//! made, and a few figures of each before.

use crate::model::interval::{HostInterval, Interval, Place, VmInterval};
use crate::model::metric::MetricName;
use crate::model::run::Run;
use crate::model::totals::per_second;
use crate::recording::reader::Wanted;
use overcommit_ebpf::layout::Metric;
use std::collections::VecDeque;

const SECOND_NS: u64 = 1_000_000_000;
/// What verdicts and distributions are of.
const WINDOW_NS: u64 = 60 * SECOND_NS;
/// How far back one can look.
const KEPT_NS: u64 = 600 * SECOND_NS;
/// Intervals that are older than the window are kept together, for so long each.
const BLOCK_NS: u64 = 10 * SECOND_NS;
/// Shorter ones are kept together from the first on.
const LEAST_NS: u64 = SECOND_NS / 2;
/// Bytes that blocks may take; the oldest are forgotten before that.
const BLOCKS_BYTES: usize = 64 << 20;
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
pub const WANTED: Wanted<'static> =
    &|name| METRICS.iter().any(|metric| *name == MetricName::from(*metric));

/// An interval without what no screen shows, which is most of it.
pub fn slim(interval: &Interval) -> Interval {
    slim_of(interval, |_| true)
}

/// The same of those VMs alone whose places are wanted.
pub fn slim_of(interval: &Interval, is_wanted: impl Fn(usize) -> bool) -> Interval {
    interval.copied(is_wanted, WANTED)
}

/// The last minutes.
#[derive(Debug)]
pub struct History {
    /// How far back one can look.
    kept_ns: u64,
    /// Time that was seen, by the lengths of intervals: the time of day can step.
    now_ns: u64,
    /// One by one, the oldest first.
    recent: VecDeque<Kept>,
    /// What came before those, in blocks.
    blocks: VecDeque<Kept>,
    /// A line for each interval.
    lines: VecDeque<Line>,
    /// Which VM has which place.
    ids: Vec<String>,
}

/// An interval, or several together.
#[derive(Debug)]
struct Kept {
    /// From when to when, see [`History::now_ns`].
    from_ns: u64,
    to_ns: u64,
    interval: Interval,
}

impl Kept {
    fn extend(&mut self, next: Self) {
        let first = self.interval.place;
        self.interval.extend(next.interval);
        let place = self.interval.place;
        self.interval.place = Place {
            length_ns: first.length_ns + place.length_ns,
            ..Place { number: place.number, ..first }
        };
        self.to_ns = next.to_ns;
    }

    fn bytes(&self) -> usize {
        let vms = self.interval.vms.iter();
        let metrics = vms.flat_map(|vm| &vm.metrics).map(|metric| metric.latencies.bytes());
        self.interval.vms.len() * size_of::<VmInterval>() + metrics.sum::<usize>()
    }
}

/// A few figures of an interval.
#[derive(Clone, Debug)]
pub struct Line {
    /// When.
    pub place: Place,
    /// Its end, in nanoseconds since the history began.
    pub end_ns: u64,
    /// Of the host.
    pub host: HostInterval,
    /// Of each VM, by place.
    vms: Vec<VmLine>,
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

impl Default for History {
    fn default() -> Self {
        let (recent, blocks, lines) = Default::default();
        Self { kept_ns: KEPT_NS, now_ns: 0, recent, blocks, lines, ids: Vec::new() }
    }
}

impl History {
    /// For who never looks back: no more than verdicts and distributions of now take.
    pub fn of_the_last_minute() -> Self {
        Self { kept_ns: 0, ..Self::default() }
    }

    /// Adds an interval, see [`slim`], and forgets what is too old.
    pub fn add(&mut self, run: &Run, interval: Interval) {
        self.forget_replaced(run);
        let from_ns = self.now_ns;
        self.now_ns = from_ns.saturating_add(interval.place.length_ns);
        let next = Kept { from_ns, to_ns: self.now_ns, interval };
        match self.recent.back_mut().filter(|last| last.to_ns - last.from_ns < LEAST_NS) {
            Some(last) => {
                last.extend(next);
                self.lines.pop_back();
            }
            None => self.recent.push_back(next),
        }
        self.lines.extend(self.recent.back().map(|last| Line::of(run, last)));
        let (now_ns, kept_ns) = (self.now_ns, self.kept_ns);
        while self.recent.len() > 1
            && let Some(old) = self.recent.pop_front_if(|old| now_ns - old.to_ns > WINDOW_NS)
        {
            Self::archive(&mut self.blocks, old);
        }
        let mut bytes: usize = self.blocks.iter().map(Kept::bytes).sum();
        let is_too_much = |old: &mut Kept, bytes: usize| {
            now_ns - old.to_ns > kept_ns + WINDOW_NS || bytes > BLOCKS_BYTES
        };
        while let Some(old) = self.blocks.pop_front_if(|old| is_too_much(old, bytes)) {
            bytes -= old.bytes();
        }
        while self.lines.len() > 1
            && self.lines.pop_front_if(|old| now_ns - old.end_ns > kept_ns).is_some()
        {}
    }

    /// Whether the last line is not to become longer.
    pub fn is_whole(&self) -> bool {
        self.recent.back().is_some_and(|last| last.to_ns - last.from_ns >= LEAST_NS)
    }

    /// Nothing is known any more of VMs whose places others have taken.
    fn forget_replaced(&mut self, run: &Run) {
        for (place, vm) in run.vms.iter().enumerate() {
            match self.ids.get_mut(place) {
                None => self.ids.push(vm.vm_id.clone()),
                Some(id) if *id == vm.vm_id => {}
                Some(id) => {
                    id.clone_from(&vm.vm_id);
                    for kept in self.recent.iter_mut().chain(&mut self.blocks) {
                        kept.interval.vms.retain(|of| of.vm != place);
                        kept.interval.evictions.retain(|of| of.victim != Some(place));
                    }
                    self.lines.iter_mut().for_each(|line| line.vms.retain(|of| of.vm != place));
                }
            }
        }
    }

    fn archive(blocks: &mut VecDeque<Kept>, old: Kept) {
        let block = |kept: &Kept| kept.from_ns / BLOCK_NS;
        match blocks.back_mut().filter(|last| block(last) == block(&old)) {
            None => blocks.push_back(old),
            Some(last) => last.extend(old),
        }
    }

    /// Each interval, the oldest first.
    pub fn lines(&self) -> &VecDeque<Line> {
        &self.lines
    }

    /// What is known of the minute up to the end of that line; long ago, of all the blocks that it
    /// touches.
    pub fn window(&self, line: &Line) -> impl Iterator<Item = &Interval> {
        let until_ns = line.end_ns;
        let since_ns = until_ns.saturating_sub(WINDOW_NS);
        let is_in = move |kept: &&Kept| kept.from_ns < until_ns && kept.to_ns > since_ns;
        self.blocks.iter().chain(&self.recent).filter(is_in).map(|kept| &kept.interval)
    }

    /// The last intervals that are so long together, as nearly as can be; no longer than a minute.
    pub fn last(&self, length_ns: u64) -> impl Iterator<Item = &Interval> {
        let since_ns = self.now_ns.saturating_sub(length_ns);
        let last = self.recent.len().saturating_sub(1);
        // Those of which most lies in that time.
        let is_in = move |(place, kept): &(usize, &Kept)| {
            *place == last || kept.from_ns / 2 + kept.to_ns / 2 >= since_ns
        };
        self.recent.iter().enumerate().filter(is_in).map(|(_, kept)| &kept.interval)
    }

    /// Those lines that end in the time before that line, and it.
    pub fn lines_until(&self, line: &Line) -> impl DoubleEndedIterator<Item = &Line> {
        let until_ns = line.end_ns;
        self.lines.iter().filter(move |of| of.end_ns <= until_ns)
    }
}

impl Line {
    fn of(run: &Run, kept: &Kept) -> Self {
        let interval = &kept.interval;
        let mut vms: Vec<VmLine> =
            interval.vms.iter().map(|vm| VmLine::of(run, interval, vm)).collect();
        vms.sort_by_key(|vm| vm.vm);
        Self { place: interval.place, end_ns: kept.to_ns, host: interval.host, vms }
    }

    /// A VM's figures.
    pub fn vm(&self, vm: usize) -> Option<&VmLine> {
        let place = self.vms.binary_search_by_key(&vm, |line| line.vm).ok()?;
        self.vms.get(place)
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
            start_us: (1_000_000 + number) * 1_000_000,
            length_ns: SECOND_NS,
            ..Place::default()
        };
        let vm = |vm| {
            let mut latencies = Latencies::empty();
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
            history.add(&run, slim(&second(number, 1, 10)));
        }
        assert_eq!(history.lines().len(), 601);
        let last = history.lines().back().unwrap();
        assert_eq!(majors(history.window(last)), 600);
        // Long ago it is of whole blocks, of all that it touches.
        for past in history.lines() {
            let seen = majors(history.window(past));
            assert!((600..=800).contains(&seen), "{seen}");
        }
        assert!(history.recent.len() + history.blocks.len() < 135);
        assert!(history.recent.iter().all(|kept| kept.interval.vms[0].metrics.len() == 1));
    }

    #[test]
    fn who_never_looks_back_keeps_a_minute() {
        let run = run(&["1-1"]);
        let mut history = History::of_the_last_minute();
        for number in 0..1_000 {
            history.add(&run, slim(&second(number, 1, 10)));
        }
        assert_eq!((history.lines().len(), history.blocks.len()), (1, 0));
        assert_eq!(majors(history.window(history.lines().back().unwrap())), 600);
    }

    #[test]
    fn quantiles_of_few_are_none_and_who_took_most_is_named() {
        let run = run(&["1-1", "2-2"]);
        let of = |majors| {
            let mut history = History::default();
            history.add(&run, slim(&second(0, 2, majors)));
            history.lines()[0].vms.clone()
        };
        let few = of(99);
        assert_eq!((few[0].p50_ns, few[0].p99_ns), (Some(1_000), None));
        assert_eq!(of(100)[0].p99_ns, Some(1_000));
        assert_eq!((few[0].lost_to.as_deref(), few[0].lost_per_s), (Some("b"), Some(1.0)));
        assert_eq!((few[1].lost_to.as_deref(), few[1].lost_per_s), (None, Some(0.0)));
    }

    #[test]
    fn short_intervals_are_kept_together_and_time_does_not_step_back() {
        let run = run(&["1-1"]);
        let mut history = History::default();
        for number in 0..20_000 {
            let mut short = second(number, 1, 1);
            short.place.length_ns = SECOND_NS / 10;
            short.vms[0].recorded_ns = Some(SECOND_NS / 10);
            // The clock is set back by an hour, again and again.
            short.place.start_us -= number % 7 * 3_600_000_000;
            history.add(&run, slim(&short));
        }
        assert!((1_190..=1_210).contains(&history.lines().len()), "{}", history.lines().len());
        let last = history.lines().back().unwrap();
        let seen = majors(history.window(last));
        assert!((590..=620).contains(&seen), "{seen}");
        assert!(last.vm(0).unwrap().majors_per_s.is_some_and(|rate| (9.0..11.0).contains(&rate)));
        assert_eq!(history.lines_until(last).count(), history.lines().len());
    }

    #[test]
    fn who_takes_anothers_place_has_no_past() {
        let mut history = History::default();
        for number in 0..100 {
            history.add(&run(&["1-1", "2-2"]), slim(&second(number, 2, 1)));
        }
        history.add(&run(&["3-3", "2-2"]), slim(&second(100, 2, 1)));
        let last = history.lines().back().unwrap();
        // Of the one that stays the minute, of the new one its second.
        assert_eq!(majors(history.window(last)), 60 + 1);
        assert!(history.lines()[50].vm(0).is_none() && history.lines()[50].vm(1).is_some());
    }
}
