//! What a recording says, and what a stand-in says.

use crate::qemu::QEMU;
use crate::{as_child, await_some, overcommit};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

/// A JSON file of a recording.
///
/// # Errors
/// The file is missing or malformed.
pub fn json(folder: &Path, name: &str) -> Result<Value> {
    let path = folder.join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

/// A VM's entry in summary.json.
///
/// # Errors
/// There is none.
pub fn vm(folder: &Path, name: &str) -> Result<Value> {
    let summary = json(folder, "summary.json")?;
    let vms = summary["vms"].as_array().context("no VMs")?;
    let found = vms.iter().find(|vm| vm["vm"] == name);
    found.cloned().with_context(|| format!("no VM {name} in {summary:#}"))
}

/// The only VM's entry.
///
/// # Errors
/// There is not exactly one.
pub fn only_vm(folder: &Path) -> Result<Value> {
    let summary = json(folder, "summary.json")?;
    let vms = summary["vms"].as_array().context("no VMs")?;
    ensure!(vms.len() == 1, "not one VM: {summary:#}");
    Ok(vms[0].clone())
}

/// A metric's figure of a VM.
///
/// # Errors
/// There is none.
pub fn figure(vm: &Value, metric: &str, figure: &str) -> Result<u64> {
    let metrics = vm["metrics"].as_array().context("no metrics")?;
    let entry = metrics.iter().find(|entry| entry["metric"] == metric).context("no such metric")?;
    entry[figure].as_u64().with_context(|| format!("no {metric} {figure} in {vm:#}"))
}

/// Runs of programs that the kernel left out of a recording, of all processes: where it
/// preempts them, as trampolines on Linux 7.x, the faults of a while may be missing.
///
/// # Errors
/// run.json is missing or malformed.
pub fn skipped(folder: &Path, is_meant: impl Fn(&str) -> bool) -> Result<u64> {
    let run = json(folder, "run.json")?;
    let programs = run["not_counted"]["programs_skipped"].as_object().into_iter().flatten();
    Ok(programs.filter(|(name, _)| is_meant(name)).filter_map(|(_, count)| count.as_u64()).sum())
}

/// The share that a part has of the time of a VM's faults in which they did not wait for a CPU:
/// that wait says how busy the machine was.
///
/// # Errors
/// The parts do not make up the whole, or that one was not seen.
pub fn fault_share(vm: &Value, part: &str) -> Result<f64> {
    let [all, runq, part] = fault_time(vm, part)?;
    Ok(part as f64 / (all - runq).max(1) as f64)
}

/// The share that waits for a CPU have of the time in which they were not asleep: whoever they
/// sleep for waits for a CPU too where the machine is busy.
///
/// # Errors
/// As [`fault_share`].
pub fn starved_share(vm: &Value) -> Result<f64> {
    let [all, runq, asleep] = fault_time(vm, "sleep")?;
    Ok(runq as f64 / (all - asleep).max(1) as f64)
}

/// All the time of a VM's faults, that without a CPU, and that of a part, in nanoseconds.
fn fault_time(vm: &Value, part: &str) -> Result<[u64; 3]> {
    let time = &vm["fault_time"];
    println!("{part} of {time}");
    let of = |part: &str| time[format!("{part}_ns")].as_u64();
    let all = of("total").context("no time")?;
    let sums = ["fault.minor", "fault.major"].map(|fault| figure(vm, fault, "sum_ns"));
    let sums: u64 = sums.into_iter().sum::<Result<u64>>()?;
    ensure!(all == sums, "{all} of {sums} ns");
    let parts = ["reclaim", "swapin", "compaction", "lock", "userfault", "runq", "io", "sleep"];
    let seen: u64 = parts.iter().chain(&["rest"]).filter_map(|part| of(part)).sum();
    ensure!(seen == all, "the parts are {seen} of {all} ns: {time}");
    let part = of(part).with_context(|| format!("no {part} in {time}"))?;
    Ok([all, of("runq").unwrap_or(0), part])
}

/// What was not counted of a VM, slow faults left out: those are in the histogram.
pub fn lost(vm: &Value) -> u64 {
    let counts = vm["not_counted"].as_object().into_iter().flatten();
    counts.filter(|(cause, _)| !cause.starts_with("slow_")).filter_map(|(_, n)| n.as_u64()).sum()
}

/// Rows of a CSV file by column name, as far as they are whole: it may be being written.
///
/// # Errors
/// The file is missing or malformed.
pub fn rows(folder: &Path, name: &str) -> Result<Vec<HashMap<String, String>>> {
    let file = fs::read(folder.join(name))?;
    let end = file.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    Ok(csv::Reader::from_reader(&file[..end]).deserialize().collect::<Result<_, _>>()?)
}

/// Waits until a recording counts what is swapped out of the cgroups of these VMs.
///
/// # Errors
/// It does not come so far, or a cgroup is not its VM's own.
pub fn await_cgroups(folder: &Path, vms: [&str; 2], limit: Duration) -> Result<()> {
    await_some("cgroups", limit, || {
        let known = rows(folder, "vms.csv")?;
        let is_known = |name: &str| {
            let last = known.iter().rev().find(|row| row["vm"] == name);
            last.is_some_and(|row| !row["swapped_out_pages_per_s"].is_empty())
        };
        Ok(vms.iter().all(|name| is_known(name)).then_some(()))
    })
}

/// Sum of what is not empty in a column, without the first.
///
/// # Errors
/// A cell is no number.
pub fn sum(rows: &[HashMap<String, String>], column: &str) -> Result<f64> {
    let cells = rows.iter().map(|row| &row[column]).filter(|cell| !cell.is_empty());
    cells.skip(1).map(|cell| cell.parse::<f64>().context("no number")).sum()
}

/// Fails unless the two are within 1 %.
///
/// # Errors
/// They are further apart.
pub fn within_a_percent(what: &str, counted: u64, kernel: u64, lost: u64) -> Result<()> {
    println!("{what}: counted {counted}, kernel {kernel}, not counted {lost}");
    ensure!(
        counted.abs_diff(kernel) * 100 <= kernel,
        "{what}: counted {counted}, the kernel says {kernel}, {lost} not counted"
    );
    Ok(())
}

/// Fails unless a VM's faults are within 1 % of what the kernel counted, minor and major; `what` is
/// said before them.
///
/// # Errors
/// They are further apart, or not there.
pub fn faults_agree(what: &str, vm: &Value, before: [u64; 2], after: [u64; 2]) -> Result<()> {
    for (metric, kind) in [("fault.minor", 0), ("fault.major", 1)] {
        let counted = figure(vm, metric, "count")?;
        let what = format!("{what} {metric}");
        within_a_percent(&what, counted, after[kind] - before[kind], lost(vm))?;
    }
    Ok(())
}

/// A process that ends with the test.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Gone already if the test waited for it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs overcommit to its end.
///
/// # Errors
/// It cannot be started.
pub fn run<const N: usize>(arguments: [&str; N]) -> Result<Output> {
    Ok(Command::new(overcommit()).args(arguments).output()?)
}

/// Holds that `check --self-test` tests the backends that this host allows, and finds all figures
/// right, with pages that come back from swap among them.
///
/// # Errors
/// It does not.
pub fn self_tested() -> Result<()> {
    let output = run(["check", "--self-test", "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    for proof in report["backends"].as_array().context("no backends")?.iter() {
        println!("{} {}", proof["backend"], proof["proofs"]);
    }
    ensure!(output.status.code() == Some(0) && report["passed"] == true, "{report:#}");
    let check: Value = serde_json::from_slice(&run(["check", "--json"])?.stdout)?;
    let allowed = |report: &Value| -> Vec<Value> {
        let backends = report["backends"].as_array().cloned().unwrap_or_default();
        backends.into_iter().filter(|backend| backend["refused"].is_null()).collect()
    };
    let (tested, allowed) = (allowed(&report), allowed(&check));
    let names = |of: &[Value]| of.iter().map(|one| one["backend"].clone()).collect::<Vec<_>>();
    ensure!(!tested.is_empty() && names(&tested) == names(&allowed), "{report:#}");
    for tested in tested {
        let proofs = tested["proofs"].as_array().context("no proofs")?;
        let of = |what: &str| proofs.iter().find(|proof| proof["what"] == what);
        let majors = of("major faults").and_then(|proof| proof["counted"].as_u64());
        ensure!(majors.is_some_and(|majors| majors > 1), "{tested:#}");
        ensure!(of("the longest fault").is_some(), "{tested:#}");
        let sees_kinds = tested["backend"] != "perf";
        ensure!(of("first touches").is_some() == sees_kinds, "{tested:#}");
    }
    Ok(())
}

/// The middle one of them.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The program of the stand-ins, which cargo builds one folder above the tests.
pub fn stand_in() -> PathBuf {
    stand_in_of(&std::env::current_exe().unwrap_or_default())
}

/// That of these tests.
pub fn stand_in_of(tests: &Path) -> PathBuf {
    tests.ancestors().nth(2).unwrap_or(Path::new("")).join("stand-in")
}

/// A stand-in process that waits for its cue.
pub struct StandIn {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl StandIn {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It does not start.
    pub fn start<const N: usize>(arguments: [&str; N]) -> Result<Self> {
        Self::spawn(Command::new(stand_in()).args(arguments))
    }

    /// One that passes for a VM of QEMU's, by a copy in that folder.
    ///
    /// # Errors
    /// It cannot be copied, or does not start.
    pub fn as_qemu(dir: &Path, arguments: &[&str]) -> Result<Self> {
        let program = dir.join(QEMU);
        if !program.exists() {
            fs::copy(stand_in(), &program)?;
        }
        Self::spawn(Command::new(program).args(arguments))
    }

    fn spawn(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = as_child(command, Signal::SIGKILL).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut started = Self { child, output };
        let line = started.line()?;
        ensure!(line == "ready", "the stand-in says {line:?}");
        Ok(started)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do its work, and gives the result.
    ///
    /// # Errors
    /// It is gone.
    pub fn work(&mut self) -> Result<String> {
        let input = self.child.stdin.as_mut().context("no input")?;
        writeln!(input)?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Gone already if it failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
