//! Which hooks can this kernel give, and attach them: probe the host, decide,
//! attach.

pub mod decide;
pub mod host;
pub mod log;
pub mod object;
pub mod perf;
pub mod rings;
pub mod shared;
pub mod slots;

use crate::kernel_layout::{KernelLayout, VMLINUX_BTF};
use anyhow::{Context, Result, anyhow, bail};
use aya::programs::RawTracePoint;
use aya::{Btf, Ebpf};
use decide::Backend;
use log::ProgramLog;
use object::Sizes;
use overcommit_ebpf::layout::{Cpu, HotProgram};
use perf::PerfEvents;
use rings::{Events, SlowFaults};
use shared::SharedArray;
use slots::Slots;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

/// Tracepoints that keep the table of VMs in step with processes, and their
/// programs.
const LIFECYCLE: [(&str, &str); 2] =
    [("process_exit", "sched_process_exit"), ("process_exec", "sched_process_exec")];

/// The attached programs. Dropping it detaches everything.
pub struct Probes {
    ebpf: Ebpf,
    source: PerfEvents,
    cpus: SharedArray<Cpu>,
    /// Who has a slot.
    pub slots: Slots,
}

/// What the programs send one by one.
pub struct Rings {
    /// VMs that start and end.
    pub events: Events,
    /// Faults above the length asked for.
    pub slow: SlowFaults,
    /// What the programs say about themselves, if they were asked to.
    pub log: Option<ProgramLog>,
}

impl Probes {
    /// Loads and attaches a backend. No VM has a slot yet, so nothing is counted.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn attach(backend: Backend, sizes: Sizes) -> Result<(Self, Rings)> {
        let btf_path = Path::new(VMLINUX_BTF);
        let layout = KernelLayout::read(btf_path)?;
        let mut ebpf = object::load(&layout, sizes)?;
        let btf = Btf::parse_file(btf_path, aya::Endianness::default())
            .context("cannot read the kernel's BTF")?;
        // A program is loaded while its maps' descriptors are open, and attached
        // when the maps are ready.
        slots::load_iterator(&mut ebpf, &btf)?;
        for (program, tracepoint) in LIFECYCLE {
            let refused = || refuses(tracepoint);
            raw_tracepoint(&mut ebpf, program)?.load().with_context(refused)?;
        }
        let mut source = match backend {
            Backend::Perf => PerfEvents::load(&mut ebpf)?,
            Backend::Fentry | Backend::Kprobe => bail!("backend {backend} is not built yet"),
        };
        let slots = Slots::open(&mut ebpf, sizes.vms, sizes.threads)?;
        let cpus = SharedArray::open(&mut ebpf, "CPUS", sizes.cpus)?;
        let rings = Rings {
            events: Events::open(&mut ebpf)?,
            slow: SlowFaults::open(&mut ebpf)?,
            log: sizes.verbose.then(|| ProgramLog::open(&mut ebpf)).transpose()?,
        };
        for (program, tracepoint) in LIFECYCLE {
            let refused = || refuses(tracepoint);
            raw_tracepoint(&mut ebpf, program)?.attach(tracepoint).with_context(refused)?;
        }
        source.follow_cpus()?;
        Ok((Self { ebpf, source, cpus, slots }, rings))
    }

    /// Asks for slots, see [`Slots::adopt`].
    ///
    /// # Errors
    /// The walk over the kernel's tasks fails.
    pub fn adopt(&mut self, pids: &[i32]) -> Result<()> {
        self.slots.adopt(&mut self.ebpf, pids)
    }

    /// Follows CPUs that come and go.
    ///
    /// # Errors
    /// The kernel refuses the events of a new CPU.
    pub fn follow_cpus(&mut self) -> Result<()> {
        self.source.follow_cpus()
    }

    /// Stops the programs that measure; what the kernel skipped can then be told
    /// exactly.
    pub fn stop(&mut self) {
        self.source.stop();
    }

    /// How often the kernel skipped each program, on the whole host.
    pub fn skipped(&mut self) -> [u64; HotProgram::COUNT] {
        // The events first: what runs in between is not taken for skipped.
        let fired = self.source.fired();
        let mut skipped = [0; HotProgram::COUNT];
        for program in HotProgram::ALL {
            let runs = self.cpus.iter().map(|cpu| cpu.runs[program as usize].load(Relaxed));
            let index = program as usize;
            skipped[index] = fired[index].saturating_sub(runs.sum());
        }
        skipped
    }
}

fn raw_tracepoint<'a>(ebpf: &'a mut Ebpf, program: &str) -> Result<&'a mut RawTracePoint> {
    let found = ebpf.program_mut(program).ok_or_else(|| anyhow!("no program {program}"))?;
    Ok(found.try_into()?)
}

fn refuses(tracepoint: &str) -> String {
    format!("the kernel refuses the tracepoint {tracepoint}")
}
