//! Referenced bits of a process's page tables: cleared, and counted a while later. It
//! sees what QEMU touches itself, so a guest under TCG; and it makes reclaim forget
//! which pages were in use.

use crate::vm::maps;
use crate::vm::memory::{figure, is_in, ram};
use anyhow::{Context, Result};
use procfs::process::Process;
use std::path::Path;

/// Clears them. The kernel walks all of the process's memory under the mmap lock.
///
/// # Errors
/// The VM is gone, or the kernel refuses.
pub fn clear(proc: &Path, pid: i32) -> Result<()> {
    let path = proc.join(format!("{pid}/clear_refs"));
    std::fs::write(&path, "1").with_context(|| format!("cannot write {}", path.display()))
}

/// How much of the guest's memory was touched since.
///
/// # Errors
/// The VM is gone.
pub fn look(proc: &Path, pid: i32) -> Result<u64> {
    let process = Process::new_with_root(proc.join(pid.to_string()))?;
    let maps = maps::read_with(&process, &["Referenced"])?;
    let ram = ram(maps.iter());
    let of_guest = maps.iter().filter(|map| is_in(map, &ram));
    Ok(of_guest.map(|map| figure(map, "Referenced")).sum())
}
