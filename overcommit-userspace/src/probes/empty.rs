//! Programs that do nothing, on the hooks of a backend: nothing that measures can cost less.

use crate::probes::decide::Backend;
use crate::probes::object::{self, Sizes};
use crate::probes::perf::PerfEvents;
use crate::probes::{Kernel, host};
use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{FEntry, FExit, KProbe, PerfEvent};
use std::os::fd::{AsFd, AsRawFd};

/// The programs, attached. Dropping it detaches them.
pub struct EmptyPrograms {
    _events: Option<PerfEvents>,
    _ebpf: Ebpf,
}

impl EmptyPrograms {
    /// Attaches them where that backend sees faults begin and end.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn attach(kernel: &Kernel, backend: Backend) -> Result<Self> {
        let mut ebpf = object::load(kernel, Sizes::TRIAL)?;
        let mut events = None;
        match backend {
            Backend::Perf => {
                let program: &mut PerfEvent = named(&mut ebpf, "trial_perf_event")?;
                program.load()?;
                events = Some(PerfEvents::of(program.fd()?.as_fd().as_raw_fd())?);
            }
            Backend::Fentry => {
                let entry: &mut FEntry = named(&mut ebpf, "trial_fentry")?;
                entry.load(host::FUNCTION, &kernel.btf)?;
                entry.attach()?;
                let exit: &mut FExit = named(&mut ebpf, "trial_fexit")?;
                exit.load(host::FUNCTION, &kernel.btf)?;
                exit.attach()?;
            }
            Backend::Kprobe => {
                for name in ["trial_kprobe", "trial_kretprobe"] {
                    let probe: &mut KProbe = named(&mut ebpf, name)?;
                    probe.load()?;
                    probe.attach(host::FUNCTION, 0)?;
                }
            }
        }
        Ok(Self { _events: events, _ebpf: ebpf })
    }
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
