//! What this host is.

use anyhow::{Context, Result, anyhow};
use std::fs;

/// Number of the system call `ioctl`.
pub const IOCTL: u32 = if cfg!(target_arch = "aarch64") { 29 } else { 16 };

/// Nanoseconds in a clock tick of /proc: `USER_HZ` is 100 on every architecture
/// that runs KVM.
pub const TICK_NS: u64 = 10_000_000;

/// `uname -r`.
///
/// # Errors
/// /proc cannot be read.
pub fn release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

/// The host's name.
///
/// # Errors
/// It is not set, or no UTF-8.
pub fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("cannot get the host name")?;
    name.into_string().map_err(|name| anyhow!("the host name {name:?} is not UTF-8"))
}

/// CPUs that the kernel can ever have, online or not.
///
/// # Errors
/// /sys cannot be read.
pub fn possible_cpus() -> Result<u32> {
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
    u32::try_from(cpus).context("more CPUs than there can be")
}

/// Whether this process has every right of root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
