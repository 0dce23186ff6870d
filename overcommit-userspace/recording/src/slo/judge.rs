//! Holds a recording against objectives.
//!
//! Every fault is counted, so a figure has no sampling error; but a quantile of too
//! few samples is just their maximum, and what was not all seen can only be worse.

use crate::model::coverage::Coverage;
use crate::model::interval::{Interval, Place, Stall, StallSource, VmInterval};
use crate::model::metric::MetricName;
use crate::model::run::{Run, RunVm};
use crate::model::totals::{Totals, VmTotals, per_second};
use crate::slo::Objective;
use crate::slo::objective::{Bound, Share};
use crate::slo::outcome::{Outcome, none_counted, of_cpu_share, of_latency, of_rate, of_share};
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
    /// The rate over the whole time, per second.
    pub rate_per_s: Option<f64>,
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
                if objective.is_for(of) {
                    let length_ns = vm.recorded_of(interval.place.length_ns);
                    let verdict = in_an_interval(objective, run, of, vm, length_ns);
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
                if objective.is_for(vm) {
                    let one_by_one = each.get(&index).copied().unwrap_or_default();
                    let mut case = Case { run, vm, totals }.judge(objective, one_by_one);
                    let has_ended = vm.ended_us.is_some_and(|end_us| end_us <= self.end_us);
                    if has_ended && case.verdict == Verdict::Held {
                        case.verdict = Verdict::NotJudged;
                        case.why = Some("the VM ended early".to_owned());
                    }
                    judged.push(case);
                }
            }
            let left_out = run.not_counted.vms_left_out;
            if left_out > 0 {
                let why = format!(
                    "{left_out} of the VMs that ended are not kept; the objective may be for one of them"
                );
                judged.push(of_nobody(objective, why));
            } else if judged.len() == before {
                judged.push(of_nobody(objective, "no recorded VM matches".to_owned()));
            }
        }
        judged
    }
}

fn of_nobody(objective: &Objective, why: String) -> Judged {
    Judged {
        objective: objective.to_string(),
        vm_id: None,
        vm: None,
        verdict: Verdict::NotJudged,
        value_ns: None,
        share: None,
        rate_per_s: None,
        why: Some(why),
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

fn in_an_interval(
    objective: &Objective,
    run: &Run,
    of: &RunVm,
    vm: &VmInterval,
    length_ns: u64,
) -> InOne {
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
        Bound::Rate { metric, limit } => {
            let counted = vm.metrics.iter().find(|entry| entry.name == *metric);
            let coverage = run.coverage_of(of, metric).0;
            let coverage = counted.map_or(coverage, |entry| coverage.max(entry.coverage));
            let count = counted.map_or(0, |entry| entry.latencies.count());
            InOne::Is(of_rate(count, length_ns, *limit, coverage).0)
        }
        Bound::Latency { metric, quantile, limit_ns } => {
            let counted = vm.metrics.iter().find(|entry| entry.name == *metric);
            InOne::Is(counted.map_or_else(
                || none_counted(run.coverage_of(of, metric).0).0,
                |entry| of_latency(&entry.latencies, *quantile, *limit_ns, entry.coverage).0,
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

/// Of what could not be judged, why it was not seen, where that is known.
fn because((verdict, why): Outcome, unseen: Option<String>) -> Outcome {
    (verdict, unseen.filter(|_| verdict == Verdict::NotJudged).or(why))
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
            ..of_nobody(objective, String::new())
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
            Bound::Rate { metric, limit } => {
                let (coverage, why) = self.coverage(metric);
                let counted = self.totals.metrics.get(metric);
                let coverage = counted.map_or(coverage, |counted| coverage.max(counted.coverage));
                let count = counted.map_or(0, |counted| counted.latencies.count());
                let length_ns = self.totals.length_ns;
                let rate = per_second(count, length_ns);
                judged.rate_per_s = rate.filter(|_| coverage != Coverage::Absent);
                because(of_rate(count, length_ns, *limit, coverage), why)
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
                    of_latency(
                        &counted.latencies,
                        *quantile,
                        *limit_ns,
                        coverage.max(counted.coverage),
                    )
                });
                because(outcome, why)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::run::NotCounted;

    #[test]
    fn an_objective_is_not_held_for_vms_that_are_not_kept() {
        let judging = Judging::new(vec![Objective::parse("db:fault.major:p99<2ms").unwrap()]);
        let judged = |vms_left_out| {
            let not_counted = NotCounted { vms_left_out, ..NotCounted::default() };
            let run = Run { not_counted, ..Run::default() };
            let [judged] = &judging.judge(&run, &Totals::of(0))[..] else { panic!() };
            (judged.verdict, judged.why.clone().unwrap())
        };
        let not_judged = |why: &str| (Verdict::NotJudged, why.to_owned());
        assert_eq!(judged(0), not_judged("no recorded VM matches"));
        let why = "3 of the VMs that ended are not kept; the objective may be for one of them";
        assert_eq!(judged(3), not_judged(why));
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
}
