//! Processes that only claim to be VMs, as any user can start them.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{json, rows, run, vm};
use testbed::{PATIENCE, as_child, await_some};

pub(crate) const TESTS: Tests = &[
    ("fakes_hide_no_vm_and_take_little_memory", fakes),
    ("vms_that_come_and_go_without_end_are_kept_to_a_bound", without_end),
];

/// More than there are slots for VMs to come.
const FAKES: usize = 300;
/// A user who logs in.
const USER: u32 = 1234;
/// What the recorder may hold, in KiB: a slot takes a MiB, and there were two for each fake.
const HELD_KIB: u64 = 400 << 10;

/// VMs that ended and are kept.
const KEPT: usize = 500;

struct Fakes(Vec<Child>);

impl Fakes {
    fn start(dir: &Path) -> Result<Self> {
        let program = program(dir)?;
        let mut fakes = Self(Vec::new());
        for _ in 0..FAKES {
            let mut fake = Command::new(&program);
            fake.arg("600").uid(USER).current_dir("/").stdin(Stdio::null());
            fakes.0.push(as_child(&mut fake, Signal::SIGKILL).spawn()?);
        }
        Ok(fakes)
    }
}

impl Drop for Fakes {
    fn drop(&mut self) {
        for fake in &mut self.0 {
            let _ = fake.kill();
            let _ = fake.wait();
        }
    }
}

/// A program that is called like a hypervisor.
fn program(dir: &Path) -> Result<PathBuf> {
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    let program = dir.join("qemu-system-x86_64");
    if !program.exists() {
        fs::copy("/bin/sleep", &program)?;
    }
    Ok(program)
}

/// They may be there when a recording begins, and come while it runs.
fn fakes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let before = Fakes::start(dir.path())?;
    let told = dir.path().join("told");
    let recording = Recording::start_told(&folder, &told, ["--interval", "100ms"])?;
    let status = fs::read_to_string(format!("/proc/{}/status", recording.pid()))?;
    let held = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let held: u64 = held.trim().trim_end_matches(" kB").parse()?;
    println!("{held} KiB with {FAKES} fakes");
    ensure!(held < HELD_KIB, "{held} KiB with {FAKES} fakes");
    let _later = Fakes::start(dir.path())?;
    await_some("fakes without a slot", PATIENCE, || {
        let run = json(&folder, "run.json")?;
        Ok((run["not_counted"]["vms_without_slot"].as_u64() > Some(0)).then_some(()))
    })?;
    await_some("word of them", PATIENCE, || {
        Ok(fs::read_to_string(&told)?.contains("not every VM is recorded").then_some(()))
    })?;
    let _victim = Vm::start(&Config::new("victim", 16))?;
    await_some("rows of the victim", PATIENCE, || {
        let rows = rows(&folder, "vms.csv").unwrap_or_default();
        Ok(rows.iter().any(|row| row["vm"] == "victim").then_some(()))
    })?;
    drop(before);
    recording.end()?;
    let run = json(&folder, "run.json")?;
    let unserved = run["not_counted"]["unserved"].as_array().context("no names")?;
    ensure!(!unserved.is_empty() && unserved.len() <= 16, "{unserved:?}");
    Ok(())
}

/// The one that was there all the time is among those that are kept, and the recording can be read
/// though its recorder is killed.
fn without_end() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (program, folder) = (program(dir.path())?, dir.path().join("run"));
    let _victim = Vm::start(&Config::new("victim", 16))?;
    let mut recording = Recording::start(&folder, ["--interval", "100ms"])?;
    let left_out = || {
        let run = json(&folder, "run.json")?;
        anyhow::Ok(run["not_counted"]["vms_left_out"].as_u64().context("no vms_left_out")?)
    };
    while left_out()? < 50 {
        let start = |_| as_child(Command::new(&program).arg("0"), Signal::SIGKILL).spawn();
        let mut wave = (0..16).map(start).collect::<Result<Vec<Child>, _>>()?;
        wave.iter_mut().try_for_each(|fake| fake.wait().map(drop))?;
    }
    recording.signal(Signal::SIGKILL)?;
    recording.wait()?;
    let kept = json(&folder, "run.json")?["vms"].as_array().context("no vms")?.len();
    // Beside them are the victim and those of the last intervals.
    ensure!((KEPT..KEPT + 100).contains(&kept), "{kept} VMs are kept");
    let folders = fs::read_dir(folder.join("vms"))?.count();
    ensure!((kept..kept + 100).contains(&folders), "{folders} folders for {kept} VMs");
    let path = folder.to_string_lossy().into_owned();
    let output = run(["report", &path])?;
    let report = String::from_utf8(output.stdout)?;
    ensure!(report.contains("not kept"), "{report}");
    vm(&folder, "victim")?;
    Ok(())
}
