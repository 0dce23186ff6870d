//! One VM, as the kernel counts it and the probes see it, once a second.

use crate::host::ForHost;
use crate::host::memory_cgroup::{CgroupCounters, Hierarchy, Limit, MemoryCgroup};
use crate::host::swap_state::{SwapStates, least_pages, waited};
use crate::host::vm_processes::VmProcesses;
use overcommit_ebpf::layout::Metric;
use overcommit_recording::model::interval::VmInterval;
use overcommit_recording::model::swap::{Rates, SwapSources, SwappedIn, SwappedOut, VmSwap};
use overcommit_recording::model::vm::{Backing, Vm};
use std::fs;
use std::path::Path;

/// For how long after a VM was at its limit its swapping is taken to come from that.
pub(super) const LIMIT_NS: u64 = 30_000_000_000;

/// A VM, followed.
#[derive(Default)]
pub(super) struct WatchedVm {
    pub(super) is_checked: bool,
    last: Option<CgroupCounters>,
    limit: Option<Limit>,
    /// The cgroups that are its alone, the outermost last.
    own: Vec<MemoryCgroup>,
    /// [`Limit::hits`] at the last look.
    hits: Option<u64>,
    /// Time since its limit was last seen to be reached.
    pub(super) since_limit_ns: Option<u64>,
    pub(super) since: Since,
    states: SwapStates,
    pub(super) sources: SwapSources,
    pub(super) now: VmSwap,
    /// Whether somebody fills its pages: asked when it waits for some, and as long as that is so.
    are_filled: bool,
    /// Whether pages came back at the look of this interval, if there was one.
    pub(super) reads: bool,
}

/// What the probes saw since the last look.
#[derive(Default)]
pub(super) struct Since {
    swapins: u64,
    majors: u64,
    reclaims: u64,
    swapped_out: u64,
    /// Waited, and vCPUs × time, in nanoseconds.
    stall: Option<(u64, u64)>,
}

/// What is the same for every VM at a look.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    pub(super) length_ns: u64,
    pub(super) available: Option<f64>,
    pub(super) is_first: bool,
    pub(super) page_size: u64,
}

impl Shared {
    pub(super) fn a_second(self, count: u64) -> f64 {
        count as f64 * 1e9 / self.length_ns as f64
    }
}

impl Since {
    pub(super) fn add(&mut self, vm: &VmInterval, for_host: ForHost) {
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
    pub(super) fn check(
        &mut self,
        processes: &VmProcesses,
        hierarchy: Option<&Hierarchy>,
        of: &Vm,
    ) {
        let own = hierarchy.and_then(|hierarchy| hierarchy.own(processes, of));
        self.is_checked = true;
        let own = own.map(|own| own.with_own_around(processes, of.id.pid)).unwrap_or_default();
        let limit = Limit::least(&own);
        if limit != self.limit {
            (self.hits, self.limit) = (None, limit);
        }
        self.now.limit = self.limit.as_ref().map(|limit| limit.bytes);
        if own.first() != self.cgroup() {
            self.last = None;
        }
        self.own = own;
    }

    /// Its own cgroup.
    pub(super) fn cgroup(&self) -> Option<&MemoryCgroup> {
        self.own.first()
    }

    /// The outermost cgroup that is its own.
    pub(super) fn outermost(&self) -> Option<&MemoryCgroup> {
        self.own.last()
    }

    /// Whether it is, or was a while ago, at a limit of its own.
    pub(super) fn is_at_limit(&self) -> bool {
        self.since_limit_ns.is_some_and(|since| since < LIMIT_NS)
    }

    /// Notes whether its limit was reached since the last look.
    fn look_at_limit(&mut self, length_ns: u64) {
        let now = self.limit.as_ref().and_then(Limit::hits);
        let before = std::mem::replace(&mut self.hits, now);
        let is_reached = now.zip(before).is_some_and(|(now, before)| now > before);
        let longer = self.since_limit_ns.map(|since| since.saturating_add(length_ns));
        self.since_limit_ns = if is_reached { Some(0) } else { longer };
    }

    pub(super) fn look(
        &mut self,
        vm: &Vm,
        sees_swapins: bool,
        sees_swapouts: bool,
        shared: Shared,
    ) {
        let since = std::mem::take(&mut self.since);
        self.look_at_limit(shared.length_ns);
        let now = self.cgroup().and_then(|cgroup| cgroup.read().ok());
        let before = std::mem::replace(&mut self.last, now.clone());
        let grown = now.as_ref().zip(before.as_ref());
        let of = |field: fn(&CgroupCounters) -> Option<u64>| {
            let (now, before) = grown?;
            Some(field(now)?.saturating_sub(field(before)?))
        };
        let majors = of(|counters| counters.major_faults);
        let swapped_in = if vm.backing() == Some(Backing::File)
            && let Some((majors, files)) = majors.zip(of(|counters| counters.refaulted_files))
        {
            Some((majors + files, SwappedIn::CgroupFiles))
        } else if let Some(pages) = of(|counters| counters.swapped_in) {
            Some((pages, SwappedIn::Cgroup))
        } else if let Some(majors) = majors {
            Some((majors, SwappedIn::CgroupMajors))
        } else if sees_swapins {
            Some((since.swapins, SwappedIn::Swapins))
        } else {
            // Pages that somebody else fills count as major faults, and come from no swap.
            if since.majors > 0 || self.are_filled {
                self.are_filled = has_userfaultfd(Path::new("/proc"), vm.id.pid);
            }
            (!self.are_filled).then_some((since.majors, SwappedIn::Majors))
        };
        let swapped_out = match (of(|counters| counters.swapped_out), grown) {
            (Some(pages), _) => Some((pages, SwappedOut::Cgroup)),
            (None, Some(_)) if sees_swapouts => Some((since.swapped_out, SwappedOut::Tracepoint)),
            (None, _) => None,
        };
        self.sources = SwapSources {
            swapped_in: swapped_in.map(|(_, by)| by),
            swapped_out: swapped_out.map(|(_, by)| by),
        };
        if shared.is_first {
            return;
        }
        let by_pressure = grown
            .and_then(|(now, before)| stalled(now.stalled_us, before.stalled_us, shared.length_ns));
        let [swapped_in, swapped_out] =
            [swapped_in.map(|(pages, _)| pages), swapped_out.map(|(pages, _)| pages)];
        let swaps =
            [swapped_in, swapped_out].iter().any(|pages| pages.is_some_and(|pages| pages > 0));
        // Of a VM whose memory is a file, what comes back is read from that.
        let reads = vm.backing() == Some(Backing::File) && since.majors > 0;
        let is_short = swaps || reads || since.reclaims > 0;
        let rates = Rates {
            length_ns: shared.length_ns,
            swapped_in: swapped_in.map(|pages| shared.a_second(pages)),
            swapped_out: swapped_out.map(|pages| shared.a_second(pages)),
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

/// Whether somebody fills pages of a process: postcopy, or a snapshot that is read when needed.
fn has_userfaultfd(proc: &Path, pid: i32) -> bool {
    let descriptors = fs::read_dir(proc.join(format!("{pid}/fd")));
    let links =
        descriptors.into_iter().flatten().flatten().map(|entry| fs::read_link(entry.path()));
    links.flatten().any(|link| link.as_os_str() == "anon_inode:[userfaultfd]")
}

/// The part of the time for which somebody waited.
pub(super) fn stalled(now_us: Option<u64>, before_us: Option<u64>, length_ns: u64) -> Option<f64> {
    let (now, before) = now_us.zip(before_us)?;
    Some((now.saturating_sub(before) as f64 * 1e3 / length_ns as f64).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_limit_that_is_reached_is_remembered_for_a_while() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("vm");
        let proc = root.path().join("proc");
        let write = |file: &str, text: &str| fs::write(own.join(file), text).unwrap();
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(proc.join("self")).unwrap();
        write("memory.stat", "");
        write("memory.limit_in_bytes", "4096\n");
        write("memory.failcnt", "7\n");
        let mount = format!("1 1 0:1 / {} rw - cgroup cgroup rw,memory\n", root.path().display());
        fs::write(proc.join("self/mountinfo"), mount).unwrap();
        let cgroup = Hierarchy::find(&proc).unwrap().memory_cgroup("/vm").unwrap();
        let mut vm = WatchedVm { limit: Limit::least(&[cgroup]), ..WatchedVm::default() };
        vm.look_at_limit(SECOND_NS);
        assert!(!vm.is_at_limit(), "that was before");
        write("memory.failcnt", "8\n");
        for _ in 0..30 {
            vm.look_at_limit(SECOND_NS);
            assert!(vm.is_at_limit());
        }
        vm.look_at_limit(SECOND_NS);
        assert!(!vm.is_at_limit());
    }

    #[test]
    fn who_has_its_pages_filled_by_somebody_is_known_by_a_descriptor() {
        let proc = tempfile::tempdir().unwrap();
        let descriptors = proc.path().join("7/fd");
        fs::create_dir_all(&descriptors).unwrap();
        let link = |number: &str, to: &str| {
            std::os::unix::fs::symlink(to, descriptors.join(number)).unwrap();
        };
        link("0", "/dev/null");
        assert!(!has_userfaultfd(proc.path(), 7));
        link("1", "anon_inode:[userfaultfd]");
        assert!(has_userfaultfd(proc.path(), 7) && !has_userfaultfd(proc.path(), 8));
    }
}
