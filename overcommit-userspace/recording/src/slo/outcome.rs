//! How a figure comes out against its limit.

use crate::format::text::percent;
use crate::model::coverage::Coverage;
use crate::model::interval::{Stall, StallSource};
use crate::model::latencies::Latencies;
use crate::model::totals::{STALL_KNOWN, per_second};
use crate::slo::judge::Verdict;
use crate::slo::objective::Quantile;

/// A verdict, and why there is none.
pub(super) type Outcome = (Verdict, Option<String>);

/// Of too few samples the quantile is just their maximum. None above the limit: held.
/// Still above it if the missing ones had been none: broken.
pub(super) fn of_latency(
    samples: &Latencies,
    quantile: Quantile,
    limit_ns: u64,
    coverage: Coverage,
) -> Outcome {
    let (count, least) = (samples.count(), quantile.least_samples());
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
    (Verdict::NotJudged, Some(format!("{count} samples; the quantile needs {least}")))
}

/// Of a metric of which nothing was counted.
pub(super) fn none_counted(coverage: Coverage) -> Outcome {
    match coverage {
        Coverage::Full => (Verdict::Held, None),
        _ => (Verdict::NotJudged, Some("not all of it was seen".to_owned())),
    }
}

/// A share that is known for that part of the time; `of_faults` is how much of `fault.*` was seen.
pub(super) fn of_share(
    stall: Option<Stall>,
    known: f64,
    limit: f64,
    of_faults: Coverage,
) -> Outcome {
    let Some((stall, share)) = stall.and_then(|stall| Some((stall, stall.share()?))) else {
        return (Verdict::NotJudged, Some("its vCPU threads could not be identified".to_owned()));
    };
    let outcome = of_known_share(share, stall, known, limit);
    let is_partial = stall.source == StallSource::Faults && of_faults != Coverage::Full;
    if outcome.0 == Verdict::Held && is_partial {
        return (Verdict::NotJudged, Some("not all of its faults were seen".to_owned()));
    }
    outcome
}

/// The same of waits for a CPU.
pub(super) fn of_cpu_share(
    stall: Option<Stall>,
    waited_ns: Option<u64>,
    known: f64,
    limit: f64,
) -> Outcome {
    let Some(stall) = stall else {
        return (Verdict::NotJudged, Some("its vCPU threads could not be identified".to_owned()));
    };
    match waited_ns.and_then(|waited_ns| stall.cpu_share(waited_ns)) {
        Some(share) => of_known_share(share, stall, known, limit),
        None => (Verdict::NotJudged, Some("the kernel does not record waits for a CPU".to_owned())),
    }
}

fn of_known_share(share: f64, stall: Stall, known: f64, limit: f64) -> Outcome {
    // Also if nobody waited in the rest.
    if share * known > limit {
        return (Verdict::Broken, None);
    }
    if known < STALL_KNOWN {
        let why = format!("its vCPU threads were known for {} of the time", percent(known));
        return (Verdict::NotJudged, Some(why));
    }
    if !stall.has_all_vcpus() {
        let why = "only some of its vCPU threads were known";
        return (Verdict::NotJudged, Some(why.to_owned()));
    }
    (Verdict::Held, None)
}

/// Of so many in that time.
pub(super) fn of_rate(count: u64, length_ns: u64, limit: f64, coverage: Coverage) -> Outcome {
    match per_second(count, length_ns) {
        None => (Verdict::NotJudged, Some("it was not recorded for any time".to_owned())),
        Some(rate) if rate > limit => (Verdict::Broken, None),
        Some(_) => none_counted(coverage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slo::Objective;
    use crate::slo::objective::Bound;

    fn latencies(counts: &[(u64, u64)]) -> Latencies {
        let mut latencies = Latencies::empty();
        for (value, count) in counts {
            latencies.record(*value, *count);
            latencies.max_ns = latencies.max_ns.max(*value);
        }
        latencies
    }

    fn verdict(counts: &[(u64, u64)], objective: &str, coverage: Coverage) -> Verdict {
        let latencies = latencies(counts);
        let objective = Objective::parse(objective).unwrap();
        let Bound::Latency { quantile, limit_ns, .. } = objective.bound else { unreachable!() };
        of_latency(&latencies, quantile, limit_ns, coverage).0
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
        let stall = |waited_ns, source| {
            Some(Stall { waited_ns, vcpu_ns: 1_000, source, ..Stall::default() })
        };
        let of = |stall, coverage| of_share(stall, 1.0, 0.01, coverage).0;
        assert_eq!(of(stall(10, StallSource::Faults), Coverage::Full), Verdict::Held);
        assert_eq!(of(stall(11, StallSource::Faults), Coverage::Partial), Verdict::Broken);
        assert_eq!(of(stall(10, StallSource::Faults), Coverage::Partial), Verdict::NotJudged);
        assert_eq!(of(stall(10, StallSource::Windows), Coverage::Partial), Verdict::Held);
        assert_eq!(of(None, Coverage::Full), Verdict::NotJudged);
        // One of two vCPUs is known, and its waits are those of both at the least.
        let half = |waited_ns| {
            let stall = stall(waited_ns, StallSource::Windows);
            stall.map(|stall| Stall { unknown_vcpu_ns: 500, ..stall })
        };
        let of_half = |waited_ns| of(half(waited_ns), Coverage::Full);
        assert_eq!([10, 11].map(of_half), [Verdict::NotJudged, Verdict::Broken]);
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
            vcpu_ns: 1_000_000_000,
            source: StallSource::Faults,
            ..Stall::default()
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

    #[test]
    fn the_maximum_is_exact_and_needs_no_number_of_samples() {
        let max = "fault.major:max<2ms";
        assert_eq!(verdict(&[], max, Coverage::Full), Verdict::Held);
        assert_eq!(verdict(&[(2_000_000, 7)], max, Coverage::Full), Verdict::Held);
        assert_eq!(verdict(&[(100, 7), (2_000_001, 1)], max, Coverage::Full), Verdict::Broken);
        assert_eq!(verdict(&[(100, 7)], max, Coverage::Partial), Verdict::NotJudged);
    }

    #[test]
    fn a_rate_is_broken_by_what_was_seen_and_held_by_all() {
        let of = |count, coverage| of_rate(count, 2_000_000_000, 100.0, coverage).0;
        assert_eq!(of(200, Coverage::Full), Verdict::Held);
        assert_eq!(of(201, Coverage::Full), Verdict::Broken);
        assert_eq!(of(201, Coverage::Partial), Verdict::Broken);
        assert_eq!(of(200, Coverage::Partial), Verdict::NotJudged);
        assert_eq!(of_rate(0, 0, 100.0, Coverage::Full).0, Verdict::NotJudged);
    }
}
