//! What may this process do?

use anyhow::{Context, Result};
use procfs::process::Process;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// To look into other processes (include/uapi/linux/capability.h).
pub const SYS_PTRACE: u32 = 19;

/// For nearly everything.
pub const SYS_ADMIN: u32 = 21;
/// To load eBPF programs.
pub const BPF: u32 = 39;
/// For programs that read the kernel's memory, and events of all processes.
pub const PERFMON: u32 = 38;

/// What it takes to record, of a user who is not root: eBPF, events of all processes, and their
/// memory and descriptors.
pub const LEAST: [(&str, u32); 3] =
    [("CAP_BPF", BPF), ("CAP_PERFMON", PERFMON), ("CAP_SYS_PTRACE", SYS_PTRACE)];

/// What a recording needs once its probes are attached, where root began it.
const TO_RECORD: CapabilitySet = CapabilitySet::empty()
    // Tables of the programs, and events of CPUs and of a KVM that come later.
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON)
    // Descriptors, maps and monitors of other users' VMs, and what the kernel logs of OOM kills.
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SYSLOG)
    // Which file a mapping is of (`proc_map_files_get_link`, fs/proc/base.c).
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    // The recording is handed to the user behind sudo, and so is COMMAND.
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::KILL);

/// The level of perf_event_paranoid from which Ubuntu's kernels ask for CAP_SYS_ADMIN where
/// mainline asks for CAP_PERFMON (`perf_event_open`, kernel/events/core.c); mainline ends at 2.
const ADMIN_ALONE: i32 = 3;

/// The level of perf_event_paranoid, if it is one for which CAP_PERFMON may not be enough.
pub fn asks_for_admin() -> Option<i32> {
    let level = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?;
    level.trim().parse().ok().filter(|level| *level >= ADMIN_ALONE)
}

/// Gives up what a recording does not need, in this thread and in those that it starts.
///
/// # Errors
/// The kernel refuses it.
pub fn keep_what_records() -> Result<()> {
    let admin =
        if asks_for_admin().is_some() { CapabilitySet::SYS_ADMIN } else { CapabilitySet::empty() };
    let kept = TO_RECORD | admin;
    let CapabilitySets { effective, permitted, inheritable } =
        capabilities(None).context("cannot read this process's capabilities")?;
    let (effective, permitted) = (effective & kept, permitted & kept);
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable })
        .context("cannot give up capabilities")
}

/// Its effective capabilities, a bit each.
///
/// # Errors
/// /proc/self/status cannot be read.
pub fn held() -> Result<u64> {
    let status = Process::myself().and_then(|process| process.status());
    Ok(status.context("cannot read /proc/self/status")?.capeff)
}

/// Whether one is among those held.
pub const fn has(held: u64, bit: u32) -> bool {
    held >> bit & 1 == 1
}
