//! What recording takes of the host, measured while it records.

use crate::probes::shared;
use crate::probes::stats::ProgramStats;
use crate::sampler::Sampler;
use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use overcommit_recording::model::cost::Cost;
use procfs::process::Process;

/// Measures it.
pub(super) struct CostMeter {
    programs: ProgramStats,
    /// CPU time of this process when the recording began, in nanoseconds.
    before_ns: u64,
    /// The most of this process's own memory that was seen in RAM, in bytes.
    peak_bytes: u64,
}

impl CostMeter {
    /// Begins while this process may still do everything.
    pub(super) fn start(sampler: &Sampler) -> Self {
        Self { programs: sampler.time_programs(), before_ns: 0, peak_bytes: 0 }
    }

    /// What was taken so far was before the recording.
    ///
    /// # Errors
    /// The kernel does not say how much that was.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.programs.begin();
        self.before_ns = cpu_ns()?;
        Ok(())
    }

    /// Goes on; to be called every second or so.
    pub(super) fn tick(&mut self) {
        self.programs.tick();
    }

    /// What was taken up to now, of a recording of that length in nanoseconds.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(super) fn so_far(&mut self, length_ns: u64, sampler: &Sampler) -> Result<Cost> {
        let programs = self.programs.so_far();
        let timed = programs.unwrap_or_default();
        // Maps grow; the peak may lie before.
        self.peak_bytes = self.peak_bytes.max(resident_peak()?.saturating_sub(shared::mapped()));
        Ok(Cost {
            length_ns,
            cpu_ns: cpu_ns()?.saturating_sub(self.before_ns),
            resident_peak_bytes: self.peak_bytes,
            kernel_bytes: sampler.map_memory() + self.programs.memory(),
            programs_ns: (timed.length_ns > 0).then_some(timed.taken_ns),
            programs_timed_ns: timed.length_ns,
            programs_untimed: programs.err().map(str::to_owned),
        })
    }
}

/// CPU time of this process.
fn cpu_ns() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = usage.user_time().num_nanoseconds() + usage.system_time().num_nanoseconds();
    Ok(u64::try_from(time)?)
}

/// What of this process was in RAM at the most. Not by `getrusage`: there a process has that of
/// whoever started it (`setmax_mm_hiwater_rss` in `exec_mmap`, fs/exec.c).
fn resident_peak() -> Result<u64> {
    let status = Process::myself().and_then(|process| process.status());
    let kib = status.context("cannot read /proc/self/status")?.vmhwm;
    Ok(kib.context("/proc/self/status has no VmHWM")? * 1_024)
}
