//! Holds a recording against objectives.
//!
//! Every fault is counted, so a figure has no sampling error; but a quantile of too
//! few samples is just their maximum, and what was not all seen can only be worse.

use crate::model::coverage::{Coverage, coverage_of};
use crate::model::interval::{Stall, StallSource};
use crate::model::metric::MetricName;
use crate::model::run::RunVm;
use crate::recording::reader::VmTotals;
use crate::recording::rows::VmRow;
use crate::recording::{Folder, Recording};
use crate::slo::Objective;
use crate::slo::objective::{Bound, Quantile};
use anyhow::Result;
use hdrhistogram::Histogram;
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

/// Judges each objective for each VM that it is for.
///
/// # Errors
/// A log of the recording cannot be read.
pub fn judge(
    recording: &Recording,
    folder: &Folder,
    objectives: &[Objective],
) -> Result<Vec<Judged>> {
    let quantiles: Vec<(&MetricName, Quantile, u64)> =
        objectives.iter().filter_map(latency).collect();
    let by_interval = if quantiles.is_empty() {
        Quantiles::default()
    } else {
        Quantiles::read(recording, folder, &quantiles)?
    };
    let mut judged = Vec::new();
    for objective in objectives {
        let before = judged.len();
        let vms = recording.run.vms.iter().zip(&recording.vms).enumerate();
        for (index, (vm, totals)) in vms {
            if objective.is_for(&vm.name, vm.uuid.as_deref()) {
                let rows: Vec<&VmRow> = recording.vm_rows().filter(|row| row.vm == index).collect();
                let case = Case { recording, vm, totals, rows };
                judged.push(case.judge(objective, index, &by_interval));
            }
        }
        if judged.len() == before {
            judged.push(nobody(objective));
        }
    }
    Ok(judged)
}

fn latency(objective: &Objective) -> Option<(&MetricName, Quantile, u64)> {
    match &objective.bound {
        Bound::Latency { metric, quantile, limit_ns } => Some((metric, *quantile, *limit_ns)),
        Bound::StallShare { .. } => None,
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

/// Verdicts of intervals in which a metric was counted.
#[derive(Default)]
struct Quantiles(BTreeMap<(usize, MetricName, u64, u64), BTreeMap<u64, Verdict>>);

impl Quantiles {
    fn read(
        recording: &Recording,
        folder: &Folder,
        wanted: &[(&MetricName, Quantile, u64)],
    ) -> Result<Self> {
        let mut verdicts = Self::default();
        recording.each_histogram(folder, |row, histogram| {
            for (metric, quantile, limit_ns) in wanted.iter().filter(|(m, ..)| **m == row.metric) {
                let samples = Samples { histogram, max_ns: row.max_ns };
                let (verdict, _) = of_latency(samples, *quantile, *limit_ns, row.coverage);
                let key = key(row.vm, metric, *quantile, *limit_ns);
                verdicts.0.entry(key).or_default().insert(row.interval, verdict);
            }
        })?;
        Ok(verdicts)
    }
}

fn key(
    vm: usize,
    metric: &MetricName,
    quantile: Quantile,
    limit_ns: u64,
) -> (usize, MetricName, u64, u64) {
    (vm, metric.clone(), quantile.rank(u64::from(u32::MAX)), limit_ns)
}

/// One VM of the recording.
struct Case<'a> {
    recording: &'a Recording,
    vm: &'a RunVm,
    totals: &'a VmTotals,
    rows: Vec<&'a VmRow>,
}

impl Case<'_> {
    fn judge(&self, objective: &Objective, index: usize, by_interval: &Quantiles) -> Judged {
        let mut judged = Judged {
            vm_id: Some(self.vm.vm_id.clone()),
            vm: Some(self.vm.name.clone()),
            why: None,
            ..nobody(objective)
        };
        let (outcome, each): (Outcome, Vec<Verdict>) = match &objective.bound {
            Bound::StallShare { limit } => {
                judged.share = self.totals.stall.and_then(Stall::share);
                let share = |stall, coverage| of_share(stall, *limit, coverage);
                let of_faults = self.coverage(&overcommit_ebpf::layout::Metric::FaultMajor.into());
                let each = self.rows.iter().map(|row| share(row.stall, of_faults.0).0);
                (share(self.totals.stall, of_faults.0), each.collect())
            }
            Bound::Latency { metric, quantile, limit_ns } => {
                let (coverage, why) = self.coverage(metric);
                let counted = self.totals.metrics.get(metric);
                judged.value_ns = counted.and_then(|m| m.latencies.quantile(quantile.of_one()));
                let nothing = none_counted(coverage);
                let outcome = counted.map_or(nothing, |counted| {
                    let histogram = &counted.latencies.histogram;
                    let samples = Samples { histogram, max_ns: counted.latencies.max_ns };
                    of_latency(samples, *quantile, *limit_ns, coverage.max(counted.coverage))
                });
                let outcome =
                    (outcome.0, why.filter(|_| outcome.0 == Verdict::NotJudged).or(outcome.1));
                let seen = by_interval.0.get(&key(index, metric, *quantile, *limit_ns));
                let of = |row: &&VmRow| {
                    let verdict = seen.and_then(|seen| seen.get(&row.interval)).copied();
                    verdict.unwrap_or(none_counted(coverage).0)
                };
                (outcome, self.rows.iter().map(of).collect())
            }
        };
        (judged.verdict, judged.why) = outcome;
        judged.intervals = IntervalVerdicts::of(&self.rows, &each);
        judged
    }

    /// How much of a metric was seen of this VM; why not, if nothing was.
    fn coverage(&self, metric: &MetricName) -> (Coverage, Option<String>) {
        let absent =
            |why: &str| (Coverage::Absent, Some(format!("{} is absent: {why}", metric.as_str())));
        if metric.is_of_exits()
            && let Some(why) = &self.vm.exits_absent
        {
            return absent(why);
        }
        let declared = &self.recording.run.coverage;
        match coverage_of(declared, metric) {
            Coverage::Absent => {
                let entry = declared.iter().find(|entry| metric.is_in(&entry.metric));
                absent(entry.and_then(|entry| entry.not_seen.first()).map_or("", String::as_str))
            }
            coverage if metric.is_always_written() => {
                (coverage.max(self.totals.seen.coverage()), None)
            }
            coverage => (coverage, None),
        }
    }
}

impl IntervalVerdicts {
    /// `rows` are those of one VM, in order.
    fn of(rows: &[&VmRow], verdicts: &[Verdict]) -> Self {
        let mut sum = Self::default();
        let (mut stretch_ns, mut longest_ns, mut last) = (0, 0, None);
        for (row, verdict) in rows.iter().zip(verdicts) {
            match verdict {
                Verdict::Held => sum.held += 1,
                Verdict::Broken => sum.broken += 1,
                Verdict::NotJudged => sum.not_judged += 1,
            }
            let follows = last.is_some_and(|last: u64| last + 1 == row.interval);
            stretch_ns = match verdict {
                Verdict::Broken if follows => stretch_ns + row.length_ns,
                Verdict::Broken => row.length_ns,
                _ => 0,
            };
            longest_ns = stretch_ns.max(longest_ns);
            last = Some(row.interval);
        }
        sum.longest_broken_s = longest_ns as f64 / 1e9;
        sum
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
fn of_share(stall: Option<Stall>, limit: f64, of_faults: Coverage) -> Outcome {
    let Some((stall, share)) = stall.and_then(|stall| Some((stall, stall.share()?))) else {
        return (Verdict::NotJudged, Some("its vCPU threads are not known".to_owned()));
    };
    if share > limit {
        return (Verdict::Broken, None);
    }
    if stall.source == StallSource::Faults && of_faults != Coverage::Full {
        return (Verdict::NotJudged, Some("not all of its faults were seen".to_owned()));
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
        let (_, quantile, limit_ns) = latency(&objective).unwrap();
        of_latency(samples, quantile, limit_ns, coverage).0
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
        let stall = |waited_ns, source| Some(Stall { waited_ns, vcpu_ns: 1_000, source });
        let of = |stall, coverage| of_share(stall, 0.01, coverage).0;
        assert_eq!(of(stall(10, StallSource::Faults), Coverage::Full), Verdict::Held);
        assert_eq!(of(stall(11, StallSource::Faults), Coverage::Partial), Verdict::Broken);
        assert_eq!(of(stall(10, StallSource::Faults), Coverage::Partial), Verdict::NotJudged);
        assert_eq!(of(stall(10, StallSource::Windows), Coverage::Partial), Verdict::Held);
        assert_eq!(of(None, Coverage::Full), Verdict::NotJudged);
    }

    /// 5,000 faults of 10 us, then one of 500 ms in a second: the p99 is 10 us, and the
    /// vCPU stood still for 55 %.
    #[test]
    fn a_long_stall_hides_from_quantiles_and_not_from_the_share() {
        let counts = [(10_000, 5_000), (500_000_000, 1)];
        assert_eq!(verdict(&counts, "fault.major:p99<1ms", Coverage::Full), Verdict::Held);
        let stall =
            Stall { waited_ns: 550_000_000, vcpu_ns: 1_000_000_000, source: StallSource::Faults };
        assert_eq!(of_share(Some(stall), 0.01, Coverage::Full).0, Verdict::Broken);
    }
}
