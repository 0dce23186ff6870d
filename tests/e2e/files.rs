//! The files, as readers that are not ours take them.

use crate::Tests;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testbed::host::{MemoryCgroup, Setting};
use testbed::qemu::{Config, Vm};
use testbed::record::Recording;
use testbed::results::{figure, json, rows, vm};
use testbed::squeeze::Squeeze;
use testbed::swap::ZramSwap;
use testbed::{PATIENCE, await_some, overcommit, root, run, target};

pub(crate) const TESTS: Tests = &[
    ("foreign_readers_agree", foreign_readers),
    ("perfetto_reads_a_trace", trace),
    ("files_belong_to_the_user_behind_sudo", ownership),
    ("intervals_end_on_whole_multiples", aligned),
    ("a_start_that_fails_leaves_no_folder", few_files),
];

/// For how long a recorder is stopped.
const HELD_UP: Duration = Duration::from_millis(100);

/// A recording of a VM that swaps.
fn recorded(dir: &Path) -> Result<PathBuf> {
    let _small_pages = Setting::small_pages()?;
    let cgroup = MemoryCgroup::new("test")?;
    let _swap = ZramSwap::new(512)?;
    cgroup.limit(64)?;
    let config = Config { cgroup: Some(&cgroup), ..Config::new("web, \"01\"", 96) };
    let mut guest = Vm::start(&config)?;
    let recording = Recording::start(&dir.join("run"), ["--interval", "100ms"])?;
    let passes = guest.passes()?;
    guest.await_passes(passes + 2)?;
    recording.end()
}

fn foreign_readers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = recorded(dir.path())?;
    let name = "web, \"01\"";
    let summary = vm(&folder, name)?;
    let run_file = json(&folder, "run.json")?;
    let vm_folder = run_file["vms"][0]["folder"].as_str().context("no folder")?;
    ensure!(vm_folder == "web%2C%20%2201%22", "{vm_folder}");
    let log = folder.join("vms").join(vm_folder).join("latency.hlog");
    let scripts = root().join("tests/readers");
    let python = target().join("readers/python/bin/python");
    let node = target().join("readers/node");
    let answers = [
        run(Command::new(python).arg(scripts.join("read_hlog.py")).arg(&log))?,
        run(Command::new("node")
            .arg(scripts.join("read_hlog.js"))
            .arg(&log)
            .env("NODE_PATH", node.join("node_modules")))?,
    ];
    for answer in answers {
        let answer: Value = serde_json::from_str(&answer)?;
        for metric in ["fault.minor", "fault.major", "reclaim"] {
            let read = &answer[metric];
            ensure!(read["count"] == figure(&summary, metric, "count")?, "{metric}: {answer:#}");
            let max = figure(&summary, metric, "max_ns").unwrap_or(0);
            for quantile in ["p50_ns", "p90_ns", "p99_ns", "p999_ns"] {
                let foreign = read[quantile].as_u64().context("no quantile")?.min(max);
                let ours = figure(&summary, metric, quantile).unwrap_or(0);
                ensure!(
                    foreign == ours,
                    "{metric} {quantile}: they read {foreign}, we wrote {ours}"
                );
            }
        }
        let lines = rows(&folder, "vms.csv")?.len() as u64;
        let all = rows(&folder, "intervals.csv")?;
        ensure!(answer["intervals"] == all.len(), "a line for every row: {answer:#}");
        let faults = all.iter().filter(|row| row["metric"].starts_with("fault.")).count() as u64;
        ensure!(faults == 2 * lines, "{faults} lines of faults in {lines} intervals");
    }
    hgrm(&folder.join("vms").join(vm_folder), &summary)
}

/// Each slow fault is a slice of its length on the track of its thread, and the rest is there.
fn trace() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let squeeze = Squeeze::new()?;
    let guest = Vm::start(&squeeze.config("squeezed"))?;
    guest.await_majors(100)?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "500ms", "--slow-faults", "100us"])?;
    run(Command::new(overcommit()).arg("mark").arg(&folder).arg("steady"))?;
    guest.await_majors(4_000)?;
    let folder = recording.end()?;
    let mut export = Command::new(overcommit());
    let path = run(export.arg("export").arg(&folder).args(["--format", "perfetto"]))?;
    let python = target().join("readers/python/bin/python");
    let script = root().join("tests/readers/read_trace.py");
    let read: Value =
        serde_json::from_str(&run(Command::new(python).arg(script).arg(path.trim()))?)?;
    let tracks = read["tracks"].as_array().context("no tracks")?;
    let named = |name: &str| -> Vec<&Value> {
        tracks.iter().filter(|track| track["name"] == name).collect()
    };
    let vm_id = vm(&folder, "squeezed")?["vm_id"].clone();
    let group = format!("VM squeezed ({})", vm_id.as_str().unwrap_or_default());
    ensure!(named(&group).len() == 1, "no group {group}: {tracks:#?}");
    let lengths = |slice: &Value| -> Option<u64> {
        let is_fault = slice["name"].as_str()?.starts_with("fault.");
        is_fault.then(|| Some(slice["end"].as_u64()? - slice["start"].as_u64()?))?
    };
    let slices = tracks.iter().filter_map(|track| track["slices"].as_array()).flatten();
    let mut slices: Vec<u64> = slices.filter_map(lengths).collect();
    let mut faults = rows(&folder, "slow-faults.csv")?
        .iter()
        .map(|row| Ok(row["latency_ns"].parse()?))
        .collect::<Result<Vec<u64>>>()?;
    slices.sort_unstable();
    faults.sort_unstable();
    ensure!(!faults.is_empty() && slices == faults, "{} of {}", slices.len(), faults.len());
    let stall = named("stall share").into_iter().find(|track| track["parent"] == group.as_str());
    let stall = stall.context("no stall share")?;
    ensure!(stall["unit"] == "%" && stall["values"][0][1].is_f64(), "{stall:#}");
    let marks = named("marks").pop().context("no marks")?;
    ensure!(marks["instants"] == serde_json::json!(["steady"]), "{marks:#}");
    // All of it is within the recording, by the time since boot.
    let run_file = json(&folder, "run.json")?;
    let at = |which: &str| run_file["clocks"][which]["boottime_ns"].as_u64();
    let (start, end) = at("start").zip(at("end")).context("no clocks")?;
    let values = tracks.iter().filter_map(|track| track["values"].as_array()).flatten();
    let mut times = values.filter_map(|value| value[0].as_u64());
    ensure!(times.all(|time| (start.saturating_sub(1_000_000)..end).contains(&time)), "{read:#}");
    Ok(())
}

/// Reads a distribution as the plotter page does: by white space.
fn hgrm(folder: &Path, summary: &Value) -> Result<()> {
    let text = fs::read_to_string(folder.join("fault.major.hgrm"))?;
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(1)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_whitespace().map(str::parse).collect::<Result<_, _>>())
        .collect::<Result<_, _>>()?;
    let last = rows.last().context("no rows")?;
    ensure!(last.len() == 3 && last[1] == 1.0, "{last:?}");
    ensure!(last[2] as u64 == figure(summary, "fault.major", "count")?, "{last:?}");
    let max_ms = figure(summary, "fault.major", "max_ns")? as f64 / 1e6;
    ensure!((last[0] - max_ms).abs() < 1e-6, "{last:?}, not {max_ms}");
    ensure!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1]), "not in order");
    Ok(())
}

fn ownership() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534))?;
    let folder = dir.path().join("deep/run");
    let who = dir.path().join("who");
    fs::write(&who, "")?;
    fs::set_permissions(&who, fs::Permissions::from_mode(0o666))?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let script = format!("id -u > {}", who.display());
    let mut record = Command::new(overcommit());
    record.args(["record", "-q", "--out"]).arg(&folder).args(["--", "sh", "-c", &script]);
    run(record.env("SUDO_UID", "65534").env("SUDO_GID", "65534"))?;
    ensure!(fs::read_to_string(who)?.trim() == "65534", "the command ran as another user");
    ensure!(fs::metadata(&folder)?.permissions().mode() & 0o777 == 0o700);
    for name in
        ["", "run.json", "vms.csv", "summary.json", "vms", "vms/guest", "vms/guest/latency.hlog"]
    {
        let owner = fs::metadata(folder.join(name))?.uid();
        ensure!(owner == 65534, "{name:?} belongs to {owner}");
    }
    Ok(())
}

fn aligned() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let _guest = Vm::start(&Config::new("guest", 16))?;
    let folder = dir.path().join("run");
    let recording = Recording::start(&folder, ["--interval", "20ms"])?;
    // One that comes late spans several.
    let await_rows = |count| {
        await_some("intervals", PATIENCE, || {
            Ok((rows(&folder, "vms.csv").is_ok_and(|rows| rows.len() >= count)).then_some(()))
        })
    };
    await_rows(5)?;
    let before = rows(&folder, "vms.csv")?.len();
    recording.signal(Signal::SIGSTOP)?;
    std::thread::sleep(HELD_UP);
    recording.signal(Signal::SIGCONT)?;
    await_rows(before + 2)?;
    recording.end()?;
    let rows = rows(&folder, "vms.csv")?;
    let mut longest = 0.0;
    for row in &rows {
        let length: f64 = row["length_s"].parse()?;
        ensure!(row["delayed"] == if length > 0.03 { "1" } else { "0" }, "{row:?}");
        longest = f64::max(longest, length);
    }
    ensure!(longest >= HELD_UP.as_secs_f64(), "the longest took {longest} s");
    let partial: Vec<&str> = rows.iter().map(|row| row["partial"].as_str()).collect();
    ensure!(partial.first() == Some(&"1") && partial.last() == Some(&"1"), "{partial:?}");
    for row in &rows[1..] {
        let start: f64 = row["start_unix_s"].parse()?;
        let us = (start * 1e6).round() as u64;
        ensure!(us.is_multiple_of(20_000), "an interval starts at {start}");
    }
    Ok(())
}

/// With fewer files than it needs it fails, at another step for each limit. With one or two more it
/// starts, and fails at the end; what was recorded stays.
fn few_files() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("run");
    let mut failed = 0;
    for limit in (16..).step_by(8) {
        let script = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
        let mut record = Command::new("sh");
        record.args(["-c", &script]).arg(overcommit());
        let output = record.args(["record", "-q", "--duration", "10ms", "--out"]).arg(&folder);
        let output = output.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() != Some(1) {
            ensure!(folder.join("summary.json").exists(), "{said}");
            break;
        }
        ensure!(said.contains("Too many open files"), "{said}");
        if said.contains("what was recorded can be read") {
            let report = Command::new(overcommit()).arg("report").arg(&folder).output()?;
            ensure!(report.status.code() == Some(4), "{}", report.status);
            fs::remove_dir_all(&folder)?;
            continue;
        }
        ensure!(!folder.exists(), "with {limit} files it left {}: {said}", folder.display());
        failed += 1;
    }
    ensure!(failed > 3, "it never failed");
    Ok(())
}
