//! Brings what the kernel counts together with what the probes see, once a second.

use crate::host::ForHost;
use crate::host::counters::HostCounters;
use crate::host::memory_cgroup::{Hierarchy, MemoryCgroup};
use crate::host::swap_state::{SwapStates, is_tight, least_pages};
use crate::host::vm_processes::VmProcesses;
use crate::host::watched_vm::{Shared, WatchedVm, stalled};
use crate::kernel;
use overcommit_recording::model::interval::VmInterval;
use overcommit_recording::model::memory::HostPressure;
use overcommit_recording::model::swap::{HostSwap, Rates, SwapSources, SwapState, VmSwap};
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
    pressure: HostPressure,
    vms: BTreeMap<usize, WatchedVm>,
    /// Why the host's counters could not be read, if so.
    unreadable: Option<String>,
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
            pressure: HostPressure::default(),
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
            self.pressure = HostPressure::default();
            for vm in self.vms.values_mut() {
                (vm.now.rates, vm.reads) = (None, false);
            }
            return;
        }
        let is_first = std::mem::replace(&mut self.last_ns, now_ns) == 0;
        let counters = HostCounters::read(&self.proc, &self.sys);
        self.unreadable = counters.as_ref().err().map(|error| format!("{error:#}"));
        let counters = counters.ok();
        let available = counters.as_ref().and_then(share_available);
        let shared = Shared { length_ns, available, is_first, page_size: self.page_size };
        let processes = VmProcesses::new(&self.proc);
        for (index, vm) in &mut self.vms {
            if self.looks.is_multiple_of(CHECK_EVERY) || !vm.is_checked {
                vm.check(&processes, self.hierarchy.as_ref(), &vms[*index]);
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
        let both = counters.as_ref().zip(self.last.as_ref());
        let allocated = both.filter(|_| !is_first);
        let allocated =
            allocated.map(|(now, before)| now.allocated.saturating_sub(before.allocated));
        let allocated = allocated.map(|pages| shared.a_second(pages));
        let pressure = |(now, before)| pressure(now, before, length_ns);
        self.pressure = both.map(pressure).unwrap_or_default();
        let reclaims = self.pressure.reclaimed_ns != Some(0);
        let least = least_pages(memory.map_or(0, |memory| memory.total), self.page_size);
        let swap_state = rates.map_or(SwapState::Unknown, |rates| {
            self.states.advance(self.without_limits(rates, reclaims), least)
        });
        let least_available = counters.as_ref().and_then(HostCounters::available);
        self.now = HostSwap {
            state: swap_state,
            times: Default::default(),
            rates,
            memory,
            least_available,
            allocated,
        };
        self.last = counters;
    }

    fn host_rates(&self, now: &HostCounters, before: &HostCounters, shared: Shared) -> Rates {
        // The worst VM: PSI's `some` knows no majority either.
        let vms = self.vms.values().filter_map(|vm| vm.now.rates?.stall);
        let stalled = stalled(now.stalled_us, before.stalled_us, shared.length_ns);
        Rates {
            length_ns: shared.length_ns,
            swapped_in: Some(shared.a_second(now.swapped_in.saturating_sub(before.swapped_in))),
            swapped_out: Some(shared.a_second(now.swapped_out.saturating_sub(before.swapped_out))),
            stall: vms.chain(stalled).reduce(f64::max),
            io_wait: share(now.io_wait, before.io_wait),
            available: shared.available,
        }
    }

    /// What of the host's swapping makes its state. A VM that is at a limit of its own swaps
    /// however much the host has: as long as that is the case and the host is not short itself,
    /// what counts is the swapping of the other VMs.
    fn without_limits(&self, host: Rates, reclaims: bool) -> Rates {
        let is_short = reclaims && is_tight(&host) != Some(false);
        if is_short || !self.vms.values().any(WatchedVm::is_at_limit) {
            return host;
        }
        let others = || {
            let others = self.vms.values().filter(|vm| !vm.is_at_limit());
            others.filter_map(|vm| vm.now.rates)
        };
        Rates {
            swapped_in: others().map(|rates| rates.swapped_in).sum(),
            swapped_out: others().map(|rates| rates.swapped_out).sum(),
            stall: others().filter_map(|rates| rates.stall).reduce(f64::max).or(Some(0.0)),
            ..host
        }
    }

    /// The host as of the last interval.
    pub fn host(&self) -> HostSwap {
        self.now
    }

    /// What the kernel says of it.
    pub fn pressure(&self) -> HostPressure {
        self.pressure
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
        self.vms.get(&vm)?.cgroup()
    }

    /// The outermost memory cgroup that is a VM's own.
    pub fn outermost(&self, vm: usize) -> Option<&MemoryCgroup> {
        self.vms.get(&vm)?.outermost()
    }

    /// Why the host's counters could not be read, if so.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }
}

fn share_available(now: &HostCounters) -> Option<f64> {
    now.available().map(|available| available as f64 / now.memory.total as f64)
}

/// What part of all CPU time was waited for I/O, by two sums each; either falls when a CPU goes
/// offline.
fn share(now: (u64, u64), before: (u64, u64)) -> Option<f64> {
    let (waited, all) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
    (all > 0).then(|| waited as f64 / all as f64)
}

fn pressure(now: &HostCounters, before: &HostCounters, length_ns: u64) -> HostPressure {
    let more = |of: fn(&HostCounters) -> Option<u64>| Some(of(now)?.saturating_sub(of(before)?));
    HostPressure {
        some_ns: more(|counters| counters.stalled_us).map(|us| us * 1_000),
        full_ns: more(|counters| counters.fully_stalled_us).map(|us| us * 1_000),
        oom_kills: more(|counters| counters.oom_kills),
        huge_mappings_split: more(|counters| counters.huge_mappings_split),
        reclaimed_ns: Some(if now.reclaims > before.reclaims { length_ns } else { 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::watched_vm::LIMIT_NS;

    const SECOND_NS: u64 = 1_000_000_000;

    fn rates(swapped: f64, stall: f64) -> Rates {
        Rates {
            length_ns: SECOND_NS,
            swapped_in: Some(swapped),
            swapped_out: Some(swapped),
            stall: Some(stall),
            io_wait: Some(0.0),
            available: Some(0.8),
        }
    }

    fn set(watch: &mut Watch, index: usize, since_limit_ns: Option<u64>, rates: Rates) {
        let vm = watch.vms.entry(index).or_default();
        (vm.since_limit_ns, vm.now.rates) = (since_limit_ns, Some(rates));
    }

    #[test]
    fn the_host_reclaims_where_its_counters_grow() {
        let counters =
            |reclaims, oom_kills| HostCounters { reclaims, oom_kills, ..HostCounters::default() };
        let reclaimed = |before, now| pressure(&now, &before, SECOND_NS).reclaimed_ns;
        assert_eq!(reclaimed(counters(7, None), counters(8, None)), Some(SECOND_NS));
        assert_eq!(reclaimed(counters(8, None), counters(8, None)), Some(0));
        let kills = pressure(&counters(0, Some(3)), &counters(0, Some(1)), SECOND_NS).oom_kills;
        assert_eq!(kills, Some(2));
    }

    #[test]
    fn a_vm_at_its_own_limit_is_not_the_hosts_shortage() {
        let mut watch = Watch::new("/nowhere", "/nowhere", true, true);
        let host = rates(5_000.0, 0.7);
        set(&mut watch, 0, None, rates(20.0, 0.01));
        assert_eq!(watch.without_limits(host, false), host, "nobody has a limit");
        set(&mut watch, 1, Some(0), rates(4_900.0, 0.7));
        assert_eq!(watch.without_limits(host, false), rates(20.0, 0.01));
        // Files are dropped all the time where they fill what is free.
        assert_eq!(watch.without_limits(host, true), rates(20.0, 0.01));
        let tight = Rates { available: Some(0.05), ..host };
        assert_eq!(watch.without_limits(tight, true), tight, "the host is short as well");
        let unknown = Rates { available: None, ..host };
        assert_eq!(watch.without_limits(unknown, true), unknown);
        watch.vms.remove(&0);
        assert_eq!(watch.without_limits(host, false), rates(0.0, 0.0));
        set(&mut watch, 1, Some(LIMIT_NS), rates(4_900.0, 0.7));
        assert_eq!(watch.without_limits(host, false), host, "that was long ago");
    }

    #[test]
    fn a_cpu_that_goes_offline_takes_its_sums_with_it() {
        assert_eq!(share((30, 200), (20, 100)), Some(0.1));
        assert_eq!(share((10, 200), (20, 100)), Some(0.0));
        assert_eq!(share((10, 50), (20, 100)), None);
    }
}
