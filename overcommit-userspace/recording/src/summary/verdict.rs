//! What became of a VM, why, and what to do: decided here once, for every view.

use crate::model::exit::{Exit, NO_PAGE};
use crate::model::figures::HostFigures;
use crate::model::interval::StallSource;
use crate::model::run::EndedBy;
use crate::model::swap::SwapState;
use crate::summary::SummaryVm;
use crate::summary::advice::words;
use crate::summary::cause::{Cause, cause, held_back, starved};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Shares of its vCPUs' time from which a VM is slowed: by memory, and by want of a CPU.
pub const STALL: f64 = 0.01;
/// See [`STALL`].
pub const CPU: f64 = 0.05;
/// Time that a fault which was not seen may have taken, in nanoseconds.
const UNSEEN_NS: f64 = 1e6;
/// Time of thrashing from which a VM has thrashed, however little it was of a long recording, in
/// seconds.
const THRASHED_S: f64 = 10.0;
/// How a VM fared; the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fared {
    /// It lost next to nothing.
    Ok,
    /// What it lost was not seen.
    Unseen,
    /// Its guest has next to nothing left of what its balloon left it: it swaps inside, or is about
    /// to, which the host does not see.
    Starved,
    /// It waited for memory or for a CPU.
    Slowed,
    /// It waited for pages that were pushed out again and again.
    Thrashed,
    /// Its process failed.
    Crashed,
    /// The kernel killed it for want of memory.
    Killed,
}

impl Fared {
    /// As views have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unseen => "not seen",
            Self::Starved => "STARVED",
            Self::Slowed => "SLOWED",
            Self::Thrashed => "THRASHED",
            Self::Crashed => "CRASHED",
            Self::Killed => "KILLED",
        }
    }
}

/// See [`verdict`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VmVerdict {
    /// How it fared.
    pub fared: Fared,
    /// Why; `null` of one that is ok.
    pub cause: Option<Cause>,
    /// Who took its pages, where somebody else did.
    pub by: Option<String>,
    /// The cause in words.
    pub why: Option<String>,
    /// What to do about it.
    pub advice: Option<String>,
}

impl VmVerdict {
    /// Of a VM that lost next to nothing.
    pub const OK: Self = Self { fared: Fared::Ok, cause: None, by: None, why: None, advice: None };
}

/// The order of VMs in every list.
pub fn worst_first(a: &SummaryVm, b: &SummaryVm) -> Ordering {
    b.verdict.fared.cmp(&a.verdict.fared).then(b.loss().total_cmp(&a.loss()))
}

/// What became of a VM.
pub fn verdict(vm: &SummaryVm, host: &HostFigures) -> VmVerdict {
    let fared = fared(vm);
    let (cause, by) = match (fared, vm.ended_by) {
        (Fared::Ok, _) => return VmVerdict::OK,
        (Fared::Unseen, _) => return VmVerdict { fared, ..VmVerdict::OK },
        (Fared::Killed, Some(EndedBy::OomHost)) => (Cause::HostShort, None),
        (Fared::Killed, Some(EndedBy::OomSharedCgroup)) => (Cause::SharedLimit, None),
        (Fared::Killed, _) => (Cause::OwnLimit, None),
        (Fared::Crashed, _) if vm.exit == Some(NO_PAGE) => (Cause::NoPage, None),
        (Fared::Crashed, _) => (Cause::Crash, None),
        (Fared::Starved, _) => (Cause::Balloon, None),
        (Fared::Slowed, _) if vm.cpu_share() >= CPU && vm.cpu_share() > vm.stall_share() => {
            (Cause::Cpu, None)
        }
        _ => cause(vm, host),
    };
    let (mut why, mut advice) = words(&cause, by.as_deref(), vm, host);
    let other = other_cause(&cause, vm, host).filter(|_| fared < Fared::Crashed);
    if let Some(other) = other {
        let (also, too) = words(&other.0, other.1.as_deref(), vm, host);
        (why, advice) = (format!("{why}; also {also}"), format!("{advice}; {too}"));
    }
    VmVerdict { fared, cause: Some(cause), by, why: Some(why), advice: Some(advice) }
}

/// The other of memory and CPUs, where it takes its part.
fn other_cause(
    first: &Cause,
    vm: &SummaryVm,
    host: &HostFigures,
) -> Option<(Cause, Option<String>)> {
    if *first == Cause::Cpu {
        let memory = (vm.stall_share() >= STALL).then(|| cause(vm, host));
        return memory.filter(|(cause, _)| *cause != Cause::Unknown);
    }
    (vm.cpu_share() >= CPU).then_some((Cause::Cpu, None))
}

fn fared(vm: &SummaryVm) -> Fared {
    let is_slowed = vm.stall_share() >= STALL || vm.cpu_share() >= CPU || held_back(vm) >= STALL;
    match vm.ended_by {
        Some(EndedBy::OomCgroup | EndedBy::OomSharedCgroup | EndedBy::OomHost) => Fared::Killed,
        _ if vm.exit.is_some_and(Exit::is_failure) => Fared::Crashed,
        _ if vm.swap.seconds_in(SwapState::Thrashing)
            >= if is_slowed { 0.1 } else { THRASHED_S } =>
        {
            Fared::Thrashed
        }
        _ if is_slowed => Fared::Slowed,
        _ if starved(&vm.memory).is_some() => Fared::Starved,
        _ if vm.stall.is_none() || misses_faults(vm) => Fared::Unseen,
        _ => Fared::Ok,
    }
}

/// Whether so many of its faults were not seen that they could be what slows it.
fn misses_faults(vm: &SummaryVm) -> bool {
    let Some(stall) = vm.stall.as_ref().filter(|stall| stall.source == StallSource::Faults.name())
    else {
        return false;
    };
    let unseen = vm.faults_kernel.saturating_sub(vm.faults_counted);
    unseen as f64 * UNSEEN_NS >= STALL * stall.vcpu_ns as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::balloon::{Balloon, GuestMemory};
    use crate::model::coverage::Coverage;
    use crate::model::evictions::{Aggressor, AggressorClass, Eviction, EvictionCounts};
    use crate::model::interval::{Interval, MetricInterval, Stall, VmInterval};
    use crate::model::latencies::Latencies;
    use crate::model::memory::MemoryUse;
    use crate::model::run::{EvictionSight, Run, RunVm};
    use crate::model::state::StateTimes;
    use crate::model::swap::VmSwap;
    use crate::summary::{Marks, Summing};

    use overcommit_ebpf::layout::{Metric, Part};

    const MIB: u64 = 1 << 20;

    /// A VM that lost these shares of a second, in thousandths.
    fn vm(stall: u64, cpu: u64) -> VmInterval {
        let (source, vcpu_ns) = (StallSource::Faults, 1_000);
        let stall = Some(Stall { waited_ns: stall, vcpu_ns, source, ..Stall::default() });
        let times = StateTimes::of(SwapState::Healthy, 1_000);
        let swap = VmSwap { state: SwapState::Healthy, times, ..VmSwap::default() };
        VmInterval { stall, cpu_wait_ns: Some(cpu), swap, ..VmInterval::default() }
    }

    /// A VM that holds 128 MiB and has 79 on swap.
    fn squeezed(limit: Option<u64>) -> VmInterval {
        let mut squeezed = vm(800, 10);
        let (resident, swapped) = (128 * MIB, 79 * MIB);
        squeezed.memory = Some(MemoryUse { resident, swapped, ..MemoryUse::default() });
        squeezed.swap.state = SwapState::Thrashing;
        squeezed.swap.times = StateTimes::of(SwapState::Thrashing, 1_000_000_000);
        squeezed.swap.limit = limit.map(|limit| limit * MIB);
        squeezed
    }

    fn evicted(class: AggressorClass, name: &str) -> Vec<Eviction> {
        let aggressor = Aggressor { class, id: name.to_owned(), name: name.to_owned() };
        let counts = EvictionCounts { written_pages: 1_000, ..EvictionCounts::default() };
        vec![Eviction { victim: Some(0), aggressor, counts }]
    }

    fn metric(name: Metric, count: u64) -> MetricInterval {
        let mut latencies = Latencies::empty();
        latencies.record(100, count);
        latencies.sum_ns = 100 * count;
        MetricInterval { vm: 0, name: name.into(), coverage: Coverage::Full, latencies }
    }

    fn of(vm: VmInterval, evictions: Vec<Eviction>, available: u64) -> VmVerdict {
        let named = RunVm { vm_id: "1-1".to_owned(), name: "web".to_owned(), ..RunVm::default() };
        let mut run = Run { vms: vec![named], page_size: 4096, ..Run::default() };
        run.recorded.intervals = 1;
        run.evictions = Some(EvictionSight::default());
        let mut summing = Summing::new(&run);
        let place = crate::model::interval::Place { length_ns: 1_000, ..Default::default() };
        summing.add(&Interval { place, vms: vec![vm], evictions, ..Interval::default() });
        let host = HostFigures {
            physical_bytes: Some(1_000 * MIB),
            least_available_bytes: Some(available * MIB),
            ..HostFigures::default()
        };
        verdict(&summing.summary(&run, Marks::default(), Vec::new()).vms[0], &host)
    }

    fn cause_of(vm: VmInterval, evictions: Vec<Eviction>, available: u64) -> Cause {
        of(vm, evictions, available).cause.unwrap()
    }

    #[test]
    fn who_lost_next_to_nothing_is_ok() {
        let calm = of(vm(9, 49), Vec::new(), 900);
        assert_eq!((calm.fared, calm.cause), (Fared::Ok, None));
        assert_eq!(of(vm(10, 0), Vec::new(), 900).fared, Fared::Slowed);
        assert_eq!(of(squeezed(None), Vec::new(), 900).fared, Fared::Thrashed);
    }

    #[test]
    fn what_was_not_seen_is_not_ok() {
        let unknown = VmInterval { stall: None, cpu_wait_ns: None, ..vm(0, 0) };
        assert_eq!(of(unknown, Vec::new(), 900).fared, Fared::Unseen);
        let mut partial = vm(0, 0);
        partial.stall = partial.stall.map(|stall| Stall { vcpu_ns: 1_000_000_000, ..stall });
        (partial.seen.kernel, partial.seen.counted) = (29, 20);
        assert_eq!(
            of(partial.clone(), Vec::new(), 900).fared,
            Fared::Ok,
            "9 ms of a second at most"
        );
        partial.seen.kernel = 30;
        assert_eq!(of(partial, Vec::new(), 900).fared, Fared::Unseen);
    }

    #[test]
    fn a_while_of_thrashing_counts_in_a_long_recording() {
        let mut long = vm(7, 0);
        let healthy = StateTimes::of(SwapState::Healthy, 9);
        let times = |ns| healthy.plus(StateTimes::of(SwapState::Thrashing, ns));
        long.swap.times = times(9_000_000_000);
        assert_eq!(of(long.clone(), Vec::new(), 900).fared, Fared::Ok);
        long.swap.times = times(10_000_000_000);
        assert_eq!(of(long, Vec::new(), 900).fared, Fared::Thrashed);
    }

    #[test]
    fn its_own_limit_is_not_the_hosts_shortage() {
        let itself = || evicted(AggressorClass::Vm, "1-1");
        let limited = of(squeezed(Some(128)), itself(), 900);
        assert_eq!(limited.cause, Some(Cause::OwnLimit));
        let why = "its cgroup's own limit of 128.0 MiB, not the host (never less than \
                   900.0 MiB available)";
        assert_eq!(limited.why.unwrap(), why);
        let advice = "raise its limit (memory.max; hard_limit in libvirt) to 208.0 MiB or more, or give the guest \
             less memory";
        assert_eq!(limited.advice.unwrap(), advice);
        assert_eq!(cause_of(squeezed(None), itself(), 20), Cause::HostShort);
        assert_eq!(cause_of(squeezed(Some(1_000)), itself(), 20), Cause::HostShort);
        assert_eq!(cause_of(squeezed(Some(1_000)), itself(), 900), Cause::OwnLimit);
        assert_eq!(cause_of(squeezed(None), itself(), 900), Cause::SharedLimit);
        // Where nobody sees evictions.
        assert_eq!(cause_of(squeezed(Some(128)), Vec::new(), 900), Cause::OwnLimit);
        assert_eq!(cause_of(squeezed(None), Vec::new(), 20), Cause::HostShort);
        assert_eq!(cause_of(squeezed(None), Vec::new(), 900), Cause::Unknown);
    }

    #[test]
    fn who_took_its_pages_is_named() {
        let greedy = of(squeezed(Some(128)), evicted(AggressorClass::Vm, "greedy"), 900);
        assert_eq!((greedy.cause, greedy.by.as_deref()), (Some(Cause::OtherVm), Some("greedy")));
        let process = evicted(AggressorClass::Process, "backup");
        assert_eq!(cause_of(squeezed(None), process, 900), Cause::OtherProcess);
        let kswapd = evicted(AggressorClass::Kswapd, "kswapd0");
        assert_eq!(cause_of(squeezed(None), kswapd, 20), Cause::HostShort);
    }

    #[test]
    fn what_is_no_shortage_of_memory_is_said() {
        let starved = of(vm(9, 60), Vec::new(), 900);
        assert_eq!(
            (starved.cause, starved.why.as_deref()),
            (Some(Cause::Cpu), Some("too few CPUs, or a CPU quota"))
        );
        // Both, the larger first; of one that thrashes, what it thrashes for.
        let mut both = squeezed(Some(128));
        (both.cpu_wait_ns, both.swap.times) = (Some(900), StateTimes::default());
        both.swap.state = SwapState::Pressure;
        let why = of(both, evicted(AggressorClass::Vm, "1-1"), 900).why.unwrap();
        assert!(why.starts_with("too few CPUs, or a CPU quota; also its cgroup's own limit"));
        assert_eq!(of(vm(30, 60), Vec::new(), 900).why.unwrap(), "too few CPUs, or a CPU quota");
        let mut thrashed = squeezed(Some(128));
        thrashed.cpu_wait_ns = Some(900);
        let why = of(thrashed, evicted(AggressorClass::Vm, "1-1"), 900).why.unwrap();
        assert!(
            why.starts_with("its cgroup's own limit")
                && why.ends_with("also too few CPUs, or a CPU quota")
        );
        assert_eq!(cause_of(vm(600, 60), Vec::new(), 900), Cause::Unknown);
        let with = |metrics: Vec<MetricInterval>, parts: &[(Part, u64)]| {
            let mut vm = vm(400, 0);
            vm.metrics = metrics;
            vm.fault_time.total_ns = 500;
            parts.iter().for_each(|(part, ns)| vm.fault_time.parts_ns[*part as usize] = Some(*ns));
            cause_of(vm, Vec::new(), 900)
        };
        assert_eq!(with(vec![metric(Metric::FaultMinor, 5)], &[]), Cause::FirstTouch);
        let mixed = vec![metric(Metric::FaultMinor, 5), metric(Metric::FaultMajor, 2)];
        assert_eq!(with(mixed, &[]), Cause::FirstTouch);
        assert_eq!(with(vec![metric(Metric::MemoryHigh, 3)], &[]), Cause::MemoryHigh);
        assert_eq!(with(vec![], &[(Part::Userfault, 300)]), Cause::Userfault);
        // Half of what was no wait for a CPU.
        assert_eq!(with(vec![], &[(Part::Lock, 150), (Part::Runq, 200)]), Cause::Lock);
        let mut disk = vm(400, 0);
        disk.metrics = vec![metric(Metric::FaultMajor, 10)];
        disk.file_faults = Some(crate::model::interval::FileFaults { cached: 90, read: 10 });
        assert_eq!(cause_of(disk, Vec::new(), 900), Cause::Disk);
    }
    /// What a guest of 4 GiB says whose balloon took half of it, now or long ago.
    fn ballooned(available: u64, is_stale: bool) -> VmInterval {
        let mut ballooned = vm(1, 1);
        let guest = GuestMemory { available: Some(available * MIB), ..GuestMemory::default() };
        let (configured, ballooned_bytes) = (Some(4_096 * MIB), 2_048 * MIB);
        let balloon =
            Balloon { ballooned: ballooned_bytes, guest: Some(guest), ..Balloon::default() };
        (ballooned.configured, ballooned.balloon) = (configured, Some(balloon));
        ballooned.guest_is_stale = Some(is_stale);
        ballooned
    }

    #[test]
    fn a_guest_without_memory_is_not_well_though_the_host_sees_nothing() {
        let starved = of(ballooned(80, false), Vec::new(), 900);
        assert_eq!((starved.fared, starved.cause), (Fared::Starved, Some(Cause::Balloon)));
        let why = "its balloon took 2.0 GiB of its 4.0 GiB; the guest has 80.0 MiB available";
        assert_eq!(starved.why.as_deref(), Some(why));
        assert!(starved.advice.unwrap().contains("such as 3.0 GiB in all"));
        assert_eq!(of(ballooned(80, true), Vec::new(), 900).fared, Fared::Ok, "that was long ago");
        assert_eq!(of(ballooned(800, false), Vec::new(), 900).fared, Fared::Ok);
    }

    #[test]
    fn who_took_pages_is_named_with_how_many() {
        let taken = of(squeezed(None), evicted(AggressorClass::Vm, "batch"), 900);
        let why = "the VM batch took its pages (3.9 MiB, 100.0 % of what was taken)";
        assert_eq!(taken.why.as_deref(), Some(why));
        assert!(taken.advice.unwrap().contains("memory.low of 208.0 MiB"));
    }

    #[test]
    fn a_vm_whose_process_failed_has_crashed() {
        let fared = |exit| {
            let mut run = Run { vms: vec![RunVm::default()], ..Run::default() };
            (run.vms[0].exit, run.vms[0].ended_us) = (Some(exit), Some(1));
            let mut summing = Summing::new(&run);
            let place = crate::model::interval::Place { length_ns: 1_000, ..Default::default() };
            let vms = vec![vm(900, 0)];
            summing.add(&Interval { place, vms, ..Interval::default() });
            let summary = summing.summary(&run, Marks::default(), Vec::new());
            (summary.vms[0].verdict.fared, summary.vms[0].verdict.cause.clone())
        };
        assert_eq!(fared(Exit::Signal(11)), (Fared::Crashed, Some(Cause::Crash)));
        assert_eq!(fared(NO_PAGE), (Fared::Crashed, Some(Cause::NoPage)));
        assert_eq!(fared(Exit::Signal(15)).0, Fared::Slowed);
    }
}
