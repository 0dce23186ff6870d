//! The emulated host with an AMD or an arm64 CPU: QEMU, whose TCG has SVM and EL2. Its root is a folder
//! of this machine.

use crate::lab::image::Image;
use crate::setup::find;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What QEMU's monitor, behind the console, is asked: where its CPUs are, and which
/// interrupts wait.
pub(crate) const ASK: &[u8] = b"\x01cinfo registers -a\ninfo lapic\n";

/// What it needs.
pub(crate) struct Host<'a> {
    /// See [`emulator`].
    pub(crate) emulator: &'a Path,
    pub(crate) image: &'a Image,
    pub(crate) initramfs: &'a Path,
    /// Shared with the lab as /run/results; holds `command`.
    pub(crate) results: &'a Path,
    /// A raw file that the lab sees as /dev/vda: a slow disk.
    pub(crate) disk: &'a Path,
    pub(crate) cpus: u32,
    /// Their model.
    pub(crate) cpu: &'static str,
    /// Whether they are of arm64.
    pub(crate) is_arm64: bool,
    /// Its root.
    pub(crate) root: &'a Path,
    /// More arguments of the kernel.
    pub(crate) arguments: &'static str,
}

/// The command that boots it.
pub(crate) fn command(host: &Host<'_>) -> Command {
    let mut command = Command::new(host.emulator);
    command.args(["-nodefaults", "-no-reboot", "-display", "none", "-m", "3072"]);
    command.args(["-accel", "tcg,thread=single", "-cpu", host.cpu]);
    // Virtual time: an instruction takes a nanosecond, whatever the machine does meanwhile.
    // While all CPUs wait, time goes with the machine's, so that disks keep their speed.
    command.args(["-icount", "shift=0,sleep=on"]);
    let (machine, console) = if host.is_arm64 {
        ("virt,virtualization=on,gic-version=3,", "ttyAMA0")
    } else {
        ("", "ttyS0")
    };
    // Its pages are not for the host's KSM, which tests look at.
    command.args(["-machine", &format!("{machine}mem-merge=off")]);
    command.args(["-smp", &host.cpus.to_string()]);
    command.arg("-kernel").arg(&host.image.kernel).arg("-initrd").arg(host.initramfs);
    let arguments = "quiet panic=-1 mitigations=off nokaslr tsc=reliable";
    command.arg("-append").arg(format!("console={console} {arguments} {}", host.arguments));
    command.args(["-serial", "mon:stdio"]);
    let share = |path: &Path, id: &str, more: &str| {
        let path = path.display().to_string().replace(',', ",,");
        format!("local,path={path},id={id},security_model=none,multidevs=remap{more}")
    };
    command.arg("-fsdev").arg(share(host.root, "root", ",readonly=on"));
    command.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    command.arg("-fsdev").arg(share(host.results, "results", ""));
    command.args(["-device", "virtio-9p-pci,fsdev=results,mount_tag=results"]);
    let disk = host.disk.display().to_string().replace(',', ",,");
    let slow = "format=raw,if=none,id=disk,cache=unsafe,throttling.iops-total=200";
    command.arg("-drive").arg(format!("file={disk},{slow}"));
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    command
}

/// QEMU under another name: else overcommit, tried on this machine meanwhile, would take the
/// emulated host for a VM. What QEMU loads it looks for beside the folder that it lies in.
///
/// # Errors
/// There is no QEMU, or it cannot be copied.
pub(crate) fn emulator(program: &str) -> Result<PathBuf> {
    let qemu = find(program)?;
    let prefix = qemu.parent().and_then(Path::parent).context("QEMU lies in no folder")?;
    let place = testbed::target().join("emulator").join(program);
    let copy = place.join("bin/emulated-host");
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified());
    if modified(&copy).is_ok_and(|time| modified(&qemu).is_ok_and(|of_qemu| time >= of_qemu)) {
        return Ok(copy);
    }
    let failed = || format!("cannot copy {} to {}", qemu.display(), copy.display());
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(place.join("bin")).with_context(failed)?;
    for beside in ["lib", "share"] {
        symlink(prefix.join(beside), place.join(beside)).with_context(failed)?;
    }
    fs::copy(&qemu, &copy).with_context(failed)?;
    Ok(copy)
}
