//! A VM of libvirt, which holds its monitor.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use testbed::payload::{self, Guest};
use testbed::record::Recording;
use testbed::results::{json, rows, vm};
use testbed::undo::Undo;
use testbed::{await_some, run};

pub(crate) const TESTS: Tests = &[("libvirt_tells_of_the_balloon_of_its_vm_kvm", balloon)];

const PATIENCE: Duration = Duration::from_secs(60);
/// MiB of the guest, of which its balloon takes nothing.
const MEMORY: u64 = 128;
const NAME: &str = "of-libvirt";

/// libvirt's daemons, if nobody else runs them, with all that they begin by themselves.
struct Daemons {
    _undo: Vec<Undo>,
}

impl Daemons {
    fn start() -> Result<Self> {
        if virsh(["version"]).is_ok() {
            return Ok(Self { _undo: Vec::new() });
        }
        let networks = networks()?;
        // The cgroups last of all: what is in them is gone then.
        let mut undo = vec![put_back_cgroups()?];
        for (program, file) in [("virtlogd", "/run/virtlogd.pid"), ("libvirtd", "")] {
            if !Path::new(file).exists() {
                undo.insert(0, daemon(program)?);
            }
        }
        await_some("libvirt", PATIENCE, || Ok(virsh(["version"]).ok()))?;
        undo.insert(0, put_back_networks(networks));
        Ok(Self { _undo: undo })
    }
}

/// Runs a daemon until the guard is dropped.
fn daemon(program: &'static str) -> Result<Undo> {
    let child: Arc<Mutex<Option<Child>>> = Arc::default();
    let undo = Undo::with("a daemon of libvirt", {
        let child = Arc::clone(&child);
        move || {
            let child = child.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(mut child) = child else { return Ok(()) };
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
            child.wait()?;
            Ok(())
        }
    });
    let started = Command::new(program).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let started = started.with_context(|| format!("cannot run {program}"))?;
    *child.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
    Ok(undo)
}

/// Takes away the cgroups for machines, if there were none.
fn put_back_cgroups() -> Result<Undo> {
    let find = || -> Result<Vec<PathBuf>> {
        let places = ["/sys/fs/cgroup/machine*", "/sys/fs/cgroup/*/machine*"];
        let found = places.iter().map(|place| Ok(glob::glob(place)?.flatten()));
        Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    let before = find()?;
    Ok(Undo::with("the cgroups of libvirt", move || {
        for cgroup in find()?.into_iter().filter(|cgroup| !before.contains(cgroup)) {
            // Under another controller's name it may be the same one.
            if cgroup.is_dir() && !cgroup.is_symlink() {
                let _ = std::fs::remove_dir(cgroup);
            }
        }
        Ok(())
    }))
}

/// The networks that run, whether libvirt does or not.
fn networks() -> Result<Vec<String>> {
    let files = glob::glob("/run/libvirt/network/*.xml")?.flatten();
    let name = |file: PathBuf| Some(file.file_stem()?.to_string_lossy().into_owned());
    Ok(files.filter_map(name).collect())
}

/// Ends the networks that libvirt has begun by itself.
fn put_back_networks(before: Vec<String>) -> Undo {
    Undo::with("the networks of libvirt", move || {
        let mut new = networks()?.into_iter().filter(|name| !before.contains(name));
        new.try_for_each(|name| virsh(["net-destroy", &name]).map(drop))
    })
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
