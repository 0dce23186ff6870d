//! Holds a recording against objectives.
//!
//! Every fault is counted, so a figure has no sampling error; but a quantile of too
//! few samples is just their maximum, and what was not all seen can only be worse.

use crate::format::text::percent;
use crate::model::coverage::Coverage;
use crate::model::interval::{Interval, Place, Stall, StallSource, VmInterval};
use crate::model::metric::MetricName;
use crate::model::run::{Run, RunVm};
use crate::model::totals::{STALL_KNOWN, Totals, VmTotals};
use crate::slo::Objective;
use crate::slo::objective::{Bound, Quantile, Share};
use hdrhistogram::Histogram;
use overcommit_ebpf::layout::Metric;
use serde::Serialize;
use std::collections::BTreeMap;

/// How an objective came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was held.
    Held,
    /// It was broken.
    Broken,
    /// It cannot be said.
    NotJudged,
}

/// An objective held against one VM.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// As the user wrote it.
    pub objective: String,
    /// PID-STARTTIME; `null` if no VM is meant.
    pub vm_id: Option<String>,
    /// The VM's name as shown.
    pub vm: Option<String>,
    /// Over the whole time.
    pub verdict: Verdict,
    /// The quantile over the whole time, in nanoseconds.
    pub value_ns: Option<u64>,
    /// `stall.share` over the whole time, from 0 to 1.
    pub share: Option<f64>,
    /// Why it was not judged.
    pub why: Option<String>,
    /// Interval by interval.
    pub intervals: IntervalVerdicts,
}

/// Intervals by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct IntervalVerdicts {
    /// In which it was held.
    pub held: u64,
    /// In which it was broken.
    pub broken: u64,
    /// Of which it cannot be said.
    pub not_judged: u64,
    /// The longest time for which it was broken in every interval, in seconds.
    pub longest_broken_s: f64,
}

/// A verdict, and why there is none.
type Outcome = (Verdict, Option<String>);

/// Exit code of objectives: 3 if one was broken, 4 if one could not be judged.
pub fn exit_code(judged: &[Judged]) -> u8 {
    let any = |verdict| judged.iter().any(|judged| judged.verdict == verdict);
    match (any(Verdict::Broken), any(Verdict::NotJudged)) {
        (true, _) => BROKEN,
        (false, true) => NOT_JUDGED,
        (false, false) => 0,
    }
}

/// Exit code: an objective was broken.
pub const BROKEN: u8 = 3;
/// Exit code: none was broken, one could not be judged.
pub const NOT_JUDGED: u8 = 4;

/// Holds intervals against objectives, one after the other.
#[derive(Debug)]
pub struct Judging {
    objectives: Vec<Objective>,
    /// Of each objective, by VM.
    each: Vec<BTreeMap<usize, OneByOne>>,
    /// When the last interval ended, in Unix microseconds.
    end_us: u64,
}

impl Judging {
    /// Begins with these.
    pub fn new(objectives: Vec<Objective>) -> Self {
        let each = objectives.iter().map(|_| BTreeMap::new()).collect();
        Self { objectives, each, end_us: 0 }
    }

    /// Adds an interval.
    pub fn add(&mut self, run: &Run, interval: &Interval) {
        self.end_us = interval.place.start_us + interval.place.length_ns / 1_000;
        for (objective, each) in self.objectives.iter().zip(&mut self.each) {
            for vm in &interval.vms {
                let Some(of) = run.vms.get(vm.vm) else { continue };
                if objective.is_for(&of.name, of.uuid.as_deref()) {
                    let verdict = in_an_interval(objective, run, of, vm);
                    each.entry(vm.vm).or_default().add(&interval.place, verdict);
                }
            }
        }
    }

    /// Judges each objective for each VM that it is for, over the whole time.
    pub fn judge(&self, run: &Run, totals: &Totals) -> Vec<Judged> {
        let mut judged = Vec::new();
        for (objective, each) in self.objectives.iter().zip(&self.each) {
            let before = judged.len();
            for (index, (vm, totals)) in run.vms.iter().zip(&totals.vms).enumerate() {
                if objective.is_for(&vm.name, vm.uuid.as_deref()) {
                    let one_by_one = each.get(&index).copied().unwrap_or_default();
                    let mut case = Case { run, vm, totals }.judge(objective, one_by_one);
                    let has_ended = vm.ended_us.is_some_and(|end_us| end_us <= self.end_us);
                    if has_ended && case.verdict == Verdict::Held {
                        case.verdict = Verdict::NotJudged;
                        case.why = Some("it did not run to the end".to_owned());
                    }
                    judged.push(case);
                }
            }
            if judged.len() == before {
                judged.push(nobody(objective));
            }
        }
        judged
    }
}

fn nobody(objective: &Objective) -> Judged {
    Judged {
        objective: objective.to_string(),
        vm_id: None,
        vm: None,
        verdict: Verdict::NotJudged,
        value_ns: None,
        share: None,
        why: Some("no VM of the recording is meant".to_owned()),
        intervals: IntervalVerdicts::default(),
    }
}

/// How an objective came out in one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InOne {
    /// So, whatever follows.
    Is(Verdict),
    /// Held if all faults of the recording were seen.
    HeldIfSeen,
}

fn in_an_interval(objective: &Objective, run: &Run, of: &RunVm, vm: &VmInterval) -> InOne {
    match &objective.bound {
        Bound::Share { of: Share::Cpu, limit } => {
            InOne::Is(of_cpu_share(vm.stall, vm.cpu_wait_ns, 1.0, *limit).0)
        }
        Bound::Share { of: Share::Stall, limit } => {
            match of_share(vm.stall, 1.0, *limit, Coverage::Full).0 {
                Verdict::Held
                    if vm.stall.is_some_and(|stall| stall.source == StallSource::Faults) =>
                {
                    InOne::HeldIfSeen
                }
                verdict => InOne::Is(verdict),
            }
        }
        Bound::Latency { metric, quantile, limit_ns } => {
            let counted = vm.metrics.iter().find(|entry| entry.name == *metric);
            InOne::Is(counted.map_or_else(
                || none_counted(run.coverage_of(of, metric).0).0,
                |entry| {
                    let latencies = &entry.latencies;
                    let samples =
                        Samples { histogram: &latencies.histogram, max_ns: latencies.max_ns };
                    of_latency(samples, *quantile, *limit_ns, entry.coverage).0
                },
            ))
        }
    }
}

/// The intervals of a VM so far.
#[derive(Clone, Copy, Debug, Default)]
struct OneByOne {
    counts: IntervalVerdicts,
    held_if_seen: u64,
    /// For how long it has been broken without a break, and at the most, in nanoseconds.
    stretch_ns: u64,
    longest_ns: u64,
    last: Option<u64>,
}

impl OneByOne {
    fn add(&mut self, place: &Place, verdict: InOne) {
        match verdict {
            InOne::Is(Verdict::Held) => self.counts.held += 1,
            InOne::Is(Verdict::Broken) => self.counts.broken += 1,
            InOne::Is(Verdict::NotJudged) => self.counts.not_judged += 1,
            InOne::HeldIfSeen => self.held_if_seen += 1,
        }
        let follows = self.last.is_some_and(|last| last + 1 == place.number);
        let before = if follows { self.stretch_ns } else { 0 };
        let is_broken = verdict == InOne::Is(Verdict::Broken);
        self.stretch_ns = if is_broken { before + place.length_ns } else { 0 };
        self.longest_ns = self.longest_ns.max(self.stretch_ns);
        self.last = Some(place.number);
    }

    /// All together; `of_faults` is how much of `fault.*` was seen.
    fn verdicts(self, of_faults: Coverage) -> IntervalVerdicts {
        let mut counts = self.counts;
        match of_faults {
            Coverage::Full => counts.held += self.held_if_seen,
            _ => counts.not_judged += self.held_if_seen,
        }
        counts.longest_broken_s = self.longest_ns as f64 / 1e9;
        counts
    }
}

/// One VM of the recording.
struct Case<'a> {
    run: &'a Run,
    vm: &'a RunVm,
    totals: &'a VmTotals,
}

impl Case<'_> {
    fn judge(&self, objective: &Objective, one_by_one: OneByOne) -> Judged {
        let of_faults = self.coverage(&Metric::FaultMajor.into()).0;
        let mut judged = Judged {
            vm_id: Some(self.vm.vm_id.clone()),
            vm: Some(self.vm.name.clone()),
            why: None,
            intervals: one_by_one.verdicts(of_faults),
            ..nobody(objective)
        };
        let outcome = match &objective.bound {
            Bound::Share { of: Share::Cpu, limit } => {
                let (stall, waited_ns) = (self.totals.stall, self.totals.cpu_wait_ns);
                judged.share =
                    stall.zip(waited_ns).and_then(|(stall, waited_ns)| stall.cpu_share(waited_ns));
                of_cpu_share(stall, waited_ns, self.totals.stall_known(), *limit)
            }
            Bound::Share { of: Share::Stall, limit } => {
                judged.share = self.totals.stall.and_then(Stall::share);
                of_share(self.totals.stall, self.totals.stall_known(), *limit, of_faults)
            }
            Bound::Latency { metric, quantile, limit_ns } => {
                let (coverage, why) = self.coverage(metric);
                let counted = self.totals.metrics.get(metric);
                judged.value_ns = counted.and_then(|counted| {
                    let place = quantile.rank(counted.latencies.count());
                    counted.latencies.at(place)
                });
                let nothing = none_counted(coverage);
                let outcome = counted.map_or(nothing, |counted| {
                    let histogram = &counted.latencies.histogram;
                    let samples = Samples { histogram, max_ns: counted.latencies.max_ns };
                    of_latency(samples, *quantile, *limit_ns, coverage.max(counted.coverage))
                });
                (outcome.0, why.filter(|_| outcome.0 == Verdict::NotJudged).or(outcome.1))
            }
        };
        (judged.verdict, judged.why) = outcome;
        judged
    }

    /// How much of a metric was seen of this VM; why not, if nothing was.
    fn coverage(&self, metric: &MetricName) -> (Coverage, Option<String>) {
        match self.run.coverage_of(self.vm, metric) {
            (coverage, None) if metric.is_always_written() => {
                (coverage.max(self.totals.seen.coverage()), None)
            }
            declared => declared,
        }
    }
}

/// Latencies with their exact maximum, in nanoseconds.
#[derive(Clone, Copy)]
struct Samples<'a> {
    histogram: &'a Histogram<u64>,
    max_ns: u64,
}

impl Samples<'_> {
    /// How many exceed the limit.
    fn above(self, limit_ns: u64) -> u64 {
        let values = self.histogram.iter_recorded();
        values
            .filter(|value| value.value_iterated_to().min(self.max_ns) > limit_ns)
            .map(|value| value.count_at_value())
            .sum()
    }
}

/// Of too few samples the quantile is just their maximum. None above the limit: held.
/// Still above it if the missing ones had been none: broken.
fn of_latency(
    samples: Samples<'_>,
    quantile: Quantile,
    limit_ns: u64,
    coverage: Coverage,
) -> Outcome {
    let (count, least) = (samples.histogram.len(), quantile.least_samples());
    let above = samples.above(limit_ns);
    if above > count.max(least) - quantile.rank(count.max(least)) {
        return (Verdict::Broken, None);
    }
    if coverage != Coverage::Full {
        return (
            Verdict::NotJudged,
            Some("not all of it was seen, and the rest may be worse".to_owned()),
        );
    }
    if count >= least || above == 0 {
        return (Verdict::Held, None);
    }
    (Verdict::NotJudged, Some(format!("{count} counted, of {least} that the quantile needs")))
}

fn none_counted(coverage: Coverage) -> Outcome {
    match coverage {
        Coverage::Full => (Verdict::Held, None),
        _ => (Verdict::NotJudged, Some("not all of it was seen".to_owned())),
    }
}

/// `of_faults` is how much of `fault.*` was seen.
/// A share that is known for that part of the time.
fn of_share(stall: Option<Stall>, known: f64, limit: f64, of_faults: Coverage) -> Outcome {
    let Some((stall, share)) = stall.and_then(|stall| Some((stall, stall.share()?))) else {
        return (Verdict::NotJudged, Some("its vCPU threads are not known".to_owned()));
    };
    let outcome = of_known_share(share, known, limit);
    let is_partial = stall.source == StallSource::Faults && of_faults != Coverage::Full;
    if outcome.0 == Verdict::Held && is_partial {
        return (Verdict::NotJudged, Some("not all of its faults were seen".to_owned()));
    }
    outcome
}

/// The same of waits for a CPU.
fn of_cpu_share(stall: Option<Stall>, waited_ns: Option<u64>, known: f64, limit: f64) -> Outcome {
    let Some(stall) = stall else {
        return (Verdict::NotJudged, Some("its vCPU threads are not known".to_owned()));
    };
    match waited_ns.and_then(|waited_ns| stall.cpu_share(waited_ns)) {
        Some(share) => of_known_share(share, known, limit),
        None => (Verdict::NotJudged, Some("the scheduler keeps no account of it".to_owned())),
    }
}

fn of_known_share(share: f64, known: f64, limit: f64) -> Outcome {
    // Also if nobody waited in the rest.
    if share * known > limit {
        return (Verdict::Broken, None);
    }
    if known < STALL_KNOWN {
        let why = format!("its vCPU threads were known for {} of the time", percent(known));
        return (Verdict::NotJudged, Some(why));
    }
    (Verdict::Held, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::latencies::Latencies;

    fn latencies(counts: &[(u64, u64)]) -> Latencies {
        let mut latencies = Latencies::empty();
        for (value, count) in counts {
            latencies.histogram.record_n(*value, *count).unwrap();
            latencies.max_ns = latencies.max_ns.max(*value);
        }
        latencies
    }

    fn verdict(counts: &[(u64, u64)], objective: &str, coverage: Coverage) -> Verdict {
        let latencies = latencies(counts);
        let samples = Samples { histogram: &latencies.histogram, max_ns: latencies.max_ns };
        let objective = Objective::parse(objective).unwrap();
        let Bound::Latency { quantile, limit_ns, .. } = objective.bound else { unreachable!() };
        of_latency(samples, quantile, limit_ns, coverage).0
    }

    /// 0.07 × 100 is more than 7 in binary fractions.
    #[test]
    fn the_value_shown_is_the_one_that_is_judged() {
        let each: Vec<(u64, u64)> = (1..=100).map(|value| (value, 1)).collect();
        let objective = Objective::parse("*:fault.major:p7<10us").unwrap();
        let Bound::Latency { quantile, .. } = objective.bound else { unreachable!() };
        assert_eq!(latencies(&each).at(quantile.rank(100)), Some(7));
        assert_eq!(latencies(&each).at(101), None);
    }

    #[test]
    fn intervals_are_counted_and_the_longest_stretch_told() {
        let mut of = OneByOne::default();
        let second = 1_000_000_000;
        let broken = InOne::Is(Verdict::Broken);
        let verdicts = [broken, broken, InOne::HeldIfSeen, broken, InOne::Is(Verdict::Held)];
        for (number, verdict) in verdicts.into_iter().enumerate() {
            let place = Place { number: number as u64, length_ns: second, ..Place::default() };
            of.add(&place, verdict);
        }
        // One is missing before it.
        of.add(&Place { number: 6, length_ns: second, ..Place::default() }, broken);
        let seen = of.verdicts(Coverage::Full);
        assert_eq!((seen.held, seen.broken, seen.not_judged), (2, 4, 0));
        assert_eq!(seen.longest_broken_s, 2.0);
        assert_eq!(of.verdicts(Coverage::Partial).not_judged, 1);
    }

    #[test]
    fn enough_samples_are_judged_by_their_quantile() {
        let p99 = "fault.major:p99<2ms";
        let (fast, slow) = (100_000, 5_000_000);
        assert_eq!(verdict(&[(fast, 990), (slow, 10)], p99, Coverage::Full), Verdict::Held);
        assert_eq!(verdict(&[(fast, 989), (slow, 11)], p99, Coverage::Full), Verdict::Broken);
        // Exactly at the limit is held, though its bucket reaches above.
        assert_eq!(verdict(&[(2_000_000, 1_000)], p99, Coverage::Full), Verdict::Held);
    }

    #[test]
    fn too_few_are_judged_only_where_the_missing_could_not_matter() {
        let p99 = "fault.major:p99<2ms";
        let (fast, slow) = (100_000, 5_000_000);
        assert_eq!(verdict(&[], p99, Coverage::Full), Verdict::Held);
        assert_eq!(verdict(&[(fast, 10)], p99, Coverage::Full), Verdict::Held);
        // A single long one: it is the p99 of 99, and no p99 of 100.
        assert_eq!(verdict(&[(10_000_000_000, 1)], p99, Coverage::Full), Verdict::NotJudged);
        assert_eq!(verdict(&[(slow, 2)], p99, Coverage::Full), Verdict::Broken);
    }

    #[test]
    fn what_was_not_all_seen_can_be_broken_and_not_held() {
        let p99 = "fault.major:p99<2ms";
        assert_eq!(verdict(&[(100_000, 1_000)], p99, Coverage::Partial), Verdict::NotJudged);
        assert_eq!(verdict(&[(5_000_000, 1_000)], p99, Coverage::Partial), Verdict::Broken);
        let stall =
            |waited_ns, source| Some(Stall { waited_ns, runq_ns: 0, vcpu_ns: 1_000, source });
        let of = |stall, coverage| of_share(stall, 1.0, 0.01, coverage).0;
        assert_eq!(of(stall(10, StallSource::Faults), Coverage::Full), Verdict::Held);
        assert_eq!(of(stall(11, StallSource::Faults), Coverage::Partial), Verdict::Broken);
        assert_eq!(of(stall(10, StallSource::Faults), Coverage::Partial), Verdict::NotJudged);
        assert_eq!(of(stall(10, StallSource::Windows), Coverage::Partial), Verdict::Held);
        assert_eq!(of(None, Coverage::Full), Verdict::NotJudged);
        // Known in 3 of 60 intervals: nothing, or as much as breaks it whatever the rest was.
        let known = |waited_ns| {
            of_share(stall(waited_ns, StallSource::Windows), 0.05, 0.01, Coverage::Full).0
        };
        assert_eq!(
            [0, 100, 201].map(known),
            [Verdict::NotJudged, Verdict::NotJudged, Verdict::Broken]
        );
    }

    /// 5,000 faults of 10 us, then one of 500 ms in a second: the p99 is 10 us, and the
    /// vCPU stood still for 55 %.
    #[test]
    fn a_long_stall_hides_from_quantiles_and_not_from_the_share() {
        let counts = [(10_000, 5_000), (500_000_000, 1)];
        assert_eq!(verdict(&counts, "fault.major:p99<1ms", Coverage::Full), Verdict::Held);
        let stall = Stall {
            waited_ns: 550_000_000,
            runq_ns: 0,
            vcpu_ns: 1_000_000_000,
            source: StallSource::Faults,
        };
        let of = |stall| of_share(Some(stall), 1.0, 0.01, Coverage::Full).0;
        assert_eq!(of(stall), Verdict::Broken);
        // It was the run queue: who buys memory for that gains nothing.
        let starved = Stall { runq_ns: 545_000_000, ..stall };
        assert_eq!(of(starved), Verdict::Held);
        let cpu = |waited_ns, known| of_cpu_share(Some(starved), waited_ns, known, 0.05).0;
        assert_eq!(cpu(Some(600_000_000), 1.0), Verdict::Broken);
        assert_eq!(cpu(Some(40_000_000), 1.0), Verdict::Held);
        assert_eq!([cpu(Some(0), 0.5), cpu(None, 1.0)], [Verdict::NotJudged; 2]);
    }
}
