//! A VM of libvirt, which holds its monitor.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Command, Stdio};
use testbed::payload::{self, Guest};
use testbed::record::Recording;
use testbed::results::{json, rows, vm};
use testbed::undo::{Running, Undo};
use testbed::{PATIENCE, await_some, run};

pub(crate) const TESTS: Tests = &[("libvirt_tells_of_the_balloon_of_its_vm_kvm", balloon)];

/// MiB of the guest, of which its balloon takes nothing.
const MEMORY: u64 = 128;
const NAME: &str = "of-libvirt";
/// Whom libvirt runs QEMU as where no VM says otherwise.
const USER: &str = "libvirt-qemu";
const KVM: &str = "/dev/kvm";

/// libvirt's daemons, if nobody else runs them, with all that they begin by themselves.
#[derive(Default)]
struct Daemons {
    _networks: Option<Undo>,
    _libvirtd: Option<Running>,
    _virtlogd: Option<Running>,
    _kvm: Option<Undo>,
    /// Last of all: what is in them is gone then.
    _cgroups: Option<Undo>,
}

impl Daemons {
    fn start() -> Result<Self> {
        if virsh(["version"]).is_ok() {
            return Ok(Self::default());
        }
        let script =
            what_is_new(CGROUPS, &there(CGROUPS)?, "[ -L $path ] || rmdir $path 2> /dev/null");
        let cgroups = Undo::script("the cgroups of libvirt", &script)?;
        let networks = there(NETWORKS)?;
        let has_log = Path::new("/run/virtlogd.pid").exists();
        let log = (!has_log).then(|| daemon("virtlogd")).transpose()?;
        let kvm = open_kvm()?;
        let libvirt = daemon("libvirtd")?;
        await_some("libvirt", PATIENCE, || Ok(virsh(["version"]).ok()))?;
        let destroy = "virsh --connect qemu:///system net-destroy $(basename $path .xml)";
        let script = what_is_new(NETWORKS, &networks, destroy);
        Ok(Self {
            _networks: Some(Undo::script("the networks of libvirt", &script)?),
            _libvirtd: Some(libvirt),
            _virtlogd: log,
            _kvm: kvm,
            _cgroups: Some(cgroups),
        })
    }
}

/// Lets libvirt's user open KVM, if it may not: else libvirt asks QEMU for all that it can do
/// before each of its own steps, a minute in all.
fn open_kvm() -> Result<Option<Undo>> {
    let mut may_open = Command::new("runuser");
    if run(may_open.args(["-u", USER, "--", "test", "-w", KVM])).is_ok() {
        return Ok(None);
    }
    let mode = run(Command::new("stat").args(["--format=%a", KVM]))?;
    let undo = Undo::script(KVM, &format!("chmod {} {KVM}", mode.trim()))?;
    run(Command::new("chmod").args(["o+rw", KVM]))?;
    Ok(Some(undo))
}

/// Runs a daemon until it is dropped.
fn daemon(program: &str) -> Result<Running> {
    let mut command = Command::new(program);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Running::start("a daemon of libvirt", &mut command, |child| {
        Ok(kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?)
    })
}

/// The paths that a pattern of the shell has now, for [`what_is_new`].
fn there(patterns: &str) -> Result<String> {
    run(Command::new("sh").args(["-c", &format!("echo $(ls -d {patterns} 2> /dev/null)")]))
}

/// A script that runs a command for each `$path` that was not there before.
fn what_is_new(patterns: &str, before: &str, command: &str) -> String {
    format!(
        "for path in $(ls -d {patterns} 2> /dev/null || :); do\n    \
         case ' {} ' in *\" $path \"*) continue;; esac\n    {command} || :\ndone",
        before.trim()
    )
}

/// Its cgroups for machines; under another controller's name one may be the same.
const CGROUPS: &str = "/sys/fs/cgroup/machine* /sys/fs/cgroup/*/machine*";
const NETWORKS: &str = "/run/libvirt/network/*.xml";

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
    // It outlives libvirt's daemons.
    let script = format!(
        "virsh --connect qemu:///system destroy {NAME} ||\n    \
         kill -KILL $(cat /run/libvirt/qemu/{NAME}.pid 2> /dev/null) || :\n\
         virsh --connect qemu:///system undefine {NAME} || rm -f /etc/libvirt/qemu/{NAME}.xml"
    );
    let _domain = Undo::script("a VM of libvirt", &script)?;
    virsh(["define", &file.to_string_lossy()])?;
    virsh(["start", NAME])?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "500ms", "--vm", NAME])?;
    // Where libvirt answers late, an interval has what the VM gave back by itself.
    let row = await_some("word of its balloon", PATIENCE, || {
        let row = rows(&folder, "vms.csv")?.pop();
        Ok(row.filter(|row| row["balloon_source"] == "libvirt"))
    });
    let uuid = virsh(["domuuid", NAME])?;
    virsh(["destroy", NAME])?;
    let departure = await_some("word of its end", PATIENCE, || {
        let run = json(&folder, "run.json")?;
        Ok(Some(run["vms"][0]["departure"].clone()).filter(|departure| departure.is_string()))
    });
    let folder = recording.end()?;
    let row = row.with_context(|| {
        let told = json(&folder, "run.json").map(|run| run["vms"][0]["balloon_unknown"].clone());
        format!("{told:?}")
    })?;
    let figures = ["configured_bytes", "current_bytes", "ballooned_bytes"];
    let figures = figures.map(|column| row[column].parse::<u64>().unwrap_or(u64::MAX));
    ensure!(figures == [MEMORY << 20, MEMORY << 20, 0], "{figures:?}");
    ensure!(departure? == "destroyed", "of another end");
    let summary = vm(&folder, NAME)?;
    ensure!(summary["uuid"] == uuid.trim(), "{uuid} is not {}", summary["uuid"]);
    Ok(())
}
