//! What may this process do?

use anyhow::{Context, Result};
use procfs::process::Process;

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
