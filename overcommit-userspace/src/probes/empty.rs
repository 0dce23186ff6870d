//! Programs that do nothing, on the hooks of a backend: nothing that measures can cost less.

use crate::probes::decide::Backend;
use crate::probes::object::{self, Sizes};
use crate::probes::perf::PerfEvents;
use crate::probes::{Kernel, host, kvm};
use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{FEntry, FExit, KProbe, PerfEvent, RawTracePoint, TracePoint};
use std::os::fd::{AsFd, AsRawFd};

/// The programs, attached. Dropping it detaches them.
pub struct EmptyPrograms {
    _events: Option<PerfEvents>,
    _exits: Vec<kvm::Attached>,
    _ebpf: Ebpf,
}

impl EmptyPrograms {
    /// Attaches them where that backend sees faults begin and end.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn attach(kernel: &Kernel, backend: Backend) -> Result<Self> {
        let mut ebpf = object::load(kernel, Sizes::TRIAL)?;
        let events = attach(&mut ebpf, kernel, backend)?;
        Ok(Self { _events: events, _exits: Vec::new(), _ebpf: ebpf })
    }

    /// The same, and on the tracepoints of KVM at which exits are seen.
    ///
    /// # Errors
    /// There is no KVM, or the kernel refuses one.
    pub fn with_exits(kernel: &Kernel, backend: Backend) -> Result<Self> {
        let mut ebpf = object::load(kernel, Sizes::TRIAL)?;
        let classic: &mut TracePoint = named(&mut ebpf, "trial_tracepoint")?;
        classic.load()?;
        let classic = classic.fd()?.as_fd().as_raw_fd();
        let raw: &mut RawTracePoint = named(&mut ebpf, "trial_raw_tracepoint")?;
        raw.load()?;
        let exits = kvm::attach_empty(kernel.layout.exits, classic, raw.fd()?.as_fd().as_raw_fd())?;
        let events = attach(&mut ebpf, kernel, backend)?;
        Ok(Self { _events: events, _exits: exits, _ebpf: ebpf })
    }
}

fn attach(ebpf: &mut Ebpf, kernel: &Kernel, backend: Backend) -> Result<Option<PerfEvents>> {
    match backend {
        Backend::Perf => {
            let program: &mut PerfEvent = named(ebpf, "trial_perf_event")?;
            program.load()?;
            return PerfEvents::of(program.fd()?.as_fd().as_raw_fd()).map(Some);
        }
        Backend::Fentry => {
            let entry: &mut FEntry = named(ebpf, "trial_fentry")?;
            entry.load(host::FUNCTION, &kernel.btf)?;
            entry.attach()?;
            let exit: &mut FExit = named(ebpf, "trial_fexit")?;
            exit.load(host::FUNCTION, &kernel.btf)?;
            exit.attach()?;
        }
        Backend::Kprobe => {
            for name in ["trial_kprobe", "trial_kretprobe"] {
                let probe: &mut KProbe = named(ebpf, name)?;
                probe.load()?;
                probe.attach(host::FUNCTION, 0)?;
            }
        }
    }
    Ok(None)
}

fn named<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
    <&'a mut P as TryFrom<&'a mut aya::programs::Program>>::Error:
        std::error::Error + Send + Sync + 'static,
{
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    program.try_into().with_context(|| format!("{name} is of another kind"))
}
