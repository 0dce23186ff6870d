//! What a metric is called, and which there are.

use overcommit_ebpf::layout::{FaultBacking, Metric};
use serde::Serialize;
use std::borrow::Cow;
use std::cmp::Ordering;

/// The family of what faults took.
pub const BACKING: &str = "backing";

/// The name of a metric in all files and views: `[a-z0-9_.]+`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct MetricName(Cow<'static, str>);

impl MetricName {
    /// One that a file names.
    pub fn new(name: &str) -> Self {
        Self(Cow::Owned(name.to_owned()))
    }

    /// `exit.REASON`.
    pub fn exit(reason: &str) -> Self {
        Self(Cow::Owned(format!("exit.{reason}")))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that metric, or a member of that family.
    pub fn is_in(&self, family: &str) -> bool {
        let rest = self.as_str().strip_prefix(family);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Whether it comes from KVM's tracepoints.
    pub fn is_of_exits(&self) -> bool {
        ["exit", "idle", "stall.memory", "apf", "runq"].iter().any(|family| self.is_in(family))
    }

    /// Whether it gets a percentile distribution at the end; `export` makes the others.
    pub fn is_plotted(&self) -> bool {
        ["fault", "swapin", "stall.memory"].iter().any(|family| self.is_in(family))
    }

    /// Whether `compare` looks at it: how often a guest leaves for other reasons is its own
    /// business.
    pub fn is_compared(&self) -> bool {
        ["fault", "swapin", "stall.memory", "apf"].iter().any(|family| self.is_in(family))
    }

    /// Whether every interval and VM has it, counted or not.
    pub fn is_always_written(&self) -> bool {
        Metric::FAULTS.iter().any(|metric| metric.name() == self.as_str())
    }

    /// Place among the families: those that every VM has in their own order, but what
    /// faults took behind the faults; then the exits.
    fn rank(&self) -> usize {
        let faults = Metric::FAULTS.len();
        if self.is_in(BACKING) {
            return faults;
        }
        let place = Metric::ALL.iter().position(|metric| metric.name() == self.as_str());
        let place = place.unwrap_or(Metric::COUNT);
        if place < faults { place } else { place + 1 }
    }
}

impl From<FaultBacking> for MetricName {
    fn from(backing: FaultBacking) -> Self {
        Self(Cow::Owned(format!("{BACKING}.{}", backing.name())))
    }
}

impl From<Metric> for MetricName {
    fn from(metric: Metric) -> Self {
        Self(Cow::Borrowed(metric.name()))
    }
}

impl Ord for MetricName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for MetricName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Whether there is a metric of that name, seen or not.
pub fn is_known(name: &str) -> bool {
    let name = MetricName::new(name);
    Metric::ALL.iter().any(|metric| metric.name() == name.as_str())
        || FaultBacking::ALL.into_iter().any(|backing| MetricName::from(backing) == name)
        || (name.is_in("exit") && name.as_str().len() > "exit.".len())
}
