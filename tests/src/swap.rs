//! Swap of its own for a test.

use crate::host::{quote, read, retried, write};
use crate::undo::Undo;
use crate::{run, target};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Compressed memory as swap, of its own.
pub struct ZramSwap {
    device: String,
    _undo: Undo,
}

impl ZramSwap {
    /// Adds a zram device of that size and swaps to it.
    ///
    /// # Errors
    /// The kernel has no zram, or refuses.
    pub fn new(mebibytes: u64) -> Result<Self> {
        if !Path::new("/sys/class/zram-control").exists() {
            run(Command::new("modprobe").arg("zram"))?;
        }
        let number = read("/sys/class/zram-control/hot_add")?.trim().to_owned();
        let device = format!("/dev/zram{number}");
        let remove = format!("echo {number} > /sys/class/zram-control/hot_remove");
        let script = format!(
            "{}\necho 1 > /sys/block/zram{number}/reset\n{}",
            swap_off(&device),
            retried(&remove)
        );
        let undo = Undo::script("zram swap", &script)?;
        let name = device.trim_start_matches("/dev/");
        write(format!("/sys/block/{name}/disksize"), &format!("{mebibytes}M"))?;
        swap_on(&device)?;
        Ok(Self { device, _undo: undo })
    }

    /// Has all that is swapped there brought back.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn off(&self) -> Result<()> {
        run(Command::new("swapoff").arg(&self.device)).map(drop)
    }
}

/// A disk as swap, which is read while others wait.
pub struct DiskSwap {
    _undo: Undo,
}

impl DiskSwap {
    /// Swaps to the disk, whose content is lost.
    ///
    /// # Errors
    /// There is none, or the kernel refuses.
    pub fn new(device: &'static str) -> Result<Self> {
        let undo = Undo::script("swap on a disk", &swap_off(device))?;
        swap_on(device)?;
        Ok(Self { _undo: undo })
    }
}

/// A file as a disk that serves few reads a second, as swap.
pub struct SlowSwap {
    _undo: Undo,
}

impl SlowSwap {
    /// Swaps to a new file of that size, behind a loop device that the kernel throttles.
    ///
    /// # Errors
    /// The host has no loop device or no blkio controller (cgroups version 1), or refuses.
    pub fn new(mebibytes: u64, reads_per_second: u64) -> Result<Self> {
        let file = target().join(format!("slow-swap-{}", std::process::id()));
        let script = format!(
            "for device in $(losetup --noheadings --output NAME --associated {file}); do\n\
             {}\necho \"$(cat /sys/block/${{device#/dev/}}/dev) 0\" > {THROTTLE}\n\
             losetup --detach $device\ndone\nrm -f {file}",
            swap_off("$device"),
            file = quote(&file.display().to_string())
        );
        let undo = Undo::script("swap on a slow disk", &script)?;
        // Swap may not have holes, and this one is written through the loop.
        let length = format!("{mebibytes}M");
        run(Command::new("fallocate").arg("--length").arg(&length).arg(&file))?;
        run(Command::new("losetup").args(["--find", "--direct-io=on"]).arg(&file))?;
        let device =
            loop_of(&file)?.with_context(|| format!("no loop device has {}", file.display()))?;
        swap_on(&device)?;
        throttle(&device, reads_per_second)?;
        Ok(Self { _undo: undo })
    }
}

/// Swaps to a device, before any other that the host has.
fn swap_on(device: &str) -> Result<()> {
    run(Command::new("mkswap").arg(device))?;
    run(Command::new("swapon").args(["--priority", "32767"]).arg(device))?;
    Ok(())
}

/// The script that ends that, if it is so.
fn swap_off(device: &str) -> String {
    format!("! grep -q \"^{device} \" /proc/swaps || swapoff {device}")
}

/// The loop device that the file is behind.
fn loop_of(file: &Path) -> Result<Option<String>> {
    let list = run(Command::new("losetup")
        .args(["--noheadings", "--output", "NAME", "--associated"])
        .arg(file))?;
    Ok(list.split_whitespace().next().map(str::to_owned))
}

/// Where reads of block devices are limited.
const THROTTLE: &str = "/sys/fs/cgroup/blkio/blkio.throttle.read_iops_device";

/// Limits the reads of a block device, of all processes; 0 lifts the limit.
fn throttle(device: &str, reads_per_second: u64) -> Result<()> {
    let numbers = read(format!("/sys/block/{}/dev", device.trim_start_matches("/dev/")))?;
    let limit = format!("{} {reads_per_second}", numbers.trim());
    write(THROTTLE, &limit)
}
