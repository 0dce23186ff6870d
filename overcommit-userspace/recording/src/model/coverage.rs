//! How much of a metric was seen, declared or measured against the kernel's own counters.

use crate::model::metric::{BACKING, MetricName};
use overcommit_ebpf::layout::Part;
use serde::{Deserialize, Serialize};

/// Faults by which two counters may differ because they are not read at the same
/// moment.
const SLACK: u64 = 16;

/// How much of a metric was seen: the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coverage {
    /// All, within 1 %.
    #[default]
    Full,
    /// Less; an objective on it can be broken but not held.
    Partial,
    /// It was not looked at, which is not zero.
    Absent,
}

impl Coverage {
    /// Each, the best first.
    const ALL: [Self; 3] = [Self::Full, Self::Partial, Self::Absent];

    /// What a file calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|coverage| coverage.name() == name)
    }

    /// The word in files and views.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Absent => "absent",
        }
    }
}

/// Faults counted against faults that the kernel accounted to the same threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Faults counted that the VM's own threads took.
    pub counted: u64,
    /// Growth of their min_flt + maj_flt, which holds get_user_pages too.
    pub kernel: u64,
}

impl Seen {
    /// Adds another interval.
    pub fn merge(&mut self, other: Self) {
        self.counted += other.counted;
        self.kernel += other.kernel;
    }

    /// Faults that were not seen.
    pub fn unseen(self) -> u64 {
        self.kernel.saturating_sub(self.counted)
    }

    /// Full at 99 % and more.
    pub fn coverage(self) -> Coverage {
        let unseen = self.unseen();
        let little = unseen <= SLACK || unseen.saturating_mul(100) <= self.kernel;
        if little { Coverage::Full } else { Coverage::Partial }
    }
}

/// What the parts of the faults' time stand for among the metrics.
pub const FAULT_TIME: &str = "fault_time";

/// How much of a metric is seen, and what is not, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricCoverage {
    /// Name of the metric or family.
    pub metric: String,
    /// How much.
    pub coverage: Coverage,
    /// What is not seen.
    pub not_seen: Vec<String>,
}

/// How much of a metric is seen, by what was declared for it or its family.
pub fn coverage_of(declared: &[MetricCoverage], name: &MetricName) -> Coverage {
    let entry = declared.iter().find(|entry| name.is_in(&entry.metric));
    entry.map_or(Coverage::Full, |entry| entry.coverage)
}

/// What stands among the metrics for memory that KVM was told to unmap.
pub const INVALIDATIONS: &str = "invalidations";

/// What stands for a part of the faults' time among the metrics.
pub fn part_of_faults(part: Part) -> String {
    format!("{FAULT_TIME}.{}", part.name())
}

/// Whether a part of the faults' time is seen, by what was declared.
pub fn is_part_seen(declared: &[MetricCoverage], part: Part) -> bool {
    coverage_of(declared, &MetricName::new(&part_of_faults(part))) != Coverage::Absent
}

/// Whether the time of `stall.memory` can be split, by what was declared: perf's events do not
/// fire in the faults that KVM takes.
pub fn can_split_stalls(declared: &[MetricCoverage]) -> bool {
    coverage_of(declared, &MetricName::new(BACKING)) != Coverage::Absent
}

/// Why a metric is absent that means nothing on this host.
pub const NO_SUCH: &str = "arm64 has no asynchronous page faults";

/// What could have been seen and was not: the metrics of each reason. Parts of a fault's time are
/// told where they were seen.
pub fn absent(coverage: &[MetricCoverage]) -> Vec<(&str, Vec<&str>)> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for entry in coverage.iter().filter(|entry| entry.coverage == Coverage::Absent) {
        let is_part = MetricName::new(&entry.metric).is_in(FAULT_TIME);
        let reason = entry.not_seen.first().filter(|reason| !is_part && *reason != NO_SUCH);
        let Some(reason) = reason else { continue };
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, metrics)) => metrics.push(&entry.metric),
            None => reasons.push((reason, vec![&entry.metric])),
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_from_99_percent_on() {
        let coverage = |counted, kernel| Seen { counted, kernel }.coverage();
        assert_eq!(coverage(0, 0), Coverage::Full);
        assert_eq!(coverage(9_900, 10_000), Coverage::Full);
        assert_eq!(coverage(9_899, 10_000), Coverage::Partial);
        assert_eq!(coverage(0, 16), Coverage::Full, "read at another moment");
        assert_eq!(coverage(0, 17), Coverage::Partial);
        assert_eq!(coverage(10_005, 10_000), Coverage::Full);
    }

    #[test]
    fn what_does_not_exist_is_not_missed() {
        let entry = |metric: &str, why: &str| MetricCoverage {
            metric: metric.to_owned(),
            coverage: Coverage::Absent,
            not_seen: vec![why.to_owned()],
        };
        let coverage = [entry("apf", NO_SUCH), entry("idle", "no kvm"), entry("exit", "no kvm")];
        assert_eq!(absent(&coverage), [("no kvm", vec!["idle", "exit"])]);
    }
}
