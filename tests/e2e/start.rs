//! A start that fails at some step says what failed, and leaves nothing.

use crate::Tests;
use crate::lifecycle::our_programs;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use testbed::host::MemoryCgroup;
use testbed::qemu::{Config, Vm};
use testbed::{PATIENCE, as_child, await_some, overcommit};

pub(crate) const TESTS: Tests = &[
    ("a_start_that_fails_at_some_step_leaves_nothing", at_each_step),
    ("a_memory_limit_below_what_it_needs_is_told", below_its_need),
];

/// MiB in which the maps have no room, and in which everything has.
const TOO_LITTLE: u64 = 44;
const ENOUGH: u64 = 64;

/// System calls of a start, how each may fail, words of which one says so, and at how many of its
/// calls that is tried.
const STEPS: [(&str, &str, &str, usize); 6] = [
    ("bpf", "ENOMEM", "memory", 12),
    ("bpf", "EPERM", "EPERM|not permitted", 4),
    ("perf_event_open", "EMFILE", "Too many open files", 4),
    ("openat", "EMFILE", "Too many open files", 8),
    ("clone3", "EAGAIN", "Resource temporarily unavailable", 3),
    ("prlimit64", "EPERM", "EPERM|not permitted", 2),
];

fn at_each_step() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("guest", 4))?;
    let (calls, _) = record(dir.path(), None)?;
    for (call, error, words, tries) in STEPS {
        let steps = steps(&calls, call);
        ensure!(!steps.is_empty(), "a start makes no call of {call}");
        let tries = tries.min(steps.len());
        for number in (1..=tries).map(|number| steps[number * steps.len() / tries - 1]) {
            let fault = format!("{call}:error={error}:when={number}");
            let (calls, output) = record(dir.path(), Some(&fault))?;
            ensure!(calls.contains("(INJECTED)"), "{fault} did not happen");
            is_told(&fault, words, &output)?;
            let is_there = dir.path().join("run").exists();
            // On a slow machine that call may be one of the recording, whose folder stays.
            let has_begun =
                String::from_utf8_lossy(&output.stderr).contains("recorded can be read");
            let is_recorded = matches!(output.status.code(), Some(0 | 4)) || has_begun;
            ensure!(is_there == is_recorded, "{fault}: folder: {is_there}");
            await_some(
                "end of the programs",
                PATIENCE,
                || Ok((our_programs() == 0).then_some(())),
            )?;
        }
    }
    Ok(())
}

/// The numbers of those calls of the first thread that are a step of the start, and not one of
/// thousands alike.
fn steps(calls: &str, call: &str) -> Vec<usize> {
    let first = calls.split_whitespace().next().unwrap_or_default();
    let its = calls.lines().filter_map(|line| line.strip_prefix(first)?.trim().strip_prefix(call));
    let its = its.filter(|arguments| arguments.starts_with('('));
    let alike = ["BPF_MAP_UPDATE_ELEM", "BPF_MAP_LOOKUP_ELEM", "\"/proc/"];
    let is_step = |arguments: &str| !alike.iter().any(|part| arguments.contains(part));
    let steps = its.zip(1..).filter(|(arguments, _)| is_step(arguments));
    let steps: Vec<usize> = steps.map(|(_, number)| number).collect();
    // The last ones may not come: no two starts make as many calls.
    steps[..steps.len() - steps.len() / 4].to_vec()
}

/// Records for a moment, with that fault; gives the system calls, and what it said.
fn record(dir: &Path, fault: Option<&str>) -> Result<(String, Output)> {
    let (log, out) = (dir.join("calls"), dir.join("run"));
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-e",
        "trace=bpf,perf_event_open,openat,clone3,prlimit64",
    ]);
    if let Some(fault) = fault {
        strace.args(["-e", &format!("inject={fault}")]);
    }
    strace.arg("-o").arg(&log).arg(overcommit());
    strace.args(["record", "--duration", "100ms", "--interval", "50ms", "--out"]).arg(&out);
    let output = as_child(&mut strace, Signal::SIGKILL).output().context("cannot run strace")?;
    Ok((fs::read_to_string(log)?, output))
}

/// It ended well, as the call was not needed, or by an error that is ours, or the loader's.
fn is_told(fault: &str, words: &str, output: &Output) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!said.contains("panicked"), "{said}");
    let error = said.lines().find(|line| line.contains("error"));
    println!("{fault}: {:?} {}", output.status.code(), error.unwrap_or_default());
    match output.status.code() {
        Some(0 | 4) => Ok(()),
        Some(1) => {
            ensure!(said.contains("overcommit: error: "), "{said}");
            let is_said = words.split('|').any(|word| said.contains(word));
            ensure!(is_said, "not {words}: {said}");
            Ok(())
        }
        Some(127) => {
            ensure!(said.contains("error while loading shared libraries"), "{said}");
            Ok(())
        }
        other => anyhow::bail!("it ended with {other:?}: {said}"),
    }
}

/// The kernel kills nobody, and nothing is left.
fn below_its_need() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("guest", 4))?;
    let cgroup = MemoryCgroup::new("recorder")?;
    let record = |mebibytes| {
        cgroup.limit(mebibytes)?;
        let mut shell = Command::new("sh");
        let enter = "echo $$ > \"$0\" && exec \"$@\"";
        shell.args(["-c", enter]).arg(cgroup.procs()).arg(overcommit());
        shell.args(["record", "--duration", "100ms", "--interval", "50ms", "--out"]);
        shell.arg(dir.path().join("run"));
        as_child(&mut shell, Signal::SIGKILL).output().context("cannot run sh")
    };
    let output = record(TOO_LITTLE)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(said.contains("raise the limit of the memory cgroup"), "{said}");
    ensure!(!dir.path().join("run").exists(), "a folder is left");
    let output = record(ENOUGH)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}
