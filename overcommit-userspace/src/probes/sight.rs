//! Which metrics are there, and how much of each does a backend see?

use crate::probes::decide::Backend;
use crate::probes::functions::Purpose;
use crate::probes::raw::{Absent, Group};
use overcommit_ebpf::layout::{Metric, Part};
use overcommit_recording::model::coverage::MetricCoverage;
use overcommit_recording::model::coverage::part_of_faults;
use overcommit_recording::model::coverage::{Coverage, INVALIDATIONS, NO_SUCH};
use overcommit_recording::model::metric::BACKING;
use overcommit_recording::model::run::HookState;

/// What is not seen of `fault.*` by perf's software events.
const OUTSIDERS: &str = "faults that others take in the VM's memory from outside it: \
    process_vm_writev, kernel workers of asynchronous page faults, khugepaged";
/// What is not seen where KVM runs on hardware.
const GET_USER_PAGES: &str = "faults that KVM resolves through get_user_pages for a guest on \
    hardware";
/// What is not seen of `fault.*` by any backend.
const MAPPED_ELSEWHERE: &str = "faults of another process through its own mapping of a VM's memory, \
    such as a vhost-user device's";
/// What is not seen of it by hooks on handle_mm_fault.
const LOCK_WAIT: &str =
    "the wait for the mmap lock before handle_mm_fault is called for the first time";
/// What is not seen of it with the hook on waits either.
const LOCK_WAIT_WITHIN_CALLS: &str =
    "the wait for the mmap lock before a fault within a system call other than KVM_RUN";

/// Why waits for a CPU are not told.
const NO_RUN_DELAY: &str = "this kernel does not record waits for a CPU (SCHED_INFO)";
/// Why swap-ins are not seen.
const NO_HOOKS: &str = "needs kernel function hooks (fentry or kprobe)";
/// What `backing` does not tell on any kernel.
const HUGE_COPIES: &str = "copies of huge pages, which count as anon";
/// What `swapin` leaves out on any kernel.
const OUTSIDE_SWAPINS: &str = "pages that khugepaged swaps in, which nobody waits for, and \
    reads of shared memory by system calls";
/// What is not known of some VMs.
const SHARED_CGROUP: &str =
    "swap-outs of a VM that shares its memory cgroup: its state is pressure at most";
/// Why nothing is.
pub const NO_BACKEND: &str = "no backend is allowed by this kernel";
/// Where the share comes from without exits.
const SHARE_OF_FAULTS: &str =
    "from the vCPU threads' faults; empty for a VM whose vCPU threads are not known";
/// What a window does not hold on an AMD CPU before Linux 6.12.
const BEFORE_EXIT: &str =
    "interrupts and preemption of the host between the exit itself and kvm_exit";
/// Why halts and exits are not seen that are seen with `--exits all`.
pub(super) const SEEN_WITH_ALL: &str = "seen with --exits all";
/// What is not seen of exits with `--exits memory`.
const OTHER_EXITS: &str = "exits that are not for memory, which are seen with --exits all";
/// Why nothing is seen of exits where the tracepoints are there.
pub const SILENT: &str = "kvm_exit does not fire on this KVM";

/// What the probes of a recording, or of this host, can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// `None` is no backend at all.
    pub backend: Option<Backend>,
    /// What became of its hooks on the kernel's functions; empty without such hooks.
    pub hooks: Vec<HookState>,
    /// Why no exits are seen, if they are not.
    pub exits_absent: Option<String>,
    /// Whether exits that are not for memory are passed over.
    pub sees_memory_exits_alone: bool,
    /// Whether asynchronous page faults are told.
    pub has_apf: bool,
    /// Why which tracepoints are not seen.
    pub absent: Absent,
    /// Whether the kernel tells how long threads wait for a CPU.
    pub has_run_delay: bool,
    /// Whether it tells of an exit some time after it.
    pub is_exit_told_late: bool,
}

impl Sight {
    /// Whether the waits for swapped anonymous memory are seen.
    pub fn sees_swapins(&self) -> bool {
        self.hooks.iter().any(|hook| hook.purpose == Purpose::Swap.name() && hook.missing.is_none())
    }

    /// Why tracepoints are not seen, if so.
    pub fn absent(&self, group: Group) -> Option<&str> {
        self.absent.get(&group).map(String::as_str)
    }

    /// Why a hook is missing, if it is.
    fn missing(&self, purpose: Purpose) -> Option<&str> {
        let hook = self.hooks.iter().find(|hook| hook.purpose == purpose.name());
        hook.and_then(|hook| hook.missing.as_deref())
    }

    /// The same, also where the backend hooks no functions.
    fn unhooked(&self, purpose: Purpose) -> Option<&str> {
        if self.hooks.is_empty() { Some(NO_HOOKS) } else { self.missing(purpose) }
    }

    /// Why pages that reclaim drops without writing them are not seen, if so.
    pub fn drops_absent(&self) -> Option<String> {
        let hook = self.hooks.iter().find(|hook| hook.purpose == Purpose::Drop.name());
        hook.map_or(Some(NO_HOOKS.to_owned()), |hook| hook.missing.clone())
    }

    /// Nothing at all, for that reason.
    pub fn none(reason: &str) -> Self {
        Self {
            backend: None,
            hooks: Vec::new(),
            exits_absent: Some(reason.to_owned()),
            sees_memory_exits_alone: false,
            has_apf: false,
            absent: Group::ALL.map(|group| (group, reason.to_owned())).into(),
            has_run_delay: false,
            is_exit_told_late: false,
        }
    }
}

/// How much of each metric that is.
///
/// `fault.*` is full for what the VM's own threads take; a recording measures
/// whether that holds.
pub fn declared(sight: &Sight) -> Vec<MetricCoverage> {
    let faults = Metric::FAULTS.into_iter().map(|metric| match sight.backend {
        Some(Backend::Perf) => {
            entry(metric.name(), Coverage::Full, &[OUTSIDERS, GET_USER_PAGES, MAPPED_ELSEWHERE])
        }
        Some(Backend::Fentry | Backend::Kprobe) => {
            let unseen = sight.absent(Group::Locks).map_or(LOCK_WAIT_WITHIN_CALLS, |_| LOCK_WAIT);
            entry(metric.name(), Coverage::Full, &[unseen, MAPPED_ELSEWHERE])
        }
        None => entry(metric.name(), Coverage::Absent, &[NO_BACKEND]),
    });
    let share = match (sight.backend, &sight.exits_absent) {
        (None, _) => entry("stall.share", Coverage::Absent, &[NO_BACKEND]),
        (_, None) => entry("stall.share", Coverage::Full, &[]),
        (_, Some(_)) => entry("stall.share", Coverage::Full, &[SHARE_OF_FAULTS]),
    };
    let exits = ["stall.memory", "exit", "idle"].map(|family| of_exits(sight, family));
    let apf = match &sight.exits_absent {
        Some(reason) => entry("apf", Coverage::Absent, &[reason]),
        None if sight.has_apf => entry("apf", Coverage::Full, &[]),
        None if cfg!(target_arch = "aarch64") => entry("apf", Coverage::Absent, &[NO_SUCH]),
        None => entry("apf", Coverage::Absent, &["this kernel's KVM has no such tracepoints"]),
    };
    let (swapin, backing) = (swapin(sight), backing(sight));
    let reclaim = seen_unless("reclaim", sight.absent(Group::Reclaim));
    let runq = match &sight.exits_absent {
        None if !sight.has_run_delay => Some(NO_RUN_DELAY),
        reason => reason.as_deref(),
    };
    let runq = seen_unless("runq", runq);
    let held_back = seen_unless(Metric::MemoryHigh.name(), sight.unhooked(Purpose::High));
    let invalidations = seen_unless(INVALIDATIONS, sight.unhooked(Purpose::Invalidation));
    let state = match sight.absent(Group::Swapouts) {
        None => entry("swap_state", Coverage::Full, &[SHARED_CGROUP]),
        Some(reason) => {
            let why = format!("swap-outs, so no VM can be reported as thrashing: {reason}");
            entry("swap_state", Coverage::Partial, &[&why, SHARED_CGROUP])
        }
    };
    let parts = Part::ALL.map(|part| seen_unless(&part_of_faults(part), part_absent(sight, part)));
    faults
        .chain([backing, share])
        .chain(exits)
        .chain([apf, swapin, reclaim, runq, held_back, invalidations, state])
        .chain(parts)
        .collect()
}

/// A family of metrics that come from exits.
fn of_exits(sight: &Sight, family: &str) -> MetricCoverage {
    let late: &[&str] = if sight.is_exit_told_late { &[BEFORE_EXIT] } else { &[] };
    match (&sight.exits_absent, sight.sees_memory_exits_alone, family) {
        (Some(reason), ..) => entry(family, Coverage::Absent, &[reason]),
        (None, true, "idle") => entry(family, Coverage::Absent, &[SEEN_WITH_ALL]),
        (None, false, "idle") => entry(family, Coverage::Full, &[]),
        (None, true, "exit") => entry(family, Coverage::Partial, &[&[OTHER_EXITS], late].concat()),
        _ => entry(family, Coverage::Full, late),
    }
}

/// Why a part of the faults' time is not seen, if so.
fn part_absent(sight: &Sight, part: Part) -> Option<&str> {
    match part {
        Part::Reclaim => sight.absent(Group::Reclaim),
        Part::Compaction => sight.absent(Group::Compaction),
        Part::Lock => sight.absent(Group::Locks),
        Part::Runq => (!sight.has_run_delay).then_some(NO_RUN_DELAY),
        Part::Io | Part::Sleep => sight.absent(Group::Sleeps),
        Part::Swapin => sight.unhooked(Purpose::Swap),
        Part::Userfault => sight.unhooked(Purpose::Userfault),
        Part::SwapinIo => sight.unhooked(Purpose::Swap).or_else(|| sight.absent(Group::Sleeps)),
    }
}

fn seen_unless(metric: &str, absent: Option<&str>) -> MetricCoverage {
    match absent {
        None => entry(metric, Coverage::Full, &[]),
        Some(reason) => entry(metric, Coverage::Absent, &[reason]),
    }
}

/// What faults took, which functions on their way tell.
fn backing(sight: &Sight) -> MetricCoverage {
    if sight.hooks.is_empty() {
        return entry(BACKING, Coverage::Absent, &[NO_HOOKS]);
    }
    let notes = [
        (Purpose::Swap, "swapped anonymous memory, which counts as anon"),
        (Purpose::SharedSwap, "swapped shared memory, which counts as shmem"),
        (Purpose::Write, "copies of pages of KSM, which count as anon"),
        (Purpose::Numa, "faults of NUMA balancing, which count under their kind of memory"),
        (
            Purpose::Userfault,
            "faults that another process serves, which count under their kind of memory",
        ),
    ];
    let mut notes = missing(sight, &notes);
    let coverage = if notes.is_empty() { Coverage::Full } else { Coverage::Partial };
    notes.push(HUGE_COPIES.to_owned());
    MetricCoverage { metric: BACKING.to_owned(), coverage, not_seen: notes }
}

/// What is not seen for want of a hook, with the reason.
fn missing(sight: &Sight, notes: &[(Purpose, &str)]) -> Vec<String> {
    let why = |purpose: Purpose| sight.missing(purpose);
    notes.iter().filter_map(|(purpose, what)| Some(format!("{what}: {}", why(*purpose)?))).collect()
}

/// Swap-ins need hooks of their own, some of which a kernel may lack.
fn swapin(sight: &Sight) -> MetricCoverage {
    if sight.hooks.is_empty() {
        return entry("swapin", Coverage::Absent, &[NO_HOOKS]);
    }
    let (anonymous, shared) = (sight.missing(Purpose::Swap), sight.missing(Purpose::SharedSwap));
    let coverage = match (anonymous, shared) {
        (None, None) => Coverage::Full,
        (Some(_), Some(_)) => Coverage::Absent,
        _ => Coverage::Partial,
    };
    let notes = [
        (Purpose::Swap, "anonymous memory"),
        (Purpose::SharedSwap, "shared memory"),
        (Purpose::SwapRead, "whether a page was in the swap cache"),
        (Purpose::Zswap, "whether a page came from zswap"),
    ];
    let mut notes = missing(sight, &notes);
    notes.push(OUTSIDE_SWAPINS.to_owned());
    MetricCoverage { metric: "swapin".to_owned(), coverage, not_seen: notes }
}

fn entry(metric: &str, coverage: Coverage, not_seen: &[&str]) -> MetricCoverage {
    let not_seen = not_seen.iter().map(|&text| text.to_owned()).collect();
    MetricCoverage { metric: metric.to_owned(), coverage, not_seen }
}
