//! Which hooks can this kernel give, and attach them: probe the host, decide,
//! attach.

pub mod chunks;
pub mod decide;
pub mod discards;
pub mod empty;
pub mod evictions;
mod fdinfo;
pub mod footprint;
pub mod free;
pub mod functions;
pub mod host;
pub mod kvm;
pub mod log;
pub mod object;
pub mod perf;
pub mod raw;
pub mod rings;
pub mod shared;
pub mod sight;
pub mod slots;
pub mod stacks;
pub mod stats;
pub mod tracefs;

use crate::kernel::layout::{ExitLayout, KernelLayout, VMLINUX_BTF};
use crate::kernel::{self, Symbols};
use crate::probes::sight::Sight;
use anyhow::{Context, Result, anyhow, ensure};
use aya::{Btf, Ebpf};
use decide::Backend;
use discards::Discards;
use free::Supplies;
use functions::{FunctionHooks, Purpose, Way};
use kvm::{Exits, KvmTracepoints};
use log::ProgramLog;
use object::Sizes;
use overcommit_ebpf::layout::{BLOCK_CHUNKS, Cpu, HotProgram};
use overcommit_recording::model::run::RunVm;
use overcommit_recording::model::vm::Backing;
use perf::PerfEvents;
use raw::{Group, Groups};
use rings::{Events, SlowFaults};
use shared::SharedArray;
use slots::Slots;
use stacks::Stacks;
use stats::ProgramStats;
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

/// Tracepoints that keep the table of VMs in step with processes, and their
/// programs.
const LIFECYCLE: &[(&str, &str)] =
    &[("process_exit", "sched_process_exit"), ("process_exec", "sched_process_exec")];

/// Closes attachments, which nobody waits for: with each classic tracepoint the kernel waits until no CPU
/// is in its programs (`perf_trace_event_unreg`, kernel/trace/trace_event_perf.c), which takes a tenth of a
/// second. The process does not end before that.
fn close_behind(attached: impl Send + 'static) {
    // Where there can be no more threads it is closed here and now.
    let _ = thread::Builder::new().spawn(move || drop(attached));
}

/// Where swap areas are, and a function of which it matters whether there is one.
const SYMBOLS: [&str; 3] = [NR_SWAPFILES, SWAP_INFO, FOLLOW_HUGETLB];
const NR_SWAPFILES: &str = "nr_swapfiles";
const SWAP_INFO: &str = "swap_info";
const FOLLOW_HUGETLB: &str = "follow_hugetlb_page";

/// Why sleep in faults is not seen.
pub const NOT_ASKED_FOR: &str = "seen with --causes or --slow-faults";

/// What the running kernel says about itself.
pub struct Kernel {
    /// Where it keeps its fields.
    pub layout: KernelLayout,
    /// Its types, for the programs that need them to load.
    pub btf: Btf,
    /// Its functions and variables.
    pub symbols: Symbols,
}

impl Kernel {
    /// Reads it: a third of a second or so, and some tens of MiB.
    ///
    /// # Errors
    /// The kernel has no BTF, or hides something.
    pub fn read() -> Result<Self> {
        let path = Path::new(VMLINUX_BTF);
        Ok(Self {
            layout: KernelLayout::read(path)?,
            btf: Btf::parse_file(path, aya::Endianness::default())
                .with_context(|| format!("cannot read {}", path.display()))?,
            symbols: Symbols::read(functions::names().chain(SYMBOLS))?,
        })
    }
}

/// The attached programs. Dropping it detaches everything.
pub struct Probes {
    ebpf: Ebpf,
    backend: Backend,
    source: Source,
    kvm: KvmTracepoints,
    discards: Discards,
    cpus: SharedArray<Cpu>,
    groups: Groups,
    has_run_delay: bool,
    is_exit_told_late: bool,
    /// Whether KVM takes faults of huge pages where no program sees them.
    hides_huge_faults: bool,
    /// Bytes of kernel memory of the maps, without blocks of chunks.
    map_memory: u64,
    /// Who has a slot.
    pub slots: Slots,
}

/// Where faults are seen.
enum Source {
    Functions(FunctionHooks),
    Perf(PerfEvents),
}

impl Source {
    fn attach(&mut self, ebpf: &mut Ebpf) -> Result<()> {
        match self {
            Self::Functions(hooks) => hooks.attach(ebpf),
            Self::Perf(events) => events.follow_cpus(),
        }
    }

    fn has(&self, purpose: Purpose) -> bool {
        matches!(self, Self::Functions(hooks) if hooks.has(purpose))
    }
}

/// Programs that the kernel has verified, and that are attached nowhere yet.
struct Loaded {
    source: Source,
    kvm: Vec<RawFd>,
    discards: Discards,
    groups: Groups,
}

impl Loaded {
    /// A program is loaded while its maps' descriptors are open, and attached when the maps are ready.
    fn load(
        ebpf: &mut Ebpf,
        kernel: &Kernel,
        backend: Backend,
        without: &[String],
        sizes: Sizes,
    ) -> Result<Self> {
        slots::load_iterator(ebpf, &kernel.btf)?;
        raw::load(ebpf, LIFECYCLE)?;
        let mut functions = |by| FunctionHooks::load(ebpf, kernel, by, without);
        let source = match backend {
            Backend::Fentry => Source::Functions(functions(Way::Fentry)?),
            Backend::Kprobe => Source::Functions(functions(Way::Kprobe)?),
            Backend::Perf => Source::Perf(PerfEvents::load(ebpf)?),
        };
        let kvm = KvmTracepoints::load(ebpf)?;
        let discards = Discards::load(ebpf)?;
        let groups = Groups::load(ebpf, |group| match group {
            Group::Swapouts => kernel.layout.folio_offsets().map(drop),
            Group::Sleeps => {
                ensure!(sizes.sees_sleeps, NOT_ASKED_FOR);
                Ok(())
            }
            _ => Ok(()),
        });
        Ok(Self { source, kvm, discards, groups })
    }
}

/// What the programs send one by one.
pub struct Rings {
    /// VMs that start and end.
    pub events: Events,
    /// Faults above the length asked for.
    pub slow: SlowFaults,
    /// Where those slept.
    pub stacks: Stacks,
    /// What the programs say about themselves, if they were asked to.
    pub log: Option<ProgramLog>,
}

impl Probes {
    /// Loads and attaches a backend. No VM has a slot yet, so nothing is counted.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn attach(
        kernel: &Kernel,
        backend: Backend,
        without: &[String],
        sizes: Sizes,
    ) -> Result<(Self, Rings)> {
        let mut ebpf = object::load(kernel, sizes)?;
        let map_memory = footprint::of_open_maps(sizes);
        let mut supplies = Supplies::open(&mut ebpf, sizes)?;
        let (loaded, filled) = thread::scope(|scope| {
            let filled = thread::Builder::new().spawn_scoped(scope, || supplies.fill(sizes));
            (
                Loaded::load(&mut ebpf, kernel, backend, without, sizes),
                filled.map(|fill| fill.join()),
            )
        });
        let Loaded { mut source, kvm, discards, mut groups } = loaded?;
        match filled {
            Ok(filled) => {
                filled.map_err(|_| anyhow!("the thread that fills eBPF maps panicked"))??
            }
            // There can be no more threads.
            Err(_) => supplies.fill(sizes)?,
        }
        // As on a kernel without symbols for data (CONFIG_KALLSYMS_ALL), or one that hides them.
        let lacks_swap_names = kernel.symbols.address(SWAP_INFO).unwrap_or(0) == 0;
        let slots = Slots::open(&mut ebpf, sizes, supplies, lacks_swap_names)?;
        let cpus = SharedArray::open(&mut ebpf, "CPUS", sizes.cpus)?;
        let rings = Rings {
            events: Events::open(&mut ebpf)?,
            slow: SlowFaults::open(&mut ebpf)?,
            stacks: Stacks::open(&mut ebpf)?,
            log: sizes.verbose.then(|| ProgramLog::open(&mut ebpf)).transpose()?,
        };
        raw::attach(&mut ebpf, LIFECYCLE)?;
        source.attach(&mut ebpf)?;
        groups.attach(&mut ebpf, |group| group != Group::Locks || !source.has(Purpose::Lock));
        let exits = kernel.layout.exits;
        let exits = exits.filter(|_| !without.iter().any(|name| name == ExitLayout::STRUCTURE));
        let mut kvm = KvmTracepoints::new(&mut ebpf, kvm, exits, sizes.exits)?;
        kvm.follow();
        let has_run_delay = kernel.layout.has_run_delay;
        // get_user_pages handled them itself then, without handle_mm_fault and without account
        // (`follow_hugetlb_page`, mm/hugetlb.c, 6.1; gone in 6.6).
        let hides_huge_faults = kernel.symbols.address(FOLLOW_HUGETLB).is_some();
        let probes = Self {
            ebpf,
            backend,
            source,
            kvm,
            discards,
            cpus,
            groups,
            has_run_delay,
            is_exit_told_late: kernel::tells_exits_late(),
            hides_huge_faults,
            map_memory,
            slots,
        };
        Ok((probes, rings))
    }

    /// Asks for slots, see [`Slots::adopt`].
    ///
    /// # Errors
    /// As there.
    pub fn adopt(&mut self, pids: &[i32], recorded: usize) -> Result<()> {
        self.slots.adopt(&mut self.ebpf, pids, recorded)
    }

    /// From now on counts what VMs give back of their memory, see [`Discards`].
    ///
    /// # Errors
    /// The kernel has no such tracepoint.
    pub fn see_discards(&mut self) -> Result<()> {
        self.discards.attach()
    }

    /// Why faults of a VM can be missed that the kernel's own counters miss too.
    pub fn hides_faults_of(&self, vm: &RunVm) -> Option<&'static str> {
        let is_hidden = self.hides_huge_faults
            && vm.backing == Some(Backing::Hugetlb)
            && vm.accelerator.as_deref() == Some("kvm");
        is_hidden.then_some(
            "page faults that KVM takes on huge pages: this kernel neither reports nor counts them",
        )
    }

    /// Why no exits are seen, if they are not.
    pub fn exits_absent(&self) -> Option<&str> {
        self.kvm.missing()
    }

    /// What can be seen.
    pub fn sight(&self) -> Sight {
        Sight {
            backend: Some(self.backend),
            hooks: match &self.source {
                Source::Functions(hooks) => hooks.states(),
                Source::Perf(_) => Vec::new(),
            },
            exits_absent: self.exits_absent().map(str::to_owned),
            sees_memory_exits_alone: self.kvm.wanted() == Exits::Memory,
            has_apf: self.kvm.has_apf(),
            absent: self.groups.absent().clone(),
            has_run_delay: self.has_run_delay,
            is_exit_told_late: self.is_exit_told_late,
        }
    }

    /// Follows CPUs that come and go, and a kvm that is loaded late.
    ///
    /// # Errors
    /// The kernel refuses the events of a new CPU.
    pub fn follow_host(&mut self) -> Result<()> {
        self.kvm.follow();
        match &mut self.source {
            Source::Perf(events) => events.follow_cpus(),
            // The kernel's own business.
            Source::Functions(_) => Ok(()),
        }
    }

    /// Has the programs timed now and then, see [`ProgramStats`].
    pub fn time_programs(&self) -> ProgramStats {
        ProgramStats::start(&self.ebpf)
    }

    /// Bytes of kernel memory that the maps take now.
    pub fn map_memory(&self) -> u64 {
        let blocks = self.slots.chunks.made() / u64::from(BLOCK_CHUNKS);
        self.map_memory + blocks * footprint::of_block()
    }

    /// Stops the programs that measure; what the kernel skipped can then be told
    /// exactly.
    pub fn stop(&mut self) {
        self.kvm.stop();
        self.discards.stop();
        match &mut self.source {
            Source::Perf(events) => events.stop(),
            Source::Functions(hooks) => hooks.stop(),
        }
    }

    /// How often the kernel left out each program, on the whole host.
    pub fn skipped(&mut self) -> BTreeMap<String, u64> {
        let mut skipped = match &mut self.source {
            Source::Perf(events) => {
                // The events first: what runs in between is not taken for skipped.
                let fired = events.fired();
                let runs = runs(&self.cpus);
                let skipped = |program: HotProgram| {
                    fired[program as usize].saturating_sub(runs[program as usize])
                };
                perf::PROGRAMS.map(|program| (program.name().to_owned(), skipped(program))).into()
            }
            Source::Functions(hooks) => hooks.missed(&mut self.ebpf, || runs(&self.cpus)),
        };
        let others = LIFECYCLE.iter().map(|(program, _)| *program);
        let others = others.chain(raw::programs()).chain(kvm::programs());
        let others = others.chain([discards::PROGRAM]);
        for program in others {
            if let Some(misses) = functions::recursion_misses(&mut self.ebpf, program) {
                skipped.insert(program.to_owned(), misses);
            }
        }
        skipped
    }
}

/// How often each program has run, on all CPUs.
fn runs(cpus: &SharedArray<Cpu>) -> [u64; HotProgram::COUNT] {
    HotProgram::ALL
        .map(|program| cpus.iter().map(|cpu| cpu.runs[program as usize].load(Relaxed)).sum())
}
