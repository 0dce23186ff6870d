//! Brings what the kernel counts together with what the probes see, once a second.

use crate::host::ForHost;
use crate::host::counters::HostCounters;
use crate::host::memory_cgroup::{CgroupCounters, Hierarchy, MemoryCgroup};
use crate::host::swap_state::{SwapStates, least_pages, waited};
use crate::kernel;
use overcommit_ebpf::layout::Metric;
use overcommit_recording::model::interval::VmInterval;
use overcommit_recording::model::swap::SwapSources;
use overcommit_recording::model::swap::SwappedIn;
use overcommit_recording::model::swap::SwappedOut;
use overcommit_recording::model::swap::VmSwap;
use overcommit_recording::model::swap::{HostSwap, StateTimes};
use overcommit_recording::model::swap::{Memory, Rates, SwapState};
use overcommit_recording::model::vm::Backing;
use overcommit_recording::model::vm::Vm;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Time between two looks at the least: memory.stat is dear to read on a large host.
/// A little less than a second, for intervals of one that come early.
const LOOK_NS: u64 = 900_000_000;
/// Looks between two checks that a cgroup is still its VM's own.
const CHECK_EVERY: u32 = 10;

/// Follows the host and its VMs.
pub struct Watch {
    proc: PathBuf,
    sys: PathBuf,
    page_size: u64,
    hierarchy: Option<Hierarchy>,
    /// Whether the probes see swap-ins, and swap-outs by cgroup.
    sees_swapins: bool,
    sees_swapouts: bool,
    last_ns: u64,
    last: Option<HostCounters>,
    looks: u32,
    states: SwapStates,
    now: HostSwap,
    vms: BTreeMap<usize, WatchedVm>,
    /// Why the host's counters could not be read, if so.
    unreadable: Option<String>,
}

#[derive(Default)]
struct WatchedVm {
    /// The one that is its alone.
    cgroup: Option<MemoryCgroup>,
    is_checked: bool,
    last: Option<CgroupCounters>,
    since: Since,
    states: SwapStates,
    sources: SwapSources,
    now: VmSwap,
    /// Whether pages came back at the look of this interval, if there was one.
    reads: bool,
}

/// What the probes saw since the last look.
#[derive(Default)]
struct Since {
    swapins: u64,
    majors: u64,
    reclaims: u64,
    swapped_out: u64,
    /// Waited, and vCPUs × time, in nanoseconds.
    stall: Option<(u64, u64)>,
}

impl Watch {
    /// Begins to follow the host that `proc` and `sys` are of.
    pub fn new(
        proc: impl Into<PathBuf>,
        sys: impl Into<PathBuf>,
        sees_swapins: bool,
        sees_swapouts: bool,
    ) -> Self {
        let proc = proc.into();
        Self {
            hierarchy: Hierarchy::find(&proc),
            proc,
            sys: sys.into(),
            page_size: kernel::page_size(),
            sees_swapins,
            sees_swapouts,
            last_ns: 0,
            last: None,
            looks: 0,
            states: SwapStates::default(),
            now: HostSwap::default(),
            vms: BTreeMap::new(),
            unreadable: None,
        }
    }

    /// Takes what the probes saw in an interval that ended at `now_ns`
    /// (`CLOCK_MONOTONIC`), and looks at the host if it is time.
    pub fn advance(&mut self, vms: &[Vm], drained: &[(VmInterval, ForHost)], now_ns: u64) {
        self.vms.retain(|index, _| drained.iter().any(|(vm, _)| vm.vm == *index));
        for (vm, for_host) in drained {
            self.vms.entry(vm.vm).or_default().since.add(vm, *for_host);
        }
        let length_ns = now_ns.saturating_sub(self.last_ns);
        if self.last_ns != 0 && length_ns < LOOK_NS {
            self.now = HostSwap { state: self.now.state, ..HostSwap::default() };
            for vm in self.vms.values_mut() {
                (vm.now.rates, vm.reads) = (None, false);
            }
            return;
        }
        let is_first = std::mem::replace(&mut self.last_ns, now_ns) == 0;
        let counters = HostCounters::read(&self.proc, &self.sys);
        self.unreadable = counters.as_ref().err().map(|error| format!("{error:#}"));
        let counters = counters.ok();
        let available = counters.as_ref().and_then(|now| share_available(now.memory));
        let shared = Shared { length_ns, available, is_first, page_size: self.page_size };
        for (index, vm) in &mut self.vms {
            if self.looks.is_multiple_of(CHECK_EVERY) || !vm.is_checked {
                vm.check(&self.proc, self.hierarchy.as_ref(), &vms[*index]);
            }
            vm.look(&vms[*index], self.sees_swapins, self.sees_swapouts, shared);
        }
        self.looks += 1;
        let memory = counters.as_ref().map(|now| now.memory);
        let rates = match (counters.as_ref(), self.last.as_ref()) {
            _ if is_first => None,
            (Some(now), Some(before)) => Some(self.host_rates(now, before, shared)),
            _ => Some(Rates { length_ns, ..Rates::default() }),
        };
        let least = least_pages(memory.map_or(0, |memory| memory.total), self.page_size);
        let swap_state =
            rates.map_or(SwapState::Unknown, |rates| self.states.advance(rates, least));
        let allocated = counters.as_ref().zip(self.last.as_ref()).filter(|_| !is_first);
        let allocated =
            allocated.map(|(now, before)| now.allocated.saturating_sub(before.allocated));
        let allocated = allocated.map(|pages| shared.a_second(pages));
        let least_available = memory.and_then(|memory| memory.available);
        self.now = HostSwap {
            state: swap_state,
            times: StateTimes::default(),
            rates,
            memory,
            least_available,
            allocated,
        };
        self.last = counters;
    }

    fn host_rates(&self, now: &HostCounters, before: &HostCounters, shared: Shared) -> Rates {
        // Either falls when a CPU goes offline.
        let waited = now.io_wait.0.saturating_sub(before.io_wait.0);
        let all = now.io_wait.1.saturating_sub(before.io_wait.1);
        // The worst VM: PSI's `some` knows no majority either.
        let vms = self.vms.values().filter_map(|vm| vm.now.rates?.stall);
        let stalled = stalled(now.stalled_us, before.stalled_us, shared.length_ns);
        Rates {
            length_ns: shared.length_ns,
            swapped_in: Some(shared.a_second(now.swapped_in.saturating_sub(before.swapped_in))),
            swapped_out: Some(shared.a_second(now.swapped_out.saturating_sub(before.swapped_out))),
            stall: vms.chain(stalled).reduce(f64::max),
            io_wait: (all > 0).then(|| waited as f64 / all as f64),
            available: shared.available,
        }
    }

    /// The host as of the last interval.
    pub fn host(&self) -> HostSwap {
        self.now
    }

    /// A VM as of the last interval.
    pub fn vm(&self, vm: usize) -> VmSwap {
        self.vms.get(&vm).map(|vm| vm.now).unwrap_or_default()
    }

    /// Whether so many of its pages came back in the last interval that it counts.
    pub fn reads(&self, vm: usize) -> bool {
        self.vms.get(&vm).is_some_and(|vm| vm.reads)
    }

    /// Where the rates of a VM come from.
    pub fn sources(&self, vm: usize) -> SwapSources {
        self.vms.get(&vm).map(|vm| vm.sources).unwrap_or_default()
    }

    /// The memory cgroup that is a VM's own.
    pub fn cgroup(&self, vm: usize) -> Option<&MemoryCgroup> {
        self.vms.get(&vm)?.cgroup.as_ref()
    }

    /// Why the host's counters could not be read, if so.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }
}

/// What is the same for every VM at a look.
#[derive(Clone, Copy)]
struct Shared {
    length_ns: u64,
    available: Option<f64>,
    is_first: bool,
    page_size: u64,
}

impl Shared {
    fn a_second(self, count: u64) -> f64 {
        count as f64 * 1e9 / self.length_ns as f64
    }
}

impl Since {
    fn add(&mut self, vm: &VmInterval, for_host: ForHost) {
        let count = |metric| vm.latencies(metric).map_or(0, |latencies| latencies.count());
        self.swapins += count(Metric::Swapin);
        self.majors += count(Metric::FaultMajor);
        self.reclaims += count(Metric::Reclaim);
        self.swapped_out += for_host.swapped_out;
        if let Some(stall) = vm.stall {
            let (waited, vcpus) = self.stall.get_or_insert_default();
            *waited += stall.memory_ns();
            *vcpus += stall.vcpu_ns;
        }
    }

    fn stall(&self) -> Option<f64> {
        let (waited, vcpus) = self.stall.filter(|(_, vcpus)| *vcpus > 0)?;
        Some(waited as f64 / vcpus as f64)
    }
}

impl WatchedVm {
    /// Looks for the cgroup that is the VM's alone.
    fn check(&mut self, proc: &std::path::Path, hierarchy: Option<&Hierarchy>, of: &Vm) {
        let own = || {
            let found = hierarchy?.memory_cgroup(of.cgroup.as_deref()?)?;
            let counters = found.read().ok()?;
            found.is_of(proc, of.id.pid, &counters).then_some(found)
        };
        let own = own();
        self.is_checked = true;
        self.now.limit = own.as_ref().and_then(|own| own.limit(proc, of.id.pid));
        if own != self.cgroup {
            (self.cgroup, self.last) = (own, None);
        }
    }

    fn look(&mut self, vm: &Vm, sees_swapins: bool, sees_swapouts: bool, shared: Shared) {
        let since = std::mem::take(&mut self.since);
        let now = self.cgroup.as_ref().and_then(|cgroup| cgroup.read().ok());
        let before = std::mem::replace(&mut self.last, now.clone());
        let grown = now.as_ref().zip(before.as_ref());
        let of = |field: fn(&CgroupCounters) -> Option<u64>| {
            let (now, before) = grown?;
            Some(field(now)?.saturating_sub(field(before)?))
        };
        let majors = of(|counters| counters.major_faults);
        let (swapped_in, swapped_in_by) = if vm.backing() == Some(Backing::File)
            && let Some((majors, files)) = majors.zip(of(|counters| counters.refaulted_files))
        {
            (majors + files, SwappedIn::CgroupFiles)
        } else if let Some(pages) = of(|counters| counters.swapped_in) {
            (pages, SwappedIn::Cgroup)
        } else if let Some(majors) = majors {
            (majors, SwappedIn::CgroupMajors)
        } else if sees_swapins {
            (since.swapins, SwappedIn::Swapins)
        } else {
            (since.majors, SwappedIn::Majors)
        };
        let swapped_out = match (of(|counters| counters.swapped_out), grown) {
            (Some(pages), _) => Some((pages, SwappedOut::Cgroup)),
            (None, Some(_)) if sees_swapouts => Some((since.swapped_out, SwappedOut::Tracepoint)),
            (None, _) => None,
        };
        self.sources = SwapSources {
            swapped_in: Some(swapped_in_by),
            swapped_out: swapped_out.map(|(_, by)| by),
        };
        if shared.is_first {
            return;
        }
        let by_pressure = grown
            .and_then(|(now, before)| stalled(now.stalled_us, before.stalled_us, shared.length_ns));
        let swaps = swapped_in > 0 || swapped_out.is_some_and(|(pages, _)| pages > 0);
        // Of a VM whose memory is a file, what comes back is read from that.
        let reads = vm.backing() == Some(Backing::File) && since.majors > 0;
        let is_short = swaps || reads || since.reclaims > 0;
        let rates = Rates {
            length_ns: shared.length_ns,
            swapped_in: Some(shared.a_second(swapped_in)),
            swapped_out: swapped_out.map(|(pages, _)| shared.a_second(pages)),
            stall: waited(by_pressure, since.stall(), is_short),
            io_wait: None,
            available: shared.available,
        };
        let least = least_pages(vm.memory_bytes.unwrap_or(0), shared.page_size);
        self.reads = rates.swapped_in.is_some_and(|pages| pages >= least);
        self.now.state = self.states.advance(rates, least);
        self.now.rates = Some(rates);
    }
}

fn stalled(now_us: Option<u64>, before_us: Option<u64>, length_ns: u64) -> Option<f64> {
    let (now, before) = now_us.zip(before_us)?;
    Some((now.saturating_sub(before) as f64 * 1e3 / length_ns as f64).min(1.0))
}

fn share_available(memory: Memory) -> Option<f64> {
    memory.available.map(|available| available as f64 / memory.total as f64)
}
