//! A VM of libvirt, which holds its monitor.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testbed::payload::{self, Guest};
use testbed::record::Recording;
use testbed::results::{json, rows, vm};
use testbed::undo::Undo;
use testbed::{await_some, run};

pub(crate) const TESTS: Tests = &[("libvirt_tells_what_its_vm_gave_back_kvm", balloon)];

const PATIENCE: Duration = Duration::from_secs(60);
/// MiB of the guest, of which its balloon takes nothing.
const MEMORY: u64 = 128;
const NAME: &str = "of-libvirt";

/// libvirt's daemons, if nobody else runs them.
struct Daemons {
    _undo: Vec<Undo>,
}

impl Daemons {
    fn start() -> Result<Self> {
        if virsh(["version"]).is_ok() {
            return Ok(Self { _undo: Vec::new() });
        }
        let mut undo = Vec::new();
        for daemon in ["virtlogd", "libvirtd"] {
            undo.insert(0, Undo::with("a daemon of libvirt", move || end(daemon)));
            run(Command::new(daemon).arg("--daemon"))?;
        }
        await_some("libvirt", PATIENCE, || Ok(virsh(["version"]).ok()))?;
        Ok(Self { _undo: undo })
    }
}

/// Ends the daemon that we started.
fn end(daemon: &str) -> Result<()> {
    let file = format!("/run/{daemon}.pid");
    let Ok(pid) = std::fs::read_to_string(&file) else { return Ok(()) };
    run(Command::new("kill").arg(pid.trim()))?;
    await_some("end of a daemon", PATIENCE, || Ok((!Path::new(&file).exists()).then_some(())))
}

fn virsh<const N: usize>(arguments: [&str; N]) -> Result<String> {
    run(Command::new("virsh").args(["--connect", "qemu:///system"]).args(arguments))
}

/// A guest that walks; its QEMU is root's, so that it may read our files.
fn domain(dir: &Path) -> Result<String> {
    let kernel = payload::kernel(Guest::Walker)?;
    Ok(format!(
        "<domain type='kvm'><name>{NAME}</name><memory unit='MiB'>{MEMORY}</memory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type>\
         <kernel>{}</kernel><cmdline>mib=16</cmdline></os>\
         <devices><emulator>/usr/bin/{}</emulator>\
         <serial type='file'><source path='{}'/></serial><memballoon model='virtio'/></devices>\
         <seclabel type='static' model='dac' relabel='no'><label>+0:+0</label></seclabel>\
         </domain>",
        kernel.display(),
        testbed::qemu::QEMU,
        dir.join("serial").display()
    ))
}

fn balloon() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _daemons = Daemons::start()?;
    let file = dir.path().join("domain.xml");
    std::fs::write(&file, domain(dir.path())?)?;
    let _domain = Undo::with("a VM of libvirt", || {
        if virsh(["domstate", NAME]).is_ok() { virsh(["destroy", NAME]).map(drop) } else { Ok(()) }
    });
    virsh(["create", &file.to_string_lossy()])?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "500ms", "--vm", NAME])?;
    let row = await_some("balloon", PATIENCE, || {
        let row = rows(&folder, "vms.csv")?.pop();
        Ok(row.filter(|row| !row["ballooned_bytes"].is_empty()))
    });
    let folder = recording.end()?;
    let row = row.with_context(|| {
        let told = json(&folder, "run.json").map(|run| run["vms"][0]["balloon_unknown"].clone());
        format!("{told:?}")
    })?;
    ensure!(row["balloon_source"] == "libvirt", "{row:#?}");
    let figures = ["configured_bytes", "current_bytes", "ballooned_bytes"];
    let figures = figures.map(|column| row[column].parse::<u64>().unwrap_or(u64::MAX));
    ensure!(figures == [MEMORY << 20, MEMORY << 20, 0], "{figures:?}");
    let uuid = virsh(["domuuid", NAME])?;
    let summary = vm(&folder, NAME)?;
    ensure!(summary["uuid"] == uuid.trim(), "{uuid} is not {}", summary["uuid"]);
    Ok(())
}
