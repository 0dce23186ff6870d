//! Processes that only claim to be VMs, as any user can start them.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{json, rows};
use testbed::{PATIENCE, as_child, await_some};

pub(crate) const TESTS: Tests = &[("fakes_hide_no_vm_and_take_little_memory", fakes)];

/// More than there are slots for VMs to come.
const FAKES: usize = 300;
/// A user who logs in.
const USER: u32 = 1234;
/// What the recorder may hold, in KiB: a slot takes a MiB, and there were two for each fake.
const HELD_KIB: u64 = 400 << 10;

struct Fakes(Vec<Child>);

impl Fakes {
    fn start(dir: &Path) -> Result<Self> {
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        let program = dir.join("qemu-system-x86_64");
        if !program.exists() {
            fs::copy("/bin/sleep", &program)?;
        }
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
