//! The system call by which QEMU gives memory back. Attached only when a VM's balloon
//! can be seen in no other way: a tracepoint of one system call costs each of them on
//! the whole host a look at its hooks.

use crate::probes::close_behind;
use crate::probes::functions::open_tracepoint;
use crate::probes::tracefs;
use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::programs::TracePoint;
use perf_event::Counter;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// The program.
pub const PROGRAM: &str = "madvise";

/// The tracepoint, attached or not.
pub struct Discards {
    program: RawFd,
    attached: Option<Counter>,
}

impl Discards {
    /// Loads the program.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self> {
        let program = ebpf.program_mut(PROGRAM).ok_or_else(|| anyhow!("no program {PROGRAM}"))?;
        let program: &mut TracePoint = program.try_into()?;
        program.load().with_context(|| format!("the kernel refuses the program {PROGRAM}"))?;
        Ok(Self { program: program.fd()?.as_fd().as_raw_fd(), attached: None })
    }

    /// Attaches it, once.
    ///
    /// # Errors
    /// There is no tracefs, or the kernel has no such tracepoint.
    pub fn attach(&mut self) -> Result<()> {
        if self.attached.is_none() {
            let root = tracefs::mount_point()?;
            let id = tracefs::tracepoint_id(&root, "syscalls/sys_enter_madvise")?;
            self.attached = Some(open_tracepoint(id, self.program)?);
        }
        Ok(())
    }

    /// Detaches it.
    pub fn stop(&mut self) {
        close_behind(self.attached.take());
    }
}
