//! A recording says what it took of the host.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{Killed, json, stand_in};
use testbed::{PATIENCE, as_child, await_some, overcommit, run};

pub(crate) const TESTS: Tests = &[
    ("a_recording_says_what_it_cost", cost),
    ("whoever_times_programs_ends_with_the_recorder", ends_with_it),
];

/// The cost so far, once programs have been timed.
fn timed(folder: &Path) -> Result<Value> {
    await_some("programs that are timed", PATIENCE, || {
        let cost = json(folder, "run.json")?["cost"].clone();
        ensure!(cost["programs_untimed"].is_null(), "{cost}");
        Ok((cost["programs_timed_ns"].as_u64() > Some(0)).then_some(cost))
    })
}

fn cost() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    // It ends with 4 where not everything is seen.
    let check = Command::new(overcommit()).args(["check", "--json"]).output()?;
    let check: Value = serde_json::from_slice(&check.stdout)?;
    let needed = check["kernel_memory"]["start_bytes"].as_u64().context("no kernel_memory")?;
    // Somebody faults all the time.
    let mut busy = Command::new(stand_in());
    busy.args(["bystander", "600000"]).stdout(Stdio::null());
    let _busy = Killed(as_child(&mut busy, Signal::SIGKILL).spawn()?);
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "200ms"])?;
    let cost = timed(&folder)?;
    println!("{cost:#}");
    let of = |name: &str| cost[name].as_u64().with_context(|| format!("no {name}: {cost}"));
    let cpus = std::thread::available_parallelism()?.get() as u64;
    ensure!(of("programs_ns")? > 0, "{cost}");
    ensure!(of("programs_ns")? < of("programs_timed_ns")? * cpus, "{cost}");
    ensure!(of("programs_timed_ns")? < of("length_ns")?, "{cost}");
    ensure!(of("cpu_ns")? > 0 && of("cpu_ns")? < of("length_ns")?, "{cost}");
    let (kernel, resident) = (of("kernel_bytes")?, of("resident_peak_bytes")?);
    ensure!(resident > 1 << 20, "{cost}");
    // The programs come to it, and another VM may have been there.
    ensure!(
        kernel.abs_diff(needed) < needed / 5,
        "it takes {kernel} bytes, check says {needed}: {check:#}"
    );
    let folder = recording.end()?;
    let report = run(Command::new(overcommit()).arg("report").arg(&folder))?;
    ensure!(report.contains("Cost of recording: its eBPF programs took about"), "{report}");
    let summary = json(&folder, "summary.json")?;
    ensure!(
        summary["run"]["cost"]["kernel_bytes"]
            == json(&folder, "run.json")?["cost"]["kernel_bytes"]
    );
    Ok(())
}

/// The process that has programs timed for that recorder.
fn timer_of(recorder: u32) -> Result<Option<u32>> {
    let children = fs::read_to_string(format!("/proc/{recorder}/task/{recorder}/children"))?;
    let is_it = |pid: &u32| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.contains("program-stats")
    };
    Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_it))
}

fn ends_with_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let recording = Recording::start(&folder, ["--interval", "200ms"])?;
    let timer = timer_of(recording.pid())?.context("nobody times programs")?;
    // CAP_SYS_ADMIN alone, once it has begun.
    await_some("the timer without what it does not need", PATIENCE, || {
        let status = fs::read_to_string(format!("/proc/{timer}/status"))?;
        let held =
            status.lines().find_map(|line| line.strip_prefix("CapPrm:\t").map(str::to_owned));
        Ok(held.filter(|held| u64::from_str_radix(held, 16) == Ok(1 << 21)))
    })?;
    recording.signal(Signal::SIGKILL)?;
    await_some("its end", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{timer}/stat")).unwrap_or_default();
        // It may wait to be reaped.
        let is_over = stat.is_empty() || stat.contains(") Z ");
        Ok(is_over.then_some(()))
    })?;
    Ok(())
}
