//! The backends `fentry` and `kprobe`: hooks on the kernel's own functions.
//!
//! `fentry` patches a call into the function's first instruction, and its program
//! runs preemptibly: where the kernel preempts it midway, it misses calls of other
//! threads on that CPU (`recursion_misses`). `kprobe` runs with preemption off; its
//! returns need an entry of a pool each, whose size tracefs alone lets us set.
//!
//! A function that a trampoline cannot take, such as one of seven arguments before
//! Linux 6.6, is hooked by kprobe on either backend. One that is missing or inlined
//! leaves its hook out, with the reason.

use crate::probes::decide::Backend;
use crate::probes::fdinfo;
use crate::probes::tracefs::{End, FunctionEvents};
use crate::probes::{Kernel, tracefs};
use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::fentry::FEntryLink;
use aya::programs::fexit::FExitLink;
use aya::programs::{FEntry, FExit, KProbe};
use overcommit_ebpf::layout::HotProgram;
use overcommit_recording::model::run::HookState;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};

/// What a hook is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Faults.
    Fault,
    /// Swap-ins of anonymous memory.
    Swap,
    /// Swap-ins of shared memory.
    SharedSwap,
    /// Whether a swapped page was read, or was in the swap cache.
    SwapRead,
    /// Whether it came out of zswap.
    Zswap,
    /// Pages that reclaim drops because a disk has their content.
    Drop,
    /// Faults in pages that are there and may not be written.
    Write,
    /// Faults by which the kernel sees which node uses a page.
    Numa,
    /// Faults that another process serves.
    Userfault,
    /// Holding back those whose cgroup is above its `memory.high`.
    High,
    /// Memory that KVM is told to unmap from its guest.
    Invalidation,
    /// Waits of those who only read for a lock that can sleep, such as the mmap lock.
    Lock,
}

impl Purpose {
    /// Every hook, in the order in which they are attached: what marks a fault before
    /// what opens it.
    const ALL: [Self; 12] = [
        Self::Zswap,
        Self::SwapRead,
        Self::SharedSwap,
        Self::Swap,
        Self::Write,
        Self::Numa,
        Self::Userfault,
        Self::High,
        Self::Invalidation,
        Self::Lock,
        Self::Fault,
        Self::Drop,
    ];

    /// The name in all files, and the end of the names of its programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Swap => "swap",
            Self::SharedSwap => "shared_swap",
            Self::SwapRead => "swap_read",
            Self::Zswap => "zswap",
            Self::Drop => "drop",
            Self::Write => "write",
            Self::Numa => "numa",
            Self::Userfault => "userfault",
            Self::High => "high",
            Self::Invalidation => "invalidation",
            Self::Lock => "lock",
        }
    }

    /// The functions that do it, the newest name first: mm/memory.c, mm/shmem.c (by page until 5.15),
    /// mm/page_io.c (`swap_readpage` until 6.4), mm/zswap.c (mm/frontswap.c until 6.5),
    /// mm/vmscan.c, kernel/sched/fair.c, fs/userfaultfd.c, mm/memcontrol.c (with
    /// underscores from 7.x on), kernel/locking/rwsem.c,
    /// mm/mmu_notifier.c.
    pub const fn functions(self) -> &'static [&'static str] {
        match self {
            Self::Fault => &["handle_mm_fault"],
            Self::Swap => &["do_swap_page"],
            Self::SharedSwap => &["shmem_swapin_folio", "shmem_swapin_page"],
            Self::SwapRead => &["swap_read_folio", "swap_readpage"],
            Self::Zswap => &["zswap_load", "__frontswap_load"],
            Self::Drop => &["__remove_mapping"],
            Self::Write => &["do_wp_page"],
            Self::Numa => &["task_numa_fault"],
            Self::Userfault => &["handle_userfault"],
            Self::High => &["__mem_cgroup_handle_over_high", "mem_cgroup_handle_over_high"],
            Self::Invalidation => &["__mmu_notifier_invalidate_range_start"],
            Self::Lock => &["rwsem_down_read_slowpath"],
        }
    }

    /// The ends that are hooked; a return before an entry, so that whatever is known
    /// from its entry on can end.
    const fn ends(self) -> &'static [End] {
        match self {
            Self::SwapRead | Self::Write | Self::Numa | Self::Invalidation => &[End::Entry],
            Self::Zswap => &[End::Return],
            _ => &[End::Return, End::Entry],
        }
    }
}

/// Every function that may be hooked.
pub fn names() -> impl Iterator<Item = &'static str> {
    Purpose::ALL.into_iter().flat_map(|purpose| purpose.functions().iter().copied())
}

/// A hook whose programs are loaded.
struct Hook {
    purpose: Purpose,
    /// `None` is a hook that is missing.
    found: Option<Found>,
    missing: Option<String>,
}

/// How a program gets onto a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a trampoline: fentry and fexit.
    Fentry,
    /// By a probe: kprobe and kretprobe.
    Kprobe,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Fentry => Backend::Fentry.name(),
            Self::Kprobe => Backend::Kprobe.name(),
        }
    }
}

struct Found {
    function: String,
    by: Way,
    attached: Vec<Attached>,
}

enum Attached {
    Entry(#[expect(dead_code, reason = "held for its end")] FEntryLink),
    Exit(#[expect(dead_code, reason = "held for its end")] FExitLink),
    Event(Counter),
}

/// Hooks on the kernel's functions.
pub struct FunctionHooks {
    /// Before the events: the kernel removes none that is in use.
    hooks: Vec<Hook>,
    events: Result<FunctionEvents, String>,
}

impl FunctionHooks {
    /// Loads the programs; [`Self::attach`] attaches them. `without` is a function to
    /// do without, as on a kernel that does not have it.
    ///
    /// # Errors
    /// The hook on faults is refused.
    pub fn load(ebpf: &mut Ebpf, kernel: &Kernel, by: Way, without: &[String]) -> Result<Self> {
        let mut hooks = Vec::new();
        for purpose in Purpose::ALL {
            let found = find(ebpf, kernel, by, purpose, without);
            let missing = found.as_ref().err().map(|error| format!("{error:#}"));
            hooks.push(Hook { purpose, found: found.ok(), missing });
        }
        let root = tracefs::mount_point();
        let events = root.and_then(FunctionEvents::new).map_err(|error| format!("{error:#}"));
        let hooks = Self { hooks, events };
        hooks.require_faults()?;
        Ok(hooks)
    }

    /// Attaches them.
    ///
    /// # Errors
    /// The hook on faults is refused.
    pub fn attach(&mut self, ebpf: &mut Ebpf) -> Result<()> {
        for hook in &mut self.hooks {
            if let Some(found) = &mut hook.found
                && let Err(error) = attach(ebpf, hook.purpose, found, &mut self.events)
            {
                hook.missing = Some(format!("{error:#}"));
                hook.found = None;
            }
        }
        self.require_faults()
    }

    /// Detaches them; what they missed can still be read.
    pub fn stop(&mut self) {
        for attached in self.hooks.iter_mut().filter_map(|hook| hook.found.as_mut()) {
            attached.attached.retain_mut(|attached| match attached {
                Attached::Event(event) => {
                    // Its misses are counted on as long as it exists.
                    let _ = event.disable();
                    true
                }
                Attached::Entry(_) | Attached::Exit(_) => false,
            });
        }
    }

    /// What became of each hook.
    pub fn states(&self) -> Vec<HookState> {
        let state = |hook: &Hook| HookState {
            purpose: hook.purpose.name().to_owned(),
            function: hook.found.as_ref().map(|found| found.function.clone()),
            by: hook.found.as_ref().map(|found| found.by.name().to_owned()),
            missing: hook.missing.clone(),
        };
        self.hooks.iter().map(state).collect()
    }

    /// Whether there is a hook for that.
    pub fn has(&self, purpose: Purpose) -> bool {
        self.hooks.iter().any(|hook| hook.purpose == purpose && hook.found.is_some())
    }

    /// Calls that each program missed.
    ///
    /// A trampoline counts them; of a kprobe they are those that the probe missed, and
    /// those whose program was left out: `trace_call_bpf` runs none while another holds
    /// the CPU, which some kernels count and 6.1 does not, so that the program's own
    /// runs are held against the probe's hits.
    pub fn missed(
        &self,
        ebpf: &mut Ebpf,
        runs: impl FnOnce() -> [u64; HotProgram::COUNT],
    ) -> BTreeMap<String, u64> {
        let mut missed = BTreeMap::new();
        let mut hits = BTreeMap::new();
        for hook in &self.hooks {
            let Some(found) = &hook.found else { continue };
            for end in hook.purpose.ends() {
                let name = program(found.by, hook.purpose, *end);
                let mut count = recursion_misses(ebpf, &name).unwrap_or(0);
                let seen = self.events.as_ref().ok().and_then(|events| events.seen(&name));
                if let Some(seen) = seen {
                    count += seen.misses;
                    hits.insert(name.clone(), seen.hits);
                }
                missed.insert(name, count);
            }
        }
        // Read last: what runs in between is not taken for missed.
        let runs = runs();
        for (end, hot) in
            [(End::Entry, HotProgram::CallEntry), (End::Return, HotProgram::CallReturn)]
        {
            let name = program(Way::Kprobe, Purpose::Fault, end);
            let skipped = hits.get(&name).map(|hits| hits.saturating_sub(runs[hot as usize]));
            if let Some(count) = missed.get_mut(&name) {
                *count = (*count).max(skipped.unwrap_or(0));
            }
        }
        missed
    }

    fn require_faults(&self) -> Result<()> {
        let hook = self.hooks.iter().find(|hook| hook.purpose == Purpose::Fault);
        match hook.and_then(|hook| hook.missing.as_deref()) {
            Some(reason) => bail!("faults cannot be hooked: {reason}"),
            None => Ok(()),
        }
    }
}

fn program(by: Way, purpose: Purpose, end: End) -> String {
    let kind = match (by, end) {
        (Way::Fentry, End::Entry) => "fentry",
        (Way::Fentry, End::Return) => "fexit",
        (Way::Kprobe, End::Entry) => "kprobe",
        (Way::Kprobe, End::Return) => "kretprobe",
    };
    format!("{kind}_{}", purpose.name())
}

/// Loads the programs of the first function that the kernel has, by the best way that
/// it takes.
fn find(
    ebpf: &mut Ebpf,
    kernel: &Kernel,
    by: Way,
    purpose: Purpose,
    without: &[String],
) -> Result<Found> {
    let mut reasons = Vec::new();
    for function in purpose.functions() {
        // A function that never exists, so that the kernel itself refuses it.
        let absent = without.iter().any(|name| name == function);
        let function = if absent { format!("no_{function}") } else { (*function).to_owned() };
        let ways: &[Way] = match by {
            Way::Fentry => &[Way::Fentry, Way::Kprobe],
            Way::Kprobe => &[Way::Kprobe],
        };
        for way in ways {
            match load(ebpf, kernel, *way, purpose, &function) {
                Ok(()) => return Ok(Found { function, by: *way, attached: Vec::new() }),
                Err(error) => reasons.push(format!("{}: {error:#}", way.name())),
            }
        }
    }
    bail!("{}", reasons.join("; "))
}

fn load(ebpf: &mut Ebpf, kernel: &Kernel, by: Way, purpose: Purpose, function: &str) -> Result<()> {
    if by == Way::Kprobe && kernel.symbols.address(function).is_none() {
        bail!("this kernel has no function {function}, or it is inlined");
    }
    for end in purpose.ends() {
        let name = program(by, purpose, *end);
        let refused = || format!("the kernel refuses the program {name} on {function}");
        match (by, end) {
            (Way::Fentry, End::Entry) => {
                let program: &mut FEntry = named(ebpf, &name)?.try_into()?;
                program.load(function, &kernel.btf).with_context(refused)?;
            }
            (Way::Fentry, End::Return) => {
                let program: &mut FExit = named(ebpf, &name)?.try_into()?;
                program.load(function, &kernel.btf).with_context(refused)?;
            }
            (Way::Kprobe, _) => {
                let program: &mut KProbe = named(ebpf, &name)?.try_into()?;
                program.load().with_context(refused)?;
            }
        }
    }
    Ok(())
}

fn attach(
    ebpf: &mut Ebpf,
    purpose: Purpose,
    found: &mut Found,
    events: &mut Result<FunctionEvents, String>,
) -> Result<()> {
    for end in purpose.ends() {
        let name = program(found.by, purpose, *end);
        let refused = || format!("the kernel refuses to hook {}", found.function);
        found.attached.push(match (found.by, end) {
            (Way::Fentry, End::Entry) => {
                let program: &mut FEntry = named(ebpf, &name)?.try_into()?;
                let link = program.attach().with_context(refused)?;
                Attached::Entry(program.take_link(link)?)
            }
            (Way::Fentry, End::Return) => {
                let program: &mut FExit = named(ebpf, &name)?.try_into()?;
                let link = program.attach().with_context(refused)?;
                Attached::Exit(program.take_link(link)?)
            }
            (Way::Kprobe, _) => {
                let events = events.as_mut().map_err(|reason| anyhow!("{reason}"))?;
                let program: &mut KProbe = named(ebpf, &name)?.try_into()?;
                let id = events.make(&name, &found.function, *end)?;
                Attached::Event(open_tracepoint(id, program.fd()?.as_fd().as_raw_fd())?)
            }
        });
    }
    Ok(())
}

fn named<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name}"))
}

/// `recursion_misses` of a program, as /proc tells it.
pub fn recursion_misses(ebpf: &mut Ebpf, name: &str) -> Option<u64> {
    fdinfo::of_program(ebpf.program(name)?.fd().ok()?, "recursion_misses:")
}

/// Runs a program at an event of tracefs, on every CPU: the program hangs on the
/// event itself (`perf_event_attach_bpf_prog`), not on the CPU that it is opened for.
///
/// # Errors
/// The kernel refuses.
pub fn open_tracepoint(id: u64, program: i32) -> Result<Counter> {
    let cpus =
        aya::util::online_cpus().map_err(|(path, error)| anyhow!("cannot read {path}: {error}"))?;
    let cpu = *cpus.first().context("no CPU is online")? as usize;
    let mut builder = Builder::new(Tracepoint::with_id(id));
    builder.any_pid().one_cpu(cpu).include_kernel().sample_period(1);
    let mut event = builder.build().context("the kernel refuses the event")?;
    event.set_bpf(program).context("the kernel refuses the program for the event")?;
    event.enable()?;
    Ok(event)
}
