//! What may this process do?

use anyhow::{Context, Result};

/// To look into other processes (include/uapi/linux/capability.h).
pub const SYS_PTRACE: u32 = 19;

/// Its effective capabilities, a bit each.
///
/// # Errors
/// /proc/self/status cannot be read, or has none.
pub fn held() -> Result<u64> {
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    held.with_context(|| format!("{path} has no CapEff"))
}

/// Whether one is among those held.
pub const fn has(held: u64, bit: u32) -> bool {
    held >> bit & 1 == 1
}
