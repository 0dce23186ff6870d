//! `record -- COMMAND`: what becomes of it, and of what it starts.

use crate::Tests;
use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::{PATIENCE, as_child, await_some, overcommit};

pub(crate) const TESTS: Tests = &[
    ("a_command_ends_with_all_that_it_started", as_a_whole),
    ("a_command_ends_when_its_recorder_is_killed", after_a_kill),
    ("a_command_that_ends_during_the_delay_is_not_recorded", during_the_delay),
    ("what_a_command_prints_stays_out_of_the_json", beside_json),
    ("a_command_that_becomes_another_user_is_ended", another_user),
    ("a_user_who_is_half_known_is_refused", half_known),
];

/// Starts a recording of a script, and awaits the process whose number the script writes.
fn record(dir: &Path, script: &str) -> Result<(Recording, Pid)> {
    let written = dir.join("pid");
    let script = script.replace("PID", &written.to_string_lossy());
    let recording = Recording::start(&dir.join("run"), ["--", "sh", "-c", &script])?;
    let pid = await_some("the script", PATIENCE, || {
        let text = fs::read_to_string(&written).unwrap_or_default();
        Ok(text.strip_suffix('\n').and_then(|pid| pid.parse().ok()))
    })?;
    Ok((recording, Pid::from_raw(pid)))
}

/// Waits until a process is gone; a zombie is.
fn await_end(pid: Pid) -> Result<()> {
    await_some("end of what the command started", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let runs = kill(pid, None).is_ok() && !stat.contains(") Z ");
        Ok((!runs).then_some(()))
    })
}

fn as_a_whole() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut recording, pid) = record(dir.path(), "sleep 1000 & echo $! > PID; wait")?;
    recording.signal(Signal::SIGTERM)?;
    // A normal end, of a recording of no VM.
    ensure!(recording.wait()?.code() == Some(4));
    await_end(pid)
}

fn after_a_kill() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut recording, pid) = record(dir.path(), "echo $$ > PID; exec sleep 1000")?;
    recording.signal(Signal::SIGKILL)?;
    ensure!(recording.wait()?.signal() == Some(9));
    await_end(pid)
}

/// The command's own failure comes first; a good end is still no recording.
fn during_the_delay() -> Result<()> {
    for (script, code) in [("exit 0", 4), ("exit 9", 9)] {
        let dir = tempfile::tempdir()?;
        let mut record = Command::new(overcommit());
        record.args(["record", "--delay", "5m", "--out"]).arg(dir.path().join("run"));
        record.args(["--", "sh", "-c", script]);
        let output = as_child(&mut record, Signal::SIGKILL).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{script}: {output:?}");
        ensure!(said.contains("ended during --delay; nothing was recorded"), "{said}");
        ensure!(!dir.path().join("run").exists(), "a recording is left");
    }
    Ok(())
}

/// What COMMAND prints is none of the JSON.
fn beside_json() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut record = Command::new(overcommit());
    record.args(["record", "--quiet", "--json", "--out"]).arg(dir.path().join("run"));
    record.args(["--", "echo", "noise"]);
    let output = as_child(&mut record, Signal::SIGKILL).output()?;
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(summary["schema"] == "overcommit.summary/1", "{summary:#}");
    ensure!(String::from_utf8_lossy(&output.stderr).contains("noise"), "{output:?}");
    Ok(())
}

/// As `gosu` does in a container, where root is nobody else.
fn another_user() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    // It must not wait for it without end.
    let mut record = Command::new("timeout");
    record.arg("120").arg(overcommit()).args(["record", "-q", "--duration", "1s", "--out"]);
    record.arg(dir.path().join("run")).args(["--", "setpriv", "--reuid", "65534"]);
    record.args(["--regid", "65534", "--clear-groups", "sleep", "1000"]);
    let output = record.env_remove("SUDO_UID").env_remove("SUDO_GID").output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

fn half_known() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ran = dir.path().join("ran");
    let mut record = Command::new(overcommit());
    record.args(["record", "--out"]).arg(dir.path().join("run"));
    record.args(["--", "touch"]).arg(&ran).env("SUDO_UID", "1000").env_remove("SUDO_GID");
    let output = record.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("SUDO_GID is not"), "{said}");
    ensure!(!ran.exists() && !dir.path().join("run").exists(), "it ran all the same");
    Ok(())
}
