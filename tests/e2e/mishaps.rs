//! What may befall a host while it is recorded.

use crate::Tests;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{faults_agree, rows, vm};
use testbed::squeeze::Squeeze;
use testbed::{PATIENCE, await_some};

pub(crate) const TESTS: Tests = &[
    ("a_recorder_that_stands_still_loses_nothing", stood_still),
    ("swap_that_is_switched_off_is_followed", switched_off),
];

/// For how long the recorder is stopped: several intervals.
const STILL: Duration = Duration::from_secs(3);
/// Majors before and after.
const MAJORS: u64 = 1_000;
/// MiB in which the whole VM has room.
const ROOM: u64 = 512;

fn stood_still() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let squeeze = Squeeze::new()?;
    let mut guest = Vm::start(&Config { stopped: true, ..squeeze.config("moved") })?;
    let recording = Recording::start(&dir.path().join("run"), [""; 0])?;
    let before = guest.faults()?;
    guest.resume()?;
    guest.await_majors(MAJORS)?;
    recording.signal(Signal::SIGSTOP)?;
    let since = Instant::now();
    guest.await_majors(MAJORS)?;
    await_some("some intervals", PATIENCE, || Ok((since.elapsed() >= STILL).then_some(())))?;
    recording.signal(Signal::SIGCONT)?;
    guest.await_majors(MAJORS)?;
    guest.stop()?;
    let folder = recording.end()?;
    faults_agree("moved", &vm(&folder, "moved")?, before, guest.faults()?)?;
    let intervals = rows(&folder, "host.csv")?;
    let delayed: Vec<f64> = intervals
        .iter()
        .filter(|row| row["delayed"] == "1")
        .map(|row| Ok(row["length_s"].parse()?))
        .collect::<Result<_>>()?;
    println!("delayed: {delayed:?}");
    ensure!(delayed.iter().any(|length| *length >= STILL.as_secs_f64() - 1.0), "{delayed:?}");
    Ok(())
}

/// The kernel brings the pages back, and no fault does.
fn switched_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let squeeze = Squeeze::new()?;
    let mut guest = Vm::start(&Config { stopped: true, ..squeeze.config("moved") })?;
    let recording = Recording::start(&folder, [""; 0])?;
    let before = guest.faults()?;
    guest.resume()?;
    guest.await_majors(MAJORS)?;
    squeeze.cgroup.limit(ROOM)?;
    squeeze.swap_off()?;
    await_some("the end of its pressure", PATIENCE, || {
        let rows = rows(&folder, "vms.csv")?;
        let its = rows.iter().rfind(|row| row["vm"] == "moved");
        Ok(its.is_some_and(|row| row["swap_state"] == "healthy").then_some(()))
    })?;
    guest.stop()?;
    let folder = recording.end()?;
    faults_agree("moved", &vm(&folder, "moved")?, before, guest.faults()?)
}
