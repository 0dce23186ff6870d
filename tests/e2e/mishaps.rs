//! What may befall a host while it is recorded.

use crate::Tests;
use crate::lifecycle::our_programs;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};
use testbed::host::{MemoryCgroup, write};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{json, rows, run, vm};
use testbed::squeeze::Squeeze;
use testbed::{PATIENCE, as_child, await_some};

pub(crate) const TESTS: Tests = &[
    ("a_recorder_that_stands_still_loses_nothing", stood_still),
    ("swap_that_is_switched_off_is_followed", switched_off),
    ("a_recorder_that_the_kernel_kills_leaves_what_it_recorded", out_of_memory),
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
    let mut vm = squeeze.recorded(&dir.path().join("run"))?;
    vm.guest.resume()?;
    vm.guest.await_majors(MAJORS)?;
    vm.recording.signal(Signal::SIGSTOP)?;
    let since = Instant::now();
    vm.guest.await_majors(MAJORS)?;
    await_some("some intervals", PATIENCE, || Ok((since.elapsed() >= STILL).then_some(())))?;
    vm.recording.signal(Signal::SIGCONT)?;
    vm.guest.await_majors(MAJORS)?;
    let (folder, _) = vm.end()?;
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
    let mut vm = squeeze.recorded(&folder)?;
    vm.guest.resume()?;
    vm.guest.await_majors(MAJORS)?;
    squeeze.cgroup.limit(ROOM)?;
    squeeze.swap_off()?;
    await_some("the end of its pressure", PATIENCE, || {
        let rows = rows(&folder, "vms.csv")?;
        let its = rows.iter().rfind(|row| row["vm"] == "squeezed");
        Ok(its.is_some_and(|row| row["swap_state"] == "healthy").then_some(()))
    })?;
    vm.end().map(drop)
}

/// MiB that the recorder and what takes its memory have together.
const TOGETHER: u64 = 128;

fn out_of_memory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let cgroup = MemoryCgroup::new("recorder")?;
    cgroup.without_swap()?;
    cgroup.limit(TOGETHER)?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let mut recording = Recording::start(&folder, ["--interval", "100ms"])?;
    let recorder = format!("/proc/{}", recording.pid());
    write(cgroup.procs(), &recording.pid().to_string())?;
    write(format!("{recorder}/oom_score_adj"), "1000")?;
    await_some("rows of the guest", PATIENCE, || {
        let rows = rows(&folder, "vms.csv").unwrap_or_default();
        Ok((rows.len() > 2).then_some(()))
    })?;
    // It looks for the end of a line without end, and is killed next.
    let mut greedy = Command::new("sh");
    greedy.args(["-c", "echo $$ > \"$0\" && exec tail /dev/zero"]).arg(cgroup.procs());
    let greedy = as_child(&mut greedy, Signal::SIGKILL).output()?;
    let status = recording.wait()?;
    println!("the recorder ended by {status}, what took its memory by {}", greedy.status);
    ensure!(status.signal() == Some(Signal::SIGKILL as i32), "{status}");
    await_some("end of the programs", PATIENCE, || Ok((our_programs() == 0).then_some(())))?;
    let path = folder.to_string_lossy().into_owned();
    let report = run(["report", &path])?;
    ensure!(matches!(report.status.code(), Some(0 | 4)), "{report:?}");
    let complete = json(&folder, "run.json")?["recorded"]["intervals"].as_u64();
    ensure!(complete >= Some(2), "{complete:?} intervals are complete");
    vm(&folder, "guest").map(drop)
}
