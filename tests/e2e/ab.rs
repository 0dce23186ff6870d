//! Commands that take turns.

use crate::Tests;
use crate::input::expect;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testbed::qemu::Vm;
use testbed::results::{Killed, json};
use testbed::squeeze::Squeeze;
use testbed::{PATIENCE, as_child, await_some, overcommit};

pub(crate) const TESTS: Tests =
    &[("two_commands_take_turns_and_go_on_after_a_kill_kvm", take_turns)];

/// Runs of each command.
const RUNS: u64 = 5;

const QUIET: &str = "sleep 1.5";

/// The same VM left alone, and with its memory taken away again and again, by turns.
fn take_turns() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("ab");
    let squeeze = Squeeze::to(1_024)?;
    let mut guest = Vm::start(&squeeze.config("guest"))?;
    guest.await_passes(1)?;
    let pushes = squeeze.cgroup.push_out_script(3) + "; " + &until_back(guest.pid());
    let command = |a: &str| {
        let mut command = Command::new(overcommit());
        command.args(["ab", "--runs", &RUNS.to_string(), "--fail-on-regression"]);
        command.args(["--a", a, "--b", &pushes, "--vm", "guest", "--pause", "0s"]);
        command.args(["--interval", "100ms", "--delay", "100ms", "--out"]).arg(&out);
        command.stdin(Stdio::null());
        command
    };
    let mut first = command(QUIET);
    let first = as_child(&mut first, Signal::SIGTERM).stderr(Stdio::null()).spawn()?;
    let mut first = Killed(first);
    await_some("three runs", PATIENCE, || Ok((done(&out).unwrap_or(0) >= 3).then_some(())))?;
    first.0.kill()?;
    first.0.wait()?;
    // The recording ends with whoever began it.
    await_some("end of the recording", PATIENCE, || Ok((!is_being_recorded(&out)).then_some(())))?;
    // Nor does memory that it had pushed out.
    let back = Command::new("sh").args(["-c", &until_back(guest.pid())]).status()?;
    ensure!(back.success(), "{back}");
    let done = done(&out)?;
    let before = of_runs(&out)?;
    expect(&command("sleep 2").output()?, 1, "name a new folder")?;

    let output = command(QUIET).output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{}{printed}", String::from_utf8_lossy(&output.stderr));
    expect(&output, 3, &format!("{done} of them are done"))?;
    let says =
        |words: [&str; 2]| printed.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(says(["fault.major rate", "WORSE, p = "]), "{printed}");
    ensure!(!printed.contains("do not alternate"), "{printed}");
    let after = of_runs(&out)?;
    ensure!(after.len() as u64 == 2 * RUNS, "{:?}", after.keys());
    let kept = before.iter().filter(|(dir, run)| after[*dir]["run_id"] == run["run_id"]);
    ensure!(kept.count() as u64 >= done, "runs were made again");
    Ok(())
}

/// Waits until a VM has what it uses in memory. What it hardly uses comes back page by page.
fn until_back(pid: u32) -> String {
    let majors = format!("$(cut -d ' ' -f 12 /proc/{pid}/stat)");
    format!("until before={majors}; sleep 0.3; [ $(({majors} - before)) -lt 100 ]; do :; done")
}

fn done(out: &Path) -> Result<u64> {
    json(out, "ab.json")?["done"].as_u64().context("no number of runs")
}

/// Every recording, by its folder.
fn of_runs(out: &Path) -> Result<BTreeMap<PathBuf, serde_json::Value>> {
    let mut runs = BTreeMap::new();
    for side in ["a", "b"].map(|side| out.join(side)).into_iter().filter(|side| side.exists()) {
        for dir in fs::read_dir(side)? {
            let dir = dir?.path();
            if dir.join("run.json").exists() {
                runs.insert(dir.clone(), json(&dir, "run.json")?);
            }
        }
    }
    Ok(runs)
}

/// Whether a process records below the folder.
fn is_being_recorded(out: &Path) -> bool {
    let words = glob::glob("/proc/[0-9]*/cmdline").into_iter().flatten().flatten();
    let mut words = words.filter_map(|path| fs::read_to_string(path).ok());
    let out = out.display().to_string();
    words.any(|words| words.split('\0').any(|word| word.starts_with(&out)))
}
