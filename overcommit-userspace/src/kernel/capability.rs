//! What may this process do?

use anyhow::{Context, Result};
pub use rustix::thread::CapabilitySet;
use rustix::thread::{CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

/// What it takes to record, of a user who is not root: eBPF, events of all processes, and their
/// memory and descriptors.
pub const LEAST: [(&str, CapabilitySet); 3] = [
    ("CAP_BPF", CapabilitySet::BPF),
    ("CAP_PERFMON", CapabilitySet::PERFMON),
    ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE),
];

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
    // COMMAND may have become another user.
    .union(CapabilitySet::KILL);

/// What it needs beside that for a user who ran sudo, to whom the recording is handed.
const FOR_USER: CapabilitySet = CapabilitySet::empty()
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// The level of perf_event_paranoid from which Ubuntu's kernels ask for CAP_SYS_ADMIN where
/// mainline asks for CAP_PERFMON (`perf_event_open`, kernel/events/core.c); mainline ends at 2.
const ADMIN_ALONE: i32 = 3;

/// The level of perf_event_paranoid, if it is one for which CAP_PERFMON may not be enough.
pub fn asks_for_admin() -> Option<i32> {
    let level = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?;
    level.trim().parse().ok().filter(|level| *level >= ADMIN_ALONE)
}

/// Gives up what a recording does not need, in this thread and in those that it starts; what they
/// execute gains nothing. `for_user` where it is for a user who ran sudo.
///
/// # Errors
/// The kernel refuses it.
pub fn keep_what_records(for_user: bool) -> Result<()> {
    let admin =
        if asks_for_admin().is_some() { CapabilitySet::SYS_ADMIN } else { CapabilitySet::empty() };
    let for_user = if for_user { FOR_USER } else { CapabilitySet::empty() };
    let kept = TO_RECORD | admin | for_user;
    let CapabilitySets { effective, permitted, inheritable } = sets()?;
    let (effective, permitted) = (effective & kept, permitted & kept);
    keep(CapabilitySets { effective, permitted, inheritable })
}

/// Gives up every capability, in this thread alone: one that strangers talk to. It stays the same user.
///
/// # Errors
/// The kernel refuses it.
pub fn keep_nothing() -> Result<()> {
    let none = CapabilitySet::empty();
    keep(CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// Gives up all but what it takes to find other users' VMs and to connect to them, in this thread alone.
///
/// # Errors
/// The kernel refuses it.
pub fn keep_what_connects() -> Result<()> {
    let kept =
        CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    let CapabilitySets { effective, permitted, .. } = sets()?;
    let (effective, permitted) = (effective & kept, permitted & kept);
    keep(CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
}

/// Gives up all but CAP_SYS_ADMIN.
///
/// # Errors
/// The kernel refuses it.
pub fn keep_admin() -> Result<()> {
    let CapabilitySets { effective, permitted, .. } = sets()?;
    let (admin, none) = (CapabilitySet::SYS_ADMIN, CapabilitySet::empty());
    keep(CapabilitySets {
        effective: effective & admin,
        permitted: permitted & admin,
        inheritable: none,
    })
}

fn keep(sets: CapabilitySets) -> Result<()> {
    set_capabilities(None, sets).context("cannot give up capabilities")?;
    set_no_new_privs(true).context("cannot give up new privileges")
}

/// Its effective capabilities.
///
/// # Errors
/// The kernel does not say.
pub fn held() -> Result<CapabilitySet> {
    Ok(sets()?.effective)
}

fn sets() -> Result<CapabilitySets> {
    capabilities(None).context("cannot read this process's capabilities")
}
