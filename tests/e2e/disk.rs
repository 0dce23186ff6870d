//! A disk that fails or is full ends a recording, which can be read up to there.

use crate::Tests;
use crate::input::expect;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testbed::qemu::{Config, Vm};
use testbed::results::{json, rows};
use testbed::undo::Undo;
use testbed::{as_child, overcommit, run};

pub(crate) const TESTS: Tests = &[
    ("a_disk_that_fails_takes_nothing_that_was_written", failing),
    ("a_recording_ends_before_its_disk_is_full", full),
];

/// Which call on which file fails from which of its calls on, how, and what is said of it.
const FAULTS: [(&str, &str, u32, &str, &str); 6] = [
    ("intervals.csv", "write", 5, "ENOSPC", "No space left on device"),
    ("vms.csv", "write", 5, "EDQUOT", "quota"),
    ("host.csv", "write", 5, "EIO", "Input/output error"),
    ("vms/guest/latency.hlog", "write", 5, "ENOSPC", "No space left on device"),
    ("run.json.new", "write", 5, "ENOSPC", "No space left on device"),
    ("", "renameat", 5, "EIO", "Input/output error"),
];

fn failing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut guest = Vm::start(&Config::new("guest", 16))?;
    guest.await_passes(1)?;
    for (file, call, from, error, words) in FAULTS {
        let folder = dir.path().join(format!("{call}-{}", file.replace('/', "-")));
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", &format!("trace={call}")]);
        strace.args(["-e", &format!("inject={call}:error={error}:when={from}+")]);
        if !file.is_empty() {
            strace.arg("-P").arg(folder.join(file));
        }
        strace.arg("-o").arg(dir.path().join("calls")).arg(overcommit());
        strace.args(["record", "--duration", "30s", "--interval", "50ms", "--out"]).arg(&folder);
        let output = as_child(&mut strace, Signal::SIGKILL).output().context("no strace")?;
        let calls = fs::read_to_string(dir.path().join("calls"))?;
        ensure!(calls.contains("(INJECTED)"), "{call} of {file:?} did not fail: {output:?}");
        is_told(&output, words)?;
        can_be_read(&folder)?;
    }
    Ok(())
}

/// In one line that names what failed.
fn is_told(output: &Output, words: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(said.contains("can be read: overcommit report"), "{said}");
    let error = said.lines().find(|line| line.starts_with("overcommit: error: "));
    let error = error.context("no error")?;
    ensure!(error.contains(words) && error.contains("write"), "{error}");
    Ok(())
}

/// Every interval that run.json counts is in the report.
fn can_be_read(folder: &Path) -> Result<()> {
    let run = json(folder, "run.json")?;
    let complete = run["recorded"]["intervals"].as_u64().context("no count")?;
    ensure!(complete > 0, "{run:#}");
    let report = Command::new(overcommit()).args(["report", "--json"]).arg(folder).output()?;
    let summary: serde_json::Value =
        serde_json::from_slice(&report.stdout).with_context(|| format!("{report:?}"))?;
    ensure!(report.status.success(), "{report:?}");
    ensure!(summary["intervals"] == complete, "{complete}: {summary:#}");
    let written = rows(folder, "vms.csv")?;
    let written: BTreeSet<&String> = written.iter().map(|row| &row["interval"]).collect();
    ensure!(written.len() as u64 >= complete, "{written:?}, not {complete}");
    Ok(())
}

/// A recording ends while its summary still has room.
fn full() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let at = dir.path().display();
    let mounted = Undo::script("a small file system", &format!("umount {at} 2> /dev/null || :"))?;
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(dir.path()))?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let record = |name: &str, more: &[&str]| -> Result<(PathBuf, Output)> {
        let folder = dir.path().join(name);
        let mut record = Command::new(overcommit());
        record.args(["record", "--interval", "10ms", "--duration", "10m", "--out"]);
        record.arg(&folder).args(more);
        Ok((folder, as_child(&mut record, Signal::SIGKILL).output()?))
    };
    // COMMAND goes on until it sees that the recording is over.
    let run_file = dir.path().join("small/run.json");
    let sees = format!(r#"grep -q '"stopped_by": "max_size"' {}"#, run_file.display());
    let command = format!("until {sees}; do sleep 0.1; done");
    for (name, more, code, why, words) in [
        (
            "small",
            &["--max-size", "1M", "--", "sh", "-c", &command][..],
            0,
            "max_size",
            "COMMAND goes on",
        ),
        // Little is left for the second.
        ("full", &[], 1, "disk_full", "is nearly full"),
    ] {
        if more.is_empty() {
            fs::write(dir.path().join("filler"), vec![1; 1_700_000])?;
        }
        let (folder, output) = record(name, more)?;
        expect(&output, code, words)?;
        ensure!(json(&folder, "run.json")?["stopped_by"] == why, "{output:?}");
        ensure!(more.is_empty() || json(&folder, "run.json")?["command_status"] == 0, "{output:?}");
        let summary = json(&folder, "summary.json")?;
        ensure!(summary["vms"][0]["vm"] == "guest", "{summary:#}");
        ensure!(folder.join("report.html").exists(), "{output:?}");
        can_be_read(&folder)?;
        let bytes: u64 = sizes(&folder)?;
        println!("{name}: {bytes} bytes");
        ensure!(more.is_empty() || (500_000..=1 << 20).contains(&bytes), "{bytes} bytes");
    }
    drop(mounted);
    Ok(())
}

/// Bytes of all files in a folder.
fn sizes(folder: &Path) -> Result<u64> {
    let entries = fs::read_dir(folder)?.map(|entry| {
        let path = entry?.path();
        if path.is_dir() { sizes(&path) } else { Ok(path.metadata()?.len()) }
    });
    entries.sum()
}
