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

    /// Its family; `None` of one that a later version knows.
    pub fn family(&self) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| self.is_in(family.name))
    }

    /// Whether it comes from KVM's tracepoints.
    pub fn is_of_exits(&self) -> bool {
        self.family().is_some_and(|family| family.is_of_exits)
    }

    /// Whether it gets a percentile distribution at the end; `export` makes the others.
    pub fn is_plotted(&self) -> bool {
        self.family().is_some_and(|family| family.is_plotted)
    }

    /// Whether `compare` looks at it.
    pub fn is_compared(&self) -> bool {
        self.family().is_some_and(|family| family.is_compared)
    }

    /// Whether every interval and VM has it, counted or not.
    pub fn is_always_written(&self) -> bool {
        self.family().is_some_and(|family| family.is_always_written)
    }

    /// Place among the families, and within its own.
    fn rank(&self) -> (usize, usize) {
        let family = FAMILIES.iter().position(|family| self.is_in(family.name));
        let place = Metric::ALL.iter().position(|metric| metric.name() == self.as_str());
        (family.unwrap_or(FAMILIES.len()), place.unwrap_or(Metric::COUNT))
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

/// Metrics of one kind: a name, or the names that begin with it and a point.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The name, or how its members' names begin.
    pub name: &'static str,
    /// From when to when, as half a sentence.
    pub about: &'static str,
    members: Members,
    /// Whether it comes from KVM's tracepoints.
    pub is_of_exits: bool,
    /// Whether every interval and VM has it, counted or not.
    pub is_always_written: bool,
    /// Whether `compare` looks at it: how often a guest leaves for other reasons is its own
    /// business.
    pub is_compared: bool,
    /// Whether it gets a percentile distribution at the end.
    pub is_plotted: bool,
}

/// Which metrics a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Members {
    /// Itself alone.
    Itself,
    /// The kernel's two kinds of fault.
    Faults,
    /// One for each that a fault can take.
    Backings,
    /// Whatever the kernel calls so.
    Any,
}

impl Family {
    const fn of(name: &'static str, about: &'static str, members: Members) -> Self {
        Self {
            name,
            about,
            members,
            is_of_exits: false,
            is_always_written: false,
            is_compared: false,
            is_plotted: false,
        }
    }

    const fn of_exits(self) -> Self {
        Self { is_of_exits: true, ..self }
    }

    const fn compared(self) -> Self {
        Self { is_compared: true, ..self }
    }

    const fn plotted(self) -> Self {
        Self { is_plotted: true, ..self }
    }

    fn has(&self, name: &MetricName) -> bool {
        match self.members {
            Members::Itself => name.as_str() == self.name,
            Members::Faults => Metric::FAULTS.iter().any(|metric| metric.name() == name.as_str()),
            Members::Backings => {
                FaultBacking::ALL.into_iter().any(|backing| MetricName::from(backing) == *name)
            }
            Members::Any => name.is_in(self.name) && name.as_str().len() > self.name.len() + 1,
        }
    }
}

/// Every family, in the order of files and views.
pub const FAMILIES: [Family; 10] = [
    Family {
        is_always_written: true,
        ..Family::of(
            "fault",
            "Start of a page fault to its completion; minor and major by the kernel's own rule",
            Members::Faults,
        )
        .compared()
        .plotted()
    },
    Family::of(BACKING, "The same faults, by what they took", Members::Backings),
    Family::of("swapin", "Read of a swapped page, within a fault", Members::Itself)
        .compared()
        .plotted(),
    Family::of(
        "stall.memory",
        "Exit for memory to the next entry of that vCPU: what it really waited",
        Members::Itself,
    )
    .of_exits()
    .compared()
    .plotted(),
    Family::of("idle", "Halt to the next entry, unless it waits for memory", Members::Itself)
        .of_exits(),
    Family::of("apf", "Asynchronous page fault: not present to ready", Members::Itself)
        .of_exits()
        .compared(),
    Family::of(
        "reclaim",
        "Direct, memory cgroup or node reclaim, run by a thread of the VM or for its memory",
        Members::Itself,
    ),
    Family::of(
        "runq",
        "A vCPU was runnable but had no CPU: the guest's steal time",
        Members::Itself,
    )
    .of_exits(),
    Family::of(
        "memory.high",
        "A thread is held back because its memory cgroup holds more than that",
        Members::Itself,
    ),
    Family::of("exit", "kvm_exit to the next kvm_entry of that vCPU, by reason", Members::Any)
        .of_exits(),
];

/// The names that metrics have, of kinds without end an example.
pub fn names() -> String {
    let of = |family: &Family| -> Vec<String> {
        match family.members {
            Members::Itself => vec![family.name.to_owned()],
            Members::Faults => {
                Metric::FAULTS.map(|metric| MetricName::from(metric).as_str().to_owned()).to_vec()
            }
            Members::Backings => vec![format!("{}.KIND", family.name)],
            Members::Any => vec![format!("{}.REASON", family.name)],
        }
    };
    FAMILIES.iter().flat_map(of).collect::<Vec<_>>().join(", ")
}

/// Whether there is a metric of that name, seen or not.
pub fn is_known(name: &str) -> bool {
    let name = MetricName::new(name);
    FAMILIES.iter().any(|family| family.has(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_programs_has_its_family() {
        let named = Metric::ALL.map(MetricName::from).into_iter();
        let backings = FaultBacking::ALL.map(MetricName::from);
        for name in named.chain(backings).chain([MetricName::exit("npf")]) {
            assert!(is_known(name.as_str()), "{name:?}");
        }
        for name in ["fault", "fault.mayor", "backing", "exit", "exit.", "stall", "faults.minor"] {
            assert!(!is_known(name), "{name}");
        }
    }

    #[test]
    fn metrics_are_in_the_order_of_their_families() {
        let names = [
            "fault.minor",
            "fault.major",
            "backing.anon",
            "backing.swap",
            "swapin",
            "stall.memory",
            "memory.high",
            "exit.hlt",
            "exit.npf",
            "of_a_later_version",
        ];
        let names: Vec<MetricName> = names.into_iter().map(MetricName::new).collect();
        assert!(names.is_sorted());
    }
}
